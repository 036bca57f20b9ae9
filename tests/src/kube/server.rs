//! The API server, with what stores its objects.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sidecar_agent::source::kube::rbac;

use super::{Assets, process::Process};
use crate::{
    command::{output, output_with_input},
    poll::{DEADLINE, poll_result},
    tempdir::TempDir,
};

/// Where the API server is found. Another one takes what is only for the test's eyes.
const PORT: u16 = 6443;
const OTHER_PORT: u16 = 6444;
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// The `ConfigMap` of the mesh configuration.
pub const MESH: (&str, &str) = ("istio-system", "istio");

/// Who asks for what is noted, except for administrators and the server itself.
const AUDITED: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, userGroups: ['system:masters', 'system:unauthenticated']}
- {level: Metadata}
";

/// An API server with RBAC, on a loopback address that no other has. Nothing else of Kubernetes is
/// there: nobody makes pods run, or endpoints.
#[derive(Debug)]
pub struct ApiServer {
    assets: Assets,
    address: IpAddr,
    port: u16,
    server: Option<Process>,
    /// Ended after the server.
    _etcd: Process,
    dir: TempDir,
}

impl ApiServer {
    /// Starts it, with the namespaces `prod-us1` and `istio-system`, and the agent as a user that
    /// may do what its roles say.
    ///
    /// # Errors
    /// When a program cannot be run, or does not become ready: with its log.
    pub fn start() -> anyhow::Result<Self> {
        let assets = Assets::find()?;
        let dir = TempDir::new("sidecar-kube-")?;
        let address = address();
        output(
            Command::new("openssl")
                .args(["genrsa", "-out"])
                .arg(dir.path().join("sa.key"))
                .arg("2048"),
        )?;
        let tokens = "admin,admin,1,\"system:masters\"\nagent,sidecar-agent,2\n";
        fs::write(dir.path().join("tokens"), tokens).context("cannot write tokens")?;
        fs::write(dir.path().join("audit-policy"), AUDITED).context("cannot write a policy")?;
        let etcd = etcd(&assets, address, dir.path())?;
        let mut server = Self {
            assets,
            address,
            port: PORT,
            server: None,
            _etcd: etcd,
            dir,
        };
        server.write_kubeconfigs()?;
        server.start_server()?;
        for namespace in ["prod-us1", MESH.0] {
            server.kubectl(&["create", "namespace", namespace])?;
        }
        server.apply(&rbac::roles(
            "sidecar-agent",
            &(MESH.0.into(), MESH.1.into()),
        ))?;
        let user = "--user=sidecar-agent";
        let role = "clusterrolebinding sidecar-agent --clusterrole=sidecar-agent";
        server.kubectl(&[&words("create", role)[..], &[user]].concat())?;
        let role = "rolebinding sidecar-agent --role=sidecar-agent --namespace=istio-system";
        server.kubectl(&[&words("create", role)[..], &[user]].concat())?;
        Ok(server)
    }

    /// Adds the kinds of Istio: those of `deploy/crds`.
    ///
    /// # Errors
    /// When kubectl fails, or they do not come to be served.
    pub fn add_crds(&self) -> anyhow::Result<()> {
        self.add_kinds(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds/istio.yaml"))
    }

    /// Adds `EndpointSlice`s of version v1 where the server has none of its own.
    ///
    /// # Errors
    /// When kubectl fails, or they do not come to be served.
    pub fn add_slices(&self) -> anyhow::Result<()> {
        if self
            .kubectl(&["get", "--raw", "/apis/discovery.k8s.io/v1"])
            .is_ok()
        {
            return Ok(());
        }
        let file = "resources/endpointslices.yaml";
        self.add_kinds(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
    }

    fn add_kinds(&self, file: &Path) -> anyhow::Result<()> {
        let file = file.display().to_string();
        self.kubectl(&["apply", "--filename", &file])?;
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "--filename",
            &file,
        ])?;
        Ok(())
    }

    /// Where it is, as the agent finds it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (self.address, PORT).into()
    }

    /// The file with its certificate, which it has signed itself.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certs/apiserver.crt")
    }

    /// What a user has asked for so far, as it is noted: a request with its answer each.
    ///
    /// # Errors
    /// When there are no such notes.
    pub fn asked_by(&self, user: &str) -> anyhow::Result<Vec<Value>> {
        let text = fs::read_to_string(self.dir.path().join("audit.log"));
        let text = text.context("cannot read what was asked")?;
        // The last line may be on its way.
        let notes = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let by_user = |of: &Value| of["user"]["username"] == user;
        Ok(notes.filter(by_user).collect())
    }

    /// A token of a service account, which is good for as long as a pod is there.
    ///
    /// # Errors
    /// When there is no such account or pod.
    pub fn token(&self, namespace: &str, account: &str, pod: &str) -> anyhow::Result<String> {
        let uid = "--output=jsonpath={.metadata.uid}";
        let uid = self.kubectl(&["get", "pod", pod, "--namespace", namespace, uid])?;
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": ["https://sidecar-agent.test"],
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid},
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let mut create = self.command();
        create.args(["create", "--raw", &path, "--filename", "-"]);
        let answer = output_with_input(&mut create, &request.to_string())?;
        let answer: Value = serde_json::from_str(&answer).context("no JSON")?;
        let token = answer["status"]["token"].as_str();
        token.map(str::to_owned).context("no token was made")
    }

    /// The agent's way to it.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("agent.kubeconfig")
    }

    /// Runs kubectl as an administrator, and returns what it printed.
    ///
    /// # Errors
    /// When it fails: with what it printed.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        output(self.command().args(args))
    }

    /// Has kubectl apply resources.
    ///
    /// # Errors
    /// When it fails: with what it printed.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<String> {
        output_with_input(self.command().args(["apply", "--filename", "-"]), yaml)
    }

    /// Has kubectl create resources, which are many.
    ///
    /// # Errors
    /// When it fails: with what it printed.
    pub fn create(&self, yaml: &str) -> anyhow::Result<String> {
        output_with_input(self.command().args(["create", "--filename", "-"]), yaml)
    }

    /// Kills the API server; its objects stay.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_server(&mut self) -> anyhow::Result<()> {
        let server = self.server.take();
        server.context("the API server is not running")?.kill()
    }

    /// Starts it (again) where it was, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready: with its log.
    pub fn start_server(&mut self) -> anyhow::Result<()> {
        self.start_at(PORT)
    }

    /// Starts it where the agent does not find it.
    ///
    /// # Errors
    /// As [`start_server`](Self::start_server).
    pub fn start_server_hidden(&mut self) -> anyhow::Result<()> {
        self.start_at(OTHER_PORT)
    }

    /// Has the history of all objects be forgotten: whoever knows an older state has to list anew.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn forget_history(&self) -> anyhow::Result<()> {
        let range = self.etcd("kv/range", &json!({"key": "AA=="}))?;
        let revision = &range["header"]["revision"];
        let request = json!({"revision": revision, "physical": true});
        self.etcd("kv/compaction", &request)?;
        Ok(())
    }

    fn etcd(&self, path: &str, request: &Value) -> anyhow::Result<Value> {
        let url = format!("http://{}:{ETCD_PORT}/v3/{path}", self.address);
        let mut answer = ureq::post(&url)
            .send(request.to_string())
            .with_context(|| format!("cannot ask etcd for {path}"))?;
        let text = answer.body_mut().read_to_string();
        serde_json::from_str(&text.context("cannot read etcd's answer")?)
            .context("etcd has answered no JSON")
    }

    fn start_at(&mut self, port: u16) -> anyhow::Result<()> {
        ensure!(self.server.is_none(), "the API server is running");
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let mut command = Command::new(self.assets.program("kube-apiserver"));
        command.args([
            format!("--etcd-servers=http://{}:{ETCD_PORT}", self.address),
            format!("--bind-address={}", self.address),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", file("certs")),
            format!("--token-auth-file={}", file("tokens")),
            format!("--audit-policy-file={}", file("audit-policy")),
            format!("--audit-log-path={}", file("audit.log")),
            format!("--service-account-key-file={}", file("sa.key")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
        ]);
        command.args([
            // Room for those of version v1, if the server is older: see `add_slices`.
            "--runtime-config=discovery.k8s.io/v1beta1=false",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://sidecar-agent.test",
            "--service-cluster-ip-range=10.96.0.0/16",
            // There is no address that others could reach it by.
            "--endpoint-reconciler-type=none",
            // Nobody makes service accounts.
            "--disable-admission-plugins=ServiceAccount",
        ]);
        let server = Process::start(&mut command, &self.dir.path().join("apiserver.log"))?;
        self.port = port;
        server.wait("the API server to be ready", || {
            let ready = self.kubectl(&["get", "--raw", "/readyz"])?;
            ensure!(ready == "ok", "{ready}");
            // It is ready before every namespace that it makes itself is there.
            self.kubectl(&["get", "namespace", "default"]).map(drop)
        })?;
        self.server = Some(server);
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.assets.program("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(self.dir.path().join("admin.kubeconfig"))
            .arg(format!("--server=https://{}:{}", self.address, self.port))
            // It keeps what it has learned of the API there.
            .arg("--cache-dir")
            .arg(self.dir.path().join("cache"));
        command
    }

    fn write_kubeconfigs(&self) -> anyhow::Result<()> {
        for user in ["admin", "agent"] {
            let text = json!({
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "users": [{"name": "test", "user": {"token": user}}],
                "clusters": [{"name": "test", "cluster": {
                    "server": format!("https://{}:{PORT}", self.address),
                    // Made by the server, and signed by itself.
                    "certificate-authority": self.dir.path().join("certs/apiserver.crt"),
                }}],
            });
            let path = self.dir.path().join(format!("{user}.kubeconfig"));
            fs::write(&path, text.to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn words<'a>(first: &'a str, more: &'a str) -> Vec<&'a str> {
    std::iter::once(first).chain(more.split(' ')).collect()
}

fn etcd(assets: &Assets, address: IpAddr, dir: &Path) -> anyhow::Result<Process> {
    let (client, peer) = (
        format!("http://{address}:{ETCD_PORT}"),
        format!("http://{address}:{ETCD_PEER_PORT}"),
    );
    let mut command = Command::new(assets.program("etcd"));
    command
        .arg(format!("--data-dir={}", dir.join("etcd").display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=default={peer}"))
        // Nothing of it has to survive the machine.
        .arg("--unsafe-no-fsync");
    let etcd = Process::start(&mut command, &dir.join("etcd.log"))?;
    etcd.wait("etcd to answer", || {
        let answer = ureq::get(format!("{client}/health")).call();
        answer.context("it does not answer").map(drop)
    })?;
    Ok(etcd)
}

/// An address of 127.0.0.0/8 that no other test has.
fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = process::id().to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % 64;
    Ipv4Addr::new(127, 128 + number, high, low).into()
}

/// How long a change may take until the next connection follows it.
pub const AT_ONCE: Duration = Duration::from_secs(1);

/// Waits longer than usual, for what the API server has to compute for.
///
/// # Errors
/// At the deadline: the last error.
pub fn patiently<T>(what: &str, operation: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    poll_result(3 * DEADLINE, what, operation)
}
