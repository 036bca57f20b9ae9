//! Who else is attached where our programs are, or would be.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{Check, catalogue, workloads::Found};
use crate::dataplane::{
    cgroup,
    hooks::{self, Hook, Sharing},
};

/// Looks at the root of cgroup2, at the workloads' cgroups and all between, and at the workloads'
/// network namespaces.
pub fn look(workloads: &[Found]) -> Vec<Check> {
    let Ok(root) = cgroup::root() else {
        // Said elsewhere.
        return Vec::new();
    };
    let targets: BTreeSet<&Path> = workloads
        .iter()
        .filter_map(|of| Some(of.cgroup.as_ref().ok()?.path.as_path()))
        .collect();
    let mut checks: Vec<Check> = with_ancestors(&root, &targets)
        .into_iter()
        .flat_map(|path| {
            let is_target = targets.contains(path.as_path());
            let what = format!("hooks of cgroup {}", path.display());
            match hooks::of_cgroup(&path) {
                Ok(hooks) => judge_cgroup(&what, is_target, &hooks),
                Err(error) => vec![unknown(&what, &error)],
            }
        })
        .collect();
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

/// `is_target`: we would attach to this very cgroup, not only to some below it.
fn judge_cgroup(what: &str, is_target: bool, hooks: &[Hook]) -> Vec<Check> {
    let mut found: BTreeMap<&str, (_, Vec<String>)> = BTreeMap::new();
    for hook in hooks {
        let code = match hook.sharing {
            Sharing::Multi => catalogue::FOREIGN_PROGRAM,
            Sharing::Override if !is_target => catalogue::OVERRIDDEN_PROGRAM,
            Sharing::Override | Sharing::Exclusive => catalogue::EXCLUSIVE_PROGRAM,
        };
        let foreign = foreign(hook);
        if !foreign.is_empty() {
            found
                .entry(code.id)
                .or_insert_with(|| (code, Vec::new()))
                .1
                .extend(foreign);
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
    let foreign: Vec<String> = hooks.iter().flat_map(foreign).collect();
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

fn foreign(hook: &Hook) -> Vec<String> {
    let others = hook.programs.iter().filter(|program| !program.is_ours);
    others
        .map(|program| {
            let name = match program.name.as_str() {
                "" => "without a name",
                name => name,
            };
            format!("{}: program {} ({name})", hook.name, program.id)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::hooks::Attached;

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

    fn codes(is_target: bool, hooks: &[Hook]) -> Vec<&'static str> {
        let checks = judge_cgroup("x", is_target, hooks);
        let findings = checks.iter().filter_map(|check| check.finding.as_ref());
        findings.map(|finding| finding.code).collect()
    }

    #[test]
    fn what_keeps_us_out_is_told_from_what_goes_with_us() {
        use Sharing::{Exclusive, Multi, Override};
        for (sharing, is_target, code) in [
            (Multi, true, catalogue::FOREIGN_PROGRAM),
            (Multi, false, catalogue::FOREIGN_PROGRAM),
            (Override, true, catalogue::EXCLUSIVE_PROGRAM),
            (Override, false, catalogue::OVERRIDDEN_PROGRAM),
            (Exclusive, true, catalogue::EXCLUSIVE_PROGRAM),
            (Exclusive, false, catalogue::EXCLUSIVE_PROGRAM),
        ] {
            assert_eq!(codes(is_target, &[hook(sharing, false)]), [code.id]);
        }
        assert!(codes(true, &[hook(Multi, true)]).is_empty(), "ours");
        assert!(codes(true, &[]).is_empty());
        let both = [hook(Multi, false), hook(Exclusive, false)];
        assert_eq!(codes(true, &both).len(), 2);
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
