//! `sk_lookup`: what becomes of connections to the workload, and how its listening sockets become
//! known (`TCP_LISTEN_CB` of `sock_ops`, and those that were there before).

use std::{collections::BTreeSet, net::UdpSocket};

use rustix::io::Errno;
use sidecar_common::{Path, Reason, values::Rule};
use sidecar_tests::{
    Cgroup, Client, DEADLINE, Mode, Namespace, Net, Place, Probe, Server,
    apps::{Kind, Seen, wire::canonical},
    require_root,
};

use crate::{
    fixture::{Fixture, Loaded, namespace, reached, serve},
    plan::{Planner, at, balanced, deny, direct, exempting_self, proxy, relay, rule},
};

/// A rule of an ingress listener.
fn to(target: &str) -> Rule {
    Rule {
        reason: Reason::IngressListener as u8,
        ..direct(target)
    }
}

/// Calls from a given address.
fn visit_from(
    client: &Probe,
    source: &str,
    destination: &str,
) -> anyhow::Result<Result<Seen, Errno>> {
    let socket = client.socket(Kind::tcp(at(source)))??;
    socket.bind(at(source))??;
    Ok(match socket.connect(at(destination))? {
        Ok(()) => Ok(socket.banner()??),
        Err(errno) => Err(errno),
    })
}

#[test]
fn a_connection_is_given_to_the_applications_socket_wherever_it_is_bound() -> anyhow::Result<()> {
    require_root!();
    let mut plan = Planner::new();
    let sockets = [
        ("0.0.0.0:9081", "127.0.0.1:8081", "127.0.0.1:8081"),
        ("0.0.0.0:9082", "127.0.0.1:8082", "0.0.0.0:8082"),
        ("0.0.0.0:9083", "127.0.0.1:8083", "[::]:8083"),
        ("[::]:9083", "[::1]:8083", "[::]:8083"),
        ("[::]:9084", "[::1]:8084", "[::1]:8084"),
        ("0.0.0.0:9085", "10.3.0.9:8085", "10.3.0.9:8085"),
    ];
    for (listener, target, _) in sockets {
        plan = plan
            .inbound(listener, to(target))
            .listens(at(target).port());
    }
    let fixture = Fixture::new(plan)?;
    let bound: BTreeSet<_> = sockets.iter().map(|(_, _, bound)| bound).collect();
    let _apps = bound
        .into_iter()
        .map(|bound| serve(fixture.inside(), bound, bound))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let stranger = fixture.stranger()?;
    for (listener, _, bound) in sockets {
        let (v4, port) = (at(listener).is_ipv4(), at(listener).port());
        let called = at(&if v4 {
            format!("10.3.0.1:{port}")
        } else {
            format!("[fd00:3::1]:{port}")
        });
        let seen = stranger.visit(called)??;
        assert_eq!((seen.name.as_str(), reached(&seen)?), (bound, called));
    }
    assert_eq!(fixture.inbound(Reason::IngressListener)?, 6);
    Ok(())
}

#[test]
fn one_address_beats_the_wildcard_of_its_family_and_other_ports_pass() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("10.3.0.1:9080", to("127.0.0.1:8081"))
        .inbound("0.0.0.0:9080", to("127.0.0.1:8082"))
        .listens(8081)
        .listens(8082);
    let fixture = Fixture::new(plan)?;
    let _servers = [
        serve(fixture.inside(), "127.0.0.1:8081", "exact")?,
        serve(fixture.inside(), "127.0.0.1:8082", "wildcard")?,
        fixture.serve("[::]:9080")?,
        fixture.serve("[::]:9090")?,
    ];
    let stranger = fixture.stranger()?;
    for (called, name) in [
        ("10.3.0.1:9080", "exact"),
        ("10.3.0.2:9080", "wildcard"),
        ("127.0.0.1:9080", "wildcard"),
        ("[fd00:3::1]:9080", "stranger"),
        ("10.3.0.1:9090", "stranger"),
    ] {
        let seen = stranger.visit(at(called))??;
        assert_eq!((seen.name.as_str(), reached(&seen)?), (name, at(called)));
    }
    assert_eq!(
        stranger.visit(at("10.3.0.1:9091"))?,
        Err(Errno::CONNREFUSED)
    );
    assert_eq!(fixture.inbound(Reason::IngressListener)?, 3);
    assert_eq!(fixture.inbound(Reason::UndeclaredPort)?, 3);
    Ok(())
}

#[test]
fn a_rule_for_the_ipv6_wildcard_is_not_for_ipv4() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("[::]:9080", to("[::1]:8080"))
        .listens(8080);
    let fixture = Fixture::new(plan)?;
    let _servers = [
        serve(fixture.inside(), "[::]:8080", "app")?,
        fixture.serve("0.0.0.0:9080")?,
    ];
    let stranger = fixture.stranger()?;
    assert_eq!(stranger.visit(at("[fd00:3::1]:9080"))??.name, "app");
    assert_eq!(stranger.visit(at("10.3.0.1:9080"))??.name, "stranger");
    Ok(())
}

#[test]
fn a_target_that_comes_goes_and_comes_again() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", to("127.0.0.1:8080"))
        .listens(8080);
    let fixture = Fixture::new(plan)?;
    let (stranger, called) = (fixture.stranger()?, at("10.3.0.1:9080"));
    // Where the connection was going, it would be answered.
    let _server = fixture.serve("0.0.0.0:9080")?;
    let mut refused = 0;
    for name in ["first", "second"] {
        assert_eq!(
            stranger.visit(called)?,
            Err(Errno::CONNREFUSED),
            "before the {name}"
        );
        refused += 1;
        assert_eq!(fixture.inbound(Reason::TargetNotListening)?, refused);
        let app = serve(fixture.inside(), "127.0.0.1:8080", name)?;
        assert_eq!(stranger.visit(called)??.name, name);
        drop(app);
    }
    assert_eq!(stranger.visit(called)?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.inbound(Reason::IngressListener)?, 2);
    Ok(())
}

#[test]
fn a_listener_is_found_that_was_open_before() -> anyhow::Result<()> {
    require_root!();
    let (cgroup, netns) = (Cgroup::new("workload")?, namespace()?);
    let outside = Place::here().netns(&netns);
    let below = cgroup.child("container")?;
    let _before_attach = [
        serve(outside.cgroup(&cgroup), "127.0.0.1:8081", "8081")?,
        serve(outside.cgroup(&below), "[::]:8082", "8082")?,
        serve(outside.cgroup(&cgroup), "0.0.0.0:8083", "8083")?,
    ];
    let mut loaded = Loaded::new()?;
    let workload = loaded.attach(&cgroup, &netns)?;
    let _before_plan = serve(outside.cgroup(&cgroup), "[::1]:8084", "8084")?;
    let mut plan = Planner::new()
        .inbound("[::]:9084", to("[::1]:8084"))
        .listens(8084);
    for port in [8081, 8082, 8083] {
        let (listener, target) = (
            format!("0.0.0.0:9{}", port - 8000),
            format!("127.0.0.1:{port}"),
        );
        let listener = listener.replace(":9", ":90");
        plan = plan.inbound(&listener, to(&target)).listens(port);
    }
    loaded.follow(workload, plan.build())?;
    let stranger = Probe::start(outside)?;
    for (called, name) in [
        ("10.3.0.1:9081", "8081"),
        ("10.3.0.1:9082", "8082"),
        ("10.3.0.1:9083", "8083"),
        ("[fd00:3::1]:9084", "8084"),
    ] {
        assert_eq!(stranger.visit(at(called))??.name, name);
    }
    Ok(())
}

#[test]
fn nobody_elses_listener_is_a_target() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", to("127.0.0.1:8080"))
        .listens(8080);
    let mut fixture = Fixture::without_plan()?;
    // One before the plan, one after it: in the namespace, and not of the workload.
    let before = fixture.serve("127.0.0.1:8080")?;
    fixture.follow(plan)?;
    let stranger = fixture.stranger()?;
    assert_eq!(
        stranger.visit(at("10.3.0.1:9080"))?,
        Err(Errno::CONNREFUSED)
    );
    drop(before);
    let _after = fixture.serve("127.0.0.1:8080")?;
    assert_eq!(
        stranger.visit(at("10.3.0.1:9080"))?,
        Err(Errno::CONNREFUSED)
    );
    assert_eq!(fixture.inbound(Reason::TargetNotListening)?, 2);
    Ok(())
}

#[test]
fn a_listener_in_another_namespace_is_no_target() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", to("127.0.0.1:8080"))
        .listens(8080);
    let fixture = Fixture::new(plan)?;
    let stranger = fixture.stranger()?;
    let nested = Namespace::new("nested")?;
    let elsewhere = Place::here().netns(&nested).cgroup(&fixture.cgroup);
    let before = serve(elsewhere, "127.0.0.1:8080", "nested")?;
    assert_eq!(
        stranger.visit(at("10.3.0.1:9080"))?,
        Err(Errno::CONNREFUSED),
        "given to a socket that cannot answer"
    );
    // Nor does it take the place of one that is.
    drop(before);
    let _own = serve(fixture.inside(), "127.0.0.1:8080", "own")?;
    let _after = serve(elsewhere, "127.0.0.1:8080", "nested")?;
    let seen = stranger.visit(at("10.3.0.1:9080"))?;
    assert_eq!(seen.map(|seen| seen.name).as_deref(), Ok("own"));
    Ok(())
}

#[test]
fn listeners_that_share_a_port_share_its_connections() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", to("127.0.0.1:8080"))
        .listens(8080);
    let mut fixture = Fixture::new(plan)?;
    let start = |name| {
        Server::tcp(at("0.0.0.0:8080"))
            .place(fixture.inside())
            .name(name)
            .reuse_port()
            .start()
    };
    let (_first, second) = (start("first")?, start("second")?);
    let (stranger, called) = (fixture.stranger()?, at("10.3.0.1:9080"));
    let names = |visits: Vec<Result<Seen, Errno>>| -> Result<BTreeSet<String>, Errno> {
        visits.into_iter().map(|seen| Ok(seen?.name)).collect()
    };
    let both = names(stranger.visits(called, 60)?)?;
    assert_eq!(both, ["first", "second"].map(String::from).into());
    // The map holds the one that came last; when it goes, the next look finds the other.
    drop(second);
    fixture.loaded.dataplane.refresh();
    let one = names(stranger.visits(called, 10)?)?;
    assert_eq!(one, [String::from("first")].into());
    Ok(())
}

#[test]
fn the_workloads_calls_to_itself_pass_where_the_rule_says_so() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", exempting_self(deny()))
        .inbound("0.0.0.0:9081", deny());
    let mut fixture = Fixture::new(plan)?;
    fixture.netns.add_address("lo", "10.3.0.1/32".parse()?)?;
    fixture.netns.add_address("lo", "10.3.0.2/32".parse()?)?;
    fixture.loaded.dataplane.refresh();
    let _servers = [
        fixture.serve("0.0.0.0:9080")?,
        fixture.serve("0.0.0.0:9081")?,
    ];
    let stranger = fixture.stranger()?;
    for (source, called, passes) in [
        ("10.3.0.1:0", "10.3.0.1:9080", true),
        ("10.3.0.2:0", "10.3.0.1:9080", true),
        ("127.0.0.1:0", "127.0.0.1:9080", true),
        ("127.0.0.5:0", "10.3.0.1:9080", true),
        // Not its own, though the namespace would answer for it: but the source is the destination.
        ("10.3.0.3:0", "10.3.0.3:9080", true),
        ("10.3.0.3:0", "10.3.0.1:9080", false),
        ("10.3.0.1:0", "10.3.0.1:9081", false),
        ("127.0.0.1:0", "127.0.0.1:9081", false),
    ] {
        let got = visit_from(&stranger, source, called)?;
        assert_eq!(got.is_ok(), passes, "{source} to {called}: {got:?}");
        assert!(passes || got == Err(Errno::CONNREFUSED), "{got:?}");
    }
    assert_eq!(fixture.inbound(Reason::SelfCall)?, 5);
    assert_eq!(fixture.inbound(Reason::RegistryOnly)?, 3);
    // An address that is taken away is no more its own.
    fixture.netns.ip("address delete 10.3.0.2/32 dev lo")?;
    fixture.loaded.dataplane.refresh();
    let got = visit_from(&stranger, "10.3.0.2:0", "10.3.0.1:9080")?;
    assert_eq!(got, Err(Errno::CONNREFUSED));
    Ok(())
}

#[test]
fn the_proxy_gets_connections_at_their_own_address() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .proxied()
        .inbound_default(exempting_self(proxy()))
        .listens(15006);
    let fixture = Fixture::new(plan)?;
    // To bind to; it is not the workload's until the dataplane looks again.
    fixture.netns.add_address("lo", "fd00:99::1/128".parse()?)?;
    let stranger = fixture.stranger()?;
    for (listen, calls) in [
        ("127.0.0.1:15006", &[("10.99.0.1:0", "10.3.0.1:9080")][..]),
        ("0.0.0.0:15006", &[("10.99.0.1:0", "10.3.0.1:9080")][..]),
        (
            "[::]:15006",
            &[
                ("10.99.0.1:0", "10.3.0.1:9081"),
                ("[fd00:99::1]:0", "[fd00:3::1]:9080"),
            ][..],
        ),
        ("[::1]:15006", &[("[fd00:99::1]:0", "[fd00:3::1]:9080")][..]),
    ] {
        let _proxy = serve(fixture.as_proxy(), listen, "proxy")?;
        for (source, called) in calls {
            let seen = visit_from(&stranger, source, called)??;
            assert_eq!(seen.name, "proxy", "{listen}");
            assert_eq!(reached(&seen)?, at(called));
            assert_eq!(seen.original_dst, Some(at(called)));
            assert_eq!(
                seen.peer.map(|peer| canonical(peer).ip()),
                Some(at(source).ip())
            );
        }
    }
    let refused = visit_from(&stranger, "10.99.0.1:0", "10.3.0.1:9080")?;
    assert_eq!(refused, Err(Errno::CONNREFUSED), "no proxy, no passing");
    assert_eq!(fixture.inbound(Reason::CaptureAll)?, 5);
    assert_eq!(fixture.inbound(Reason::TargetNotListening)?, 1);
    Ok(())
}

#[test]
fn the_relay_gets_its_connections_and_without_one_they_are_refused() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", relay())
        .inbound("[::]:9080", relay());
    let mut fixture = Fixture::new(plan)?;
    let _server = fixture.serve("[::]:9080")?;
    let stranger = fixture.stranger()?;
    assert_eq!(
        stranger.visit(at("10.3.0.1:9080"))?,
        Err(Errno::CONNREFUSED)
    );
    let relay = fixture.relay()?;
    let client = stranger.connect(at("10.3.0.1:9080"))??;
    let (accepted, peer) = relay.accept()?;
    assert_eq!(
        (accepted.local_addr()?, peer),
        (at("10.3.0.1:9080"), client.local()??)
    );
    assert_eq!(
        stranger.visit(at("[fd00:3::1]:9080"))?,
        Err(Errno::CONNREFUSED)
    );
    assert_eq!(fixture.inbound(Reason::EgressListener)?, 1);
    assert_eq!(fixture.inbound(Reason::TargetNotListening)?, 2);
    Ok(())
}

#[test]
fn what_cannot_be_known_is_refused() -> anyhow::Result<()> {
    require_root!();
    let garbled = Rule {
        path: 200,
        ..rule(Path::Pass, Reason::AllowAny)
    };
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", balanced(0, 2))
        .inbound("0.0.0.0:9081", garbled);
    let mut fixture = Fixture::new(plan)?;
    let _servers = [
        fixture.serve("0.0.0.0:9080")?,
        fixture.serve("0.0.0.0:9081")?,
        fixture.serve("[::]:80")?,
    ];
    let stranger = fixture.stranger()?;
    assert_eq!(
        stranger.visit(at("10.3.0.1:9080"))?,
        Err(Errno::CONNREFUSED)
    );
    assert_eq!(fixture.inbound(Reason::PlanIncomplete)?, 1);
    assert_eq!(
        stranger.visit(at("10.3.0.1:9081"))?,
        Err(Errno::CONNREFUSED)
    );
    assert_eq!(stranger.visit(at("10.3.0.1:80"))??.name, "stranger");
    fixture
        .loaded
        .dataplane
        .switch(fixture.workload, 999, &Planner::new().build())?;
    assert_eq!(stranger.visit(at("10.3.0.1:80"))?, Err(Errno::CONNREFUSED));
    assert_eq!(
        stranger.visit(at("[fd00:3::1]:80"))?,
        Err(Errno::CONNREFUSED)
    );
    assert_eq!(fixture.inbound(Reason::PlanIncomplete)?, 3);
    Ok(())
}

#[test]
fn datagrams_are_untouched() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().inbound_default(deny()))?;
    fixture.netns.run(|| -> anyhow::Result<()> {
        let (server, client) = (
            UdpSocket::bind("10.3.0.1:9080")?,
            UdpSocket::bind("10.99.0.1:0")?,
        );
        server.set_read_timeout(Some(DEADLINE))?;
        client.send_to(b"ping", "10.3.0.1:9080")?;
        assert_eq!(server.recv_from(&mut [0; 8])?, (4, client.local_addr()?));
        Ok(())
    })??;
    assert_eq!(fixture.loaded.dataplane.counters(fixture.workload), []);
    Ok(())
}

/// The namespace alone decides who is affected.
#[test]
fn another_host_is_captured_on_its_way_in_and_not_itself() -> anyhow::Result<()> {
    require_root!();
    let net = Net::new(&["workload", "other"])?;
    let [host, other] = net.hosts() else {
        anyhow::bail!("no two hosts")
    };
    let cgroup = Cgroup::new("workload")?;
    let mut loaded = Loaded::new()?;
    let workload = loaded.attach(&cgroup, &host.netns)?;
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", exempting_self(to("127.0.0.1:8080")))
        .inbound("[::]:9080", exempting_self(to("[::1]:8080")))
        .listens(8080);
    loaded.follow(workload, plan.build())?;
    let _servers = [
        serve(
            Place::here().netns(&host.netns).cgroup(&cgroup),
            "[::]:8080",
            "app",
        )?,
        serve(Place::here().netns(&host.netns), "[::]:9080", "called")?,
        serve(Place::here().netns(&other.netns), "[::]:9080", "other")?,
    ];
    let (near, far) = (
        Probe::start(Place::here().netns(&host.netns))?,
        Probe::start(Place::here().netns(&other.netns))?,
    );
    for (client, address, name) in [
        (&far, (host.v4, 9080).into(), "app"),
        (&far, (host.v6, 9080).into(), "app"),
        (&near, (host.v4, 9080).into(), "called"),
        (&near, (host.v6, 9080).into(), "called"),
        (&near, (other.v4, 9080).into(), "other"),
        (&far, (other.v6, 9080).into(), "other"),
    ] {
        let seen = client.visit(address)??;
        assert_eq!((seen.name.as_str(), reached(&seen)?), (name, address));
    }
    Ok(())
}

#[test]
fn two_workloads_in_one_namespace_have_their_own_rules() -> anyhow::Result<()> {
    require_root!();
    let netns = namespace()?;
    let outside = Place::here().netns(&netns);
    let mut loaded = Loaded::new()?;
    let cgroups = [Cgroup::new("a")?, Cgroup::new("b")?];
    let mut servers = vec![serve(outside, "0.0.0.0:9083", "stranger")?];
    // Both listen on both targets: each must get what its own rules say.
    for (cgroup, (port, name)) in cgroups.iter().zip([(9081, "a"), (9082, "b")]) {
        let workload = loaded.attach(cgroup, &netns)?;
        let target = format!("127.0.0.1:{}", port - 1000);
        let plan = Planner::new().inbound(&format!("0.0.0.0:{port}"), to(&target));
        loaded.follow(workload, plan.listens(8081).listens(8082).build())?;
        servers.push(serve(outside.cgroup(cgroup), &target, name)?);
    }
    let stranger = Probe::start(outside)?;
    for (called, name) in [
        ("10.3.0.1:9081", "a"),
        ("10.3.0.1:9082", "b"),
        ("10.3.0.1:9083", "stranger"),
    ] {
        assert_eq!(stranger.visit(at(called))??.name, name);
    }
    // One goes; the other stays.
    loaded.dataplane.detach(1);
    assert_eq!(
        stranger.visit(at("10.3.0.1:9081"))?,
        Err(Errno::CONNREFUSED)
    );
    assert_eq!(stranger.visit(at("10.3.0.1:9082"))??.name, "b");
    Ok(())
}

#[test]
fn an_established_connection_outlives_its_rule() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .inbound("0.0.0.0:9080", to("127.0.0.1:8080"))
        .listens(8080);
    let mut fixture = Fixture::new(plan)?;
    let _app = Server::tcp(at("127.0.0.1:8080"))
        .place(fixture.inside())
        .mode(Mode::Echo)
        .start()?;
    let mut held = Client::tcp(at("10.3.0.1:9080"))
        .place(fixture.outside())
        .hold()?;
    assert_eq!(held.exchange("one")?, "one");
    fixture.follow(Planner::new().inbound_default(deny()))?;
    assert_eq!(held.exchange("two")?, "two");
    fixture.loaded.dataplane.detach(fixture.workload);
    assert_eq!(held.exchange("three")?, "three");
    let called = at("10.3.0.1:9080");
    assert_eq!(
        fixture.stranger()?.visit(called)?,
        Err(Errno::CONNREFUSED),
        "nobody listens there"
    );
    Ok(())
}

/// A port that the new plan does not need is forgotten; one it needs again is found again.
#[test]
fn listeners_follow_the_plans_interest() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    let _app = serve(fixture.inside(), "127.0.0.1:8080", "app")?;
    let (stranger, called) = (fixture.stranger()?, at("10.3.0.1:9080"));
    let with = Planner::new().inbound("0.0.0.0:9080", to("127.0.0.1:8080"));
    for _ in 0..2 {
        fixture.follow(with.clone().listens(8080))?;
        assert_eq!(stranger.visit(called)??.name, "app");
        // Not interested, although it has the rule.
        fixture.follow(with.clone())?;
        assert_eq!(stranger.visit(called)?, Err(Errno::CONNREFUSED));
    }
    Ok(())
}
