//! An agent as the chart runs it: it is a pod's, whose service account and its token tell where the API
//! server is, and which may do what the chart's roles say and nothing else.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sidecar_tests::{
    Agent, AgentBuilder,
    kube::{ApiServer, patiently},
    require_kube,
    tempdir::TempDir,
};

use super::world::{DETAILS, Inside, SECRET, World};
use crate::{pods::require_node, world::sidecar};

/// What the chart names everything of the agent's.
const NAME: &str = "sidecar-agent";

/// Kinds of the chart's that have to do with who may do what.
const ROLES: [&str; 6] = [
    "Namespace",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
];

/// The directory of a service account, where kubelet has it in containers; the rest of /run is not the
/// container's business, but the names of network namespaces are the tests'.
const CONTAINER: &str = r#"
set -e
account=$1
shift
kept=$(mktemp --directory)
mount --rbind /run/netns "$kept"
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/secrets/kubernetes.io/serviceaccount
mount --rbind "$kept" /run/netns
umount --recursive --lazy "$kept"
rmdir "$kept"
mount --bind "$account" /run/secrets/kubernetes.io/serviceaccount
exec "$@"
"#;

/// The roles of `deploy/manifests`, which are rendered from the chart; and a pod for each of two tokens.
fn set_up(api: &ApiServer) -> anyhow::Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/sidecar-agent.yaml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).context("the manifests")?;
    let is_role = |of: &Value| {
        of["kind"]
            .as_str()
            .is_some_and(|kind| ROLES.contains(&kind))
    };
    let mut roles: Vec<Value> = documents.into_iter().filter(is_role).collect();
    ensure!(roles.len() == ROLES.len(), "{roles:?}");
    roles.extend(["first", "second"].map(|name| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": NAME},
            "spec": {
                "nodeName": "node-a", "serviceAccountName": NAME, "hostNetwork": true,
                "containers": [{"name": "agent", "image": "x"}],
            },
        })
    }));
    // One after the other, in their order.
    let list = json!({"apiVersion": "v1", "kind": "List", "items": roles});
    api.apply(&list.to_string()).map(drop)
}

/// The directory, as kubelet fills it: a token is replaced in one step.
fn write_account(api: &ApiServer, dir: &Path, pod: &str) -> anyhow::Result<()> {
    fs::copy(api.certificate(), dir.join("ca.crt"))?;
    fs::write(dir.join("namespace"), NAME)?;
    fs::write(dir.join("token.new"), api.token(NAME, NAME, pod)?)?;
    fs::rename(dir.join("token.new"), dir.join("token"))?;
    Ok(())
}

fn agent(api: &ApiServer, account: &Path) -> AgentBuilder {
    let address = api.address();
    let words = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        CONTAINER,
        "sh",
    ];
    let words = words
        .map(Into::into)
        .into_iter()
        .chain([account.as_os_str().to_owned()]);
    Agent::in_cluster()
        .under(words)
        .env("KUBERNETES_SERVICE_HOST", address.ip().to_string())
        .env("KUBERNETES_SERVICE_PORT", address.port().to_string())
        .args(["--pod-events", "--own-pod=sidecar-agent/first"])
}

/// What the account's requests have come to, by their code.
fn refused(api: &ApiServer) -> anyhow::Result<Vec<String>> {
    let asked = api.asked_by(&format!("system:serviceaccount:{NAME}:{NAME}"))?;
    ensure!(!asked.is_empty(), "nothing was asked");
    let code = |of: &Value| of["responseStatus"]["code"].as_u64().unwrap_or_default();
    let refused = asked.iter().filter(|of| matches!(code(of), 401 | 403));
    let told = refused.map(|of| format!("{} {}: {}", of["verb"], of["requestURI"], code(of)));
    Ok(told.collect())
}

/// Whether an edit is followed by the next connection.
fn follows(world: &World, inside: &Inside, exposed: bool) -> anyhow::Result<()> {
    world
        .api
        .apply(&sidecar(&[if exposed { "prod-us1" } else { "other" }]))?;
    patiently("the edit to be followed", || {
        ensure!(inside.reaches(DETAILS)? == exposed, "not yet");
        ensure!(!inside.reaches(SECRET)?, "it is not captured");
        Ok(())
    })
}

fn is_up_to_date(world: &World) -> anyhow::Result<()> {
    patiently("the cluster to be up to date", || {
        let cluster = &world.agent()?.status()?["cluster"];
        ensure!(cluster["stale_seconds"].is_null(), "{cluster}");
        Ok(())
    })
}

#[test]
fn the_charts_service_account_suffices_and_a_new_token_is_followed() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let account = TempDir::new("sidecar-account-")?;
    let mut world = World::with(|world| {
        set_up(&world.api)?;
        write_account(&world.api, account.path(), "first")?;
        Ok(agent(&world.api, account.path()))
    })?;
    is_up_to_date(&world)?;
    let pod = world.schedule("shop", true)?;
    let _pause = world.start_pod(&pod, &world.chain(&json!({})))?;
    let inside = world.inside(&pod)?;
    for exposed in [false, true] {
        follows(&world, &inside, exposed)?;
    }
    patiently("the pod to be told of", || {
        let get = ["get", "events", "--namespace=prod-us1", "--output=name"];
        ensure!(!world.api.kubectl(&get)?.is_empty(), "there is no event");
        Ok(())
    })?;
    let refused_to_account = refused(&world.api)?;
    ensure!(refused_to_account.is_empty(), "{refused_to_account:?}");

    // As kubelet does long before a token ends. This one ends with its pod, and watches with the server.
    write_account(&world.api, account.path(), "second")?;
    let delete = format!("delete pod first --namespace={NAME} --grace-period=0 --force");
    world.api.kubectl(&delete.split(' ').collect::<Vec<_>>())?;
    world.api.kill_server()?;
    world.api.start_server()?;
    is_up_to_date(&world)?;
    follows(&world, &inside, false)?;
    // The old token may have been tried (401), nothing was forbidden.
    let refused = refused(&world.api)?;
    ensure!(
        refused.iter().all(|of| !of.ends_with(" 403")),
        "{refused:?}"
    );
    Ok(())
}
