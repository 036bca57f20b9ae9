//! `explain --kernel`: what the kernel's maps and programs say of a connection.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Lines, Write as _},
    net::{Shutdown, SocketAddr},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use serde::Serialize;
use sidecar_common::{Endpoint, Path, Reason};

use crate::{
    compile::{Target, WorkloadPlan},
    dataplane::{
        Tap,
        attempt::{Attempt, Outcome},
        cgroup::{self, Cgroup},
        compare::{Followed, InForce},
        default_pin_dir,
        netns::Netns,
    },
    explain::{Explanation, SOMEBODY},
    observe::{
        admin,
        trace::{self, Filter, Line},
    },
};

/// How long the agent may take for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `explain --kernel`.
#[derive(Debug, clap::Args)]
pub struct KernelArgs {
    /// Also compare with the kernel (as root): whether the maps hold the plan that is wanted, and
    /// what the attached programs decide. For that they are given a real connection, of which no
    /// packet leaves; it counts in the counters. Exit code 1 if anything differs.
    #[arg(long, conflicts_with_all = ["from", "from_proxy", "udp", "interface"])]
    pub kernel: bool,
    /// Where bpffs is mounted.
    #[arg(
        long,
        env = "SIDECAR_AGENT_BPFFS",
        value_name = "DIR",
        default_value = super::inputs::BPFFS
    )]
    bpffs: PathBuf,
    /// The running agent's directory.
    #[arg(long, env = "SIDECAR_AGENT_RUN_DIR", value_name = "DIR", default_value = super::inputs::RUN_DIR)]
    run_dir: PathBuf,
}

/// What the kernel says.
#[derive(Serialize)]
pub struct Answer {
    /// Nothing differs.
    pub agrees: bool,
    /// What decides.
    #[serde(flatten)]
    pub followed: Followed,
    /// What the programs decided; absent: nothing, the connection passed them by.
    pub decided: Option<Decided>,
    /// Where the connection led; absent: it was refused, or could not be made.
    pub target: Option<SocketAddr>,
    /// Why connect(2) failed.
    pub error: Option<String>,
    /// In what maps and decision differ from what is wanted.
    pub differences: Vec<String>,
}

/// A decision, by name.
#[derive(Serialize)]
pub struct Decided {
    /// How it travels.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// Asks the kernel about the connection that was explained.
pub fn ask(
    args: &KernelArgs,
    workload: &WorkloadPlan,
    explained: &Explanation,
    destination: SocketAddr,
    ids: (Option<u32>, Option<u32>),
) -> Result<Answer> {
    let root = cgroup::root()?;
    let cgroup = Cgroup::open(&root, &workload.workload.cgroup)?;
    let netns = Netns::open(workload.workload.netns.as_deref())?;
    let in_force = InForce::find(&default_pin_dir(&args.bpffs), cgroup.id)?;
    let mut differences = in_force.differences(&workload.digest, &workload.plan);

    let attempt = Attempt::prepare(&root, &cgroup, &netns, destination)?;
    let ear = if in_force.has_agent() {
        Ear::agent(args, workload, destination)?
    } else {
        Ear::ring(in_force.tap()?)?
    };
    let identity = &in_force.identity;
    // One that no setting names is the same number on the host.
    let on_host = |id: Option<u32>, base: u32| id.map_or(SOMEBODY, |id| base.wrapping_add(id));
    let uid = on_host(ids.0, identity.uid_base);
    let outcome = attempt.connect(uid, on_host(ids.1, identity.gid_base));
    let decided = ear.hear(attempt.port, destination);
    let (outcome, decided) = (outcome?, decided?);
    if let Some(target) = outcome.target {
        in_force.forget(outcome.source.into(), target.into())?;
    }

    let relay = match destination {
        SocketAddr::V4(_) => identity.relay_port_v4,
        SocketAddr::V6(_) => identity.relay_port_v6,
    };
    compare(
        explained,
        destination,
        relay,
        decided.as_ref(),
        &outcome,
        &mut differences,
    );
    Ok(Answer {
        agrees: differences.is_empty(),
        followed: in_force.followed(),
        decided,
        target: outcome.target,
        error: outcome.error.map(|error| error.to_string()),
        differences,
    })
}

/// Tells in what the programs' decision is not the one explained. `relay`: the port of the relay.
fn compare(
    explained: &Explanation,
    destination: SocketAddr,
    relay: u16,
    decided: Option<&Decided>,
    outcome: &Outcome,
    to: &mut Vec<String>,
) {
    let Some(Decided { path, reason }) = decided else {
        to.push(format!(
            "the programs decided nothing, the connection passed them by: {}, {} is wanted",
            explained.path, explained.reason
        ));
        return;
    };
    let is = |wanted_path: Path, wanted_reason: Reason| {
        *path == wanted_path.name() && *reason == wanted_reason.name()
    };
    let gone = explained
        .while_gone
        .and_then(|gone| Some((gone.path, gone.reason?)));
    // What takes it may be gone just now: the failure policy says what is to be then.
    let path = if is(explained.path, explained.reason) {
        explained.path
    } else if let Some((path, _)) = gone.filter(|(path, reason)| is(*path, *reason)) {
        path
    } else {
        let (wanted, why) = (explained.path, explained.reason);
        to.push(format!(
            "the programs decided {path}, {reason}: {wanted}, {why} is wanted"
        ));
        return;
    };
    let Some(target) = outcome.target else {
        let is_refused = outcome.error == Some(Errno::CONNREFUSED);
        // Without a route, or a source address, nothing is said of the decision.
        if outcome.error.is_none() {
            to.push("the kernel does not tell where the connection leads".to_owned());
        } else if path == Path::Deny && !is_refused {
            to.push("the decision was to refuse, and connect(2) did not".to_owned());
        } else if path != Path::Deny && is_refused {
            to.push(format!("the decision was {path}, and connect(2) refused"));
        }
        return;
    };
    let leads = |wanted: SocketAddr| {
        let wanted_ip = wanted.ip().to_canonical();
        let ip = target.ip().to_canonical();
        wanted.port() == target.port() && (wanted_ip == ip || wanted_ip.is_unspecified())
    };
    let on_loopback = |port| target.port() == port && target.ip().to_canonical().is_loopback();
    let is_right = match path {
        Path::Pass => leads(destination),
        Path::Direct => explained.targets.iter().any(|wanted| match wanted {
            Target::Original => leads(destination),
            Target::Tcp(wanted) => leads(*wanted),
            Target::Unix(_) => false,
        }),
        Path::Relay => on_loopback(relay),
        Path::Proxy => explained.targets.iter().any(|wanted| match wanted {
            Target::Tcp(wanted) => on_loopback(wanted.port()),
            _ => false,
        }),
        Path::Deny => false,
    };
    if !is_right {
        let wanted: Vec<String> = explained.targets.iter().map(ToString::to_string).collect();
        let wanted = wanted.join(" or ");
        to.push(format!(
            "it leads to {target} by {path}: to {wanted} is wanted"
        ));
    }
}

/// Who hears decisions: the ring has one reader only.
enum Ear {
    /// Nobody else reads it.
    Ring(Box<Tap>),
    /// The agent does.
    Agent(UnixStream, Lines<BufReader<UnixStream>>),
}

impl Ear {
    fn ring(mut tap: Tap) -> Result<Self> {
        // What nobody took.
        while tap.take().is_some() {}
        tap.switch(true)?;
        Ok(Self::Ring(Box::new(tap)))
    }

    fn agent(args: &KernelArgs, workload: &WorkloadPlan, destination: SocketAddr) -> Result<Self> {
        let path = admin::socket_path(&args.run_dir);
        let stream = UnixStream::connect(&path).with_context(|| admin::no_agent(&path))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let filter = Filter {
            workload: Some(workload.workload.to_string()),
            direction: Some("outbound".to_owned()),
            port: Some(destination.port()),
            destination: Some(destination.ip().to_canonical().into()),
            ..Filter::default()
        };
        let mut request = serde_json::to_vec(&BTreeMap::from([(trace::REQUEST, filter)]))?;
        request.push(b'\n');
        (&stream).write_all(&request)?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        match next(&mut lines)? {
            Some(Line::Started) => Ok(Self::Agent(stream, lines)),
            Some(Line::Error(error)) => bail!(error),
            _ => bail!("the agent gave no answer that is understood: is it of another version?"),
        }
    }

    /// The decision about the connection from this port; `None`: there was none.
    fn hear(self, port: u16, destination: SocketAddr) -> Result<Option<Decided>> {
        match self {
            Self::Ring(mut tap) => {
                tap.switch(false)?;
                // It is there already: connect(2) has returned.
                while let Some(event) = tap.take() {
                    let to = Endpoint::new(destination.ip().into(), destination.port());
                    if event.source.port == port && event.destination == to {
                        let name =
                            |name: Option<&'static str>| name.unwrap_or("unknown").to_owned();
                        let path = Path::from_number(event.path).map(Path::name);
                        let reason = Reason::from_number(event.reason).map(Reason::name);
                        let (path, reason) = (name(path), name(reason));
                        return Ok(Some(Decided { path, reason }));
                    }
                }
                Ok(None)
            }
            Self::Agent(stream, mut lines) => {
                // What was decided before comes first, then what was lost.
                stream.shutdown(Shutdown::Write)?;
                let mut lost = 0;
                while let Some(line) = next(&mut lines)? {
                    match line {
                        Line::Decision(record)
                            if record.source.is_some_and(|source| source.port() == port) =>
                        {
                            let (path, reason) = (record.path, record.reason);
                            return Ok(Some(Decided { path, reason }));
                        }
                        Line::Lost(now) => lost = now.kernel + now.agent,
                        Line::Error(error) => bail!(error),
                        Line::Decision(_) | Line::Started => {}
                    }
                }
                if lost != 0 {
                    bail!(
                        "{lost} decisions were lost, the one that was asked for among them; try again"
                    );
                }
                Ok(None)
            }
        }
    }
}

fn next(lines: &mut Lines<BufReader<UnixStream>>) -> Result<Option<Line>> {
    let line = lines.next().transpose().context("reading from the agent")?;
    line.map(|line| {
        serde_json::from_str(&line)
            .context("the agent's line is not understood: is it of another version?")
    })
    .transpose()
}
