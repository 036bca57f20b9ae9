//! A node with an agent that follows a cluster, and pods on it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sidecar_agent::{dataplane::uninstall::inventory, model::workload::CAPTURE_ANNOTATION};
use sidecar_tests::{
    Agent, AgentBuilder, Cgroup, Mode, Namespace, Probe, Server,
    kube::ApiServer,
    node::{Chain, Container, Node, Sandbox},
    place::Place,
    poll::{DEADLINE, poll_result},
};

use crate::world::declare_mesh;
pub use crate::world::{DETAILS, SECRET};

/// The name of the node.
const NAME: &str = "node-a";

pub struct World {
    pub api: ApiServer,
    /// The one that was started with it.
    pub agent: Option<Agent>,
    pub node: Node,
    /// Not to be shared among threads, unlike the rest.
    servers: Mutex<Vec<Server>>,
}

/// A pod as kubelet and the runtime see it.
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub netns: Namespace,
    /// Its sandbox, by the runtime's id.
    pub id: String,
}

impl World {
    /// No agent runs yet.
    pub fn new() -> anyhow::Result<Self> {
        let api = ApiServer::start()?;
        api.add_crds()?;
        declare_mesh(&api)?;
        let node = Node::new()?;
        for dir in ["net.d", "bin"] {
            fs::create_dir(node.dir().join(dir))?;
        }
        node.netns().add_local("10.96.0.0/16".parse()?)?;
        let mut world = Self {
            api,
            agent: None,
            node,
            servers: Mutex::default(),
        };
        world.serve(DETAILS, Mode::Banner)?;
        world.serve(SECRET, Mode::Banner)?;
        Ok(world)
    }

    /// Starts a server outside of the pods, in the range of services.
    pub fn serve(&mut self, address: &str, mode: Mode) -> anyhow::Result<()> {
        let server = Server::tcp(address.parse()?)
            .place(Place::here().netns(self.node.netns()))
            .mode(mode)
            .start()?;
        let servers = self.servers.get_mut();
        servers.unwrap_or_else(PoisonError::into_inner).push(server);
        Ok(())
    }

    /// With the agent.
    pub fn with_agent() -> anyhow::Result<Self> {
        let mut world = Self::new()?;
        world.agent = Some(world.run_agent()?);
        Ok(world)
    }

    /// With an agent that tells of pods, and may.
    pub fn telling() -> anyhow::Result<Self> {
        let mut world = Self::new()?;
        for (name, verbs, resource) in [
            ("events", "create,patch", "events.events.k8s.io"),
            ("status", "patch", "pods"),
        ] {
            let (verbs, resource) = (format!("--verb={verbs}"), format!("--resource={resource}"));
            let create = ["create", "clusterrole", name, &verbs, &resource];
            world.api.kubectl(&create)?;
            let role = format!("--clusterrole={name}");
            let user = "--user=sidecar-agent";
            world
                .api
                .kubectl(&["create", "clusterrolebinding", name, &role, user])?;
        }
        world.agent = Some(world.run_agent_with(&["--pod-events", "--pod-status"])?);
        Ok(world)
    }

    /// An agent with the run directory that the plugin is told, which has read the cluster.
    pub fn run_agent(&self) -> anyhow::Result<Agent> {
        self.run_agent_with(&[])
    }

    fn run_agent_with(&self, args: &[&str]) -> anyhow::Result<Agent> {
        let agent = Agent::with_kubeconfig(&self.api.kubeconfig());
        self.run(agent.args(args))
    }

    /// One that is started in some way.
    fn run(&self, agent: AgentBuilder) -> anyhow::Result<Agent> {
        let agent = agent
            .env("NODE_NAME", NAME)
            .env("SIDECAR_AGENT_CNI_RUN_DIR", self.run_dir())
            .env("SIDECAR_AGENT_CNI_CONF_DIR", self.conf_dir())
            .env("SIDECAR_AGENT_CNI_BIN_DIR", self.bin_dir())
            .args(["--cni"])
            .start()?;
        agent.wait_until("the cluster to be read", |status| {
            status["generation"].as_u64() > Some(0)
        })?;
        symlink(agent.run_dir(), self.run_dir())?;
        Ok(agent)
    }

    /// With an agent that is started in some way.
    pub fn with(agent: impl FnOnce(&Self) -> anyhow::Result<AgentBuilder>) -> anyhow::Result<Self> {
        let mut world = Self::new()?;
        world.agent = Some(world.run(agent(&world)?)?);
        Ok(world)
    }

    /// The agent that was started with it.
    pub fn agent(&self) -> anyhow::Result<&Agent> {
        self.agent.as_ref().context("no agent")
    }

    /// The same, to be stopped and started.
    pub fn agent_mut(&mut self) -> anyhow::Result<&mut Agent> {
        self.agent.as_mut().context("no agent")
    }

    /// Has a label or an annotation (`how`: `label`, `annotate`) of an object, its kind and name, say
    /// whether to capture; `-`: say nothing any more.
    pub fn say(&self, how: &str, [kind, name]: [&str; 2], value: &str) -> anyhow::Result<()> {
        let said = match value {
            "-" => format!("{CAPTURE_ANNOTATION}-"),
            value => format!("{CAPTURE_ANNOTATION}={value}"),
        };
        let args = [
            how,
            "--overwrite",
            "--namespace=prod-us1",
            kind,
            name,
            &said,
        ];
        self.api.kubectl(&args).map(drop)
    }

    /// What the agent's status says of a pod.
    pub fn told(&self, pod: &Pod) -> anyhow::Result<Value> {
        let status = self.agent()?.status()?;
        let mut pods = status["cluster"]["pods"].as_array().into_iter().flatten();
        let told = pods.find(|told| told["uid"] == *pod.uid);
        told.cloned()
            .with_context(|| format!("nothing is told of it: {status}"))
    }

    /// How much of the agent's there is in the kernel, whatever the agent believes: entries of each map,
    /// and links.
    pub fn in_kernel(&self) -> anyhow::Result<Value> {
        let agent = self.agent()?;
        let dump = agent.cli(&["dump", "-o", "json"])?;
        let dump: Value = serde_json::from_slice(&dump.stdout).context("`dump` printed no JSON")?;
        let maps = dump.as_object().context("`dump` printed no maps")?;
        // What was counted stays; links are those of other agents, too.
        let is_comparable = |map: &str| !matches!(map, "counters" | "links");
        let maps = maps.iter().filter(|(map, _)| is_comparable(map));
        let rows = |(map, rows): (&String, &Value)| Some((map.clone(), rows.as_array()?.len()));
        let rows: BTreeMap<String, usize> = maps.filter_map(rows).collect();
        let links = inventory(&agent.bpffs().join("sidecar-agent"))?.links.len();
        Ok(json!({"maps": rows, "links": links}))
    }

    /// The agent's run directory, as the plugin is told.
    pub fn run_dir(&self) -> PathBuf {
        self.node.dir().join("run")
    }

    pub fn conf_dir(&self) -> PathBuf {
        self.node.dir().join("net.d")
    }

    pub fn bin_dir(&self) -> PathBuf {
        self.node.dir().join("bin")
    }

    /// Our plugin behind ptp.
    pub fn chain(&self, more: &Value) -> Chain<'_> {
        let mut plugin = json!({"type": "sidecar-agent", "runDir": self.run_dir()});
        for (key, value) in more.as_object().into_iter().flatten() {
            plugin[key] = value.clone();
        }
        self.node.network("10.78.2.0/24", &[plugin])
    }

    /// Has the cluster schedule a pod here; `asks`: it is to be captured.
    pub fn schedule(&self, name: &str, asks: bool) -> anyhow::Result<Pod> {
        let annotations = if asks { asks_for_capture() } else { json!({}) };
        self.schedule_with(name, &annotations, &["app"])
    }

    /// The same, with these annotations and containers.
    pub fn schedule_with(
        &self,
        name: &str,
        annotations: &Value,
        containers: &[&str],
    ) -> anyhow::Result<Pod> {
        let pod = object(name, annotations, containers);
        self.api.apply(&pod.to_string())?;
        let uid = self.api.kubectl(&[
            "get",
            "pod",
            name,
            "--namespace=prod-us1",
            "--output=jsonpath={.metadata.uid}",
        ])?;
        self.accept(name, &uid)
    }

    /// What kubelet does first for a pod that was scheduled here.
    pub fn accept(&self, name: &str, uid: &str) -> anyhow::Result<Pod> {
        self.node.make_pod_cgroup(uid)?;
        Ok(Pod {
            name: name.to_owned(),
            uid: uid.to_owned(),
            netns: Namespace::new("pod")?,
            id: crate::pods::uid(),
        })
    }

    /// Has the cluster schedule several pods here that are to be captured.
    pub fn schedule_many(&self, names: &[String]) -> anyhow::Result<Vec<Pod>> {
        let asks = asks_for_capture();
        let pods = names.iter().map(|name| object(name, &asks, &["app"]));
        let pods: Vec<Value> = pods.collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
        self.api.create(&list.to_string())?;
        let get = ["get", "pods", "--namespace=prod-us1", "--output=json"];
        let found: Value = serde_json::from_str(&self.api.kubectl(&get)?)?;
        let found = found["items"].as_array().context("no pods")?;
        let accept = |name: &String| {
            let mut pods = found.iter().map(|pod| &pod["metadata"]);
            let pod = pods.find(|of| of["name"] == **name);
            let uid = pod.and_then(|of| of["uid"].as_str()).context("no UID")?;
            self.accept(name, uid)
        };
        names.iter().map(accept).collect()
    }

    /// Has the cluster forget pods.
    pub fn delete(&self, names: &[String]) -> anyhow::Result<()> {
        let delete = "delete pod --namespace=prod-us1 --grace-period=0 --force --wait=false";
        let names = names.iter().map(String::as_str);
        let args: Vec<&str> = delete.split(' ').chain(names).collect();
        self.api.kubectl(&args).map(drop)
    }

    /// What kubelet reports: the pod's address.
    pub fn report(&self, pod: &Pod, address: &str) -> anyhow::Result<()> {
        self.report_with(pod, address, &[])
    }

    /// The same, and which containers run: names and ids.
    pub fn report_with(
        &self,
        pod: &Pod,
        address: &str,
        running: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let running = running.iter().map(|(name, id)| {
            json!({
                "name": name, "containerID": format!("containerd://{id}"), "ready": true,
                "restartCount": 0, "image": "x", "imageID": "x",
                "state": {"running": {"startedAt": "2024-01-01T00:00:00Z"}},
            })
        });
        let running: Vec<Value> = running.collect();

        let path = format!("/api/v1/namespaces/prod-us1/pods/{}", pod.name);
        let mut object: Value = serde_json::from_str(&self.api.kubectl(&["get", "--raw", &path])?)?;
        object["status"]["phase"] = "Running".into();
        object["status"]["podIP"] = address.into();
        object["status"]["podIPs"] = json!([{"ip": address}]);
        object["status"]["containerStatuses"] = running.into();
        let file = self.node.dir().join(format!("{}.json", pod.name));
        fs::write(&file, object.to_string())?;
        let (path, file) = (format!("{path}/status"), file.display().to_string());
        self.api
            .kubectl(&["replace", "--raw", &path, "--filename", &file])?;
        Ok(())
    }

    /// Starts a client in a pod.
    pub fn inside(&self, pod: &Pod) -> anyhow::Result<Inside> {
        let cgroup = self.node.container_cgroup(&pod.uid, &crate::pods::uid())?;
        let place = Place::here().netns(&pod.netns).cgroup(&cgroup);
        let probe = Probe::start(place)?;
        Ok(Inside { probe, cgroup })
    }

    /// From the sandbox to its first container, as kubelet and the runtime do it; kubelet reports the
    /// address. The container ends when it is dropped.
    pub fn start_pod(&self, pod: &Pod, chain: &Chain<'_>) -> anyhow::Result<Container> {
        let args = pod.args(true);
        let result = chain.add(pod.sandbox(&args))?;
        let sleep = ["sleep", "infinity"];
        let id = crate::pods::uid();
        let pause = self.node.run(&pod.uid, &pod.netns, &id, &sleep)?;
        self.report(pod, address(&result)?)?;
        Ok(pause)
    }

    /// Runs a container of a pod whose very first act is to call an address; whether it was answered.
    pub fn first_call(&self, pod: &Pod, address: &str) -> anyhow::Result<bool> {
        let (ip, port) = address.split_once(':').context("no port")?;
        let script = format!(
            "if (exec 3<>/dev/tcp/{ip}/{port}) 2>/tmp/error; then echo yes; else echo no; fi \
             >/tmp/new; mv /tmp/new /tmp/outcome; exec sleep infinity"
        );
        let id = crate::pods::uid();
        let args = ["bash", "-c", &script];
        let container: Container = self.node.run(&pod.uid, &pod.netns, &id, &args)?;
        let outcome = poll_result(DEADLINE, "the container's call", || {
            Ok(fs::read_to_string(container.root().join("tmp/outcome"))?)
        })?;
        Ok(outcome.trim() == "yes")
    }
}

/// A client in a pod that stays, unlike a container's.
pub struct Inside {
    pub probe: Probe,
    cgroup: Cgroup,
}

impl Inside {
    /// Whether a new connection is answered.
    pub fn reaches(&self, address: &str) -> anyhow::Result<bool> {
        Ok(self.probe.visit(address.parse()?)?.is_ok())
    }

    /// Where it is, for other programs of the pod.
    pub fn place<'a>(&'a self, pod: &'a Pod) -> Place<'a> {
        Place::here().netns(&pod.netns).cgroup(&self.cgroup)
    }
}

impl Pod {
    /// What the runtime tells plugins; `uid`: new ones do.
    pub fn args(&self, uid: bool) -> String {
        let uid = if uid {
            format!(";K8S_POD_UID={}", self.uid)
        } else {
            String::new()
        };
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod-us1;K8S_POD_NAME={}{uid}",
            self.name
        )
    }

    pub fn sandbox<'a>(&'a self, args: &'a str) -> Sandbox<'a> {
        Sandbox {
            netns: self.netns.path(),
            id: &self.id,
            args,
        }
    }
}

/// The annotation of a pod that is to be captured.
fn asks_for_capture() -> Value {
    json!({CAPTURE_ANNOTATION: "on"})
}

/// A pod of this node, as the cluster has it.
fn object(name: &str, annotations: &Value, containers: &[&str]) -> Value {
    let containers = containers
        .iter()
        .map(|name| json!({"name": name, "image": "x"}));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "prod-us1", "annotations": annotations},
        "spec": {"nodeName": NAME, "containers": containers.collect::<Vec<_>>()},
    })
}

/// The address in a result.
pub fn address(result: &Value) -> anyhow::Result<&str> {
    let address = result["ips"][0]["address"].as_str();
    let (address, _) = address
        .and_then(|text| text.split_once('/'))
        .context("no address")?;
    Ok(address)
}

/// Waits until a call of the pod is answered, or not.
pub fn wait_reaches(world: &World, pod: &Pod, address: &str, wanted: bool) -> anyhow::Result<()> {
    poll_result(DEADLINE, "the pod's connections to change", || {
        let reaches = world.first_call(pod, address)?;
        ensure!(reaches == wanted, "reaches {address}: {reaches}");
        Ok(())
    })
}

/// How long ADD may take on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(10);
