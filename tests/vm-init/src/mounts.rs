//! What a system has mounted.

use std::{env, ffi::CString, fs, path::Path};

use anyhow::Context as _;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use sidecar_vm_init::{CGROUPS, Cgroups};

/// A file system, where it is mounted, and its options. In this order.
const MOUNTS: [(&str, &str, &str); 11] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", "mode=755"),
    ("devpts", "/dev/pts", "mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/run", "mode=755"),
    ("tmpfs", "/tmp", "mode=1777"),
    ("bpf", "/sys/fs/bpf", "mode=700"),
    ("debugfs", "/sys/kernel/debug", ""),
    ("tracefs", "/sys/kernel/tracing", ""),
    ("securityfs", "/sys/kernel/security", ""),
];

/// Where cgroups are.
const CGROUP_DIR: &str = "/sys/fs/cgroup";

/// What the kernel's command line says of cgroups.
///
/// # Errors
/// When it says nothing, or something else.
pub fn cgroups_asked_for() -> anyhow::Result<Cgroups> {
    let name = env::var(CGROUPS)
        .with_context(|| format!("the kernel's command line says nothing of {CGROUPS}"))?;
    Cgroups::named(&name).with_context(|| format!("{CGROUPS}={name} is not known"))
}

/// Mounts everything.
///
/// # Errors
/// When something cannot be mounted without which tests make no sense.
pub fn mount_all(cgroups: Cgroups) -> anyhow::Result<()> {
    for (kind, at, options) in MOUNTS {
        // What the initramfs has there must not be hidden: a project that lies below /tmp.
        let has_files = fs::read_dir(at).is_ok_and(|mut entries| entries.next().is_some());
        if kind != "tmpfs" || !has_files {
            mount_at(kind, at, options)?;
        }
    }
    match cgroups {
        Cgroups::Pure => {
            mount_at("cgroup2", CGROUP_DIR, "")?;
            // As systemd does.
            let control = Path::new(CGROUP_DIR).join("cgroup.subtree_control");
            fs::write(&control, "+memory")
                .with_context(|| format!("cannot write +memory to {}", control.display()))?;
        }
        Cgroups::Hybrid => mount_hybrid()?,
    }
    // As systemd has it; `ip netns` and containers count on it.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change("/", shared).context("cannot make the mounts shared")
}

fn mount_at(kind: &str, at: &str, options: &str) -> anyhow::Result<()> {
    // Where the kernel has a place for it, that is there already.
    let _ = fs::create_dir_all(at);
    let data = CString::new(options).context("an option has a NUL")?;
    mount(kind, at, kind, MountFlags::empty(), data.as_c_str())
        .with_context(|| format!("cannot mount {kind} on {at} ({options})"))
}

/// As systemd does: controllers are version 1's, version 2 has the processes.
fn mount_hybrid() -> anyhow::Result<()> {
    mount_at("tmpfs", CGROUP_DIR, "mode=755")?;
    let text = fs::read_to_string("/proc/cgroups").context("cannot read /proc/cgroups")?;
    for controller in controllers(&text) {
        let at = Path::new(CGROUP_DIR).join(controller);
        fs::create_dir(&at).with_context(|| format!("cannot make {}", at.display()))?;
        let data = CString::new(controller).context("a controller's name has a NUL")?;
        // A kernel may have left out what version 1 had of it.
        if let Err(error) = mount(
            "cgroup",
            &at,
            "cgroup",
            MountFlags::empty(),
            data.as_c_str(),
        ) {
            eprintln!("init: controller {controller} is not there for version 1: {error}");
        }
    }
    mount_at("cgroup2", &format!("{CGROUP_DIR}/unified"), "")
}

/// The controllers in the text of `/proc/cgroups` that are enabled; see cgroups(7).
fn controllers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next().filter(|name| !name.starts_with('#'))?;
        (fields.nth(2)? == "1").then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_that_are_enabled() {
        let text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                    cpuset\t0\t1\t1\nmemory\t0\t1\t0\nnet_cls\t3\t1\t1\n";
        assert_eq!(controllers(text).collect::<Vec<_>>(), ["cpuset", "net_cls"]);
    }
}
