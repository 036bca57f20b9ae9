//! The kernel decides as `sidecar_common::decide` does over a plan in memory: plans made up by
//! chance, and real connections. A failure prints the seed; `SIDECAR_TEST_SEED` repeats it.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::AsFd as _,
    thread,
};

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use rustix::{
    io::Errno,
    net::{Shutdown, shutdown},
};
use sidecar_agent::{compile::MemTables, dataplane::RelaySockets};
use sidecar_common::{
    Addr, Endpoint, Path, Reason,
    decide::{self, Caller, Decision, Direction, InboundCall, OutboundCall, Transport},
    values::Rule,
};
use sidecar_tests::{
    Probe,
    apps::{
        Kind, Seen,
        wire::{canonical, mapped},
    },
    chance, require_root,
};

use crate::{
    fixture::{Fixture, serve},
    plan::{INBOUND_PORT, OUTBOUND_PORT, Planner, at},
};

/// Connections of one test.
const CONNECTIONS: usize = 200;

/// The workload's own addresses, beside the loopback ones; the fixture's namespace answers at many
/// more.
const OWN: [&str; 2] = ["10.3.0.1", "fd00:3::1"];

/// What a rule may say. None of them is one that the programs themselves give.
const REASONS: [Reason; 5] = [
    Reason::EgressService,
    Reason::AllowAny,
    Reason::RegistryOnly,
    Reason::CaptureAll,
    Reason::IncludedRange,
];

/// Ports that are called. Nobody listens on the last.
const PORTS: [u16; 3] = [80, 81, 82];

/// Who answers a connection and at which address; `None`: nobody.
type Answer = Option<(String, SocketAddr)>;

/// How a decision is counted.
type Why = (Path, Reason);

/// What may become of a connection: by the backend that chance chooses.
type Expected = Vec<(Answer, Why)>;

struct Chance(Rng);

impl Chance {
    fn new() -> anyhow::Result<Self> {
        chance::seeded().map(Self)
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.0.usize(..items.len())]
    }

    /// One of few addresses, so that rules are hit and missed.
    fn ip(&mut self, v4: bool) -> IpAddr {
        let (a, b, c) = (self.0.u8(1..3), self.0.u8(1..3), self.0.u8(1..4));
        let text = match (self.0.u8(0..10), v4) {
            (0, true) => "127.0.0.1".to_owned(),
            (0, false) => "::1".to_owned(),
            (1, v4) => OWN[usize::from(!v4)].to_owned(),
            (_, true) => format!("10.{a}.{b}.{c}"),
            (_, false) => format!("fd00:{a}:{b}::{c}"),
        };
        text.parse().expect("an address")
    }

    fn address(&mut self, v4: bool) -> SocketAddr {
        (self.ip(v4), self.of(&PORTS)).into()
    }

    /// A network that holds addresses of [`Chance::ip`].
    fn net(&mut self) -> String {
        let v4 = self.0.bool();
        let length = self.of(if v4 {
            &[0, 8, 16, 24, 32]
        } else {
            &[0, 16, 32, 48, 128]
        });
        format!("{}/{length}", self.ip(v4))
    }

    /// A direct one leads to a target, to a backend of one of the groups, or where it goes anyway.
    fn rule(&mut self, groups: &[u32], target: SocketAddr) -> Rule {
        let mut rule = Rule::new(self.of(Path::ALL), self.of(&REASONS));
        rule.flags = if self.0.u8(0..3) == 0 {
            Rule::EXEMPT_SELF
        } else {
            0
        };
        if rule.path == Path::Direct as u8 {
            match self.0.u8(0..6) {
                0 => {}
                // Of two backends; of which one is not in the map.
                1 | 2 => (rule.group, rule.backends) = (self.of(groups), self.of(&[2, 3])),
                _ => (rule.backends, rule.target) = (1, target.into()),
            }
        }
        rule
    }
}

/// A listener in the relay's place, which tells who it is until it is shut down.
struct Relay(TcpListener);

impl Relay {
    fn answer(&self) -> anyhow::Result<()> {
        while let Ok((mut connection, peer)) = self.0.accept() {
            let seen = Seen {
                name: "relay".to_owned(),
                peer: Some(peer),
                local: Some(connection.local_addr()?),
                original_dst: None,
                original_dst_errno: None,
            };
            writeln!(connection, "{}", serde_json::to_string(&seen)?)?;
        }
        Ok(())
    }

    /// Makes `answer` return.
    fn end(&self) {
        shutdown(&self.0, Shutdown::Both).expect("a listener can be shut down");
    }

    fn port(&self) -> u16 {
        self.0.local_addr().expect("it listens").port()
    }
}

/// A workload with addresses of its own and a relay for both families.
fn workload() -> anyhow::Result<(Fixture, [Relay; 2])> {
    let mut fixture = Fixture::without_plan()?;
    fixture
        .netns
        .add_address("lo", format!("{}/32", OWN[0]).parse()?)?;
    fixture
        .netns
        .add_address("lo", format!("{}/128", OWN[1]).parse()?)?;
    fixture.loaded.dataplane.refresh();
    let bind = |address: &'static str| fixture.netns.run(move || TcpListener::bind(address));
    let relays = [Relay(bind("127.0.0.1:0")??), Relay(bind("[::1]:0")??)];
    let [v4, v6] = relays.each_ref().map(|relay| &relay.0);
    let sockets = RelaySockets {
        v4: Some((v4.as_fd(), relays[0].port())),
        v6: Some((v6.as_fd(), relays[1].port())),
    };
    fixture
        .loaded
        .dataplane
        .set_relay(fixture.workload, &sockets)?;
    Ok((fixture, relays))
}

fn own_addresses() -> Vec<IpAddr> {
    let loopback = ["127.0.0.1", "::1"];
    OWN.iter()
        .chain(&loopback)
        .map(|ip| ip.parse().expect("an address"))
        .collect()
}

/// Every decision there can be, whatever backend chance chooses, as it would show.
fn expect(
    tables: &MemTables<'_>,
    decide: impl Fn() -> Decision,
    shows: impl Fn(&Decision, Reason) -> (Answer, Reason),
) -> Expected {
    // 0 to 5 leave every rest when divided by 2 or 3.
    let choices = (0..6).map(|choice| {
        tables.choose(choice);
        let decision = decide();
        let decided = Reason::from_number(decision.reason).expect("a reason");
        let (answer, reason) = shows(&decision, decided);
        // What cannot be carried out is refused.
        let path = if reason == decided {
            decision.path
        } else {
            Path::Deny
        };
        (answer, (path, reason))
    });
    choices.collect()
}

/// The server that is not the workload's, where it listens.
fn stranger(address: SocketAddr) -> Answer {
    (address.port() != PORTS[2]).then(|| ("stranger".to_owned(), address))
}

/// What one connection has added to the counters of a direction.
fn added(fixture: &Fixture, counters: &mut BTreeMap<Why, u64>, direction: Direction) -> Vec<Why> {
    let mut whys = Vec::new();
    for (counted, path, reason, count) in fixture.loaded.dataplane.counters(fixture.workload) {
        if counted == direction {
            let before = counters.insert((path, reason), count).unwrap_or(0);
            whys.extend((before..count).map(|_| (path, reason)));
        }
    }
    whys
}

/// Connects from an address, or from any.
fn visit(
    client: &Probe,
    source: Option<SocketAddr>,
    destination: SocketAddr,
) -> anyhow::Result<Option<Seen>> {
    let socket = client.socket(Kind::tcp(destination))??;
    if let Some(source) = source {
        socket.bind(source)??;
    }
    match socket.connect(destination)? {
        Ok(()) => Ok(Some(socket.banner()??)),
        Err(Errno::CONNREFUSED) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether what happened is one of what may.
fn check(expected: &Expected, seen: Option<Seen>, whys: &[Why]) -> anyhow::Result<()> {
    // The proxy is called at several loopback addresses.
    let answer = seen.and_then(|seen| {
        let mut local = canonical(seen.local?);
        if seen.name == "proxy" && local.port() == OUTBOUND_PORT && local.is_ipv4() {
            local.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        Some((seen.name, local))
    });
    let [why] = whys else {
        anyhow::bail!("counted as {whys:?}; expected one of {expected:?}")
    };
    let happened = (answer, *why);
    ensure!(
        expected.contains(&happened),
        "{happened:?}; expected one of {expected:?}"
    );
    Ok(())
}

/// Runs the relays beside a closure.
fn beside<T>(relays: &[Relay; 2], closure: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        for relay in relays {
            scope.spawn(|| relay.answer().expect("the relay answers"));
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(closure));
        for relay in relays {
            relay.end();
        }
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn outbound() -> anyhow::Result<()> {
    require_root!();
    let mut chance = Chance::new()?;
    let (mut fixture, relays) = workload()?;
    let proxied = chance.0.bool();
    let new = if proxied {
        Planner::new().proxied()
    } else {
        Planner::new()
    };
    let mut plan = new
        .group(&["10.9.0.1:80", "10.9.0.2:81"])
        .group(&["[fd00:9::1]:80", "10.9.0.3:80"])
        .outbound_default(chance.rule(&[0, 1], at("10.9.0.4:80")));
    let rule = |chance: &mut Chance| {
        let v4 = chance.0.u8(0..3) != 0;
        let target = chance.address(v4);
        chance.rule(&[0, 1, 2], target)
    };
    for _ in 0..20 {
        let v4 = chance.0.bool();
        plan = plan.outbound(&chance.address(v4).to_string(), rule(&mut chance));
        let port = chance.of(&[0, PORTS[0], PORTS[1]]);
        plan = plan.prefix(port, &chance.net(), rule(&mut chance));
    }
    fixture.follow(plan.clone())?;
    let plan = plan.build();
    let tables = MemTables::new(&plan, &own_addresses());
    let ports = relays.each_ref().map(Relay::port);
    let loopback = |v4: bool, [port4, port6]: [u16; 2]| {
        if v4 {
            SocketAddr::from((Ipv4Addr::LOCALHOST, port4))
        } else {
            SocketAddr::from((Ipv6Addr::LOCALHOST, port6))
        }
    };
    let shows = |socket: Kind, asked: SocketAddr, decision: &Decision, reason: Reason| {
        let v4 = asked.is_ipv4();
        let answer = match decision.path {
            Path::Direct if decision.target.port != 0 => {
                if socket == Kind::Tcp4 && !decision.target.addr.is_v4() {
                    return (None, Reason::PlanIncomplete);
                }
                stranger(decision.target.into())
            }
            Path::Pass | Path::Direct => stranger(asked),
            Path::Relay => Some(("relay".to_owned(), loopback(v4, ports))),
            Path::Proxy => Some(("proxy".to_owned(), loopback(v4, [OUTBOUND_PORT; 2]))),
            Path::Deny => None,
        };
        (answer, reason)
    };

    let _servers = [
        fixture.serve("[::]:80")?,
        fixture.serve("[::]:81")?,
        serve(fixture.as_proxy(), "[::]:15001", "proxy")?,
    ];
    let app = fixture.app()?;
    let mut counters = BTreeMap::new();
    beside(&relays, || {
        for _ in 0..CONNECTIONS {
            let v4 = chance.0.bool();
            let asked = chance.address(v4);
            let called = if chance.0.u8(0..3) == 0 {
                mapped(asked)
            } else {
                asked
            };
            let call = OutboundCall {
                dst: asked.into(),
                src: Addr::ANY,
                transport: Transport::Tcp,
                caller: Caller {
                    uid: 0,
                    gid: 0,
                    in_proxy_cgroup: false,
                },
                bound_device: false,
            };
            let decide = || decide::outbound(&tables, 0, &plan.header, &call);
            let shows =
                |decision: &Decision, reason| shows(Kind::tcp(called), asked, decision, reason);
            let expected = expect(&tables, decide, shows);
            let seen = visit(&app, None, called)?;
            if let Some(seen) = &seen
                && seen.name == "proxy"
            {
                // Nobody is told who is no proxy of the workload's.
                let expected = proxied.then_some(asked);
                ensure!(seen.original_dst == expected, "{called}: {seen:?}");
            }
            let whys = added(&fixture, &mut counters, Direction::Outbound);
            check(&expected, seen, &whys).with_context(|| format!("{called} in {plan:#?}"))?;
        }
        Ok(())
    })
}

#[test]
fn inbound() -> anyhow::Result<()> {
    require_root!();
    let mut chance = Chance::new()?;
    let (mut fixture, relays) = workload()?;
    let sources = [
        ["127.0.0.1:0", "10.3.0.1:0", "10.99.0.1:0"].map(at),
        ["[::1]:0", "[fd00:3::1]:0", "[fd00:99::1]:0"].map(at),
    ];
    let (targets4, targets6) = (
        ["127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083"],
        ["[::1]:8081", "[::1]:8082", "[::1]:8083"],
    );
    let mut default = chance.rule(&[2], at("127.0.0.1:8082"));
    if default.path == Path::Direct as u8 {
        // A target is of one family, and the default for both.
        default.backends = 0;
        default.target = Endpoint::default();
    }
    let mut plan = Planner::new()
        .group(&targets4[..2])
        .group(&targets6[..2])
        .inbound_default(default)
        .listens(8081)
        .listens(8082)
        .listens(8083)
        .listens(INBOUND_PORT);
    for _ in 0..20 {
        let v4 = chance.0.bool();
        let (mut local, targets, groups) = if v4 {
            (chance.address(true), targets4, [0, 2])
        } else {
            (chance.address(false), targets6, [1, 2])
        };
        if chance.0.u8(0..4) == 0 {
            local.set_ip(if v4 {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            });
        }
        let target = at(chance.of(&targets));
        plan = plan.inbound(&local.to_string(), chance.rule(&groups, target));
    }
    fixture.follow(plan.clone())?;
    // To call from. The dataplane does not look again, so it is not the workload's.
    fixture.netns.add_address("lo", "fd00:99::1/128".parse()?)?;
    let plan = plan.build();
    let tables = MemTables::new(&plan, &own_addresses());
    // Who listens where, see below.
    let listening = |target: SocketAddr| match (target.port(), target.is_ipv4()) {
        (8081, true) => Some("on 127.0.0.1"),
        (8082, _) => Some("on ::"),
        (8083, false) => Some("on ::1"),
        _ => None,
    };
    let shows = |called: SocketAddr, decision: &Decision, reason: Reason| {
        let name = match decision.path {
            Path::Direct if decision.target.port != 0 => match listening(decision.target.into()) {
                Some(name) => name,
                None => return (None, Reason::TargetNotListening),
            },
            Path::Pass | Path::Direct => return (stranger(called), reason),
            Path::Relay => "relay",
            Path::Proxy => "proxy",
            Path::Deny => return (None, reason),
        };
        (Some((name.to_owned(), called)), reason)
    };

    let _servers = [
        fixture.serve("[::]:80")?,
        fixture.serve("[::]:81")?,
        serve(fixture.inside(), "127.0.0.1:8081", "on 127.0.0.1")?,
        serve(fixture.inside(), "[::]:8082", "on ::")?,
        serve(fixture.inside(), "[::1]:8083", "on ::1")?,
        serve(fixture.as_proxy(), "[::]:15006", "proxy")?,
    ];
    let client = fixture.stranger()?;
    let mut counters = BTreeMap::new();
    beside(&relays, || {
        for _ in 0..CONNECTIONS {
            let v4 = chance.0.bool();
            let (source, called) = (chance.of(&sources[usize::from(!v4)]), chance.address(v4));
            let call = InboundCall {
                src: source.into(),
                dst: called.into(),
                interface: 0,
            };
            let decide = || decide::inbound(&tables, 0, &plan.header, &call);
            let expected = expect(&tables, decide, |decision, reason| {
                shows(called, decision, reason)
            });
            let seen = visit(&client, Some(source), called)?;
            let whys = added(&fixture, &mut counters, Direction::Inbound);
            check(&expected, seen, &whys)
                .with_context(|| format!("{source} to {called} in {plan:#?}"))?;
        }
        Ok(())
    })
}
