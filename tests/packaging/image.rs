//! The image, by podman and runc.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sidecar_tests::{
    Bpffs, Client, DEADLINE, Mode, Server,
    command::output,
    lab::{Lab, service},
    poll::poll_result,
    require_root, scrape, skip,
    tempdir::TempDir,
};

use crate::{
    documents::{pod, rendered, require_helm},
    podman::{self, Container, LIMITS, Podman},
};

/// Skips the running test without podman, or without the image.
macro_rules! require_image {
    () => {
        require_root!();
        if let Some(missing) = podman::missing() {
            skip!("{missing}");
        }
    };
}

#[test]
fn there_is_the_agent_in_it_and_nothing_else() -> Result<()> {
    require_image!();
    let podman = Podman::new()?;
    let mut run = podman.command("run");
    run.arg("--rm").args(LIMITS);
    let version = output(run.args([&podman.image, "--version"]))?;
    ensure!(
        version.trim() == format!("sidecar-agent {}", env!("CARGO_PKG_VERSION")),
        "{version}"
    );

    let inspected = output(podman.command("image").args(["inspect", &podman.image]))?;
    let inspected: Value = serde_json::from_str(&inspected)?;
    let label = |name: &str| {
        let label = &inspected[0]["Labels"][format!("org.opencontainers.image.{name}")];
        label.as_str().unwrap_or_default().to_owned()
    };
    ensure!(label("version") == env!("CARGO_PKG_VERSION"));
    for name in ["title", "description", "licenses", "created"] {
        ensure!(!label(name).is_empty(), "{name}: {inspected}");
    }

    // A shell would be the first thing to look for.
    let mut shell = podman.command("run");
    shell
        .arg("--rm")
        .args(LIMITS)
        .args(["--entrypoint", "/bin/sh"]);
    shell.args([&podman.image, "-c", "true"]);
    let error = output(&mut shell).map_err(|error| format!("{error:#}"));
    ensure!(
        error.as_ref().is_err_and(|error| error.contains("/bin/sh")),
        "{error:?}"
    );
    output(
        podman
            .command("create")
            .args(["--name", "files", &podman.image]),
    )?;
    let mut export = podman.command("export");
    let listed = tar_list(export.args(["files"]))?;
    let made_by_podman = |name: &str| {
        let dirs = ["dev/", "etc/", "proc/", "run/", "sys/"];
        dirs.iter().any(|dir| name.starts_with(dir))
    };
    let files: Vec<&str> = listed
        .lines()
        .filter(|name| !name.ends_with('/') && !made_by_podman(name))
        .collect();
    ensure!(files == ["sidecar-agent", "var/run"], "{files:?}");
    Ok(())
}

/// The names in the archive that a command writes.
fn tar_list(command: &mut std::process::Command) -> Result<String> {
    let archive = command.output()?;
    let dir = TempDir::new("sidecar-tar-")?;
    let path = dir.path().join("image.tar");
    std::fs::write(&path, archive.stdout)?;
    output(std::process::Command::new("tar").arg("-tf").arg(path))
}

/// What there is on one node, for containers as the chart has them.
struct Node {
    lab: Lab,
    bpffs: Bpffs,
    dir: TempDir,
    port: u16,
}

impl Node {
    fn new() -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        Ok(Self {
            lab: Lab::new()?,
            bpffs: Bpffs::temporary()?,
            dir: TempDir::new("sidecar-node-")?,
            port,
        })
    }

    /// Where a volume of the pod is on this node.
    fn volume(&self, name: &str, path: &str) -> PathBuf {
        match name {
            "bpffs" => self.bpffs.path().to_owned(),
            "config" => self.lab.config_dir(),
            "run" | "state" => self.dir.path().join(name),
            _ => path.into(),
        }
    }

    /// The chart's pod, with resources from files, and more values.
    fn pod(&self, values: &[&str]) -> Result<Value> {
        let port = format!("metrics.port={}", self.port);
        let mut set = vec![
            "kubernetes.enabled=false",
            "cni.enabled=false",
            r"staticConfig.all\.yaml=kind: Sidecar",
            &port,
        ];
        set.extend(values);
        Ok(pod(&rendered(&set)?)?.clone())
    }

    fn start<'a>(&self, podman: &'a Podman, name: &str, pod: &Value) -> Result<Container<'a>> {
        let container = &pod["containers"][0];
        let from = |name: &str, path: &str| self.volume(name, path);
        // Where the lab's workload has its unix sockets.
        let root = self.lab.in_root("");
        let more = format!("--volume={0}:{0}", root.display());
        podman.start(name, pod, container, &from, &[more])
    }

    fn wait_ready(pod: &Value, container: &Container<'_>) -> Result<()> {
        poll_result(DEADLINE, "the container to be ready", || {
            let code = probe(pod, "readinessProbe")?;
            ensure!(code == 200, "{code}");
            Ok(())
        })
        .with_context(|| container.logs())
    }
}

/// What the probe of a pod is answered.
fn probe(pod: &Value, kind: &str) -> Result<u16> {
    let get = &pod["containers"][0][kind]["httpGet"];
    let path = get["path"].as_str().context("no path")?;
    let address = format!(
        "{}:{}",
        get["host"].as_str().unwrap_or_default(),
        get["port"]
    );
    Ok(scrape::get_at(&address, path)?.code)
}

/// Exposes `details`, and by unix sockets `local`, and what sends back what it gets; the rest is
/// refused.
fn resources(lab: &mut Lab) -> Result<()> {
    lab.announce("10.96.0.0/16")?;
    lab.serve("10.96.0.1:9080", "details")?;
    lab.serve("10.96.0.4:9080", "secret")?;
    let services = service("prod-us1", "details", "10.96.0.1".parse()?, 9080);
    lab.write("services.yaml", &services)?;
    lab.write(
        "sidecar.yaml",
        "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: prod-us1}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress:
  - hosts: ['prod-us1/*']
",
    )?;
    for (name, address, mode) in [
        ("local", "10.96.7.7", Mode::Banner),
        ("echo", "10.96.7.8", Mode::Echo),
    ] {
        let entry = format!(
            "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: prod-us1}}
spec:
  hosts: [{name}.example.com]
  addresses: [{address}]
  ports:
  - {{number: 9080, name: tcp, protocol: TCP}}
  resolution: STATIC
  endpoints:
  - address: unix:///run/{name}.sock
"
        );
        lab.write(&format!("{name}.yaml"), &entry)?;
        let socket = lab.in_root(&format!("/run/{name}.sock"));
        let server = Server::unix(&socket).mode(mode).name(name).start()?;
        lab.keep(server);
    }
    lab.write_workload(&[])
}

fn reached(lab: &Lab, address: &str) -> Result<Option<String>> {
    let outcome = Client::tcp(address.parse()?).place(lab.inside()).banner()?;
    Ok(outcome.banner.map(|seen| seen.name))
}

/// Two versions of the chart's pod on one node, as in an update: with exactly its capabilities, mounts,
/// and the runtime's own seccomp profile.
#[test]
fn containers_as_the_chart_has_them_capture_and_hand_over() -> Result<()> {
    require_image!();
    require_helm!();
    let podman = Podman::new()?;
    let mut node = Node::new()?;
    resources(&mut node.lab)?;
    let captured = |lab: &Lab| -> Result<()> {
        for (address, wanted) in [
            ("10.96.0.1:9080", Some("details")),
            ("10.96.7.7:9080", Some("local")),
            ("10.96.0.4:9080", None),
        ] {
            let found = reached(lab, address)?;
            ensure!(found.as_deref() == wanted, "{address}: {found:?}");
        }
        Ok(())
    };
    ensure!(
        reached(&node.lab, "10.96.0.4:9080")?.is_some(),
        "captured already"
    );

    let old_pod = node.pod(&[])?;
    let old = node.start(&podman, "old", &old_pod)?;
    Node::wait_ready(&old_pod, &old)?;
    captured(&node.lab).with_context(|| old.logs())?;
    let doctor: Value = {
        let mut exec = podman.command("exec");
        exec.args(["old", "/sidecar-agent", "doctor", "-o", "json"]);
        serde_json::from_slice(&exec.output()?.stdout)?
    };
    ensure!(doctor["missing"] == 0, "{doctor:#}");

    // What is relayed when the next one comes goes on in the old one.
    let echo = "10.96.7.8:9080".parse()?;
    let mut held = Client::tcp(echo).place(node.lab.inside()).hold()?;
    let new_pod = node.pod(&["agent.log=debug"])?;
    ensure!(
        probe(&new_pod, "readinessProbe")? == 503,
        "the old one says yes"
    );
    let new = node.start(&podman, "new", &new_pod)?;
    Node::wait_ready(&new_pod, &new)?;
    ensure!(
        probe(&old_pod, "readinessProbe")? == 503,
        "the new one says yes"
    );
    ensure!(
        probe(&old_pod, "livenessProbe")? == 200,
        "it would be started again"
    );
    captured(&node.lab).with_context(|| new.logs())?;
    ensure!(held.exchange("still there")? == "still there");

    // The old one waits, and a kubelet that stops it cuts nothing short.
    ensure!(old.state()?.0, "it has ended: {}", old.logs());
    old.terminate()?;
    ensure!(held.exchange("even now")? == "even now");
    ensure!(
        old.state()?.0,
        "it has cut a connection short: {}",
        old.logs()
    );
    drop(held);
    let ended = poll_result(DEADLINE, "the old one to end", || {
        let (runs, code) = old.state()?;
        ensure!(!runs, "it runs");
        Ok(code)
    })?;
    ensure!(ended == 0, "{}", old.logs());
    captured(&node.lab)?;

    // Stopping is not uninstalling; that is another pod of the chart's.
    new.stop()?;
    ensure!(new.state()? == (false, 0), "{}", new.logs());
    ensure!(reached(&node.lab, "10.96.0.4:9080")?.is_none(), "it passes");
    let last_pod = node.pod(&["mode=uninstall"])?;
    let last = node.start(&podman, "last", &last_pod)?;
    poll_result(DEADLINE, "everything to pass", || {
        let found = reached(&node.lab, "10.96.0.4:9080")?;
        ensure!(found.as_deref() == Some("secret"), "{found:?}");
        Ok(())
    })
    .with_context(|| last.logs())?;
    ensure!(last.state()?.0, "it does not wait: {}", last.logs());
    last.stop()?;
    ensure!(last.state()? == (false, 0), "{}", last.logs());
    Ok(())
}
