//! A node that runs out of something.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Signal,
};
use sidecar_tests::{
    Cgroup, DEADLINE, Place,
    cleanup::{self, Cleanup},
    command::output,
    lab::{Lab, WORKLOAD},
    poll::poll_result,
    require_root, skip,
    tempdir::TempDir,
};

use super::{
    PATIENCE, REFUSED, SECRET, entries, errno, held, in_force, remove, wait_captured, wait_held,
    workloads,
};
use crate::fixture::registry_only;

/// Sets the limit of descriptors of the running agent.
fn limit_descriptors(lab: &Lab, limit: usize) -> anyhow::Result<()> {
    let pid = lab.agent()?.pid().context("no agent")?.to_string();
    // The hard one stays.
    let limit = format!("--nofile={limit}:");
    output(Command::new("prlimit").args(["--pid", &pid, &limit]))?;
    Ok(())
}

#[test]
fn without_descriptors_workloads_wait_and_nobody_is_disturbed() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent_with(|agent| agent.under(["prlimit", "--nofile=256:4096"]))?;
    lab.wait_captured()?;
    let pid = lab.agent()?.pid().context("no agent")?;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let limit = line.and_then(|line| line.split_whitespace().nth(3));
    ensure!(limit == Some("4096"), "it was not raised: {line:?}");

    let cgroups = (0..16).map(|_| Cgroup::new("crowd"));
    let cgroups = cgroups.collect::<anyhow::Result<Vec<_>>>()?;
    let netns = &lab.workload().netns;
    let file = |count: usize| {
        let crowd = cgroups.iter().take(count).enumerate();
        entries(crowd.map(|(number, cgroup)| (number, cgroup, netns)))
    };
    let before = held(&lab)?;
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    // To attach takes some two score for a moment; every workload keeps two.
    limit_descriptors(&lab, open + 64)?;
    lab.write_only("crowd.yaml", &file(cgroups.len())?)?;
    poll_result(DEADLINE, "a problem", || {
        ensure!(workloads(&lab.agent()?.status()?).any(|of| of["problem"].is_string()));
        Ok(())
    })?;
    // Those that are tried again hold up nothing, each time all of them are.
    for _ in 0..20 {
        let asked = Instant::now();
        let status = lab.agent()?.status()?;
        let took = asked.elapsed();
        ensure!(took < Duration::from_secs(2), "the status took {took:?}");
        let captured = workloads(&status).filter(|of| of["state"] == "captured");
        ensure!(captured.count() > 1, "there was room for some: {status}");
        let problems = workloads(&status).filter(|of| of["problem"].is_string());
        for of in problems {
            let (problem, cgroup) = (of["problem"].as_str(), of["cgroup"].as_str());
            let said = [
                "attaching to cgroup ",
                cgroup.context("no cgroup")?,
                &format!("RLIMIT_NOFILE {}", open + 64),
                "LimitNOFILE=",
                "tried again",
            ];
            let says = |what: &&str| problem.is_some_and(|problem| problem.contains(what));
            ensure!(said.iter().all(says), "{of}");
        }
    }
    in_force(&lab)?;
    // Some leave: the others are captured, without a restart.
    lab.write_only("crowd.yaml", &file(2)?)?;
    wait_captured(&lab, 3)?;
    let secret = errno(Place::here().netns(netns).cgroup(&cgroups[1]), SECRET)?;
    ensure!(secret == REFUSED, "{secret:?}");
    in_force(&lab)?;
    remove(&lab, "crowd.yaml")?;
    wait_captured(&lab, 1)?;
    limit_descriptors(&lab, 1024)?;
    wait_held(&lab, &before)
}

/// Whether the agent watches by inotify.
fn has_inotify(lab: &Lab) -> anyhow::Result<bool> {
    let pid = lab.agent()?.pid().context("no agent")?;
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    // One that is closed meanwhile is none.
    let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    Ok(links
        .into_iter()
        .any(|what| what == Path::new("anon_inode:inotify")))
}

#[test]
fn a_watch_without_descriptors_polls_until_there_are_some() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    lab.wait_captured()?;
    ensure!(has_inotify(&lab)?, "it polls from the outset");
    // None at all, so that it cannot watch anew.
    limit_descriptors(&lab, 8)?;
    fs::create_dir(lab.config_dir().join("new"))?;
    let said = lab.agent()?.wait_log("inotify is not available")?;
    ensure!(said.contains("RLIMIT_NOFILE 8)"), "{said}");
    ensure!(!has_inotify(&lab)?, "it is not given up");
    in_force(&lab)?;

    limit_descriptors(&lab, 1024)?;
    poll_result(PATIENCE, "inotify", || {
        ensure!(has_inotify(&lab)?);
        let status = lab.agent()?.status()?;
        let mut found = status["diagnostics"].as_array().into_iter().flatten();
        ensure!(!found.any(|of| of["code"] == "SCA0011"), "{status}");
        Ok(())
    })?;
    let generation = || {
        let status = lab.agent()?.status()?;
        status["generation"].as_u64().context("no generation")
    };
    let before = generation()?;
    lab.write_only("new/more.yaml", "")?;
    poll_result(DEADLINE, "a change to be seen", || {
        ensure!(generation()? > before);
        Ok(())
    })?;
    ensure!(has_inotify(&lab)?, "lost again");
    in_force(&lab)
}

/// The agent's own words, while it has no descriptors but the one that is kept for this.
#[test]
fn whoever_asks_is_answered_without_descriptors() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    lab.wait_captured()?;
    let pid = lab.agent()?.pid().context("no agent")?;
    let numbers = || -> anyhow::Result<BTreeSet<usize>> {
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        Ok(open.filter_map(number).collect())
    };
    // No further ones, and those between are taken by clients that say nothing.
    let open = numbers()?;
    let limit = open.last().context("none is open")? + 1;
    limit_descriptors(&lab, limit)?;
    let socket = lab.agent()?.run_dir().join("admin.sock");
    let silent = (open.len()..limit).map(|_| UnixStream::connect(&socket));
    let _silent = silent.collect::<io::Result<Vec<_>>>()?;
    poll_result(DEADLINE, "all to be in use", || {
        ensure!(numbers()?.len() >= limit);
        Ok(())
    })?;
    for _ in 0..5 {
        let status = lab.agent()?.status()?;
        ensure!(status["workloads"][0]["state"] == "captured", "{status}");
    }
    limit_descriptors(&lab, 1024)
}

#[test]
fn what_cannot_be_read_for_want_of_descriptors_is_read_when_it_can_be() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.write_only("more.yaml", "# One.\n")?;
    lab.start_agent()?;
    lab.wait_captured()?;
    limit_descriptors(&lab, 8)?;
    // In place, so that nothing has to be watched anew; and nothing changes after that.
    fs::write(lab.config_dir().join("more.yaml"), "# Another.\n")?;
    let said = lab.agent()?.wait_log("cannot read")?;
    ensure!(said.contains("RLIMIT_NOFILE 8)"), "{said}");
    in_force(&lab)?;
    limit_descriptors(&lab, 1024)?;
    poll_result(DEADLINE, "all to be read", || {
        let status = lab.agent()?.status()?;
        let found = status["diagnostics"].as_array();
        ensure!(found.is_some_and(Vec::is_empty), "{found:?}");
        ensure!(status["generation"].as_u64() > Some(2), "{status}");
        Ok(())
    })?;
    ensure!(has_inotify(&lab)?, "it was given up");
    in_force(&lab)
}

/// A file system with room for a few pages.
struct Tiny {
    dir: TempDir,
    _cleanup: Cleanup,
}

impl Tiny {
    fn mount() -> anyhow::Result<Self> {
        let dir = TempDir::new("sidecar-tiny-")?;
        mount(
            "tiny",
            dir.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=16k"),
        )?;
        let path = dir.path().to_owned();
        Ok(Self {
            dir,
            _cleanup: cleanup::on_drop(move || {
                let _ = unmount(&path, UnmountFlags::DETACH);
            }),
        })
    }

    /// Leaves no room. Returns what has to go for there to be some.
    fn fill(&self) -> anyhow::Result<PathBuf> {
        let path = self.dir.path().join("filler");
        let error = fs::write(&path, vec![0; 64 * 1024]);
        ensure!(error.is_err(), "there is room for more");
        Ok(path)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_leaves_capture_as_it_was() -> anyhow::Result<()> {
    require_root!();
    let tiny = Tiny::mount()?;
    let mut lab = registry_only()?;
    let state = tiny.dir.path().join("state");
    lab.start_agent_with(|agent| agent.args(["--state-dir".as_ref(), state.as_os_str()]))?;
    lab.wait_captured()?;
    let capture = |to: &str| lab.agent()?.cli(&["capture", to, WORKLOAD]);
    let filler = tiny.fill()?;
    let said = capture("off")?;
    ensure!(!said.status.success(), "it was written nowhere");
    let error = String::from_utf8_lossy(&said.stderr);
    ensure!(
        error.contains("capture.json") && error.contains("No space left on device"),
        "{error}"
    );
    in_force(&lab)?;
    let status = lab.agent()?.status()?;
    ensure!(status["workloads"][0]["state"] == "captured", "{status}");
    let left: Vec<_> = fs::read_dir(&state)?.flatten().collect();
    ensure!(left.is_empty(), "{left:?}");

    fs::remove_file(&filler)?;
    ensure!(capture("off")?.status.success());
    ensure!(errno(lab.inside(), SECRET)?.is_none(), "still captured");
    // What was said stays when the next cannot be.
    tiny.fill()?;
    ensure!(!capture("on")?.status.success());
    ensure!(errno(lab.inside(), SECRET)?.is_none(), "captured again");
    let text = fs::read_to_string(state.join("capture.json"))?;
    ensure!(text.contains("false"), "{text}");
    Ok(())
}

/// A cgroup of version 1 or 2 for an agent's memory. Removed when dropped.
struct Memory {
    path: PathBuf,
    limit: &'static str,
    usage: &'static str,
    _cleanup: Cleanup,
}

impl Memory {
    fn new() -> anyhow::Result<Option<Self>> {
        let root = Cgroup::root()?;
        let one = Path::new("/sys/fs/cgroup/memory");
        let (at, limit, usage) = if one.join("memory.limit_in_bytes").exists() {
            (one, "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else if fs::read_to_string(root.join("cgroup.subtree_control"))?.contains("memory") {
            (&*root, "memory.max", "memory.current")
        } else {
            return Ok(None);
        };
        let path = at.join(format!("sct-memory-{}", std::process::id()));
        fs::create_dir(&path)?;
        let dir = path.clone();
        Ok(Some(Self {
            path,
            limit,
            usage,
            _cleanup: cleanup::on_drop(move || {
                let _ = poll_result(DEADLINE, "the cgroup to be empty", || {
                    Ok(fs::remove_dir(&dir)?)
                });
            }),
        }))
    }

    fn usage(&self) -> anyhow::Result<u64> {
        Ok(fs::read_to_string(self.path.join(self.usage))?
            .trim()
            .parse()?)
    }

    fn set(&self, limit: &str) -> anyhow::Result<()> {
        let file = self.path.join(self.limit);
        fs::write(&file, limit).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Whatever becomes of the agent, nothing is decided otherwise; the next one captures all.
#[test]
fn without_memory_nothing_is_decided_otherwise() -> anyhow::Result<()> {
    require_root!();
    let Some(memory) = Memory::new()? else {
        skip!("no memory controller");
    };
    let mut lab = registry_only()?;
    let join = r#"echo $$ > "$0" && exec "$@""#;
    let procs = memory.path.join("cgroup.procs");
    lab.start_agent_with(|agent| {
        agent.under([
            "sh".as_ref(),
            "-c".as_ref(),
            join.as_ref(),
            procs.as_os_str(),
        ])
    })?;
    lab.wait_captured()?;
    let cgroups = (0..40).map(|_| Cgroup::new("crowd"));
    let cgroups = cgroups.collect::<anyhow::Result<Vec<_>>>()?;
    let netns = &lab.workload().netns;
    let crowd = cgroups.iter().enumerate();
    let file = entries(crowd.map(|(number, cgroup)| (number, cgroup, netns)))?;
    let usage = memory.usage()?;
    let mut limit = usage + 256 * 1024;
    // What the kernel can do without goes first; below that it refuses.
    while memory.set(&limit.to_string()).is_err() {
        limit += 256 * 1024;
    }
    println!("{usage} bytes are used, {limit} are the limit");
    lab.write_only("crowd.yaml", &file)?;
    let seen = poll_result(PATIENCE, "all captured, a problem, or its end", || {
        in_force(&lab)?;
        let Ok(status) = lab.agent()?.status() else {
            return Ok("it does not answer".to_owned());
        };
        let captured = workloads(&status).filter(|of| of["state"] == "captured");
        let captured = captured.count();
        let problem = workloads(&status).find_map(|of| of["problem"].as_str());
        ensure!(
            captured == cgroups.len() + 1 || problem.is_some(),
            "{captured} are captured"
        );
        Ok(format!("{captured} are captured, {problem:?}"))
    })?;
    println!("with a limit: {seen}");
    in_force(&lab)?;
    memory.set("-1").or_else(|_| memory.set("max"))?;
    if let Err(error) = lab.agent()?.wait_until("its answer", |_| true) {
        // It was killed by the kernel, as by a crash, if it does not answer now.
        let status = lab.agent_mut()?.stop()?;
        ensure!(status.signal() == Some(Signal::KILL.as_raw()), "{error:#}");
        lab.agent_mut()?.start()?;
    }
    wait_captured(&lab, cgroups.len() + 1)?;
    in_force(&lab)
}
