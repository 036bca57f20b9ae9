//! Where the sides are: each in a network namespace and a cgroup of its own, all on one bridge, and
//! one agent that captures those that are ours.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context as _, ensure};
use sidecar_agent::conformance::iptables::cases::OptionSet;

use super::pinned;
use crate::{
    Agent, Cgroup, Client, Host, Namespace, Net, Place, Server,
    command::output_with_input,
    envoy::PROXY_ID,
    interception::rules::{self, Family},
    tempdir::TempDir,
};

/// Both ends of every connection run on this CPU.
pub const ENDS: usize = 0;
/// What is in between runs on this one.
pub const BETWEEN: usize = 1;

/// A service that nobody serves by itself: who calls it is captured.
pub const SERVICE: &str = "10.96.0.1:80";
/// Where proxies listen.
pub const PROXY: &str = "0.0.0.0:15001";
/// The direct outbound listener, and beside it where a client calls that is not captured.
pub const MYSQL: u16 = 3306;
/// The relayed outbound listener, whose endpoint is reached by IPv6.
pub const RELAYED: u16 = 3307;
/// The inbound listeners: direct and relayed to a unix socket.
pub const INGRESS: u16 = 9080;
/// Where the application behind the direct one listens.
pub const APPLICATION: &str = "127.0.0.1:8080";

/// Everything but the workloads. `PEER4` and `PEER6` stand for the addresses of the peer.
const RESOURCES: &str = include_str!("../../resources/bench.yaml");

/// Who is measured, and what they connect to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named after what they are")]
pub enum Site {
    /// The other end: not captured, in no cgroup of its own.
    Peer,
    Plain,
    Iptables,
    Proxy,
    Accelerated,
    Direct,
    Relay,
    HaproxyAuto,
    HaproxyRequest,
    Envoy,
}

impl Site {
    /// All, in the order of their hosts.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Peer, "peer"),
        (Self::Plain, "plain"),
        (Self::Iptables, "iptables"),
        (Self::Proxy, "proxy"),
        (Self::Accelerated, "accelerated"),
        (Self::Direct, "direct"),
        (Self::Relay, "relay"),
        (Self::HaproxyAuto, "haproxy-auto"),
        (Self::HaproxyRequest, "haproxy-request"),
        (Self::Envoy, "envoy"),
    ];
}

/// The world. Fields are dropped in this order.
#[derive(Debug)]
pub struct World {
    agent: Agent,
    cgroups: Vec<Cgroup>,
    net: Net,
    dir: TempDir,
}

impl World {
    /// Makes it, with the agent, and waits until everything is captured. `rules` are services that
    /// nobody calls, known to every workload.
    ///
    /// # Errors
    /// When a part cannot be made.
    pub fn new(rules: usize) -> anyhow::Result<Self> {
        let labels = Site::ALL.map(|(_, label)| label);
        let net = Net::new(&labels)?;
        for host in net.hosts() {
            allow_many(&host.netns)?;
        }
        let cgroups = labels
            .iter()
            .map(|label| Cgroup::new(label))
            .collect::<anyhow::Result<_>>()?;
        let dir = TempDir::new("sidecar-bench-")?;
        for sub in ["config", "root/run"] {
            fs::create_dir_all(dir.path().join(sub))?;
        }
        redirect(&net.hosts()[Site::Iptables as usize])?;
        let mut made = Self {
            agent: Agent::with_config(&dir.path().join("config"))
                .under(pinned(BETWEEN))
                .not_started()?,
            cgroups,
            net,
            dir,
        };
        made.configure(rules)?;
        made.agent.start()?;
        made.agent
            .wait_until("all sides to be captured", |status| {
                let workloads = status["workloads"].as_array();
                workloads.is_some_and(|workloads| {
                    workloads.len() == 4
                        && workloads
                            .iter()
                            .all(|of| of["state"] == "captured" && of["problem"].is_null())
                })
            })?;
        Ok(made)
    }

    /// The host of a side.
    #[must_use]
    pub fn host(&self, site: Site) -> &Host {
        &self.net.hosts()[site as usize]
    }

    /// Where the programs of a side are.
    #[must_use]
    pub fn place(&self, site: Site) -> Place<'_> {
        Place::here()
            .netns(&self.host(site).netns)
            .cgroup(&self.cgroups[site as usize])
    }

    /// Where a proxy of a side is, as Istio's user.
    #[must_use]
    pub fn proxy_place(&self, site: Site) -> Place<'_> {
        self.place(site).user(PROXY_ID, PROXY_ID)
    }

    /// The agent.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn agent_pid(&self) -> anyhow::Result<u32> {
        self.agent.pid().context("the agent is not running")
    }

    /// The address of a side's host, for those that call it.
    #[must_use]
    pub fn address(&self, site: Site, port: u16) -> SocketAddr {
        (self.host(site).v4, port).into()
    }

    /// Where all relays lead.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        (self.host(Site::Peer).v6, RELAYED).into()
    }

    /// Where applications behind relays listen that are reached by a unix socket: one of each side.
    #[must_use]
    pub fn socket(&self, site: Site) -> PathBuf {
        let root = self.dir.path().join("root/run");
        match site {
            // The path of its listener.
            Site::Relay => root.join("app.sock"),
            site => root.join(format!("{}.sock", Site::ALL[site as usize].1)),
        }
    }

    /// A directory for files of those that are compared with.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn configure(&self, rules: usize) -> anyhow::Result<()> {
        let mut text = String::from(RESOURCES);
        for site in [Site::Proxy, Site::Accelerated, Site::Direct, Site::Relay] {
            text += &self.workload(site)?;
        }
        text = text
            .replace("PEER4", &self.host(Site::Peer).v4.to_string())
            .replace("PEER6", &self.host(Site::Peer).v6.to_string());
        for number in 0..u32::try_from(rules)? {
            let [_, a, b, c] = (number + 1).to_be_bytes();
            let ip = IpAddr::from([11, a, b, c]);
            text += &crate::lab::service("bench", &format!("unused-{number}"), ip, 80);
        }
        let file = self.dir.path().join("config/bench.yaml");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    fn workload(&self, site: Site) -> anyhow::Result<String> {
        let name = Site::ALL[site as usize].1;
        let host = self.host(site);
        let proxy = match site {
            Site::Proxy | Site::Accelerated => "external",
            _ => "none",
        };
        let accelerate = site == Site::Accelerated;
        Ok(format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata:\n  name: {name}\n  namespace: bench\n  annotations:\n    \
             capture.sidecar-agent.io/cgroup: {}\n    \
             capture.sidecar-agent.io/netns: {}\n    \
             capture.sidecar-agent.io/root: {}\n    \
             capture.sidecar-agent.io/proxy: {proxy}\n    \
             capture.sidecar-agent.io/accelerate: \"{accelerate}\"\n\
             spec:\n  address: {}\n  labels: {{app: {name}}}\n---\n",
            self.cgroups[site as usize].below_root()?,
            host.netns.path().display(),
            self.dir.path().join("root").display(),
            host.v4,
        ))
    }

    /// Looks whether the sides are what they are called: who answers a call, and what it is told of
    /// where the call was going. Figures of something else are worth nothing.
    ///
    /// # Errors
    /// When a side is something else.
    pub fn verify(&self) -> anyhow::Result<()> {
        let service: SocketAddr = SERVICE.parse()?;
        let proxy: SocketAddr = PROXY.parse()?;
        for (site, address, known) in [
            (
                Site::Plain,
                SocketAddr::from(([127, 0, 0, 1], proxy.port())),
                None,
            ),
            (Site::Iptables, service, Some(service)),
            (Site::Proxy, service, Some(service)),
            (Site::Accelerated, service, Some(service)),
        ] {
            let server = Server::tcp(proxy).place(self.proxy_place(site)).start()?;
            let outcome = Client::tcp(address).place(self.place(site)).banner()?;
            let seen = outcome
                .banner
                .with_context(|| format!("{site:?}: no answer"))?;
            ensure!(seen.original_dst == known, "{site:?}: {seen:?}");
            drop(server);
        }
        let peer = Place::here().netns(&self.host(Site::Peer).netns);
        for (site, port, at, relayed) in [
            (Site::Direct, MYSQL, self.address(Site::Peer, MYSQL), 0),
            (Site::Relay, RELAYED, self.target(), 1),
        ] {
            let server = Server::tcp(at).place(peer).start()?;
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let before = self.relayed()?;
            let outcome = Client::tcp(address).place(self.place(site)).banner()?;
            ensure!(outcome.banner.is_some(), "{site:?}: no answer: {outcome:?}");
            let now = self.relayed()?;
            ensure!(
                now == before + relayed,
                "{site:?}: {now} relayed after {before}"
            );
            drop(server);
        }
        Ok(())
    }

    /// What the agent has counted of acceleration: see `status`.
    ///
    /// # Errors
    /// When nothing is accelerated here.
    pub fn accelerated(&self, what: &str) -> anyhow::Result<u64> {
        let status = self.agent.status()?;
        status["acceleration"][what]
            .as_u64()
            .context("the agent accelerates nothing; its log tells why")
    }

    fn relayed(&self) -> anyhow::Result<u64> {
        let status = self.agent.status()?;
        status["relay"]["accepted"]
            .as_u64()
            .context("status does not tell what was relayed")
    }
}

/// Has room for thousands of connections to one address, one after the other: a source port is used
/// again a second after its connection has ended. The ports on which somebody listens are none of
/// them.
///
/// # Errors
/// When the kernel has no such parameters.
pub fn allow_many(netns: &Namespace) -> anyhow::Result<()> {
    netns.sysctl("net/ipv4/ip_local_port_range", "16384 65535")?;
    netns.sysctl("net/ipv4/tcp_tw_reuse", "1")
}

/// Istio's rules, as its injector asks for them.
fn redirect(host: &Host) -> anyhow::Result<()> {
    let options = OptionSet {
        include_outbound_ip_ranges: "*".to_owned(),
        include_inbound_ports: "*".to_owned(),
        exclude_inbound_ports: "15090,15021,15020".to_owned(),
        ..OptionSet::default()
    };
    let rules = rules::restore(&options, Family::V4)?;
    let mut command = Place::here().netns(&host.netns).command("iptables-restore");
    output_with_input(&mut command, &rules)?;
    Ok(())
}
