//! The chart agrees with the agent that it runs.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sidecar_agent::{
    cli,
    observe::metrics::catalogue::{self, Metric},
    privileges::NEEDS,
    source::kube::rbac,
};
use sidecar_tests::manifests::{RENDERINGS, workspace};

use crate::documents::{
    chart_file, containers, documents, only, pod, rendered, require_helm, texts,
};

#[test]
fn versions_are_those_of_the_workspace() -> Result<()> {
    let chart: Value = serde_saphyr::from_str(&chart_file("Chart.yaml")?)?;
    for field in ["version", "appVersion"] {
        ensure!(chart[field] == env!("CARGO_PKG_VERSION"), "{field}");
    }
    Ok(())
}

/// Each container of what is checked in is started with arguments that the agent has.
#[test]
fn arguments_are_the_agents() -> Result<()> {
    let mut tried = 0;
    for rendering in RENDERINGS {
        let text = std::fs::read_to_string(rendering.path())?;
        for container in containers(pod(&documents(&text)?)?) {
            let args = texts(&container["args"]);
            ensure!(!args.is_empty(), "{}: no arguments", rendering.file);
            cli::command()
                .try_get_matches_from(std::iter::once("sidecar-agent").chain(args))
                .with_context(|| rendering.file.to_owned())?;
            tried += 1;
        }
    }
    ensure!(tried > RENDERINGS.len(), "{tried} containers");
    Ok(())
}

#[test]
fn no_container_has_more_than_the_agent_needs() -> Result<()> {
    require_helm!();
    let needed: BTreeSet<String> = NEEDS
        .iter()
        .map(|need| need.name.trim_start_matches("CAP_").to_owned())
        .collect();
    for mode in ["mode=run", "mode=uninstall"] {
        let documents = rendered(&[mode])?;
        for container in containers(pod(&documents)?) {
            let context = &container["securityContext"];
            let added = texts(&context["capabilities"]["add"]);
            let added: BTreeSet<String> = added.into_iter().map(str::to_owned).collect();
            ensure!(added == needed, "{mode}: {added:?}");
            ensure!(texts(&context["capabilities"]["drop"]) == ["ALL"]);
            for (field, wanted) in [
                ("privileged", false),
                ("allowPrivilegeEscalation", false),
                ("readOnlyRootFilesystem", true),
            ] {
                ensure!(context[field] == wanted, "{mode}: {field}");
            }
        }
    }
    Ok(())
}

/// Rights to read are those of the source, with events and the annotation where they are wanted.
#[test]
fn nothing_more_may_be_done_than_the_agent_does() -> Result<()> {
    require_helm!();
    let mesh = ("istio-system".to_owned(), "istio".to_owned());
    let read = rbac::rules(&mesh).into_iter().flat_map(|rule| {
        let only = rule.only.map_or_else(String::new, |(_, name)| name);
        rbac::VERBS.map(|verb| format!("{}/{} {only} {verb}", rule.group, rule.resource))
    });
    let read: BTreeSet<String> = read.collect();
    let events = ["create", "patch"].map(|verb| format!("events.k8s.io/events  {verb}"));
    for (set, more) in [
        ("events.enabled=false", vec![]),
        ("events.enabled=true", events.to_vec()),
        (
            "statusAnnotation=true",
            [&events[..], &["/pods  patch".to_owned()]].concat(),
        ),
    ] {
        let mut given = BTreeSet::new();
        for role in rendered(&[set])? {
            for rule in role["rules"].as_array().into_iter().flatten() {
                let only = texts(&rule["resourceNames"]).join(" ");
                for group in texts(&rule["apiGroups"]) {
                    for resource in texts(&rule["resources"]) {
                        let right = |verb| format!("{group}/{resource} {only} {verb}");
                        given.extend(texts(&rule["verbs"]).into_iter().map(right));
                    }
                }
            }
        }
        let mut wanted = read.clone();
        wanted.extend(more);
        ensure!(
            given == wanted,
            "{set}: {:?}",
            given.symmetric_difference(&wanted)
        );
    }
    Ok(())
}

/// Two agents are on a node while one takes over: no port may be the node's, and each is asked for by
/// its name.
#[test]
fn the_next_agent_finds_room_beside_the_old_one() -> Result<()> {
    require_helm!();
    let documents = rendered(&[])?;
    let strategy = &only(&documents, "DaemonSet")?["spec"]["updateStrategy"]["rollingUpdate"];
    ensure!(
        strategy["maxSurge"] == 1 && strategy["maxUnavailable"] == 0,
        "{strategy}"
    );
    let agent = &pod(&documents)?["containers"][0];
    ensure!(agent["ports"].is_null(), "{agent}");
    let args = texts(&agent["args"]);
    for wanted in ["--take-over", "--await-stop"] {
        ensure!(args.contains(&wanted), "{args:?}");
    }
    let name = args.iter().find_map(|arg| arg.strip_prefix("--instance="));
    let path = &agent["readinessProbe"]["httpGet"]["path"];
    let wanted = format!("/readyz?instance={}", name.context("no --instance")?);
    ensure!(*path == wanted.as_str(), "{path}");
    Ok(())
}

/// Names that begin like our metrics, in any text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
        .filter(|word| word.starts_with("sidecar_agent_") || word.starts_with("process_"))
        .collect()
}

#[test]
fn alerts_and_the_dashboard_ask_for_metrics_that_there_are() -> Result<()> {
    let samples = catalogue::ALL.iter().map(Metric::sample);
    // Of a histogram, buckets are asked for.
    let known: BTreeSet<String> = samples
        .flat_map(|sample| [format!("{sample}_bucket"), sample])
        .collect();
    for file in ["files/dashboard.json", "files/alerts.yaml"] {
        let text = chart_file(file)?;
        let used = metrics_in(&text);
        ensure!(used.len() > 5, "{file}: {used:?}");
        let unknown: Vec<_> = used.iter().filter(|name| !known.contains(**name)).collect();
        ensure!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    Ok(())
}

#[test]
fn what_each_alert_means_is_told() -> Result<()> {
    let alerts: Value = serde_saphyr::from_str(&chart_file("files/alerts.yaml")?)?;
    let rules = alerts["groups"][0]["rules"].as_array().context("rules")?;
    let told = std::fs::read_to_string(workspace().join("docs/operations.md"))?;
    for rule in rules {
        let name = rule["alert"].as_str().context("no name")?;
        ensure!(
            told.contains(&format!("### {name}\n")),
            "{name} is not told"
        );
    }
    let headings = told.matches("\n### SidecarAgent").count();
    ensure!(headings == rules.len(), "{headings} are told");
    Ok(())
}
