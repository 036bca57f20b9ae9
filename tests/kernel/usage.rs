//! How full the maps are told to be, held against the maps themselves.

use std::os::fd::AsRawFd as _;

use aya::maps::{HashMap, Map, MapData, SockHash};
use sidecar_agent::dataplane::{Capacity, Config, Dataplane, default_pin_dir};
use sidecar_common::{
    Endpoint, Path, Reason,
    keys::{Tuple, WorkloadEndpoint},
    values::Original,
};
use sidecar_tests::{Bpffs, DEADLINE, Server, poll, require_root};

use crate::{
    fixture::{CAPACITY, Fixture},
    plan::{Planner, at, direct, rule},
};

fn entries(dataplane: &Dataplane, map: &str) -> Option<usize> {
    let usage = dataplane.maps();
    usage
        .iter()
        .find(|usage| usage.map == map)
        .unwrap_or_else(|| panic!("{map} is not told of"))
        .entries
}

#[test]
fn original_destinations_are_counted_over_many_batches() -> anyhow::Result<()> {
    require_root!();
    let bpffs = Bpffs::temporary()?;
    let pin_dir = default_pin_dir(bpffs.path());
    let dataplane = Dataplane::load(&Config {
        pin_dir: pin_dir.clone(),
        capacity: Capacity {
            original_dst: 32_768,
            ..CAPACITY
        },
    })?;
    assert_eq!(entries(&dataplane, "ORIGINAL_DST"), Some(0));
    let map = Map::LruHashMap(MapData::from_pin(pin_dir.join("set-1/ORIGINAL_DST"))?);
    let mut map: HashMap<_, Tuple, Original> = map.try_into()?;
    for port in 1..=5000 {
        let client = Endpoint::new(at("10.0.0.1:1").ip().into(), port);
        let tuple = Tuple {
            workload: 1,
            client,
            server: at("127.0.0.1:15001").into(),
        };
        map.insert(tuple, Original::default(), 0)?;
    }
    let there = map.keys().count();
    assert!(there > 4000, "the map keeps what fits: {there}");
    // It is not counted at every question.
    poll(DEADLINE, "a new count", || {
        (entries(&dataplane, "ORIGINAL_DST") == Some(there)).then_some(())
    })
}

#[test]
fn what_the_agent_writes_is_counted_as_it_is_in_the_maps() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", direct("127.0.0.1:8080"))
        .listens(8080)
        .listens(8081);
    let mut fixture = Fixture::of_pod(plan)?;
    let _server = Server::tcp(at("127.0.0.1:8080"))
        .place(fixture.inside())
        .start()?;
    fixture.loaded.dataplane.refresh();
    let open = |name: &str| MapData::from_pin(fixture.loaded.maps_dir().join(name));
    let local: HashMap<_, WorkloadEndpoint, u8> = Map::HashMap(open("LOCAL_ADDRS")?).try_into()?;
    let sockets: SockHash<_, WorkloadEndpoint> = Map::SockHash(open("SOCKETS")?).try_into()?;
    let dataplane = &fixture.loaded.dataplane;
    let (locals, sockets) = (local.keys().count(), sockets.keys().count());
    assert!(locals > 4 && sockets == 1, "{locals}, {sockets}");
    assert_eq!(entries(dataplane, "LOCAL_ADDRS"), Some(locals));
    assert_eq!(entries(dataplane, "SOCKETS"), Some(sockets));
    assert_eq!(entries(dataplane, "LISTEN_INTEREST"), Some(2));
    assert_eq!(entries(dataplane, "WORKLOADS"), Some(1));
    assert_eq!(entries(dataplane, "INBOUND"), Some(1));
    for usage in dataplane.maps() {
        assert!(usage.capacity > 0, "{usage:?}");
    }
    Ok(())
}

#[test]
fn refused_updates_are_counted_by_map() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(Planner::new().listens(8080))?;
    let refused = |fixture: &Fixture, map: &str| -> anyhow::Result<u64> {
        let refused = fixture.loaded.dataplane.refused_updates()?;
        Ok(refused.get(map).copied().unwrap_or_default())
    };
    for map in ["INBOUND", "SOCKETS"] {
        assert_eq!(refused(&fixture, map)?, 0);
    }
    let deny = rule(Path::Deny, Reason::RegistryOnly);
    let too_large = (0..=CAPACITY.rules).fold(Planner::new(), |plan, number| {
        plan.inbound(&format!("0.0.0.0:{}", 1 + number), deny)
    });
    fixture.follow(too_large).unwrap_err();
    assert_eq!(refused(&fixture, "INBOUND")?, 1);

    // One socket takes every place; the application's is entered by a program, and finds none.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let pin = fixture.loaded.maps_dir().join("SOCKETS");
    let mut sockets: SockHash<_, WorkloadEndpoint> =
        Map::SockHash(MapData::from_pin(pin)?).try_into()?;
    for port in 1..=u16::try_from(CAPACITY.sockets)? {
        let key = WorkloadEndpoint {
            workload: 3,
            endpoint: Endpoint::new(at("10.0.0.1:1").ip().into(), port),
        };
        sockets.insert(key, listener.as_raw_fd(), 0)?;
    }
    let _server = Server::tcp(at("127.0.0.1:8080"))
        .place(fixture.inside())
        .start()?;
    assert_eq!(refused(&fixture, "SOCKETS")?, 1);
    Ok(())
}
