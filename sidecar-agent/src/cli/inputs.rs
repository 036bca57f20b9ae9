//! What the verbs that only read resources share.

use std::{
    io::{IsTerminal, stderr},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context, Result, bail};

use super::render;
use crate::{
    compile::{self, NodePlan},
    dataplane::default_pin_dir,
    model::{Compat, FailurePolicy, diagnostic::Severity},
    observe::{
        admin::{self, Answer, Request},
        status::Status,
    },
    source::{
        dns,
        files::{self, Places},
    },
};

/// Default directory of what outlives the agent.
pub const STATE_DIR: &str = "/var/lib/sidecar-agent";

/// The `--run-dir` option.
#[derive(Debug, clap::Args)]
pub struct RunDir {
    /// The agent's directory of sockets.
    #[arg(
        long,
        env = "SIDECAR_AGENT_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/sidecar-agent"
    )]
    pub run_dir: PathBuf,
}

impl RunDir {
    /// The state of the agent that runs with it.
    pub fn status(&self) -> Result<Box<Status>> {
        match admin::ask(&self.run_dir, &Request::Status)? {
            Answer::Status(status) => Ok(status),
            Answer::Error(message) => bail!(message),
            _ => bail!("the agent has answered something else"),
        }
    }
}

/// The `--bpffs` option.
#[derive(Debug, clap::Args)]
pub struct Bpffs {
    /// Where bpffs is mounted, or is to be.
    #[arg(
        long,
        env = "SIDECAR_AGENT_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf"
    )]
    pub bpffs: PathBuf,
}

impl Bpffs {
    /// The directory of the agent's pins.
    pub fn pin_dir(&self) -> PathBuf {
        default_pin_dir(&self.bpffs)
    }
}

/// The `--compat` option.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct CompatArg {
    /// Whose rules say what is valid.
    #[arg(
        long,
        env = "SIDECAR_AGENT_COMPAT",
        value_enum,
        default_value_t,
        value_name = "RELEASE"
    )]
    pub compat: Compat,
}

/// What was read, compiled.
pub struct Compiled {
    /// The plans.
    pub node: NodePlan,
    /// Where the resources were written.
    pub places: Arc<Places>,
}

/// Where the resources are.
#[derive(Debug, clap::Args)]
pub struct Inputs {
    /// Directory of resources.
    #[arg(long, env = "SIDECAR_AGENT_CONFIG", value_name = "DIR")]
    pub(super) config: PathBuf,
    #[command(flatten)]
    pub(super) beside: Beside,
}

/// What resources are read with.
#[derive(Debug, clap::Args)]
pub struct Beside {
    /// File with Istio's `MeshConfig`.
    #[arg(long, env = "SIDECAR_AGENT_MESH_CONFIG", value_name = "FILE")]
    pub(super) mesh_config: Option<PathBuf>,
    /// Name server for host names in resources; may be repeated. The system's if none is given.
    #[arg(
        long = "dns-server",
        env = "SIDECAR_AGENT_DNS_SERVERS",
        value_delimiter = ',',
        value_name = "IP:PORT"
    )]
    pub(super) dns_servers: Vec<SocketAddr>,
    /// What becomes of connections when something fails, as far as a workload's annotation says
    /// nothing else: `open` (they pass) or `closed` (they are refused) for all cases, or a list such
    /// as proxy-gone=open,map-full=closed (also unknown-workload, relay-target-gone).
    #[arg(
        long,
        env = "SIDECAR_AGENT_FAILURE_POLICY",
        value_name = "POLICY",
        default_value = "closed"
    )]
    pub(super) failure_policy: FailurePolicy,
    #[command(flatten)]
    pub(super) compat: CompatArg,
}

impl Inputs {
    /// Reads and compiles. Findings go to stderr; resources with errors are left out, as `run`
    /// would leave them out.
    pub fn compile(&self) -> Result<Compiled> {
        if !self.config.is_dir() {
            bail!("--config {}: not a directory", self.config.display());
        }
        let paths: Vec<PathBuf> = [Some(&self.config), self.beside.mesh_config.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let mut input = files::load(&paths, self.beside.compat.compat);
        input.snapshot.failure_policy = self.beside.failure_policy;
        let mut node = compile::plans(&input.snapshot);
        if !node.dns.is_empty() {
            let resolver =
                dns::Resolver::new(&self.beside.dns_servers).context("starting the resolver")?;
            let answers = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("starting the runtime")?
                .block_on(dns::resolve(node.dns, &resolver));
            input.diagnostics.extend(answers.diagnostics());
            input.snapshot.dns = answers.addresses;
            node = compile::plans(&input.snapshot);
        }
        let mut diagnostics = input.diagnostics;
        diagnostics.extend(input.places.diagnostics(&node.findings));
        diagnostics.sort_by_key(|diagnostic| std::cmp::Reverse(diagnostic.severity));
        eprint!("{}", render::text(&diagnostics, stderr().is_terminal()));
        if diagnostics
            .iter()
            .any(|diagnostic| diagnostic.severity == Severity::Error)
        {
            eprintln!("resources with errors are left out");
        }
        Ok(Compiled {
            node,
            places: input.places,
        })
    }
}
