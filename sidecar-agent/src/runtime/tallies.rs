//! What the relay counts for each listener of a workload, from plan to plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    compile::Plan,
    observe::listeners::{Listeners, Paths},
    relay::Tally,
};

/// Of the listeners of one plan, by `Rule::listener`.
pub type OfPlan = BTreeMap<u32, Arc<Tally>>;

/// Of the listeners of one workload, by their names: a listener that the next plan has as well
/// counts on.
#[derive(Default)]
pub struct Tallies(BTreeMap<String, Arc<Tally>>);

impl Tallies {
    /// Those of a plan's relayed listeners.
    pub fn of_plan(&mut self, plan: &Plan) -> OfPlan {
        let relayed = Paths::of(plan);
        let relayed = relayed.relayed().filter_map(|index| {
            let name = plan.listener(index)?.to_string();
            Some((index, Arc::clone(self.0.entry(name).or_default())))
        });
        relayed.collect()
    }

    /// Forgets what a plan does not have.
    pub fn keep(&mut self, plan: &Plan) {
        let kept = Paths::of(plan);
        let kept = kept.relayed().filter_map(|index| plan.listener(index));
        let kept: BTreeSet<String> = kept.map(ToString::to_string).collect();
        self.0.retain(|name, _| kept.contains(name));
    }

    /// Writes what has come of each into the listeners that are told.
    pub fn tell(&self, listeners: &mut Listeners) {
        for told in &mut listeners.listed {
            if told.relayed.is_some()
                && let Some(tally) = self.0.get(&told.listener)
            {
                told.relayed = Some(tally.read().into());
            }
        }
    }
}
