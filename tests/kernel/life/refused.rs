//! An agent that cannot have what it needs leaves everything as it was.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use rustix::io::Errno;
use sidecar_agent::dataplane::{
    Capacity, Config, Dataplane, default_pin_dir, uninstall::inventory,
};
use sidecar_tests::{
    Cgroup, DEADLINE,
    foreign::{Flags, Foreign, Hook, update_link},
    poll::poll_result,
    require_root,
};

use super::{CALLED, Life, OTHER, names};
use crate::{
    fixture::{CAPACITY, Loaded, link_info},
    plan::at,
};

/// Somebody else's program keeps ours from one hook of the workload's cgroup.
#[test]
fn where_one_program_cannot_be_attached_all_is_as_it_was() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let links = life.loaded.maps_dir().join("workload-1");
    // One that has to be updated before one that is refused.
    let connect4 = links.join("connect4");
    let ours = program_of(&connect4)?;
    update_link(&connect4)?;
    assert_ne!(program_of(&connect4)?, ours);
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
