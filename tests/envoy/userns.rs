//! A proxy in a user namespace: its user 1337 is another one outside. (One that also owns the
//! network, as with `hostUsers: false`, is tested with the kernel suite: there its ids are known.)

use anyhow::ensure;
use sidecar_tests::{
    Envoy, Mode, Place,
    envoy::{PROXY_ID, UserNamespace},
    lab::Lab,
    require_envoy,
};

use crate::fixture::{
    APP, PASSTHROUGH, SIDECAR, at, lab_with, pod, serve_app, serve_outside, service, visit,
};

/// The first user of the namespace, as the kubelet would choose it.
const FIRST: u32 = 2 * 65536;

/// Out and in, each through Envoy once.
fn each_way_once(lab: &mut Lab, envoy: &Envoy, userns: &UserNamespace) -> anyhow::Result<()> {
    serve_outside(lab, 9080, Mode::Banner)?;
    serve_app(lab, 8080, Mode::Banner)?;
    let id = userns.outside(APP);
    let app = lab.inside().user(id, id);
    for (taken, destination) in (1..).zip(service(9080)) {
        let seen = visit(app, destination)?;
        ensure!(seen.name == "service", "{seen:?}");
        let stats = envoy.settled()?;
        assert_eq!(stats.taken("virtualOutbound"), taken);
        assert_eq!(stats.all_taken(), taken);
    }
    for (family, destination) in at(pod(lab), 8080).into_iter().enumerate() {
        let seen = visit(lab.outside(), destination)?;
        ensure!(
            seen.peer.map(|peer| peer.ip()) == Some(PASSTHROUGH[family]),
            "{seen:?}"
        );
    }
    let stats = envoy.settled()?;
    assert_eq!(stats.taken("virtualInbound"), 2);
    assert_eq!(stats.all_taken(), 4);
    Ok(())
}

/// It is another user than the agent may think: the test is about what it says.
fn is_mapped(envoy: &Envoy, userns: &UserNamespace) -> anyhow::Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", envoy.pid()?))?;
    let outside = userns.outside(PROXY_ID).to_string();
    let uids = status.lines().find(|line| line.starts_with("Uid:"));
    ensure!(uids.is_some_and(|uids| uids.contains(&outside)), "{uids:?}");
    Ok(())
}

#[test]
fn known_by_its_cgroup() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with(&[], SIDECAR)?;
    let userns = UserNamespace::new(FIRST)?;
    let cgroup = lab.cgroup().child("istio-proxy")?;
    lab.write_workload(&[
        "capture.sidecar-agent.io/proxy: external",
        "capture.sidecar-agent.io/dual-stack: 'true'",
        &format!(
            "capture.sidecar-agent.io/proxy-cgroup: {}",
            cgroup.below_root()?
        ),
    ])?;
    lab.start_agent()?;
    let place = Place::here().cgroup(&cgroup);
    let envoy = Envoy::at(&lab.workload().netns, place)
        .userns(&userns)
        .start()?;
    is_mapped(&envoy, &userns)?;
    each_way_once(&mut lab, &envoy, &userns)
}
