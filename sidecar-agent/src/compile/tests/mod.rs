//! Plans, asked by the decision function: what a connection of a workload comes to.

mod egress;
mod examples;
mod ingress;
mod lookups;
mod plan;
mod precedence;
mod proxied;
mod settings;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use sidecar_common::{Path, Reason, decide::Direction};

use super::{NodePlan, Plan, Target, UnixAddr, plans};
use crate::{
    explain::{Connection, Explanation, explain},
    model::{
        Object, ObjectMeta, Origin, Snapshot,
        service::{Service, ServicePort},
        service_entry::{Resolution, ServiceEntry, ServiceEntryPort},
        sidecar::{CaptureMode, EgressListener, IngressListener, Port, Sidecar},
        workload::{
            ADDRESSES_ANNOTATION, CGROUP_ANNOTATION, NETNS_ANNOTATION, PROXY_ANNOTATION,
            WorkloadEntry,
        },
    },
    resolve::FindingKind,
};

const NS: &str = "prod-us1";
const MODE: &str = "sidecar.istio.io/interceptionMode";
const INCLUDE_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
const EXCLUDE_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
const INCLUDE_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
const EXCLUDE_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const INCLUDE_INBOUND: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const EXCLUDE_INBOUND: &str = "traffic.sidecar.istio.io/excludeInboundPorts";

fn object<T>(namespace: &str, name: &str, spec: T) -> Arc<Object<T>> {
    Arc::new(Object {
        meta: ObjectMeta {
            namespace: namespace.into(),
            name: name.into(),
            ..ObjectMeta::default()
        },
        origin: Origin {
            file: Arc::from("all.yaml"),
            line: 7,
        },
        spec,
    })
}

fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// A node with one workload, `productpage`, in its own network namespace.
struct Node {
    snapshot: Snapshot,
}

impl Node {
    fn new(addresses: &str) -> Self {
        let mut workload = object(
            NS,
            "productpage",
            WorkloadEntry {
                labels: map([("app", "productpage")]),
                ..WorkloadEntry::default()
            },
        );
        Arc::make_mut(&mut workload).meta.annotations = map([
            (CGROUP_ANNOTATION, "productpage"),
            (NETNS_ANNOTATION, "/run/netns/p"),
            (ADDRESSES_ANNOTATION, addresses),
        ]);
        Self {
            snapshot: Snapshot {
                workloads: vec![workload],
                ..Snapshot::default()
            },
        }
    }

    fn annotate(mut self, annotation: &str, value: &str) -> Self {
        Arc::make_mut(&mut self.snapshot.workloads[0])
            .meta
            .annotations
            .insert(annotation.into(), value.into());
        self
    }

    fn on_host(mut self) -> Self {
        Arc::make_mut(&mut self.snapshot.workloads[0])
            .meta
            .annotations
            .remove(NETNS_ANNOTATION);
        self
    }

    fn proxied(self) -> Self {
        self.annotate(PROXY_ANNOTATION, "external")
    }

    fn sidecar(mut self, spec: Sidecar) -> Self {
        self.snapshot.sidecars.push(object(NS, "default", spec));
        self
    }

    /// A Kubernetes service; ports as `name:number` or `name:number:target`.
    fn service(mut self, namespace: &str, name: &str, vip: &str, ports: &[&str]) -> Self {
        let spec = Service {
            cluster_ips: vip.split(',').filter_map(|ip| ip.parse().ok()).collect(),
            headless: vip.is_empty(),
            selector: map([("app", name)]),
            ports: ports.iter().map(|text| service_port(text)).collect(),
            ..Service::default()
        };
        self.snapshot.services.push(object(namespace, name, spec));
        self
    }

    fn entry(mut self, name: &str, spec: ServiceEntry) -> Self {
        self.snapshot
            .service_entries
            .push(object("ns1", name, spec));
        self
    }

    /// A workload that is an endpoint of the service `app`, on another node.
    fn endpoint(mut self, namespace: &str, app: &str, address: &str) -> Self {
        let spec = WorkloadEntry {
            address: address.into(),
            labels: map([("app", app)]),
            ports: [("named".to_owned(), 7777)].into(),
            ..WorkloadEntry::default()
        };
        self.snapshot
            .workloads
            .push(object(namespace, address, spec));
        self
    }

    fn dns(mut self, name: &str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        self.snapshot.dns.insert(name.into(), addresses);
        self
    }

    fn compile(&self) -> Compiled {
        let node = plans(&self.snapshot);
        assert_eq!(node.workloads.len(), 1, "{:?}", node.findings);
        Compiled { node }
    }
}

fn service_port(text: &str) -> ServicePort {
    let mut parts = text.split(':');
    let name = parts.next().unwrap().to_owned();
    let port = parts.next().unwrap().parse().unwrap();
    let target = match parts.next() {
        None => crate::model::service::TargetPort::Number(port),
        Some(text) => match text.parse() {
            Ok(number) => crate::model::service::TargetPort::Number(number),
            Err(_) => crate::model::service::TargetPort::Name(text.into()),
        },
    };
    ServicePort {
        name,
        port,
        target,
        ..ServicePort::default()
    }
}

fn entry(host: &str, port: u16, protocol: &str, resolution: Resolution) -> ServiceEntry {
    ServiceEntry {
        hosts: vec![host.into()],
        ports: vec![ServiceEntryPort {
            number: port,
            protocol: protocol.into(),
            name: "p".into(),
            target: None,
        }],
        resolution,
        ..ServiceEntry::default()
    }
}

fn at(addresses: &[&str]) -> Vec<WorkloadEntry> {
    addresses
        .iter()
        .map(|address| WorkloadEntry {
            address: (*address).into(),
            ..WorkloadEntry::default()
        })
        .collect()
}

fn port(number: u32, protocol: &str) -> Port {
    Port {
        number,
        protocol: protocol.into(),
        name: String::new(),
    }
}

fn egress(port: Option<Port>, bind: &str, mode: CaptureMode, hosts: &[&str]) -> EgressListener {
    EgressListener {
        port,
        bind: bind.into(),
        capture_mode: mode,
        hosts: hosts.iter().map(ToString::to_string).collect(),
    }
}

fn ingress(number: u32, bind: &str, mode: CaptureMode, endpoint: &str) -> IngressListener {
    IngressListener {
        port: port(number, "HTTP"),
        bind: bind.into(),
        capture_mode: mode,
        default_endpoint: endpoint.into(),
    }
}

struct Compiled {
    node: NodePlan,
}

impl Compiled {
    fn plan(&self) -> &Plan {
        &self.node.workloads[0].plan
    }

    fn out(&self, dst: &str) -> Outcome {
        self.explain(Direction::Outbound, None, dst)
    }

    fn inbound(&self, src: &str, dst: &str) -> Outcome {
        self.explain(Direction::Inbound, Some(src.parse().unwrap()), dst)
    }

    fn explain(&self, direction: Direction, src: Option<IpAddr>, dst: &str) -> Outcome {
        let dst: SocketAddr = dst.parse().unwrap();
        self.ask(&match direction {
            Direction::Outbound => Connection::outbound(dst),
            Direction::Inbound => Connection::inbound(src, dst),
        })
    }

    fn ask(&self, connection: &Connection<'_>) -> Outcome {
        Outcome(explain(
            self.plan(),
            &self.node.workloads[0].workload.addresses,
            connection,
        ))
    }

    fn kinds(&self) -> Vec<FindingKind> {
        self.node
            .findings
            .iter()
            .map(|finding| finding.kind)
            .collect()
    }
}

/// An explanation, compared by what matters.
#[derive(Debug)]
struct Outcome(Explanation);

impl Outcome {
    #[track_caller]
    fn is(&self, path: Path, reason: Reason, targets: &[&str]) {
        let got: Vec<String> = self.0.targets.iter().map(Target::to_string).collect();
        assert_eq!((self.0.path, self.0.reason), (path, reason), "{self:?}");
        assert_eq!(got, targets, "{self:?}");
    }

    #[track_caller]
    fn direct(&self, reason: Reason, targets: &[&str]) {
        self.is(Path::Direct, reason, targets);
    }

    #[track_caller]
    fn keeps(&self, reason: Reason) {
        self.is(Path::Direct, reason, &["original destination"]);
    }

    #[track_caller]
    fn passes(&self, reason: Reason) {
        self.is(Path::Pass, reason, &["original destination"]);
    }

    #[track_caller]
    fn refused(&self, reason: Reason) {
        self.is(Path::Deny, reason, &[]);
    }
}

fn unix(path: &str) -> UnixAddr {
    UnixAddr::Path(path.into())
}
