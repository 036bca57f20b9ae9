//! connect4: what becomes of IPv4 connections of the workload.

use std::{collections::BTreeSet, net::UdpSocket, thread};

use anyhow::Context as _;
use rustix::io::Errno;
use sidecar_common::{Reason, decide::Direction, values::Rule};
use sidecar_tests::{
    Cgroup, Client, DEADLINE, Kind, Place, Probe, require_root, skip, skip::kernel_has,
};

use crate::{
    fixture::{Fixture, Loaded, namespace, reached, serve},
    plan::{Planner, at, balanced, deny, direct, exempting_self, relay, rule},
};

#[test]
fn an_exact_rule_rewrites_and_nothing_else_is_touched() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", direct("10.9.0.1:8080")))?;
    let _servers = [fixture.serve("[::]:80")?, fixture.serve("[::]:8080")?];
    let app = fixture.app()?;
    assert_eq!(
        reached(&app.visit(at("10.1.0.1:80"))??)?,
        at("10.9.0.1:8080")
    );
    for untouched in [
        "10.1.0.1:8080",
        "10.1.0.2:80",
        "10.9.0.1:80",
        "127.0.0.1:80",
    ] {
        assert_eq!(reached(&app.visit(at(untouched))??)?, at(untouched));
    }
    assert_eq!(fixture.outbound(Reason::EgressService)?, 1);
    assert_eq!(fixture.outbound(Reason::AllowAny)?, 4);
    Ok(())
}

#[test]
fn a_rule_without_backends_keeps_the_destination() -> anyhow::Result<()> {
    require_root!();
    let keep = Rule {
        backends: 0,
        target: at("0.0.0.0:0").into(),
        ..direct("0.0.0.0:0")
    };
    let fixture = Fixture::new(
        Planner::new()
            .outbound("10.1.0.1:80", keep)
            .outbound_default(deny()),
    )?;
    let _server = fixture.serve("0.0.0.0:80")?;
    assert_eq!(
        reached(&fixture.app()?.visit(at("10.1.0.1:80"))??)?,
        at("10.1.0.1:80")
    );
    assert_eq!(fixture.outbound(Reason::EgressService)?, 1);
    Ok(())
}

#[test]
fn every_backend_gets_connections_and_nobody_else() -> anyhow::Result<()> {
    require_root!();
    let backends = ["10.9.0.1:80", "10.9.0.2:80", "10.9.0.3:8080", "10.9.0.4:80"];
    let plan = Planner::new()
        .group(&["10.8.0.1:80", "10.8.0.2:80"])
        .group(&backends)
        .outbound("10.1.0.1:80", balanced(1, 4));
    let fixture = Fixture::new(plan)?;
    let _servers = [fixture.serve("0.0.0.0:80")?, fixture.serve("0.0.0.0:8080")?];
    let mut got = BTreeSet::new();
    for seen in fixture.app()?.visits(at("10.1.0.1:80"), 100)? {
        got.insert(reached(&seen?)?);
    }
    // One is missed by chance once in 10^12 runs.
    assert_eq!(got, backends.map(at).into());
    assert_eq!(fixture.outbound(Reason::EgressService)?, 100);
    Ok(())
}

#[test]
fn the_port_decides_before_the_longest_prefix_and_the_default_last() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound("10.1.2.4:80", direct("10.9.0.9:80"))
        .prefix(80, "10.1.0.0/16", direct("10.9.0.1:80"))
        .prefix(80, "10.1.2.0/24", direct("10.9.0.2:80"))
        .prefix(0, "10.1.0.0/16", direct("10.9.0.3:80"))
        .prefix(0, "10.1.2.3/32", direct("10.9.0.4:80"))
        .outbound_default(deny());
    let fixture = Fixture::new(plan)?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    for (destination, target) in [
        ("10.1.2.4:80", "10.9.0.9:80"),
        ("10.1.255.255:80", "10.9.0.1:80"),
        ("10.1.2.3:80", "10.9.0.2:80"),
        ("10.1.2.3:81", "10.9.0.4:80"),
        ("10.1.2.4:81", "10.9.0.3:80"),
    ] {
        let seen = app.visit(at(destination))?.context(destination)?;
        assert_eq!(reached(&seen)?, at(target), "{destination}");
    }
    for destination in ["10.2.0.0:80", "10.0.255.255:81", "127.0.0.1:80"] {
        assert_eq!(
            app.visit(at(destination))?,
            Err(Errno::CONNREFUSED),
            "{destination}"
        );
    }
    assert_eq!(fixture.outbound(Reason::RegistryOnly)?, 3);
    Ok(())
}

#[test]
fn what_is_denied_is_refused_at_once() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", deny()))?;
    // Somebody would answer.
    let _server = fixture.serve("0.0.0.0:80")?;
    let client = Client::tcp(at("10.1.0.1:80")).place(fixture.inside());
    let blocking = client.clone().connect()?;
    assert_eq!(blocking.errno, Some(Errno::CONNREFUSED.raw_os_error()));
    let non_blocking = client.non_blocking().connect()?;
    assert_eq!(non_blocking.errno, Some(Errno::CONNREFUSED.raw_os_error()));
    assert!(!non_blocking.in_progress || !kernel_has("set_retval"));
    assert_eq!(fixture.outbound(Reason::RegistryOnly)?, 2);
    Ok(())
}

#[test]
fn a_refused_socket_can_connect_elsewhere() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", deny()))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    let socket = app.socket(Kind::Tcp4)??;
    assert_eq!(socket.connect(at("10.1.0.1:80"))?, Err(Errno::CONNREFUSED));
    socket.connect(at("10.1.0.2:80"))??;
    assert_eq!(reached(&socket.banner()??)?, at("10.1.0.2:80"));
    assert_eq!(socket.peer()??, at("10.1.0.2:80"));
    Ok(())
}

#[test]
fn a_non_blocking_connect_is_in_progress_and_then_there() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", direct("10.9.0.1:80")))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let client = Client::tcp(at("10.1.0.1:80")).place(fixture.inside());
    let outcome = client.non_blocking().banner()?;
    assert!(outcome.in_progress && outcome.connected, "{outcome:?}");
    let banner = outcome.banner.context("no banner")?;
    assert_eq!(reached(&banner)?, at("10.9.0.1:80"));
    assert_eq!(fixture.outbound(Reason::EgressService)?, 1, "counted once");
    Ok(())
}

#[test]
fn without_a_relay_its_connections_are_refused_and_with_one_they_get_there() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", relay()))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    assert_eq!(app.visit(at("10.1.0.1:80"))?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.outbound(Reason::TargetNotListening)?, 1);
    let relay = fixture.relay()?;
    let connection = app.connect(at("10.1.0.1:80"))??;
    assert_eq!(relay.accept()?.1, connection.local()??);
    assert_eq!(fixture.outbound(Reason::EgressListener)?, 1);
    Ok(())
}

#[test]
fn datagrams_are_untouched() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(
        Planner::new()
            .outbound("10.1.0.1:80", direct("10.9.0.1:80"))
            .outbound_default(deny()),
    )?;
    let server = fixture.netns.run(|| UdpSocket::bind("10.1.0.1:80"))??;
    server.set_read_timeout(Some(DEADLINE))?;
    let app = fixture.app()?;
    let socket = app.socket(Kind::Udp4)??;
    socket.connect(at("10.1.0.1:80"))??;
    assert_eq!(socket.peer()??, at("10.1.0.1:80"));
    thread::scope(|scope| {
        let echo = scope.spawn(|| -> std::io::Result<usize> {
            let mut buffer = [0; 16];
            let (length, client) = server.recv_from(&mut buffer)?;
            server.send_to(&buffer[..length], client)
        });
        let pinged = socket.ping();
        assert_eq!(echo.join().expect("no panic")?, 4);
        anyhow::Ok(pinged??)
    })?;
    assert_eq!(fixture.loaded.dataplane.counters(fixture.workload), []);
    Ok(())
}

#[test]
fn a_plan_that_is_not_in_the_map_refuses_everything() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(Planner::new())?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    assert_eq!(reached(&app.visit(at("10.1.0.1:80"))??)?, at("10.1.0.1:80"));
    fixture
        .loaded
        .dataplane
        .switch(fixture.workload, 999, &Planner::new().build())?;
    assert_eq!(app.visit(at("10.1.0.1:80"))?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.outbound(Reason::PlanIncomplete)?, 1);
    Ok(())
}

#[test]
fn a_backend_that_is_not_in_the_map_is_refused() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", balanced(0, 2)))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    assert_eq!(
        fixture.app()?.visit(at("10.1.0.1:80"))?,
        Err(Errno::CONNREFUSED)
    );
    assert_eq!(fixture.outbound(Reason::PlanIncomplete)?, 1);
    Ok(())
}

#[test]
fn a_path_that_is_none_is_refused() -> anyhow::Result<()> {
    require_root!();
    let garbled = Rule {
        path: 200,
        ..rule(sidecar_common::Path::Pass, Reason::AllowAny)
    };
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", garbled))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    assert_eq!(
        fixture.app()?.visit(at("10.1.0.1:80"))?,
        Err(Errno::CONNREFUSED)
    );
    Ok(())
}

#[test]
fn calls_to_oneself_pass_where_the_rule_says_so() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound_default(exempting_self(deny()))
        .outbound("10.3.0.1:81", deny());
    let mut fixture = Fixture::without_plan()?;
    fixture.netns.add_address("lo", "10.3.0.1/32".parse()?)?;
    fixture.loaded.dataplane.refresh();
    fixture.follow(plan)?;
    let _servers = [fixture.serve("0.0.0.0:80")?, fixture.serve("0.0.0.0:81")?];
    let app = fixture.app()?;
    app.visit(at("10.3.0.1:80"))??;
    app.visit(at("127.0.0.7:80"))??;
    assert_eq!(
        app.visit(at("10.3.0.1:81"))?,
        Err(Errno::CONNREFUSED),
        "no exemption there"
    );
    assert_eq!(
        app.visit(at("10.3.0.2:80"))?,
        Err(Errno::CONNREFUSED),
        "not its own"
    );
    assert_eq!(fixture.outbound(Reason::SelfCall)?, 1);
    assert_eq!(fixture.outbound(Reason::Loopback)?, 1);
    assert_eq!(fixture.outbound(Reason::RegistryOnly)?, 2);
    Ok(())
}

#[test]
fn cgroups_below_are_captured_and_others_are_not() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound_default(deny()))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let child = fixture.cgroup.child("child")?;
    let grandchild = child.child("grandchild")?;
    for cgroup in [&child, &grandchild] {
        let probe = Probe::start(fixture.outside().cgroup(cgroup))?;
        assert_eq!(probe.visit(at("10.1.0.1:80"))?, Err(Errno::CONNREFUSED));
    }
    let other = Cgroup::new("other")?;
    for place in [fixture.outside(), fixture.outside().cgroup(&other)] {
        assert_eq!(
            reached(&Probe::start(place)?.visit(at("10.1.0.1:80"))??)?,
            at("10.1.0.1:80")
        );
    }
    assert_eq!(fixture.outbound(Reason::RegistryOnly)?, 2);
    Ok(())
}

/// The cgroup decides outbound, wherever the process' namespace is.
#[test]
fn the_workload_is_captured_in_another_namespace_too() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", direct("10.9.0.1:80")))?;
    let elsewhere = namespace()?;
    let place = Place::here().netns(&elsewhere);
    let _server = serve(place, "0.0.0.0:80", "elsewhere")?;
    let seen = Probe::start(place.cgroup(&fixture.cgroup))?.visit(at("10.1.0.1:80"))??;
    assert_eq!(
        (seen.name.as_str(), reached(&seen)?),
        ("elsewhere", at("10.9.0.1:80"))
    );
    Ok(())
}

#[test]
fn two_workloads_in_one_namespace_follow_their_own_plans() -> anyhow::Result<()> {
    require_root!();
    let netns = namespace()?;
    let (a, b) = (Cgroup::new("a")?, Cgroup::new("b")?);
    let mut loaded = Loaded::new()?;
    let outside = Place::here().netns(&netns);
    let _server = serve(outside, "0.0.0.0:80", "server")?;
    for (cgroup, rule) in [(&a, direct("10.9.0.1:80")), (&b, deny())] {
        let workload = loaded.attach(cgroup, &netns)?;
        loaded.follow(
            workload,
            Planner::new().outbound("10.1.0.1:80", rule).build(),
        )?;
    }
    let destination = at("10.1.0.1:80");
    let seen = Probe::start(outside.cgroup(&a))?.visit(destination)??;
    assert_eq!(reached(&seen)?, at("10.9.0.1:80"));
    let refused = Probe::start(outside.cgroup(&b))?.visit(destination)?;
    assert_eq!(refused, Err(Errno::CONNREFUSED));
    assert_eq!(
        loaded.counted(1, Direction::Outbound, Reason::EgressService)?,
        1
    );
    assert_eq!(
        loaded.counted(2, Direction::Outbound, Reason::RegistryOnly)?,
        1
    );
    Ok(())
}

#[test]
fn multipath_tcp_is_captured_as_tcp() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound("10.1.0.1:80", direct("10.9.0.1:80"))
        .outbound("10.1.0.2:80", deny());
    let fixture = Fixture::new(plan)?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    let socket = match app.socket(Kind::Mptcp4)? {
        Ok(socket) => socket,
        Err(errno) => skip!("Multipath TCP: {errno}"),
    };
    socket.connect(at("10.1.0.1:80"))??;
    assert_eq!(reached(&socket.banner()??)?, at("10.9.0.1:80"));
    let refused = app.socket(Kind::Mptcp4)??;
    assert_eq!(refused.connect(at("10.1.0.2:80"))?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.outbound(Reason::EgressService)?, 1);
    Ok(())
}
