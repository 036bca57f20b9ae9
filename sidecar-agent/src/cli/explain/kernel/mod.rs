//! `explain --kernel`: what the kernel's maps and programs say of a connection.

mod ear;
mod verdict;

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Result, bail};
use rustix::io::Errno;
use serde::Serialize;
use sidecar_common::{
    decide::{Direction, Transport},
    values::Identity,
};

use self::{
    ear::Ear,
    verdict::{Fate, Verdict},
};
use crate::{
    cli::inputs::{Bpffs, RunDir},
    compile::WorkloadPlan,
    dataplane::{
        arrival::{self, Arrived},
        attempt::Attempt,
        cgroup::{self, Cgroup},
        compare::{Followed, InForce, Place},
        netns::Netns,
    },
    explain::{Connection, Explanation, SOMEBODY, Who},
    resolve::workload::Proxy,
};

/// Arguments of `explain --kernel`.
#[derive(Debug, clap::Args)]
pub struct KernelArgs {
    /// Also compare with the kernel (as root): whether the maps hold the plan that is wanted, and
    /// what the attached programs decide. For that they are given a real connection, of which no
    /// packet leaves, or an inbound one by the kernel itself; it counts in the counters. Exit code 1
    /// if anything differs.
    #[arg(long, conflicts_with_all = ["from_proxy", "interface"])]
    pub kernel: bool,
    #[command(flatten)]
    bpffs: Bpffs,
    #[command(flatten)]
    agent: RunDir,
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
    /// Where the connection led; absent: it was refused, could not be made, or went where it was
    /// going.
    pub target: Option<SocketAddr>,
    /// Why connect(2) failed.
    pub error: Option<String>,
    /// In what maps and decision differ from what is wanted.
    pub differences: Vec<String>,
    /// What is so just now, and explains the decision.
    pub notes: Vec<String>,
}

/// A decision, by name.
#[derive(Serialize)]
pub struct Decided {
    /// How it travels.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl Answer {
    /// For people: names and texts.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let verdict = if self.agrees { "agrees" } else { "DIFFERS" };
        let decided = self.decided.as_ref().map_or_else(
            || "nothing decided".to_owned(),
            |decided| format!("{}, {}", decided.path, decided.reason),
        );
        let target = self.target.map(|target| format!(", led to {target}"));
        let Followed { slot, set, plan } = self.followed;
        let kernel = format!(
            "{verdict}: {decided}{} (workload {slot}, plan {plan} of set {set})",
            target.unwrap_or_default()
        );
        let notes = self.notes.iter().map(|text| ("note", text.clone()));
        let differences = self.differences.iter();
        let differences = differences.map(|text| ("differs", text.clone()));
        let all = [("kernel", kernel)].into_iter().chain(notes);
        all.chain(differences).collect()
    }
}

/// A workload in the kernel.
struct Asked<'a> {
    args: &'a KernelArgs,
    workload: &'a WorkloadPlan,
    root: PathBuf,
    cgroup: Cgroup,
    netns: Netns,
    in_force: InForce,
}

/// What was seen of a connection.
struct Seen {
    decided: Option<Decided>,
    fate: Fate,
}

/// Asks the kernel about the connection that was explained.
pub fn ask(
    args: &KernelArgs,
    workload: &WorkloadPlan,
    explained: &Explanation,
    connection: &Connection<'_>,
) -> Result<Answer> {
    let root = cgroup::root()?;
    let cgroup = Cgroup::open(&root, &workload.workload.cgroup)?;
    let asked = Asked {
        args,
        workload,
        netns: Netns::open(workload.workload.netns.as_deref())?,
        in_force: InForce::find(&args.bpffs.pin_dir(), cgroup.id)?,
        root,
        cgroup,
    };
    let in_force = &asked.in_force;
    let mut differences = in_force.differences(&workload.digest, &workload.plan);
    differences.extend(asked.strange_surroundings()?);
    let seen = match (connection.direction, connection.transport) {
        (Direction::Outbound, _) => asked.outbound(connection)?,
        (Direction::Inbound, Transport::Tcp) => asked.inbound(connection)?,
        (Direction::Inbound, Transport::Udp) => {
            bail!("--kernel asks about TCP inbound only: no program looks at datagrams that arrive")
        }
    };
    let verdict = Verdict::of(
        explained,
        connection,
        relay_port(&in_force.identity, connection.dst),
        seen.decided.as_ref(),
        &seen.fate,
    );
    differences.extend(verdict.differences);
    let (target, error) = match seen.fate {
        Fate::Led(target) => (Some(target), None),
        Fate::Refused(error) => (None, error),
        Fate::Failed(error) => (None, Some(error)),
        Fate::Passed | Fate::Unknown => (None, None),
    };
    Ok(Answer {
        agrees: differences.is_empty(),
        followed: in_force.followed(),
        decided: seen.decided,
        target,
        error,
        differences,
        notes: verdict.notes,
    })
}

/// The relay's port for connections of a family.
fn relay_port(identity: &Identity, destination: SocketAddr) -> u16 {
    match destination {
        SocketAddr::V4(_) => identity.relay_port_v4,
        SocketAddr::V6(_) => identity.relay_port_v6,
    }
}

impl Asked<'_> {
    fn strange_surroundings(&self) -> Result<Vec<String>> {
        let apart = match &self.workload.workload.proxy {
            Proxy::External {
                cgroup: Some(path), ..
            } => Some(Cgroup::open(&self.root, path)?),
            _ => None,
        };
        let place = Place {
            cgroups: [Some(&self.cgroup), apart.as_ref()]
                .into_iter()
                .flatten()
                .collect(),
            netns: &self.netns,
        };
        self.in_force
            .strange_surroundings(&place, &self.workload.plan)
    }

    fn ear(&self, connection: &Connection<'_>) -> Result<Ear> {
        if self.in_force.has_agent() {
            Ear::agent(
                &self.args.agent.run_dir,
                &self.workload.workload,
                connection,
            )
        } else {
            Ear::ring(self.in_force.tap()?)
        }
    }

    /// A socket of the workload's connects.
    fn outbound(&self, connection: &Connection<'_>) -> Result<Seen> {
        let Connection {
            transport,
            src,
            dst,
            caller,
            ..
        } = *connection;
        let kind = (transport, src, dst);
        let attempt = Attempt::prepare(&self.root, &self.cgroup, &self.netns, kind)?;
        let ear = self.ear(connection)?;
        let identity = &self.in_force.identity;
        // One that no setting names is the same number on the host.
        let on_host = |id: Option<u32>, base: u32| id.map_or(SOMEBODY, |id| base.wrapping_add(id));
        let (uid, gid) = match caller {
            Who::Ids { uid, gid } => (uid, gid),
            Who::Proxy => bail!("--kernel does not ask as the proxy; give its --uid"),
        };
        let outcome = attempt.connect(
            on_host(uid, identity.uid_base),
            on_host(gid, identity.gid_base),
        );
        let decided = ear.hear(attempt.port, dst);
        let (outcome, decided) = (outcome?, decided?);
        if let Some(target) = outcome.target {
            let source = outcome.source.into();
            self.in_force.forget(source, target.into())?;
        }
        let fate = match (outcome.target, outcome.error) {
            (Some(target), _) => Fate::Led(target),
            (None, Some(error @ Errno::CONNREFUSED)) => Fate::Refused(Some(error.to_string())),
            (None, Some(error)) => Fate::Failed(error.to_string()),
            (None, None) => Fate::Unknown,
        };
        Ok(Seen { decided, fate })
    }

    /// The kernel runs the program.
    fn inbound(&self, connection: &Connection<'_>) -> Result<Seen> {
        let source = arrival::source(connection.src, connection.dst);
        let ear = self.ear(connection)?;
        let arrived = arrival::arrive(&self.in_force, &self.netns, source, connection.dst);
        let decided = ear.hear(source.port(), connection.dst);
        let fate = match arrived? {
            Arrived::Given(listener) => Fate::Led(listener),
            Arrived::GivenToOne => Fate::Unknown,
            Arrived::Passed => Fate::Passed,
            Arrived::Refused => Fate::Refused(None),
        };
        Ok(Seen {
            decided: decided?,
            fate,
        })
    }
}
