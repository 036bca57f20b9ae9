//! The proxy's outbound listeners, where what arrives by virtual interfaces is theirs: they are made
//! transparent when they come, and then left alone.

use std::{
    io::{Read as _, pipe},
    os::fd::OwnedFd,
    sync::Arc,
    thread,
};

use anyhow::Context as _;
use rustix::{
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use sidecar_common::values::{Interface, PlanHeader};
use sidecar_tests::{Cgroup, Place, Server, require_root};
use socket2::SockRef;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::{
    fixture::{Fixture, serve},
    plan::{Planner, proxy},
};

const LISTENERS: [&str; 2] = ["127.0.0.1:15001", "[::1]:15001"];

fn plan() -> Planner {
    Planner::new()
        .proxied()
        .interface("vm+", Interface::VIRTUAL)
        .flags(PlanHeader::VIRTUAL_ALL)
}

/// A server's listening socket.
fn listener(server: &Server) -> anyhow::Result<OwnedFd> {
    let pid = Pid::from_raw(server.pid().cast_signed()).context("a process")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let listens = |socket: &OwnedFd| SockRef::from(socket).is_listener().is_ok_and(|yes| yes);
    (0..64)
        .filter_map(|number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok())
        .find(listens)
        .context("the server does not listen")
}

fn is_transparent(socket: &OwnedFd) -> anyhow::Result<bool> {
    Ok(SockRef::from(socket).ip_transparent_v4()?)
}

#[test]
fn a_listener_is_made_transparent_once() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    let server = serve(fixture.as_proxy(), LISTENERS[0], "proxy")?;
    let before = listener(&server)?;
    // Of no interest as long as there are no virtual interfaces.
    fixture.follow(Planner::new().proxied())?;
    fixture.loaded.dataplane.refresh();
    assert!(!is_transparent(&before)?);
    fixture.follow(plan())?;
    assert!(is_transparent(&before)?);
    // If it were looked for again, it would be made so again.
    let reset = || SockRef::from(&before).set_ip_transparent_v4(false);
    reset()?;
    fixture.loaded.dataplane.refresh();
    fixture.follow(plan().outbound_default(proxy()))?;
    fixture.loaded.dataplane.refresh();
    assert!(!is_transparent(&before)?);
    // Another one comes.
    let second = serve(fixture.as_proxy(), LISTENERS[1], "proxy")?;
    fixture.loaded.dataplane.refresh();
    assert!(is_transparent(&listener(&second)?)?);
    assert!(is_transparent(&before)?);
    // The proxy starts anew, where it was known.
    // It listens as long as we have it, too.
    drop((server, before));
    let again = serve(fixture.as_proxy(), LISTENERS[0], "proxy")?;
    fixture.loaded.dataplane.refresh();
    assert!(is_transparent(&listener(&again)?)?);
    Ok(())
}

/// Its socket is not of the workload's cgroup, so that it was not counted when it began to listen.
#[test]
fn a_listener_that_moves_in_is_made_transparent() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    fixture.follow(plan())?;
    let elsewhere = Cgroup::new("elsewhere")?;
    let outside = Place::here().netns(&fixture.netns).cgroup(&elsewhere);
    let server = serve(outside, LISTENERS[0], "proxy")?;
    fixture.loaded.dataplane.refresh();
    assert!(!is_transparent(&listener(&server)?)?);
    fixture.cgroup.attach(server.pid())?;
    fixture.loaded.dataplane.refresh();
    assert!(is_transparent(&listener(&server)?)?);
    Ok(())
}

/// What is logged while a closure runs in a thread that may make no socket transparent.
fn logged(closure: impl FnOnce() + Send) -> anyhow::Result<String> {
    let (mut reader, writer) = pipe()?;
    thread::scope(|scope| {
        let done = scope.spawn(move || -> anyhow::Result<()> {
            let mut capable = capabilities(None)?;
            // Either is enough.
            capable.effective -= CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
            set_capabilities(None, capable)?;
            let log = tracing_subscriber::fmt().with_writer(Arc::new(writer));
            let _log = log.set_default();
            closure();
            Ok(())
        });
        done.join().expect("no panic")
    })?;
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_listener_that_cannot_be_made_transparent_is_reported_once() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    fixture.follow(plan())?;
    let mut servers = Vec::new();
    for address in LISTENERS {
        servers.push(serve(fixture.as_proxy(), address, "proxy")?);
        let text = logged(|| {
            for _ in 0..3 {
                fixture.loaded.dataplane.refresh();
            }
        })?;
        let warnings: Vec<_> = text
            .lines()
            .filter(|line| line.contains("making the proxy's listener transparent"))
            .collect();
        assert_eq!(warnings.len(), 1, "{text}");
        assert!(warnings[0].contains(address), "{text}");
        assert!(warnings[0].contains("Operation not permitted"), "{text}");
    }
    Ok(())
}
