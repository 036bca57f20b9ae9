//! Programs that the tests run.

use std::{env, ffi::OsStr, path::Path};

use anyhow::bail;

use super::apt;

/// A program, and where Debian has it.
struct Program {
    name: &'static str,
    package: &'static str,
    reason: &'static str,
}

/// What the tests really run. A test that needs another program adds a line here.
static PROGRAMS: [Program; 10] = [
    Program {
        name: "ip",
        package: "iproute2",
        reason: "makes network namespaces, links and routes",
    },
    Program {
        name: "nsenter",
        package: "util-linux",
        reason: "runs programs in a network namespace",
    },
    Program {
        name: "setpriv",
        package: "util-linux",
        reason: "runs programs as another user",
    },
    Program {
        name: "python3",
        package: "python3",
        reason: "makes the system calls that Rust would make in unsafe code",
    },
    Program {
        name: "iptables",
        package: "iptables",
        reason: "captures as Istio does, for comparison",
    },
    Program {
        name: "iptables-restore",
        package: "iptables",
        reason: "loads the rules that the agent replaces, to compare with",
    },
    Program {
        name: "ip6tables-restore",
        package: "iptables",
        reason: "the same for IPv6",
    },
    Program {
        name: "nft",
        package: "nftables",
        reason: "makes and tells rules that `doctor` is to find",
    },
    Program {
        name: "strace",
        package: "strace",
        reason: "tells which system calls the agent makes, to compare with the systemd unit",
    },
    Program {
        name: "conntrack",
        package: "conntrack",
        reason: "tells which connections the kernel tracks, and has it forget them",
    },
];

/// What the benchmark runs besides.
static COMPARED: [Program; 2] = [
    Program {
        name: "haproxy",
        package: "haproxy",
        reason: "relays, to compare with",
    },
    Program {
        name: "taskset",
        package: "util-linux",
        reason: "keeps a program to one CPU",
    },
];

/// What runs pods. Runtimes look for plugins where no shell does.
static NODE: [Program; 2] = [
    Program {
        name: "runc",
        package: "runc",
        reason: "runs containers",
    },
    Program {
        name: "ptp",
        package: "containernetworking-plugins",
        reason: "makes pods' networks",
    },
];

/// Where CNI plugins are: where Debian has them, and where others do.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

pub fn find_node() -> anyhow::Result<String> {
    find_all(&NODE)
}

pub fn install_node() -> anyhow::Result<()> {
    install_all(&NODE)
}

pub fn find() -> anyhow::Result<String> {
    find_all(&PROGRAMS)
}

pub fn install() -> anyhow::Result<()> {
    install_all(&PROGRAMS)
}

pub fn find_compared() -> anyhow::Result<String> {
    find_all(&COMPARED)
}

pub fn install_compared() -> anyhow::Result<()> {
    install_all(&COMPARED)
}

fn find_all(programs: &'static [Program]) -> anyhow::Result<String> {
    let missing: Vec<String> = missing(programs)
        .map(
            |Program {
                 name,
                 package,
                 reason,
             }| { format!("{name} (Debian's package {package}): {reason}") },
        )
        .collect();
    if !missing.is_empty() {
        bail!("not found: {}", missing.join("; "));
    }
    let names: Vec<&str> = programs.iter().map(|program| program.name).collect();
    Ok(names.join(", "))
}

fn install_all(programs: &'static [Program]) -> anyhow::Result<()> {
    let mut packages: Vec<&str> = missing(programs).map(|program| program.package).collect();
    packages.dedup();
    apt::install(&packages, || true)
}

/// Their names.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().map(|program| program.name)
}

fn missing(programs: &'static [Program]) -> impl Iterator<Item = &'static Program> {
    programs
        .iter()
        .filter(|program| !is_there(OsStr::new(program.name)))
}

/// Whether there is a program of that name.
pub fn is_there(name: &OsStr) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Where a distribution keeps programs for root, which a user's PATH may lack.
    let more = ["/usr/sbin", "/sbin"].into_iter().chain(PLUGINS);
    env::split_paths(&path)
        .chain(more.map(|dir| Path::new(dir).to_owned()))
        .any(|dir| dir.join(name).exists())
}
