//! Who is the proxy, and whose connections are captured: uids, gids, user namespaces.

use std::{
    fs,
    process::{Child, Stdio},
};

use sidecar_common::{Reason, keys::OwnerKey, values::PlanHeader};
use sidecar_tests::{Cgroup, DEADLINE, Namespace, Place, Probe, poll, require_root};

use crate::{
    fixture::{Fixture, serve},
    plan::{PROXY_UID, Planner, at, proxy},
};

/// What a connection to the outside reaches: the proxy, or nobody.
fn is_captured(place: Place<'_>) -> anyhow::Result<bool> {
    let client = Probe::start(place)?;
    Ok(client.connect(at("10.9.0.1:80"))?.is_ok())
}

/// A workload where what is not captured is refused: nobody listens at its destinations.
fn workload(plan: Planner) -> anyhow::Result<Fixture> {
    Fixture::new(plan.proxied().outbound_default(proxy()))
}

#[test]
fn one_of_several_uids_or_gids_makes_the_proxy() -> anyhow::Result<()> {
    require_root!();
    let fixture = workload(
        Planner::new()
            .owner(OwnerKey::PROXY_UID, 4)
            .owner(OwnerKey::PROXY_GID, 2),
    )?;
    let _proxy = serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?;
    for (uid, gid, captured) in [
        (PROXY_UID, 9, false),
        (4, 9, false),
        (9, PROXY_UID, false),
        (9, 2, false),
        (2, 4, true),
        (9, 9, true),
        (0, 0, true),
    ] {
        let place = fixture.inside().user(uid, gid);
        assert_eq!(is_captured(place)?, captured, "{uid}:{gid}");
    }
    assert_eq!(fixture.outbound(Reason::ProxyOwn)?, 4);
    Ok(())
}

#[test]
fn only_the_groups_that_are_listed_or_all_but_those() -> anyhow::Result<()> {
    require_root!();
    for (flag, captured) in [
        (PlanHeader::ONLY_GROUPS, [202, 203].as_slice()),
        (PlanHeader::EXCEPT_GROUPS, &[9, 0]),
    ] {
        let plan = Planner::new()
            .flags(flag)
            .owner(OwnerKey::GROUP, 202)
            .owner(OwnerKey::GROUP, 203);
        let fixture = workload(plan)?;
        let _proxy = serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?;
        for gid in [202, 203, 9, 0] {
            let place = fixture.inside().user(1000, gid);
            assert_eq!(is_captured(place)?, captured.contains(&gid), "{flag} {gid}");
        }
        assert_eq!(fixture.outbound(Reason::OwnerGroup)?, 2);
    }
    Ok(())
}

/// A process that only holds its user and network namespaces, as the first one of a pod.
struct Pause(Child);

impl Pause {
    /// Starts it; the users and groups in there begin with `base` on the host.
    fn start(cgroup: &Cgroup, base: u32) -> anyhow::Result<Self> {
        // It ends with its standard input: at the latest with this process.
        let child = Place::here()
            .cgroup(cgroup)
            .command("unshare")
            .args(["--user", "--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let pause = Self(child);
        let proc = |file: &str| format!("/proc/{}/{file}", pause.0.id());
        let own = fs::read_link("/proc/self/ns/net")?;
        poll(DEADLINE, "the namespaces to be there", || {
            let netns = fs::read_link(proc("ns/net")).ok()?;
            (netns != own).then_some(())
        })?;
        for map in ["uid_map", "gid_map"] {
            fs::write(proc(map), format!("0 {base} 65536"))?;
        }
        Ok(pause)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the users of a pod begin with on the host.
const BASE: u32 = 200_000;

/// In a pod with a user namespace of its own, the proxy's uid is another one on the host.
#[test]
fn ids_are_those_of_the_user_namespace_that_owns_the_network() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = workload(Planner::new())?;
    let pause = Pause::start(&fixture.cgroup, BASE)?;
    let netns = Namespace::of_process("userns", pause.0.id())?;
    netns.add_local("10.0.0.0/8".parse()?)?;
    fixture.loaded.dataplane.detach(fixture.workload);
    let workload = fixture.loaded.attach(&fixture.cgroup, &netns)?;
    let plan = Planner::new().proxied().outbound_default(proxy());
    fixture.loaded.follow(workload, plan.build())?;
    let place = |uid| {
        Place::here()
            .netns(&netns)
            .cgroup(&fixture.cgroup)
            .user(uid, uid)
    };
    let _proxy = serve(place(BASE + PROXY_UID), "0.0.0.0:15001", "proxy")?;
    assert!(!is_captured(place(BASE + PROXY_UID))?);
    assert!(is_captured(place(PROXY_UID))?, "the host's user of that id");
    assert!(is_captured(place(BASE))?);
    Ok(())
}
