//! Many workloads at once, and a node that runs out of something.

mod clock;
mod starved;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::io::Errno;
use serde_json::Value;
use sidecar_tests::{
    Cgroup, Client, DEADLINE, Namespace, Place,
    lab::{Lab, WORKLOAD},
    poll::poll_result,
    require_root,
};

use crate::fixture::{registry_only, workload_entry};

/// What a `REGISTRY_ONLY` workload does not reach.
const SECRET: &str = "10.96.0.4:9080";
/// Workloads at once.
const CROWD: usize = 250;
/// For all of them.
const PATIENCE: Duration = Duration::from_mins(5);

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
    // As the kernel has it: `status` tells what the agent thinks that it wrote.
    let dump = agent.cli(&["dump", "-o", "json"])?;
    ensure!(
        dump.status.success(),
        "{}",
        String::from_utf8_lossy(&dump.stderr)
    );
    let dump: BTreeMap<String, Vec<Value>> = serde_json::from_slice(&dump.stdout)?;
    for (what, rows) in dump {
        // Counts are kept, and the kernel keeps the storage of cgroups that are there.
        if !matches!(&*what, "counters" | "identities") {
            held.insert(format!("rows of {what}"), u64::try_from(rows.len())?);
        }
    }
    ensure!(held.contains_key("rows of local_addrs"), "{held:?}");
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
        // Less is none of its business: a watch that found no descriptor polls from then on.
        let was = |what: &String| before.get(what).copied().unwrap_or_default();
        let has_more = now.iter().any(|(what, count)| *count > was(what));
        ensure!(!has_more, "{now:?}, before {before:?}");
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

/// How many workloads are captured, and nothing is wrong with them.
fn captured(status: &Value) -> usize {
    workloads(status)
        .filter(|of| of["state"] == "captured" && of["problem"].is_null())
        .count()
}

/// Waits until so many workloads are there, all of them captured.
fn wait_captured(lab: &Lab, count: usize) -> anyhow::Result<Value> {
    poll_result(PATIENCE, "all to be captured", || {
        let status = lab.agent()?.status()?;
        let captured = captured(&status);
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
    poll_result(PATIENCE, "an answer before all are captured", || {
        let count = captured(&lab.agent()?.status()?);
        ensure!(count > 1, "{count} are captured");
        ensure!(count <= CROWD, "all {count} are captured");
        Ok(())
    })?;
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
