//! Outbound, while the proxy is not there.

use sidecar_common::{Reason, values::PlanHeader};
use sidecar_tests::{Kind, Probe, apps::wire::mapped, require_root};

use super::{answered, promptly, refused};
use crate::{
    fixture::{Fixture, reached, serve},
    plan::{Planner, at, exempting_self, proxy},
};

const CALLED: [&str; 2] = ["10.1.0.1:80", "[fd00:1::1]:80"];

fn plan() -> Planner {
    Planner::new()
        .proxied()
        .outbound_default(proxy())
        .inbound_default(exempting_self(proxy()))
}

fn open() -> Planner {
    plan().flags(PlanHeader::OPEN_PROXY_GONE)
}

#[test]
fn closed_it_is_refused_until_the_proxy_is_there() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(plan())?;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    for _ in 0..2 {
        refused(&app, &CALLED)?;
        let _proxy = serve(fixture.as_proxy(), "[::]:15001", "proxy")?;
        answered(&app, &CALLED, "proxy")?;
    }
    assert_eq!(fixture.outbound(Reason::CaptureAll)?, 8);
    assert_eq!(fixture.outbound(Reason::ProxyGone)?, 0);
    Ok(())
}

#[test]
fn open_it_passes_untouched_until_the_proxy_is_there() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(open())?;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    let mut gone = 0;
    // However it listens, and whoever comes first.
    for listeners in [
        &["[::]:15001"][..],
        &["127.0.0.1:15001", "[::1]:15001"],
        &["0.0.0.0:15001", "[::1]:15001"],
    ] {
        answered(&app, &CALLED, "stranger")?;
        // As any other: nobody is told of another destination.
        let socket = app.connect(at(CALLED[0]))??;
        assert_eq!(socket.peer()??, at(CALLED[0]));
        assert_eq!(reached(&socket.banner()??)?, at(CALLED[0]));
        gone += 3;
        assert_eq!(fixture.outbound(Reason::ProxyGone)?, gone);
        let _proxies = listeners
            .iter()
            .map(|listener| serve(fixture.as_proxy(), listener, "proxy"))
            .collect::<anyhow::Result<Vec<_>>>()?;
        // At once, and wherever the connection is led to.
        for _ in 0..16 {
            answered(&app, &CALLED, "proxy")?;
        }
        let socket = app.socket(Kind::Tcp6)??;
        socket.connect(mapped(at(CALLED[0])))??;
        assert_eq!(socket.banner()??.name, "proxy");
    }
    answered(&app, &CALLED, "stranger")?;
    assert_eq!(fixture.outbound(Reason::ProxyGone)?, gone + 2);
    assert_eq!(fixture.outbound(Reason::CaptureAll)?, 3 * 33);
    Ok(())
}

#[test]
fn open_only_one_family_may_pass() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(open())?;
    let _server = fixture.serve("[::]:80")?;
    let _proxy = serve(fixture.as_proxy(), "127.0.0.1:15001", "proxy")?;
    let app = fixture.app()?;
    answered(&app, &CALLED[..1], "proxy")?;
    answered(&app, &CALLED[1..], "stranger")?;
    // Where it passes and nobody is, that is what is met.
    refused(&app, &["[fd00:1::1]:81"])
}

/// What is decided stays so, and the next one is asked anew.
#[test]
fn open_established_connections_stay_where_they_are() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(open())?;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    // One socket, connected again.
    let socket = app.socket(Kind::Tcp4)??;
    socket.connect(at(CALLED[0]))??;
    let _proxy = serve(fixture.as_proxy(), "[::]:15001", "proxy")?;
    assert_eq!(socket.banner()??.name, "stranger");
    answered(&app, &CALLED, "proxy")
}

#[test]
fn the_proxys_call_to_its_own_workload() -> anyhow::Result<()> {
    require_root!();
    for (plan, is_open) in [(open(), true), (plan(), false)] {
        let fixture = Fixture::of_pod(plan)?;
        let _app = serve(fixture.inside(), "[::]:8080", "app")?;
        let _outbound = serve(fixture.as_proxy(), "[::]:15001", "proxy")?;
        let own = Probe::start(fixture.as_proxy())?;
        let called = ["10.244.1.5:8080", "[fd00:244::5]:8080"];
        if is_open {
            answered(&own, &called, "app")?;
            assert_eq!(fixture.outbound(Reason::ProxyGone)?, 2);
            // To ask whether somebody listens is no connection.
            assert_eq!(fixture.inbound(Reason::SelfCall)?, 2);
        } else {
            refused(&own, &called)?;
        }
        let _inbound = serve(fixture.as_proxy(), "[::]:15006", "inbound")?;
        answered(&own, &called, "inbound")?;
    }
    Ok(())
}

/// Nothing can be stored with a socket of a namespace without memory for options. By IPv4 nothing has
/// to be.
#[test]
fn what_cannot_be_remembered() -> anyhow::Result<()> {
    require_root!();
    for (plan, is_open) in [
        (plan().flags(PlanHeader::OPEN_MAP_FULL), true),
        (plan(), false),
    ] {
        let fixture = Fixture::new(plan)?;
        let _server = fixture.serve("[::]:80")?;
        let _proxy = serve(fixture.as_proxy(), "[::]:15001", "proxy")?;
        let app = fixture.app()?;
        answered(&app, &CALLED, "proxy")?;
        fixture.netns.sysctl("net/core/optmem_max", "0")?;
        answered(&app, &CALLED[..1], "proxy")?;
        if is_open {
            answered(&app, &CALLED[1..], "stranger")?;
            assert_eq!(fixture.outbound(Reason::NoMemoryOpen)?, 1);
        } else {
            refused(&app, &CALLED[1..])?;
            assert_eq!(fixture.outbound(Reason::NoMemory)?, 1);
        }
        fixture.netns.sysctl("net/core/optmem_max", "131072")?;
        promptly("a call", || answered(&app, &CALLED, "proxy"))?;
    }
    Ok(())
}
