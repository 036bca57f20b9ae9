//! What the Helm chart renders: the plain manifests of `deploy/manifests`, and what tests compare
//! renderings of other values with; written by `cargo xtask manifests`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use ebpf_build::tools_dir;

use crate::command;

/// The release's name and namespace in everything rendered here.
pub const RELEASE: &str = "sidecar-agent";

/// The Kubernetes whose manifests are checked in.
pub const KUBERNETES: &str = "1.34.0";

/// One rendering.
#[derive(Clone, Copy, Debug)]
pub struct Rendering {
    /// Its values, a file of `tests/packaging/values`; `None`: the chart's own.
    pub values: Option<&'static str>,
    /// For which Kubernetes.
    pub kubernetes: &'static str,
    /// Where the result is checked in, below the workspace.
    pub file: &'static str,
    /// What comes before it.
    head: &'static str,
}

/// What is put before the plain manifests: where they come from, and what helm does not make.
const PLAIN: &str = "\
# Written by `cargo xtask manifests` from deploy/helm/sidecar-agent, which explains it.
apiVersion: v1
kind: Namespace
metadata:
  name: sidecar-agent
  labels:
    # The agent shares the node's network and processes, and has capabilities.
    pod-security.kubernetes.io/enforce: privileged
";

const GOLDEN: &str = "# Written by `cargo xtask manifests`.\n";

/// All of them.
pub const RENDERINGS: &[Rendering] = &[
    Rendering {
        values: None,
        kubernetes: KUBERNETES,
        file: "deploy/manifests/sidecar-agent.yaml",
        head: PLAIN,
    },
    golden("podmonitor.yaml", "tests/packaging/golden/podmonitor.yaml"),
    golden("no-cni.yaml", "tests/packaging/golden/no-cni.yaml"),
    golden("crds.yaml", "tests/packaging/golden/crds.yaml"),
    golden("custom.yaml", "tests/packaging/golden/custom.yaml"),
    golden("uninstall.yaml", "tests/packaging/golden/uninstall.yaml"),
    // Before maxSurge and the field for AppArmor.
    Rendering {
        kubernetes: "1.20.2",
        ..golden(
            "uninstall.yaml",
            "tests/packaging/golden/uninstall-1.20.yaml",
        )
    },
    Rendering {
        values: None,
        kubernetes: "1.20.2",
        file: "tests/packaging/golden/default-1.20.yaml",
        head: GOLDEN,
    },
];

const fn golden(values: &'static str, file: &'static str) -> Rendering {
    Rendering {
        values: Some(values),
        kubernetes: KUBERNETES,
        file,
        head: GOLDEN,
    }
}

impl Rendering {
    /// What the chart makes of it.
    ///
    /// # Errors
    /// When helm is not there, or refuses.
    pub fn render(&self) -> Result<String> {
        let mut helm = template(self.kubernetes)?;
        if let Some(values) = self.values {
            helm.arg("--values").arg(values_file(values));
        }
        let text = command::output(&mut helm)?;
        Ok(format!("{}{}", self.head, without_sources(&text)))
    }

    /// Where it is checked in.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        workspace().join(self.file)
    }

    /// Whether what is checked in is what the chart makes.
    ///
    /// # Errors
    /// As [`render`](Self::render), and when the file cannot be read, other than because it is not
    /// there.
    pub fn is_current(&self) -> Result<bool> {
        let path = self.path();
        let found = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => found.with_context(|| format!("cannot read {}", path.display()))?,
        };
        Ok(found == self.render()?)
    }
}

/// helm says before each document which template it is of, also where nothing is left of one.
fn without_sources(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("# Source: "));
    let mut kept = String::new();
    for line in lines {
        kept += line.trim_end();
        kept.push('\n');
    }
    kept
}

/// Root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// The chart.
#[must_use]
pub fn chart() -> PathBuf {
    workspace().join("deploy/helm/sidecar-agent")
}

/// A file of values.
#[must_use]
pub fn values_file(name: &str) -> PathBuf {
    workspace().join("tests/packaging/values").join(name)
}

/// helm itself, which touches nothing of the user's.
///
/// # Errors
/// When it is not known where to look for it.
pub fn helm() -> Result<Command> {
    let mut helm = Command::new(tool("helm")?);
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        helm.env(name, "/nonexistent");
    }
    helm.env_remove("KUBECONFIG");
    Ok(helm)
}

/// A program that `cargo xtask setup` has installed for the chart: `helm` or `kubectl`.
///
/// # Errors
/// When it is not known where to look for it.
pub fn tool(name: &str) -> Result<PathBuf> {
    Ok(tools_dir()?.join("helm").join(name))
}

/// helm, about to render the chart as for such a cluster.
///
/// # Errors
/// As [`helm`].
pub fn template(kubernetes: &str) -> Result<Command> {
    let mut helm = helm()?;
    helm.args(["template", RELEASE]).arg(chart()).args([
        "--namespace",
        RELEASE,
        "--kube-version",
        kubernetes,
    ]);
    Ok(helm)
}
