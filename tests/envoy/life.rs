//! Envoy comes and goes.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::io::Errno;
use sidecar_tests::{
    Client, Envoy, Mode, Place, Probe,
    envoy::{Binds, Bootstrap},
    lab::Lab,
    require_envoy,
};

use crate::fixture::{
    SIDECAR, app, at, client, envoy, lab, lab_with, pod, serve_app, serve_outside, service, visit,
};

const OUT: u16 = 9080;
const IN: u16 = 8080;

/// A refusal takes no time; this is for a busy machine.
const PROMPT: Duration = Duration::from_secs(3);

fn lab_with_servers() -> anyhow::Result<Lab> {
    let mut lab = lab()?;
    serve_outside(&mut lab, OUT, Mode::Banner)?;
    serve_app(&mut lab, IN, Mode::Banner)?;
    Ok(lab)
}

/// One connection each way, in both families; all of them through Envoy.
fn works(lab: &Lab, envoy: &Envoy) -> anyhow::Result<()> {
    let before = envoy.settled()?;
    for destination in service(OUT) {
        let seen = visit(app(lab), destination)?;
        ensure!(seen.name == "service", "{seen:?}");
    }
    for destination in at(pod(lab), IN) {
        let seen = visit(lab.outside(), destination)?;
        ensure!(seen.name == "app", "{seen:?}");
    }
    let after = envoy.settled()?;
    for listener in ["virtualOutbound", "virtualInbound"] {
        assert_eq!(
            after.taken(listener) - before.taken(listener),
            2,
            "{listener}"
        );
    }
    Ok(())
}

/// The same connections without Envoy: none gets past it.
fn refuses(lab: &Lab) -> anyhow::Result<()> {
    let refused = |place: Place<'_>, destination| {
        let started = Instant::now();
        let outcome = Client::tcp(destination).place(place).connect()?;
        ensure!(
            outcome.errno == Some(Errno::CONNREFUSED.raw_os_error()),
            "{destination}: {outcome:?}"
        );
        ensure!(
            started.elapsed() < PROMPT,
            "{destination}: {:?}",
            started.elapsed()
        );
        Ok(())
    };
    service(OUT)
        .into_iter()
        .try_for_each(|destination| refused(app(lab), destination))?;
    at(pod(lab), IN)
        .into_iter()
        .try_for_each(|destination| refused(lab.outside(), destination))
}

fn comes_and_goes(workers: u32, binds: Binds) -> anyhow::Result<()> {
    let mut lab = lab_with_servers()?;
    lab.start_agent()?;
    let mut envoy = envoy(&lab)
        .workers(workers)
        .bootstrap(Bootstrap::default().binds(binds))
        .start()?;
    works(&lab, &envoy)?;
    envoy.kill()?;
    refuses(&lab)?;
    envoy.start()?;
    works(&lab, &envoy)?;
    envoy.stop()?;
    refuses(&lab)?;
    envoy.start()?;
    works(&lab, &envoy)
}

#[test]
fn killed_and_restarted() -> anyhow::Result<()> {
    require_envoy!();
    comes_and_goes(1, Binds::Wildcard)
}

#[test]
fn killed_and_restarted_on_loopback_only() -> anyhow::Result<()> {
    require_envoy!();
    comes_and_goes(1, Binds::Loopback)
}

#[test]
fn killed_and_restarted_with_two_workers() -> anyhow::Result<()> {
    require_envoy!();
    comes_and_goes(2, Binds::Wildcard)
}

/// Each worker has listening sockets of its own (`SO_REUSEPORT`), and gets its share.
#[test]
fn two_workers_share_the_connections() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with_servers()?;
    lab.start_agent()?;
    let envoy = envoy(&lab).workers(2).start()?;
    // One of 2^31 runs all go to one worker.
    let visits = 32;
    let (out, inside) = (service(OUT)[0], at(pod(&lab), IN)[0]);
    for (place, destination) in [(app(&lab), out), (lab.outside(), inside)] {
        let probe = Probe::start(place)?;
        for seen in probe.visits(destination, visits)? {
            seen?;
        }
    }
    let stats = envoy.settled()?;
    for listener in ["virtualOutbound", "virtualInbound"] {
        let of_worker = |worker| {
            stats.get(&format!(
                "listener.{listener}.worker_{worker}.downstream_cx_total"
            ))
        };
        let (first, second) = (of_worker(0), of_worker(1));
        assert_eq!(first + second, u64::from(visits), "{listener}");
        ensure!(first > 0 && second > 0, "{listener}: {first} and {second}");
    }
    Ok(())
}

/// Calls the application over and over while something happens, which no call must notice.
fn all_the_while(
    client: &Probe,
    to: SocketAddr,
    happens: impl FnOnce() -> anyhow::Result<()> + Send,
) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let happening = scope.spawn(happens);
        let mut is_last = false;
        while !is_last {
            is_last = happening.is_finished();
            for visit in client.visits(to, 20)? {
                let seen = visit.with_context(|| format!("{to}"))?;
                ensure!(seen.name == "app", "{seen:?}");
            }
        }
        happening.join().expect("no panic")
    })
}

/// Its listening sockets are open when the agent comes.
fn before_the_agent(workers: u32, binds: Binds) -> anyhow::Result<()> {
    let mut lab = lab_with_servers()?;
    let mut envoy = envoy(&lab)
        .workers(workers)
        .bootstrap(Bootstrap::default().binds(binds))
        .start()?;
    let client = Probe::start(lab.outside())?;
    let to = at(pod(&lab), IN)[0];
    all_the_while(&client, to, || lab.start_agent())?;
    works(&lab, &envoy)?;
    // The agent goes and another comes; so does Envoy. A call that Envoy has accepted, but not yet
    // asked where it was going when the agent goes, ends: that moment is left out.
    lab.agent_mut()?.stop()?;
    all_the_while(&client, to, || {
        lab.agent_mut()?.start()?;
        lab.wait_captured()
    })?;
    works(&lab, &envoy)?;
    envoy.kill()?;
    refuses(&lab)?;
    envoy.start()?;
    works(&lab, &envoy)
}

#[test]
fn started_before_the_agent() -> anyhow::Result<()> {
    require_envoy!();
    before_the_agent(1, Binds::Wildcard)
}

#[test]
fn started_before_the_agent_on_loopback_only() -> anyhow::Result<()> {
    require_envoy!();
    before_the_agent(1, Binds::Loopback)
}

#[test]
fn started_before_the_agent_with_two_workers() -> anyhow::Result<()> {
    require_envoy!();
    before_the_agent(2, Binds::Wildcard)
}

/// Until it is there, nothing gets past it.
#[test]
fn started_after_the_agent() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with_servers()?;
    lab.start_agent()?;
    refuses(&lab)?;
    let envoy = envoy(&lab).start()?;
    works(&lab, &envoy)
}

/// With an open policy, connections go on uncaptured while Envoy is not there, and are Envoy's again
/// as soon as it listens.
#[test]
fn killed_and_restarted_with_an_open_policy() -> anyhow::Result<()> {
    require_envoy!();
    let open = "capture.sidecar-agent.io/failure-policy: proxy-gone=open";
    let mut lab = lab_with(&[open], SIDECAR)?;
    serve_outside(&mut lab, OUT, Mode::Banner)?;
    serve_app(&mut lab, IN, Mode::Banner)?;
    lab.start_agent()?;
    let mut envoy = envoy(&lab).start()?;
    works(&lab, &envoy)?;
    for round in 1..=2 {
        envoy.kill()?;
        let [client_v4, client_v6] = client(&lab);
        let [pod_v4, pod_v6] = pod(&lab);
        for (destination, source) in service(OUT).into_iter().zip([pod_v4, pod_v6]) {
            let seen = visit(app(&lab), destination)?;
            ensure!(seen.name == "service", "{seen:?}");
            // The application's own connection, and not Envoy's.
            ensure!(seen.peer.map(|peer| peer.ip()) == Some(source), "{seen:?}");
        }
        for (destination, source) in at(pod(&lab), IN).into_iter().zip([client_v4, client_v6]) {
            let seen = visit(lab.outside(), destination)?;
            ensure!(seen.name == "app", "{seen:?}");
            ensure!(seen.peer.map(|peer| peer.ip()) == Some(source), "{seen:?}");
        }
        for direction in ["outbound", "inbound"] {
            let decisions = lab.decisions(direction)?;
            let gone = decisions.iter().find(|(reason, _)| reason == "proxy-gone");
            assert_eq!(
                gone.map(|(_, count)| *count),
                Some(2 * round),
                "{direction}"
            );
        }
        envoy.start()?;
        works(&lab, &envoy)?;
    }
    Ok(())
}
