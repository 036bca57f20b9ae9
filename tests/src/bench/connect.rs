//! New connections: what capture costs each of them.

use anyhow::ensure;

use super::{
    Bench, conntrack,
    load::{LoadClient, LoadServer},
    metric::Metric,
    side::Side,
    slices::{self, Samples},
    statistics::Median,
    world::{APPLICATION, ENDS, INGRESS, MYSQL, PROXY, SERVICE, Site, World},
};

/// To a proxy: called by itself, by iptables, by us. The proxy asks for the original destination.
///
/// # Errors
/// When a side does not work.
pub fn proxied(bench: &mut Bench<'_>, world: &World) -> anyhow::Result<()> {
    for (exchange, suffix) in [(true, ""), (false, ".no_data")] {
        let mut sides = Vec::new();
        for site in [Site::Plain, Site::Iptables, Site::Proxy] {
            let server = LoadServer::of_connections(
                world.proxy_place(site),
                ENDS,
                PROXY.parse()?,
                exchange,
            )?;
            let address = match site {
                Site::Plain => "127.0.0.1:15001".parse()?,
                _ => SERVICE.parse()?,
            };
            let client = LoadClient::start(world.place(site), ENDS)?;
            sides.push(Side::with_server(client, address, server));
        }
        let (slices, times) = (bench.plan.slices, bench.plan.connections);
        let all = slices::measure(sides.len(), slices, |side| {
            sides[side].connect(times, exchange)
        })?;
        let [plain, iptables, ours] = &all[..] else {
            continue;
        };
        rate(bench, "proxy_over_plain", suffix, ours, plain);
        rate(bench, "proxy_over_iptables", suffix, ours, iptables);
        rate(bench, "iptables_over_plain", suffix, iptables, plain);
        cpu(bench, "proxy_over_plain", suffix, ours, plain);
        cpu(bench, "proxy_over_iptables", suffix, ours, iptables);
    }
    let seen = conntrack::entries(&world.host(Site::Iptables).netns)?;
    ensure!(
        seen > 0,
        "conntrack counts nothing where iptables redirects: its count tells nothing here"
    );
    let mut ours = 0;
    for site in [Site::Proxy, Site::Direct, Site::Relay] {
        ours += conntrack::entries(&world.host(site).netns)?;
    }
    bench.add(Metric::single(
        "conntrack.added",
        "entries",
        f64::from(ours),
    ));
    Ok(())
}

/// Straight to where they lead: inbound to the application's own socket, outbound to an endpoint.
///
/// # Errors
/// When a side does not work.
pub fn direct(bench: &mut Bench<'_>, world: &World) -> anyhow::Result<()> {
    let (slices, times) = (bench.plan.slices, bench.plan.connections);
    let wildcard = |port| format!("0.0.0.0:{port}").parse();

    let mut inbound = Vec::new();
    for (site, listen) in [
        (Site::Plain, wildcard(INGRESS)?),
        (Site::Direct, APPLICATION.parse()?),
    ] {
        let server = LoadServer::of_connections(world.place(site), ENDS, listen, true)?;
        let client = LoadClient::start(world.place(Site::Peer), ENDS)?;
        inbound.push(Side::with_server(
            client,
            world.address(site, INGRESS),
            server,
        ));
    }
    let all = slices::measure(2, slices, |side| inbound[side].connect(times, true))?;
    rate(bench, "direct_in_over_plain", "", &all[1], &all[0]);

    let server = LoadServer::of_connections(world.place(Site::Peer), ENDS, wildcard(MYSQL)?, true)?;
    let mut outbound = Vec::new();
    for (site, address) in [
        (Site::Plain, world.address(Site::Peer, MYSQL)),
        (Site::Direct, ([127, 0, 0, 1], MYSQL).into()),
    ] {
        let client = LoadClient::start(world.place(site), ENDS)?;
        let counted = vec![client.pid(), server.pid()];
        outbound.push(Side::counting(client, address, counted));
    }
    let all = slices::measure(2, slices, |side| outbound[side].connect(times, true))?;
    rate(bench, "direct_out_over_plain", "", &all[1], &all[0]);
    Ok(())
}

fn rate(bench: &mut Bench<'_>, what: &str, suffix: &str, side: &Samples, baseline: &Samples) {
    let ratio = Median::of_ratios(&side.rates, &baseline.rates);
    bench.ratio(format!("connect_rate.{what}{suffix}"), ratio);
}

fn cpu(bench: &mut Bench<'_>, what: &str, suffix: &str, side: &Samples, baseline: &Samples) {
    let ratio = Median::of_ratios(&side.cpu, &baseline.cpu);
    bench.ratio(format!("cpu_per_connect.{what}{suffix}"), ratio);
}
