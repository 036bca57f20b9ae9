//! `selection-cases.yaml`: which Sidecar applies to a workload.

use std::{collections::BTreeMap, sync::Arc};

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

use super::{CaseResult, Malformed, Outcome, expect, object, or_default, read};

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
    #[serde(default)]
    inbound_connection_pool_precedence: Vec<Value>,
    analyzer: Option<Analyzer>,
}

/// Runs the file.
///
/// # Errors
/// When the text is no such file.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Malformed> {
    let file: File = read(text)?;
    let mut results = super::run("cases", &file.cases, check);
    results.extend(super::run(
        "outboundTrafficPolicyFallback",
        &file.outbound_traffic_policy_fallback,
        check_policy,
    ));
    let pools = file.inbound_connection_pool_precedence.iter().enumerate();
    results.extend(pools.map(|(index, case)| CaseResult {
        name: super::name(
            "inboundConnectionPoolPrecedence",
            index,
            case.get("name").and_then(Value::as_str),
        ),
        outcome: Outcome::NotRun("connection pools are left to the proxy"),
    }));
    results.extend(file.analyzer.iter().flat_map(check_analyzer));
    Ok(results)
}

type Labels = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    #[serde(default, rename = "name")]
    _name: IgnoredAny,
    root_namespace: Option<String>,
    workload: Workload,
    #[serde(default, deserialize_with = "or_default")]
    sidecars: Vec<CaseSidecar>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Workload {
    namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    r#type: CaseType,
    #[serde(default, deserialize_with = "or_default")]
    labels: Labels,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CaseType {
    #[default]
    Sidecar,
    Router,
    Waypoint,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseSidecar {
    namespace: String,
    name: String,
    /// 0: unreadable.
    #[serde(default, deserialize_with = "or_default")]
    created: i64,
    selector: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expect {
    applied: String,
    effective_namespace: Option<String>,
    /// Codes of Istio's analyzer, with ` on both` or without.
    #[serde(default, deserialize_with = "or_default")]
    diagnostics: Vec<String>,
}

fn check(case: &Case) -> Result<(), String> {
    let Workload {
        namespace,
        r#type,
        labels,
    } = &case.workload;
    let objects: Vec<Arc<Object<Sidecar>>> = case
        .sidecars
        .iter()
        .map(|s| sidecar(&s.namespace, &s.name, s.created, s.selector.clone()))
        .collect();
    let proxy_type = match r#type {
        CaseType::Sidecar => ProxyType::Sidecar,
        CaseType::Router => ProxyType::Router,
        CaseType::Waypoint => ProxyType::Waypoint,
    };
    let mesh = MeshConfig::default();
    let root = case.root_namespace.as_ref().unwrap_or(&mesh.root_namespace);
    let sidecars = Sidecars::new(&objects, root);
    let applied = match sidecars.select(proxy_type, namespace, labels) {
        Some(sidecar) => format!("{}/{}", sidecar.meta.namespace, sidecar.meta.name),
        None => "builtin-default".into(),
    };
    expect("applied", &case.expect.applied, &applied)?;
    // Whatever applies is evaluated for the workload's own namespace.
    if let Some(expected) = &case.expect.effective_namespace {
        expect("effectiveNamespace", expected, namespace)?;
    }
    let findings = sidecars.conflicts([(namespace.as_str(), labels)]);
    for diagnostic in &case.expect.diagnostics {
        let (wanted, on_both) = match diagnostic.strip_suffix(" on both") {
            Some(wanted) => (wanted, true),
            None => (diagnostic.as_str(), false),
        };
        if !CODES.contains(&wanted) {
            return Err(format!("the diagnostic {diagnostic:?} is not understood"));
        }
        let named = findings
            .iter()
            .find(|finding| code(finding) == Some(wanted))
            .map_or(0, |finding| 1 + finding.related.len());
        if named == 0 || on_both && named != 2 {
            return Err(format!(
                "expected {diagnostic:?}, got it on {named} Sidecars"
            ));
        }
    }
    Ok(())
}

/// Istio's codes of what the agent reports, too.
const CODES: [&str; 3] = [
    "ConflictingSidecarWorkloadSelectors",
    "MultipleSidecarsWithoutWorkloadSelectors",
    "ReferencedResourceNotFound",
];

fn code(finding: &Finding) -> Option<&'static str> {
    let [selectors, defaults, nothing] = CODES;
    match finding.kind {
        FindingKind::SeveralSelectors => Some(selectors),
        FindingKind::SeveralDefaults => Some(defaults),
        FindingKind::SelectorMatchesNothing => Some(nothing),
        _ => None,
    }
}

fn sidecar(
    namespace: &str,
    name: &str,
    created: i64,
    selector: Option<Labels>,
) -> Arc<Object<Sidecar>> {
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
    #[serde(default, rename = "name")]
    _name: IgnoredAny,
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
    mode: Option<String>,
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
            // The first value of protobuf's enum is the default.
            outbound_traffic_policy: Some(mode(policy.mode.as_deref().unwrap_or("REGISTRY_ONLY"))?),
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
    #[serde(default, deserialize_with = "or_default")]
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
    let objects: Vec<Arc<Object<Sidecar>>> = analyzer
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
    let found = |name: &str| {
        let mut findings = findings.iter().filter(|finding| names(finding, name));
        findings.find_map(code)
    };
    let outcome = |case: &AnalyzedSidecar| match case.code.as_deref() {
        Some("IneffectivePolicy") => {
            Outcome::NotRun("nothing in the case says that pods are ambient")
        }
        expected => expect("code", &expected, &found(&case.sidecar)).into(),
    };
    analyzer
        .sidecars
        .iter()
        .enumerate()
        .map(|(index, case)| CaseResult {
            name: super::name("analyzer", index, Some(&case.sidecar)),
            outcome: outcome(case),
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
