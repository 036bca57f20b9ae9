//! `doctor`, on a node where something is in the way, and on one where nothing is.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sidecar_agent::dataplane::socket_offsets;
use sidecar_tests::{
    Bpffs, Cgroup, Namespace, Place, Server,
    command::output_with_input,
    foreign::{Flags, Foreign, Hook},
    programs, require_root, skip,
    skip::kernel_has,
};

use crate::fixture::{registry_only, workload_entry};

/// What `doctor` says.
struct Said {
    exit_code: Option<i32>,
    report: Value,
}

impl Said {
    fn of(output: &Output) -> anyhow::Result<Self> {
        let report = serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "no JSON; it said {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        Ok(Self {
            exit_code: output.status.code(),
            report,
        })
    }

    fn checks(&self) -> impl Iterator<Item = &Value> {
        self.report["checks"].as_array().into_iter().flatten()
    }

    /// The one check that has this code and whose name ends so.
    fn finding(&self, code: &str, about: &str) -> anyhow::Result<&Value> {
        let is_it = |check: &&Value| {
            check["code"] == code
                && check["check"]
                    .as_str()
                    .is_some_and(|name| name.ends_with(about))
        };
        let found = self.checks().find(is_it);
        found.with_context(|| format!("no {code} about {about}: {:#}", self.report))
    }

    fn has(&self, code: &str) -> bool {
        self.checks().any(|check| check["code"] == code)
    }
}

/// A command that runs `doctor` on a BPF file system of the test's.
fn doctor(bpffs: &Path, config: Option<&Path>) -> anyhow::Result<Command> {
    let mut command = Command::new(programs::agent()?);
    command
        .args(["doctor", "-o", "json", "--bpffs"])
        .arg(bpffs)
        .stdin(Stdio::null());
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    Ok(command)
}

/// A workload, with a process in its cgroup.
struct Node {
    config: tempfile::TempDir,
    bpffs: Bpffs,
    _server: Server,
    cgroup: Cgroup,
    parent: Cgroup,
    netns: Namespace,
}

impl Node {
    fn new() -> anyhow::Result<Self> {
        let parent = Cgroup::new("parent")?;
        let cgroup = parent.child("workload")?;
        let netns = Namespace::new("doctor")?;
        let server = Server::tcp("127.0.0.1:8080".parse()?)
            .place(Place::here().netns(&netns).cgroup(&cgroup))
            .start()?;
        let config = tempfile::tempdir()?;
        let root = Cgroup::root()?;
        let path = cgroup.path().strip_prefix(root)?.display().to_string();
        let netns_path = netns.path().display().to_string();
        fs::write(
            config.path().join("workload.yaml"),
            workload_entry("one", &path, &netns_path),
        )?;
        Ok(Self {
            config,
            bpffs: Bpffs::temporary()?,
            _server: server,
            cgroup,
            parent,
            netns,
        })
    }

    fn look(&self) -> anyhow::Result<Said> {
        let mut command = doctor(self.bpffs.path(), Some(self.config.path()))?;
        Said::of(&command.output()?)
    }

    fn netns(&self) -> String {
        self.netns.path().display().to_string()
    }
}

#[test]
fn every_feature_is_tried_and_nothing_is_left() -> anyhow::Result<()> {
    require_root!();
    let node = Node::new()?;
    let before = fs::read_dir(node.bpffs.path())?.count();
    let said = node.look()?;
    ensure!(said.report["missing"] == 0, "{:#}", said.report);
    // The directory of the test's bpffs is open to all, at least.
    ensure!(said.exit_code == Some(3), "{:?}", said.exit_code);
    said.finding("SCD0303", "who may write to bpffs")?;
    let is_well = |name: &str| {
        said.checks()
            .any(|check| check["check"] == name && check["state"] == "ok")
    };
    for program in [
        "connect4",
        "connect6",
        "sock_ops",
        "getsockopt",
        "sk_lookup",
    ] {
        ensure!(is_well(&format!("program {program}")), "{program}");
    }
    for (feature, check) in [
        ("ingress_ifindex", "interface of arrival"),
        ("set_retval", "error of a refused call"),
    ] {
        ensure!(
            is_well(check) == kernel_has(feature),
            "{check}: {:#}",
            said.report
        );
    }
    ensure!(
        is_well("acceleration") == socket_offsets().is_ok(),
        "{:#}",
        said.report
    );
    for feature in [
        "BPF maps",
        "links to a cgroup",
        "link to a network namespace",
        "cgroup storage by id",
        "mapped array",
        "listening socket in a sockhash",
        "ring buffer",
        "network namespace of listeners",
        "pidfd_getfd",
        "cgroup of prod-us1/one",
        "netns of prod-us1/one",
        "CAP_SYS_ADMIN",
        &format!("hooks of cgroup {}", node.cgroup.path().display()),
        &format!("hooks of cgroup {}", node.parent.path().display()),
        &format!("sk_lookup of netns {}", node.netns()),
    ] {
        ensure!(is_well(feature), "{feature} is not well: {:#}", said.report);
    }
    ensure!(
        fs::read_dir(node.bpffs.path())?.count() == before,
        "pins are left"
    );
    let left = fs::read_dir(Cgroup::root()?)?.flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        // That of a doctor that runs at this moment is none.
        let pid = name.strip_prefix("sidecar-agent-doctor-");
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    });
    ensure!(!left, "a cgroup is left");
    Ok(())
}

#[test]
fn foreign_programs_are_found_and_those_that_keep_us_out_are_told_from_others() -> anyhow::Result<()>
{
    require_root!();
    let node = Node::new()?;
    for (cgroup, flags, code, state) in [
        (&node.cgroup, Flags::Multi, "SCD0603", "warning"),
        (&node.parent, Flags::Multi, "SCD0603", "warning"),
        (&node.parent, Flags::Override, "SCD0602", "warning"),
        (&node.cgroup, Flags::Override, "SCD0601", "missing"),
        (&node.cgroup, Flags::Exclusive, "SCD0601", "missing"),
        (&node.parent, Flags::Exclusive, "SCD0601", "missing"),
    ] {
        let path = cgroup.path();
        let _foreign = Foreign::on_cgroup(path, Hook::Connect4, flags)?;
        let said = node.look()?;
        let finding = said.finding(code, &path.display().to_string())?;
        ensure!(finding["state"] == state, "{finding}");
        let found = finding["found"].as_str().unwrap_or_default();
        let when = match code {
            "SCD0603" if path == node.parent.path() => ", after ours",
            "SCD0603" => ", before ours",
            _ => "",
        };
        ensure!(
            found.starts_with("connect4: program ")
                && found.ends_with(&format!(" (foreign){when}")),
            "{found}"
        );
        ensure!(
            said.exit_code == Some(if state == "missing" { 1 } else { 3 }),
            "{:?}",
            said.exit_code
        );
        // It is as it says.
        let another = Foreign::on_cgroup(node.cgroup.path(), Hook::Connect4, Flags::Multi);
        ensure!(another.is_ok() == (state == "warning"), "{another:?}");
    }
    let said = node.look()?;
    for code in ["SCD0601", "SCD0602", "SCD0603"] {
        ensure!(!said.has(code), "{code} stays: {:#}", said.report);
    }
    let _foreign = Foreign::on_netns(node.netns.path())?;
    node.look()?.finding("SCD0604", &node.netns())?;
    Ok(())
}

/// Each of them, also those that use few maps.
#[test]
fn the_programs_of_an_agent_that_runs_are_not_foreign() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let mut doctor = doctor(&lab.agent()?.bpffs(), Some(&lab.config_dir()))?;
    let said = Said::of(&doctor.output()?)?;
    let about = format!("hooks of cgroup {}", lab.cgroup().path().display());
    let check = said.checks().find(|check| check["check"] == *about);
    let check = check.with_context(|| format!("nothing about {about}: {:#}", said.report))?;
    ensure!(
        check["state"] == "ok" && check["found"] == "only this agent's programs",
        "{check}"
    );
    Ok(())
}

const ISTIOS: &str = "*nat\n:ISTIO_REDIRECT - [0:0]\n\
    -A OUTPUT -p tcp --dport 80 -j ISTIO_REDIRECT\n\
    -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
const NATIVE: &str = "table inet mesh { chain out { type nat hook output priority -100; \
    tcp dport 80 redirect to :15001; }; }\n";

#[test]
fn rules_that_redirect_are_found_in_every_variant() -> anyhow::Result<()> {
    require_root!();
    for (program, args, rules, expected) in [
        (
            "iptables-nft-restore",
            &[][..],
            ISTIOS,
            "REDIRECT --to-ports 15001",
        ),
        (
            "iptables-legacy-restore",
            &[],
            ISTIOS,
            "REDIRECT --to-ports 15001",
        ),
        (
            "ip6tables-restore",
            &[],
            ISTIOS,
            "ip6tables-save: -A OUTPUT -p tcp",
        ),
        ("nft", &["-f", "-"], NATIVE, "nft: inet mesh out: redirect"),
    ] {
        if !Path::new("/usr/sbin").join(program).exists() {
            skip!("{program}");
        }
        let node = Node::new()?;
        let netns = node.netns();
        ensure!(!node.look()?.has("SCD0701"), "found before there are any");
        let mut restore = Place::here().netns(&node.netns).command(program);
        output_with_input(restore.args(args), rules)?;
        let said = node.look()?;
        let finding = said.finding("SCD0701", &netns)?;
        let found = finding["found"].as_str().unwrap_or_default();
        ensure!(found.contains(expected), "{program}: {found}");
    }
    Ok(())
}

#[test]
fn cgroups_of_a_container_and_of_a_host_without_version_2_are_told() -> anyhow::Result<()> {
    require_root!();
    let node = Node::new()?;
    let command = doctor(node.bpffs.path(), Some(node.config.path()))?;
    let root = Cgroup::root()?;
    // Namespaces of their own: nobody else's mounts change.
    for (flag, before, code, about) in [
        ("--cgroup", "true", "SCD0203", "cgroup namespace"),
        ("--mount", "umount \"$0\"", "SCD0201", "cgroup layout"),
    ] {
        let script = format!("{before} && exec \"$@\"");
        let output = Command::new("unshare")
            .args([flag, "sh", "-c", &script])
            .arg(&root)
            .arg(command.get_program())
            .args(command.get_args())
            .output()?;
        let said = Said::of(&output)?;
        said.finding(code, about)?;
        ensure!((said.report["missing"] != 0) == (flag == "--mount"));
    }
    let said = node.look()?;
    ensure!(
        !said.has("SCD0201") && !said.has("SCD0203"),
        "{:#}",
        said.report
    );
    Ok(())
}

#[test]
fn workloads_that_are_elsewhere_are_found() -> anyhow::Result<()> {
    require_root!();
    let node = Node::new()?;
    let empty = Cgroup::new("empty")?;
    for (name, cgroup, netns) in [
        ("empty", &*empty.below_root()?, "/proc/self/ns/net"),
        ("gone", "sct-no-such-cgroup", "/run/netns/sct-no-such"),
    ] {
        let file = node.config.path().join(name).with_extension("yaml");
        fs::write(file, workload_entry(name, cgroup, netns))?;
    }
    let said = node.look()?;
    said.finding("SCD0205", "prod-us1/empty")?;
    said.finding("SCD0204", "prod-us1/gone")?;
    said.finding("SCD0206", "prod-us1/gone")?;
    Ok(())
}

#[test]
fn what_is_missing_is_told_by_doctor_and_run_refuses_to_start() -> anyhow::Result<()> {
    require_root!();
    let node = Node::new()?;
    // As nobody may do anything.
    let bounded = |command: &Command| {
        let mut bounded = Command::new("setpriv");
        bounded
            .args(["--bounding-set=-all", "--inh-caps=-all", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null());
        bounded
    };
    let command = doctor(node.bpffs.path(), None)?;
    let said = Said::of(&bounded(&command).output()?)?;
    ensure!(said.exit_code == Some(1), "{:?}", said.exit_code);
    said.finding("SCD0101", "namespaces to try in")?;
    said.finding("SCD0401", "CAP_SYS_ADMIN")?;
    for capability in ["CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"] {
        said.finding("SCD0402", capability)?;
    }
    let mut run = Command::new(programs::agent()?);
    run.args(["run", "--config"])
        .arg(node.config.path())
        .arg("--bpffs")
        .arg(node.bpffs.path())
        .arg("--run-dir")
        .arg(node.config.path().join("run"));
    let output = bounded(&run).output()?;
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    let error = String::from_utf8_lossy(&output.stderr);
    for words in ["missing[SCD0401]", "CAP_SYS_ADMIN", "lost:", "remedy:"] {
        ensure!(error.contains(words), "{words:?} is not in {error}");
    }
    // What is only a warning is not the reason.
    ensure!(!error.contains("missing[SCD0402]"), "{error}");
    Ok(())
}
