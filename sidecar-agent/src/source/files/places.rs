//! Where the resources in force were written: from a resource and a field path to a place in a
//! text. Places are looked up in the text that was decoded, which for a last good version is not
//! the file's present one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use foldhash::fast::RandomState;

use crate::model::{
    ResourceRef,
    decode::{self, Id},
    diagnostic::{Diagnostic, Location},
    tree::{self, Node, Source},
};
use crate::resolve::Finding;

/// The texts that the resources in force come from.
#[derive(Clone, Debug, Default)]
pub struct Places {
    by_file: HashMap<Arc<str>, Source>,
    /// Of resources whose last good version is not what their file says now.
    retained: BTreeMap<Id, Source>,
}

impl Places {
    /// Remembers the present text of each file.
    pub fn new<'a>(sources: impl Iterator<Item = &'a Source>) -> Self {
        Self {
            by_file: sources.map(|of| (of.file.clone(), of.clone())).collect(),
            retained: BTreeMap::new(),
        }
    }

    /// Remembers another text of one resource.
    pub fn retain(&mut self, resource: Id, source: Source) {
        self.retained.insert(resource, source);
    }

    /// The place of a resource's field (as in [`Node::find`]); `None`: it is not there (any more).
    ///
    /// Parses the text again: keeping every node of every resource would cost more memory than
    /// the few places that are asked for are worth.
    #[must_use]
    pub fn locate(&self, resource: &ResourceRef, field: &str) -> Option<Location> {
        self.finder().locate(resource, field)
    }

    /// Turns what resolve and compile have found into diagnostics with their places.
    #[must_use]
    pub fn diagnostics(&self, findings: &[Finding]) -> Vec<Diagnostic> {
        Located::default().diagnostics(self, findings)
    }

    fn source(&self, resource: &ResourceRef) -> Option<&Source> {
        let retained = self.retained.get(&Id::of(resource)?);
        retained.or_else(|| self.by_file.get(&*resource.file))
    }

    fn finder(&self) -> Finder<'_> {
        Finder {
            places: self,
            parsed: HashMap::new(),
        }
    }
}

/// Places that were looked up: most findings are those of the state before, in the same texts.
#[derive(Debug, Default)]
pub struct Located(HashMap<(ResourceRef, String), Found, RandomState>);

/// A place, and the text it is in.
#[derive(Debug)]
struct Found {
    text: Arc<str>,
    location: Option<Location>,
}

impl Located {
    /// As [`Places::diagnostics`], and remembers what it has found until the next call.
    #[must_use]
    pub fn diagnostics(&mut self, places: &Places, findings: &[Finding]) -> Vec<Diagnostic> {
        let mut before = std::mem::take(&mut self.0);
        let mut finder = places.finder();
        let mut locate = |finding: &Finding| {
            let resource = finding.resource.as_ref()?;
            let text = &places.source(resource)?.text;
            let key = (resource.clone(), finding.field.clone());
            let known = self.0.get(&key);
            if let Some(known) = known {
                return known.location.clone();
            }
            let known = before.remove(&key).filter(|of| Arc::ptr_eq(&of.text, text));
            let found = known.unwrap_or_else(|| Found {
                text: text.clone(),
                location: finder.locate(resource, &finding.field),
            });
            self.0.entry(key).or_insert(found).location.clone()
        };
        let diagnostic = |finding| Diagnostic {
            location: locate(finding),
            ..Diagnostic::from(finding)
        };
        findings.iter().map(diagnostic).collect()
    }
}

/// Looks up several places and parses each text once.
struct Finder<'a> {
    places: &'a Places,
    /// By the address of the text, which `places` keeps alive.
    parsed: HashMap<*const u8, Parsed>,
}

impl Finder<'_> {
    fn locate(&mut self, resource: &ResourceRef, field: &str) -> Option<Location> {
        let source = self.places.source(resource)?;
        let parsed = self
            .parsed
            .entry(source.text.as_ptr())
            .or_insert_with(|| Parsed::new(source));
        let node = parsed.find(source, resource)?;
        Some(source.location(node.find(field, false)))
    }
}

/// The documents of a text, by namespace and name.
struct Parsed(HashMap<(String, String), Vec<Node>>);

impl Parsed {
    fn new(source: &Source) -> Self {
        let mut documents: HashMap<_, Vec<Node>> = HashMap::new();
        for node in decode::documents(tree::parse(source).0) {
            let key = decode::namespaced_name(&node);
            documents.entry(key).or_default().push(node);
        }
        Self(documents)
    }

    fn find(&self, source: &Source, resource: &ResourceRef) -> Option<&Node> {
        let key = (resource.namespace.clone(), resource.name.clone());
        let candidates = self.0.get(&key)?;
        // Other kinds, and other versions of the resource, may have the same name.
        let is_it = |node: &&Node| {
            ["", resource.kind].contains(&node.text("kind"))
                && source.location(node.find("", false)).line == resource.line
        };
        match &candidates[..] {
            [only] => Some(only),
            several => several.iter().find(is_it),
        }
    }
}
