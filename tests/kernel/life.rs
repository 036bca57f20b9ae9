//! What is pinned outlives the agent, and is adopted, completed or undone by the next one.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use rustix::io::Errno;
use sidecar_agent::dataplane::{
    Capacity, Config, Dataplane, default_pin_dir,
    uninstall::{Inventory, inventory, uninstall},
};
use sidecar_common::{
    ABI, Reason,
    decide::Direction,
    keys::{PlanId, RuleKey, WorkloadEndpoint, WorkloadId},
    values::{Meta, PlanHeader, Rule},
};
use sidecar_tests::{
    Bpffs, Cgroup, DEADLINE, Namespace, Probe, Server,
    foreign::{Flags, Foreign, Hook, update_link},
    poll::poll_result,
    require_root,
};

use crate::{
    fixture::{CAPACITY, Fixture, Loaded, link_info, namespace, serve},
    plan::{Planner, at, deny, pass},
};

const CALLED: &str = "10.1.0.1:80";

/// A capacity with which maps of [`CAPACITY`] cannot be used.
const OTHER: Capacity = Capacity {
    rules: 1024,
    ..CAPACITY
};

/// A workload that is refused everything, whose agent may come and go.
struct Life {
    loaded: Loaded,
    workload: WorkloadId,
    app: Probe,
    cgroup: Cgroup,
    netns: Namespace,
    _server: Server,
}

impl Life {
    fn new() -> anyhow::Result<Self> {
        let fixture = Fixture::new(denied())?;
        let server = fixture.serve("0.0.0.0:80")?;
        let app = fixture.app()?;
        let Fixture {
            loaded,
            workload,
            cgroup,
            netns,
        } = fixture;
        let life = Self {
            loaded,
            workload,
            app,
            cgroup,
            netns,
            _server: server,
        };
        life.is_refused()?;
        Ok(life)
    }

    /// The agent ends, and another one starts.
    fn restart(mut self, capacity: Capacity) -> anyhow::Result<Self> {
        self.loaded = self.loaded.again(capacity)?;
        Ok(self)
    }

    fn attach(&mut self) -> anyhow::Result<WorkloadId> {
        self.workload = self.loaded.attach(&self.cgroup, &self.netns)?;
        Ok(self.workload)
    }

    fn follow(&mut self, plan: Planner) -> anyhow::Result<PlanId> {
        self.loaded.follow(self.workload, plan.build())
    }

    fn is_refused(&self) -> anyhow::Result<()> {
        let called = self.app.visit(at(CALLED))?;
        ensure!(matches!(called, Err(Errno::CONNREFUSED)), "{called:?}");
        Ok(())
    }

    fn passes(&self) -> anyhow::Result<()> {
        self.app.visit(at(CALLED))?.context("refused")?;
        Ok(())
    }

    fn link_ids(&self) -> anyhow::Result<Vec<u32>> {
        let pinned = inventory(&self.loaded.pin_dir())?.links;
        Ok(pinned.iter().map(|link| link.id).collect())
    }

    /// The plans in the maps that are used as long as nothing was there before.
    fn plans(&self) -> anyhow::Result<Vec<PlanId>> {
        let map = MapData::from_pin(self.loaded.maps_dir().join("PLANS"))?;
        let plans: HashMap<_, PlanId, PlanHeader> = Map::HashMap(map).try_into()?;
        Ok(plans.keys().collect::<Result<_, _>>()?)
    }
}

fn denied() -> Planner {
    Planner::new().outbound_default(deny())
}

#[test]
fn what_is_attached_goes_on_without_the_agent_and_is_adopted() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let (workload, links) = (life.workload, life.link_ids()?);
    let word = life.loaded.dataplane.word(workload);
    assert_eq!(links.len(), 11);
    life = life.restart(CAPACITY)?;
    life.is_refused()?;
    assert_eq!(life.attach()?, workload, "another slot");
    life.is_refused()?;
    assert_eq!(life.loaded.dataplane.word(workload), word);
    let digest = denied().build().digest();
    assert_eq!(life.loaded.dataplane.in_force(workload), Some(digest));
    assert_eq!(
        life.follow(denied())?,
        word.plan(),
        "the plan was written anew"
    );
    assert_eq!(life.link_ids()?, links, "attached anew");
    let refused = life
        .loaded
        .counted(workload, Direction::Outbound, Reason::RegistryOnly)?;
    assert_eq!(refused, 3, "counters begin anew");
    let next = life.follow(Planner::new().outbound_default(pass()))?;
    assert!(next > word.plan(), "an id was given twice");
    life.passes()?;
    poll_result(DEADLINE, "the adopted plan to be removed", || {
        life.loaded.dataplane.refresh();
        let plans = life.plans()?;
        ensure!(plans == [next], "{plans:?}");
        Ok(())
    })
}

#[test]
fn what_was_begun_is_undone_or_completed() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    // A plan that nobody follows yet.
    let begun = Planner::new().outbound_default(pass()).build();
    let digest = begun.digest();
    life.loaded.dataplane.install(&digest, &begun.into())?;
    // A link that is missing, as if it had not been made yet.
    let pin = life.loaded.maps_dir().join("workload-1/getsockopt");
    fs::remove_file(pin)?;
    // A workload without a plan.
    let other = Cgroup::new("other")?;
    life.loaded.attach(&other, &life.netns)?;
    assert_eq!(life.link_ids()?.len(), 10 + 11);

    life = life.restart(CAPACITY)?;
    assert_eq!(life.link_ids()?.len(), 10, "what has no plan is attached");
    let map = MapData::from_pin(life.loaded.maps_dir().join("LOCAL_ADDRS"))?;
    let addrs: HashMap<_, WorkloadEndpoint, u8> = Map::HashMap(map).try_into()?;
    let of = addrs.keys().map(|key| Ok(key?.workload));
    let of: BTreeSet<WorkloadId> = of.collect::<anyhow::Result<_>>()?;
    assert_eq!(of, [life.workload].into(), "what has no plan is known");
    life.is_refused()?;
    life.attach()?;
    assert_eq!(life.link_ids()?.len(), 11);
    life.is_refused()?;
    poll_result(DEADLINE, "the plan to be removed", || {
        life.loaded.dataplane.refresh();
        let plans = life.plans()?;
        ensure!(plans.len() == 1, "{plans:?}");
        Ok(())
    })?;

    // On its way out: it passes, and is still attached.
    life.loaded.dataplane.release(life.workload)?;
    life = life.restart(CAPACITY)?;
    assert!(life.link_ids()?.is_empty());
    life.passes()?;
    life.attach()?;
    life.follow(denied())?;
    life.is_refused()
}

#[test]
fn a_plan_without_a_header_is_removed() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let rest = Planner::new().outbound(CALLED, deny()).build();
    let digest = rest.digest();
    let id = life.loaded.dataplane.install(&digest, &rest.into())?;
    let dir = life.loaded.maps_dir();
    let open = |name: &str| MapData::from_pin(dir.join(name)).map(Map::HashMap);
    let mut headers: HashMap<_, PlanId, PlanHeader> = open("PLANS")?.try_into()?;
    headers.remove(&id)?;
    life = life.restart(CAPACITY)?;
    let rules: HashMap<_, RuleKey, Rule> = open("OUTBOUND")?.try_into()?;
    assert_eq!(rules.keys().count(), 0);
    life.is_refused()
}

#[test]
fn a_plan_that_is_not_what_its_digest_says_is_written_anew() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let plan = || Planner::new().outbound(CALLED, deny());
    let first = life.follow(plan())?;
    life.is_refused()?;
    let map = MapData::from_pin(life.loaded.maps_dir().join("OUTBOUND"))?;
    let mut rules: HashMap<_, RuleKey, Rule> = Map::HashMap(map).try_into()?;
    let key = rules.keys().next().context("no rule")??;
    rules.insert(key, pass(), 0)?;
    life.passes()?;
    life = life.restart(CAPACITY)?;
    life.attach()?;
    let second = life.follow(plan())?;
    assert_ne!(first, second);
    life.is_refused()
}

#[test]
fn maps_that_cannot_be_used_decide_until_others_do() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let workload = life.workload;
    let first = life.loaded.maps_dir();
    life = life.restart(OTHER)?;
    let second = life.loaded.pin_dir().join("set-2");
    assert!(first.exists() && second.exists());
    life.is_refused()?;
    assert_eq!(life.attach()?, workload, "another slot");
    life.is_refused()?;
    assert_eq!(life.loaded.dataplane.in_force(workload), None);
    // Ended before it decides: the next one goes on from there.
    life = life.restart(OTHER)?;
    life.is_refused()?;
    life.attach()?;
    life.is_refused()?;
    life.follow(Planner::new().outbound_default(pass()))?;
    // For a while: a connection may be between two of the old programs.
    let old = inventory(&life.loaded.pin_dir())?.links;
    let mut old = old.iter().filter_map(|link| link.pin.as_ref());
    assert!(old.any(|pin| pin.starts_with(&first)), "detached at once");
    life.passes()?;
    life.follow(denied())?;
    life.is_refused()?;
    poll_result(DEADLINE, "the old set to be removed", || {
        life.loaded.dataplane.refresh();
        ensure!(!first.exists(), "it is there");
        Ok(())
    })?;
    life.is_refused()?;
    assert_eq!(life.link_ids()?.len(), 11);
    life = life.restart(OTHER)?;
    assert!(!life.loaded.pin_dir().join("set-3").exists(), "not adopted");
    life.is_refused()
}

/// Each is what an agent of another version, or one that was ended early, has left.
#[test]
fn maps_of_another_abi_and_unfinished_ones_are_not_used() -> anyhow::Result<()> {
    require_root!();
    for abi in [Some(ABI + 1), None] {
        let mut life = Life::new()?;
        let first = life.loaded.maps_dir();
        let meta = first.join("META");
        match abi {
            Some(abi) => {
                let map = Map::Array(MapData::from_pin(&meta)?);
                Array::<_, Meta>::try_from(map)?.set(0, Meta { abi, set: 1 }, 0)?;
            }
            None => fs::remove_file(&meta)?,
        }
        life = life.restart(CAPACITY)?;
        let sets = ["WORKLOADS", "set-1", "set-2"];
        assert_eq!(names(&life.loaded.pin_dir())?, sets, "{abi:?}");
        life.is_refused()?;
        life.attach()?;
        life.is_refused()?;
        life.follow(denied())?;
        life.is_refused()?;
        poll_result(DEADLINE, "the old set to be removed", || {
            life.loaded.dataplane.refresh();
            ensure!(!first.exists(), "it is there");
            Ok(())
        })?;
        life.is_refused()?;
    }
    Ok(())
}

/// Somebody else's program keeps ours from one hook of the workload's cgroup.
#[test]
fn where_one_program_cannot_be_attached_all_is_as_it_was() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let links = life.loaded.maps_dir().join("workload-1");
    // One that has to be updated before one that is refused: it runs a program with other maps.
    let mut theirs = Loaded::new()?;
    let elsewhere = Cgroup::new("elsewhere")?;
    theirs.attach(&elsewhere, &namespace()?)?;
    let of_theirs = theirs.maps_dir().join("workload-1/connect4");
    update_link(&links.join("connect4"), &of_theirs)?;
    assert_eq!(
        program_of(&links.join("connect4"))?,
        program_of(&of_theirs)?
    );
    fs::remove_file(links.join("recvmsg6"))?;
    let path = life.cgroup.path().to_owned();
    let foreign = poll_result(DEADLINE, "the hook to be free", || {
        Foreign::on_cgroup(&path, Hook::Recvmsg6, Flags::Exclusive)
    })?;
    let before = runs(&life)?;
    life = life.restart(CAPACITY)?;
    let word = life.loaded.dataplane.word(life.workload);
    assert!(life.attach().is_err(), "attached");
    assert_eq!(runs(&life)?, before);
    // It stays somebody's whose plan is in force, and its slot is nobody else's.
    assert_eq!(life.loaded.dataplane.word(life.workload), word);
    let other = Cgroup::new("other")?;
    assert_eq!(life.loaded.attach(&other, &life.netns)?, 2);
    drop(foreign);
    assert_eq!(life.attach()?, 1);
    life.is_refused()?;

    // Nothing is left of one that was attached nowhere before.
    let third = Cgroup::new("third")?;
    let _foreign = Foreign::on_cgroup(third.path(), Hook::Recvmsg6, Flags::Exclusive)?;
    let before = runs(&life)?;
    assert!(life.loaded.attach(&third, &life.netns).is_err(), "attached");
    assert_eq!(runs(&life)?, before);
    let dirs = names(&life.loaded.maps_dir())?;
    assert!(!dirs.contains(&"workload-3".to_owned()), "{dirs:?}");
    Ok(())
}

/// The links, with the programs that they run.
fn runs(life: &Life) -> anyhow::Result<Vec<(u32, u32)>> {
    let links = inventory(&life.loaded.pin_dir())?.links;
    let runs = links.into_iter().map(|of| {
        let pin = of.pin.context("it is not pinned")?;
        Ok((of.id, program_of(&pin)?))
    });
    runs.collect()
}

/// The kernel's number of the program that a pinned link runs.
fn program_of(pin: &Path) -> anyhow::Result<u32> {
    Ok(link_info(pin)?.program_id())
}

/// One that finds the pins in use has loaded its programs already.
#[test]
fn a_second_agent_leaves_nothing_beside_the_first() -> anyhow::Result<()> {
    require_root!();
    let life = Life::new()?;
    let config = Config {
        pin_dir: life.loaded.pin_dir(),
        capacity: OTHER,
    };
    let Err(error) = Dataplane::load(&config) else {
        anyhow::bail!("two agents");
    };
    let error = format!("{error:#}");
    assert!(error.contains("another agent uses it"), "{error}");
    assert_eq!(names(&config.pin_dir)?, ["WORKLOADS", "set-1"]);
    life.is_refused()
}

#[test]
fn what_does_not_load_leaves_everything_as_it_was() -> anyhow::Result<()> {
    require_root!();
    let life = Life::new()?;
    let Life { loaded, .. } = life;
    let Loaded { dataplane, bpffs } = loaded;
    drop(dataplane);
    let config = Config {
        pin_dir: default_pin_dir(bpffs.path()),
        capacity: Capacity {
            rules: u32::MAX,
            ..CAPACITY
        },
    };
    // The first try may find the pins locked, see `Loaded::again`.
    poll_result(DEADLINE, "maps of such a size to be refused", || {
        let Err(error) = Dataplane::load(&config) else {
            anyhow::bail!("loaded with 4 billion rules");
        };
        let error = format!("{error:#}");
        ensure!(error.contains("loading BPF maps"), "{error}");
        Ok(())
    })?;
    assert_eq!(names(&config.pin_dir)?, ["WORKLOADS", "set-1"]);
    let called = life.app.visit(at(CALLED))?;
    assert!(matches!(called, Err(Errno::CONNREFUSED)), "{called:?}");
    poll_result(DEADLINE, "the pins to be free", || {
        Dataplane::load(&Config {
            capacity: CAPACITY,
            ..config.clone()
        })
    })?;
    drop(bpffs);
    Ok(())
}

/// Uninstalls, as soon as the pins are free (see [`Loaded::again`]).
fn uninstalled(pins: &Path) -> anyhow::Result<Inventory> {
    poll_result(DEADLINE, "the pins to be free", || uninstall(pins))
}

/// A map of nobody's.
fn stranger(at: &Path) -> anyhow::Result<()> {
    let map = Array::<MapData, u32>::create(1, 0)?;
    map.pin(at)?;
    Ok(())
}

fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[test]
fn broken_pins_are_replaced_and_anothers_are_left_alone() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let first = life.loaded.maps_dir();
    let pins = life.loaded.pin_dir();
    fs::remove_file(first.join("PLANS"))?;
    stranger(&first.join("PLANS"))?;
    stranger(&pins.join("theirs"))?;
    stranger(&first.join("workload-1/theirs"))?;
    life = life.restart(CAPACITY)?;
    life.is_refused()?;
    life.attach()?;
    life.follow(denied())?;
    life.is_refused()?;
    poll_result(DEADLINE, "the broken set to be removed", || {
        life.loaded.dataplane.refresh();
        let left = names(&first)?;
        ensure!(left == ["PLANS", "workload-1"], "{left:?}");
        Ok(())
    })?;
    assert_eq!(names(&first.join("workload-1"))?, ["theirs"]);
    assert_eq!(names(&pins)?, ["WORKLOADS", "set-1", "set-2", "theirs"]);
    life.is_refused()?;

    let Life { loaded, app, .. } = life;
    let Loaded { dataplane, bpffs } = loaded;
    drop(dataplane);
    let removed = uninstalled(&pins)?;
    assert_eq!(removed.strangers.len(), 3, "{removed:?}");
    assert_eq!(names(&pins)?, ["set-1", "theirs"]);
    app.visit(at(CALLED))?.context("still captured")?;
    drop(bpffs);
    Ok(())
}

#[test]
fn a_map_of_anothers_in_the_place_of_the_shared_one_is_refused() -> anyhow::Result<()> {
    require_root!();
    let bpffs = Bpffs::temporary()?;
    let pins = default_pin_dir(bpffs.path());
    fs::create_dir(&pins)?;
    stranger(&pins.join("WORKLOADS"))?;
    let Err(error) = Loaded::at(bpffs, CAPACITY) else {
        anyhow::bail!("it was used");
    };
    let error = format!("{error:#}");
    assert!(error.contains("move it out of the way"), "{error}");
    Ok(())
}

#[test]
fn what_nobody_claims_is_kept_until_it_is_let_go() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    life = life.restart(CAPACITY)?;
    let unclaimed = life.loaded.dataplane.unclaimed();
    let cgroup = life.cgroup.id()?;
    assert!(unclaimed[&life.workload].contains(&cgroup), "{unclaimed:?}");
    life.loaded.dataplane.refresh();
    life.is_refused()?;
    life.loaded.dataplane.let_go_unclaimed(&[cgroup].into());
    life.is_refused()?;
    life.loaded.dataplane.let_go_unclaimed(&BTreeSet::new());
    life.passes()?;
    assert!(life.link_ids()?.is_empty());
    // Its slot is free, with nothing in it.
    assert_eq!(life.attach()?, 1);
    assert_eq!(life.loaded.dataplane.counters(1), []);
    Ok(())
}

#[test]
fn what_is_gone_is_collected() -> anyhow::Result<()> {
    require_root!();
    let Life {
        loaded,
        app,
        cgroup,
        ..
    } = Life::new()?;
    drop((app, cgroup));
    let pins = loaded.pin_dir();
    // The kernel detaches what was attached to a cgroup some time after it is gone.
    let cgroup_is_gone = || {
        let links = inventory(&pins)?.links;
        let mut of_cgroup = links.iter().filter(|link| link.target.contains("cgroup"));
        ensure!(
            of_cgroup.all(|link| link.target.contains("gone")),
            "{links:?}"
        );
        Ok(())
    };
    poll_result(DEADLINE, "the cgroup to be gone", cgroup_is_gone)?;
    let loaded = loaded.again(CAPACITY)?;
    assert!(loaded.dataplane.unclaimed().is_empty());
    assert_eq!(inventory(&pins)?.links.len(), 0);
    Ok(())
}

#[test]
fn suspended_everything_new_passes_also_after_a_restart() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    life.loaded.dataplane.suspend(life.workload, true)?;
    life.passes()?;
    life = life.restart(CAPACITY)?;
    life.passes()?;
    life.attach()?;
    life.passes()?;
    life.follow(denied())?;
    life.passes()?;
    life.loaded.dataplane.suspend(life.workload, false)?;
    life.is_refused()
}

/// Another agent's programs are on the same cgroup, and stay there.
#[test]
fn uninstalled_nothing_is_left_but_what_is_anothers() -> anyhow::Result<()> {
    require_root!();
    let netns = namespace()?;
    let cgroup = Cgroup::new("workload")?;
    let (mut ours, mut theirs) = (Loaded::new()?, Loaded::new()?);
    let outside = sidecar_tests::Place::here().netns(&netns);
    let _server = serve(outside, "0.0.0.0:80", "server")?;
    let app = Probe::start(outside.cgroup(&cgroup))?;
    let other = "10.1.0.2:80";
    for (loaded, refuses) in [(&mut ours, CALLED), (&mut theirs, other)] {
        let workload = loaded.attach(&cgroup, &netns)?;
        loaded.follow(workload, Planner::new().outbound(refuses, deny()).build())?;
    }
    let refused = |address| -> anyhow::Result<bool> {
        Ok(app.visit(at(address))? == Err(Errno::CONNREFUSED))
    };
    assert!(refused(CALLED)? && refused(other)?);

    let pins = ours.pin_dir();
    let error = format!("{:#}", uninstall(&pins).unwrap_err());
    assert!(error.contains("another agent uses it"), "{error}");
    let Loaded { dataplane, bpffs } = ours;
    drop(dataplane);
    let found = inventory(&pins)?;
    assert_eq!(found.links.len(), 11);
    assert!(refused(CALLED)?, "looking has removed something");
    let of_theirs = inventory(&theirs.pin_dir())?.links;
    for link in &of_theirs {
        let is_told = found.orphans.iter().any(|orphan| orphan.id == link.id);
        assert!(is_told, "{link:?}");
    }

    uninstalled(&pins)?;
    assert!(!refused(CALLED)?, "still captured");
    assert!(refused(other)?, "another's programs are gone");
    assert!(!pins.exists());
    assert_eq!(inventory(&pins)?.links.len(), 0);
    uninstall(&pins)?;
    drop(bpffs);
    Ok(())
}
