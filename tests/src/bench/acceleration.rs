//! The hop between an application and its proxy, accelerated and not.

use std::{
    fs::File,
    process::{Child, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{
    Bench,
    bytes::Cell,
    load::{At, LoadClient, LoadServer, wire::Order},
    pinned,
    side::Side,
    slices,
    statistics::Median,
    world::{BETWEEN, ENDS, PROXY, SERVICE, Site, World},
};
use crate::{envoy, poll::poll_result};

/// Without and with.
const SITES: [Site; 2] = [Site::Proxy, Site::Accelerated];

/// Measures new connections, round trips and streams to a proxy that answers itself, and requests to
/// Envoy that does.
///
/// # Errors
/// When a side does not work, or nothing was accelerated.
pub fn measure(bench: &mut Bench<'_>, world: &World) -> anyhow::Result<()> {
    let before = world.accelerated("redirected")?;
    connects(bench, world)?;
    for cell in Cell::all_and_bulk() {
        let (receive, send) = cell.answers();
        let mut sides = Vec::new();
        for site in SITES {
            let at = At::Tcp(PROXY.parse()?);
            let place = world.proxy_place(site);
            let server = LoadServer::of_bytes(place, ENDS, at, receive, send)?;
            let client = LoadClient::start(world.place(site), ENDS)?;
            sides.push(Side::with_server(client, SERVICE.parse()?, server));
        }
        let all = cell.measure(bench, &mut sides)?;
        let ratio = Median::of_ratios(&all[1].rates, &all[0].rates);
        let (kind, suffix) = (cell.kind(), cell.suffix());
        bench.ratio(format!("{kind}.accelerated_over_proxy.{suffix}"), ratio);
        let ratio = Median::of_ratios(&all[1].cpu, &all[0].cpu);
        bench.ratio(
            format!("cpu_per_{kind}.accelerated_over_proxy.{suffix}"),
            ratio,
        );
    }
    requests(bench, world)?;
    ensure!(
        world.accelerated("redirected")? > before,
        "nothing was accelerated: the figures are those of two equal sides"
    );
    Ok(())
}

/// Connections by a client that does not block, as only those are accelerated; each time as many as
/// are open before are closed.
fn connects(bench: &mut Bench<'_>, world: &World) -> anyhow::Result<()> {
    /// So many at a time.
    const MANY: u32 = 200;
    let mut sides = Vec::new();
    for site in SITES {
        let place = world.proxy_place(site);
        let server = LoadServer::of_bytes(place, ENDS, At::Tcp(PROXY.parse()?), 1, 1)?;
        let client = LoadClient::start(world.place(site), ENDS)?;
        sides.push(Side::with_server(client, SERVICE.parse()?, server));
    }
    let all = slices::measure(sides.len(), bench.plan.slices, |side| {
        let address = sides[side].address;
        sides[side].sample(Order::Open {
            address,
            connections: MANY.min(bench.plan.connections),
        })
    })?;
    let ratio = Median::of_ratios(&all[1].rates, &all[0].rates);
    bench.ratio("connect_rate.accelerated_over_proxy".to_owned(), ratio);
    Ok(())
}

fn requests(bench: &mut Bench<'_>, world: &World) -> anyhow::Result<()> {
    let mut envoys = Vec::new();
    for site in SITES {
        envoys.push(Proxy::start(world, site)?);
    }
    for connections in [1, 64] {
        let mut sides = Vec::new();
        for (site, envoy) in SITES.into_iter().zip(&envoys) {
            let client = LoadClient::start(world.place(site), ENDS)?;
            let counted = vec![client.pid(), envoy.0.id()];
            let mut side = Side::counting(client, SERVICE.parse()?, counted);
            side.open(connections)?;
            sides.push(side);
        }
        let millis = bench.plan.millis;
        let all = slices::measure(sides.len(), bench.plan.slices, |side| {
            sides[side].sample(Order::Requests { millis })
        })?;
        for (what, ours, other) in [
            ("rps", &all[1].rates, &all[0].rates),
            ("cpu_per_request", &all[1].cpu, &all[0].cpu),
        ] {
            let ratio = Median::of_ratios(ours, other);
            let name = format!("{what}.envoy_accelerated_over_envoy.{connections}");
            bench.ratio(name, ratio);
        }
    }
    Ok(())
}

/// An Envoy that answers requests itself, as the proxy of a side.
#[derive(Debug)]
struct Proxy(Child);

impl Proxy {
    fn start(world: &World, site: Site) -> anyhow::Result<Self> {
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.\
                      http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                },
            }],
            "route_config": {"virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{
                    "match": {"prefix": "/"},
                    "direct_response": {
                        "status": 200,
                        "body": {"inline_string": "x".repeat(1024)},
                    },
                }],
            }]},
        });
        let config = json!({"static_resources": {"listeners": [{
            "name": "outbound",
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15001}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }]}],
        }]}});
        let words = pinned(BETWEEN);
        let mut command = world.proxy_place(site).command(&words[0]);
        // The proxy's user may not be allowed to reach where the program is.
        let program = envoy::program()?;
        let program =
            File::open(&program).with_context(|| format!("cannot open {}", program.display()))?;
        let child = command
            .args(&words[1..])
            .arg("/proc/self/fd/0")
            .args(["--config-yaml", &config.to_string()])
            .args(["--concurrency", "1", "--disable-hot-restart"])
            .args(["--log-level", "error"])
            .stdin(program)
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run Envoy")?;
        let proxy = Self(child);
        let netns = &world.host(site).netns;
        poll_result(crate::DEADLINE, "Envoy to listen", || {
            netns.run(|| std::net::TcpStream::connect("127.0.0.1:15001"))??;
            anyhow::Ok(())
        })?;
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
