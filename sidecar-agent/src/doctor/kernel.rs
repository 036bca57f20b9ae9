//! What the kernel can do for us.

use std::path::Path;

use super::{
    Check,
    catalogue::{self, Code},
};
use crate::dataplane::{
    cgroup,
    probe::{self, Feature, Trial},
};

/// How many lines of the verifier's log are shown.
const LAST_LINES: usize = 6;

/// Which kernel it is. Nothing follows from that.
#[must_use]
pub fn release() -> Check {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy().into_owned();
    let machine = system.machine().to_string_lossy().into_owned();
    Check::info("kernel", format!("{release} on {machine}"))
}

/// Tries every feature.
pub fn features(program: &Path) -> Vec<Check> {
    // Where there is no cgroup2, that is said elsewhere.
    let root = cgroup::root().ok();
    probe::everything(root.as_deref())
        .into_iter()
        .chain([probe::borrowed_socket(program)])
        .map(judge)
        .collect()
}

fn judge(trial: Trial) -> Check {
    let (what, code) = describe(trial.feature);
    match trial.result {
        Ok(()) => Check::ok(what, "works"),
        Err(error) => Check::finding(what, code, shortened(&format!("{error:#}"))),
    }
}

fn describe(feature: Feature) -> (String, &'static Code) {
    if let Feature::Program(name) = feature {
        return (format!("program {name}"), catalogue::PROGRAM);
    }
    let known = FEATURES.iter().find(|known| known.feature == feature);
    known.map_or_else(
        || (format!("{feature:?}"), catalogue::NOT_TRIED),
        |known| (known.name.to_owned(), known.code),
    )
}

/// What is tried of the kernel, beside programs.
#[derive(Debug)]
pub struct Known {
    feature: Feature,
    /// Its name in the report.
    pub name: &'static str,
    /// The first kernel that has it.
    pub since: &'static str,
    /// What it is if it is not there.
    pub code: &'static Code,
}

impl Known {
    const fn new(
        feature: Feature,
        name: &'static str,
        since: &'static str,
        code: &'static Code,
    ) -> Self {
        Self {
            feature,
            name,
            since,
            code,
        }
    }
}

/// Everything that is tried of the kernel, beside programs: `docs/kernels.md` is made from it.
pub const FEATURES: &[Known] = &[
    Known::new(
        Feature::Scratch,
        "namespaces to try in",
        "3.8",
        catalogue::NOT_TRIED,
    ),
    Known::new(Feature::Maps, "BPF maps", "5.8", catalogue::MAPS),
    Known::new(
        Feature::NetnsLink,
        "link to a network namespace",
        "5.9",
        catalogue::NETNS_LINK,
    ),
    Known::new(
        Feature::CgroupLink,
        "links to a cgroup",
        "5.7",
        catalogue::CGROUP_LINK,
    ),
    Known::new(
        Feature::CgroupStorage,
        "cgroup storage by id",
        "5.9",
        catalogue::CGROUP_STORAGE,
    ),
    Known::new(
        Feature::MappedArray,
        "mapped array",
        "5.5",
        catalogue::MAPPED_ARRAY,
    ),
    Known::new(
        Feature::SocketMap,
        "listening socket in a sockhash",
        "5.8",
        catalogue::SOCKET_MAP,
    ),
    Known::new(
        Feature::RingBuffer,
        "ring buffer",
        "5.8",
        catalogue::RING_BUFFER,
    ),
    Known::new(
        Feature::BorrowedSocket,
        "pidfd_getfd",
        "5.6",
        catalogue::BORROWED_SOCKET,
    ),
    Known::new(
        Feature::ListenerNetns,
        "network namespace of listeners",
        "5.15, or BTF",
        catalogue::LISTENER_NETNS,
    ),
    Known::new(
        Feature::IngressIfindex,
        "interface of arrival",
        "5.17",
        catalogue::INGRESS_IFINDEX,
    ),
    Known::new(
        Feature::SetRetval,
        "error of a refused call",
        "5.18",
        catalogue::SET_RETVAL,
    ),
    Known::new(
        Feature::Acceleration,
        "acceleration",
        "6.18, or 5.15 without MPTCP; with BTF",
        catalogue::ACCELERATION,
    ),
];

/// The verifier's log is long, and its end tells the cause.
fn shortened(error: &str) -> String {
    let lines: Vec<&str> = error
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.starts_with("processed "))
        .collect();
    let Some((first, rest)) = lines.split_first() else {
        return String::new();
    };
    let last = rest.len().saturating_sub(LAST_LINES);
    let skipped = (last > 0).then_some("...");
    [*first]
        .into_iter()
        .chain(skipped)
        .chain(rest.iter().skip(last).copied())
        .collect::<Vec<_>>()
        .join("\n          ")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::doctor::report::State;

    #[test]
    fn what_fails_is_found_by_its_code() {
        let trial = |result| Trial {
            feature: Feature::Program("connect4"),
            result,
        };
        assert_eq!(judge(trial(Ok(()))).state, State::Ok);
        let failed = judge(trial(Err(anyhow!("EPERM"))));
        assert_eq!(failed.check, "program connect4");
        assert_eq!(failed.finding.unwrap().code, catalogue::PROGRAM.id);
    }

    #[test]
    fn of_a_long_log_the_beginning_and_the_end_are_shown() {
        let log = "r1 = r2\n".repeat(99);
        let text = format!("loading: EINVAL\n{log}unknown func bpf_set_retval#187\nprocessed 99\n");
        let shown = shortened(&text);
        let lines: Vec<_> = shown.lines().map(str::trim).collect();
        assert_eq!(lines.first(), Some(&"loading: EINVAL"));
        assert_eq!(lines.last(), Some(&"unknown func bpf_set_retval#187"));
        assert_eq!(lines.len(), LAST_LINES + 2, "{shown}");
        assert_eq!(shortened("one"), "one");
    }
}
