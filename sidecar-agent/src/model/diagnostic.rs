//! What is wrong with an input, where, and how to mend it.

use std::{ops::Range, sync::Arc};

use serde::Serialize;

use super::meta::ResourceRef;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The resource is used; something in it will surprise.
    Warning,
    /// The resource is not used.
    Error,
}

/// A finding about an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Stable code (`SCA0001`...) from the catalogue.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The resource, as far as it could be named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceRef>,
    /// Field path, such as `spec.egress[1].hosts[0]`; empty: the whole document.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub remedy: String,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
}

/// A place in a source text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Location {
    /// The file, or a pseudo-name.
    pub file: Arc<str>,
    /// 1-based line.
    pub line: u32,
    /// 1-based column, in characters.
    pub column: u32,
    /// Byte range in `text`.
    #[serde(skip)]
    pub span: Range<usize>,
    /// The whole source text, for rendering.
    #[serde(skip)]
    pub text: Arc<str>,
}
