//! Which connection pool settings hold for inbound connections to a port. Honouring them is left
//! to the proxy; which of them it will honour can be told.

use crate::model::sidecar::Sidecar;

/// The settings for all ports.
const TOP_LEVEL: &str = "spec.inboundConnectionPool";

/// The field of the Sidecar whose settings hold for inbound connections to `port`, whether it
/// declares the port or not. The object there holds as a whole, nothing is merged into it.
///
/// `None`: the Sidecar says nothing. A `DestinationRule` of the port's service then decides (its
/// settings for the port, else its others), else the mesh.
#[must_use]
pub fn inbound(sidecar: &Sidecar, port: u16) -> Option<&str> {
    let set = |field: &str| {
        let mut fields = sidecar.left_to_proxy.iter();
        fields.find(|set| *set == field).map(String::as_str)
    };
    let of_port = |(index, _)| set(&format!("spec.ingress[{index}].connectionPool"));
    sidecar
        .ingress
        .iter()
        .enumerate()
        .filter(|(_, ingress)| ingress.port.number == u32::from(port))
        .find_map(of_port)
        .or_else(|| set(TOP_LEVEL))
}
