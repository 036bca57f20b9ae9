//! Many workloads at once, and a node that runs out of something.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Signal,
};
use serde_json::Value;
use sidecar_tests::{
    Cgroup, Client, DEADLINE, Namespace, Place,
    cleanup::{self, Cleanup},
    command::output,
    lab::{Lab, WORKLOAD},
    poll::poll_result,
    require_root, skip,
    tempdir::TempDir,
};

use crate::fixture::{registry_only, workload_entry};

/// What a `REGISTRY_ONLY` workload does not reach.
const SECRET: &str = "10.96.0.4:9080";
/// Workloads at once.
const CROWD: usize = 250;
/// For all of them.
const PATIENCE: Duration = Duration::from_mins(2);

fn errno(place: Place<'_>, address: &str) -> anyhow::Result<Option<i32>> {
    let client = Client::tcp(address.parse::<SocketAddr>()?).place(place);
    Ok(client.connect()?.errno)
}

/// What [`errno`] tells of a connection that is refused.
const REFUSED: Option<i32> = Some(Errno::CONNREFUSED.raw_os_error());

/// The lab's workload is decided for as ever.
fn in_force(lab: &Lab) -> anyhow::Result<()> {
    let details = errno(lab.inside(), "10.96.0.1:9080")?;
    ensure!(details.is_none(), "details: {details:?}");
    let secret = errno(lab.inside(), SECRET)?;
    ensure!(secret == REFUSED, "secret: {secret:?}");
    Ok(())
}

/// What the agent and the kernel hold: descriptors by kind, entries of maps, pins.
fn held(lab: &Lab) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut held = BTreeMap::new();
    let agent = lab.agent()?;
    let pid = agent.pid().context("no agent")?;
    let status = agent.status()?;
    for map in status["maps"].as_array().into_iter().flatten() {
        if let (Some(name), Some(entries)) = (map["map"].as_str(), map["entries"].as_u64()) {
            held.insert(format!("entries of {name}"), entries);
        }
    }
    ensure!(!held.is_empty(), "{status}");
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that is closed meanwhile.
        if let Ok(what) = fs::read_link(entry?.path()) {
            let what = what.display().to_string();
            let kind = match what.rsplit_once(['[', '/']) {
                Some((kind, _)) => kind,
                None => &what,
            };
            *held.entry(format!("descriptors of {kind}")).or_default() += 1;
        }
    }
    held.insert("pins".into(), files(&agent.bpffs())?);
    Ok(held)
}

fn files(dir: &Path) -> anyhow::Result<u64> {
    let mut found = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        found += if path.is_dir() { files(&path)? } else { 1 };
    }
    Ok(found)
}

/// Waits until nothing more is held than before.
fn wait_held(lab: &Lab, before: &BTreeMap<String, u64>) -> anyhow::Result<()> {
    poll_result(PATIENCE, "nothing to be left", || {
        let now = held(lab)?;
        ensure!(now == *before, "{now:?}, before {before:?}");
        Ok(())
    })
}

/// Memory of the agent that is resident, in KiB.
fn resident(lab: &Lab) -> anyhow::Result<u64> {
    let pid = lab.agent()?.pid().context("no agent")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("no VmRSS")?.parse()?)
}

/// A file of resources with workloads in it.
fn entries<'a>(
    places: impl Iterator<Item = (usize, &'a Cgroup, &'a Namespace)>,
) -> anyhow::Result<String> {
    let mut text = String::new();
    for (number, cgroup, netns) in places {
        let entry = workload_entry(
            &format!("crowd-{number}"),
            &cgroup.below_root()?,
            &netns.path().display().to_string(),
        );
        let address = format!("10.78.{}.{}", number / 200, number % 200 + 1);
        text += &entry.replace("10.77.0.99", &address);
        text += "---\n";
    }
    Ok(text)
}

fn workloads(status: &Value) -> impl Iterator<Item = &Value> {
    status["workloads"].as_array().into_iter().flatten()
}

/// Waits until so many workloads are there, all of them captured.
fn wait_captured(lab: &Lab, count: usize) -> anyhow::Result<Value> {
    poll_result(PATIENCE, "all to be captured", || {
        let status = lab.agent()?.status()?;
        let captured = workloads(&status)
            .filter(|of| of["state"] == "captured" && of["problem"].is_null())
            .count();
        ensure!(
            captured == count && workloads(&status).count() == count,
            "{captured} of {count} are: {}",
            workloads(&status)
                .find_map(|of| of["problem"].as_str())
                .unwrap_or_default()
        );
        Ok(status)
    })
}

fn remove(lab: &Lab, name: &str) -> anyhow::Result<()> {
    let path = lab.config_dir().join(name);
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// What `work` makes of every number below `count`, by a few threads.
fn in_parallel<T: Send>(
    count: usize,
    work: impl Fn(usize) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    const THREADS: usize = 8;
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|first| {
                scope.spawn(move || {
                    let numbers = (first..count).step_by(THREADS);
                    numbers.map(work).collect::<anyhow::Result<Vec<T>>>()
                })
            })
            .collect();
        let mut made = Vec::new();
        for thread in threads {
            made.extend(thread.join().ok().context("a thread panicked")??);
        }
        Ok(made)
    })
}

#[test]
fn two_hundred_and_fifty_come_at_once_and_leave_nothing() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let started = Instant::now();
    let crowd = in_parallel(CROWD, |_| {
        Ok((Cgroup::new("crowd")?, Namespace::new("crowd")?))
    })?;
    let file = entries(
        crowd
            .iter()
            .enumerate()
            .map(|(number, (cgroup, netns))| (number, cgroup, netns)),
    )?;
    println!("making {CROWD} took {:?}", started.elapsed());
    let before = held(&lab)?;
    let started = Instant::now();
    lab.write_only("crowd.yaml", &file)?;
    wait_captured(&lab, CROWD + 1)?;
    println!("capturing took {:?}", started.elapsed());
    println!("meanwhile {:?}", held(&lab)?);

    let started = Instant::now();
    in_parallel(CROWD, |number| {
        let (cgroup, netns) = &crowd[number];
        let secret = errno(Place::here().netns(netns).cgroup(cgroup), SECRET)?;
        ensure!(secret == REFUSED, "{number}: {secret:?}");
        Ok(())
    })?;
    let status = lab.agent()?.status()?;
    for of in workloads(&status).filter(|of| of["workload"] != WORKLOAD) {
        let decisions = of["decisions"].as_array().into_iter().flatten();
        let counts: Vec<_> = decisions
            .filter(|of| of["reason"] == "registry-only")
            .filter_map(|of| of["count"].as_u64())
            .collect();
        ensure!(counts == [1], "{of}");
    }
    println!("connecting took {:?}", started.elapsed());
    in_force(&lab)?;

    let started = Instant::now();
    remove(&lab, "crowd.yaml")?;
    wait_captured(&lab, 1)?;
    wait_held(&lab, &before)?;
    println!(
        "leaving took {:?}, {} KiB are resident",
        started.elapsed(),
        resident(&lab)?
    );
    in_force(&lab)
}

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
    // To load a program takes some two dozen for a moment; every workload keeps two.
    limit_descriptors(&lab, open + 48)?;
    lab.write_only("crowd.yaml", &file(cgroups.len())?)?;
    // For want of a descriptor it may not answer for a while.
    let status = poll_result(PATIENCE, "a problem", || {
        let status = lab.agent()?.status()?;
        ensure!(workloads(&status).any(|of| of["problem"].is_string()));
        Ok(status)
    })?;
    let mut problems = workloads(&status).filter_map(|of| of["problem"].as_str());
    ensure!(
        problems.all(|problem| problem.contains("Too many open files")),
        "{status}"
    );
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

/// Waits for a pin, or not at all; not seeing it is no failure.
fn spin(until: Option<&Path>) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while let Some(path) = until
        && !path.exists()
        && Instant::now() < deadline
    {
        thread::yield_now();
    }
}

#[test]
fn what_is_removed_while_it_is_attached_leaves_nothing() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let before = held(&lab)?;
    let links = lab.agent()?.bpffs().join("sidecar-agent/set-1/workload-2");
    let moments = [
        None,
        Some(links.clone()),
        Some(links.join("sendmsg4")),
        Some(links.join("getsockopt")),
        Some(links.join("sk_lookup")),
    ];
    for round in 0..20 {
        let (cgroup, netns) = (Cgroup::new("brief")?, Namespace::new("brief")?);
        let one = [(round, &cgroup, &netns)];
        lab.write_only("brief.yaml", &entries(one.into_iter())?)?;
        spin(moments[round % moments.len()].as_deref());
        // The one first, or the other.
        if round / moments.len() % 2 == 0 {
            drop(netns);
            drop(cgroup);
        } else {
            drop(cgroup);
            drop(netns);
        }
        poll_result(DEADLINE, "its links to go", || {
            ensure!(!links.exists(), "they are pinned, round {round}");
            Ok(())
        })?;
    }
    in_force(&lab)?;
    remove(&lab, "brief.yaml")?;
    wait_captured(&lab, 1)?;
    wait_held(&lab, &before)
}
