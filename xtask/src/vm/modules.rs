//! Modules of a kernel: which are wanted, and in which order they load.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::cargo;

/// What the tests use of the kernel that may be a module; `*` is any rest. A kernel need not have
/// each: names changed, and what is built in is no module.
pub const WANTED: &[&str] = &[
    // What others ask for by the name of an algorithm.
    "crc32c_*",
    "hmac",
    "sha256*",
    // Links.
    "veth",
    "dummy",
    "macvlan",
    "ipvlan",
    "bridge",
    "tun",
    // Programs at an interface.
    "sch_ingress",
    "sch_fq",
    "sch_fq_codel",
    "cls_bpf",
    "act_bpf",
    // Asking for sockets.
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "netlink_diag",
    "mptcp_diag",
    // iptables and nft, which load what they need themselves where there is a modprobe.
    "ip_tables",
    "iptable_*",
    "ip6_tables",
    "ip6table_*",
    "ipt_*",
    "ip6t_*",
    "xt_*",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_*",
    "nfnetlink",
    // Other protocols that applications may speak.
    "tls",
    "sctp",
    "overlay",
];

/// Puts the modules that are wanted, and those that they need, into `out`, named in the order in
/// which they load.
///
/// `dir` is that of a kernel's release, as `/lib/modules/RELEASE`.
///
/// # Errors
/// When it has none, or depmod or xz cannot be run.
pub fn copy(dir: &Path, out: &Path) -> anyhow::Result<()> {
    let file = dir.join("modules.dep");
    if !file.exists() {
        depmod(dir)?;
    }
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let order = order(&text, WANTED);
    if order.is_empty() {
        bail!("{} has none of the modules that are wanted", dir.display());
    }
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    for (number, path) in order.iter().enumerate() {
        let to = out.join(format!("{number:03}-{}.ko", name(path)));
        unpack(&dir.join(path), &to)?;
    }
    Ok(())
}

/// Packages come without `modules.dep`: installing them makes it.
fn depmod(dir: &Path) -> anyhow::Result<()> {
    let no_base = || format!("{} is not as /lib/modules/RELEASE", dir.display());
    let release = dir.file_name().with_context(no_base)?;
    let base = dir.ancestors().nth(3).with_context(no_base)?;
    // A user's PATH may lack it.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut depmod = Command::new("depmod");
    depmod.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    cargo::run(depmod.arg("-b").arg(base).arg(release))
}

fn unpack(from: &Path, to: &Path) -> anyhow::Result<()> {
    let program = match from.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => {
            return fs::copy(from, to)
                .map(|_| ())
                .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()));
        }
    };
    let out = File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut command = Command::new(program);
    command.arg("-dc").arg(from);
    cargo::run(command.stdin(Stdio::null()).stdout(out))
}

/// The name of the module in a file, as lsmod has it.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// The files of the modules that are wanted and of all that they need, each after what it needs.
///
/// `text` is that of `modules.dep`: `FILE: FILE...`, a line for each module with all that it needs,
/// also indirectly, the last of which must be loaded first.
fn order<'a>(text: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let modules: BTreeMap<&str, Vec<&str>> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (path, needs.split_whitespace().collect()))
        .collect();
    let is_wanted = |path: &str| {
        let name = name(path);
        wanted
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == *pattern,
            })
    };
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    for (path, needs) in modules.iter().filter(|(path, _)| is_wanted(path)) {
        for path in needs.iter().rev().chain([path]) {
            if seen.insert(*path) {
                order.push(*path);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_module_comes_after_what_it_needs() {
        let text = "kernel/net/a/xt_nat.ko.xz: kernel/nf_nat.ko kernel/conntrack.ko kernel/defrag.ko\n\
                    kernel/nf_nat.ko: kernel/conntrack.ko kernel/defrag.ko\n\
                    kernel/conntrack.ko: kernel/defrag.ko\n\
                    kernel/defrag.ko:\n\
                    kernel/drivers/net/cls-bpf.ko:\n\
                    kernel/sound.ko: kernel/soundcore.ko\n";
        assert_eq!(
            order(text, &["cls_bpf", "xt_*", "not_there"]),
            [
                "kernel/drivers/net/cls-bpf.ko",
                "kernel/defrag.ko",
                "kernel/conntrack.ko",
                "kernel/nf_nat.ko",
                "kernel/net/a/xt_nat.ko.xz",
            ]
        );
        assert_eq!(name("kernel/drivers/net/cls-bpf.ko.xz"), "cls_bpf");
    }
}
