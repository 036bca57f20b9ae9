//! How long the programs run, as the kernel counts it. Counting itself is in it: an empty program
//! takes some 40 to 60 ns.

use anyhow::Context as _;
use aya::sys::{Stats, enable_stats};

use super::{
    Bench, kernel,
    load::{LoadClient, LoadServer},
    metric::Metric,
    side::Side,
    statistics::Median,
    world::{APPLICATION, ENDS, INGRESS, MYSQL, PROXY, SERVICE, Site, World},
};

/// What a program takes.
struct Figure {
    metric: &'static str,
    /// Its name in the kernel.
    program: &'static str,
    /// For a connection, with all runs that it has; else for a run.
    by_connection: bool,
}

const fn by_run(metric: &'static str, program: &'static str) -> Figure {
    Figure {
        metric,
        program,
        by_connection: false,
    }
}

const fn by_connection(metric: &'static str, program: &'static str) -> Figure {
    Figure {
        metric,
        program,
        by_connection: true,
    }
}

/// In a world whose plans have so many rules.
///
/// # Errors
/// When a side does not work, or the kernel counts nothing.
pub fn measure(bench: &mut Bench<'_>, world: &World, rules: &str) -> anyhow::Result<()> {
    let _counting = enable_stats(Stats::RunTime).context("cannot have the kernel count")?;
    let start = |site| LoadClient::start(world.place(site), ENDS);

    let place = world.proxy_place(Site::Proxy);
    let server = LoadServer::of_connections(place, ENDS, PROXY.parse()?, true)?;
    let mut side = Side::with_server(start(Site::Proxy)?, SERVICE.parse()?, server);
    figures(
        bench,
        world,
        rules,
        &mut side,
        &[
            by_run("connect", "connect4"),
            by_connection("sock_ops", "sock_ops"),
            by_run("getsockopt", "getsockopt"),
        ],
    )?;

    let listen = format!("0.0.0.0:{MYSQL}").parse()?;
    let server = LoadServer::of_connections(world.place(Site::Peer), ENDS, listen, true)?;
    let address = ([127, 0, 0, 1], MYSQL).into();
    let mut side = Side::with_server(start(Site::Direct)?, address, server);
    let direct = [
        by_run("connect.direct", "connect4"),
        by_connection("sock_ops.direct", "sock_ops"),
    ];
    figures(bench, world, rules, &mut side, &direct)?;

    // No rule says anything of it: the whole walk.
    let mut side = Side::counting(
        start(Site::Direct)?,
        world.address(Site::Peer, MYSQL),
        Vec::new(),
    )
    .keeping(side.into_server().context("no server")?);
    let unknown = [by_run("connect.unknown", "connect4")];
    figures(bench, world, rules, &mut side, &unknown)?;

    let place = world.place(Site::Direct);
    let server = LoadServer::of_connections(place, ENDS, APPLICATION.parse()?, true)?;
    let address = world.address(Site::Direct, INGRESS);
    let mut side = Side::with_server(start(Site::Peer)?, address, server);
    let inbound = [by_run("sk_lookup", "inbound")];
    figures(bench, world, rules, &mut side, &inbound)
}

fn figures(
    bench: &mut Bench<'_>,
    world: &World,
    rules: &str,
    side: &mut Side,
    figures: &[Figure],
) -> anyhow::Result<()> {
    let times = bench.plan.connections;
    let mut seen: Vec<Vec<f64>> = vec![Vec::new(); figures.len()];
    side.connect(times, true)?;
    for _ in 0..bench.plan.slices {
        let before = kernel::programs(world.agent())?;
        side.connect(times, true)?;
        let after = kernel::programs(world.agent())?;
        for (figure, seen) in figures.iter().zip(&mut seen) {
            let [before, after] = [&before, &after]
                .map(|programs| programs.get(figure.program).copied().unwrap_or_default());
            let (count, nanos) = (after.count - before.count, after.nanos - before.nanos);
            let by = if figure.by_connection {
                u64::from(times)
            } else {
                count
            };
            #[expect(clippy::cast_precision_loss, reason = "figures")]
            seen.push(nanos as f64 / by as f64);
        }
    }
    for (figure, seen) in figures.iter().zip(&seen) {
        let name = format!("hook_ns.{}.{rules}", figure.metric);
        let median = Median::of(seen).with_context(|| format!("{name}: it did not run"))?;
        bench.add(Metric::new(name, "ns", median));
    }
    Ok(())
}
