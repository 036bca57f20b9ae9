//! Every map. Capacities here are the smallest useful; the agent sets them from configuration.
//! Layouts are in `sidecar-common`. All are pinned by name: the per-namespace `sk_lookup` copies
//! share them, and they outlive the agent.

use core::cell::UnsafeCell;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_def, bpf_map_type},
    btf_maps::SkStorage,
    helpers::bpf_get_local_storage,
    macros::{btf_map, map},
    maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash, lpm_trie::Key,
        ring_buf::RingBufEntry,
    },
};
use sidecar_common::{
    Addr, Endpoint, Event, Path,
    decide::{self, Arrival, Decision, Direction, Tables},
    keys::{
        BackendKey, OwnerKey, PlanId, PrefixKey, RouteKey, RuleKey, Slot, Tuple, WorkloadEndpoint,
        WorkloadId, WorkloadInterface, WorkloadPort,
    },
    standin,
    values::{
        DECISION_SLOTS, Identity, Lost, Original, PlanHeader, Route, Rule, WORKLOAD_SLOTS, Word,
        decision_slot,
    },
};

/// The set that these programs and maps are, see [`Word`]; set by the loader.
#[unsafe(no_mangle)]
static SET: u32 = 0;

/// What each workload follows. The one map that all sets share.
#[map]
static WORKLOADS: Array<Word> = Array::pinned(WORKLOAD_SLOTS, BPF_F_MMAPABLE);
#[map]
static PLANS: HashMap<PlanId, PlanHeader> = HashMap::pinned(64, BPF_F_NO_PREALLOC);
#[map]
static OUTBOUND: HashMap<RuleKey, Rule> = HashMap::pinned(64, BPF_F_NO_PREALLOC);
#[map]
static PREFIXES: LpmTrie<PrefixKey, Rule> = LpmTrie::pinned(64, 0);
#[map]
static INBOUND: HashMap<RuleKey, Rule> = HashMap::pinned(64, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS: HashMap<BackendKey, Endpoint> = HashMap::pinned(64, BPF_F_NO_PREALLOC);
/// Users and groups that a plan lists, beside the proxy's first.
#[map]
static OWNERS: HashMap<OwnerKey, u8> = HashMap::pinned(64, BPF_F_NO_PREALLOC);
/// Interfaces that are unlike others (`sidecar_common::values::Interface`).
#[map]
static INTERFACES: HashMap<WorkloadInterface, u32> = HashMap::pinned(64, BPF_F_NO_PREALLOC);
/// How destinations are reached, of workloads where it makes a difference.
#[map]
static ROUTES: LpmTrie<RouteKey, Route> = LpmTrie::pinned(64, 0);
/// The workload's own addresses, port 0.
#[map]
static LOCAL_ADDRS: HashMap<WorkloadEndpoint, u8> = HashMap::pinned(64, BPF_F_NO_PREALLOC);
/// Ports whose listening sockets have to be in `SOCKETS`, and how many began to listen since.
#[map]
static LISTEN_INTEREST: HashMap<WorkloadPort, u64> = HashMap::pinned(64, BPF_F_NO_PREALLOC);
/// Listening sockets by bind address; the relay's own under port 0.
#[map]
static SOCKETS: SockHash<WorkloadEndpoint> = SockHash::pinned(64, 0);
/// Where a connection within the workload's namespace was going that was handed to the proxy or
/// the relay, and what becomes of it where it arrives.
#[map]
static ORIGINAL_DST: LruHashMap<Tuple, Original> = LruHashMap::pinned(64, 0);
/// What stand-ins stand for (`sidecar_common::standin`). An entry is never changed; those of a
/// workload go with it.
#[map]
static DESTINATIONS: HashMap<Slot, Endpoint> = HashMap::pinned(64, BPF_F_NO_PREALLOC);
/// See `sidecar_common::values::DECISION_SLOTS`. Shared by all CPUs, as per-CPU ones would take the
/// memory of all these words for each; mapped, so that user space reads them without a call each.
#[map]
static COUNTERS: Array<u64> = Array::pinned(64, BPF_F_MMAPABLE);
/// See `sidecar_common::values::Lost`.
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::pinned(Lost::COUNT, 0);
/// Not zero while somebody traces: one word, so that a decision that nobody traces costs one look.
#[map]
static TRACE: Array<u64> = Array::pinned(1, 0);
/// Decisions, while somebody traces (`sidecar_common::Event`): some ten thousand.
#[map]
static EVENTS: RingBuf = RingBuf::pinned(1 << 20, 0);
/// What a redirected socket asked for: the answer of getpeername, freed with the socket.
#[btf_map]
static ASKED_FOR: SkStorage<Original> = SkStorage::new();

/// A map definition that aya has no type for. The cell puts it into the same (writable) section
/// as aya's own definitions: the loader reads one.
#[repr(transparent)]
struct RawMap(UnsafeCell<bpf_map_def>);

// SAFETY: only its address is used, by the loader.
unsafe impl Sync for RawMap {}

/// Cgroup storage shared by all attach types: the key is a bare cgroup inode id (kernel 5.9).
#[unsafe(link_section = "maps")]
#[unsafe(export_name = "IDENTITIES")]
static IDENTITIES: RawMap = RawMap(UnsafeCell::new(bpf_map_def {
    type_: bpf_map_type::BPF_MAP_TYPE_CGROUP_STORAGE,
    key_size: 8,
    value_size: size_of::<Identity>() as u32,
    max_entries: 0,
    map_flags: 0,
    id: 0,
    pinning: 1,
}));

/// The identity of the workload this attachment belongs to. Zero before the agent has set it.
#[inline(always)]
pub fn identity() -> &'static Identity {
    // SAFETY: the helper never returns null, and the storage lives at least as long as the
    // program runs. The kernel replaces the whole value at once.
    unsafe { &*bpf_get_local_storage(IDENTITIES.0.get().cast(), 0).cast::<Identity>() }
}

/// The plan that decides what is new, and its header. `Ok(None)`: none, everything passes. `Err`:
/// its plan is not in the map, and this is what becomes of what is new.
#[inline(always)]
pub fn plan_of(
    workload: WorkloadId,
) -> Result<Option<(PlanId, &'static PlanHeader)>, (PlanId, Decision)> {
    match word(workload) {
        Some(word) if !word.is_suspended() && word.plan() != 0 => match header(word.plan()) {
            Some(plan) => Ok(Some(plan)),
            None => Err((word.plan(), decide::without_plan(word))),
        },
        _ => Ok(None),
    }
}

/// As [`plan_of`], also while capture is suspended: for what was decided before.
#[inline(always)]
pub fn known_plan_of(workload: WorkloadId) -> Option<(PlanId, &'static PlanHeader)> {
    header(word(workload)?.plan())
}

/// What the workload follows, if it is a plan of ours.
#[inline(always)]
fn word(workload: WorkloadId) -> Option<Word> {
    // SAFETY: a plain constant; volatile because the loader replaces it.
    let set = unsafe { core::ptr::read_volatile(&raw const SET) };
    let word = *WORKLOADS.get(workload)?;
    (u32::from(word.set()) == set).then_some(word)
}

#[inline(always)]
fn header(plan: PlanId) -> Option<(PlanId, &'static PlanHeader)> {
    // SAFETY: headers are replaced as a whole, or not at all; RCU keeps a removed one until we return.
    let header = unsafe { PLANS.get(plan) }?;
    Some((plan, header))
}

/// The tables as the decision sees them.
pub struct KernelTables {
    /// Whose addresses [`Tables::is_local`] asks for.
    pub workload: WorkloadId,
}

impl KernelTables {
    /// How `dst` is reached.
    #[inline(always)]
    pub fn route(&self, dst: &Addr) -> Option<Route> {
        let key = RouteKey {
            workload: self.workload,
            addr: *dst,
        };
        ROUTES.get(Key::new(RouteKey::FULL_BITS, key)).copied()
    }
}

impl Tables for KernelTables {
    #[inline(always)]
    fn outbound_exact(&self, key: &RuleKey) -> Option<Rule> {
        // SAFETY: rules are never changed once inserted (as `plan_of`); copied before use.
        unsafe { OUTBOUND.get(key) }.copied()
    }

    #[inline(always)]
    fn outbound_prefix(&self, key: &PrefixKey) -> Option<Rule> {
        PREFIXES.get(Key::new(PrefixKey::FULL_BITS, *key)).copied()
    }

    #[inline(always)]
    fn inbound(&self, key: &RuleKey) -> Option<Rule> {
        // SAFETY: as `outbound_exact`.
        unsafe { INBOUND.get(key) }.copied()
    }

    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<Endpoint> {
        // SAFETY: as `outbound_exact`.
        unsafe { BACKENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn is_local(&self, addr: &Addr) -> bool {
        let key = WorkloadEndpoint {
            workload: self.workload,
            endpoint: Endpoint::new(*addr, 0),
        };
        LOCAL_ADDRS.get_ptr(&key).is_some()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: takes nothing, cannot fail.
        unsafe { aya_ebpf::helpers::bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn owner(&self, key: &OwnerKey) -> bool {
        OWNERS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn egress(&self, plan: PlanId, dst: &Addr) -> u32 {
        match self.route(dst) {
            Some(route) => self.ingress(plan, route.interface),
            None => 0,
        }
    }

    #[inline(always)]
    fn ingress(&self, plan: PlanId, index: u32) -> u32 {
        let key = WorkloadInterface {
            workload: self.workload,
            plan,
            index,
        };
        // SAFETY: copied at once; a value is replaced as a whole.
        unsafe { INTERFACES.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn arrival(&self, client: &Endpoint, server: &Endpoint) -> Arrival {
        match original(&Tuple {
            workload: self.workload,
            client: *client,
            server: *server,
        }) {
            Some(Original {
                kind: Original::PASSES,
                ..
            }) => Arrival::Passes,
            Some(Original {
                kind: Original::CAPTURED,
                ..
            }) => Arrival::Captured,
            _ => Arrival::Ordinary,
        }
    }
}

/// Where the connection with these ends was going.
#[inline(always)]
pub fn original(tuple: &Tuple) -> Option<Original> {
    // SAFETY: copied at once; an entry is replaced only by a new connection with these ends, which
    // cannot exist while this one does.
    unsafe { ORIGINAL_DST.get(tuple) }.copied()
}

/// The destination that an address stands for.
#[inline(always)]
pub fn destination(workload: WorkloadId, addr: &Addr) -> Option<Endpoint> {
    let slot = standin::slot_of(addr)?;
    // SAFETY: entries are never changed; copied before use.
    unsafe { DESTINATIONS.get(Slot { workload, slot }) }.copied()
}

/// Counts a decision.
#[inline(always)]
pub fn count(workload: WorkloadId, direction: Direction, path: Path, reason: u8) {
    let index = workload * DECISION_SLOTS + decision_slot(direction, path, reason);
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // An atomic addition, which `core` does not have for this target.
        // SAFETY: an aligned word of the map, which is changed only so, by programs and the agent.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({counter} + 0) += {one}",
                counter = in(reg) counter,
                one = in(reg) 1_u64,
                options(nostack),
            );
        }
    }
}

/// Whether somebody traces.
#[inline(always)]
pub fn is_traced() -> bool {
    let Some(word) = TRACE.get_ptr(0) else {
        return false;
    };
    // SAFETY: an aligned word of the map; volatile, since the agent changes it at any time.
    unsafe { word.read_volatile() != 0 }
}

/// Room for an event; `None`: the ring is full.
#[inline(always)]
pub fn event() -> Option<RingBufEntry<Event>> {
    EVENTS.reserve(0)
}

/// Counts what is lost: one of `Lost`.
#[inline(always)]
pub fn lost(what: u32) {
    if let Some(counter) = LOST.get_ptr_mut(what) {
        // SAFETY: a pointer into this CPU's slot; programs do not preempt each other on a CPU
        // within one slot's update beyond losing a count.
        unsafe { *counter += 1 };
    }
}

/// What only the programs attached to cgroups use.
pub mod cgroup {
    use core::ffi::c_void;

    use aya_ebpf::{
        EbpfContext,
        bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_ops},
        helpers::generated::{bpf_get_prandom_u32, bpf_sk_storage_delete, bpf_sk_storage_get},
        programs::SockOpsContext,
    };
    use sidecar_common::{Addr, Endpoint, standin};

    use super::{
        ASKED_FOR, DESTINATIONS, LISTEN_INTEREST, Lost, ORIGINAL_DST, Original, SOCKETS, Slot,
        Tuple, WorkloadEndpoint, WorkloadId, WorkloadPort, lost,
    };

    #[inline(always)]
    fn asked_for() -> *mut c_void {
        (&raw const ASKED_FOR).cast_mut().cast()
    }

    /// Remembers what the socket asked for. False: no memory.
    ///
    /// # Safety
    /// `sk` must be a socket the verifier accepts (non-null).
    #[inline(always)]
    pub unsafe fn remember(sk: *mut bpf_sock, original: &mut Original) -> bool {
        // SAFETY: the caller vouches for `sk`; the value is copied by the kernel.
        let stored = unsafe {
            bpf_sk_storage_get(
                asked_for(),
                sk.cast(),
                (&raw mut *original).cast(),
                u64::from(BPF_SK_STORAGE_GET_F_CREATE),
            )
        }
        .cast::<Original>();
        if stored.is_null() {
            return false;
        }
        // An earlier connect of the same socket may have left its own value.
        // SAFETY: non-null storage of this type.
        unsafe { *stored = *original };
        true
    }

    /// What the socket asked for, if it was redirected.
    ///
    /// # Safety
    /// As [`remember`].
    #[inline(always)]
    pub unsafe fn recall(sk: *mut bpf_sock) -> Option<Original> {
        // SAFETY: the caller vouches for `sk`; no value is created.
        let stored =
            unsafe { bpf_sk_storage_get(asked_for(), sk.cast(), core::ptr::null_mut(), 0) }
                .cast::<Original>();
        // SAFETY: null or storage of this type.
        unsafe { stored.as_ref() }.copied()
    }

    /// Forgets what an earlier connect of this socket asked for.
    ///
    /// # Safety
    /// As [`remember`].
    #[inline(always)]
    pub unsafe fn forget(sk: *mut bpf_sock) {
        // SAFETY: the caller vouches for `sk`. Nothing stored is the usual case.
        let _ = unsafe { bpf_sk_storage_delete(asked_for(), sk.cast()) };
    }

    /// The address that stands for a destination, which must be IPv4; `None`: there is none.
    #[inline(always)]
    pub fn stand_in(workload: WorkloadId, destination: &Endpoint) -> Option<Addr> {
        let slot = standin::slot(destination);
        let key = Slot { workload, slot };
        // SAFETY: entries are never changed.
        match unsafe { DESTINATIONS.get(key) } {
            Some(known) if known == destination => {}
            Some(_) => return None,
            // Whoever comes first.
            None => DESTINATIONS
                .insert(key, destination, u64::from(BPF_NOEXIST))
                .ok()?,
        }
        // SAFETY: takes nothing, cannot fail.
        let any = unsafe { bpf_get_prandom_u32() };
        Some(standin::address(slot, any))
    }

    /// Publishes where the connection with these ends was going.
    #[inline(always)]
    pub fn publish_original(tuple: &Tuple, original: &Original) {
        // The map makes room by itself; without memory the connection has no original destination.
        if ORIGINAL_DST.insert(tuple, original, 0).is_err() {
            lost(Lost::ORIGINAL_DST);
        }
    }

    /// Removes what an earlier connection with these ends has left.
    #[inline(always)]
    pub fn retract_original(tuple: &Tuple) {
        let _ = ORIGINAL_DST.remove(tuple);
    }

    /// Whether listening sockets on this port have to be known; counts another one.
    #[inline(always)]
    pub fn is_interesting(workload: WorkloadId, port: u16) -> bool {
        let key = WorkloadPort {
            workload,
            port,
            pad: 0,
        };
        let Some(count) = LISTEN_INTEREST.get_ptr_mut(&key) else {
            return false;
        };
        // SAFETY: a value of the map's. Two CPUs may count as one: that they came shows all the same.
        unsafe { *count += 1 };
        true
    }

    /// Enters the listening socket of this call under its bind address.
    #[inline(always)]
    pub fn enter_listener(ctx: &SockOpsContext, key: &mut WorkloadEndpoint) {
        // SAFETY: the context is the kernel's own; only its address is passed on.
        let ops = unsafe { &mut *ctx.as_ptr().cast::<bpf_sock_ops>() };
        // A full map also shows as target-not-listening, where it matters.
        if SOCKETS.update(key, ops, 0).is_err() {
            lost(Lost::SOCKETS);
        }
    }
}

/// What only the programs attached to network namespaces use.
pub mod netns {
    use aya_ebpf::programs::SkLookupContext;
    use sidecar_common::{Addr, Endpoint};

    use super::{SOCKETS, WorkloadEndpoint, WorkloadId};

    /// Gives the connection to the workload's socket that listens on `target`: on that address,
    /// on its family's wildcard, or on the IPv6 wildcard that serves both.
    #[inline(always)]
    pub fn assign(ctx: &SkLookupContext, workload: WorkloadId, target: &Endpoint) -> bool {
        let mut key = WorkloadEndpoint {
            workload,
            endpoint: *target,
        };
        if assign_exactly(ctx, &key) {
            return true;
        }
        if target.addr.is_v4() {
            key.endpoint.addr = Addr::ANY_V4;
            if assign_exactly(ctx, &key) {
                return true;
            }
        }
        key.endpoint.addr = Addr::ANY;
        assign_exactly(ctx, &key)
    }

    /// Gives the connection to the workload's socket that listens on just this address.
    #[inline(always)]
    pub fn assign_exactly(ctx: &SkLookupContext, key: &WorkloadEndpoint) -> bool {
        SOCKETS
            .redirect_sk_lookup(SkLookupContext::new(ctx.lookup), key, 0)
            .is_ok()
    }
}
