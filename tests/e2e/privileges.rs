//! The agent with exactly the capabilities that it says it needs, and with each of them missing.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, chown},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use rustix::thread::CapabilitySet;
use sidecar_agent::privileges::{NEEDS, Need, needed};
use sidecar_tests::{
    Agent, Client, Place, Server,
    lab::{Lab, service},
    programs, require_root,
};

/// Somebody else.
const USER: u32 = 1000;

/// `setpriv`, with a bounding set: what root has after the next exec.
fn bounded(capabilities: &[&str]) -> Vec<String> {
    let add = |name: &&str| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase());
    let added: String = capabilities.iter().map(add).collect();
    let words = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all"];
    let words = words.map(str::to_owned).into_iter();
    words
        .chain([format!("--bounding-set=-all{added}"), "--".into()])
        .collect()
}

fn all() -> Vec<&'static str> {
    NEEDS.iter().map(|need| need.name).collect()
}

fn all_but(missing: &Need) -> Vec<&'static str> {
    let others = NEEDS.iter().filter(|need| need.name != missing.name);
    others.map(|need| need.name).collect()
}

/// A workload that needs one of the capabilities in particular.
pub struct Case {
    pub capability: &'static str,
    pub prepare: fn(&mut Lab) -> anyhow::Result<()>,
    /// Whether what the capability is for can be done.
    pub works: fn(&Lab) -> anyhow::Result<bool>,
    /// What the workload's problem is called without it, beside the capability.
    named: &'static str,
}

pub const CASES: [Case; 3] = [
    Case {
        capability: "CAP_NET_ADMIN",
        prepare: with_proxy,
        works: |lab| reaches(lab.inside(), "10.96.0.1:9080", "proxy"),
        named: "setting up the routing of",
    },
    Case {
        capability: "CAP_SYS_PTRACE",
        prepare: with_listener_of_another_user,
        works: |lab| {
            let address = SocketAddr::from((lab.workload().v4, 9080));
            reaches(lab.outside(), &address.to_string(), "application")
        },
        named: "looking for listening sockets of process",
    },
    Case {
        capability: "CAP_DAC_OVERRIDE",
        prepare: with_unix_socket_in_directory_of_another_user,
        works: |lab| {
            let path = lab.in_root("/run/details.sock");
            let banner = Client::unix(&path).place(lab.inside()).banner()?.banner;
            Ok(banner.is_some_and(|seen| seen.name == "details"))
        },
        named: "listen on unix socket /run/details.sock",
    },
];

fn reaches(place: Place<'_>, address: &str, name: &str) -> anyhow::Result<bool> {
    let outcome = Client::tcp(address.parse()?).place(place).banner()?;
    Ok(outcome.banner.is_some_and(|seen| seen.name == name))
}

/// An IPv6 workload whose proxy runs.
fn with_proxy(lab: &mut Lab) -> anyhow::Result<()> {
    let proxy = Server::tcp("0.0.0.0:15001".parse()?)
        .place(lab.inside().user(1337, 1337))
        .name("proxy")
        .start()?;
    lab.keep(proxy);
    lab.write_workload(&[
        "capture.sidecar-agent.io/proxy: external",
        "capture.sidecar-agent.io/dual-stack: 'true'",
    ])
}

/// An application that listened before, whose user is not the agent's.
fn with_listener_of_another_user(lab: &mut Lab) -> anyhow::Result<()> {
    let application = Server::tcp("127.0.0.1:8080".parse()?)
        .place(lab.inside().user(USER, USER))
        .name("application")
        .start()?;
    lab.keep(application);
    lab.write(
        "sidecar.yaml",
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {name: in, namespace: prod-us1}\n\
         spec:\n  ingress:\n  - port: {number: 9080, protocol: TCP, name: in}\n    \
         defaultEndpoint: 127.0.0.1:8080\n",
    )?;
    lab.write_workload(&[])
}

fn with_unix_socket_in_directory_of_another_user(lab: &mut Lab) -> anyhow::Result<()> {
    lab.serve("10.96.0.1:9080", "details")?;
    lab.write(
        "services.yaml",
        &service("prod-us1", "details", "10.96.0.1".parse()?, 9080),
    )?;
    lab.write(
        "sidecar.yaml",
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {name: out, namespace: prod-us1}\n\
         spec:\n  egress:\n  - port: {number: 0, protocol: TCP, name: by-path}\n    \
         bind: unix:///run/details.sock\n    \
         hosts: ['prod-us1/details.prod-us1.svc.cluster.local']\n",
    )?;
    let run = lab.in_root("/run");
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755))?;
    chown(&run, Some(USER), Some(USER))?;
    lab.write_workload(&[])
}

/// A lab whose agent has these capabilities.
fn started(case: &Case, capabilities: &[&str]) -> anyhow::Result<Lab> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.write_mesh("{}\n")?;
    (case.prepare)(&mut lab)?;
    lab.start_agent_with(|agent| agent.under(bounded(capabilities)))?;
    Ok(lab)
}

/// What a line of a `/proc/PID/status` says in hexadecimal digits.
fn of_status(agent: &Agent, field: &str) -> anyhow::Result<u64> {
    let pid = agent.pid().context("it does not run")?;
    let mut values = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let digits = line.with_context(|| format!("no {field}"))?;
        values.push(u64::from_str_radix(digits.trim_matches([':', '\t']), 16)?);
    }
    values.dedup();
    ensure!(values.len() == 1, "threads differ in {field}: {values:?}");
    Ok(values[0])
}

fn check_privileges(agent: &Agent) -> anyhow::Result<()> {
    for (field, expected) in [
        ("CapEff", needed().bits()),
        ("CapPrm", needed().bits()),
        ("CapBnd", needed().bits()),
        ("CapInh", 0),
        ("CapAmb", 0),
        ("NoNewPrivs", 1),
    ] {
        let found = of_status(agent, field)?;
        ensure!(
            found == expected,
            "{field} is {:?}",
            CapabilitySet::from_bits_retain(found)
        );
    }
    Ok(())
}

#[test]
fn exactly_these_capabilities_are_enough() -> anyhow::Result<()> {
    require_root!();
    for case in &CASES {
        let lab = started(case, &all())?;
        lab.wait_captured()?;
        ensure!((case.works)(&lab)?, "{} is not enough", case.capability);
        check_privileges(lab.agent()?)?;
    }
    Ok(())
}

#[test]
fn what_root_has_beyond_that_is_given_up() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    with_proxy(&mut lab)?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;
    check_privileges(lab.agent()?)
}

#[test]
fn without_one_of_them_what_fails_is_named() -> anyhow::Result<()> {
    require_root!();
    let mut shown = vec!["CAP_SYS_ADMIN"];
    for case in &CASES {
        let need = NEEDS.iter().find(|need| need.name == case.capability);
        let lab = started(case, &all_but(need.context("no such capability")?))?;
        let status = lab.agent()?.wait_until("the problem", |status| {
            status["workloads"][0]["problem"].is_string()
        })?;
        let problem = status["workloads"][0]["problem"]
            .as_str()
            .unwrap_or_default();
        for words in [case.named, case.capability] {
            ensure!(problem.contains(words), "{words:?} is not in {problem:?}");
        }
        ensure!(!(case.works)(&lab)?, "{} is not needed", case.capability);
        let log = lab.agent()?.wait_log("SCD0402")?;
        ensure!(log.contains(case.capability), "{log}");
        shown.push(case.capability);
    }
    let mut needed = all();
    needed.sort_unstable();
    shown.sort_unstable();
    ensure!(shown == needed, "not all are shown: {shown:?}");
    Ok(())
}

/// The two capabilities for BPF are not enough instead: network namespaces cannot be entered.
#[test]
fn without_cap_sys_admin_it_does_not_start() -> anyhow::Result<()> {
    require_root!();
    let sys_admin = NEEDS.iter().find(|need| need.name == "CAP_SYS_ADMIN");
    let others = all_but(sys_admin.context("no such capability")?);
    for more in [&[][..], &["CAP_BPF", "CAP_PERFMON"]] {
        let capabilities = [&others, more].concat();
        let error = started(&CASES[0], &capabilities).err();
        let error = format!("{:#}", error.context("it started")?);
        for words in ["missing[SCD0401]", "CAP_SYS_ADMIN"] {
            ensure!(error.contains(words), "{words:?} is not in {error}");
        }
        let words = bounded(&capabilities);
        let doctor = Command::new(&words[0])
            .args(&words[1..])
            .arg(programs::agent()?)
            .args(["doctor", "-o", "json"])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&doctor.stdout);
        ensure!(said.contains("making mount and network namespaces: Operation not permitted"));
    }
    Ok(())
}
