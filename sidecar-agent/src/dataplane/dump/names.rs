//! Names for the numbers in the maps.

use aya::maps::lpm_trie::Key;
use sidecar_common::{
    Addr, Endpoint, Path, Reason,
    keys::{OwnerKey, PlanId, PrefixKey, RuleKey, Slot, Tuple},
    standin,
    values::{Identity, Interface, NO_LISTENER, Original, PlanHeader, Rule},
};

use super::rows::{DestinationRow, Flags, IdentityRow, OriginalRow, OwnerRow, PlanRow, RuleRow};
use crate::dataplane::maps::Digest;

/// Flags of `INTERFACES`.
pub const INTERFACE: [(u32, &str); 2] = [
    (Interface::EXCLUDED, "excluded"),
    (Interface::VIRTUAL, "virtual"),
];

const TABLES: [(u32, &str); 7] = [
    (PlanHeader::HAS_OUTBOUND_EXACT, "outbound-exact"),
    (PlanHeader::HAS_OUTBOUND_PORT_PREFIX, "outbound-port-prefix"),
    (PlanHeader::HAS_OUTBOUND_PREFIX, "outbound-prefix"),
    (PlanHeader::HAS_INBOUND_EXACT, "inbound-exact"),
    (PlanHeader::HAS_INBOUND_PORT, "inbound-port"),
    (PlanHeader::HAS_PROXY_UIDS, "proxy-uids"),
    (PlanHeader::HAS_PROXY_GIDS, "proxy-gids"),
];

const HEADER: [(u32, &str); 15] = [
    (PlanHeader::PROXIED, "proxied"),
    (PlanHeader::IPV6, "ipv6"),
    (PlanHeader::LOOPBACK_INCLUDED, "loopback-included"),
    (PlanHeader::ONLY_GROUPS, "only-groups"),
    (PlanHeader::EXCEPT_GROUPS, "except-groups"),
    (PlanHeader::EXCLUDED_INTERFACES, "excluded-interfaces"),
    (PlanHeader::VIRTUAL_INTERFACES, "virtual-interfaces"),
    (PlanHeader::VIRTUAL_ALL, "virtual-all"),
    (PlanHeader::TPROXY, "tproxy"),
    (PlanHeader::EXCLUDED_LOOPBACK, "excluded-loopback"),
    (PlanHeader::OPEN_PROXY_GONE, "open-proxy-gone"),
    (PlanHeader::OPEN_MAP_FULL, "open-map-full"),
    (PlanHeader::OPEN_UNKNOWN, "open-unknown"),
    (PlanHeader::OPEN_RELAY, "open-relay"),
    (PlanHeader::REFUSES, "refuses"),
];

const RULE: [(u32, &str); 2] = [
    (Rule::EXEMPT_SELF as u32, "exempt-self"),
    (Rule::FIRST as u32, "first"),
];

/// The names of those flags that are set.
pub fn set_in(names: &[(u32, &'static str)], flags: u32) -> Flags {
    let set = names.iter().filter(|(flag, _)| flags & flag != 0);
    set.map(|(_, name)| *name).collect()
}

/// A number that has no name: what was found is not what this version writes.
fn unknown(number: impl Into<u64>) -> String {
    format!("unknown ({})", number.into())
}

fn path(number: u8) -> String {
    Path::from_number(number).map_or_else(|| unknown(number), |path| path.to_string())
}

fn reason(number: u8) -> String {
    Reason::from_number(number).map_or_else(|| unknown(number), |reason| reason.to_string())
}

fn listener(index: u32) -> Option<u32> {
    (index != NO_LISTENER).then_some(index)
}

/// A rule in few words.
fn brief(rule: &Rule) -> String {
    let flags = set_in(&RULE, rule.flags.into());
    let words = [path(rule.path), reason(rule.reason)].into_iter();
    let words = words.chain(flags.into_iter().map(ToOwned::to_owned));
    words.collect::<Vec<_>>().join(" ")
}

/// A rule, and where it leads.
pub fn whole(rule: &Rule) -> String {
    let listener = listener(rule.listener).map(|index| format!(" by listener {index}"));
    let target = match rule.backends {
        0 => String::new(),
        1 => format!(" to {}", rule.target),
        more => format!(" to {more} backends of group {}", rule.group),
    };
    format!("{}{target}{}", brief(rule), listener.unwrap_or_default())
}

/// An entry of `PLANS`.
pub fn plan(set: u16, plan: PlanId, header: &PlanHeader, digest: Option<Digest>) -> PlanRow {
    // Without a proxy these are of no meaning.
    let has_proxy = header.flags & PlanHeader::PROXIED != 0;
    let id = |id| (has_proxy && id != PlanHeader::NOBODY).then_some(id);
    PlanRow {
        set,
        plan,
        digest: digest.map(|digest| blake3::Hash::from_bytes(digest).to_hex().to_string()),
        tables: set_in(&TABLES, header.tables),
        flags: set_in(&HEADER, header.flags),
        outbound_default: brief(&header.outbound_default),
        inbound_default: brief(&header.inbound_default),
        outbound_port: header.outbound_port,
        inbound_port: header.inbound_port,
        tunnel_port: header.tunnel_port,
        dns_port: header.dns_port,
        proxy_uid: id(header.proxy_uid),
        proxy_gid: id(header.proxy_gid),
        loopback: has_proxy.then(|| {
            let network = Addr::from_v4(header.loopback);
            format!("{network}/{}", header.loopback_mask.count_ones())
        }),
    }
}

fn rule(set: u16, plan: PlanId, destination: String, rule: &Rule) -> RuleRow {
    RuleRow {
        set,
        plan,
        destination,
        path: path(rule.path),
        reason: reason(rule.reason),
        flags: set_in(&RULE, rule.flags.into()),
        listener: listener(rule.listener),
        group: (rule.backends > 1).then_some(rule.group),
        backends: rule.backends,
        target: (rule.backends == 1).then(|| rule.target.to_string()),
    }
}

/// An entry of `OUTBOUND` or `INBOUND`.
pub fn exact(set: u16, key: &RuleKey, of: &Rule) -> RuleRow {
    rule(set, key.plan, key.dst.to_string(), of)
}

/// A network, and a port of it.
pub fn network(bits: u32, key: &PrefixKey) -> String {
    let PrefixKey { addr, port, .. } = *key;
    let bits = bits.saturating_sub(PrefixKey::HEAD_BITS);
    let bits = if addr.is_v4() && bits >= Addr::V4_PREFIX {
        bits - Addr::V4_PREFIX
    } else {
        bits
    };
    let port = match port {
        0 => "*".to_owned(),
        port => port.to_string(),
    };
    format!("{addr}/{bits} port {port}")
}

/// An entry of `PREFIXES`.
pub fn prefix(set: u16, key: &Key<PrefixKey>, of: &Rule) -> RuleRow {
    let data = key.data();
    let mut row = rule(set, data.plan, network(key.prefix_len(), &data), of);
    if data.table == PrefixKey::VIRTUAL {
        row.flags.push("virtual");
    }
    row
}

/// An entry of `OWNERS`.
pub fn owner(set: u16, key: &OwnerKey) -> OwnerRow {
    let role = match key.role {
        OwnerKey::PROXY_UID => "proxy-uid".to_owned(),
        OwnerKey::PROXY_GID => "proxy-gid".to_owned(),
        OwnerKey::GROUP => "group".to_owned(),
        other => unknown(other),
    };
    OwnerRow {
        set,
        plan: key.plan,
        role,
        id: key.id,
    }
}

/// An entry of `DESTINATIONS`.
pub fn destination(set: u16, key: Slot, destination: &Endpoint) -> DestinationRow {
    DestinationRow {
        set,
        workload: key.workload,
        stand_in: standin::address(key.slot, 0).to_string(),
        destination: destination.to_string(),
    }
}

/// An entry of `ORIGINAL_DST`.
pub fn original(set: u16, key: &Tuple, original: &Original) -> OriginalRow {
    let kind = match original.kind {
        Original::REWRITTEN => "rewritten".to_owned(),
        Original::REDIRECTED => "redirected".to_owned(),
        Original::PASSES => "passes".to_owned(),
        Original::CAPTURED => "captured".to_owned(),
        Original::ACCEPTED => "accepted".to_owned(),
        other => unknown(other),
    };
    OriginalRow {
        set,
        workload: key.workload,
        client: key.client.to_string(),
        server: key.server.to_string(),
        destination: original.dst.to_string(),
        plan: original.plan,
        listener: listener(original.listener),
        kind,
    }
}

/// The storage of a cgroup.
pub fn identity(set: u16, cgroup: u64, identity: &Identity) -> IdentityRow {
    IdentityRow {
        set,
        cgroup,
        workload: identity.workload,
        flags: set_in(
            &[
                (Identity::ROUTED, "routed"),
                (Identity::OWN_NETNS, "own-netns"),
            ],
            identity.flags,
        ),
        proxy_cgroup: (identity.proxy_cgroup != 0).then_some(identity.proxy_cgroup),
        netns: identity.netns,
        uid_base: identity.uid_base,
        gid_base: identity.gid_base,
        source_v4: known(Addr::from_v4(identity.source_v4)),
        source_v6: known(identity.source_v6),
        relay_port_v4: identity.relay_port_v4,
        relay_port_v6: identity.relay_port_v6,
    }
}

/// An address that may be none.
fn known(addr: Addr) -> Option<String> {
    (!addr.is_wildcard()).then(|| addr.to_string())
}
