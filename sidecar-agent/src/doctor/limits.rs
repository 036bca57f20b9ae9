//! Limits and policies of the system. What they forbid is seen where it is tried; these tell why.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::Check;

/// What is set.
pub fn look() -> Vec<Check> {
    let memlock = getrlimit(Resource::Memlock).current;
    let files = getrlimit(Resource::Nofile).maximum;
    let read = |path: &str| fs::read_to_string(path).ok();
    vec![
        judge_memlock(memlock),
        judge_open_files(files),
        judge_lockdown(read("/sys/kernel/security/lockdown").as_deref()),
        judge_unprivileged(read("/proc/sys/kernel/unprivileged_bpf_disabled").as_deref()),
    ]
}

fn judge_memlock(limit: Option<u64>) -> Check {
    let limit = limit.map_or("unlimited".to_owned(), |bytes| format!("{bytes} bytes"));
    let found = format!("{limit}; BPF maps do not count (kernel 5.11 and newer)");
    Check::info("RLIMIT_MEMLOCK", found)
}

fn judge_open_files(limit: Option<u64>) -> Check {
    let limit = limit.map_or("unlimited".to_owned(), |files| files.to_string());
    let found = format!(
        "{limit}: `run` uses as many descriptors as it may; without any left workloads that come \
         wait, and their problem names this limit (systemd: LimitNOFILE)"
    );
    Check::info("RLIMIT_NOFILE", found)
}

/// The file has all modes, with the one in force in brackets.
fn judge_lockdown(file: Option<&str>) -> Check {
    let what = "LSM lockdown";
    let Some(file) = file else {
        return Check::info(what, "the kernel has none, or securityfs is not mounted");
    };
    let mode = file
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
        .unwrap_or("unknown");
    let found = match mode {
        "confidentiality" => {
            "confidentiality: BPF programs may not read the kernel's memory; ours do so only before \
             kernel 5.15, to tell the network namespace of a listening socket"
        }
        "integrity" => "integrity: nothing that our programs do is forbidden",
        "none" => "none",
        _ => "not understood",
    };
    Check::info(what, found)
}

fn judge_unprivileged(file: Option<&str>) -> Check {
    let found = match file.map(str::trim) {
        Some("0") => {
            "0: every user may load (a few kinds of) BPF programs; they reach nothing of ours; \
             `sysctl kernel.unprivileged_bpf_disabled=2` forbids it"
        }
        Some("1") => "1: forbidden until the next boot",
        Some("2") => "2: forbidden",
        _ => "not known",
    };
    Check::info("kernel.unprivileged_bpf_disabled", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_told_in_words() {
        let lockdown = judge_lockdown(Some("none [integrity] confidentiality\n"));
        assert!(lockdown.found.starts_with("integrity:"), "{lockdown:?}");
        assert_eq!(judge_lockdown(Some("[none] integrity")).found, "none");
        assert_eq!(judge_lockdown(Some("?")).found, "not understood");
        assert!(judge_lockdown(None).found.contains("securityfs"));
        assert!(
            judge_unprivileged(Some("0\n"))
                .found
                .starts_with("0: every")
        );
        assert!(judge_memlock(Some(8192)).found.starts_with("8192 bytes"));
        assert!(judge_memlock(None).found.starts_with("unlimited"));
    }
}
