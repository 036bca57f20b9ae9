//! Kubernetes' `EndpointSlice` and `Endpoints`: where a service is that has no address of its own.

use std::net::IpAddr;

/// The endpoints of a service that are ready, as far as one resource tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// The service's name, in the namespace of the resource: label `kubernetes.io/service-name`, or
    /// the name of an `Endpoints`. Empty: it is of no service.
    pub service: String,
    /// Those that are ready.
    pub ready: Vec<Subset>,
}

/// Addresses that have the same ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subset {
    /// The addresses; IPv4-mapped ones are IPv4.
    pub addresses: Vec<IpAddr>,
    /// Name (that of the service's port) and number of each port.
    pub ports: Vec<(String, u16)>,
}

impl Endpoints {
    /// The addresses of the service's port of this name, each with the port's number there.
    pub fn of_port<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (IpAddr, u16)> + 'a {
        self.ready.iter().flat_map(move |subset| {
            let ports = subset.ports.iter().filter(move |(of, _)| of == name);
            ports.flat_map(|(_, number)| subset.addresses.iter().map(|ip| (*ip, *number)))
        })
    }
}
