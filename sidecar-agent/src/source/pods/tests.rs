use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{
    entry::{At, workload_entry},
    select::{Capture, Decision, Policy, Reason, decide},
    *,
};
use crate::{
    model::{Snapshot, workload::*},
    resolve::workload::{Proxy, workloads},
};

const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";

/// A pod, with more over it.
fn pod(more: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "shop-1", "namespace": "prod", "uid": UID, "labels": {"app": "shop"}},
        "spec": {"containers": [{"name": "app"}]},
    });
    merge(&mut pod, more);
    serde_json::from_value(pod).unwrap()
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

fn with_proxy(more: Value) -> Pod {
    let mut all = json!({"spec": {"containers": [{"name": "app"}, {"name": "istio-proxy"}]}});
    merge(&mut all, more);
    pod(all)
}

fn policy() -> Policy {
    Policy {
        excluded_namespaces: ["kube-system".to_owned()].into(),
        own_pod: Some(("prod".into(), "agent".into())),
    }
}

fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn decided(pod: &Pod, namespace: &[(&str, &str)]) -> (Capture, Reason) {
    let Decision {
        capture,
        reason,
        unreadable,
    } = decide(pod, &strings(namespace), &policy());
    assert_eq!(unreadable, []);
    (capture, reason)
}

#[test]
fn a_pod_is_captured_that_has_a_proxy() {
    let native =
        json!({"spec": {"initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}]}});
    for captured in [with_proxy(json!({})), pod(native)] {
        assert_eq!(decided(&captured, &[]), (Capture::On, Reason::Proxy));
    }
    let init = json!({"spec": {"initContainers": [{"name": "istio-proxy"}]}});
    for left in [pod(json!({})), pod(init)] {
        assert_eq!(decided(&left, &[]), (Capture::Left, Reason::NotAsked));
    }
}

/// Each combination of what namespace, label, `inject` and annotation say.
#[test]
fn who_speaks_later_counts_for_more_and_opting_out_wins() {
    let values = [None, Some("on"), Some("off")];
    for namespace in values {
        for label in values {
            for annotation in values {
                for inject in [None, Some("true"), Some("false")] {
                    for has_proxy in [false, true] {
                        let mut more = json!({"metadata": {"labels": {}, "annotations": {}}});
                        let metadata = &mut more["metadata"];
                        if let Some(value) = label {
                            metadata["labels"][CAPTURE_ANNOTATION] = value.into();
                        }
                        if let Some(value) = inject {
                            metadata["labels"][select::INJECT] = value.into();
                        }
                        if let Some(value) = annotation {
                            metadata["annotations"][CAPTURE_ANNOTATION] = value.into();
                        }
                        let pod = if has_proxy {
                            with_proxy(more)
                        } else {
                            pod(more)
                        };
                        let labels = namespace.map(|value| (CAPTURE_ANNOTATION, value));
                        let labels: Vec<_> = labels.into_iter().collect();
                        let (capture, _) = decided(&pod, &labels);
                        // Naively, one after the other.
                        let mut on = has_proxy;
                        if let Some(value) = namespace {
                            on = value == "on";
                        }
                        if let Some(value) = label {
                            on = value == "on";
                        }
                        if inject == Some("false") {
                            on = false;
                        }
                        if let Some(value) = annotation {
                            on = value == "on";
                        }
                        let what = format!(
                            "proxy {has_proxy}, namespace {namespace:?}, label {label:?}, inject \
                             {inject:?}, annotation {annotation:?}"
                        );
                        assert_eq!(capture == Capture::On, on, "{what}");
                        let would_be =
                            has_proxy || [namespace, label, annotation].contains(&Some("on"));
                        let off = if would_be {
                            Capture::Off
                        } else {
                            Capture::Left
                        };
                        assert_eq!(capture, if on { Capture::On } else { off }, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_that_is_written_captures_these() {
    let asks = json!({"metadata": {"annotations": {CAPTURE_ANNOTATION: "on"}}});
    for (more, reason) in [
        (json!({"spec": {"hostNetwork": true}}), Reason::HostNetwork),
        (json!({"status": {"phase": "Succeeded"}}), Reason::Ended),
        (json!({"status": {"phase": "Failed"}}), Reason::Ended),
        (
            json!({"metadata": {"namespace": "kube-system"}}),
            Reason::ExcludedNamespace,
        ),
        (json!({"metadata": {"name": "agent"}}), Reason::OwnPod),
    ] {
        let mut all = asks.clone();
        merge(&mut all, more);
        assert_eq!(decided(&with_proxy(all), &[]), (Capture::Left, reason));
    }
    let own_name_elsewhere = json!({"metadata": {"namespace": "other", "name": "agent"}});
    assert_eq!(decided(&with_proxy(own_name_elsewhere), &[]).0, Capture::On);
}

#[test]
fn what_others_capture_is_left_to_them_unless_the_pod_itself_asks() {
    let env = json!([{"name": "istio-proxy", "env": [{"name": "DISABLE_ENVOY", "value": "true"}]}]);
    let gateway = json!([{"name": "istio-proxy", "args": ["proxy", "router", "--domain", "x"]}]);
    let ambient = json!({"metadata": {"annotations": {select::AMBIENT: "enabled"}}});
    for (more, reason) in [
        (
            json!({"spec": {"initContainers": [{"name": "istio-init"}]}}),
            Reason::IstioRules,
        ),
        (
            json!({"spec": {"initContainers": [{"name": "istio-validation"}]}}),
            Reason::IstioRules,
        ),
        (ambient, Reason::Ambient),
        (json!({"spec": {"containers": gateway}}), Reason::Gateway),
        (json!({"spec": {"containers": env}}), Reason::EnvoyDisabled),
    ] {
        let on = [(CAPTURE_ANNOTATION, "on")];
        for namespace in [&[][..], &on] {
            let pod = with_proxy(more.clone());
            assert_eq!(decided(&pod, namespace), (Capture::Left, reason));
        }
        let mut asks = more.clone();
        merge(
            &mut asks,
            json!({"metadata": {"labels": {CAPTURE_ANNOTATION: "on"}}}),
        );
        assert_eq!(
            decided(&with_proxy(asks), &[]),
            (Capture::On, Reason::PodLabel)
        );
        let mut opts_out = more;
        merge(
            &mut opts_out,
            json!({"metadata": {"labels": {CAPTURE_ANNOTATION: "off"}}}),
        );
        assert_eq!(decided(&with_proxy(opts_out), &on).0, Capture::Left);
    }
    let sidecar = json!([{"name": "istio-proxy", "args": ["proxy", "sidecar"]}]);
    let sidecar = with_proxy(json!({"spec": {"containers": sidecar}}));
    assert_eq!(decided(&sidecar, &[]).0, Capture::On);
}

#[test]
fn a_proxy_that_was_to_be_injected_is_missed() {
    let labelled = |key: &str, value: &str| pod(json!({"metadata": {"labels": {key: value}}}));
    for (pod, namespace, missed) in [
        (pod(json!({})), &[(select::INJECTION, "enabled")][..], true),
        (pod(json!({})), &[(select::REVISION, "canary")], true),
        (
            pod(json!({})),
            &[(select::INJECTION, "disabled"), (select::REVISION, "x")],
            false,
        ),
        (labelled(select::INJECT, "true"), &[], true),
        (labelled(select::REVISION, "canary"), &[], true),
    ] {
        let reason = if missed {
            Reason::ProxyMissing
        } else {
            Reason::NotAsked
        };
        assert_eq!(
            decided(&pod, namespace),
            (Capture::Left, reason),
            "{namespace:?}"
        );
    }
    let out = labelled(select::INJECT, "false");
    let namespace = [(select::INJECTION, "enabled")];
    assert_eq!(
        decided(&out, &namespace),
        (Capture::Left, Reason::InjectionOff)
    );
    // The label is the newer one of the two.
    let both = json!({"metadata": {
        "labels": {select::INJECT: "true"}, "annotations": {select::INJECT: "false"},
    }});
    assert_eq!(decided(&with_proxy(both), &[]).0, Capture::On);
}

#[test]
fn what_is_neither_on_nor_off_is_told_and_counts_for_nothing() {
    let pod = with_proxy(json!({"metadata": {"annotations": {CAPTURE_ANNOTATION: "maybe"}}}));
    let decision = decide(&pod, &strings(&[(CAPTURE_ANNOTATION, "no")]), &policy());
    assert_eq!(
        (decision.capture, decision.reason),
        (Capture::On, Reason::Proxy)
    );
    let unreadable = [
        ("label of the namespace", "no".into()),
        ("annotation", "maybe".into()),
    ];
    assert_eq!(decision.unreadable, unreadable);
}

fn at() -> At {
    At {
        cgroup: "kubepods/pod1".into(),
        netns: "net:[7]".into(),
        root: "/proc/7/root".into(),
        proxy_cgroup: Some("kubepods/pod1/p".into()),
        addresses: ["10.1.2.3".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
    }
}

const ON: Decision = Decision {
    capture: Capture::On,
    reason: Reason::Proxy,
    unreadable: Vec::new(),
};

#[test]
fn resolve_sees_a_pod_as_it_sees_a_workload_entry() {
    let pod = with_proxy(json!({
        "metadata": {
            "creationTimestamp": "2024-01-02T03:04:05Z",
            "annotations": {
                "traffic.sidecar.istio.io/excludeOutboundPorts": "3306",
                "proxy.istio.io/config": "interceptionMode: TPROXY",
                FAILURE_POLICY_ANNOTATION: "open",
                // Whose traffic does it want?
                CGROUP_ANNOTATION: "kubepods/pod2",
                NETNS_ANNOTATION: "/run/netns/other",
                ROOT_ANNOTATION: "/",
                ADDRESSES_ANNOTATION: "10.9.9.9",
                PROXY_CGROUP_ANNOTATION: "kubepods/pod2/x",
            },
        },
        "spec": {"containers": [
            {"name": "app", "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            ]},
            {"name": "istio-proxy", "securityContext": {"runAsUser": 1234, "runAsGroup": 1235},
             "ports": [{"name": "http", "containerPort": 15090}]},
        ]},
    }));
    let entry = workload_entry(&pod, &ON, &at());
    assert_eq!(entry.meta.created, 1_704_164_645);
    let (resolved, findings) = workloads(&Snapshot {
        workloads: vec![Arc::new(entry)],
        ..Snapshot::default()
    });
    assert_eq!(findings, []);
    let workload = &resolved[0];
    assert_eq!(workload.to_string(), "prod/shop-1");
    assert_eq!(workload.cgroup, "kubepods/pod1");
    assert_eq!(workload.netns.as_deref(), Some("net:[7]"));
    assert_eq!(workload.root.as_deref(), Some("/proc/7/root"));
    assert_eq!(workload.addresses, at().addresses);
    assert_eq!(workload.labels["app"], "shop");
    assert_eq!(workload.ports, [("http".to_owned(), 8080)].into());
    assert_eq!(workload.capture, Some(true));
    assert_eq!(workload.failure, "open".parse().unwrap());
    let cgroup = Some("kubepods/pod1/p".into());
    assert_eq!(workload.proxy, Proxy::External { cgroup });
    let traffic = &workload.traffic;
    assert_eq!(
        (&*traffic.proxy_uids, &*traffic.proxy_gids),
        (&[1234][..], &[1235][..])
    );
    assert_eq!(traffic.mode, crate::model::mesh::InterceptionMode::Tproxy);
    assert_eq!(traffic.exclude_outbound, [3306].into());
}

#[test]
fn a_proxy_is_known_by_its_own_ids_only() {
    let ids = |of_pod: Value, of_proxy: Value| {
        let pod = with_proxy(json!({"spec": {
            "securityContext": of_pod,
            "containers": [{"name": "app"}, {"name": "istio-proxy", "securityContext": of_proxy}],
        }}));
        let annotations = workload_entry(&pod, &ON, &at()).meta.annotations;
        let of = |name: &str| annotations[name].clone();
        (
            of("capture.sidecar-agent.io/proxy-uid"),
            of("capture.sidecar-agent.io/proxy-gid"),
        )
    };
    let own = |user: &str, group: &str| (user.to_owned(), group.to_owned());
    assert_eq!(ids(json!({}), json!({})), own("1337", "1337"));
    assert_eq!(
        ids(json!({"runAsUser": 1000}), json!({})),
        own("1337", "1337")
    );
    // Mode TPROXY.
    assert_eq!(
        ids(json!({}), json!({"runAsUser": 0, "runAsGroup": 1337})),
        own("1337", "1337")
    );
}

#[test]
fn a_pod_without_proxy_has_none_and_one_that_opts_out_says_so() {
    let off = Decision {
        capture: Capture::Off,
        reason: Reason::Annotation,
        ..ON
    };
    let entry = workload_entry(
        &pod(json!({})),
        &off,
        &At {
            proxy_cgroup: None,
            ..at()
        },
    );
    assert_eq!(entry.meta.annotations[CAPTURE_ANNOTATION], "off");
    let none = [PROXY_ANNOTATION, PROXY_CGROUP_ANNOTATION];
    assert!(
        none.iter()
            .all(|name| !entry.meta.annotations.contains_key(*name))
    );
}

#[test]
fn what_a_pod_is_found_by() {
    let running = |id: &str| json!({"running": {"startedAt": null}, "id": id});
    let status = |name: &str, id: &str, state: Value| {
        json!({"name": name, "containerID": id, "state": state, "ready": true, "restartCount": 0,
               "image": "", "imageID": ""})
    };
    let hash = UID.replace('-', "").replace('2', "3");
    let pod = pod(json!({
        "metadata": {"annotations": {
            CONFIG_HASH: hash,
            containers::DEFAULT_CONTAINER_ANNOTATION: "second",
        }},
        "spec": {
            "containers": [{"name": "first"}, {"name": "second"}],
            "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}],
        },
        "status": {
            "podIP": "10.1.2.3",
            "podIPs": [{"ip": "10.1.2.3"}, {"ip": "fd00::1"}],
            "containerStatuses": [
                status("first", "containerd://1", running("")),
                status("second", "cri-o://2", running("")),
            ],
            "initContainerStatuses": [
                status("istio-proxy", "containerd://3", running("")),
            ],
        },
    }));
    let sought = sought(&pod);
    assert_eq!(sought.uids, [UID.to_owned(), canonical(&hash).unwrap()]);
    assert_eq!(sought.addresses, at_addresses());
    assert_eq!(sought.application.as_deref(), Some("2"));
    assert_eq!(sought.proxy.as_deref(), Some("3"));
    let ended = json!({"terminated": {"exitCode": 0}});
    let ended =
        self::pod(json!({"status": {"containerStatuses": [status("app", "x://1", ended)]}}));
    assert_eq!(super::sought(&ended).application, None);
}

fn at_addresses() -> Vec<IpAddr> {
    at().addresses
}
