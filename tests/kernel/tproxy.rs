//! A transparent proxy's own calls to the workload: those of its outbound side arrive like
//! anybody's, those of its inbound side, which come from whom they are for, at the application.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use sidecar_common::{Reason, values::PlanHeader};
use sidecar_tests::{
    Probe,
    apps::{Seen, wire::canonical},
    require_root,
};

use crate::{
    fixture::{Fixture, reached, serve},
    plan::{PROXY_UID, Planner, at, exempting_self, pass, proxy},
};

/// The group by which Istio's injector has a transparent proxy known, which runs as root.
const AS_INJECTED: (u32, u32) = (0, PROXY_UID);

fn workload() -> anyhow::Result<Fixture> {
    Fixture::of_pod(
        Planner::new()
            .proxied()
            .flags(PlanHeader::TPROXY)
            .dns(&["10.96.0.10/32"])
            .outbound_default(proxy())
            .inbound_default(exempting_self(proxy()))
            .inbound("0.0.0.0:15020", pass())
            .inbound("[::]:15020", pass()),
    )
}

#[test]
fn the_proxys_call_to_the_workload_arrives_at_its_inbound_listener() -> anyhow::Result<()> {
    require_root!();
    let fixture = workload()?;
    let _servers = [
        serve(fixture.as_proxy(), "[::]:15006", "proxy")?,
        serve(fixture.inside(), "[::]:8080", "app")?,
        serve(fixture.inside(), "[::]:15020", "status")?,
    ];
    let (uid, gid) = AS_INJECTED;
    let injected = Probe::start(fixture.inside().user(uid, gid))?;
    for (called, name) in [
        ("10.244.1.5:8080", "proxy"),
        ("[fd00:244::5]:8080", "proxy"),
        ("10.244.1.5:15020", "status"),
        ("127.0.0.1:8080", "app"),
    ] {
        let seen = injected.visit(at(called))??;
        // The destination is never another one.
        assert_eq!((seen.name.as_str(), reached(&seen)?), (name, at(called)));
        assert_eq!(
            seen.peer.map(canonical).map(|p| p.ip()),
            Some(at(called).ip())
        );
    }
    assert_eq!(fixture.outbound(Reason::ProxySelfCall)?, 2);
    // Known by its uid, it is led there as in mode REDIRECT.
    let own = Probe::start(fixture.as_proxy())?;
    let seen = own.visit(at("10.244.1.5:8080"))??;
    assert_eq!(seen.original_dst, Some(at("10.244.1.5:8080")));
    assert_eq!(reached(&seen)?, at("127.0.0.1:15006"));
    // The application's own calls pass, also from a port that the proxy had before.
    let app = fixture.app()?;
    for called in ["10.244.1.5:8080", "192.168.50.5:8080"] {
        for (client, name) in [(&injected, "proxy"), (&app, "app")] {
            let socket = client.socket(sidecar_tests::Kind::Tcp4)??;
            socket.bind(at("10.244.1.5:40001"))??;
            socket.connect(at(called))??;
            assert_eq!(socket.banner()??.name, name, "{called}");
        }
    }
    Ok(())
}

/// Also where a port of the proxy's own is called: it did not arrive there.
#[test]
fn such_a_call_has_its_destination_as_original_one() -> anyhow::Result<()> {
    require_root!();
    let fixture = workload()?;
    let _proxy = serve(fixture.as_proxy(), "[::]:15006", "proxy")?;
    let (uid, gid) = AS_INJECTED;
    let injected = Probe::start(fixture.inside().user(uid, gid))?;
    for called in [
        "192.168.50.5:8080",
        "192.168.50.5:15053",
        "192.168.50.5:15001",
        "[fd00:50::5]:15053",
    ] {
        let seen = injected.visit(at(called))??;
        assert_eq!((seen.name.as_str(), reached(&seen)?), ("proxy", at(called)));
        assert_eq!(seen.original_dst.map(canonical), Some(at(called)));
    }
    Ok(())
}

/// Connects from an address that is nobody's here, as `envoy.filters.listener.original_src` has
/// it, and prints what the server sends.
const FROM_THE_CLIENT: &str = r#"
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
client = socket.socket(family, socket.SOCK_STREAM)
if family == socket.AF_INET: client.setsockopt(socket.SOL_IP, 19, 1)
else: client.setsockopt(socket.IPPROTO_IPV6, 75, 1)
client.setsockopt(socket.SOL_SOCKET, 36, 1337)
client.settimeout(10)
client.bind((sys.argv[1], 0))
client.connect((sys.argv[2], 8080))
print(client.recv(4096).decode(), end="")
"#;

#[test]
fn what_it_passes_on_from_the_clients_address_reaches_the_application() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = workload()?;
    let _servers = [
        serve(fixture.as_proxy(), "[::]:15006", "proxy")?,
        serve(fixture.inside(), "[::]:8080", "app")?,
    ];
    let (uid, gid) = AS_INJECTED;
    for (from, to) in [
        ("203.0.113.9", "10.244.1.5"),
        ("2001:db8::9", "fd00:244::5"),
    ] {
        let output = fixture
            .inside()
            .user(uid, gid)
            .command("python3")
            .args(["-c", FROM_THE_CLIENT, from, to])
            .stdin(Stdio::null())
            .output()
            .context("cannot run python3")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{from}: python3: {error}");
        let seen: Seen = serde_json::from_slice(&output.stdout)?;
        assert_eq!(seen.name, "app", "{from}");
        let peer = seen.peer.map(canonical).map(|peer| peer.ip().to_string());
        assert_eq!(peer.as_deref(), Some(from));
    }
    // What that takes of the namespace is undone.
    let rules = || fixture.netns.ip("rule list");
    assert!(rules()?.contains("fwmark 0x539 lookup 133"), "{}", rules()?);
    fixture.follow(Planner::new())?;
    let rules = |v6: &str| fixture.netns.ip(&format!("{v6} rule list"));
    for v6 in ["", "-6"] {
        assert!(!rules(v6)?.contains("133"), "{}", rules(v6)?);
    }
    Ok(())
}
