//! Where a cgroup is as seen from the workloads', and what follows for when its programs run.

use std::{collections::BTreeSet, path::Path};

use crate::dataplane::hooks::Attached;

/// Where a cgroup is, as seen from those that we attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Above one, or the root.
    Above,
    /// It is one.
    Target,
    /// Below one.
    Below,
}

impl Place {
    /// Which of them the cgroup at `path` is.
    pub fn of(path: &Path, targets: &BTreeSet<&Path>) -> Self {
        if targets.contains(path) {
            Self::Target
        } else if targets.iter().any(|target| path.starts_with(target)) {
            Self::Below
        } else {
            Self::Above
        }
    }
}

/// When a foreign program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Before ours.
    Before,
    /// After them.
    After,
    /// It is not the same for every workload.
    Both,
    /// There is no workload that it could run for.
    Unknown,
}

/// The cgroups in which programs of the one at `path` and those of a workload run.
pub fn lower<'a>(path: &'a Path, targets: &BTreeSet<&'a Path>) -> BTreeSet<&'a Path> {
    let lower = |target: &&'a Path| {
        if target.starts_with(path) {
            Some(*target)
        } else {
            path.starts_with(target).then_some(path)
        }
    };
    targets.iter().filter_map(lower).collect()
}

/// When a program of a cgroup runs; `running`: all that do at that hook, in order. Before ours are
/// attached there it is what will be, unless it is attached with `BPF_F_PREORDER`, which the kernel
/// does not tell.
pub fn order_of(place: Place, program: u32, running: &[Attached]) -> Order {
    let ours = running.iter().position(|of| of.is_ours);
    let theirs = running.iter().position(|of| of.id == program);
    let is_before = match (theirs, ours) {
        (Some(theirs), Some(ours)) => theirs < ours,
        // Ours will be the last of their cgroup.
        _ => place != Place::Above,
    };
    if is_before {
        Order::Before
    } else {
        Order::After
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_what_the_kernel_tells_or_what_it_will_be() {
        let program = |id, is_ours| Attached {
            id,
            name: String::new(),
            is_ours,
        };
        let running = [program(1, false), program(2, true), program(3, false)];
        for place in [Place::Above, Place::Target, Place::Below] {
            assert_eq!(order_of(place, 1, &running), Order::Before);
            assert_eq!(order_of(place, 3, &running), Order::After);
        }
        let alone = [program(1, false)];
        assert_eq!(order_of(Place::Above, 1, &alone), Order::After);
        assert_eq!(order_of(Place::Target, 1, &alone), Order::Before);
        assert_eq!(order_of(Place::Below, 1, &alone), Order::Before);
    }

    #[test]
    fn both_run_in_the_lower_cgroup() {
        let [a, b, c] = ["/r/a", "/r/a/b", "/r/c"].map(Path::new);
        let targets = BTreeSet::from([a, c]);
        assert_eq!(lower(Path::new("/r"), &targets), targets);
        assert_eq!(lower(b, &targets), BTreeSet::from([b]));
        assert_eq!(Place::of(b, &targets), Place::Below);
        assert_eq!(Place::of(c, &targets), Place::Target);
        assert_eq!(Place::of(Path::new("/r"), &targets), Place::Above);
    }
}
