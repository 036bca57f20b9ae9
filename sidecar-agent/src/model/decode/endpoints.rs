//! Kubernetes' `EndpointSlice` and `Endpoints`: the part of their schemas that matters, their rules,
//! their decoder.

use std::{collections::BTreeMap, net::IpAddr};

use super::meta;
use crate::model::{
    catalogue as codes,
    diagnostic::Finding,
    endpoints::{Endpoints, Subset},
    schema::{Object, Type, list, open, optional, required},
    tree::{Node, Value, join},
};

/// Names the service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// `addressType` of slices that hold names, which nobody resolves, Istio neither.
const FQDN: &str = "FQDN";

/// A slice; the Kubernetes API has more fields.
pub(super) static SLICE: Object = open(&[
    required("apiVersion", Type::Text),
    required("kind", Type::Text),
    required("metadata", Type::Object(&meta::META)),
    optional("addressType", Type::Enum(&["IPv4", "IPv6", FQDN])),
    optional("endpoints", list(&Type::Object(&ENDPOINT))),
    optional("ports", list(&Type::Object(&PORT))),
]);

static ENDPOINT: Object = open(&[
    optional("addresses", list(&Type::Text)),
    optional("conditions", Type::Object(&CONDITIONS)),
]);

static CONDITIONS: Object = open(&[optional("ready", Type::Bool)]);

/// An `Endpoints`; the Kubernetes API has more fields.
pub(super) static ENDPOINTS: Object = open(&[
    required("apiVersion", Type::Text),
    required("kind", Type::Text),
    required("metadata", Type::Object(&meta::META)),
    optional("subsets", list(&Type::Object(&SUBSET))),
]);

static SUBSET: Object = open(&[
    optional("addresses", list(&Type::Object(&ADDRESS))),
    optional("ports", list(&Type::Object(&PORT))),
]);

static ADDRESS: Object = open(&[optional("ip", Type::Text)]);

static PORT: Object = open(&[
    optional("name", Type::Text),
    optional("port", Type::Int(0, 65535)),
    optional("protocol", Type::Enum(&["TCP", "UDP", "SCTP"])),
]);

/// Checks what a schema cannot.
pub(super) fn rules(document: &Node) -> Vec<Finding> {
    let is_of_names = document.text("addressType") == FQDN;
    let texts = addresses(document).filter(|_| !is_of_names);
    let bad = texts.filter(|(_, text)| text.parse::<IpAddr>().is_err());
    bad.map(|(field, text)| {
        Finding::new(
            codes::BAD_ADDRESS,
            field,
            format!("`{text}` is not an IP address"),
        )
    })
    .collect()
}

/// All addresses, and where each is.
fn addresses(document: &Node) -> impl Iterator<Item = (String, &str)> {
    let endpoints = document.list("endpoints").iter().enumerate();
    let of_slice = endpoints.flat_map(|(i, endpoint)| {
        let texts = endpoint.texts("addresses").enumerate();
        texts.map(move |(j, text)| (format!("endpoints[{i}].addresses[{j}]"), text))
    });
    let subsets = document.list("subsets").iter().enumerate();
    let of_subsets = subsets.flat_map(|(i, subset)| {
        let all = subset.list("addresses").iter().enumerate();
        all.map(move |(j, address)| {
            let field = join(&format!("subsets[{i}].addresses[{j}]"), "ip");
            (field, address.text("ip"))
        })
    });
    of_slice.chain(of_subsets)
}

/// Decodes a slice without errors.
pub(super) fn slice(document: &Node, labels: &BTreeMap<String, String>) -> Endpoints {
    let endpoints = document.list("endpoints").iter();
    // Ready is what does not say otherwise, as Kubernetes has it.
    let ready = endpoints.filter(|endpoint| {
        let conditions = endpoint.get("conditions");
        let ready = conditions.and_then(|conditions| conditions.get("ready"));
        ready.is_none_or(|ready| ready.value != Value::Bool(false))
    });
    let addresses = ready.flat_map(|endpoint| endpoint.texts("addresses"));
    let subset = Subset {
        addresses: addresses.filter_map(ip).collect(),
        ports: ports(document),
    };
    Endpoints {
        service: labels.get(SERVICE_NAME).cloned().unwrap_or_default(),
        ready: [subset]
            .into_iter()
            .filter(|_| document.text("addressType") != FQDN)
            .collect(),
    }
}

/// Decodes an `Endpoints` without errors; those that are not ready are in fields of their own.
pub(super) fn endpoints(document: &Node, name: &str) -> Endpoints {
    let subsets = document.list("subsets").iter().map(|subset| Subset {
        addresses: subset
            .list("addresses")
            .iter()
            .filter_map(|address| ip(address.text("ip")))
            .collect(),
        ports: ports(subset),
    });
    Endpoints {
        service: name.to_owned(),
        ready: subsets.collect(),
    }
}

fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// A port without a number is none that can be called.
fn ports(of: &Node) -> Vec<(String, u16)> {
    let ports = of.list("ports").iter();
    ports
        .filter_map(|port| {
            let number = u16::try_from(port.int("port")?).ok()?;
            (number != 0).then(|| (port.text("name").to_owned(), number))
        })
        .collect()
}
