//! A real container runtime: podman with runc, with storage of its own, so that the machine's images
//! and containers stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use sidecar_tests::{
    cleanup::{self, Cleanup},
    command::output,
    tempdir::TempDir,
};

/// Where runc is for root.
const RUNC: &str = "/usr/sbin/runc";

/// For machines that allow a container no more than their own.
pub const LIMITS: [&str; 4] = [
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=1024:1024",
];

/// podman with the image. Containers that still run are removed when it is dropped.
pub struct Podman {
    pub image: String,
    storage: PathBuf,
    // Before the directory goes.
    _cleanup: Cleanup,
    _dir: TempDir,
}

/// The archive that `cargo xtask image` makes.
pub fn archive() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this program's own path")?;
    // TARGET/PROFILE/deps/packaging-HASH
    let target = exe.ancestors().nth(3).context("no target directory")?;
    Ok(target.join("image/sidecar-agent.oci.tar"))
}

/// What is missing for these tests, if something is.
pub fn missing() -> Option<&'static str> {
    let has_podman = Command::new("podman").arg("--version").output().is_ok();
    if !has_podman || !Path::new(RUNC).exists() {
        return Some("podman and runc: `cargo xtask setup` installs them");
    }
    (!archive().is_ok_and(|path| path.exists())).then_some("the image: `cargo xtask image`")
}

fn podman(storage: &Path) -> Command {
    let mut podman = Command::new("podman");
    podman
        .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"])
        .args(["--events-backend", "none", "--runtime", RUNC])
        .arg("--root")
        .arg(storage.join("root"))
        .arg("--runroot")
        .arg(storage.join("run"))
        .arg("--tmpdir")
        .arg(storage.join("tmp"));
    podman
}

impl Podman {
    /// With the image loaded.
    pub fn new() -> Result<Self> {
        let dir = TempDir::new("sidecar-podman-")?;
        let storage = dir.path().to_owned();
        let cleanup = cleanup::on_drop({
            let storage = storage.clone();
            move || {
                let removed = output(podman(&storage).args(["rm", "--all", "--force", "--time=0"]));
                if let Err(error) = removed {
                    eprintln!("left behind: {error:#}");
                }
            }
        });
        let archive = archive()?;
        let loaded = output(podman(&storage).arg("load").arg("--input").arg(archive))?;
        let image = loaded.trim().rsplit(' ').next().unwrap_or_default();
        Ok(Self {
            image: image.to_owned(),
            storage,
            _cleanup: cleanup,
            _dir: dir,
        })
    }

    /// A command of podman's.
    pub fn command(&self, verb: &str) -> Command {
        let mut podman = podman(&self.storage);
        podman.arg(verb);
        podman
    }

    /// Starts a container that is what a kubelet would make of this one, with its pod's volumes, some
    /// of them from other places; `more` are arguments that come before the image.
    pub fn start(
        &self,
        name: &str,
        pod: &Value,
        container: &Value,
        from: &dyn Fn(&str, &str) -> PathBuf,
        more: &[String],
    ) -> Result<Container<'_>> {
        let mut run = self.command("run");
        run.args(["--detach", "--name", name])
            .args(as_kubelet(pod, container, from)?)
            .args(more)
            .args(LIMITS)
            .arg(&self.image)
            .args(crate::documents::texts(&container["args"]));
        output(&mut run)?;
        Ok(Container {
            podman: self,
            name: name.to_owned(),
        })
    }
}

/// Arguments of `podman run` for what a container of a pod is given by the node. `from` tells where a
/// volume is taken from, by its name and the path in the pod.
fn as_kubelet(
    pod: &Value,
    container: &Value,
    from: &dyn Fn(&str, &str) -> PathBuf,
) -> Result<Vec<String>> {
    let mut args: Vec<String> = Vec::new();
    for (field, arg) in [("hostNetwork", "--network=host"), ("hostPID", "--pid=host")] {
        if pod[field] == true {
            args.push(arg.into());
        }
    }
    let context = &container["securityContext"];
    if context["allowPrivilegeEscalation"] == false {
        args.push("--security-opt=no-new-privileges".into());
    }
    if context["readOnlyRootFilesystem"] == true {
        args.extend(["--read-only".into(), "--read-only-tmpfs=false".into()]);
    }
    args.push(format!("--user={}", context["runAsUser"]));
    for (field, arg) in [("drop", "--cap-drop"), ("add", "--cap-add")] {
        for name in crate::documents::texts(&context["capabilities"][field]) {
            args.push(format!("{arg}={name}"));
        }
    }
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    for mount in container["volumeMounts"].as_array().context("no mounts")? {
        let (name, to) = (mount["name"].as_str(), mount["mountPath"].as_str());
        let (name, to) = name.zip(to).context("a mount without a name or path")?;
        let volume = volumes
            .iter()
            .find(|volume| volume["name"] == name)
            .with_context(|| format!("no volume {name}"))?;
        let path = from(
            name,
            volume["hostPath"]["path"].as_str().unwrap_or_default(),
        );
        if volume["hostPath"]["type"] == "DirectoryOrCreate" {
            fs::create_dir_all(&path).with_context(|| format!("{}", path.display()))?;
        }
        let mode = if mount["readOnly"] == true {
            "ro"
        } else {
            "rw"
        };
        let propagation = match mount["mountPropagation"].as_str() {
            Some("HostToContainer") => "rslave",
            _ => "rprivate",
        };
        args.push(format!(
            "--volume={}:{to}:{mode},{propagation}",
            path.display()
        ));
    }
    Ok(args)
}

/// A container.
pub struct Container<'a> {
    podman: &'a Podman,
    name: String,
}

impl Container<'_> {
    /// Whether it runs, and how it has ended if not.
    pub fn state(&self) -> Result<(bool, i64)> {
        let mut inspect = self.podman.command("inspect");
        let text = output(inspect.arg(&self.name))?;
        let inspected: Value = serde_json::from_str(&text)?;
        let state = &inspected[0]["State"];
        let running = state["Running"].as_bool().context("no state")?;
        Ok((running, state["ExitCode"].as_i64().unwrap_or(-1)))
    }

    /// What it has logged.
    pub fn logs(&self) -> String {
        let mut logs = self.podman.command("logs");
        let logs = logs.arg(&self.name).output();
        logs.map(|logs| String::from_utf8_lossy(&logs.stderr).into_owned())
            .unwrap_or_default()
    }

    /// Tells it to end (SIGTERM).
    pub fn terminate(&self) -> Result<()> {
        let mut kill = self.podman.command("kill");
        output(kill.args(["--signal", "TERM"]).arg(&self.name)).map(drop)
    }

    /// The same, and waits; after some time it is killed.
    pub fn stop(&self) -> Result<()> {
        let mut stop = self.podman.command("stop");
        output(stop.args(["--time", "20"]).arg(&self.name)).map(drop)
    }
}
