//! `Sidecar` (networking.istio.io v1, v1beta1, v1alpha3: one schema).

use std::{collections::BTreeMap, net::IpAddr};

use serde::Serialize;

use super::validate::syntax;

/// `Sidecar.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sidecar {
    /// `workloadSelector.labels`. `None`: no selector. Empty: a selector without labels.
    pub selector: Option<BTreeMap<String, String>>,
    /// `ingress`.
    pub ingress: Vec<IngressListener>,
    /// `egress`. Empty means one listener with hosts `*/*`.
    pub egress: Vec<EgressListener>,
    /// `outboundTrafficPolicy`, if present. An object without `mode` is `REGISTRY_ONLY`.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// `outboundTrafficPolicy.egressProxy`: where unknown destinations lead.
    pub egress_proxy: Option<EgressProxy>,
    /// Field paths that are honoured only by an L7 proxy (tls, connectionPool, ...), as written.
    pub left_to_proxy: Vec<String>,
}

/// `outboundTrafficPolicy.egressProxy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EgressProxy {
    /// `host`: a service's full name.
    pub host: String,
    /// `port.number`.
    pub port: u16,
    /// `subset`; empty where absent.
    pub subset: String,
}

/// One element of `ingress`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngressListener {
    /// `port`.
    pub port: Port,
    /// `bind`: an IP; empty where absent.
    pub bind: String,
    /// `captureMode`.
    pub capture_mode: CaptureMode,
    /// `defaultEndpoint`; empty where absent.
    pub default_endpoint: String,
}

/// One element of `egress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EgressListener {
    /// `port`. `None`: the catch-all.
    pub port: Option<Port>,
    /// `bind`: an IP, `unix:///path` or `unix://@abstract`; empty where absent.
    pub bind: String,
    /// `captureMode`.
    pub capture_mode: CaptureMode,
    /// `hosts`: `namespace/dnsName`.
    pub hosts: Vec<String>,
}

impl EgressListener {
    /// `bind` as an IP address; a zone is dropped. `None`: it is absent or a unix socket.
    #[must_use]
    pub fn bind_ip(&self) -> Option<IpAddr> {
        syntax::ip(&self.bind)
    }
}

/// `SidecarPort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Port {
    /// `number`; 0 for unix sockets.
    pub number: u32,
    /// `protocol` as written; empty means to be sniffed.
    pub protocol: String,
    /// `name`; empty where absent.
    pub name: String,
}

/// `CaptureMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    /// What the workload's interception mode says.
    #[default]
    Default,
    /// Captured.
    Iptables,
    /// A real listener; nothing is captured.
    None,
}

/// `OutboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundTrafficPolicy {
    /// Unknown destinations are refused.
    RegistryOnly,
    /// Unknown destinations pass.
    AllowAny,
}
