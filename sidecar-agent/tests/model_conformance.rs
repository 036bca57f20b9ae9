//! Every case of `tests/cases/validation-cases.yaml` against the rules.

use std::{fs, path::Path};

use sidecar_agent::model::{
    diagnostic::{Finding, Severity},
    tree::{self, Node, Source},
    validate,
};

fn cases() -> Node {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/validation-cases.yaml");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut nodes, diagnostics) = tree::parse(&Source::new("validation-cases.yaml", text));
    assert_eq!(diagnostics, []);
    assert_eq!(nodes.len(), 1);
    nodes.remove(0)
}

fn has(findings: &[Finding], severity: Severity) -> bool {
    findings
        .iter()
        .any(|finding| finding.code.severity == severity)
}

fn show(findings: &[Finding]) -> String {
    let line = |f: &Finding| format!("\n    {} {}: {}", f.code, f.field, f.message);
    findings.iter().map(line).collect()
}

/// Runs the cases of one layer; every failing one is named.
fn run(layer: &str, least: usize, check: impl Fn(&Node) -> Vec<Finding>) {
    let cases = cases();
    let cases = cases.list(layer);
    assert!(
        cases.len() >= least,
        "only {} cases of {layer}",
        cases.len()
    );
    let mut failed = Vec::new();
    for case in cases {
        let findings = check(case);
        let expected = (case.flag("valid"), case.flag("warn"));
        // Istio drops warnings of what it refuses only where it stops at once, so a warning is
        // compared only for what is valid.
        let valid = !has(&findings, Severity::Error);
        let got = (valid, valid && has(&findings, Severity::Warning));
        if got != expected {
            failed.push(format!(
                "{}: expected (valid, warn) {expected:?}, got {got:?}{}",
                case.text("name"),
                show(&findings)
            ));
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {}:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}

#[test]
fn webhook() {
    run("webhook", 174, |case| {
        let spec = case.get("spec").expect("every case has a spec");
        validate::webhook(spec, case.text("namespace"))
    });
}

#[test]
fn crd_schema() {
    run("crd", 14, |case| {
        validate::crd_schema(case.get("spec").expect("every case has a spec"))
    });
}

/// What a case's gist names is what is found: at least one finding per field that is wrong.
#[test]
fn refused_cases_have_findings_with_fields_that_can_be_shown() {
    for case in cases().list("webhook") {
        let spec = case.get("spec").expect("every case has a spec");
        for finding in validate::webhook(spec, case.text("namespace")) {
            assert!(
                finding.field.starts_with("spec"),
                "{}: {finding:?}",
                case.text("name")
            );
            assert!(
                !finding.message.is_empty(),
                "{}: {finding:?}",
                case.text("name")
            );
        }
    }
}
