//! DNS, while the proxy's port for it is not there.

use std::net::SocketAddr;

use anyhow::Context as _;
use rustix::io::Errno;
use sidecar_common::{Reason, values::PlanHeader};
use sidecar_tests::{Kind, Probe, require_root};

use super::{answered, awake, promptly, refused};
use crate::{
    dns::{answering, ask, ask_connected},
    fixture::{Fixture, serve},
    plan::{Planner, at, proxy},
};

/// Name servers, and where the proxy answers for them.
const SERVERS: [(Kind, &str, &str); 2] = [
    (Kind::Udp4, "10.244.1.5:53", "127.0.0.1:15053"),
    (Kind::Udp6, "[fd00:244::5]:53", "[::1]:15053"),
];

type Ask = fn(&Probe, Kind, SocketAddr) -> anyhow::Result<(String, SocketAddr)>;

fn plan() -> Planner {
    Planner::new()
        .proxied()
        .outbound_default(proxy())
        .dns(&["0.0.0.0/0", "::/0"])
}

#[test]
fn open_the_server_is_asked_until_the_proxy_is_there() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::of_pod(plan().flags(PlanHeader::OPEN_PROXY_GONE))?;
    let app = fixture.app()?;
    awake(&app)?;
    for (kind, server, proxy) in SERVERS {
        // Both answer; the counters tell who did.
        answering(&fixture, server, || {
            for round in 1..=2 {
                let before = fixture.outbound(Reason::ProxyGone)?;
                for (what, ask) in [("unconnected", ask as Ask), ("connected", ask_connected)] {
                    let (_, sender) = promptly(server, || ask(&app, kind, at(server)))
                        .with_context(|| format!("{what} to {server}, round {round}, no proxy"))?;
                    assert_eq!(sender, at(server));
                }
                // Two datagrams and a connect.
                assert_eq!(fixture.outbound(Reason::ProxyGone)?, before + 3);
                let before = fixture.outbound(Reason::Dns)?;
                answering(&fixture, proxy, || {
                    for (what, ask) in [("unconnected", ask as Ask), ("connected", ask_connected)] {
                        let (_, sender) = promptly(server, || ask(&app, kind, at(server)))
                            .with_context(|| format!("{what} to {server}, round {round}"))?;
                        assert_eq!(sender, at(server));
                    }
                    Ok(())
                })?;
                assert_eq!(fixture.outbound(Reason::Dns)?, before + 3, "round {round}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// No resolver has to wait for an answer that does not come.
#[test]
fn closed_the_query_is_refused_until_the_proxy_is_there() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::of_pod(plan())?;
    let app = fixture.app()?;
    awake(&app)?;
    for (kind, server, proxy) in SERVERS {
        answering(&fixture, server, || {
            promptly(server, || {
                let socket = app.socket(kind)??;
                assert_eq!(socket.send_to("who", at(server))?, Err(Errno::CONNREFUSED));
                // One that is connected is told by the kernel, as of any port that is closed.
                socket.connect(at(server))??;
                assert_eq!(socket.ping()?, Err(Errno::CONNREFUSED));
                Ok(())
            })?;
            answering(&fixture, proxy, || {
                ask(&app, kind, at(server))?;
                ask_connected(&app, kind, at(server)).map(drop)
            })
        })?;
    }
    assert_eq!(fixture.outbound(Reason::TargetNotListening)?, 2);
    Ok(())
}

#[test]
fn by_tcp_as_any_other() -> anyhow::Result<()> {
    require_root!();
    let servers = SERVERS.map(|(_, server, _)| server);
    for (plan, is_open) in [
        (plan().flags(PlanHeader::OPEN_PROXY_GONE), true),
        (plan(), false),
    ] {
        let fixture = Fixture::of_pod(plan)?;
        let _server = fixture.serve("[::]:53")?;
        let app = fixture.app()?;
        if is_open {
            answered(&app, &servers, "stranger")?;
        } else {
            refused(&app, &servers)?;
        }
        let _proxy = serve(fixture.as_proxy(), "[::]:15053", "proxy")?;
        answered(&app, &servers, "proxy")?;
    }
    Ok(())
}
