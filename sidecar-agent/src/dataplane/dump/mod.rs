//! What is in the maps, read from the pins: no agent is needed, and none is disturbed.

pub(super) mod names;
pub(super) mod reader;
mod rows;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, bail};
use serde::Serialize;
use sidecar_common::{ABI, keys::WorkloadId, values::Word};

use self::reader::Reader;
use super::{
    pins::{PinDir, Set},
    slots::Slots,
    sys::LinkTarget,
    uninstall,
};

pub use rows::*;

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// The sets of maps, with their ABI.
    Sets,
    /// WORKLOADS: what each workload follows.
    Workloads,
    /// PLANS: the headers, with the digests.
    Plans,
    /// OUTBOUND: rules for one address and port.
    Outbound,
    /// PREFIXES: rules for networks.
    Prefixes,
    /// INBOUND: rules for one local address and port.
    Inbound,
    /// BACKENDS: targets of rules that have several.
    Backends,
    /// OWNERS: users and groups.
    Owners,
    /// INTERFACES: those that are unlike others.
    Interfaces,
    /// ROUTES: how destinations are reached.
    Routes,
    /// `LOCAL_ADDRS`: the workloads' own addresses.
    LocalAddrs,
    /// `LISTEN_INTEREST`: ports whose listening sockets have to be known.
    ListenInterest,
    /// SOCKETS: listening sockets.
    Sockets,
    /// `ORIGINAL_DST`: where connections were going.
    OriginalDst,
    /// DESTINATIONS: what stand-in addresses stand for.
    Destinations,
    /// IDENTITIES: the storage of the workloads' cgroups.
    Identities,
    /// What is attached where.
    Links,
    /// COUNTERS, without zeros.
    Counters,
}

/// What was read; `None`: not asked for.
#[derive(Debug, Default, Serialize)]
#[allow(missing_docs, reason = "see `What`")]
pub struct Dump {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sets: Option<Vec<SetRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workloads: Option<Vec<WorkloadRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plans: Option<Vec<PlanRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Vec<RuleRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<Vec<RuleRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Vec<RuleRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<BackendRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owners: Option<Vec<OwnerRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<Vec<InterfaceRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<RouteRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_addrs: Option<Vec<LocalAddrRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_interest: Option<Vec<ListenInterestRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<Vec<SocketRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_dst: Option<Vec<OriginalRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destinations: Option<Vec<DestinationRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identities: Option<Vec<IdentityRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<Vec<LinkRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Vec<CounterRow>>,
}

/// Reads what is asked for; `what` empty: everything. Entries that come and go meanwhile may be
/// missed.
///
/// # Errors
/// If there are no pins, they are another's, or cannot be read. A set that cannot be read is told
/// among the sets.
pub fn read(pin_dir: &Path, what: &[What]) -> Result<Dump> {
    let Some(pins) = PinDir::existing(pin_dir)? else {
        bail!(
            "reading {}: it is not there; has an agent run with this --bpffs?",
            pin_dir.display()
        );
    };
    let wants = |one| what.is_empty() || what.contains(&one);
    let mut dump = Dump::default();
    let mut attached: BTreeMap<(u16, WorkloadId), Vec<u64>> = BTreeMap::new();
    let mut sets = Vec::new();
    for set in pins.sets()? {
        for (workload, links) in set.workloads()? {
            let targets = links.infos()?.into_iter().map(|(_, info)| info.target);
            let cgroups = attached.entry((set.number, workload)).or_default();
            cgroups.extend(targets.filter_map(|target| match target {
                LinkTarget::Cgroup(id) if id != 0 => Some(id),
                _ => None,
            }));
            cgroups.sort_unstable();
            cgroups.dedup();
        }
        let (row, reader) = open(&pins, &set);
        sets.push(row);
        if let Some(reader) = reader {
            let cgroups = attached.iter().filter(|((of, _), _)| *of == set.number);
            let cgroups: Vec<u64> = cgroups.flat_map(|(_, ids)| ids).copied().collect();
            reader.fill(&mut dump, wants, &cgroups);
        }
    }
    if wants(What::Sets) {
        dump.sets = Some(sets);
    }
    if wants(What::Workloads) {
        let slots = Slots::open(&pins.workloads());
        let words = slots.iter().flat_map(Slots::in_use);
        dump.workloads = Some(
            words
                .map(|(slot, word)| workload(slot, word, &attached))
                .collect(),
        );
    }
    if wants(What::Links) {
        let found = uninstall::inventory(pin_dir)?;
        let links = found.links.into_iter().chain(found.orphans);
        dump.links = Some(links.map(LinkRow::from).collect());
    }
    Ok(dump)
}

fn workload(
    slot: WorkloadId,
    word: Word,
    attached: &BTreeMap<(u16, WorkloadId), Vec<u64>>,
) -> WorkloadRow {
    let set = word.set();
    WorkloadRow {
        slot,
        set,
        plan: word.plan(),
        suspended: word.is_suspended(),
        open: word.is_open(),
        cgroups: attached.get(&(set, slot)).cloned().unwrap_or_default(),
    }
}

impl From<uninstall::Link> for LinkRow {
    fn from(link: uninstall::Link) -> Self {
        Self {
            id: link.id,
            program: link.program,
            target: link.target,
            pin: link.pin.map(|pin| pin.display().to_string()),
        }
    }
}

/// What there is to say of a set, and its maps if this version knows them.
fn open(pins: &PinDir, set: &Set) -> (SetRow, Option<Reader>) {
    let meta = set.meta();
    let opened = match meta {
        None => Err("it was not finished".to_owned()),
        Some(meta) if meta.abi != ABI => {
            Err(format!("it has ABI {}, this version {ABI}", meta.abi))
        }
        Some(_) => Reader::open(pins, set).map_err(|error| format!("{error:#}")),
    };
    let (reader, problem) = match opened {
        Ok(reader) => (Some(reader), None),
        Err(problem) => (None, Some(problem)),
    };
    let row = SetRow {
        set: set.number,
        abi: meta.map(|meta| meta.abi),
        complete: meta.is_some(),
        problem,
    };
    (row, reader)
}
