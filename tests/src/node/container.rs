//! Containers, by runc.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::{
    Namespace,
    cleanup::{self, Cleanup},
    command::shown,
    programs,
};

/// A running container, which sees the machine's programs and those of the tests. Killed and removed
/// when dropped.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its first process.
    pub pid: u32,
    _cleanup: Cleanup,
}

impl Container {
    pub(super) fn run(
        dir: &Path,
        cgroup: &str,
        netns: &Namespace,
        id: &str,
        args: &[&str],
    ) -> anyhow::Result<Self> {
        let (bundle, state) = (dir.join(id), dir.join("runc"));
        let root = bundle.join("rootfs");
        fs::create_dir_all(&root)?;
        for dir in ["proc", "usr", "tmp", "run"] {
            fs::create_dir_all(root.join(dir))?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(link), root.join(link))?;
        }
        let app = programs::app()?;
        let built = app.parent().context("the app has no directory")?;
        let bind = |of: &Path| json!({"destination": of, "type": "bind", "source": of, "options": ["rbind", "ro"]});
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args,
                "env": ["PATH=/usr/bin:/usr/sbin"],
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                bind(Path::new("/usr")),
                bind(built),
            ],
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"},
                    {"type": "network", "path": netns.path()},
                ],
            },
        });
        fs::write(bundle.join("config.json"), config.to_string())?;
        let pid_file = bundle.join("pid");
        let mut runc = Command::new("runc");
        runc.arg("--root")
            .arg(&state)
            .args(["run", "--detach", "--pid-file"])
            .arg(&pid_file);
        runc.arg("--bundle").arg(&bundle).arg(id);
        let errors = bundle.join("errors");
        // The container has them, too: a pipe would be open as long as it runs.
        let output = fs::File::create(&errors)?;
        runc.stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let cleanup = cleanup::on_drop({
            let (state, id, bundle) = (state.clone(), id.to_owned(), bundle.clone());
            move || remove(&state, &id, &bundle)
        });
        let status = runc
            .status()
            .with_context(|| format!("cannot run `{}`", shown(&runc)))?;
        ensure!(
            status.success(),
            "`{}` failed: {}",
            shown(&runc),
            fs::read_to_string(&errors).unwrap_or_default()
        );
        Ok(Self {
            id: id.to_owned(),
            pid: fs::read_to_string(pid_file)?.trim().parse()?,
            _cleanup: cleanup,
        })
    }

    /// What is `/` in it.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join("root")
    }
}

fn remove(state: &Path, id: &str, bundle: &Path) {
    let mut runc = Command::new("runc");
    runc.arg("--root")
        .arg(state)
        .args(["delete", "--force", id]);
    let _ = runc
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let _ = fs::remove_dir_all(bundle);
}
