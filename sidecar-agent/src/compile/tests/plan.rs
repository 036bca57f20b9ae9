use super::*;

fn node() -> Node {
    let mut net = entry("net.example.com", 9000, "TCP", Resolution::None);
    net.addresses = vec!["10.1.0.0/16".parse().unwrap()];
    Node::new("10.0.0.1")
        .service(NS, "a", "10.96.0.1", &["http:80"])
        .endpoint(NS, "a", "10.0.0.7")
        .endpoint(NS, "a", "10.0.0.8")
        .entry("net", net)
        .sidecar(Sidecar {
            ingress: vec![ingress(9080, "", CaptureMode::Default, "127.0.0.1:8080")],
            ..Sidecar::default()
        })
}

#[test]
fn where_a_resource_was_written_is_no_part_of_a_plan() {
    let a = node().compile();
    let mut moved = node();
    Arc::make_mut(&mut moved.snapshot.sidecars[0]).origin.line = 99;
    Arc::make_mut(&mut moved.snapshot.sidecars[0]).origin.file = "elsewhere.yaml".into();
    let b = moved.compile();
    assert_eq!(a.plan().digest(), b.plan().digest());
}

#[test]
fn every_other_change_makes_another_plan() {
    let original = node().compile();
    let mut changed: Vec<Node> = Vec::new();
    let mut change = |edit: fn(&mut Snapshot)| {
        let mut node = node();
        edit(&mut node.snapshot);
        changed.push(node);
    };
    change(|s| Arc::make_mut(&mut s.sidecars[0]).meta.name = "other".into());
    change(|s| {
        Arc::make_mut(&mut s.sidecars[0]).spec.ingress[0].default_endpoint =
            "127.0.0.1:8081".into();
    });
    change(|s| {
        Arc::make_mut(&mut s.sidecars[0]).spec.ingress[0]
            .port
            .number = 9081;
    });
    change(|s| {
        Arc::make_mut(&mut s.services[0]).spec.cluster_ips = vec!["10.96.0.9".parse().unwrap()];
    });
    change(|s| Arc::make_mut(&mut s.services[0]).meta.name = "b".into());
    change(|s| Arc::make_mut(&mut s.workloads[1]).spec.address = "10.0.0.6".into());
    change(|s| {
        Arc::make_mut(&mut s.service_entries[0]).spec.addresses =
            vec!["10.1.0.0/17".parse().unwrap()];
    });
    let mut digests: Vec<_> = changed
        .iter()
        .map(|node| node.compile().plan().digest())
        .collect();
    for digest in &digests {
        assert_ne!(original.plan().digest(), *digest);
    }
    digests.sort_by_key(|digest| *digest.as_bytes());
    digests.dedup();
    assert_eq!(digests.len(), changed.len());
}

#[test]
fn replicas_share_a_plan() {
    let mut node = node();
    let mut shared = node.snapshot.workloads[0].clone();
    let replica = Arc::make_mut(&mut shared);
    replica.meta.name = "productpage-2".into();
    replica
        .meta
        .annotations
        .insert(CGROUP_ANNOTATION.into(), "productpage-2".into());
    replica
        .meta
        .annotations
        .insert(ADDRESSES_ANNOTATION.into(), "10.0.0.2".into());
    node.snapshot.workloads.push(shared);
    let plans = plans(&node.snapshot);
    let [a, b] = &plans.workloads[..] else {
        panic!("{plans:?}")
    };
    assert!(Arc::ptr_eq(&a.plan, &b.plan));
}

#[test]
fn size_counts_map_entries() {
    let size = node().compile().plan().size();
    assert_eq!(
        (size.outbound, size.outbound_prefixes, size.inbound),
        (1, 1, 1)
    );
    assert_eq!((size.backends, size.listen_ports), (2, 1));
}

#[test]
fn plans_that_differ_in_what_declares_them_are_not_mixed_up() {
    // For workloads in `shared` the first listener has the service, for others the second one.
    let spec = Sidecar {
        egress: vec![
            egress(
                Some(port(80, "HTTP")),
                "",
                CaptureMode::Default,
                &["./x.shared.svc.cluster.local"],
            ),
            egress(None, "", CaptureMode::Default, &["shared/*"]),
        ],
        ..Sidecar::default()
    };
    let mut node = Node::new("10.0.0.1").service("shared", "x", "10.96.0.1", &["http:80"]);
    node.snapshot
        .sidecars
        .push(object("istio-system", "default", spec));
    let mut at_home = node.snapshot.workloads[0].clone();
    let workload = Arc::make_mut(&mut at_home);
    workload.meta.namespace = "shared".into();
    let cgroup = (CGROUP_ANNOTATION.to_owned(), "another".to_owned());
    workload.meta.annotations.extend([cgroup]);
    node.snapshot.workloads.insert(0, at_home);
    let plans = plans(&node.snapshot);
    let declared = |of: &crate::compile::WorkloadPlan| of.plan.listener(0).unwrap().field();
    let [at_home, abroad] = &plans.workloads[..] else {
        panic!("{plans:?}")
    };
    assert_eq!(at_home.digest, abroad.digest, "the kernel does the same");
    assert_eq!(declared(at_home), "spec.egress[0]");
    assert_eq!(declared(abroad), "spec.egress[1]");
}
