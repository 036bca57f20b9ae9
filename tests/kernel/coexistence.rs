//! Programs of others at our hooks: which run before ours, which after, and what becomes of
//! connections. `docs/coexistence.md` tells it to operators.

use std::net::SocketAddrV4;

use anyhow::ensure;
use rustix::io::Errno;
use sidecar_common::Reason;
use sidecar_tests::{
    Cgroup, DEADLINE, Place, Probe,
    foreign::{Flags, Foreign, Hook},
    poll::poll_result,
    require_root, skip,
};

use crate::{
    fixture::{Fixture, Loaded, namespace, reached, serve},
    plan::{Planner, at, deny, direct, proxy},
};

/// What the load balancer leads to [`BACKEND`].
const SERVICE: &str = "10.96.0.1:80";
const BACKEND: &str = "10.9.0.1:8080";
/// What a rule leads to.
const OTHER: &str = "10.9.0.2:8080";

fn balancer(cgroup: &Cgroup, flags: Flags) -> anyhow::Result<Foreign> {
    let [service, backend] = [SERVICE, BACKEND].map(str::parse::<SocketAddrV4>);
    Foreign::balancer(cgroup.path(), flags, service?, backend?)
}

/// A workload with a proxy that has this cgroup, and follows no plan yet.
fn attached(cgroup: Cgroup) -> anyhow::Result<Fixture> {
    let netns = namespace()?;
    let mut loaded = Loaded::new()?;
    let workload = loaded.attach(&cgroup, &netns)?;
    Ok(Fixture {
        loaded,
        workload,
        cgroup,
        netns,
    })
}

#[test]
fn a_balancer_that_runs_after_ours_sees_what_ours_have_decided() -> anyhow::Result<()> {
    require_root!();
    for is_above in [true, false] {
        let parent = Cgroup::new("parent")?;
        let mut fixture = attached(parent.child("workload")?)?;
        // Of programs at one cgroup, the one that came later.
        let cgroup = if is_above { &parent } else { &fixture.cgroup };
        let mut balancer = balancer(cgroup, Flags::Multi)?;
        let _servers = [fixture.serve("0.0.0.0:80")?, fixture.serve("0.0.0.0:8080")?];
        let app = fixture.app()?;

        fixture.follow(Planner::new().proxied())?;
        let _proxy = serve(fixture.as_proxy(), "127.0.0.1:15001", "proxy")?;
        assert_eq!(reached(&app.visit(at(SERVICE))??)?, at(BACKEND), "passed");
        assert_eq!(fixture.outbound(Reason::AllowAny)?, 1);
        assert_eq!(balancer.counted()?, 1);

        fixture.follow(Planner::new().proxied().outbound_default(proxy()))?;
        let seen = app.visit(at(SERVICE))??;
        assert_eq!(seen.name, "proxy");
        assert_eq!(seen.original_dst, Some(at(SERVICE)), "captured");
        assert_eq!(balancer.counted()?, 1, "what is the proxy's was led away");
        let upstream = Probe::start(fixture.as_proxy())?;
        assert_eq!(
            reached(&upstream.visit(at(SERVICE))??)?,
            at(BACKEND),
            "the proxy's own"
        );
        assert_eq!(balancer.counted()?, 2);

        // What a rule has led elsewhere stays there, unless that is the service's address.
        let plan = Planner::new()
            .outbound(SERVICE, direct(OTHER))
            .outbound("10.96.0.2:80", direct(SERVICE))
            .outbound_default(deny());
        fixture.follow(plan)?;
        assert_eq!(reached(&app.visit(at(SERVICE))??)?, at(OTHER), "direct");
        assert_eq!(balancer.counted()?, 2);
        assert_eq!(reached(&app.visit(at("10.96.0.2:80"))??)?, at(BACKEND));
        assert_eq!(balancer.counted()?, 3);

        fixture.follow(Planner::new().outbound_default(deny()))?;
        assert_eq!(app.visit(at(SERVICE))?, Err(Errno::CONNREFUSED), "denied");
        assert_eq!(fixture.outbound(Reason::RegistryOnly)?, 1);
    }
    Ok(())
}

/// Ours see the backend's address, and nothing of the service's.
fn ours_see_the_backend(
    fixture: &mut Fixture,
    balancer: &mut Foreign,
    container: Option<&Cgroup>,
) -> anyhow::Result<()> {
    let _servers = [fixture.serve("0.0.0.0:80")?, fixture.serve("0.0.0.0:8080")?];
    let plan = Planner::new()
        .outbound(SERVICE, direct(OTHER))
        .outbound_default(deny());
    fixture.follow(plan)?;
    let place = match container {
        Some(cgroup) => Place::here().netns(&fixture.netns).cgroup(cgroup),
        None => fixture.inside(),
    };
    let app = Probe::start(place)?;
    assert_eq!(app.visit(at(SERVICE))?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.outbound(Reason::RegistryOnly)?, 1);
    assert_eq!(balancer.counted()?, 1);

    let plan = Planner::new()
        .outbound(BACKEND, direct(OTHER))
        .outbound_default(deny());
    fixture.loaded.follow(fixture.workload, plan.build())?;
    assert_eq!(reached(&app.visit(at(SERVICE))??)?, at(OTHER));

    let plan = Planner::new().proxied().outbound_default(proxy());
    fixture.loaded.follow(fixture.workload, plan.build())?;
    let _proxy = serve(fixture.as_proxy(), "127.0.0.1:15001", "proxy")?;
    let seen = app.visit(at(SERVICE))??;
    assert_eq!(seen.name, "proxy");
    assert_eq!(seen.original_dst, Some(at(BACKEND)));
    assert_eq!(balancer.counted()?, 3);
    Ok(())
}

#[test]
fn one_that_runs_before_ours_hides_the_service() -> anyhow::Result<()> {
    require_root!();
    // Of programs at one cgroup, the one that came earlier.
    let cgroup = Cgroup::new("workload")?;
    let mut earlier = balancer(&cgroup, Flags::Multi)?;
    ours_see_the_backend(&mut attached(cgroup)?, &mut earlier, None)?;

    let mut fixture = attached(Cgroup::new("workload")?)?;
    let container = fixture.cgroup.child("container")?;
    let mut below = balancer(&container, Flags::Multi)?;
    ours_see_the_backend(&mut fixture, &mut below, Some(&container))
}

#[test]
fn one_that_wants_to_be_first_runs_before_ours() -> anyhow::Result<()> {
    require_root!();
    let parent = Cgroup::new("parent")?;
    let mut first = match balancer(&parent, Flags::Preorder) {
        Err(error) if error.to_string().contains("Invalid argument") => {
            skip!("kernel has no BPF_F_PREORDER")
        }
        first => first?,
    };
    ours_see_the_backend(&mut attached(parent.child("workload")?)?, &mut first, None)
}

/// As systemd's, of a unit and of the slice that it is in.
#[test]
fn accounting_and_capture_both_count() -> anyhow::Result<()> {
    require_root!();
    let parent = Cgroup::new("slice")?;
    let cgroup = parent.child("unit")?;
    let account = |cgroup: &Cgroup| -> anyhow::Result<_> {
        Ok([
            Foreign::accounting(cgroup.path(), Hook::Egress)?,
            Foreign::accounting(cgroup.path(), Hook::Ingress)?,
        ])
    };
    // One that was there before ours are, one that comes after.
    let mut unit = account(&cgroup)?;
    let mut fixture = attached(cgroup)?;
    let mut slice = account(&parent)?;
    let mut calls = Foreign::on_cgroup(parent.path(), Hook::Connect4, Flags::Multi)?;
    let _server = fixture.serve("0.0.0.0:8080")?;
    let plan = Planner::new()
        .outbound(SERVICE, direct(OTHER))
        .outbound_default(deny());
    fixture.follow(plan)?;
    let app = fixture.app()?;
    for seen in app.visits(at(SERVICE), 10)? {
        assert_eq!(reached(&seen?)?, at(OTHER));
    }
    assert_eq!(app.visit(at(BACKEND))?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.outbound(Reason::EgressService)?, 10);
    assert_eq!(fixture.outbound(Reason::RegistryOnly)?, 1);
    // What ours have refused, too.
    assert_eq!(calls.counted()?, 11);
    // The last packets of connections may be under way.
    poll_result(DEADLINE, "the same to be counted", || {
        for (unit, slice) in unit.iter_mut().zip(&mut slice) {
            let (unit, slice) = (unit.counted()?, slice.counted()?);
            // Ten times a SYN, an ACK, a FIN: at least their headers.
            ensure!(unit > 10 * 3 * 40 && unit == slice, "{unit}, {slice}");
        }
        Ok(())
    })
}
