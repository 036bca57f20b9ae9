//! What is wrong with an input, where, and how to mend it.

use std::{fmt, ops::Range, sync::Arc};

use serde::Serialize;

use super::{catalogue::Code, meta::ResourceRef};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The resource is used; something in it will surprise.
    Warning,
    /// The resource is not used.
    Error,
}

impl Severity {
    /// The name in output and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
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

impl Diagnostic {
    /// A finding about an input as a whole, with the catalogue's remedy.
    #[must_use]
    pub fn new(code: &'static Code, message: impl Into<String>) -> Self {
        Self {
            code: code.id,
            severity: code.severity,
            resource: None,
            field: String::new(),
            message: message.into(),
            remedy: code.remedy.into(),
            location: None,
        }
    }

    /// Says where.
    #[must_use]
    pub fn at(mut self, location: Location) -> Self {
        self.location = Some(location);
        self
    }

    /// Says about which resource.
    #[must_use]
    pub fn about(mut self, resource: ResourceRef) -> Self {
        self.resource = Some(resource);
        self
    }
}

impl fmt::Display for Diagnostic {
    /// In one line, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Location {
            file, line, column, ..
        }) = &self.location
        {
            write!(f, "{file}:{line}:{column}: ")?;
        } else if let Some(resource) = &self.resource {
            write!(f, "{resource}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}; {}", self.message, self.remedy)
    }
}

/// What a rule found in a resource, before anybody knows the resource's name or place: the
/// result of the pure checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which rule.
    pub code: &'static Code,
    /// Field path, such as `spec.egress[1].hosts[0]`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it, if the catalogue's remedy can be bettered.
    pub remedy: Option<String>,
    /// Whether the field's name is wrong, rather than its value.
    pub on_key: bool,
}

impl Finding {
    /// A finding about the value at `field`.
    #[must_use]
    pub fn new(code: &'static Code, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            field: field.into(),
            message: message.into(),
            remedy: None,
            on_key: false,
        }
    }

    /// Gives a better remedy than the catalogue's.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Says that the field's name is wrong.
    #[must_use]
    pub fn on_key(mut self) -> Self {
        self.on_key = true;
        self
    }

    /// Whether the resource cannot be used because of it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.code.severity == Severity::Error
    }
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
