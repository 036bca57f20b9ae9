//! A large mesh, made by counting: the same every time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use sidecar_agent::model::{
    Object, ObjectMeta, Origin, Snapshot,
    service::{Service, ServicePort, TargetPort},
    service_entry::{Resolution, ServiceEntry, ServiceEntryPort},
    sidecar::{EgressListener, IngressListener, Port, Sidecar},
    virtual_service::VirtualService,
    workload::{CGROUP_ANNOTATION, NETNS_ANNOTATION, WorkloadEntry},
};

/// How large.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub services: usize,
    pub namespaces: usize,
    pub sidecars: usize,
    pub workloads: usize,
}

/// The node of the issue: 10,000 services in 200 namespaces, 1,000 Sidecars, 250 workloads.
pub const NODE: Size = Size {
    services: 10_000,
    namespaces: 200,
    sidecars: 1_000,
    workloads: 250,
};

/// The first services of a namespace are what its workloads are; each has a Sidecar.
const APPS: usize = 4;

/// The mesh of this size.
///
/// Of the services of a namespace one in fifty is headless and one a `ServiceEntry`; in one
/// namespace of ten there are private ones. Each namespace has a Sidecar for all and one for each
/// of its first apps; they see their own namespace, the root namespace, three others, and two
/// single services of a fourth. Two services of each have a `VirtualService`.
pub fn mesh(size: Size) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for n in 0..size.services {
        let (namespace, k) = (n % size.namespaces, n / size.namespaces);
        if k % 50 == 49 {
            snapshot
                .service_entries
                .push(service_entry(n, namespace, k));
        } else {
            snapshot.services.push(service(n, namespace, k));
        }
    }
    let namespaces = 0..size.namespaces;
    snapshot.virtual_services = namespaces
        .flat_map(|of| [virtual_service(of, 1), virtual_service(of, 2)])
        .collect();
    snapshot.sidecars = (0..size.sidecars).map(|n| sidecar(n, size)).collect();
    snapshot.workloads = (0..size.workloads).map(|n| workload(n, size)).collect();
    sort(&mut snapshot.services);
    sort(&mut snapshot.service_entries);
    sort(&mut snapshot.virtual_services);
    sort(&mut snapshot.sidecars);
    sort(&mut snapshot.workloads);
    snapshot
}

/// The same with a change to one resource.
pub fn changed<T: Clone>(
    list: &[Arc<Object<T>>],
    at: usize,
    change: impl FnOnce(&mut T),
) -> Vec<Arc<Object<T>>> {
    let mut list = list.to_vec();
    change(&mut Arc::make_mut(&mut list[at]).spec);
    list
}

fn sort<T>(objects: &mut [Arc<Object<T>>]) {
    objects.sort_by(|a, b| {
        (a.meta.created, &a.meta.name, &a.meta.namespace).cmp(&(
            b.meta.created,
            &b.meta.name,
            &b.meta.namespace,
        ))
    });
}

fn namespace(n: usize) -> String {
    if n == 0 {
        "istio-system".into()
    } else {
        format!("team-{n:03}")
    }
}

fn app(k: usize) -> String {
    format!("app-{k:03}")
}

fn address(net: u8, n: usize) -> IpAddr {
    let n = u32::try_from(n).expect("a mesh of fewer than 2^24 of each");
    let [_, a, b, c] = n.to_be_bytes();
    Ipv4Addr::new(net, a, b, c).into()
}

fn labels(k: usize) -> BTreeMap<String, String> {
    [("app".to_owned(), app(k))].into()
}

fn object<T>(namespace: String, name: String, created: usize, spec: T) -> Arc<Object<T>> {
    Arc::new(Object {
        meta: ObjectMeta {
            namespace,
            name,
            created: i64::try_from(created).expect("small"),
            ..ObjectMeta::default()
        },
        origin: Origin {
            file: "mesh.yaml".into(),
            line: 1,
        },
        spec,
    })
}

fn service(n: usize, of: usize, k: usize) -> Arc<Object<Service>> {
    let port = |name: &str, port, target| ServicePort {
        name: name.into(),
        port,
        target: TargetPort::Number(target),
        transport: "TCP".into(),
        app_protocol: None,
    };
    let headless = k % 50 == 47;
    let spec = Service {
        cluster_ips: if headless {
            Vec::new()
        } else {
            vec![address(10, n)]
        },
        headless,
        external_name: None,
        selector: labels(k),
        ports: vec![port("http", 80, 8080), port("tcp-data", 9090, 9090)],
        export_to: (k % 50 == 48 && of % 10 == 5).then(|| vec![".".into()]),
    };
    object(namespace(of), app(k), k, spec)
}

fn service_entry(n: usize, of: usize, k: usize) -> Arc<Object<ServiceEntry>> {
    let endpoint = |i| WorkloadEntry {
        address: address(11, 2 * n + i).to_string(),
        ..WorkloadEntry::default()
    };
    let spec = ServiceEntry {
        hosts: vec![format!("{}.{}.example.com", app(k), namespace(of))],
        addresses: vec![address(10, n).into()],
        ports: vec![ServiceEntryPort {
            number: 443,
            protocol: "TLS".into(),
            name: "tls".into(),
            target: None,
        }],
        resolution: Resolution::Static,
        endpoints: vec![endpoint(0), endpoint(1)],
        ..ServiceEntry::default()
    };
    object(namespace(of), app(k), k, spec)
}

fn virtual_service(of: usize, k: usize) -> Arc<Object<VirtualService>> {
    let mut spec = VirtualService {
        hosts: vec![app(k)],
        ..VirtualService::default()
    };
    spec.add_route([].into(), [(app(k + 1).as_str(), None)]);
    object(namespace(of), app(k), k, spec)
}

fn sidecar(n: usize, size: Size) -> Arc<Object<Sidecar>> {
    let (of, k) = (n % size.namespaces, n / size.namespaces);
    let other = |step: usize| namespace((of + step * (k + 1)) % size.namespaces);
    let far = other(29);
    let hosts = vec![
        "./*".into(),
        "istio-system/*".into(),
        format!("{}/*", other(1)),
        format!("{}/*", other(7)),
        format!("{}/*", other(13)),
        format!("{far}/app-001.{far}.svc.cluster.local"),
        format!("{far}/app-002.{far}.svc.cluster.local"),
    ];
    let catch_all = EgressListener {
        hosts,
        ..EgressListener::default()
    };
    let data = EgressListener {
        port: Some(Port {
            number: 9090,
            protocol: "TCP".into(),
            name: "data".into(),
        }),
        hosts: vec![format!("./app-003.{}.svc.cluster.local", namespace(of))],
        bind: "127.0.0.1".into(),
        ..EgressListener::default()
    };
    let ingress = IngressListener {
        port: Port {
            number: 8080,
            protocol: "HTTP".into(),
            name: "http".into(),
        },
        default_endpoint: "127.0.0.1:8080".into(),
        ..IngressListener::default()
    };
    let spec = Sidecar {
        selector: (k % (APPS + 1) != 0).then(|| labels(k % (APPS + 1) - 1)),
        ingress: if k % 2 == 1 {
            vec![ingress]
        } else {
            Vec::new()
        },
        egress: if k % 3 == 1 {
            vec![data, catch_all]
        } else {
            vec![catch_all]
        },
        ..Sidecar::default()
    };
    object(namespace(of), format!("sidecar-{k}"), k, spec)
}

fn workload(n: usize, size: Size) -> Arc<Object<WorkloadEntry>> {
    // Spread over the namespaces, and over the apps within.
    let of = n * 7 % size.namespaces;
    let k = n % (APPS + 2);
    let spec = WorkloadEntry {
        address: address(12, n).to_string(),
        labels: labels(k),
        ..WorkloadEntry::default()
    };
    let mut workload = object(namespace(of), format!("{}-{n}", app(k)), n, spec);
    Arc::make_mut(&mut workload).meta.annotations = [
        (CGROUP_ANNOTATION.to_owned(), format!("pods/{n}")),
        (NETNS_ANNOTATION.to_owned(), format!("netns/{n}")),
    ]
    .into();
    workload
}
