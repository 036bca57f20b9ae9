//! What others take away is noticed, and put back.

use std::{fs, time::Instant};

use anyhow::ensure;
use aya::maps::{Array, MapData, MapInfo};
use rustix::io::Errno;
use sidecar_agent::dataplane::Dataplane;
use sidecar_tests::{
    Cgroup, DEADLINE, Probe, Server,
    foreign::{Foreign, Hook, detach_link, wipe_storage},
    poll::poll_result,
    require_root,
};

use crate::{
    fixture::{Fixture, Loaded, link_info},
    life,
    plan::{Planner, at, deny, pass},
};

const CALLED: &str = "10.1.0.1:80";

/// A workload that is refused [`CALLED`], and what calls it at port 81.
struct Captured {
    fixture: Fixture,
    app: Probe,
    _server: Server,
}

impl Captured {
    fn new() -> anyhow::Result<Self> {
        let fixture = Fixture::new(
            Planner::new()
                .outbound_default(deny())
                .inbound("0.0.0.0:81", deny()),
        )?;
        let server = fixture.serve("0.0.0.0:80")?;
        let app = fixture.app()?;
        let captured = Self {
            fixture,
            app,
            _server: server,
        };
        ensure!(captured.is_refused()?, "not captured");
        Ok(captured)
    }

    fn is_refused(&self) -> anyhow::Result<bool> {
        Ok(self.app.visit(at(CALLED))? == Err(Errno::CONNREFUSED))
    }

    /// Waits until it is captured no more: a link without a pin is detached some time after.
    fn passes(&self) -> anyhow::Result<()> {
        poll_result(DEADLINE, "it to be detached", || {
            ensure!(!self.is_refused()?, "it is captured");
            Ok(())
        })
    }

    fn pin(&self, name: &str) -> std::path::PathBuf {
        let links = format!("workload-{}", self.fixture.workload);
        self.fixture.loaded.maps_dir().join(links).join(name)
    }

    fn broken(&self) -> Vec<String> {
        let Fixture {
            loaded, workload, ..
        } = &self.fixture;
        loaded.dataplane.broken_links(*workload)
    }

    fn heal(&mut self) -> anyhow::Result<()> {
        let Fixture {
            loaded,
            workload,
            cgroup,
            netns,
        } = &mut self.fixture;
        loaded.heal(*workload, cgroup, netns)
    }

    /// It is mended, and captured again.
    fn is_mended(&mut self) -> anyhow::Result<()> {
        self.heal()?;
        ensure!(self.broken().is_empty(), "{:?}", self.broken());
        ensure!(self.is_refused()?, "not attached again");
        Ok(())
    }
}

#[test]
fn a_link_that_was_detached_is_attached_again() -> anyhow::Result<()> {
    require_root!();
    let mut captured = Captured::new()?;
    assert!(captured.broken().is_empty());
    for name in ["connect4", "sk_lookup"] {
        detach_link(&captured.pin(name))?;
    }
    assert_eq!(captured.broken(), ["connect4", "sk_lookup"]);
    captured.passes()?;
    captured.is_mended()
}

#[test]
fn a_link_whose_pin_was_removed_is_attached_again() -> anyhow::Result<()> {
    require_root!();
    let mut captured = Captured::new()?;
    fs::remove_file(captured.pin("connect4"))?;
    assert_eq!(captured.broken(), ["connect4"]);
    captured.passes()?;
    captured.is_mended()
}

/// As by `rm -r`: the maps as well, and the directories that they were in.
#[test]
fn all_pins_that_were_removed_are_made_again() -> anyhow::Result<()> {
    require_root!();
    let mut captured = Captured::new()?;
    let pins = captured.fixture.loaded.pin_dir();
    let before = names(&captured.fixture.loaded)?;
    fs::remove_dir_all(&pins)?;
    assert_eq!(captured.broken().len(), 11);
    captured.passes()?;
    captured.heal()?;
    assert!(captured.broken().is_empty(), "{:?}", captured.broken());
    assert_eq!(names(&captured.fixture.loaded)?, before);
    assert!(captured.is_refused()?, "not attached again");
    // The lock is on what is there now.
    let config = sidecar_agent::dataplane::Config {
        pin_dir: pins,
        capacity: crate::fixture::CAPACITY,
    };
    let Err(error) = Dataplane::load(&config) else {
        anyhow::bail!("two agents use the same pins");
    };
    let error = format!("{error:#}");
    assert!(error.contains("another agent uses it"), "{error}");
    // These are the maps that the plan is in, and other workloads can be attached.
    let cgroup = Cgroup::new("other")?;
    let Fixture { loaded, netns, .. } = &mut captured.fixture;
    let other = loaded.attach(&cgroup, netns)?;
    loaded.follow(other, Planner::new().outbound_default(pass()).build())?;
    assert!(loaded.dataplane.restore_pins()?.is_empty());

    let Captured {
        fixture,
        app,
        _server,
    } = captured;
    let _fixture = fixture.again()?;
    let called = app.visit(at(CALLED))?;
    assert!(matches!(called, Err(Errno::CONNREFUSED)), "{called:?}");
    Ok(())
}

/// Where a map was pinned is another's now, which may even be alike: it is left alone, and said.
#[test]
fn what_is_in_the_place_of_a_pin_is_left_alone() -> anyhow::Result<()> {
    require_root!();
    let mut captured = Captured::new()?;
    let pin = captured.fixture.loaded.maps_dir().join("OUTBOUND");
    let theirs = Loaded::new()?;
    let unlike = theirs.bpffs.path().join("theirs");
    Array::<MapData, u32>::create(1, 0)?.pin(&unlike)?;
    for foreign in [theirs.maps_dir().join("OUTBOUND"), unlike] {
        let foreign = MapData::from_pin(foreign)?;
        fs::remove_file(&pin)?;
        foreign.pin(&pin)?;
        let dataplane = &mut captured.fixture.loaded.dataplane;
        let error = format!("{:#}", dataplane.restore_pins().unwrap_err());
        assert!(
            error.contains("something else is where the map") && error.contains("OUTBOUND"),
            "{error}"
        );
        let left = MapInfo::from_pin(&pin)?.id();
        assert_eq!(left, foreign.info()?.id(), "it was replaced");
        assert!(captured.is_refused()?, "let go");
        fs::remove_file(&pin)?;
        let dataplane = &mut captured.fixture.loaded.dataplane;
        assert_eq!(dataplane.restore_pins()?, std::slice::from_ref(&pin));
        assert!(captured.is_refused()?, "let go");
    }
    Ok(())
}

/// The same with a link, which is attached where ours was.
#[test]
fn a_link_in_the_place_of_a_pin_is_left_alone() -> anyhow::Result<()> {
    require_root!();
    let mut captured = Captured::new()?;
    let pin = captured.pin("connect4");
    fs::remove_file(&pin)?;
    let cgroup = captured.fixture.cgroup.path();
    let foreign = Foreign::link(cgroup, Hook::Connect4, "connect4", Some(&pin))?;
    assert_eq!(captured.broken(), ["connect4"], "taken for ours");
    let error = format!("{:#}", captured.heal().unwrap_err());
    assert!(
        error.contains("something else is where the link") && error.contains("connect4"),
        "{error}"
    );
    let left = link_info(&pin)?;
    assert_eq!(Some(left.id()), foreign.link_id(), "it was replaced");
    fs::remove_file(&pin)?;
    captured.heal()?;
    assert!(captured.is_refused()?, "not attached again");
    Ok(())
}

/// A link of ours that is attached to something else: not to what is said by its place.
#[test]
fn a_link_that_is_attached_elsewhere_is_of_no_use() -> anyhow::Result<()> {
    require_root!();
    let mut captured = Captured::new()?;
    let cgroup = Cgroup::new("other")?;
    let Fixture { loaded, netns, .. } = &mut captured.fixture;
    let other = loaded.attach(&cgroup, netns)?;
    let of_other = loaded.maps_dir().join(format!("workload-{other}/connect4"));
    let pin = captured.pin("connect4");
    fs::remove_file(&pin)?;
    fs::rename(&of_other, &pin)?;
    assert_eq!(captured.broken(), ["connect4"]);
    captured.passes()?;
    captured.is_mended()
}

/// A link is made again with what it needs: pins of maps, and who the workload is.
#[test]
fn with_a_link_comes_what_it_needs() -> anyhow::Result<()> {
    require_root!();
    let mut captured = Captured::new()?;
    let maps = captured.fixture.loaded.maps_dir();
    let before = names(&captured.fixture.loaded)?;
    wipe_storage(&maps.join("IDENTITIES"), captured.fixture.cgroup.id()?)?;
    assert!(!captured.is_refused()?, "it is known all the same");
    fs::remove_file(maps.join("OUTBOUND"))?;
    fs::remove_file(captured.pin("connect4"))?;
    captured.heal()?;
    assert_eq!(names(&captured.fixture.loaded)?, before);
    assert!(captured.is_refused()?, "not known again");
    Ok(())
}

/// It is asked for every workload, again and again.
#[test]
fn looking_at_links_is_cheap() -> anyhow::Result<()> {
    const TIMES: u32 = 1000;
    require_root!();
    let captured = Captured::new()?;
    let started = Instant::now();
    for _ in 0..TIMES {
        assert!(captured.broken().is_empty());
    }
    let elapsed = started.elapsed();
    println!("looking at the links of a workload {TIMES} times took {elapsed:?}");
    assert!(elapsed.as_secs() < 5, "{elapsed:?} for {TIMES}");
    Ok(())
}

fn names(loaded: &Loaded) -> anyhow::Result<Vec<String>> {
    let mut names = life::names(&loaded.pin_dir())?;
    names.extend(life::names(&loaded.maps_dir())?);
    Ok(names)
}
