//! What is found in good order is gone on with; what is found half done is completed or undone.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, ensure};
use aya::maps::{HashMap, Map, MapData};
use sidecar_agent::dataplane::uninstall::inventory;
use sidecar_common::{
    Reason,
    decide::Direction,
    keys::{PlanId, RuleKey, WorkloadEndpoint, WorkloadId},
    values::{PlanHeader, Rule},
};
use sidecar_tests::{Cgroup, DEADLINE, poll::poll_result, require_root};

use super::{CALLED, Life, denied};
use crate::{
    fixture::CAPACITY,
    plan::{Planner, deny, pass},
};

#[test]
fn what_is_attached_goes_on_without_the_agent_and_is_adopted() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let (workload, links) = (life.workload, life.link_ids()?);
    let word = life.loaded.dataplane.word(workload);
    assert_eq!(links.len(), 11);
    life = life.restart(CAPACITY)?;
    life.is_refused()?;
    assert_eq!(life.attach()?, workload, "another slot");
    life.is_refused()?;
    assert_eq!(life.loaded.dataplane.word(workload), word);
    let digest = denied().build().digest();
    assert_eq!(life.loaded.dataplane.in_force(workload), Some(digest));
    assert_eq!(
        life.follow(denied())?,
        word.plan(),
        "the plan was written anew"
    );
    assert_eq!(life.link_ids()?, links, "attached anew");
    let refused = life
        .loaded
        .counted(workload, Direction::Outbound, Reason::RegistryOnly)?;
    assert_eq!(refused, 3, "counters begin anew");
    let next = life.follow(Planner::new().outbound_default(pass()))?;
    assert!(next > word.plan(), "an id was given twice");
    life.passes()?;
    poll_result(DEADLINE, "the adopted plan to be removed", || {
        life.loaded.dataplane.refresh();
        let plans = life.plans()?;
        ensure!(plans == [next], "{plans:?}");
        Ok(())
    })
}

#[test]
fn what_was_begun_is_undone_or_completed() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    // A plan that nobody follows yet.
    let begun = Planner::new().outbound_default(pass()).build();
    let digest = begun.digest();
    life.loaded.dataplane.install(&digest, &begun.into())?;
    // A link that is missing, as if it had not been made yet.
    let pin = life.loaded.maps_dir().join("workload-1/getsockopt");
    fs::remove_file(pin)?;
    // A workload without a plan.
    let other = Cgroup::new("other")?;
    life.loaded.attach(&other, &life.netns)?;
    assert_eq!(life.link_ids()?.len(), 10 + 11);

    life = life.restart(CAPACITY)?;
    assert_eq!(life.link_ids()?.len(), 10, "what has no plan is attached");
    let map = MapData::from_pin(life.loaded.maps_dir().join("LOCAL_ADDRS"))?;
    let addrs: HashMap<_, WorkloadEndpoint, u8> = Map::HashMap(map).try_into()?;
    let of = addrs.keys().map(|key| Ok(key?.workload));
    let of: BTreeSet<WorkloadId> = of.collect::<anyhow::Result<_>>()?;
    assert_eq!(of, [life.workload].into(), "what has no plan is known");
    life.is_refused()?;
    life.attach()?;
    assert_eq!(life.link_ids()?.len(), 11);
    life.is_refused()?;
    poll_result(DEADLINE, "the plan to be removed", || {
        life.loaded.dataplane.refresh();
        let plans = life.plans()?;
        ensure!(plans.len() == 1, "{plans:?}");
        Ok(())
    })?;

    // On its way out: it passes, and is still attached.
    life.loaded.dataplane.release(life.workload)?;
    life = life.restart(CAPACITY)?;
    assert!(life.link_ids()?.is_empty());
    life.passes()?;
    life.attach()?;
    life.follow(denied())?;
    life.is_refused()
}

#[test]
fn a_plan_without_a_header_is_removed() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let rest = Planner::new().outbound(CALLED, deny()).build();
    let digest = rest.digest();
    let id = life.loaded.dataplane.install(&digest, &rest.into())?;
    let dir = life.loaded.maps_dir();
    let open = |name: &str| MapData::from_pin(dir.join(name)).map(Map::HashMap);
    let mut headers: HashMap<_, PlanId, PlanHeader> = open("PLANS")?.try_into()?;
    headers.remove(&id)?;
    life = life.restart(CAPACITY)?;
    let rules: HashMap<_, RuleKey, Rule> = open("OUTBOUND")?.try_into()?;
    assert_eq!(rules.keys().count(), 0);
    life.is_refused()
}

#[test]
fn a_plan_that_is_not_what_its_digest_says_is_written_anew() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let plan = || Planner::new().outbound(CALLED, deny());
    let first = life.follow(plan())?;
    life.is_refused()?;
    let map = MapData::from_pin(life.loaded.maps_dir().join("OUTBOUND"))?;
    let mut rules: HashMap<_, RuleKey, Rule> = Map::HashMap(map).try_into()?;
    let key = rules.keys().next().context("no rule")??;
    rules.insert(key, pass(), 0)?;
    life.passes()?;
    life = life.restart(CAPACITY)?;
    life.attach()?;
    let second = life.follow(plan())?;
    assert_ne!(first, second);
    life.is_refused()
}

#[test]
fn what_nobody_claims_is_kept_until_it_is_let_go() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    life = life.restart(CAPACITY)?;
    let unclaimed = life.loaded.dataplane.unclaimed();
    let cgroup = life.cgroup.id()?;
    assert!(unclaimed[&life.workload].contains(&cgroup), "{unclaimed:?}");
    life.loaded.dataplane.refresh();
    life.is_refused()?;
    life.loaded.dataplane.let_go_unclaimed(&[cgroup].into());
    life.is_refused()?;
    life.loaded.dataplane.let_go_unclaimed(&BTreeSet::new());
    life.passes()?;
    assert!(life.link_ids()?.is_empty());
    // Its slot is free, with nothing in it.
    assert_eq!(life.attach()?, 1);
    assert_eq!(life.loaded.dataplane.counters(1), []);
    Ok(())
}

#[test]
fn what_is_gone_is_collected() -> anyhow::Result<()> {
    require_root!();
    let Life {
        loaded,
        app,
        cgroup,
        ..
    } = Life::new()?;
    drop((app, cgroup));
    let pins = loaded.pin_dir();
    // The kernel detaches what was attached to a cgroup some time after it is gone.
    let cgroup_is_gone = || {
        let links = inventory(&pins)?.links;
        let mut of_cgroup = links.iter().filter(|link| link.target.contains("cgroup"));
        ensure!(
            of_cgroup.all(|link| link.target.contains("gone")),
            "{links:?}"
        );
        Ok(())
    };
    poll_result(DEADLINE, "the cgroup to be gone", cgroup_is_gone)?;
    let loaded = loaded.again(CAPACITY)?;
    assert!(loaded.dataplane.unclaimed().is_empty());
    assert_eq!(inventory(&pins)?.links.len(), 0);
    Ok(())
}

#[test]
fn suspended_everything_new_passes_also_after_a_restart() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    life.loaded.dataplane.suspend(life.workload, true)?;
    life.passes()?;
    life = life.restart(CAPACITY)?;
    life.passes()?;
    life.attach()?;
    life.passes()?;
    life.follow(denied())?;
    life.passes()?;
    life.loaded.dataplane.suspend(life.workload, false)?;
    life.is_refused()
}
