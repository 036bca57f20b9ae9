//! What of a plan decides by who calls and by which way, for printing.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::Serialize;
use sidecar_common::{
    Addr,
    keys::OwnerKey,
    values::{Interface, PlanHeader},
};

use crate::compile::Plan;

/// What decides by who calls and by which way; nothing that is as by default.
#[derive(Default, Serialize)]
pub struct Callers {
    /// The proxy, if captured connections go to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<Proxy>,
    /// Groups whose outbound connections are the only ones captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    only_groups: Option<Vec<u32>>,
    /// Groups whose outbound connections are not captured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except_groups: Vec<u32>,
    /// Interfaces that are unlike others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    interfaces: BTreeMap<String, Vec<&'static str>>,
    /// What is captured at virtual interfaces; `*`: everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    virtual_ranges: Vec<String>,
}

/// How the proxy is known, and what is led to it.
#[derive(Serialize)]
struct Proxy {
    uids: Vec<u32>,
    gids: Vec<u32>,
    transparent: bool,
    ipv6: bool,
    /// Never captured.
    loopback: String,
    tunnel_port: u16,
    /// 0: DNS is not captured.
    dns_port: u16,
}

impl Callers {
    /// Those of a plan.
    pub fn of(plan: &Plan) -> Self {
        let header = &plan.header;
        let has = |flag| header.flags & flag != 0;
        let ids = |role| {
            let owners = plan.owners.iter();
            owners
                .filter(move |(of, _)| *of == role)
                .map(|(_, id)| *id)
                .collect::<Vec<_>>()
        };
        let interfaces = plan.interfaces.iter().map(|(name, flags)| {
            let words = [
                (Interface::EXCLUDED, "excluded"),
                (Interface::VIRTUAL, "virtual"),
            ];
            let set = words.into_iter().filter(|(flag, _)| flags & flag != 0);
            (name.clone(), set.map(|(_, word)| word).collect())
        });
        let ranges = plan.virtual_ranges.iter().map(ToString::to_string);
        let groups = ids(OwnerKey::GROUP);
        let (only_groups, except_groups) = if has(PlanHeader::ONLY_GROUPS) {
            (Some(groups), Vec::new())
        } else {
            (None, groups)
        };
        let first = |id| Some(id).filter(|id| *id != PlanHeader::NOBODY);
        let all = |id, role| first(id).into_iter().chain(ids(role)).collect();
        Self {
            proxy: has(PlanHeader::PROXIED).then(|| Proxy {
                uids: all(header.proxy_uid, OwnerKey::PROXY_UID),
                gids: all(header.proxy_gid, OwnerKey::PROXY_GID),
                transparent: has(PlanHeader::TPROXY),
                ipv6: has(PlanHeader::IPV6),
                loopback: format!(
                    "{}/{}",
                    IpAddr::from(Addr::from_v4(header.loopback)),
                    header.loopback_mask.count_ones()
                ),
                tunnel_port: header.tunnel_port,
                dns_port: header.dns_port,
            }),
            only_groups,
            except_groups,
            interfaces: interfaces.collect(),
            virtual_ranges: if has(PlanHeader::VIRTUAL_ALL) {
                vec!["*".into()]
            } else {
                ranges.collect()
            },
        }
    }
}

impl fmt::Display for Callers {
    /// One line for each that is not as by default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(proxy) = &self.proxy {
            let Proxy {
                uids,
                gids,
                transparent,
                ipv6,
                loopback,
                tunnel_port,
                dns_port,
            } = proxy;
            write!(f, "\nproxy: uids {}, gids {}", list(uids), list(gids))?;
            write!(f, "; loopback {loopback}; tunnel port {tunnel_port}")?;
            for (set, word) in [
                (*transparent, "transparent"),
                (*ipv6, "IPv6"),
                (*dns_port != 0, "DNS"),
            ] {
                if set {
                    write!(f, "; {word}")?;
                }
            }
        }
        match &self.only_groups {
            Some(groups) if groups.is_empty() => write!(f, "\ncaptured groups: none")?,
            Some(groups) => write!(f, "\ncaptured groups: {}", list(groups))?,
            None => {}
        }
        if !self.except_groups.is_empty() {
            write!(f, "\nexempt groups: {}", list(&self.except_groups))?;
        }
        for (name, words) in &self.interfaces {
            write!(f, "\ninterface {name}: {}", words.join(", "))?;
        }
        if !self.virtual_ranges.is_empty() {
            let ranges = self.virtual_ranges.join(", ");
            write!(f, "\ncaptured at virtual interfaces: {ranges}")?;
        }
        Ok(())
    }
}

fn list(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(",")
}
