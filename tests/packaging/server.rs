//! What is rendered, and what the agent may do with it, at a real API server.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sidecar_agent::{
    model::workload::STATUS_ANNOTATION,
    observe::{
        events::{CONTROLLER, Options, Pod, PodRef, Reporter},
        status::WorkloadStatus,
    },
};
use sidecar_tests::{
    DEADLINE, command,
    kube::ApiServer,
    manifests::{self, RENDERINGS, values_file},
    poll::poll_result,
    require_kube,
};

use crate::documents::{documents, require_helm};

/// Kinds that only others' CRDs bring.
const OTHERS: &str = "monitoring.coreos.com/v1";

/// The release of Kubernetes that answers.
fn version(server: &ApiServer) -> Result<String> {
    let told: Value = serde_json::from_str(&server.kubectl(&["get", "--raw", "/version"])?)?;
    let version = told["gitVersion"].as_str().context("no version")?;
    Ok(version.trim_start_matches('v').to_owned())
}

/// What helm would apply there.
fn rendered_for(kubernetes: &str, values: Option<&str>, set: &[&str]) -> Result<Vec<Value>> {
    let mut helm = manifests::template(kubernetes)?;
    if let Some(values) = values {
        helm.arg("--values").arg(values_file(values));
    }
    for value in set {
        helm.args(["--set", value]);
    }
    let mut documents = documents(&command::output(&mut helm)?)?;
    documents.retain(|of| of["apiVersion"] != OTHERS);
    Ok(documents)
}

fn list(documents: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": documents}).to_string()
}

/// With the checks of the server, and of its own kubectl against the server's schema.
#[test]
fn a_real_api_server_accepts_what_is_rendered() -> Result<()> {
    require_kube!();
    require_helm!();
    let server = ApiServer::start()?;
    server.kubectl(&["create", "namespace", manifests::RELEASE])?;
    let kubernetes = version(&server)?;
    let dry = |documents: &[Value]| -> Result<String> {
        let dir = sidecar_tests::tempdir::TempDir::new("sidecar-dry-")?;
        let file = dir.path().join("list.json");
        std::fs::write(&file, list(documents))?;
        server.kubectl(&["apply", "--dry-run=server", "--filename", path(&file)?])
    };
    for rendering in RENDERINGS {
        let documents = rendered_for(&kubernetes, rendering.values, &[])?;
        let told = dry(&documents).with_context(|| rendering.file.to_owned())?;
        ensure!(told.lines().count() == documents.len(), "{told}");
        ensure!(
            told.contains("daemonset.apps/sidecar-agent created"),
            "{told}"
        );
    }

    // It looks at what it is given.
    let mut wrong = rendered_for(&kubernetes, None, &[])?;
    for document in &mut wrong {
        if document["kind"] == "DaemonSet" {
            document["spec"]["template"]["spec"]["hostNetwork"] = "yes".into();
        }
    }
    ensure!(dry(&wrong).is_err(), "it accepts anything");
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// A state as `status` tells it.
fn workload(state: &str, problem: Option<&str>) -> Result<WorkloadStatus> {
    let is_captured = state == "captured";
    Ok(serde_json::from_value(json!({
        "workload": "prod-us1/web", "state": state, "problem": problem,
        "capture": {"wanted": true, "by": "default", "actual": is_captured},
        "cgroup": "x", "wanted": "1", "decisions": [],
    }))?)
}

/// Events and the annotation, as the agent's user with the chart's roles alone beside those of the
/// source.
#[test]
fn pods_tell_what_has_become_of_them() -> Result<()> {
    require_kube!();
    require_helm!();
    let server = ApiServer::start()?;
    server.kubectl(&["create", "namespace", manifests::RELEASE])?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "prod-us1"},
        "spec": {"nodeName": "node", "containers": [{"name": "web", "image": "web"}]},
    });
    server.apply(&pod.to_string())?;
    let pod = || -> Result<Value> {
        let text = server.kubectl(&["get", "pod", "web", "-n", "prod-us1", "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    };
    let uid = pod()?["metadata"]["uid"]
        .as_str()
        .context("no UID")?
        .to_owned();

    let roles: Vec<Value> = rendered_for(&version(&server)?, None, &["statusAnnotation=true"])?
        .into_iter()
        .filter(|of| of["kind"] == "ClusterRole")
        .collect();
    server.apply(&list(&roles))?;
    let name = roles[0]["metadata"]["name"].as_str().context("no name")?;
    let role = format!("--clusterrole={name}");
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "chart",
        &role,
        "--user=sidecar-agent",
    ])?;

    let pods = BTreeMap::from([(
        "prod-us1/web".to_owned(),
        Pod {
            pod: PodRef {
                namespace: "prod-us1".into(),
                name: "web".into(),
                uid: uid.clone(),
            },
            shown: None,
            left: false,
        },
    )]);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let kubeconfig = kube::config::Kubeconfig::read_from(server.kubeconfig())?;
    let mut reporter = runtime.block_on(async {
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let options = Options {
            node: "node".into(),
            events: true,
            annotation: true,
        };
        anyhow::Ok(Reporter::start(kube::Client::try_from(config)?, options))
    })?;

    let refused = workload("pending", Some("its cgroup is not there"))?;
    reporter.tell(&[refused], &[], &pods);
    let told = |reason: &str| -> Result<Value> {
        poll_result(DEADLINE, reason, || {
            let selector = format!("involvedObject.uid={uid},reason={reason}");
            let get = [
                "get",
                "events",
                "-n",
                "prod-us1",
                "-o",
                "json",
                "--field-selector",
            ];
            let text = server.kubectl(&[&get[..], &[&selector]].concat())?;
            let list: Value = serde_json::from_str(&text)?;
            list["items"].get(0).cloned().context("no such event")
        })
    };
    let event = told("CaptureRefused")?;
    ensure!(event["type"] == "Warning", "{event}");
    ensure!(event["message"] == "its cgroup is not there", "{event}");
    ensure!(event["reportingComponent"] == CONTROLLER, "{event}");
    ensure!(event["reportingInstance"] == "node", "{event}");
    let annotated = |wanted: &str| {
        poll_result(DEADLINE, wanted, || {
            let found = &pod()?["metadata"]["annotations"][STATUS_ANNOTATION];
            ensure!(*found == wanted, "{found}");
            Ok(())
        })
    };
    annotated("pending: its cgroup is not there")?;

    // Told as soon as it may be again.
    let captured = [workload("captured", None)?];
    poll_result(DEADLINE, "the change to be told", || {
        reporter.tell(&captured, &[], &pods);
        let found = &pod()?["metadata"]["annotations"][STATUS_ANNOTATION];
        ensure!(*found == "captured", "{found}");
        Ok(())
    })?;
    ensure!(told("Captured")?["type"] == "Normal");
    Ok(())
}
