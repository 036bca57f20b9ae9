//! The outbound half of a plan. Only what is in [`Inputs`] decides about it, so that workloads with
//! equal inputs share one.

use std::net::IpAddr;

use crate::{
    model::{
        Snapshot,
        sidecar::{EgressListener, EgressProxy, OutboundTrafficPolicy},
    },
    resolve::{
        Registry, ResolvedWorkload, analysis,
        capture::{self, Families},
        hosts::Hosts,
        listeners::{self, Context, OutboundListener},
        registry::Service,
        traffic::{Dns, Traffic},
        visibility,
        workload::Proxy,
    },
};

use super::{
    builder::{Compiled, OutboundBuilder},
    egress, egress_proxy, proxied,
};

/// What an outbound half depends on, besides the mesh, the services and the virtual services.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Inputs {
    /// The workload's namespace; empty where it does not matter.
    pub namespace: String,
    /// A Sidecar applies.
    pub sidecar: bool,
    /// The egress listeners in force.
    pub egress: Vec<EgressListener>,
    /// What the Sidecar says of unknown destinations.
    pub policy: Option<OutboundTrafficPolicy>,
    /// Where it leads them.
    pub egress_proxy: Option<EgressProxy>,
    /// What is captured and exempt, outbound.
    pub traffic: Traffic,
    /// The workload's addresses; wildcards of its families where the addresses do not matter.
    pub addresses: Vec<IpAddr>,
    /// The workload has an external proxy.
    pub proxied: bool,
}

impl Inputs {
    /// What decides for a workload.
    pub fn of(workload: &ResolvedWorkload, registry: &Registry) -> Self {
        let spec = workload.sidecar.as_ref().map(|sidecar| &sidecar.spec);
        let egress = visibility::egress(spec);
        let egress_proxy = spec.and_then(|spec| spec.egress_proxy.clone());
        // Virtual services, which may widen what is seen for an egress proxy, are for namespaces.
        let namespace_matters = egress_proxy.is_some()
            || registry.is_particular(&workload.namespace)
            || egress
                .iter()
                .flat_map(|listener| &listener.hosts)
                .any(|host| host.trim_start_matches('~').starts_with("./"));
        let mode = workload.mode();
        let addresses_matter = workload
            .addresses
            .first()
            .is_some_and(|own| registry.is_called_at(*own))
            || egress.iter().any(|listener| {
                let wildcard = listener.bind_ip().is_some_and(|ip| ip.is_unspecified());
                wildcard && capture::egress_is_real(mode, listener.capture_mode, &listener.bind)
            });
        Self {
            namespace: if namespace_matters {
                workload.namespace.clone()
            } else {
                String::new()
            },
            sidecar: spec.is_some(),
            egress,
            policy: spec.and_then(|spec| spec.outbound_traffic_policy),
            egress_proxy,
            traffic: match workload.proxy {
                // Nobody answers DNS.
                Proxy::None => Traffic {
                    dns: Dns::Off,
                    ..workload.traffic.outbound_only()
                },
                Proxy::External { .. } => workload.traffic.outbound_only(),
            },
            addresses: if addresses_matter {
                workload.addresses.clone()
            } else {
                Families::of(&workload.addresses).wildcards()
            },
            proxied: workload.proxy != Proxy::None,
        }
    }

    /// The services that these inputs make something of.
    pub fn interest(&self) -> Interest {
        let hosts = self.egress.iter();
        Interest {
            namespace: self.namespace.clone(),
            hosts: hosts
                .map(|listener| Hosts::parse(&listener.hosts, &self.namespace))
                .collect(),
            egress_proxy: self.egress_proxy.as_ref().map(|proxy| proxy.host.clone()),
        }
    }
}

/// Which services an outbound half may have to do with.
#[derive(Debug)]
pub(super) struct Interest {
    namespace: String,
    hosts: Vec<Hosts>,
    egress_proxy: Option<String>,
}

impl Interest {
    /// Whether another version of this service, or its absence, could make another half.
    pub fn covers(&self, registry: &Registry, service: &Service) -> bool {
        let Service {
            hostname,
            namespace,
            ..
        } = service;
        self.egress_proxy.as_deref() == Some(hostname)
            || registry.is_exported(service, &self.namespace)
                && self
                    .hosts
                    .iter()
                    .any(|hosts| hosts.selects(namespace, hostname))
    }
}

/// Compiles the outbound half for these inputs. `registry` is that of the snapshot, of which only the
/// mesh's settings and the virtual services are looked at.
pub(super) fn compile(inputs: &Inputs, snapshot: &Snapshot, registry: &Registry) -> Compiled {
    let mesh = &snapshot.mesh;
    let context = Context {
        mesh,
        namespace: &inputs.namespace,
        mode: inputs.traffic.mode,
        addresses: &inputs.addresses,
        // Nothing is bound: direct listeners exist in the kernel's tables only.
        unprivileged: false,
    };
    let listeners: Vec<OutboundListener<'_>> =
        listeners::outbound(&context, registry, &inputs.egress);
    let mut builder = OutboundBuilder::default();
    if inputs.sidecar {
        builder.findings = analysis::egress(&context, registry, &inputs.egress, &listeners);
    }
    if inputs.proxied {
        proxied::outbound(builder, inputs, &listeners)
    } else {
        let proxy = egress_proxy::find(inputs, snapshot, registry);
        egress::compile(builder, inputs, mesh, &listeners, proxy)
    }
}
