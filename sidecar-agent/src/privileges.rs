//! The capabilities that the agent needs, each with its reason, and giving up all others.
//!
//! `docs/capabilities.md` and `doctor` are made from [`NEEDS`]; the systemd unit is compared with it.

use anyhow::{Context, Result};
use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

/// A capability that the agent keeps.
#[derive(Debug)]
pub struct Need {
    /// As the kernel has it.
    pub capability: CapabilitySet,
    /// Its name.
    pub name: &'static str,
    /// What it is needed for.
    pub reason: &'static str,
    /// What does not work without it.
    pub lost: &'static str,
    /// Whether nothing at all works without it.
    pub is_vital: bool,
}

/// All that are needed; a test runs with exactly these, and one each without one of them.
pub const NEEDS: &[Need] = &[
    Need {
        capability: CapabilitySet::SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        reason: "enters the workloads' network namespaces (setns), mounts bpffs if it is missing, \
                 loads and attaches BPF programs (it includes CAP_BPF and CAP_PERFMON, which would \
                 not be enough)",
        lost: "no program can be loaded and no network namespace be entered: nothing is captured",
        is_vital: true,
    },
    Need {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        reason: "sets up routing and addresses in the namespaces of workloads with a proxy (rules \
                 to table 133, `::6` on `lo`, `tcp_fwmark_accept`), and makes a proxy's listeners \
                 transparent",
        lost: "workloads with a proxy and IPv6, a transparent proxy or virtual interfaces are not \
               captured",
        is_vital: false,
    },
    Need {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        reason: "finds and borrows listening sockets that were open before the programs came \
                 (/proc/PID/fd and pidfd_getfd of other users' processes), and follows \
                 /proc/PID/ns and /proc/PID/root",
        lost: "connections to applications and proxies that listened before they were captured are \
               refused until these listen anew; namespaces and root directories given as \
               /proc/PID/... cannot be opened",
        is_vital: false,
    },
    Need {
        capability: CapabilitySet::DAC_OVERRIDE,
        name: "CAP_DAC_OVERRIDE",
        reason: "reaches other users' unix sockets, makes those that a Sidecar declares in other \
                 users' directories, and looks into other users' /proc/PID/fd",
        lost: "unix sockets in other users' directories are neither served nor reached, and \
               listening sockets of other users not found",
        is_vital: false,
    },
];

/// All of [`NEEDS`].
#[must_use]
pub fn needed() -> CapabilitySet {
    NEEDS
        .iter()
        .map(|need| need.capability)
        .fold(CapabilitySet::empty(), CapabilitySet::union)
}

/// Those that the calling thread can use now.
///
/// # Errors
/// If the kernel does not tell.
pub fn effective() -> Result<CapabilitySet> {
    Ok(own()?.effective)
}

fn own() -> Result<CapabilitySets> {
    capabilities(None).context("reading the process' capabilities (capget)")
}

/// Gives up, for good, all capabilities that are not in [`NEEDS`], also for programs that might be
/// run, and the chance to get more by running one. Concerns the calling thread and those it starts
/// later: call it before there are others.
///
/// Only a process with `CAP_SETPCAP` can take capabilities out of its bounding set; where that is
/// missing the bounding set stays, and matters only to programs that gain privileges when they are
/// run, which there are none of any more.
///
/// # Errors
/// If the kernel refuses what it has no reason to refuse.
pub fn drop_others() -> Result<()> {
    let needed = needed();
    let own = own()?;
    for capability in all_but(needed) {
        match remove_capability_from_bounding_set(capability) {
            // Not known to this kernel, or not ours to take.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("dropping {capability:?} from the bounding set"));
            }
        }
    }
    clear_ambient_capability_set().context("clearing the ambient capabilities")?;
    let kept = own.permitted.intersection(needed);
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
    .context("dropping capabilities (capset)")?;
    set_no_new_privs(true).context("setting no_new_privs")?;
    Ok(())
}

/// Every capability that a kernel may know, one by one, without these.
fn all_but(kept: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .filter(move |capability| !kept.contains(*capability))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_capabilities() {
        for need in NEEDS {
            let (name, _) = need.capability.iter_names().next().unwrap();
            assert_eq!(need.name, format!("CAP_{name}"));
        }
        assert_eq!(needed().iter().count(), NEEDS.len());
    }

    /// In a thread of its own, which is all that it concerns.
    #[test]
    fn nothing_but_what_is_needed_is_left() {
        std::thread::spawn(|| {
            let before = own().unwrap();
            drop_others().unwrap();
            let after = own().unwrap();
            assert_eq!(after.permitted, before.permitted & needed());
            assert_eq!(after.effective, after.permitted);
            assert!(after.inheritable.is_empty());
            assert!(rustix::thread::no_new_privs().unwrap());
            if before.effective.contains(CapabilitySet::SETPCAP) {
                for capability in all_but(needed()) {
                    // An error where the kernel knows no such capability.
                    let is_there = rustix::thread::capability_is_in_bounding_set(capability);
                    assert_ne!(is_there, Ok(true), "{capability:?}");
                }
            }
        })
        .join()
        .unwrap();
    }
}
