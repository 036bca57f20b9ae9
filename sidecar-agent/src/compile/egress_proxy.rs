//! Unknown destinations that lead to a service: `outboundTrafficPolicy.egressProxy` of a workload
//! without a proxy. Istio makes that service's cluster the upstream of all connections that match
//! no listener; as TCP, so that where they were going is lost there, too.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use sidecar_common::{Path, Reason, decide::Direction, values::Rule};

use crate::{
    model::{Snapshot, sidecar::EgressProxy as Declared},
    resolve::{
        Finding, FindingKind, Registry,
        registry::{Port, Service},
        visibility::{self, Features},
    },
};

use super::{
    builder::{OutboundBuilder, reachable_from, rule},
    outbound::Inputs,
    plan::{DeclaredBy, Field, Listener, Place},
};

/// An egress proxy, and the service it is.
pub(super) struct EgressProxy<'a> {
    declared: &'a Declared,
    service: Option<(&'a Service, &'a Port)>,
}

/// The egress proxy that the Sidecar declares. Its service must be among those the workload sees:
/// Istio has no cluster for others.
pub(super) fn find<'a>(
    inputs: &'a Inputs,
    snapshot: &Snapshot,
    registry: &'a Registry,
) -> Option<EgressProxy<'a>> {
    let declared = inputs.egress_proxy.as_ref()?;
    let scope = visibility::scope(
        registry,
        &inputs.namespace,
        &inputs.egress,
        &visibility::virtual_services(snapshot, &inputs.namespace),
        Features::default(),
    );
    let service = scope
        .into_iter()
        .filter(|selected| *selected.service.hostname == *declared.host)
        .find_map(|selected| {
            let port = selected
                .ports
                .into_iter()
                .find(|p| p.number == declared.port)?;
            Some((selected.service, port))
        });
    Some(EgressProxy { declared, service })
}

impl EgressProxy<'_> {
    /// The rules for unknown destinations by IPv4 and by IPv6.
    pub fn rules(&self, builder: &mut OutboundBuilder) -> [Rule; 2] {
        let Declared { host, port, subset } = self.declared;
        let subset_of = (!subset.is_empty()).then_some(subset);
        let targets = match (self.service, subset_of) {
            (Some((service, port)), None) => {
                builder.dns.extend(service.dns.iter().cloned());
                service.targets(port)
            }
            _ => Arc::default(),
        };
        let index = builder.listener(Listener {
            direction: Direction::Outbound,
            place: Place::Unknown,
            declared: DeclaredBy::Sidecar(Field::EgressProxy),
            service: Some(host.as_str().into()),
            targets: Arc::clone(&targets),
        });
        let problem = match (subset_of, self.service) {
            (Some(subset), _) => Some((
                FindingKind::NeedsProxy,
                format!("subset {subset} is chosen by a layer 7 proxy"),
            )),
            (None, None) => Some((
                FindingKind::NeedsProxy,
                format!("the Sidecar exposes no service {host} with port {port}"),
            )),
            (None, Some(_)) if targets.is_empty() => Some((
                FindingKind::NoEndpoint,
                format!("{host}:{port} has no endpoint"),
            )),
            (None, Some(_)) => None,
        };
        if let Some((kind, what)) = problem {
            let reason = match kind {
                FindingKind::NoEndpoint => Reason::NoEndpoint,
                _ => Reason::NeedsProxy,
            };
            builder.findings.push(Finding {
                resource: None,
                kind,
                field: Field::EgressProxy.to_string(),
                message: format!("{what}; connections to unknown destinations are refused"),
                remedy: "name a service that an egress listener exposes, without subset, or give \
                         the workload a proxy"
                    .into(),
                related: Vec::new(),
            });
            return [rule(Path::Deny, reason, Some(index)); 2];
        }
        let mut lead = |ip: IpAddr| match reachable_from(ip, &targets) {
            endpoints if endpoints.is_empty() => {
                rule(Path::Relay, Reason::EgressProxy, Some(index))
            }
            endpoints => builder.lead_to(
                rule(Path::Direct, Reason::EgressProxy, Some(index)),
                endpoints,
            ),
        };
        [
            lead(Ipv4Addr::UNSPECIFIED.into()),
            lead(Ipv6Addr::UNSPECIFIED.into()),
        ]
    }
}
