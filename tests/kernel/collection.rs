//! Nothing grows, however many workloads and connections there were.

use std::{env, fs, net::TcpListener, os::fd::AsFd as _, process::Command, time::Instant};

use anyhow::{Context as _, ensure};
use aya::maps::{HashMap, Map, MapData};
use sidecar_agent::dataplane::{Capacity, Dataplane, RelaySockets};
use sidecar_common::{
    Endpoint,
    keys::{OwnerKey, Slot, Tuple, WorkloadId},
    values::Original,
};
use sidecar_tests::{Bpffs, Cgroup, DEADLINE, Namespace, poll::poll_result, require_root};

use crate::{
    fixture::{CAPACITY, Fixture, Loaded, namespace, serve},
    footprint::{Footprint, entries},
    plan::{Planner, at, deny, direct, proxy},
};

/// Set in the process in which a test is alone.
const ALONE: &str = "SIDECAR_TEST_ALONE";

/// Runs a test of this module in a process of its own: other tests open descriptors as well.
fn alone(name: &str, test: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if env::var_os(ALONE).is_some() {
        return test();
    }
    let output = Command::new(env::current_exe()?)
        .args(["--exact", &format!("collection::{name}"), "--nocapture"])
        .env(ALONE, "1")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    ensure!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Resident memory of this process, in KiB.
fn resident() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("/proc tells no resident memory")?.parse()?)
}

/// Namespaces of many workloads. The kernel lets 64 `sk_lookup` programs be attached to each.
const NAMESPACES: usize = 10;
/// Workloads in each.
const EACH: usize = 50;

/// A namespace, a listener in it that is the relay of all its workloads, and their cgroups.
struct Crowd {
    netns: Namespace,
    relay: TcpListener,
    cgroups: Vec<Cgroup>,
}

impl Crowd {
    fn new() -> anyhow::Result<Self> {
        let netns = namespace()?;
        let relay = netns.run(|| TcpListener::bind("127.0.0.1:0"))??;
        let cgroups = (0..EACH).map(|_| Cgroup::new("crowd"));
        Ok(Self {
            relay,
            cgroups: cgroups.collect::<anyhow::Result<_>>()?,
            netns,
        })
    }

    fn attach(&self, loaded: &mut Loaded) -> anyhow::Result<Vec<WorkloadId>> {
        let mut workloads = Vec::new();
        let port = self.relay.local_addr()?.port();
        for (number, cgroup) in self.cgroups.iter().enumerate() {
            let workload = loaded.attach(cgroup, &self.netns)?;
            workloads.push(workload);
            let relay = RelaySockets {
                v4: Some((self.relay.as_fd(), port)),
                v6: None,
            };
            loaded.dataplane.set_relay(workload, &relay)?;
            let plan = Planner::new()
                .proxied()
                .prefix(80, "10.0.0.0/8", deny())
                .inbound("0.0.0.0:9080", direct("127.0.0.1:8080"))
                .owner(OwnerKey::PROXY_UID, u32::try_from(number % 10)?)
                .outbound(&format!("10.1.0.{}:80", number % 10 + 1), deny())
                .build();
            loaded.dataplane.reserve(workload, &plan)?;
            loaded.follow(workload, plan)?;
        }
        Ok(workloads)
    }
}

/// How often: twice, or as often as this environment variable says.
const TURNS: &str = "SIDECAR_TEST_TURNS";

/// All that is done for a workload, for five hundred, and undone, twice or more often.
#[test]
fn workloads_that_came_and_went_leave_nothing() -> anyhow::Result<()> {
    require_root!();
    alone("workloads_that_came_and_went_leave_nothing", || {
        let capacity = Capacity {
            workloads: 1024,
            plans: 64,
            rules: 4096,
            sockets: 4096,
            original_dst: 65_536,
        };
        let crowds = (0..NAMESPACES)
            .map(|_| Crowd::new())
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut loaded = Loaded::at(Bpffs::temporary()?, capacity)?;
        let originals = MapData::from_pin(loaded.maps_dir().join("ORIGINAL_DST"))?;
        let mut originals: HashMap<_, Tuple, Original> = Map::LruHashMap(originals).try_into()?;
        let empty = Footprint::of(&loaded, &capacity)?;
        // Tokio has a pair of sockets for signals, from its first use on.
        let first = loaded.attach(&crowds[0].cgroups[0], &crowds[0].netns)?;
        loaded.dataplane.detach(first);
        loaded.dataplane.refresh();
        // The kernel frees a program some time after its last user is gone.
        let before = poll_result(DEADLINE, "the first one to be gone", || {
            let now = Footprint::of(&loaded, &capacity)?;
            let but_for_descriptors = Footprint {
                descriptors: empty.descriptors.clone(),
                ..now.clone()
            };
            ensure!(but_for_descriptors == empty, "{now:?}, before {empty:?}");
            Ok(now)
        })?;
        let turns = env::var(TURNS).map_or(Ok(2), |turns| turns.parse())?;
        let mut memory = None;
        for turn in 1..=turns {
            let started = Instant::now();
            let mut workloads = Vec::new();
            for crowd in &crowds {
                workloads.extend(crowd.attach(&mut loaded)?);
            }
            let attaching = started.elapsed();
            // Connections that nobody has asked about.
            for (workload, port) in workloads.iter().flat_map(|of| [(of, 1), (of, 2)]) {
                let tuple = Tuple {
                    workload: *workload,
                    client: Endpoint::new(at("10.0.0.1:1").ip().into(), port),
                    server: at("127.0.0.1:15001").into(),
                };
                originals.insert(tuple, Original::default(), 0)?;
            }
            let meanwhile = Footprint::of(&loaded, &capacity)?;
            ensure!(meanwhile.links == workloads.len() * 11, "{meanwhile:?}");
            ensure!(meanwhile.words == NAMESPACES * EACH, "{meanwhile:?}");
            ensure!(
                meanwhile.entries["SOCKETS"] >= workloads.len(),
                "{meanwhile:?}"
            );
            let started = Instant::now();
            for workload in &workloads {
                loaded.dataplane.detach(*workload);
            }
            let detaching = started.elapsed();
            loaded.dataplane.refresh();
            let with_refresh = started.elapsed();
            println!(
                "turn {turn}: attaching {} took {attaching:?}, detaching {detaching:?}, with a \
                 refresh {with_refresh:?}",
                workloads.len()
            );
            poll_result(DEADLINE, "nothing to be left", || {
                loaded.dataplane.refresh();
                let now = Footprint::of(&loaded, &capacity)?;
                ensure!(now == before, "{now:?}, before {before:?}");
                Ok(())
            })?;
            let now = resident()?;
            println!("turn {turn}: {now} KiB are resident");
            // What the first turn has allocated is used again.
            let first = *memory.get_or_insert(now);
            ensure!(now < first + 8 * 1024, "{now} KiB, {first} after a turn");
        }
        Ok(())
    })
}

/// The next workload in a slot inherits nothing of the one before.
#[test]
fn a_slot_that_is_given_again_is_empty() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(Planner::new().outbound_default(proxy()))?;
    let _relay = fixture.relay()?;
    let loaded = &mut fixture.loaded;
    let dir = loaded.maps_dir();
    let originals = MapData::from_pin(dir.join("ORIGINAL_DST"))?;
    let mut originals: HashMap<_, Tuple, Original> = Map::LruHashMap(originals).try_into()?;
    let tuple = Tuple {
        workload: fixture.workload,
        client: at("10.0.0.1:1").into(),
        server: at("127.0.0.1:15001").into(),
    };
    originals.insert(tuple, Original::default(), 0)?;
    let destinations = MapData::from_pin(dir.join("DESTINATIONS"))?;
    let mut destinations: HashMap<_, Slot, Endpoint> = Map::HashMap(destinations).try_into()?;
    let slot = Slot {
        workload: fixture.workload,
        slot: 7,
    };
    destinations.insert(slot, Endpoint::default(), 0)?;
    loaded.dataplane.detach(fixture.workload);
    let workload = loaded.attach(&fixture.cgroup, &fixture.netns)?;
    assert_eq!(workload, fixture.workload);
    let entries = entries(&dir)?;
    for map in ["ORIGINAL_DST", "SOCKETS", "DESTINATIONS"] {
        assert_eq!(entries[map], 0, "{map}");
    }
    Ok(())
}

/// In one go of a [`Probe`](sidecar_tests::Probe).
const VISITS: u32 = 1000;
/// So many targets, and as many destinations that lead to the proxy.
const HOSTS: u32 = 50;

/// Half of them to a target of the rules, half to the proxy.
#[test]
fn a_hundred_thousand_connections_leave_nothing() -> anyhow::Result<()> {
    require_root!();
    alone("a_hundred_thousand_connections_leave_nothing", || {
        let mut plan = Planner::new().proxied().outbound_default(proxy());
        for host in 1..=HOSTS {
            plan = plan.outbound(&format!("10.1.0.{host}:80"), direct("127.0.0.1:8080"));
        }
        let fixture = Fixture::new(plan)?;
        let _servers = [
            serve(fixture.as_proxy(), "127.0.0.1:15001", "proxy")?,
            serve(fixture.outside(), "127.0.0.1:8080", "target")?,
        ];
        let app = fixture.app()?;
        let visit = |host: u32, times: u32| -> anyhow::Result<()> {
            for (net, name) in [(1, "target"), (2, "proxy")] {
                let address = at(&format!("10.{net}.0.{host}:80"));
                for visit in app.visits(address, times)? {
                    let seen = visit.with_context(|| format!("{address} by way of {name}"))?;
                    ensure!(seen.name == name, "{address} led to {}", seen.name);
                    let original = (name == "proxy").then_some(address);
                    ensure!(seen.original_dst == original, "{seen:?}");
                }
            }
            Ok(())
        };
        // What is allocated once is there after the first ones: also what stands for a destination.
        for host in 1..=HOSTS {
            visit(host, 20)?;
        }
        let of = |fixture: &Fixture| Footprint::of(&fixture.loaded, &CAPACITY);
        let (before, memory) = (of(&fixture)?, resident()?);
        let started = Instant::now();
        for host in 1..=HOSTS {
            visit(host, VISITS)?;
        }
        println!(
            "{} connections took {:?}",
            2 * HOSTS * VISITS,
            started.elapsed()
        );
        // The last ones may still be on their way out.
        poll_result(DEADLINE, "nothing to be left", || {
            let now = of(&fixture)?;
            ensure!(now == before, "{now:?}, before {before:?}");
            Ok(())
        })?;
        assert_eq!(before.entries["ORIGINAL_DST"], 0);
        assert_eq!(before.entries["DESTINATIONS"], HOSTS as usize);
        let now = resident()?;
        ensure!(
            now <= memory + memory / 4,
            "{memory} KiB before, {now} KiB now"
        );
        Ok(())
    })
}

/// What listens is known by its port, as long as it listens.
#[test]
fn a_listener_that_was_closed_is_not_known_any_more() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().listens(8080))?;
    let known = |dataplane: &mut Dataplane| -> anyhow::Result<Option<usize>> {
        dataplane.refresh();
        let usage = dataplane.maps();
        let sockets = usage.iter().find(|usage| usage.map == "SOCKETS");
        Ok(sockets.context("SOCKETS is not told of")?.entries)
    };
    let server = serve(fixture.inside(), "127.0.0.1:8080", "listener")?;
    let mut fixture = fixture;
    assert_eq!(known(&mut fixture.loaded.dataplane)?, Some(1));
    drop(server);
    poll_result(DEADLINE, "the listener to be forgotten", || {
        let known = known(&mut fixture.loaded.dataplane)?;
        ensure!(known == Some(0), "{known:?}");
        Ok(())
    })
}
