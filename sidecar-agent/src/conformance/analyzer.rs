//! The section `analyzer` of `selection-cases.yaml`: what Istio's analyzer says of Sidecars.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    model::{Object, sidecar::Sidecar},
    resolve::{
        Finding,
        ambient::{self, Labels, Workload},
    },
};

use super::{CaseResult, expect, failed, name, or_default, read, selection};

/// What the section takes from Istio's test data but does not repeat: without it, nothing says
/// that `ns-ambient` is in ambient mode, and which pod it has.
const FIXTURES: [(&str, &str); 1] = [(
    "sidecar-default-selector.yaml",
    "
pods:
- {pod: ns1/random-pod, labels: {app: foo}}
- pod: ns-ambient/random-pod-ambient
  labels: {app: ambient}
  annotations: {ambient.istio.io/redirection: enabled}
namespaces:
- {namespace: ns1}
- {namespace: ns2}
- namespace: ns-ambient
  labels: {istio.io/dataplane-mode: ambient}
- namespace: ns-not-ambient
  labels: {istio.io/dataplane-mode: ambient, istio-injection: enabled}
- namespace: ns-not-ambient-rev
  labels: {istio.io/dataplane-mode: ambient, istio.io/rev: canary}
",
)];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Analyzer {
    #[serde(default, deserialize_with = "or_default")]
    source: String,
    #[serde(default, deserialize_with = "or_default")]
    pods: Vec<Pod>,
    #[serde(default, deserialize_with = "or_default")]
    namespaces: Vec<Namespace>,
    #[serde(default, deserialize_with = "or_default")]
    sidecars: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pod {
    #[serde(rename = "pod")]
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: Labels,
    #[serde(default, deserialize_with = "or_default")]
    annotations: Labels,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Namespace {
    #[serde(rename = "namespace")]
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: Labels,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    sidecar: String,
    code: Option<String>,
    selector: Option<Labels>,
}

/// Runs the section.
pub(super) fn run(section: &str, value: &Value) -> Vec<CaseResult> {
    match understood(value) {
        Ok(analyzer) => check(section, &analyzer),
        Err(error) => vec![failed(section, format!("it is not understood: {error}"))],
    }
}

/// The section with what it leaves out; what it says itself comes first.
fn understood(value: &Value) -> Result<Analyzer, String> {
    let mut analyzer = Analyzer::deserialize(value).map_err(|error| error.to_string())?;
    for (file, text) in FIXTURES {
        if !analyzer.source.contains(file) {
            continue;
        }
        let left_out: Analyzer = read(text).map_err(|error| error.to_string())?;
        for pod in left_out.pods {
            if analyzer.pods.iter().all(|known| known.name != pod.name) {
                analyzer.pods.push(pod);
            }
        }
        analyzer.namespaces.extend(left_out.namespaces);
    }
    Ok(analyzer)
}

fn check(section: &str, analyzer: &Analyzer) -> Vec<CaseResult> {
    let sidecars: Vec<Arc<Object<Sidecar>>> = analyzer
        .sidecars
        .iter()
        .map(|case| {
            let (namespace, name) = split(&case.sidecar);
            selection::sidecar(namespace, name, 0, case.selector.clone())
        })
        .collect();
    let workloads: Vec<Workload<'_>> = analyzer
        .pods
        .iter()
        .map(|pod| Workload {
            namespace: split(&pod.name).0,
            labels: &pod.labels,
            annotations: &pod.annotations,
        })
        .collect();
    let mut namespaces = BTreeMap::new();
    for Namespace { name, labels } in &analyzer.namespaces {
        namespaces.entry(name.as_str()).or_insert(labels);
    }
    let findings = ambient::conflicts(&sidecars, "istio-system", &workloads, &namespaces);
    let check = |case: &Case| {
        let found = findings.iter().filter(|found| names(found, &case.sidecar));
        let codes: Vec<_> = found.filter_map(selection::code).collect();
        let expected: Vec<_> = case.code.iter().map(String::as_str).collect();
        expect("code", &expected, &codes)
    };
    let result = |(index, case): (usize, &Case)| CaseResult {
        name: name(section, index, Some(&case.sidecar)),
        outcome: check(case).into(),
    };
    analyzer.sidecars.iter().enumerate().map(result).collect()
}

/// Namespace and name.
fn split(full: &str) -> (&str, &str) {
    full.split_once('/').unwrap_or(("", full))
}

fn names(finding: &Finding, sidecar: &str) -> bool {
    finding
        .resource
        .iter()
        .chain(&finding.related)
        .any(|resource| (resource.namespace.as_str(), resource.name.as_str()) == split(sidecar))
}
