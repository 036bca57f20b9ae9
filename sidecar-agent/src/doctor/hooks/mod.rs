//! Who else is attached where our programs are, or would be.

mod order;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use self::order::{Order, Place, lower, order_of};
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
    fn the_way_to_a_cgroup_is_looked_at() {
        let root = Path::new("/r");
        let targets = BTreeSet::from([Path::new("/r/a/b")]);
        let paths = with_ancestors(root, &targets);
        let expected = ["/r", "/r/a", "/r/a/b"].map(PathBuf::from);
        assert_eq!(paths, BTreeSet::from(expected));
        assert_eq!(with_ancestors(root, &BTreeSet::new()).len(), 1);
    }
}
