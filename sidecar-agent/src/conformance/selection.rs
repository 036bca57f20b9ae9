//! `selection-cases.yaml`: which Sidecar applies to a workload.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::{
    model::{
        Object,
        mesh::MeshConfig,
        sidecar::{OutboundTrafficPolicy, Sidecar},
    },
    resolve::{
        Finding, FindingKind,
        select::{self, ProxyType, Sidecars},
    },
};

use super::{CaseResult, Malformed, expect, object, read};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    /// Prose.
    #[serde(default, rename = "rules")]
    _rules: IgnoredAny,
    #[serde(default)]
    cases: Vec<Value>,
    #[serde(default)]
    outbound_traffic_policy_fallback: Vec<Value>,
    /// Connection pools are left to the proxy.
    #[serde(default, rename = "inboundConnectionPoolPrecedence")]
    _inbound_connection_pool_precedence: IgnoredAny,
    analyzer: Option<Analyzer>,
}

/// Runs the file.
///
/// # Errors
/// When the text is no such file.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Malformed> {
    let file: File = read(text)?;
    let mut results = super::run("selection", &file.cases, check);
    results.extend(super::run(
        "outbound traffic policy",
        &file.outbound_traffic_policy_fallback,
        check_policy,
    ));
    results.extend(file.analyzer.iter().flat_map(check_analyzer));
    Ok(results)
}

type Labels = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    #[serde(rename = "name")]
    _name: String,
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    root_namespace: String,
    workload: Workload,
    sidecars: Vec<CaseSidecar>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Workload {
    namespace: String,
    r#type: CaseType,
    labels: Labels,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum CaseType {
    Sidecar,
    Router,
    Waypoint,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseSidecar {
    namespace: String,
    name: String,
    created: i64,
    selector: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expect {
    applied: String,
    effective_namespace: String,
    #[serde(default)]
    diagnostics: Vec<String>,
}

fn check(case: &Case) -> Result<(), String> {
    let Workload {
        namespace,
        r#type,
        labels,
    } = &case.workload;
    let objects: Vec<Object<Sidecar>> = case
        .sidecars
        .iter()
        .map(|s| sidecar(&s.namespace, &s.name, s.created, s.selector.clone()))
        .collect();
    let proxy_type = match r#type {
        CaseType::Sidecar => ProxyType::Sidecar,
        CaseType::Router => ProxyType::Router,
        CaseType::Waypoint => ProxyType::Waypoint,
    };
    let sidecars = Sidecars::new(&objects, &case.root_namespace);
    let applied = match sidecars.select(proxy_type, namespace, labels) {
        Some(sidecar) => format!("{}/{}", sidecar.meta.namespace, sidecar.meta.name),
        None => "builtin-default".into(),
    };
    expect("applied", &case.expect.applied, &applied)?;
    // Whatever applies is evaluated for the workload's own namespace.
    expect(
        "effectiveNamespace",
        &case.expect.effective_namespace,
        namespace,
    )?;
    let findings = sidecars.conflicts([(namespace.as_str(), labels)]);
    for diagnostic in &case.expect.diagnostics {
        let kind = match diagnostic.as_str() {
            "ConflictingSidecarWorkloadSelectors on both" => FindingKind::SeveralSelectors,
            "MultipleSidecarsWithoutWorkloadSelectors on both" => FindingKind::SeveralDefaults,
            other => return Err(format!("the diagnostic {other:?} is not understood")),
        };
        let named = findings
            .iter()
            .find(|f| f.kind == kind)
            .map_or(0, |f| 1 + f.related.len());
        expect(diagnostic, &objects.len(), &named)?;
    }
    Ok(())
}

fn sidecar(namespace: &str, name: &str, created: i64, selector: Option<Labels>) -> Object<Sidecar> {
    object(
        namespace,
        name,
        created,
        Sidecar {
            selector,
            ..Sidecar::default()
        },
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyCase {
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    mesh_config_mode: String,
    sidecar: PolicySidecar,
    expect: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PolicySidecar {
    Text(String),
    Policy(PolicyMode),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyMode {
    mode: String,
}

fn check_policy(case: &PolicyCase) -> Result<(), String> {
    let mode = |text: &str| match text {
        "REGISTRY_ONLY" => Ok(OutboundTrafficPolicy::RegistryOnly),
        // Names are resolved by the proxy; to the agent it is the same.
        "ALLOW_ANY" | "ALLOW_ANY_DYNAMIC_DNS" => Ok(OutboundTrafficPolicy::AllowAny),
        other => Err(format!("the mode {other:?} is not understood")),
    };
    let mut mesh = MeshConfig::default();
    if case.mesh_config_mode != "default" {
        mesh.outbound_traffic_policy = mode(&case.mesh_config_mode)?;
    }
    let sidecar = match &case.sidecar {
        PolicySidecar::Text(text) if text == "none" => None,
        PolicySidecar::Text(text) if text == "without outboundTrafficPolicy" => {
            Some(Sidecar::default())
        }
        PolicySidecar::Text(other) => return Err(format!("{other:?} is not understood")),
        PolicySidecar::Policy(policy) => Some(Sidecar {
            outbound_traffic_policy: Some(mode(&policy.mode)?),
            ..Sidecar::default()
        }),
    };
    let got = select::outbound_traffic_policy(sidecar.as_ref(), &mesh);
    expect("policy", &mode(&case.expect)?, &got)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Analyzer {
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    pods: Vec<Pod>,
    sidecars: Vec<AnalyzedSidecar>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pod {
    pod: String,
    labels: Labels,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnalyzedSidecar {
    sidecar: String,
    code: Option<String>,
    selector: Option<Labels>,
}

fn check_analyzer(analyzer: &Analyzer) -> Vec<CaseResult> {
    let split = |name: &str| {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        (namespace.to_owned(), name.to_owned())
    };
    let objects: Vec<Object<Sidecar>> = analyzer
        .sidecars
        .iter()
        .map(|s| {
            let (namespace, name) = split(&s.sidecar);
            sidecar(&namespace, &name, 0, s.selector.clone())
        })
        .collect();
    let pods: Vec<(String, &Labels)> = analyzer
        .pods
        .iter()
        .map(|pod| (split(&pod.pod).0, &pod.labels))
        .collect();
    let findings = Sidecars::new(&objects, "istio-system").conflicts(
        pods.iter()
            .map(|(namespace, labels)| (namespace.as_str(), *labels)),
    );
    let code = |name: &str| {
        findings
            .iter()
            .find(|finding| names(finding, name))
            .and_then(|finding| match finding.kind {
                FindingKind::SeveralSelectors => Some("ConflictingSidecarWorkloadSelectors"),
                FindingKind::SeveralDefaults => Some("MultipleSidecarsWithoutWorkloadSelectors"),
                FindingKind::SelectorMatchesNothing => Some("ReferencedResourceNotFound"),
                _ => None,
            })
    };
    analyzer
        .sidecars
        .iter()
        // About ambient pods, which have no sidecar and of which the agent knows nothing.
        .filter(|case| case.code.as_deref() != Some("IneffectivePolicy"))
        .map(|case| CaseResult {
            name: format!("analyzer: {}", case.sidecar),
            outcome: expect("code", &case.code.as_deref(), &code(&case.sidecar)),
        })
        .collect()
}

fn names(finding: &Finding, sidecar: &str) -> bool {
    finding
        .resource
        .iter()
        .chain(&finding.related)
        .any(|resource| format!("{}/{}", resource.namespace, resource.name) == sidecar)
}
