//! Relays to compare with: `HAProxy` in tcp mode and Envoy's `tcp_proxy`, each with one thread.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};

use super::{
    pinned,
    world::{BETWEEN, INGRESS, RELAYED, Site, World},
};
use crate::{
    envoy,
    poll::{DEADLINE, poll_result},
};

/// What they are, for messages and files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `HAProxy` that splices when it thinks best.
    HaproxyAuto,
    /// `HAProxy` that splices both ways.
    HaproxyRequest,
    /// Envoy.
    Envoy,
}

/// A relay, killed when dropped, and with its cgroup.
#[derive(Debug)]
pub struct Relay(Child);

impl Kind {
    /// All.
    pub const ALL: [Self; 3] = [Self::HaproxyAuto, Self::HaproxyRequest, Self::Envoy];

    /// Where it runs.
    #[must_use]
    pub fn site(self) -> Site {
        match self {
            Self::HaproxyAuto => Site::HaproxyAuto,
            Self::HaproxyRequest => Site::HaproxyRequest,
            Self::Envoy => Site::Envoy,
        }
    }

    /// Starts it: it does between the same addresses what our relay does.
    ///
    /// # Errors
    /// When it is not installed, or does not listen.
    pub fn start(self, world: &World) -> anyhow::Result<Relay> {
        let site = self.site();
        let pairs = [
            (
                SocketAddr::from(([127, 0, 0, 1], RELAYED)),
                Target::Tcp(world.target()),
            ),
            (
                world.address(site, INGRESS),
                Target::Unix(world.socket(site)),
            ),
        ];
        let words = pinned(BETWEEN);
        let mut command = world.place(site).command(&words[0]);
        command.args(&words[1..]);
        match self {
            Self::HaproxyAuto => self.haproxy(&mut command, world, &pairs, "option splice-auto"),
            Self::HaproxyRequest => {
                let splice = "option splice-request\n  option splice-response";
                self.haproxy(&mut command, world, &pairs, splice)
            }
            Self::Envoy => configure_envoy(&mut command, &pairs),
        }?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {self:?}"))?;
        let mut relay = Relay(child);
        poll_result(DEADLINE, &format!("{self:?} to listen"), || {
            if let Some(status) = relay.0.try_wait()? {
                // Nothing to wait for any more.
                return Ok(Err(anyhow!("{self:?} has ended with {status}")));
            }
            let netns = &world.host(site).netns;
            let addresses = pairs.each_ref().map(|(listen, _)| *listen);
            netns.run(|| addresses.iter().try_for_each(is_listening))??;
            Ok(Ok(()))
        })??;
        Ok(relay)
    }

    fn haproxy(
        self,
        command: &mut Command,
        world: &World,
        pairs: &[(SocketAddr, Target)],
        splice: &str,
    ) -> anyhow::Result<()> {
        let mut text = format!(
            "global\n  nbthread 1\n  maxconn 4000\n\
             defaults\n  mode tcp\n  {splice}\n  timeout connect 5s\n  \
             timeout client 10m\n  timeout server 10m\n"
        );
        for (number, (listen, target)) in pairs.iter().enumerate() {
            let target = match target {
                Target::Tcp(address) => address.to_string(),
                Target::Unix(path) => format!("unix@{}", path.display()),
            };
            writeln!(
                text,
                "listen of{number}\n  bind {listen}\n  server target {target}"
            )?;
        }
        let file = world.dir().join(format!("{self:?}.cfg"));
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        command.args(["haproxy", "-db", "-q", "-f"]).arg(file);
        Ok(())
    }
}

fn is_listening(address: &SocketAddr) -> anyhow::Result<()> {
    TcpStream::connect(address).with_context(|| address.to_string())?;
    Ok(())
}

enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// No statistics, no access log, no admin interface: only what relays.
fn configure_envoy(command: &mut Command, pairs: &[(SocketAddr, Target)]) -> anyhow::Result<()> {
    let address = |address: &SocketAddr| json!({"socket_address": {"address": address.ip(), "port_value": address.port()}});
    let (mut listeners, mut clusters): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for (number, (listen, target)) in pairs.iter().enumerate() {
        let name = format!("of{number}");
        let target = match target {
            Target::Tcp(target) => address(target),
            Target::Unix(path) => json!({"pipe": {"path": path}}),
        };
        listeners.push(json!({
            "name": name,
            "address": address(listen),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/\
                              envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": name,
                    "cluster": name,
                },
            }]}],
        }));
        clusters.push(json!({
            "name": name,
            "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [{
                "max_connections": 100_000, "max_pending_requests": 100_000,
            }]},
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": target}}]}],
            },
        }));
    }
    let config = json!({
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    command
        .arg(envoy::program()?)
        .args(["--config-yaml", &config.to_string()])
        .args(["--concurrency", "1", "--disable-hot-restart"])
        .args(["--log-level", "error"]);
    Ok(())
}

impl Relay {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
