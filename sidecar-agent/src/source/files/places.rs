//! Where the resources in force were written: from a resource and a field path to a place in a
//! text. Places are looked up in the text that was decoded, which for a last good version is not
//! the file's present one.

use std::collections::{BTreeMap, HashMap};

use crate::model::{
    ResourceRef,
    decode::{self, Id},
    diagnostic::{Diagnostic, Location},
    tree::{self, Node, Source},
};
use crate::resolve::Finding;

/// The texts that the resources in force come from.
#[derive(Clone, Debug, Default)]
pub struct Places(BTreeMap<Id, Source>);

impl Places {
    /// Remembers the text of each resource.
    pub fn new(sources: impl IntoIterator<Item = (Id, Source)>) -> Self {
        Self(sources.into_iter().collect())
    }

    /// The place of a resource's field (as in [`Node::find`]); `None`: the resource is not in
    /// force.
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
        let mut finder = self.finder();
        findings
            .iter()
            .map(|finding| {
                let resource = finding.resource.as_ref();
                Diagnostic {
                    location: resource.and_then(|of| finder.locate(of, &finding.field)),
                    ..Diagnostic::from(finding)
                }
            })
            .collect()
    }

    fn finder(&self) -> Finder<'_> {
        Finder {
            places: self,
            parsed: HashMap::new(),
        }
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
        let source = self.places.0.get(&Id::of(resource)?)?;
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
