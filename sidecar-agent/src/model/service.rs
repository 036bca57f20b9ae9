//! Kubernetes `Service` (core/v1), the part that decides where connections lead.

use std::{collections::BTreeMap, net::IpAddr};

/// `Service.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `clusterIPs` (or `clusterIP`), without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `type: ExternalName`.
    pub external_name: Option<String>,
    /// `selector`; empty: endpoints are managed by somebody else.
    pub selector: BTreeMap<String, String>,
    /// `ports`.
    pub ports: Vec<ServicePort>,
    /// Annotation `networking.istio.io/exportTo`, split; `None` where absent.
    pub export_to: Option<Vec<String>>,
}

impl Service {
    /// The selector, unless Kubernetes ignores it: that of an `ExternalName`.
    #[must_use]
    pub fn effective_selector(&self) -> Option<&BTreeMap<String, String>> {
        self.external_name.is_none().then_some(&self.selector)
    }
}

/// One element of `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`.
    pub name: String,
    /// `port`.
    pub port: u16,
    /// `targetPort`; equal to `port` where absent.
    pub target: TargetPort,
    /// `protocol`: TCP where absent. Only TCP (and SCTP-free) ports are captured.
    pub transport: String,
    /// `appProtocol`, if any.
    pub app_protocol: Option<String>,
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name of a port of the endpoint.
    Name(String),
}

impl Default for TargetPort {
    fn default() -> Self {
        Self::Number(0)
    }
}
