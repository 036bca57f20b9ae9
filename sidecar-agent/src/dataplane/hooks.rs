//! Who else is attached where our programs are, or would be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use super::{
    cgroup,
    netns::Netns,
    object::CGROUP_PROGRAMS,
    pins,
    sys::{self, AttachType},
};

/// How programs are attached at one hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// With `BPF_F_ALLOW_MULTI`, or by links: others may come, all run.
    Multi,
    /// With `BPF_F_ALLOW_OVERRIDE`: a program of a cgroup below runs instead.
    Override,
    /// With neither: nobody may attach here or below.
    Exclusive,
}

/// A program that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The kernel's id.
    pub id: u32,
    /// Its name; empty where it has none, or we may not see it.
    pub name: String,
    /// Whether it is this agent's, or that of another run of it.
    pub is_ours: bool,
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.name.as_str() {
            "" => "without a name",
            name => name,
        };
        write!(f, "program {} ({name})", self.id)
    }
}

/// One of our hooks, at one cgroup or network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The name of our program for it.
    pub name: &'static str,
    /// How its programs are attached.
    pub sharing: Sharing,
    /// Those that are attached there itself.
    pub programs: Vec<Attached>,
}

/// Our hooks of the cgroup at `path` that have programs.
///
/// # Errors
/// If the cgroup cannot be opened, or the kernel does not answer (`CAP_NET_ADMIN` is needed).
pub fn of_cgroup(path: &Path) -> io::Result<Vec<Hook>> {
    let cgroup = File::open(path)?;
    of(cgroup.as_fd(), &CGROUP_PROGRAMS)
}

/// The programs that run at our hooks for a connection of a process in the cgroup at `path`, by the
/// name of our program, in the order in which they run: the kernel runs those of a cgroup before
/// those of the ones above, unless they were attached with `BPF_F_PREORDER`, and those of one cgroup
/// as they were attached.
///
/// # Errors
/// As [`of_cgroup`].
pub fn order_at(path: &Path) -> io::Result<BTreeMap<&'static str, Vec<Attached>>> {
    let cgroup = File::open(path)?;
    let mut found = BTreeMap::new();
    for (name, attach_type) in CGROUP_PROGRAMS {
        found.insert(
            name,
            sys::prog_query_effective(cgroup.as_fd(), attach_type)?,
        );
    }
    let known = look_up(&found.values().flatten().copied().collect());
    let attached = |ids: Vec<u32>| ids.iter().map(|id| named(&known, *id)).collect();
    Ok(found
        .into_iter()
        .map(|(name, ids)| (name, attached(ids)))
        .collect())
}

/// The programs of others that keep ours from the cgroup at `path`: each with its hook and the cgroup
/// that it is attached to. None where that is not known.
#[must_use]
pub fn in_the_way(path: &Path) -> Vec<String> {
    let Ok(root) = cgroup::root() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for at in path.ancestors().filter(|at| at.starts_with(&root)) {
        let hooks = of_cgroup(at).unwrap_or_default();
        for hook in hooks.iter().filter(|hook| keeps_out(hook, at == path)) {
            let others = hook.programs.iter().filter(|program| !program.is_ours);
            found.extend(
                others
                    .map(|program| format!("{}: {program} at cgroup {}", hook.name, at.display())),
            );
        }
    }
    found
}

/// Whether nobody can attach to a hook as we do, by a link: to the very cgroup (`is_target`), or to
/// one below.
#[must_use]
pub fn keeps_out(hook: &Hook, is_target: bool) -> bool {
    match hook.sharing {
        Sharing::Multi => false,
        Sharing::Override => is_target,
        Sharing::Exclusive => true,
    }
}

/// Our hook of a network namespace, `sk_lookup`, if it has programs.
///
/// # Errors
/// If the kernel does not answer.
pub fn of_netns(netns: &Netns) -> io::Result<Vec<Hook>> {
    let mut hooks = of(netns.as_fd(), &[("sk_lookup", AttachType::SkLookup)])?;
    // The kernel tells no flags there: there may be several.
    for hook in &mut hooks {
        hook.sharing = Sharing::Multi;
    }
    Ok(hooks)
}

fn of(target: BorrowedFd<'_>, hooks: &[(&'static str, AttachType)]) -> io::Result<Vec<Hook>> {
    let mut found = Vec::new();
    for &(name, attach_type) in hooks {
        let attached = sys::prog_query(target, attach_type)?;
        if !attached.programs.is_empty() {
            found.push((name, attached));
        }
    }
    let ids = found.iter().flat_map(|(_, attached)| &attached.programs);
    let known = look_up(&ids.copied().collect());
    let hook = |(name, attached): (_, sys::Attached)| Hook {
        name,
        sharing: sharing(attached.flags),
        programs: attached
            .programs
            .iter()
            .map(|id| named(&known, *id))
            .collect(),
    };
    Ok(found.into_iter().map(hook).collect())
}

fn named(known: &BTreeMap<u32, Attached>, id: u32) -> Attached {
    known.get(&id).cloned().unwrap_or(Attached {
        id,
        name: String::new(),
        is_ours: false,
    })
}

fn sharing(flags: u32) -> Sharing {
    const ALLOW_OVERRIDE: u32 = 1;
    const ALLOW_MULTI: u32 = 2;
    if flags & ALLOW_MULTI != 0 {
        Sharing::Multi
    } else if flags & ALLOW_OVERRIDE != 0 {
        Sharing::Override
    } else {
        Sharing::Exclusive
    }
}

/// Those of these programs that we may look at (`CAP_SYS_ADMIN`).
fn look_up(ids: &BTreeSet<u32>) -> BTreeMap<u32, Attached> {
    let look_up = |id: &u32| {
        let program = sys::program_by_id(*id).ok()?;
        let attached = Attached {
            id: *id,
            name: sys::program_info(program.as_fd()).ok()?.name,
            is_ours: pins::is_ours(*id),
        };
        Some((*id, attached))
    };
    ids.iter().filter_map(look_up).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_as_the_kernel_has_them() {
        assert_eq!(sharing(0), Sharing::Exclusive);
        assert_eq!(sharing(1), Sharing::Override);
        assert_eq!(sharing(2), Sharing::Multi);
        assert_eq!(sharing(3), Sharing::Multi);
    }
}
