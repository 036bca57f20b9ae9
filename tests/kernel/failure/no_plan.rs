//! No plan can be in force, or what is in force is not in the maps.

use rustix::io::Errno;
use sidecar_common::{Reason, decide::Direction, values::PlanHeader};
use sidecar_tests::{Kind, Probe, require_root};

use super::{answered, promptly, refused, visit_from};
use crate::{
    dns::{answering, ask},
    fixture::{CAPACITY, Fixture, serve},
    plan::{Planner, at, balanced, exempting_self, proxy},
};

const CALLED: [&str; 2] = ["10.1.0.1:80", "[fd00:1::1]:80"];
const OWN: [&str; 2] = ["127.0.0.1:80", "[::1]:80"];

/// A plan that may not fit.
fn plan() -> Planner {
    Planner::new()
        .proxied()
        .dns(&["0.0.0.0/0", "::/0"])
        .outbound_default(proxy())
        .inbound_default(exempting_self(proxy()))
}

fn refusing() -> anyhow::Result<Fixture> {
    let mut fixture = Fixture::without_plan()?;
    fixture
        .loaded
        .dataplane
        .reserve(fixture.workload, &plan().build())?;
    fixture.loaded.dataplane.refuse(fixture.workload)?;
    Ok(fixture)
}

#[test]
fn closed_everything_is_refused_but_what_is_the_workloads_own() -> anyhow::Result<()> {
    require_root!();
    let fixture = refusing()?;
    let _server = fixture.serve("[::]:80")?;
    let (app, stranger) = (fixture.app()?, fixture.stranger()?);
    refused(&app, &CALLED)?;
    assert_eq!(fixture.outbound(Reason::MapFull)?, 2);
    let outcome = visit_from(&stranger, "10.9.0.1:0", at("10.3.0.1:80"))?;
    assert_eq!(outcome, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.inbound(Reason::MapFull)?, 1);
    // Captured DNS is refused, other datagrams are not captured.
    let socket = app.socket(Kind::Udp4)??;
    let sent = promptly("a query", || socket.send_to("who", at("10.1.0.1:53")))?;
    assert_eq!(sent, Err(Errno::CONNREFUSED));
    answering(&fixture, "10.1.0.1:5353", || {
        ask(&app, Kind::Udp4, at("10.1.0.1:5353")).map(drop)
    })?;
    // Its calls to itself, and its proxy's.
    answered(&app, &OWN, "stranger")?;
    assert_eq!(fixture.outbound(Reason::Loopback)?, 2);
    let own = Probe::start(fixture.as_proxy())?;
    answered(&own, &CALLED, "stranger")?;
    assert_eq!(fixture.outbound(Reason::ProxyOwn)?, 2);
    Ok(())
}

#[test]
fn closed_calls_to_own_addresses_pass() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::of_pod(plan())?;
    fixture
        .loaded
        .dataplane
        .reserve(fixture.workload, &plan().build())?;
    fixture.loaded.dataplane.refuse(fixture.workload)?;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    answered(&app, &["10.244.1.5:80", "[fd00:244::5]:80"], "stranger")?;
    assert_eq!(fixture.outbound(Reason::SelfCall)?, 2);
    assert_eq!(fixture.inbound(Reason::SelfCall)?, 2);
    Ok(())
}

#[test]
fn it_is_suspended_and_ends_as_a_plan_does() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = refusing()?;
    let workload = fixture.workload;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    let dataplane = &mut fixture.loaded.dataplane;
    dataplane.suspend(workload, true)?;
    answered(&app, &CALLED, "stranger")?;
    dataplane.refuse(workload)?;
    answered(&app, &CALLED, "stranger")?;
    dataplane.suspend(workload, false)?;
    refused(&app, &CALLED)?;
    // Open: as without a plan.
    dataplane.release(workload)?;
    answered(&app, &CALLED, "stranger")?;
    dataplane.refuse(workload)?;
    refused(&app, &CALLED)?;
    let _proxy = serve(fixture.as_proxy(), "[::]:15001", "proxy")?;
    fixture.follow(plan())?;
    assert!(!fixture.loaded.dataplane.refuses(workload));
    answered(&app, &CALLED, "proxy")?;
    Ok(())
}

#[test]
fn it_takes_no_room_that_plans_could_take() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    let dataplane = &mut fixture.loaded.dataplane;
    for number in 0..CAPACITY.plans {
        let port = u16::try_from(number + 1)?;
        let empty = Planner::new().listens(port).build().into();
        dataplane.install(&blake3::hash(&number.to_ne_bytes()), &empty)?;
    }
    let usage = dataplane.usage();
    dataplane.reserve(fixture.workload, &plan().build())?;
    assert_eq!(dataplane.usage(), usage);
    dataplane.refuse(fixture.workload)?;
    let _server = fixture.serve("[::]:80")?;
    refused(&fixture.app()?, &CALLED)?;
    // With the workload it goes.
    let fixture_workload = fixture.workload;
    fixture.loaded.dataplane.detach(fixture_workload);
    answered(&fixture.app()?, &CALLED, "stranger")?;
    let again = fixture.loaded.attach(&fixture.cgroup, &fixture.netns)?;
    assert_eq!(again, fixture_workload);
    let error = fixture.loaded.dataplane.refuse(again).unwrap_err();
    assert!(error.to_string().contains("set aside"), "{error:#}");
    Ok(())
}

#[test]
fn it_outlives_the_agent() -> anyhow::Result<()> {
    require_root!();
    let Fixture {
        loaded,
        workload,
        cgroup,
        netns,
    } = refusing()?;
    let mut fixture = Fixture {
        loaded: loaded.again(CAPACITY)?,
        workload,
        cgroup,
        netns,
    };
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    refused(&app, &CALLED)?;
    let attached = fixture.loaded.attach(&fixture.cgroup, &fixture.netns)?;
    assert_eq!(attached, workload);
    assert!(fixture.loaded.dataplane.refuses(workload));
    // There is no plan that is in force.
    assert_eq!(fixture.loaded.dataplane.in_force(workload), None);
    refused(&app, &CALLED)?;
    // It is known what was set aside.
    fixture.loaded.dataplane.refuse(workload)?;
    refused(&app, &CALLED)?;
    let counted = fixture
        .loaded
        .counted(workload, Direction::Outbound, Reason::MapFull)?;
    assert_eq!(counted, 6);
    Ok(())
}

#[test]
fn open_what_is_not_in_the_maps_passes() -> anyhow::Result<()> {
    require_root!();
    let open = || Planner::new().flags(PlanHeader::OPEN_UNKNOWN);
    let plan = open()
        .outbound(CALLED[0], balanced(0, 2))
        .outbound(CALLED[1], balanced(0, 2))
        .inbound("0.0.0.0:9080", balanced(0, 2));
    let mut fixture = Fixture::new(plan)?;
    let _servers = [fixture.serve("[::]:80")?, fixture.serve("[::]:9080")?];
    let (app, stranger) = (fixture.app()?, fixture.stranger()?);
    answered(&app, &CALLED, "stranger")?;
    answered(&stranger, &["10.3.0.1:9080"], "stranger")?;
    assert_eq!(fixture.outbound(Reason::PlanIncompleteOpen)?, 2);
    assert_eq!(fixture.inbound(Reason::PlanIncompleteOpen)?, 1);
    // As a whole.
    let workload = fixture.workload;
    let dataplane = &mut fixture.loaded.dataplane;
    dataplane.switch(workload, 999, &open().build())?;
    answered(&app, &CALLED, "stranger")?;
    assert_eq!(fixture.outbound(Reason::PlanIncompleteOpen)?, 4);
    assert_eq!(fixture.inbound(Reason::PlanIncompleteOpen)?, 3);
    // By another policy.
    let dataplane = &mut fixture.loaded.dataplane;
    dataplane.switch(workload, 999, &Planner::new().build())?;
    refused(&app, &CALLED)?;
    assert_eq!(fixture.outbound(Reason::PlanIncomplete)?, 2);
    Ok(())
}
