//! Interfaces that are unlike others: each plan has its own, and they come and go.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use aya::maps::{HashMap, Map, MapData};
use rustix::io::Errno;
use sidecar_common::{
    Path, Reason,
    keys::{PlanId, WorkloadInterface},
    values::{Interface, PlanHeader},
};
use sidecar_tests::{DEADLINE, Namespace, Place, Probe, apps::wire::canonical, poll, require_root};

use crate::{
    fixture::{Fixture, reached, serve},
    plan::{Planner, at, rule},
};

/// Reached by `eth0`, as routes have it; answered in the namespace itself all the same.
const BY_ETH0: &str = "10.1.0.1:80";

/// A workload with interfaces of which one leads to [`BY_ETH0`].
fn workload() -> anyhow::Result<Fixture> {
    let fixture = Fixture::without_plan()?;
    for interface in ["eth0", "net1"] {
        add_interface(&fixture, interface)?;
    }
    // The kernel looks at both tables at once: of equal networks, the local one is taken.
    fixture.netns.add_local("10.1.0.0/16".parse()?)?;
    fixture.netns.add_route("10.1.0.0/16 dev eth0")?;
    Ok(fixture)
}

fn add_interface(fixture: &Fixture, name: &str) -> anyhow::Result<()> {
    fixture
        .netns
        .ip(&format!("link add {name} type veth peer name of-{name}"))?;
    for end in [format!("of-{name}"), name.to_owned()] {
        fixture.netns.ip(&format!("link set {end} up"))?;
    }
    Ok(())
}

fn excluding(interface: &str) -> Planner {
    Planner::new().interface(interface, Interface::EXCLUDED)
}

fn denying(plan: Planner, reason: Reason) -> Planner {
    plan.outbound_default(rule(Path::Deny, reason))
}

#[test]
fn no_connection_follows_one_plan_with_the_interfaces_of_another() -> anyhow::Result<()> {
    require_root!();
    // The first plan never refuses what leaves by eth0, unless it is given another's interfaces, or
    // routes that a plan without interfaces does not need. The port makes a switch take its time.
    let plans = [
        denying(excluding("eth0"), Reason::RegistryOnly).listens(8080),
        denying(excluding("net1"), Reason::PlanIncomplete).listens(8080),
        denying(excluding("eth0"), Reason::RegistryOnly).listens(8080),
        denying(Planner::new(), Reason::NoMemory).listens(8080),
    ];
    let mut fixture = workload()?;
    fixture.follow(plans[0].clone())?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    let (rounds, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let visits = thread::scope(|scope| {
        let switching = scope.spawn(|| -> anyhow::Result<()> {
            while !stop.load(Ordering::Relaxed) {
                for plan in &plans {
                    fixture.follow(plan.clone())?;
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let visits = (|| {
            // The probe has started when it has visited something.
            let mut visits = app.visits(at(BY_ETH0), 1)?;
            let enough = rounds.load(Ordering::Relaxed) + 8;
            while rounds.load(Ordering::Relaxed) < enough && !switching.is_finished() {
                visits.extend(app.visits(at(BY_ETH0), 100)?);
            }
            anyhow::Ok(visits)
        })();
        stop.store(true, Ordering::Relaxed);
        switching.join().expect("no panic")?;
        visits
    })?;
    for visit in visits {
        match visit {
            Ok(seen) => assert_eq!(reached(&seen)?, at(BY_ETH0)),
            Err(errno) => assert_eq!(errno, Errno::CONNREFUSED),
        }
    }
    // Each plan was met.
    for reason in [
        Reason::ExcludedInterface,
        Reason::PlanIncomplete,
        Reason::NoMemory,
    ] {
        assert_ne!(fixture.outbound(reason)?, 0, "{}", reason.name());
    }
    assert_eq!(fixture.outbound(Reason::RegistryOnly)?, 0);
    Ok(())
}

/// What the kernel knows of interfaces: plans, and names.
fn known(fixture: &Fixture) -> anyhow::Result<BTreeSet<(PlanId, String)>> {
    let map = MapData::from_pin(fixture.loaded.maps_dir().join("INTERFACES"))?;
    let map: HashMap<_, WorkloadInterface, u32> = Map::HashMap(map).try_into()?;
    let links = fixture.netns.ip("-o link show")?;
    let keys: Vec<WorkloadInterface> = map.keys().collect::<Result<_, _>>()?;
    keys.into_iter()
        .map(|key| {
            let prefix = format!("{}: ", key.index);
            let line = links.lines().find_map(|line| line.strip_prefix(&prefix));
            let name = line.and_then(|line| line.split([':', '@']).next());
            let name = name.with_context(|| format!("{key:?} is not in {links}"))?;
            Ok((key.plan, name.to_owned()))
        })
        .collect()
}

fn of<const N: usize>(known: [(PlanId, &str); N]) -> BTreeSet<(PlanId, String)> {
    known
        .map(|(plan, name)| (plan, name.to_owned()))
        .into_iter()
        .collect()
}

#[test]
fn what_plans_say_of_interfaces_is_brought_up_to_date_for_all_of_them() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = workload()?;
    // However long this takes, the plan that was left is known to its end.
    fixture.loaded.dataplane.keep_retired(Duration::MAX);
    let one = fixture.follow(excluding("eth0"))?;
    assert_eq!(known(&fixture)?, of([(one, "eth0")]));
    let two = fixture.follow(excluding("net+"))?;
    assert_eq!(known(&fixture)?, of([(one, "eth0"), (two, "net1")]));
    // Interfaces that come and go do so for both.
    fixture.netns.ip("link del eth0")?;
    add_interface(&fixture, "net2")?;
    fixture.loaded.dataplane.refresh();
    assert_eq!(known(&fixture)?, of([(two, "net1"), (two, "net2")]));
    add_interface(&fixture, "eth0")?;
    fixture.loaded.dataplane.refresh();
    let both = of([(one, "eth0"), (two, "net1"), (two, "net2")]);
    assert_eq!(known(&fixture)?, both);
    // Wanted again, it is what it was.
    assert_eq!(fixture.follow(excluding("eth0"))?, one);
    assert_eq!(known(&fixture)?, both);
    Ok(())
}

#[test]
fn what_a_plan_says_of_interfaces_goes_with_it_and_not_before() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = workload()?;
    let one = fixture.follow(excluding("eth0"))?;
    let two = fixture.follow(excluding("net+"))?;
    // Wanted again, it is not forgotten, however long ago it was left for the other one.
    assert_eq!(fixture.follow(excluding("eth0"))?, one);
    poll(
        DEADLINE,
        "what the second plan says to be forgotten",
        || {
            fixture.loaded.dataplane.refresh();
            let known = known(&fixture).ok()?;
            assert!(known.contains(&(one, "eth0".to_owned())), "{known:?}");
            known.iter().all(|(plan, _)| *plan != two).then_some(())
        },
    )?;
    assert_eq!(known(&fixture)?, of([(one, "eth0")]));
    // Also where nothing is said any more, and then not at once.
    fixture.loaded.dataplane.keep_retired(Duration::MAX);
    fixture.loaded.dataplane.release(fixture.workload)?;
    fixture.loaded.dataplane.refresh();
    assert_eq!(known(&fixture)?, of([(one, "eth0")]));
    fixture.loaded.dataplane.keep_retired(Duration::ZERO);
    poll(DEADLINE, "what the first plan says to be forgotten", || {
        fixture.loaded.dataplane.refresh();
        known(&fixture).ok()?.is_empty().then_some(())
    })?;
    Ok(())
}

/// A machine behind an interface of the workload's, which is its router.
pub struct Guest {
    pub netns: Namespace,
    interface: String,
}

impl Guest {
    pub fn behind(fixture: &Fixture, interface: &str, number: u8) -> anyhow::Result<Self> {
        let netns = Namespace::new("guest")?;
        fixture.netns.ip(&format!(
            "link add {interface} type veth peer name eth0 netns {}",
            netns.name()
        ))?;
        fixture
            .netns
            .sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
        for (netns, interface, v4, v6) in [
            (&fixture.netns, interface, 5, "5"),
            (&netns, "eth0", 1, "1"),
        ] {
            netns.add_address(interface, format!("192.168.{number}.{v4}/24").parse()?)?;
            netns.add_address(interface, format!("2001:db8:{number}::{v6}/64").parse()?)?;
            netns.ip(&format!("link set {interface} up"))?;
        }
        netns.add_route(&format!("default via 192.168.{number}.5"))?;
        netns.add_route(&format!("default via 2001:db8:{number}::5"))?;
        Ok(Self {
            netns,
            interface: interface.to_owned(),
        })
    }

    /// Calls what nobody has; the proxy answers.
    pub fn is_captured(&self) -> anyhow::Result<()> {
        let probe = Probe::start(Place::here().netns(&self.netns))?;
        for destination in ["93.184.216.34:80", "[2001:db8:ffff::1]:80"] {
            let seen = poll(DEADLINE, "the interface to carry", || {
                probe.visit(at(destination)).ok()?.ok()
            })
            .with_context(|| format!("{destination} by {}", self.interface))?;
            assert_eq!(seen.name, "proxy", "{destination} by {}", self.interface);
            assert_eq!(seen.original_dst.map(canonical), Some(at(destination)));
        }
        Ok(())
    }
}

/// By which interfaces everything that arrives is delivered in the workload's namespace.
fn steered(fixture: &Fixture) -> anyhow::Result<BTreeSet<String>> {
    let mut names = Vec::new();
    for family in ["-4", "-6"] {
        let rules = fixture.netns.ip(&format!("{family} rule show"))?;
        let rules = rules.lines().filter(|line| line.contains("lookup 133"));
        let of_family = rules.map(|line| {
            let mut name = line.split_whitespace().skip_while(|word| *word != "iif");
            name.nth(1).unwrap_or("any").to_owned()
        });
        names.push(of_family.collect::<BTreeSet<_>>());
    }
    assert_eq!(names[0], names[1], "the same by IPv4 and IPv6");
    names.pop().context("no family")
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn virtual_interfaces_are_found_by_the_beginning_of_their_names() -> anyhow::Result<()> {
    require_root!();
    let declared = |name: &str| {
        Planner::new()
            .proxied()
            .interface(name, Interface::VIRTUAL)
            .flags(PlanHeader::VIRTUAL_ALL)
    };
    let mut fixture = Fixture::without_plan()?;
    add_interface(&fixture, "eth0")?;
    let first = Guest::behind(&fixture, "vm1", 1)?;
    let _proxy = serve(fixture.as_proxy(), "[::]:15001", "proxy")?;
    fixture.follow(declared("vm+"))?;
    assert_eq!(steered(&fixture)?, names(["vm1"]));
    first.is_captured()?;
    // Others come, and go.
    let second = Guest::behind(&fixture, "vm2", 2)?;
    fixture.loaded.dataplane.refresh();
    assert_eq!(steered(&fixture)?, names(["vm1", "vm2"]));
    second.is_captured()?;
    fixture.netns.ip("link del vm1")?;
    fixture.loaded.dataplane.refresh();
    assert_eq!(steered(&fixture)?, names(["vm2"]));
    second.is_captured()?;
    // Any interface, but not what the workload itself sends; it would never leave.
    fixture.follow(declared("+"))?;
    let any = names(["eth0", "of-eth0", "vm2"]);
    assert_eq!(steered(&fixture)?, any);
    second.is_captured()?;
    // One name, whether there is such an interface or not.
    fixture.follow(declared("vm3"))?;
    assert_eq!(steered(&fixture)?, names(["vm3"]));
    let third = Guest::behind(&fixture, "vm3", 3)?;
    fixture.loaded.dataplane.refresh();
    third.is_captured()?;
    fixture.follow(declared("lo"))?;
    assert_eq!(steered(&fixture)?, names([]));
    Ok(())
}

/// To the kernel, a rule for everything is there already if one for a network is.
#[test]
fn virtual_interfaces_are_steered_whatever_networks_are_included() -> anyhow::Result<()> {
    require_root!();
    let virtuals = || {
        Planner::new()
            .proxied()
            .interface("vm1", Interface::VIRTUAL)
    };
    let some = || {
        virtuals()
            .virtual_range("93.184.0.0/16")
            .virtual_range("2001:db8:ffff::/48")
    };
    let all = || virtuals().flags(PlanHeader::VIRTUAL_ALL);
    let mut fixture = Fixture::without_plan()?;
    let guest = Guest::behind(&fixture, "vm1", 1)?;
    let _proxy = serve(fixture.as_proxy(), "[::]:15001", "proxy")?;
    for plan in [some(), all(), some(), all()] {
        fixture.follow(plan)?;
        guest.is_captured()?;
        assert_eq!(steered(&fixture)?, names(["vm1"]));
    }
    Ok(())
}
