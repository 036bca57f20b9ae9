//! `ServiceEntry` (networking.istio.io v1, v1beta1, v1alpha3).

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::workload::WorkloadEntry;

/// `ServiceEntry.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// `hosts`.
    pub hosts: Vec<String>,
    /// `addresses`: virtual IPs, single or networks.
    pub addresses: Vec<IpNet>,
    /// `ports`.
    pub ports: Vec<ServiceEntryPort>,
    /// `location: MESH_INTERNAL` (the zero value is `MESH_EXTERNAL`).
    pub mesh_internal: bool,
    /// `resolution`.
    pub resolution: Resolution,
    /// `endpoints`.
    pub endpoints: Vec<WorkloadEntry>,
    /// `workloadSelector.labels`.
    pub selector: Option<BTreeMap<String, String>>,
    /// `exportTo`; `None` where absent.
    pub export_to: Option<Vec<String>>,
}

/// `ServicePort` of a `ServiceEntry`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntryPort {
    /// `number`.
    pub number: u16,
    /// `protocol` as written.
    pub protocol: String,
    /// `name`.
    pub name: String,
    /// `targetPort`; equal to `number` where absent.
    pub target: Option<u16>,
}

/// `resolution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resolution {
    /// Connections keep their destination.
    #[default]
    None,
    /// `endpoints` (or the selected workloads).
    Static,
    /// Host names are resolved; every address is an endpoint.
    Dns,
    /// Host names are resolved; one address is used.
    DnsRoundRobin,
}
