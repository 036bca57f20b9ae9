//! What every resource has: metadata, and where it was written.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::Serialize;

/// The part of `metadata` that decides anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectMeta {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`; `default` where absent.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.creationTimestamp`, seconds since the epoch; 0 where absent.
    pub created: i64,
}

/// Where a resource was written: file and 1-based line of its first key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file as it was named to us, or a pseudo-name such as `<stdin>`.
    pub file: Arc<str>,
    /// Line of the document's first key.
    pub line: u32,
}

/// A resource: its metadata, its origin, its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<T> {
    /// Metadata.
    pub meta: ObjectMeta,
    /// Where it was written.
    pub origin: Origin,
    /// The typed contents.
    pub spec: T,
}

/// Names a resource and where it was written, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ResourceRef {
    /// `Sidecar`, `ServiceEntry`, ...
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The file it was read from.
    pub file: String,
    /// 1-based line in that file.
    pub line: u32,
}

impl ResourceRef {
    /// Whether this is the same resource, wherever it was written.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let name = |of: &Self| (of.kind, of.namespace.clone(), of.name.clone());
        name(self) == name(other)
    }
}

impl<T> Object<T> {
    /// The key of Istio's order, the oldest first: creation, name, namespace.
    #[must_use]
    pub fn order(&self) -> (i64, &str, &str) {
        (self.meta.created, &self.meta.name, &self.meta.namespace)
    }

    /// Names this resource; `kind` as in its manifest.
    #[must_use]
    pub fn reference(&self, kind: &'static str) -> ResourceRef {
        ResourceRef {
            kind,
            namespace: self.meta.namespace.clone(),
            name: self.meta.name.clone(),
            file: self.origin.file.to_string(),
            line: self.origin.line,
        }
    }
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            namespace,
            name,
            file,
            line,
        } = self;
        write!(f, "{kind} {namespace}/{name} ({file}:{line})")
    }
}
