//! The programs.

use std::{env, path::PathBuf};

use anyhow::ensure;
use ebpf_build::tools_dir;

/// A directory with the programs that Kubernetes' own tests use too.
#[derive(Clone, Debug)]
pub struct Assets {
    dir: PathBuf,
}

impl Assets {
    /// Those of `KUBEBUILDER_ASSETS`, else those that `cargo xtask kube-assets` has made.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn find() -> anyhow::Result<Self> {
        let dir = match env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None => tools_dir()?.join("kube/bin"),
        };
        let assets = Self { dir };
        for name in ["etcd", "kube-apiserver", "kubectl"] {
            let program = assets.program(name);
            ensure!(
                program.exists(),
                "{} is not there; `cargo xtask kube-assets` makes it",
                program.display()
            );
        }
        Ok(assets)
    }

    /// The path of a program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
