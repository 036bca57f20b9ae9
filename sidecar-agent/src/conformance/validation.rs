//! `validation-cases.yaml`: which Sidecars are valid, and which are valid with a warning.

use crate::model::{
    diagnostic::{Finding, Severity},
    tree::{self, Node, Source, Value},
    validate,
};

use super::{CaseResult, Malformed, Outcome, expect, failed, name};

/// What a case may say. The texts of errors, warnings and reasons are gists.
const FIELDS: [&str; 10] = [
    "name",
    "source",
    "seed",
    "reason",
    "valid",
    "warn",
    "errors",
    "warnings",
    "namespace",
    "spec",
];

/// Runs the file.
///
/// # Errors
/// When the text is no such file.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Malformed> {
    // As the agent reads a Sidecar, so that what YAML makes of a value is tested, too.
    let (nodes, diagnostics) = tree::parse(&Source::new("validation-cases.yaml", text));
    if let Some(diagnostic) = diagnostics.first() {
        return Err(Malformed(diagnostic.to_string()));
    }
    let [file] = nodes.as_slice() else {
        return Err(Malformed("it has not exactly one document".into()));
    };
    if !matches!(file.value, Value::Map(_)) {
        return Err(Malformed("it is not a mapping".into()));
    }
    let mut results = Vec::new();
    for (key, cases) in file.entries() {
        let section = key.name.as_str();
        let check: fn(&Node) -> Result<(), String> = match section {
            "webhook" => check_webhook,
            "crd" => check_crd,
            prose if super::PROSE.contains(&prose) => continue,
            other => {
                results.push(failed(other, "the section is not understood"));
                continue;
            }
        };
        if !matches!(cases.value, Value::List(_) | Value::Null) {
            results.push(failed(section, "it is no list of cases"));
            continue;
        }
        let run = |(index, case): (usize, &Node)| CaseResult {
            name: name(section, index, case.get("name").and_then(Node::as_text)),
            outcome: Outcome::from(understood(case).and_then(|()| check(case))),
        };
        results.extend(cases.items().iter().enumerate().map(run));
    }
    Ok(results)
}

/// Whether every field is known, so that nothing a case says is passed over.
fn understood(case: &Node) -> Result<(), String> {
    let known = |name: &str| FIELDS.contains(&name);
    match case.entries().iter().find(|(key, _)| !known(&key.name)) {
        Some((key, _)) => Err(format!("the field {:?} is not understood", key.name)),
        None => Ok(()),
    }
}

fn check_webhook(case: &Node) -> Result<(), String> {
    let namespace = case.text("namespace");
    let findings = validate::webhook(spec(case)?, namespace);
    let expected = (required(case, "valid")?, optional(case, "warn")?);
    let warn = has(&findings, Severity::Warning);
    let got = (!has(&findings, Severity::Error), expected.1.map(|_| warn));
    expect("(valid, warn)", &expected, &got).map_err(|error| error + &shown(&findings))?;
    // What is refused must be shown to somebody.
    let nowhere = |f: &Finding| !f.field.starts_with("spec") || f.message.is_empty();
    if findings.iter().any(nowhere) {
        return Err("a finding names no field, or says nothing:".to_owned() + &shown(&findings));
    }
    Ok(())
}

fn check_crd(case: &Node) -> Result<(), String> {
    let findings = validate::crd_schema(spec(case)?);
    let valid = !has(&findings, Severity::Error);
    expect("valid", &required(case, "valid")?, &valid).map_err(|error| error + &shown(&findings))
}

fn spec(case: &Node) -> Result<&Node, String> {
    // Not `get`, to which null is the same as nothing: a Sidecar's spec may be either.
    let spec = case.entries().iter().find(|(key, _)| key.name == "spec");
    spec.map(|(_, spec)| spec)
        .ok_or_else(|| "it has no spec".into())
}

fn required(case: &Node, field: &str) -> Result<bool, String> {
    optional(case, field)?.ok_or_else(|| format!("it does not say whether it is {field}"))
}

fn optional(case: &Node, field: &str) -> Result<Option<bool>, String> {
    match case.get(field).map(|node| &node.value) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(format!("{field} is not a boolean")),
    }
}

fn has(findings: &[Finding], severity: Severity) -> bool {
    findings.iter().any(|f| f.code.severity == severity)
}

fn shown(findings: &[Finding]) -> String {
    let line = |f: &Finding| format!("\n  {} {}: {}", f.code, f.field, f.message);
    findings.iter().map(line).collect()
}
