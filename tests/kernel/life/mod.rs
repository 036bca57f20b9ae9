//! What is pinned outlives the agent, and is adopted, completed or undone by the next one.

mod adopted;
mod refused;
mod sets;
mod strangers;

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use rustix::io::Errno;
use sidecar_agent::dataplane::{Capacity, uninstall::inventory};
use sidecar_common::{
    keys::{PlanId, WorkloadId},
    values::PlanHeader,
};
use sidecar_tests::{Cgroup, DEADLINE, Namespace, Probe, Server, poll::poll_result};

use crate::{
    fixture::{CAPACITY, Fixture, Loaded},
    plan::{Planner, at, deny},
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

    /// Waits until a set that is not used any more is gone. The workload is refused as before.
    fn is_removed(&mut self, set: &Path) -> anyhow::Result<()> {
        poll_result(DEADLINE, "the old set to be removed", || {
            self.loaded.dataplane.refresh();
            ensure!(!set.exists(), "it is there");
            Ok(())
        })?;
        self.is_refused()
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

/// A map of nobody's.
fn stranger(at: &Path) -> anyhow::Result<()> {
    let map = Array::<MapData, u32>::create(1, 0)?;
    map.pin(at)?;
    Ok(())
}

/// What is in a directory, in order.
pub fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
