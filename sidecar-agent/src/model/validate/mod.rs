//! Rules beyond the shape of a resource. Pure: a parsed spec in, findings out.

pub mod pool;
pub mod service;
pub mod service_entry;
pub mod sidecar;
pub mod syntax;
pub mod tls;
pub mod workload;

pub use sidecar::{webhook, webhook_as};

use super::{catalogue, decode, diagnostic::Finding, schema, tree::Node};

/// Prefix of field paths within a spec.
const SPEC: &str = "spec";

/// What the API server refuses of a `Sidecar`'s spec by the schema of the CRD alone.
///
/// Unknown fields are no part of it: the API server drops them, while files are refused.
#[must_use]
pub fn crd_schema(spec: &Node) -> Vec<Finding> {
    let mut findings = schema::check(spec, &decode::sidecar::SPEC, SPEC).findings;
    findings.retain(|finding| finding.code != catalogue::UNKNOWN_FIELD);
    findings
}
