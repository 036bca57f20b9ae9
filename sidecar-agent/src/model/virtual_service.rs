//! `VirtualService` (networking.istio.io v1, v1beta1, v1alpha3): the part that decides which
//! services are seen.

use std::collections::{BTreeMap, BTreeSet};

/// `VirtualService.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualService {
    /// `hosts`, as written.
    pub hosts: Vec<String>,
    /// `gateways`; empty: `mesh`.
    pub gateways: Vec<String>,
    /// `exportTo`; `None` where absent.
    pub export_to: Option<Vec<String>>,
    /// Destinations of all routes and mirrors: host, as written, to ports; no ports: all.
    pub destinations: BTreeMap<String, BTreeSet<u16>>,
}

impl VirtualService {
    /// Whether it holds for sidecars, and not for gateways only.
    #[must_use]
    pub fn is_for_mesh(&self) -> bool {
        self.gateways.is_empty() || self.gateways.iter().any(|gateway| gateway == "mesh")
    }
}
