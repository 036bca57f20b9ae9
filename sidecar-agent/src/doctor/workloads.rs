//! Where the workloads are.

use std::fs;

use super::{Check, catalogue};
use crate::dataplane::{
    cgroup::{self, Cgroup},
    netns::Netns,
};

/// Where a workload is said to be.
#[derive(Clone, Debug)]
pub struct WorkloadPlace {
    /// `namespace/name`.
    pub workload: String,
    /// Its cgroup, below the cgroup2 root.
    pub cgroup: String,
    /// Its network namespace; `None`: the host's.
    pub netns: Option<String>,
}

/// What was found of a workload.
pub struct Found {
    /// `namespace/name`.
    pub workload: String,
    /// Its cgroup, or why it cannot be used.
    pub cgroup: Result<Cgroup, String>,
    /// Its network namespace, or why it cannot be used.
    pub netns: Result<Netns, String>,
    has_processes: bool,
}

/// Looks for them.
pub fn find(places: &[WorkloadPlace]) -> Vec<Found> {
    let root = cgroup::root();
    let find = |place: &WorkloadPlace| {
        let cgroup = match &root {
            Ok(root) => Cgroup::open(root, &place.cgroup).map_err(|error| format!("{error:#}")),
            Err(error) => Err(format!("{error:#}")),
        };
        let netns = Netns::open(place.netns.as_deref()).map_err(|error| format!("{error:#}"));
        let has_processes = cgroup.as_ref().is_ok_and(|cgroup| {
            fs::read_to_string(cgroup.path.join("cgroup.events"))
                .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
        });
        Found {
            workload: place.workload.clone(),
            cgroup,
            netns,
            has_processes,
        }
    };
    places.iter().map(find).collect()
}

impl Found {
    /// Whether it is where it is said to be.
    pub fn checks(&self) -> Vec<Check> {
        let of = |what: &str| format!("{what} of {}", self.workload);
        let cgroup = match &self.cgroup {
            Err(error) => Check::finding(of("cgroup"), catalogue::WORKLOAD_CGROUP, error),
            Ok(cgroup) => {
                let path = cgroup.path.display().to_string();
                if self.has_processes {
                    Check::ok(of("cgroup"), path)
                } else {
                    Check::finding(of("cgroup"), catalogue::EMPTY_CGROUP, path)
                }
            }
        };
        let netns = match &self.netns {
            Err(error) => Check::finding(of("netns"), catalogue::WORKLOAD_NETNS, error),
            Ok(netns) => Check::ok(of("netns"), netns.path.display().to_string()),
        };
        vec![cgroup, netns]
    }
}
