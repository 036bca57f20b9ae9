//! A text as a file of resources: read, validated, compiled, reported.

use std::collections::BTreeSet;

use serde_json::json;
use sidecar_agent::{
    cli::{check, render},
    compile::{self, Compiler, NodePlan, Plan, WorkloadPlan},
    explain::{self, Connection},
    model::{
        Compat, catalogue,
        decode::{self, Decoded, Resource},
        diagnostic::{Diagnostic, Severity},
        mesh::InterceptionMode,
        settings::{self, Setting},
        sidecar::Sidecar,
        tree::Source,
        workload::{ANNOTATION_PREFIX, CGROUP_ANNOTATION, PROXY_ANNOTATION},
    },
    resolve::{Finding, FindingKind, inbound},
    source::files::{Store, Update},
};
use sidecar_common::{
    Path, Reason,
    decide::Direction,
    values::{NO_LISTENER, PlanHeader, Rule},
};

const FILE: &str = "fuzz.yaml";

/// Sidecars of one text that get workloads of their own.
const MOST_SIDECARS: usize = 2;

/// Interception mode, proxy and address of the workloads that each Sidecar gets.
const PLACES: [(&str, &str, &str); 4] = [
    ("REDIRECT", "none", "10.0.0.1"),
    ("NONE", "none", "fd00::1"),
    ("TPROXY", "external", "::ffff:10.0.0.1"),
    ("NONE", "external", "10.0.0.1"),
];

/// Checks everything from the text to the plans and the reports about it.
///
/// # Panics
/// When something does not hold.
pub fn check(text: &str) {
    let current = read(text, Compat::Current);
    let old = read(text, Compat::Istio1_0);
    let accepted: BTreeSet<_> = old.resources.iter().map(Resource::id).collect();
    for resource in &current.resources {
        let id = resource.id();
        assert!(
            accepted.contains(&id),
            "{id:?} is valid, and not with istio-1.0"
        );
    }
    in_force(text, &current, Compat::Current);
    // What is the same is compiled to the same.
    if current.resources != old.resources {
        in_force(text, &old, Compat::Istio1_0);
    }
}

fn read(text: &str, compat: Compat) -> Decoded {
    let decoded = decode::text_as(&Source::new(FILE, text), compat);
    if decoded.resources.is_empty() {
        reported(&decoded.diagnostics);
    }
    let errors = decoded
        .diagnostics
        .iter()
        .any(|found| found.severity == Severity::Error);
    assert_eq!(
        errors,
        decoded.unnamed || !decoded.broken.is_empty(),
        "errors, and what is refused because of them: {decoded:?}"
    );
    decoded
}

/// Every diagnostic can be shown, at its place.
fn reported(diagnostics: &[Diagnostic]) {
    for found in diagnostics {
        let code = catalogue::ALL.iter().find(|code| code.id == found.code);
        assert!(
            code.is_some_and(|code| code.severity == found.severity),
            "not in the catalogue: {found}"
        );
        assert_ne!(found.message, "the YAML parser panicked");
        let Some(at) = &found.location else { continue };
        assert!(
            at.text.get(at.span.clone()).is_some(),
            "{:?}: {found}",
            at.span
        );
        let lines = at.text.split('\n').count();
        assert!((1..=lines).contains(&as_usize(at.line)), "{found}");
    }
    let plain = render::text(diagnostics, false);
    let controls = |c: char| c.is_control() && c != '\n';
    assert!(!plain.contains(controls), "reaches the terminal: {plain:?}");
    let json = render::json(diagnostics);
    assert_eq!(json.as_array().map(Vec::len), Some(diagnostics.len()));
}

/// What is valid can be compiled, and says itself what is wrong with it.
fn in_force(text: &str, decoded: &Decoded, compat: Compat) {
    if decoded.resources.is_empty() {
        return;
    }
    let workloads = workloads(decoded);
    let mut store = Store::new(compat);
    let mut compiler = Compiler::default();
    let update = update(&mut store, text, &workloads);
    let node = compiler.plans(&update.snapshot);
    let mut diagnostics = update.diagnostics.clone();
    diagnostics.extend(update.places.diagnostics(&node.findings));
    let unused = compile::unused_sidecars(&update.snapshot, &node);
    diagnostics.extend(update.places.diagnostics(&unused));
    reported(&diagnostics);
    let _ = check::text(&update.snapshot, &diagnostics, true);
    let _ = check::json(&update.snapshot, &diagnostics);

    for finding in &node.findings {
        // The values of settings are read element by element, after validation.
        let is_setting = |setting: &&Setting| finding.field.contains(setting.annotation);
        let ours =
            finding.field.contains(ANNOTATION_PREFIX) && !settings::ALL.iter().any(is_setting);
        assert!(
            !(ours && finding.kind == FindingKind::BadAnnotation),
            "validation let it pass: {finding:?}"
        );
    }
    for resource in &decoded.resources {
        if let Resource::Sidecar(object) = resource {
            ingress_is_understood(&object.spec);
        }
    }
    for workload in &node.workloads {
        consistent(&workload.plan);
        explained(workload);
    }

    // Neither the order of a hash table nor a line above decides anything.
    let above = if text.starts_with('\u{feff}') {
        ""
    } else {
        "# moved\n"
    };
    let again = self::update(&mut store, &format!("{above}{text}"), &workloads);
    let anew = compile::plans(&again.snapshot);
    same(&node, &anew);
    // What is remembered from before the change comes to the same as nothing remembered.
    let remembering = compiler.plans(&again.snapshot);
    same(&remembering, &anew);
    assert_eq!(remembering.findings, anew.findings);
}

fn update(store: &mut Store, text: &str, workloads: &str) -> Update {
    store.update(vec![
        (FILE.into(), Ok(text.into())),
        ("workloads.yaml".into(), Ok(workloads.into())),
    ])
}

/// Workloads to which the Sidecars apply.
fn workloads(decoded: &Decoded) -> String {
    let sidecars = decoded
        .resources
        .iter()
        .filter_map(|resource| match resource {
            Resource::Sidecar(object) => Some((&object.meta.namespace, &object.spec.selector)),
            _ => None,
        });
    let mut items = Vec::new();
    for (namespace, selector) in sidecars.take(MOST_SIDECARS) {
        for (mode, proxy, address) in PLACES {
            let name = format!("fuzz-{}", items.len());
            items.push(json!({
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "annotations": {
                        CGROUP_ANNOTATION: name,
                        PROXY_ANNOTATION: proxy,
                        "sidecar.istio.io/interceptionMode": mode,
                    },
                },
                "spec": {"address": address, "labels": selector},
            }));
        }
    }
    let list = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntryList",
        "items": items,
    });
    list.to_string()
}

/// Validation accepts nothing that later cannot be read.
fn ingress_is_understood(sidecar: &Sidecar) {
    let addresses = [[10, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
    for mode in [
        InterceptionMode::Redirect,
        InterceptionMode::Tproxy,
        InterceptionMode::None,
    ] {
        for (index, listener) in inbound::declared(sidecar, mode, &addresses) {
            let Err(skipped) = listener else { continue };
            let misread = ["is no port", "is no address", "is no endpoint"];
            assert!(
                !misread.iter().any(|end| skipped.message.ends_with(end)),
                "validation let it pass: {}: {:?}",
                skipped.message,
                sidecar.ingress[index]
            );
        }
    }
}

/// Indices and numbers in a plan lead somewhere.
fn consistent(plan: &Plan) {
    let rule = |rule: &Rule| {
        assert!(Path::from_number(rule.path).is_some(), "{rule:?}");
        assert!(Reason::from_number(rule.reason).is_some(), "{rule:?}");
        let listener = plan.listener(rule.listener);
        assert!(
            listener.is_some() || rule.listener == NO_LISTENER,
            "{rule:?}"
        );
        if rule.backends > 1 {
            let group = plan.outbound.backends.get(as_usize(rule.group));
            let backends = group.map(Vec::len);
            assert_eq!(backends, Some(as_usize(rule.backends)), "{rule:?}");
        }
    };
    let PlanHeader {
        tables,
        outbound_default,
        inbound_default,
        ..
    } = &plan.header;
    rule(&plan.outbound.default);
    rule(outbound_default);
    rule(inbound_default);
    plan.outbound.exact.values().for_each(rule);
    plan.outbound.prefixes.values().for_each(rule);
    plan.inbound.values().for_each(rule);
    let exact = tables & PlanHeader::HAS_OUTBOUND_EXACT != 0;
    assert_eq!(exact, !plan.outbound.exact.is_empty(), "{:?}", plan.header);
    let of_port = PlanHeader::HAS_OUTBOUND_PORT_PREFIX;
    for (flag, any_port) in [(PlanHeader::HAS_OUTBOUND_PREFIX, true), (of_port, false)] {
        let some = plan
            .outbound
            .prefixes
            .keys()
            .any(|(port, _)| (*port == 0) == any_port);
        assert_eq!(tables & flag != 0, some, "{:?}", plan.header);
    }
    assert_eq!(plan.digest(), plan.clone().digest());
}

/// What a plan has rules for can be explained.
fn explained(workload: &WorkloadPlan) {
    let plan = &workload.plan;
    let outbound = plan
        .outbound
        .exact
        .keys()
        .map(|dst| (Direction::Outbound, *dst));
    let inbound = plan.inbound.keys().map(|dst| (Direction::Inbound, *dst));
    for (direction, dst) in outbound.take(4).chain(inbound.take(4)) {
        let explanation = explain::of_workload(
            workload,
            None,
            &Connection {
                direction,
                ..Connection::outbound(dst.into())
            },
        );
        assert_ne!(
            explanation.reason,
            Reason::PlanIncomplete,
            "{explanation:?}"
        );
    }
}

/// All but where it was written.
fn same(one: &NodePlan, other: &NodePlan) {
    let plans = |node: &NodePlan| {
        let plan = |known: &WorkloadPlan| (known.workload.to_string(), known.digest);
        node.workloads.iter().map(plan).collect::<Vec<_>>()
    };
    assert_eq!(plans(one), plans(other));
    assert_eq!(one.dns, other.dns);
    let findings = |node: &NodePlan| {
        let finding = |found: &Finding| (found.kind, found.field.clone());
        let mut findings: Vec<_> = node.findings.iter().map(finding).collect();
        findings.sort();
        findings
    };
    assert_eq!(findings(one), findings(other));
}

fn as_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
