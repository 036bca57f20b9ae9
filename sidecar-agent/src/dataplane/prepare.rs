//! Starting: programs are loaded before anything is touched, then what an earlier agent has left is
//! taken over.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::{
    Capacity, Config, Dataplane,
    counters::Counters,
    found,
    maps::Maps,
    object::{self, Objects},
    pins::{PinDir, Set},
    plans::{Plans, RETIRED_PLAN_GRACE},
    usage::Counted,
};

/// Loaded programs that nothing runs yet. Another agent may still be at work with these pins.
pub struct Prepared {
    pins: PinDir,
    capacity: Capacity,
    objects: Objects,
    /// The other sets that there are.
    others: Vec<Set>,
    /// The set was made for these programs.
    is_new: bool,
}

impl Prepared {
    /// Loads the programs, with the maps that an earlier agent has left if they fit, else with new
    /// ones beside.
    ///
    /// # Errors
    /// If bpffs cannot be used, or the kernel refuses a map or a program (the error carries the
    /// verifier's log). Everything is as it was then.
    pub fn load(config: &Config) -> Result<Self> {
        let pins = PinDir::open(&config.pin_dir)?;
        for stranger in pins.strangers()? {
            tracing::warn!(
                "{} is no pin of this agent; it is left alone",
                stranger.display()
            );
        }
        pins.check_workloads(&object::workloads()?)?;
        let expected = object::expected(&config.capacity)?;
        let mut others = pins.sets()?;
        let newest_fit = others.iter().rposition(|set| match set.check(&expected) {
            Ok(()) => true,
            Err(misfit) => {
                tracing::info!(set = set.number, "a set of maps cannot be used: {misfit}");
                false
            }
        });
        let capacity = config.capacity;
        let (objects, is_new) = match newest_fit {
            Some(at) => (Objects::load(&pins, others.remove(at), capacity)?, false),
            None => (load_beside(&pins, capacity)?, true),
        };
        Ok(Self {
            pins,
            capacity,
            objects,
            others,
            is_new,
        })
    }

    /// Whether another set of programs and maps decides now. What it has decided cannot be asked for
    /// in the maps of this one.
    #[must_use]
    pub fn is_beside(&self) -> bool {
        self.is_new && !self.others.is_empty()
    }

    /// Takes over what an earlier agent has left in the kernel. What is attached is not touched: see
    /// [`Dataplane::attach`].
    ///
    /// # Errors
    /// If another agent is at work with these pins. Everything is as it was then.
    pub fn take(self) -> Result<Dataplane> {
        let Self {
            pins,
            capacity,
            mut objects,
            others,
            is_new,
        } = self;
        let lock = match pins.lock() {
            Ok(lock) => lock,
            Err(error) => {
                if is_new && let Err(error) = objects.set().remove() {
                    tracing::warn!("{error:#}");
                }
                return Err(error);
            }
        };
        objects.hold_maps()?;
        let mut maps = Maps::open(&objects, capacity)?;
        let sets: Vec<Set> = others.iter().chain([objects.set()]).cloned().collect();
        let found = found::look(&sets, &maps)?;
        let plans = Plans::find(&mut maps);
        let mut dataplane = Dataplane {
            maps,
            counters: Counters::open(&objects, &capacity)?,
            counted: Counted::open(&objects)?,
            objects,
            attachments: BTreeMap::new(),
            found,
            old_sets: others,
            leaving: BTreeSet::new(),
            retired_links: Vec::new(),
            plans,
            grace: RETIRED_PLAN_GRACE,
            lock,
        };
        dataplane.forget_unattached();
        dataplane.let_go(|found| !found.is_alive());
        dataplane.retire_plans();
        Ok(dataplane)
    }
}

/// Loads the programs with a set of maps of their own.
fn load_beside(pins: &PinDir, capacity: Capacity) -> Result<Objects> {
    let set = pins.new_set()?;
    let loaded = Objects::load(pins, set.clone(), capacity).and_then(|objects| {
        set.create_map(object::DIGESTS, &object::digests(&capacity))?;
        set.complete()?;
        Ok(objects)
    });
    if loaded.is_err()
        && let Err(error) = set.remove()
    {
        tracing::warn!("{error:#}");
    }
    loaded
}
