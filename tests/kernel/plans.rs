//! Plans come, change and go; so do workloads.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::Context as _;
use aya::maps::{HashMap, LpmTrie, Map, MapData, SockHash};
use rustix::io::Errno;
use sidecar_common::{
    Reason,
    decide::Direction,
    keys::{RouteKey, Tuple, WorkloadEndpoint, WorkloadInterface, WorkloadPort},
    values::{Interface, Original, Route},
};
use sidecar_tests::{Cgroup, Client, DEADLINE, Mode, Place, Probe, Server, poll, require_root};

use crate::{
    fixture::{CAPACITY, Fixture, Loaded, namespace, reached, serve},
    plan::{Planner, at, deny, direct, exempting_self, pass, proxy},
};

const CALLED: &str = "10.1.0.1:80";

fn leading_to(target: &str) -> Planner {
    Planner::new().outbound(CALLED, direct(target))
}

#[test]
fn without_a_plan_everything_passes_and_nothing_is_counted() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::without_plan()?;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    for address in [CALLED, "[fd00:1::1]:80", "127.0.0.1:80"] {
        assert_eq!(reached(&app.visit(at(address))??)?, at(address));
    }
    assert_eq!(fixture.loaded.dataplane.word(fixture.workload).plan(), 0);
    assert_eq!(fixture.loaded.dataplane.counters(fixture.workload), []);
    Ok(())
}

#[test]
fn every_connection_follows_one_plan_or_the_other_while_they_change() -> anyhow::Result<()> {
    require_root!();
    // What the plans have in common differs in both, so that a mixture would show.
    let targets = ["10.9.0.1:80", "10.9.0.2:80"];
    let mut fixture = Fixture::new(leading_to(targets[0]).outbound_default(deny()))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    let stop = AtomicBool::new(false);
    let (visits, flips) = thread::scope(|scope| {
        let flipping = scope.spawn(|| -> anyhow::Result<u32> {
            let mut flips = 0;
            while !stop.load(Ordering::Relaxed) {
                for target in targets.into_iter().rev() {
                    fixture.follow(leading_to(target).outbound_default(deny()))?;
                    flips += 1;
                }
            }
            Ok(flips)
        });
        let visits = app.visits(at(CALLED), 2000);
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok((visits?, flipping.join().expect("no panic")?))
    })?;
    let mut seen = BTreeSet::new();
    for visit in visits {
        seen.insert(reached(&visit?)?);
    }
    assert_eq!(seen, targets.map(at).into(), "{flips} flips");
    assert_eq!(fixture.outbound(Reason::EgressService)?, 2000);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_by_the_maps_name_and_the_old_plan_stays() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(leading_to("10.9.0.1:80"))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    let usage = fixture.loaded.dataplane.usage();
    let plan = fixture.loaded.dataplane.word(fixture.workload).plan();

    let (mut exact, mut prefixes, mut inbound) = (Planner::new(), Planner::new(), Planner::new());
    let mut backends = Vec::new();
    for number in 0..=CAPACITY.rules {
        let (port, address) = (
            1 + number,
            format!("10.4.{}.{}", number / 256, number % 256),
        );
        exact = exact.outbound(&format!("{address}:80"), deny());
        prefixes = prefixes.prefix(80, &format!("{address}/32"), deny());
        inbound = inbound.inbound(&format!("0.0.0.0:{port}"), deny());
        backends.push(format!("{address}:80"));
    }
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    for (map, too_large) in [
        ("OUTBOUND", exact),
        ("PREFIXES", prefixes),
        ("INBOUND", inbound),
        ("BACKENDS", Planner::new().group(&backends)),
    ] {
        let error = fixture
            .follow(too_large.outbound_default(deny()))
            .unwrap_err();
        assert!(
            format!("{error:#}").contains(&format!("map {map} is full")),
            "{error:#}"
        );
        assert_eq!(reached(&app.visit(at(CALLED))??)?, at("10.9.0.1:80"));
        assert_eq!(fixture.loaded.dataplane.usage(), usage);
        assert_eq!(fixture.loaded.dataplane.word(fixture.workload).plan(), plan);
    }
    Ok(())
}

#[test]
fn the_last_plan_that_fits_fits() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let full = (0..CAPACITY.rules).fold(Planner::new(), |plan, number| {
        plan.outbound(
            &format!("10.4.{}.{}:80", number / 256, number % 256),
            direct("10.9.0.1:80"),
        )
    });
    fixture.follow(full)?;
    let app = fixture.app()?;
    for called in ["10.4.0.0:80", "10.4.1.255:80"] {
        assert_eq!(reached(&app.visit(at(called))??)?, at("10.9.0.1:80"));
    }
    // Plans: the one in force, and those that nobody follows.
    for number in 1..CAPACITY.plans {
        let empty = Planner::new()
            .listens(u16::try_from(number)?)
            .build()
            .into();
        fixture
            .loaded
            .dataplane
            .install(&blake3::hash(&number.to_ne_bytes()), &empty)?;
    }
    let error = fixture
        .loaded
        .dataplane
        .install(&blake3::hash(b"more"), &Planner::new().build().into());
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("map PLANS is full"), "{error}");
    Ok(())
}

#[test]
fn ports_that_do_not_fit_leave_nothing() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(leading_to("10.9.0.1:80"))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let listening = |first: u32, count: u32| {
        let ports = (first..first + count).map(|port| u16::try_from(port).expect("a port"));
        ports.fold(Planner::new().outbound_default(deny()), Planner::listens)
    };
    let error = fixture
        .follow(listening(5000, CAPACITY.sockets + 1))
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("LISTEN_INTEREST"),
        "{error:#}"
    );
    assert_eq!(
        reached(&fixture.app()?.visit(at(CALLED))??)?,
        at("10.9.0.1:80")
    );
    // There is room for as many as before.
    fixture.follow(listening(6000, CAPACITY.sockets))?;
    Ok(())
}

#[test]
fn equal_plans_share_an_id_and_entries() -> anyhow::Result<()> {
    require_root!();
    let netns = namespace()?;
    let cgroups = [Cgroup::new("a")?, Cgroup::new("b")?, Cgroup::new("c")?];
    let mut loaded = Loaded::new()?;
    let mut workloads = Vec::new();
    for cgroup in &cgroups {
        workloads.push(loaded.attach(cgroup, &netns)?);
    }
    let one = loaded.follow(workloads[0], leading_to("10.9.0.1:80").build())?;
    let usage = loaded.dataplane.usage();
    assert_eq!(
        loaded.follow(workloads[1], leading_to("10.9.0.1:80").build())?,
        one
    );
    assert_eq!(loaded.dataplane.usage(), usage);
    assert_ne!(
        loaded.follow(workloads[2], leading_to("10.9.0.2:80").build())?,
        one
    );
    assert_ne!(loaded.dataplane.usage(), usage);
    // One leaves it: it is still the other's.
    loaded.dataplane.release(workloads[0])?;
    let outside = Place::here().netns(&netns);
    let _server = serve(outside, "0.0.0.0:80", "server")?;
    for (cgroup, target) in cgroups.iter().zip([CALLED, "10.9.0.1:80", "10.9.0.2:80"]) {
        let seen = Probe::start(outside.cgroup(cgroup))?.visit(at(CALLED))??;
        assert_eq!(reached(&seen)?, at(target));
    }
    Ok(())
}

#[test]
fn a_plan_that_nobody_follows_is_kept_for_a_while_and_then_removed() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(leading_to("10.9.0.1:80"))?;
    let plan = fixture.loaded.dataplane.word(fixture.workload).plan();
    fixture.loaded.dataplane.release(fixture.workload)?;
    fixture.loaded.dataplane.refresh();
    assert_eq!(
        fixture.follow(leading_to("10.9.0.1:80"))?,
        plan,
        "it was there still"
    );
    fixture.loaded.dataplane.release(fixture.workload)?;
    poll(DEADLINE, "the plan to go", || {
        fixture.loaded.dataplane.refresh();
        fixture
            .loaded
            .dataplane
            .usage()
            .iter()
            .all(|(_, used, _)| *used == 0)
            .then_some(())
    })?;
    assert_ne!(fixture.follow(leading_to("10.9.0.1:80"))?, plan);
    let _server = fixture.serve("0.0.0.0:80")?;
    assert_eq!(
        reached(&fixture.app()?.visit(at(CALLED))??)?,
        at("10.9.0.1:80")
    );
    // The one in force stays.
    fixture.loaded.dataplane.refresh();
    assert_eq!(
        reached(&fixture.app()?.visit(at(CALLED))??)?,
        at("10.9.0.1:80")
    );
    Ok(())
}

#[test]
fn released_everything_passes() -> anyhow::Result<()> {
    require_root!();
    let plan = leading_to("10.9.0.1:80")
        .outbound_default(deny())
        .inbound_default(deny());
    let mut fixture = Fixture::new(plan)?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    assert_eq!(app.visit(at("10.1.0.2:80"))?, Err(Errno::CONNREFUSED));
    fixture.loaded.dataplane.release(fixture.workload)?;
    let counters = fixture.loaded.dataplane.counters(fixture.workload);
    for called in [CALLED, "10.1.0.2:80"] {
        assert_eq!(reached(&app.visit(at(called))??)?, at(called));
    }
    assert_eq!(
        fixture.loaded.dataplane.counters(fixture.workload),
        counters
    );
    Ok(())
}

#[test]
fn an_established_direct_connection_survives_detaching() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(leading_to("10.9.0.1:80"))?;
    let _server = Server::tcp(at("10.9.0.1:80"))
        .place(fixture.outside())
        .mode(Mode::Echo)
        .start()?;
    let mut held = Client::tcp(at(CALLED)).place(fixture.inside()).hold()?;
    assert_eq!(held.exchange("one")?, "one");
    fixture.follow(Planner::new().outbound_default(deny()))?;
    assert_eq!(held.exchange("two")?, "two");
    fixture.loaded.dataplane.detach(fixture.workload);
    assert_eq!(held.exchange("three")?, "three");
    Ok(())
}

/// Pinned links to a cgroup or a namespace.
fn links_to(loaded: &Loaded, id: &str, number: u64) -> anyhow::Result<usize> {
    let pinned = loaded.links()?;
    let wanted = format!("{id}:\t{number}");
    let mut links = 0;
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // Descriptors of other tests come and go.
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        links += usize::from(info.contains("link_type") && info.lines().any(|line| line == wanted));
    }
    drop(pinned);
    Ok(links)
}

/// Every entry that begins with a workload, in the maps that have such.
fn entries(pins: &Path) -> anyhow::Result<usize> {
    let open = |name| MapData::from_pin(pins.join(name));
    let local: HashMap<_, WorkloadEndpoint, u8> = Map::HashMap(open("LOCAL_ADDRS")?).try_into()?;
    let interest: HashMap<_, WorkloadPort, u64> =
        Map::HashMap(open("LISTEN_INTEREST")?).try_into()?;
    let sockets: SockHash<_, WorkloadEndpoint> = Map::SockHash(open("SOCKETS")?).try_into()?;
    let originals: HashMap<_, Tuple, Original> =
        Map::LruHashMap(open("ORIGINAL_DST")?).try_into()?;
    let interfaces: HashMap<_, WorkloadInterface, u32> =
        Map::HashMap(open("INTERFACES")?).try_into()?;
    let routes: LpmTrie<_, RouteKey, Route> = Map::LpmTrie(open("ROUTES")?).try_into()?;
    let counts = [
        interfaces.keys().count(),
        routes.keys().count(),
        local.keys().count(),
        interest.keys().count(),
        sockets.keys().count(),
        originals.keys().count(),
    ];
    Ok(counts.iter().sum())
}

#[test]
fn detached_nothing_is_left() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    let _relay = fixture.relay()?;
    let plan = Planner::new()
        .proxied()
        .outbound_default(exempting_self(proxy()))
        .inbound_default(exempting_self(proxy()))
        .interface("lo", Interface::EXCLUDED);
    fixture.follow(plan)?;
    let _servers = [
        fixture.serve("[::]:80")?,
        serve(fixture.as_proxy(), "[::]:15001", "proxy")?,
        serve(fixture.as_proxy(), "[::]:15006", "proxy")?,
    ];
    let app = fixture.app()?;
    assert_eq!(app.visit(at(CALLED))??.name, "proxy");
    let pins = fixture.loaded.maps_dir();
    // Three local addresses (with ::6, see `dataplane::network`), two ports, their sockets and the
    // relay's, one interface. The connection's own entry went over to the accepted socket.
    assert_eq!(entries(&pins)?, 9);
    let (cgroup, netns) = (fixture.cgroup.id()?, fixture.netns.inode()?);
    assert_eq!(
        (
            links_to(&fixture.loaded, "cgroup_id", cgroup)?,
            links_to(&fixture.loaded, "netns_ino", netns)?
        ),
        (10, 1)
    );

    fixture.loaded.dataplane.detach(fixture.workload);
    // What the kernel was told is gone; what programs entered is removed for many at a time.
    assert_eq!(entries(&pins)?, 3);
    fixture.loaded.dataplane.refresh();
    assert_eq!(entries(&pins)?, 0);
    assert_eq!(
        (
            links_to(&fixture.loaded, "cgroup_id", cgroup)?,
            links_to(&fixture.loaded, "netns_ino", netns)?
        ),
        (0, 0)
    );
    let seen = app.visit(at(CALLED))??;
    assert_eq!(
        (seen.name.as_str(), reached(&seen)?),
        ("stranger", at(CALLED))
    );
    assert_eq!(fixture.loaded.dataplane.counters(fixture.workload), []);

    // Attached again, it is a new workload.
    let again = fixture.loaded.attach(&fixture.cgroup, &fixture.netns)?;
    assert_eq!(fixture.loaded.dataplane.word(again).plan(), 0);
    assert_eq!(app.visit(at(CALLED))??.name, "stranger");
    fixture
        .loaded
        .follow(again, Planner::new().outbound_default(deny()).build())?;
    assert_eq!(app.visit(at(CALLED))?, Err(Errno::CONNREFUSED));
    let denied = fixture
        .loaded
        .counted(again, Direction::Outbound, Reason::RegistryOnly)?;
    assert_eq!(denied, 1);
    Ok(())
}

#[test]
fn a_workload_too_many_is_refused() -> anyhow::Result<()> {
    require_root!();
    let netns = namespace()?;
    let mut loaded = Loaded::new()?;
    let cgroups: Vec<_> = (0..CAPACITY.workloads)
        .map(|_| Cgroup::new("full"))
        .collect::<anyhow::Result<_>>()?;
    let (last, others) = cgroups.split_last().context("no cgroups")?;
    for cgroup in others {
        loaded.attach(cgroup, &netns)?;
    }
    let error = format!("{:#}", loaded.attach(last, &netns).unwrap_err());
    assert!(error.contains("workload slots are in use"), "{error}");
    loaded.dataplane.detach(2);
    assert_eq!(loaded.attach(last, &netns)?, 2);
    Ok(())
}

/// More addresses than fit: nothing of the workload stays, and the room is there for others.
#[test]
fn a_workload_that_cannot_be_attached_leaves_nothing() -> anyhow::Result<()> {
    require_root!();
    let (crowded, netns) = (namespace()?, namespace()?);
    let room = CAPACITY.workloads * 16;
    let add = |number| format!("address add 10.3.0.{number}/32 dev lo");
    let batch = (0..room).map(add).collect::<Vec<_>>().join("\n");
    let file = std::env::temp_dir().join(sidecar_tests::names::unique("batch"));
    fs::write(&file, batch)?;
    let added = crowded.ip(&format!("-batch {}", file.display()));
    fs::remove_file(&file)?;
    added?;
    let cgroup = Cgroup::new("workload")?;
    let mut loaded = Loaded::new()?;
    let error = format!("{:#}", loaded.attach(&cgroup, &crowded).unwrap_err());
    assert!(error.contains("LOCAL_ADDRS"), "{error}");
    assert_eq!(entries(&loaded.maps_dir())?, 0);
    assert_eq!(links_to(&loaded, "cgroup_id", cgroup.id()?)?, 0);
    let workload = loaded.attach(&cgroup, &netns)?;
    loaded.follow(workload, Planner::new().outbound_default(pass()).build())?;
    Ok(())
}
