//! Every decision is counted once, with its reason, for its workload and direction.

use sidecar_common::{
    Path, Reason,
    decide::Direction::{Inbound, Outbound},
    values::Rule,
};
use sidecar_tests::{Cgroup, Client, Mode, Place, Probe, Server, require_root};

use crate::{
    fixture::{Fixture, Loaded, namespace, serve},
    plan::{Planner, at, direct, rule},
};

/// As many reasons as there are, each a rule's of its own.
#[test]
fn every_reason_is_counted_under_its_name() -> anyhow::Result<()> {
    require_root!();
    let mut plan = Planner::new();
    for (port, reason) in (7000..).zip(Reason::ALL) {
        plan = plan
            .outbound(&format!("10.1.0.1:{port}"), rule(Path::Deny, *reason))
            .inbound(&format!("0.0.0.0:{port}"), rule(Path::Deny, *reason));
    }
    let fixture = Fixture::new(plan)?;
    let (app, stranger) = (fixture.app()?, fixture.stranger()?);
    let mut expected = Vec::new();
    for (port, reason) in (7000..).zip(Reason::ALL) {
        // Different numbers, so that one in the wrong place is seen.
        let times = 1 + port % 3;
        for _ in 0..times {
            let address = at(&format!("10.1.0.1:{port}"));
            assert!(app.visit(address)?.is_err());
            assert!(stranger.visit(address)?.is_err());
            assert!(stranger.visit(address)?.is_err());
        }
        expected.extend([
            (Outbound, Path::Deny, *reason, times),
            (Inbound, Path::Deny, *reason, 2 * times),
        ]);
    }
    assert_eq!(
        fixture.loaded.dataplane.counters(fixture.workload),
        expected
    );
    Ok(())
}

/// Not once a segment, nor once a call.
#[test]
fn a_connection_is_counted_once_however_long_it_lives() -> anyhow::Result<()> {
    require_root!();
    let ingress = Rule {
        reason: Reason::IngressListener as u8,
        ..direct("127.0.0.1:8080")
    };
    let plan = Planner::new()
        .outbound("10.1.0.1:80", direct("10.3.0.1:9080"))
        .inbound("0.0.0.0:9080", ingress)
        .listens(8080);
    let fixture = Fixture::new(plan)?;
    let _server = Server::tcp(at("127.0.0.1:8080"))
        .place(fixture.inside())
        .mode(Mode::Echo)
        .start()?;
    let client = Client::tcp(at("10.1.0.1:80")).place(fixture.inside());
    let mut held = client.clone().non_blocking().hold()?;
    for line in ["one", "two", "three"] {
        assert_eq!(held.exchange(line)?, line);
    }
    drop(held);
    let transfer = client.echo(1 << 20)?.transfer.expect("a transfer");
    assert!(transfer.intact, "{transfer:?}");
    let counters = fixture.loaded.dataplane.counters(fixture.workload);
    let expected = [
        (Outbound, Path::Direct, Reason::EgressService, 2),
        (Inbound, Path::Direct, Reason::IngressListener, 2),
    ];
    assert_eq!(counters, expected);
    Ok(())
}

#[test]
fn workloads_are_counted_apart_and_a_new_one_from_zero() -> anyhow::Result<()> {
    require_root!();
    let netns = namespace()?;
    let outside = Place::here().netns(&netns);
    let _server = serve(outside, "0.0.0.0:80", "server")?;
    let mut loaded = Loaded::new()?;
    let cgroups = [Cgroup::new("a")?, Cgroup::new("b")?, Cgroup::new("c")?];
    let mut workloads = Vec::new();
    for (cgroup, times) in cgroups.iter().zip(1..) {
        let workload = loaded.attach(cgroup, &netns)?;
        let inbound = rule(Path::Pass, Reason::InterceptionNone);
        loaded.follow(workload, Planner::new().inbound_default(inbound).build())?;
        for seen in Probe::start(outside.cgroup(cgroup))?.visits(at("10.1.0.1:80"), times)? {
            seen?;
        }
        workloads.push(workload);
    }
    // Outbound one's own; inbound everybody's in the namespace since one was attached.
    for (workload, (own, all)) in workloads.iter().zip([(1, 6), (2, 5), (3, 3)]) {
        let expected = [
            (Inbound, Path::Pass, Reason::InterceptionNone, all),
            (Outbound, Path::Pass, Reason::AllowAny, own),
        ];
        let mut counters = loaded.dataplane.counters(*workload);
        counters.sort_by_key(|(direction, ..)| std::cmp::Reverse(*direction));
        assert_eq!(counters, expected);
    }
    assert_eq!(loaded.dataplane.counters_of_gone(), []);
    loaded.dataplane.detach(workloads[1]);
    let again = loaded.attach(&cgroups[1], &netns)?;
    assert_eq!(again, workloads[1], "the same slot");
    assert_eq!(loaded.dataplane.counters(again), []);
    // What one that is gone had counted is not lost, and is added up.
    let left = |loaded: &Loaded| {
        let mut counters = loaded.dataplane.counters_of_gone();
        counters.sort_by_key(|(direction, ..)| std::cmp::Reverse(*direction));
        counters
    };
    let first = [
        (Inbound, Path::Pass, Reason::InterceptionNone, 5),
        (Outbound, Path::Pass, Reason::AllowAny, 2),
    ];
    assert_eq!(left(&loaded), first);
    loaded.dataplane.detach(workloads[0]);
    let both = [
        (Inbound, Path::Pass, Reason::InterceptionNone, 11),
        (Outbound, Path::Pass, Reason::AllowAny, 3),
    ];
    assert_eq!(left(&loaded), both);
    Ok(())
}
