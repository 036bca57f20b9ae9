//! `cni`.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use anyhow::Result;

use super::{
    inputs::RunDir,
    output::{Format, print},
};
use crate::cni::{
    config::{Absent, Settings},
    install::{Done, Install},
    plugin,
};

/// Arguments of `cni`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What is to be done; nothing said: what the runtime says in the environment.
#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Copy this program to the runtime's plugins, and put it into its list of plugins. Whoever
    /// rewrites that takes it out again: `run --cni` keeps it there.
    Install {
        #[command(flatten)]
        node: Node,
        #[command(flatten)]
        agent: RunDir,
        #[command(flatten)]
        excluded: Excluded,
        #[command(flatten)]
        format: Format,
    },
    /// Take it out of every list, and away from the runtime's plugins.
    Uninstall {
        #[command(flatten)]
        node: Node,
        #[command(flatten)]
        format: Format,
    },
}

/// Whose pods are none of the agent's business.
#[derive(Clone, Debug, clap::Args)]
pub struct Excluded {
    /// Namespace whose pods are left alone, whatever they say, and never wait for the agent; may be
    /// repeated.
    #[arg(
        long = "exclude-namespace",
        env = "SIDECAR_AGENT_EXCLUDE_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACE",
        default_value = "kube-system"
    )]
    excluded_namespaces: Vec<String>,
}

impl Excluded {
    /// They; an empty name, as of an empty list, is none.
    pub(super) fn namespaces(self) -> BTreeSet<String> {
        let names = self.excluded_namespaces.into_iter();
        names.filter(|name| !name.is_empty()).collect()
    }
}

/// Where the plugin is put, and what it is told.
#[derive(Clone, Debug, clap::Args)]
#[allow(
    clippy::struct_field_names,
    reason = "they are options of `run` as well, which have these names"
)]
pub struct Node {
    /// The container runtime's directory of network configurations.
    #[arg(
        long,
        env = "SIDECAR_AGENT_CNI_CONF_DIR",
        value_name = "DIR",
        default_value = "/etc/cni/net.d"
    )]
    cni_conf_dir: PathBuf,
    /// The container runtime's directory of CNI plugins.
    #[arg(
        long,
        env = "SIDECAR_AGENT_CNI_BIN_DIR",
        value_name = "DIR",
        default_value = "/opt/cni/bin"
    )]
    cni_bin_dir: PathBuf,
    /// The agent's --run-dir as the node has it, where the agent itself sees it elsewhere.
    #[arg(long, env = "SIDECAR_AGENT_CNI_RUN_DIR", value_name = "DIR")]
    cni_run_dir: Option<PathBuf>,
    /// What becomes of a pod that starts while no agent answers.
    #[arg(
        long,
        env = "SIDECAR_AGENT_CNI_AGENT_ABSENT",
        value_enum,
        default_value_t,
        value_name = "POLICY"
    )]
    cni_agent_absent: Absent,
    /// How long a pod that starts waits for the agent, and for its capture to be in force.
    #[arg(
        long,
        env = "SIDECAR_AGENT_CNI_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=100)
    )]
    cni_timeout: u64,
}

impl Node {
    /// As it is to be installed; pods of the `excluded` namespaces never wait for the agent.
    pub(super) fn install(&self, run_dir: PathBuf, excluded: BTreeSet<String>) -> Install {
        Install {
            conf_dir: self.cni_conf_dir.clone(),
            bin_dir: self.cni_bin_dir.clone(),
            settings: Settings {
                run_dir: self.cni_run_dir.clone().unwrap_or(run_dir),
                agent_absent: self.cni_agent_absent,
                timeout_seconds: self.cni_timeout,
                exclude_namespaces: excluded,
            },
        }
    }
}

/// Does it, or is the plugin.
pub fn run(args: Args) -> Result<ExitCode> {
    let (done, format) = match args.verb {
        None => return Ok(plugin::run()),
        Some(Verb::Install {
            node,
            agent,
            excluded,
            format,
        }) => {
            let install = node.install(agent.run_dir, excluded.namespaces());
            (install.install()?, format)
        }
        Some(Verb::Uninstall { node, format }) => (
            node.install(PathBuf::new(), BTreeSet::new()).uninstall()?,
            format,
        ),
    };
    print(format, &done, || human(&done))?;
    Ok(ExitCode::SUCCESS)
}

fn human(done: &Done) -> String {
    let lines = |verb: &str, paths: &[PathBuf]| {
        let lines = paths
            .iter()
            .map(|path| format!("{verb} {}", path.display()));
        lines.collect::<Vec<_>>()
    };
    let mut text = lines("written", &done.written);
    text.extend(lines("removed", &done.removed));
    if text.is_empty() {
        text.push("nothing to do".to_owned());
    }
    text.join("\n")
}
