//! Bytes over connections that stay: round trips and streams, by size of message and by number of
//! connections.

use super::{
    Bench,
    load::{
        At, LoadClient, LoadServer,
        wire::{Order, unit},
    },
    metric::Metric,
    relays::{Kind, Relay},
    side::Side,
    slices::{self, Samples},
    statistics::Median,
    world::{ENDS, INGRESS, MYSQL, RELAYED, Site, World},
};

/// One way of sending bytes.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    stream: bool,
    size: u32,
    connections: u32,
}

/// Bytes of a write in bulk.
pub const BULK: u32 = 256 << 10;

/// Sizes and numbers that are asked for, and how sizes are called.
const SIZES: [(u32, &str); 4] = [
    (1, "1B"),
    (1024, "1KiB"),
    (16 << 10, "16KiB"),
    (64 << 10, "64KiB"),
];
const CONNECTIONS: [u32; 2] = [1, 64];

impl Cell {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for stream in [false, true] {
            for (size, _) in SIZES {
                all.extend(CONNECTIONS.map(|connections| Self {
                    stream,
                    size,
                    connections,
                }));
            }
        }
        all
    }

    /// The same with those in bulk.
    pub fn all_and_bulk() -> Vec<Self> {
        let mut all = Self::all();
        all.extend([1, 8].map(|connections| Self {
            stream: true,
            size: BULK,
            connections,
        }));
        all
    }

    /// What begins its metrics' names.
    pub fn kind(self) -> &'static str {
        if self.stream { "stream" } else { "rr" }
    }

    /// What ends its metrics' names.
    pub fn suffix(self) -> String {
        let size = SIZES.iter().find(|(size, _)| *size == self.size);
        let size = size.map_or("bulk", |(_, name)| name);
        format!("{size}.{}", self.connections)
    }

    /// For how much the server answers, and with how much.
    pub fn answers(self) -> (u32, u32) {
        if self.stream {
            (unit(self.size), 1)
        } else {
            (self.size, self.size)
        }
    }

    fn order(self, millis: u32) -> Order {
        let size = self.size;
        if self.stream {
            let unit = unit(size);
            Order::Stream { size, unit, millis }
        } else {
            Order::RoundTrips { size, millis }
        }
    }

    /// Measures all sides.
    pub fn measure(self, bench: &Bench<'_>, sides: &mut [Side]) -> anyhow::Result<Vec<Samples>> {
        for side in &mut *sides {
            side.open(self.connections)?;
        }
        let order = self.order(bench.plan.millis);
        slices::measure(sides.len(), bench.plan.slices, |side| {
            sides[side].sample(order)
        })
    }
}

/// Connections that were led to their endpoint by the kernel, and others.
///
/// # Errors
/// When a side does not work.
pub fn direct(bench: &mut Bench<'_>, world: &World) -> anyhow::Result<()> {
    for cell in Cell::all() {
        let (receive, send) = cell.answers();
        let at = At::Tcp(world.address(Site::Peer, MYSQL));
        let server = LoadServer::of_bytes(world.place(Site::Peer), ENDS, at, receive, send)?;
        let mut sides = Vec::new();
        for (site, address) in [
            (Site::Plain, world.address(Site::Peer, MYSQL)),
            (Site::Direct, ([127, 0, 0, 1], MYSQL).into()),
        ] {
            let client = LoadClient::start(world.place(site), ENDS)?;
            let counted = vec![client.pid(), server.pid()];
            sides.push(Side::counting(client, address, counted));
        }
        let all = cell.measure(bench, &mut sides)?;
        let ratio = Median::of_ratios(&all[1].rates, &all[0].rates);
        bench.ratio(
            format!("{}.direct_over_plain.{}", cell.kind(), cell.suffix()),
            ratio,
        );
    }
    Ok(())
}

/// Our relay and others, between two TCP connections, and between one and a unix socket.
///
/// # Errors
/// When a side does not work.
pub fn relayed(bench: &mut Bench<'_>, world: &World) -> anyhow::Result<()> {
    let others = Others::start(world)?;
    new_connections(bench, world, &others)?;
    for cell in Cell::all_and_bulk() {
        let (receive, send) = cell.answers();
        let at = At::Tcp(world.target());
        let server = LoadServer::of_bytes(world.place(Site::Peer), ENDS, at, receive, send)?;
        let mut sides = others.sides(world)?;
        for side in &mut sides {
            side.count_ends(server.pid());
        }
        let all = cell.measure(bench, &mut sides)?;
        compare(bench, cell.kind(), &cell.suffix(), &all, cell.stream);
    }
    for cell in Cell::all_and_bulk() {
        let (receive, send) = cell.answers();
        let mut sides = Vec::new();
        for (site, counted) in others.relays(world)? {
            let socket = world.socket(site);
            let place = world.place(site);
            let server = LoadServer::of_bytes(place, ENDS, At::Unix(&socket), receive, send)?;
            let client = LoadClient::start(world.place(Site::Peer), ENDS)?;
            let address = world.address(site, INGRESS);
            let mut side = Side::counting(client, address, vec![counted]);
            side.count_ends(server.pid());
            sides.push(side.keeping(server));
        }
        let all = cell.measure(bench, &mut sides)?;
        let suffix = format!("unix.{}", cell.suffix());
        compare(bench, cell.kind(), &suffix, &all, cell.stream);
    }
    Ok(())
}

fn new_connections(bench: &mut Bench<'_>, world: &World, others: &Others) -> anyhow::Result<()> {
    let place = world.place(Site::Peer);
    let _server = LoadServer::of_connections(place, ENDS, world.target(), true)?;
    let mut sides = others.sides(world)?;
    let times = bench.plan.connections;
    let all = slices::measure(sides.len(), bench.plan.slices, |side| {
        sides[side].connect(times, true)
    })?;
    compare(bench, "connect_rate", "", &all, false);
    Ok(())
}

/// The relays that ours is compared with.
pub struct Others(Vec<(Kind, Relay)>);

impl Others {
    /// Starts them.
    ///
    /// # Errors
    /// When one does not work.
    pub fn start(world: &World) -> anyhow::Result<Self> {
        let all = Kind::ALL.iter().map(|kind| Ok((*kind, kind.start(world)?)));
        Ok(Self(all.collect::<anyhow::Result<_>>()?))
    }

    /// Ours and the others, in the order of [`compare`], with their processes.
    ///
    /// # Errors
    /// When the agent does not run.
    pub fn relays(&self, world: &World) -> anyhow::Result<Vec<(Site, u32)>> {
        let ours = (Site::Relay, world.agent_pid()?);
        let others = self
            .0
            .iter()
            .map(|(kind, relay)| (kind.site(), relay.pid()));
        Ok([ours].into_iter().chain(others).collect())
    }

    /// A client of each; the relay's CPU time counts.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn sides(&self, world: &World) -> anyhow::Result<Vec<Side>> {
        let relays = self.relays(world)?.into_iter();
        relays
            .map(|(site, pid)| {
                let client = LoadClient::start(world.place(site), ENDS)?;
                let address = ([127, 0, 0, 1], RELAYED).into();
                Ok(Side::counting(client, address, vec![pid]))
            })
            .collect()
    }
}

/// Compares ours, the first, with the better of the two ways of `HAProxy`, and with Envoy, the last.
fn compare(bench: &mut Bench<'_>, kind: &str, suffix: &str, all: &[Samples], bytes: bool) {
    let [ours, auto, request, envoy] = all else {
        return;
    };
    let median = |samples: &Samples| Median::of(&samples.rates).map_or(0., |of| of.value);
    let haproxy = if median(auto) > median(request) {
        auto
    } else {
        request
    };
    let dotted = if suffix.is_empty() {
        String::new()
    } else {
        format!(".{suffix}")
    };
    for (name, other) in [("haproxy", haproxy), ("envoy", envoy)] {
        let ratio = Median::of_ratios(&ours.rates, &other.rates);
        bench.ratio(format!("{kind}.relay_over_{name}{dotted}"), ratio);
        let of = match kind {
            "connect_rate" => "connect",
            _ if bytes => "byte",
            _ => "rr",
        };
        let ratio = Median::of_ratios(&ours.cpu, &other.cpu);
        bench.ratio(format!("cpu_per_{of}.relay_over_{name}{dotted}"), ratio);
    }
    // A stream is as fast as the busiest of those it passes.
    if bytes {
        let relay = (ours.rates.iter().zip(&ours.cpu)).map(|(rate, cpu)| rate * cpu / 1e9);
        for (who, shares) in [("ends", ours.ends.clone()), ("relay", relay.collect())] {
            if let Some(share) = Median::of(&shares) {
                bench.add(Metric::new(
                    format!("busy.{who}{dotted}"),
                    "of a CPU",
                    share,
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<String> = Cell::all_and_bulk()
            .into_iter()
            .map(|cell| format!("{}.{}", cell.kind(), cell.suffix()))
            .collect();
        assert_eq!(names.len(), 18);
        for name in ["rr.1B.1", "rr.64KiB.64", "stream.16KiB.1", "stream.bulk.8"] {
            assert!(names.contains(name), "{name} of {names:?}");
        }
    }
}
