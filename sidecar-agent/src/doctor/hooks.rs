//! Who else is attached where our programs are, or would be.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{Check, catalogue, workloads::Found};
use crate::dataplane::{
    cgroup,
    hooks::{self, Attached, Hook, Sharing},
};

/// Looks at the root of cgroup2, at the workloads' cgroups, all between and all below, and at the
/// workloads' network namespaces.
pub fn look(workloads: &[Found]) -> Vec<Check> {
    let Ok(root) = cgroup::root() else {
        // Said elsewhere.
        return Vec::new();
    };
    let targets: BTreeSet<&Path> = workloads
        .iter()
        .filter_map(|of| Some(of.cgroup.as_ref().ok()?.path.as_path()))
        .collect();
    let above = with_ancestors(&root, &targets);
    let below: BTreeSet<PathBuf> = targets
        .iter()
        .flat_map(|target| cgroup::tree(target))
        .filter(|path| !above.contains(path))
        .collect();
    let mut checks: Vec<Check> = above
        .iter()
        .flat_map(|path| look_at(path, &targets))
        .collect();
    for path in &below {
        let found = look_at(path, &targets);
        checks.extend(found.into_iter().filter(|check| check.finding.is_some()));
    }
    let mut seen = BTreeSet::new();
    for netns in workloads.iter().filter_map(|of| of.netns.as_ref().ok()) {
        if seen.insert(netns.id) {
            let what = format!("sk_lookup of netns {}", netns.path.display());
            match hooks::of_netns(netns) {
                Ok(hooks) => checks.extend(judge_netns(&what, &hooks)),
                Err(error) => checks.push(unknown(&what, &error)),
            }
        }
    }
    checks
}

fn unknown(what: &str, error: &std::io::Error) -> Check {
    Check::finding(what, catalogue::HOOKS_UNKNOWN, error.to_string())
}

/// The root, the cgroups, and all between.
fn with_ancestors(root: &Path, targets: &BTreeSet<&Path>) -> BTreeSet<PathBuf> {
    targets
        .iter()
        .flat_map(|target| target.ancestors())
        .filter(|path| path.starts_with(root))
        .chain([root])
        .map(Path::to_owned)
        .collect()
}

/// Where a cgroup is, as seen from those that we attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Above one, or the root.
    Above,
    /// It is one.
    Target,
    /// Below one.
    Below,
}

impl Place {
    fn of(path: &Path, targets: &BTreeSet<&Path>) -> Self {
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
enum Order {
    Before,
    After,
    /// It is not the same for every workload.
    Both,
    /// There is no workload that it could run for.
    Unknown,
}

fn look_at(path: &Path, targets: &BTreeSet<&Path>) -> Vec<Check> {
    let what = format!("hooks of cgroup {}", path.display());
    let looked = || -> std::io::Result<_> {
        let hooks = hooks::of_cgroup(path)?;
        let mut orders = Vec::new();
        if hooks.iter().any(|hook| !foreign(hook).is_empty()) {
            // Where programs of both run.
            for lower in lower(path, targets) {
                orders.push(hooks::order_at(lower)?);
            }
        }
        Ok((hooks, orders))
    };
    match looked() {
        Ok((hooks, orders)) => {
            let place = Place::of(path, targets);
            let order = |hook: &Hook, program: u32| {
                let orders = orders.iter().filter_map(|of| of.get(hook.name));
                orders
                    .map(|running| order_of(place, program, running))
                    .reduce(|one, other| if one == other { one } else { Order::Both })
                    .unwrap_or(Order::Unknown)
            };
            judge_cgroup(&what, place, &hooks, order)
        }
        Err(error) => vec![unknown(&what, &error)],
    }
}

/// The cgroups in which programs of the one at `path` and those of a workload run.
fn lower<'a>(path: &'a Path, targets: &BTreeSet<&'a Path>) -> BTreeSet<&'a Path> {
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
fn order_of(place: Place, program: u32, running: &[Attached]) -> Order {
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

fn judge_cgroup(
    what: &str,
    place: Place,
    hooks: &[Hook],
    order: impl Fn(&Hook, u32) -> Order,
) -> Vec<Check> {
    let mut found: BTreeMap<&str, (_, Vec<String>)> = BTreeMap::new();
    for hook in hooks {
        let code = match hook.sharing {
            // Programs of cgroups above, which ours are, are not kept out.
            _ if place == Place::Below => catalogue::FOREIGN_PROGRAM,
            _ if hooks::keeps_out(hook, place == Place::Target) => catalogue::EXCLUSIVE_PROGRAM,
            Sharing::Override => catalogue::OVERRIDDEN_PROGRAM,
            _ => catalogue::FOREIGN_PROGRAM,
        };
        let runs = |program: &Attached| match order(hook, program.id) {
            _ if code != catalogue::FOREIGN_PROGRAM => "",
            Order::Before => ", before ours",
            Order::After => ", after ours",
            Order::Both => ", before ours or after them, by workload",
            Order::Unknown => "",
        };
        for program in foreign(hook) {
            found
                .entry(code.id)
                .or_insert_with(|| (code, Vec::new()))
                .1
                .push(format!("{}: {program}{}", hook.name, runs(program)));
        }
    }
    if found.is_empty() {
        return vec![Check::ok(what, nobody_else(hooks))];
    }
    found
        .into_values()
        .map(|(code, programs)| Check::finding(what, code, programs.join(", ")))
        .collect()
}

fn judge_netns(what: &str, hooks: &[Hook]) -> Vec<Check> {
    let foreign: Vec<String> = hooks
        .iter()
        .flat_map(|hook| foreign(hook).into_iter().map(|of| (hook.name, of)))
        .map(|(name, program)| format!("{name}: {program}"))
        .collect();
    vec![if foreign.is_empty() {
        Check::ok(what, nobody_else(hooks))
    } else {
        Check::finding(what, catalogue::FOREIGN_LOOKUP, foreign.join(", "))
    }]
}

fn nobody_else(hooks: &[Hook]) -> &'static str {
    if hooks.is_empty() {
        "no programs"
    } else {
        "only this agent's programs"
    }
}

fn foreign(hook: &Hook) -> Vec<&Attached> {
    let others = hook.programs.iter().filter(|program| !program.is_ours);
    others.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(sharing: Sharing, is_ours: bool) -> Hook {
        Hook {
            name: "connect4",
            sharing,
            programs: vec![Attached {
                id: 7,
                name: "other".into(),
                is_ours,
            }],
        }
    }

    fn codes(place: Place, hooks: &[Hook]) -> Vec<&'static str> {
        let checks = judge_cgroup("x", place, hooks, |_, _| Order::After);
        let findings = checks.iter().filter_map(|check| check.finding.as_ref());
        findings.map(|finding| finding.code).collect()
    }

    #[test]
    fn what_keeps_us_out_is_told_from_what_goes_with_us() {
        use Place::{Above, Below, Target};
        use Sharing::{Exclusive, Multi, Override};
        for (sharing, place, code) in [
            (Multi, Target, catalogue::FOREIGN_PROGRAM),
            (Multi, Above, catalogue::FOREIGN_PROGRAM),
            (Override, Target, catalogue::EXCLUSIVE_PROGRAM),
            (Override, Above, catalogue::OVERRIDDEN_PROGRAM),
            (Exclusive, Target, catalogue::EXCLUSIVE_PROGRAM),
            (Exclusive, Above, catalogue::EXCLUSIVE_PROGRAM),
            (Exclusive, Below, catalogue::FOREIGN_PROGRAM),
        ] {
            assert_eq!(codes(place, &[hook(sharing, false)]), [code.id]);
        }
        assert!(codes(Target, &[hook(Multi, true)]).is_empty(), "ours");
        assert!(codes(Target, &[]).is_empty());
        let both = [hook(Multi, false), hook(Exclusive, false)];
        assert_eq!(codes(Target, &both).len(), 2);
    }

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

    #[test]
    fn the_way_to_a_cgroup_is_looked_at() {
        let root = Path::new("/r");
        let targets = BTreeSet::from([Path::new("/r/a/b")]);
        let paths = with_ancestors(root, &targets);
        let expected = ["/r", "/r/a", "/r/a/b"].map(PathBuf::from);
        assert_eq!(paths, BTreeSet::from(expected));
        assert_eq!(with_ancestors(root, &BTreeSet::new()).len(), 1);
    }
}
