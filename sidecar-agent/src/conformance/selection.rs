//! `selection-cases.yaml`: which Sidecar applies to a workload.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, de::IgnoredAny};

use crate::{
    model::{
        Object,
        decode::{self, Resource},
        mesh::MeshConfig,
        sidecar::{OutboundTrafficPolicy, Sidecar},
        tree::Source,
    },
    resolve::{
        Finding, FindingKind, pool,
        select::{self, ProxyType, Sidecars},
    },
};

use super::{CaseResult, Malformed, analyzer, expect, object, or_default};

/// Runs the file.
///
/// # Errors
/// When the text is no such file.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Malformed> {
    super::sections(
        text,
        &[
            ("cases", |name, cases| super::run(name, cases, check)),
            ("outboundTrafficPolicyFallback", |name, cases| {
                super::run(name, cases, check_policy)
            }),
            ("inboundConnectionPoolPrecedence", |name, cases| {
                super::run(name, cases, check_pool)
            }),
            ("analyzer", analyzer::run),
        ],
    )
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
const CODES: [&str; 4] = [
    "ConflictingSidecarWorkloadSelectors",
    "MultipleSidecarsWithoutWorkloadSelectors",
    "ReferencedResourceNotFound",
    "IneffectivePolicy",
];

pub(super) fn code(finding: &Finding) -> Option<&'static str> {
    let [selectors, defaults, nothing, ineffective] = CODES;
    match finding.kind {
        FindingKind::SeveralSelectors => Some(selectors),
        FindingKind::SeveralDefaults => Some(defaults),
        FindingKind::SelectorMatchesNothing => Some(nothing),
        FindingKind::Ineffective => Some(ineffective),
        _ => None,
    }
}

pub(super) fn sidecar(
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
struct PoolCase {
    /// What is set: the cases say it here only, in clauses.
    name: String,
    /// By port, or for `every port`.
    want: BTreeMap<String, Option<String>>,
}

const EVERY_PORT: &str = "every port";

fn check_pool(case: &PoolCase) -> Result<(), String> {
    let (text, declared) = pool_sidecar(&case.name)?;
    let sidecar = match decode::text(&Source::new("case", text))
        .resources
        .as_slice()
    {
        [Resource::Sidecar(sidecar)] => Arc::clone(sidecar),
        other => return Err(format!("it is no valid Sidecar: {other:?}")),
    };
    if case.want.is_empty() {
        return Err("it wants nothing".into());
    }
    for (ports, wanted) in &case.want {
        let ports: Vec<u16> = if ports == EVERY_PORT {
            let others = [1, 22, 80, 443, u16::MAX];
            declared.keys().copied().chain(others).collect()
        } else {
            let port = ports.parse();
            vec![port.map_err(|error| format!("port {ports:?}: {error}"))?]
        };
        // What is in brackets says why.
        let wanted = wanted
            .as_deref()
            .map(|text| text.split(" (").next().unwrap_or(text));
        for port in ports {
            let field = match wanted {
                None => None,
                Some("top level") => Some("spec.inboundConnectionPool".to_owned()),
                Some("port setting") => {
                    let index = declared.keys().position(|known| *known == port);
                    let index = index.ok_or_else(|| format!("port {port} is not declared"))?;
                    Some(format!("spec.ingress[{index}].connectionPool"))
                }
                Some(other) => return Err(format!("{other:?} is not understood")),
            };
            let got = pool::inbound(&sidecar.spec, port);
            expect(&format!("port {port}"), &field.as_deref(), &got)?;
        }
    }
    Ok(())
}

/// The Sidecar that a case's name describes, and the ports that it declares.
fn pool_sidecar(name: &str) -> Result<(String, BTreeMap<u16, bool>), String> {
    let mut top_level = false;
    // With settings of its own, or without.
    let mut declared: BTreeMap<u16, bool> = BTreeMap::new();
    for clause in name.split(", ") {
        let ports = |verb| {
            let listed = clause.strip_suffix(verb)?.split_once(' ')?;
            matches!(listed.0, "port" | "ports").then_some(listed.1.split(" and "))
        };
        let mut declare = |ports: std::str::Split<'_, &str>, own| {
            for port in ports {
                let port = port
                    .parse()
                    .map_err(|error| format!("{clause:?}: {error}"))?;
                declared.insert(port, own);
            }
            Ok::<_, String>(())
        };
        match clause {
            "no settings" | "no top level" => {}
            "top level only" | "top level set" => top_level = true,
            _ => match (ports(" set"), ports(" declared")) {
                (Some(ports), _) => declare(ports, true)?,
                (_, Some(ports)) => declare(ports, false)?,
                _ => return Err(format!("{clause:?} is not understood")),
            },
        }
    }
    let pool = |set: bool, key| {
        if set {
            format!("{key}: {{tcp: {{maxConnections: 1}}}}")
        } else {
            String::new()
        }
    };
    let listeners: Vec<String> = declared
        .iter()
        .map(|(port, own)| {
            format!(
                "{{port: {{number: {port}}}, {}}}",
                pool(*own, "connectionPool")
            )
        })
        .collect();
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: case}}\n\
         spec: {{egress: [{{hosts: ['*/*']}}], ingress: [{}], {}}}\n",
        listeners.join(", "),
        pool(top_level, "inboundConnectionPool"),
    );
    Ok((text, declared))
}
