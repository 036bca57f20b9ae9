//! The part of Istio's `MeshConfig` that decides anything here.

use std::collections::BTreeMap;

use super::sidecar::OutboundTrafficPolicy;

/// Settings of the mesh; the defaults are Istio's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// `rootNamespace`.
    pub root_namespace: String,
    /// `outboundTrafficPolicy.mode`.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// `defaultServiceExportTo`.
    pub default_service_export_to: Vec<String>,
    /// `defaultVirtualServiceExportTo`.
    pub default_virtual_service_export_to: Vec<String>,
    /// `proxyListenPort`.
    pub proxy_listen_port: u16,
    /// `proxyInboundListenPort`.
    pub proxy_inbound_listen_port: u16,
    /// `defaultConfig`.
    pub default_config: ProxyConfig,
    /// `inboundTrafficPolicy.mode` LOCALHOST (else PASSTHROUGH).
    pub inbound_localhost: bool,
    /// `trustDomain`-independent: the cluster's DNS suffix, `cluster.local`.
    pub cluster_domain: String,
}

/// The part of Istio's `ProxyConfig` that decides about capture. `None`: nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// `interceptionMode`.
    pub interception_mode: Option<InterceptionMode>,
    /// `statusPort`.
    pub status_port: Option<u16>,
    /// `proxyMetadata`: environment variables of the proxy, by name.
    pub proxy_metadata: BTreeMap<String, String>,
}

/// `interceptionMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InterceptionMode {
    /// Captured; the source address is kept by the kernel anyway.
    #[default]
    Redirect,
    /// Captured, for a transparent proxy.
    Tproxy,
    /// Nothing is captured; only real listeners.
    None,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            root_namespace: "istio-system".into(),
            outbound_traffic_policy: OutboundTrafficPolicy::AllowAny,
            default_service_export_to: vec!["*".into()],
            default_virtual_service_export_to: vec!["*".into()],
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            default_config: ProxyConfig::default(),
            inbound_localhost: false,
            cluster_domain: "cluster.local".into(),
        }
    }
}
