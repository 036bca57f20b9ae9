//! Reads a workload's settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    model::{
        mesh::{InterceptionMode, ProxyConfig},
        settings::{
            self, ACCELERATE, DNS_CAPTURE, DNS_CAPTURE_ALL, DNS_SERVERS, DROP_INVALID, DUAL_STACK,
            EXCLUDE_INBOUND_PORTS, EXCLUDE_INTERFACES, EXCLUDE_OUTBOUND_PORTS,
            EXCLUDE_OUTBOUND_RANGES, INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_PORTS,
            INCLUDE_OUTBOUND_RANGES, INTERCEPTION_MODE, KUBEVIRT_INTERFACES, LOOPBACK_CIDR,
            MAX_GROUPS, OWNER_GROUPS, OWNER_GROUPS_EXCLUDE, PROXY_GID, PROXY_UID, STATUS_PORT,
            Setting, TUNNEL_PORT, VIRTUAL_INTERFACES,
        },
    },
    resolve::{capture, registry::canonical},
};

use super::{
    DEFAULT_LOOPBACK, DEFAULT_PROXY_UID, DEFAULT_STATUS_PORT, DEFAULT_TUNNEL_PORT, Dns, Include,
    OwnerGroups, Traffic,
    reader::{Origins, Problem, Reader},
};

/// What a workload's settings come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is captured and what is exempt.
    pub traffic: Traffic,
    /// Where that was written.
    pub origins: Origins,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl Traffic {
    /// Reads the settings of a workload with these annotations; `mesh` is `defaultConfig` of the
    /// `MeshConfig`. What cannot be used is reported and left out; the rest holds.
    #[must_use]
    pub fn read(annotations: &BTreeMap<String, String>, mesh: &ProxyConfig) -> Settings {
        let mut reader = Reader::new(annotations, mesh);
        let traffic = read(&mut reader);
        let Reader {
            origins, problems, ..
        } = reader;
        Settings {
            traffic,
            origins,
            problems,
        }
    }
}

fn read(reader: &mut Reader<'_>) -> Traffic {
    let mode = reader
        .value_or_field(&INTERCEPTION_MODE, capture::interception_mode, |config| {
            config.interception_mode
        })
        .unwrap_or(InterceptionMode::Redirect);
    let status_port = reader
        .value_or_field(&STATUS_PORT, settings::port, |config| config.status_port)
        .unwrap_or(DEFAULT_STATUS_PORT);
    let mut exclude_inbound = ports(reader, &EXCLUDE_INBOUND_PORTS);
    exclude_inbound.extend(capture::STATUS_PORTS);
    exclude_inbound.extend(Some(status_port).filter(|port| *port != 0));
    let proxy_uids = ids(reader, &PROXY_UID).unwrap_or_else(|| vec![DEFAULT_PROXY_UID]);
    Traffic {
        include_inbound: include(reader, &INCLUDE_INBOUND_PORTS, ports),
        exclude_inbound,
        include_ranges: include(reader, &INCLUDE_OUTBOUND_RANGES, ranges),
        exclude_ranges: ranges(reader, &EXCLUDE_OUTBOUND_RANGES),
        include_outbound: ports(reader, &INCLUDE_OUTBOUND_PORTS),
        exclude_outbound: ports(reader, &EXCLUDE_OUTBOUND_PORTS),
        exclude_interfaces: interfaces(reader, &EXCLUDE_INTERFACES).unwrap_or_default(),
        virtual_interfaces: virtual_interfaces(reader),
        mode,
        status_port,
        tunnel_port: reader
            .value(&TUNNEL_PORT, settings::port)
            .unwrap_or(DEFAULT_TUNNEL_PORT),
        proxy_gids: ids(reader, &PROXY_GID).unwrap_or_else(|| proxy_uids.clone()),
        proxy_uids,
        owner_groups: owner_groups(reader),
        loopback: reader
            .value(&LOOPBACK_CIDR, settings::loopback_cidr)
            .unwrap_or(DEFAULT_LOOPBACK),
        dns: dns(reader),
        dual_stack: flag(reader, &DUAL_STACK).unwrap_or(false),
        drop_invalid: flag(reader, &DROP_INVALID).unwrap_or(false),
        accelerate: flag(reader, &ACCELERATE).unwrap_or(false),
    }
}

fn flag(reader: &mut Reader<'_>, setting: &'static Setting) -> Option<bool> {
    reader.value(setting, settings::boolean)
}

fn set<T: Ord>(
    reader: &mut Reader<'_>,
    setting: &'static Setting,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<BTreeSet<T>> {
    Some(reader.list(setting, parse)?.into_iter().collect())
}

fn ports(reader: &mut Reader<'_>, setting: &'static Setting) -> BTreeSet<u16> {
    set(reader, setting, settings::port).unwrap_or_default()
}

fn ranges(reader: &mut Reader<'_>, setting: &'static Setting) -> BTreeSet<IpNet> {
    let range = |text: &str| text.parse().ok().map(|net| canonical(&net));
    set(reader, setting, range).unwrap_or_default()
}

fn interfaces(reader: &mut Reader<'_>, setting: &'static Setting) -> Option<BTreeSet<String>> {
    set(reader, setting, settings::interface)
}

fn include<T>(
    reader: &mut Reader<'_>,
    setting: &'static Setting,
    read: impl FnOnce(&mut Reader<'_>, &'static Setting) -> T,
) -> Include<T> {
    match reader.text(setting).map(|(_, text)| text.trim()) {
        None => Include::All,
        Some("*") => {
            reader.note(setting);
            Include::All
        }
        Some(_) => Include::Only(read(reader, setting)),
    }
}

/// In their order, each once; `None`: none is named.
fn ids(reader: &mut Reader<'_>, setting: &'static Setting) -> Option<Vec<u32>> {
    let mut seen = BTreeSet::new();
    let mut ids = reader.list(setting, settings::id)?;
    ids.retain(|id| seen.insert(*id));
    (!ids.is_empty()).then_some(ids)
}

fn virtual_interfaces(reader: &mut Reader<'_>) -> BTreeSet<String> {
    let (preferred, deprecated) = (
        interfaces(reader, &VIRTUAL_INTERFACES),
        interfaces(reader, &KUBEVIRT_INTERFACES),
    );
    if let (Some(preferred), Some(deprecated)) = (&preferred, &deprecated)
        && preferred != deprecated
    {
        let message = "it differs from istio.io/reroute-virtual-interfaces, which holds";
        reader.without_effect(&KUBEVIRT_INTERFACES, message, "remove the annotation");
    }
    preferred.or(deprecated).unwrap_or_default()
}

fn owner_groups(reader: &mut Reader<'_>) -> OwnerGroups {
    let groups = |reader: &mut Reader<'_>, setting| {
        let groups = reader.list(setting, settings::id)?;
        if groups.len() <= MAX_GROUPS {
            return Some(groups.into_iter().collect());
        }
        reader.drop(setting, &settings::too_many_groups(groups.len()));
        None
    };
    let all = reader
        .text(&OWNER_GROUPS)
        .is_none_or(|(_, text)| text.trim() == "*");
    if !all && let Some(included) = groups(reader, &OWNER_GROUPS) {
        if reader.list(&OWNER_GROUPS_EXCLUDE, settings::id).is_some() {
            let message = "groups are excluded only where all are included";
            reader.without_effect(&OWNER_GROUPS_EXCLUDE, message, "remove one of the two");
        }
        return OwnerGroups::Only(included);
    }
    OwnerGroups::Except(groups(reader, &OWNER_GROUPS_EXCLUDE).unwrap_or_default())
}

fn dns(reader: &mut Reader<'_>) -> Dns {
    let captured = flag(reader, &DNS_CAPTURE).unwrap_or(false);
    let servers: BTreeSet<IpAddr> = set(reader, &DNS_SERVERS, settings::server).unwrap_or_default();
    let is_named = reader
        .text(&DNS_SERVERS)
        .is_some_and(|(_, text)| settings::elements(text).next().is_some());
    // As Istio's CNI plugin has it, unless there are servers.
    let all = flag(reader, &DNS_CAPTURE_ALL).unwrap_or(!is_named);
    if !captured {
        Dns::Off
    } else if all {
        Dns::All
    } else if servers.is_empty() {
        let message = "DNS is captured neither to any server nor to one that is named: it is not \
                       captured at all";
        let remedy = "name servers in capture.sidecar-agent.io/dns-servers, or remove \
                      capture.sidecar-agent.io/dns-capture-all";
        reader.without_effect(&DNS_CAPTURE, message, remedy);
        Dns::Off
    } else {
        Dns::Only(servers)
    }
}
