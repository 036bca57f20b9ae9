//! What is in force of what files say: the last good version of every resource. Pure.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{File, Places};
use crate::model::{
    Compat, Object, ResourceRef, Snapshot, catalogue,
    decode::{self, Decoded, Id, Resource},
    diagnostic::Diagnostic,
    tree::Source,
};

/// The state that is kept between two readings.
#[derive(Default)]
pub struct Store {
    compat: Compat,
    files: BTreeMap<PathBuf, Kept>,
    in_force: BTreeMap<Id, InForce>,
}

/// A resource, and the text it was decoded from.
#[derive(Clone)]
struct InForce {
    resource: Resource,
    source: Source,
}

/// What is kept of a file.
#[derive(Default)]
struct Kept {
    /// The text that `decoded` comes from, and its hash.
    text: Option<(Source, blake3::Hash)>,
    decoded: Decoded,
    /// Which of the resources in force are this file's.
    contributes: BTreeSet<Id>,
}

/// What is in force, and what was found on the way.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// The resources in force; [`Snapshot::dns`] is left empty.
    pub snapshot: Snapshot,
    /// Everything that is wrong at this moment, not only what is new.
    pub diagnostics: Vec<Diagnostic>,
    /// Where the resources in force were written.
    pub places: Arc<Places>,
    /// Something could not be read.
    pub unread: bool,
}

/// A resource of which no good version is in its file now.
struct Missed {
    file: PathBuf,
    id: Id,
    /// The invalid version, if there is one with a name.
    broken: Option<ResourceRef>,
}

impl Store {
    /// A store that reads resources as this release of Istio understood them.
    #[must_use]
    pub fn new(compat: Compat) -> Self {
        Self {
            compat,
            ..Self::default()
        }
    }

    /// Takes the present contents of all files, in the order in which the first of two equal
    /// resources wins. A file that is not among them has been deleted, and its resources with it.
    ///
    /// Of a file that cannot be read, or whose directory cannot, and of a resource that became
    /// invalid, the last good version stays in force. A file whose text did not change is not parsed
    /// again.
    pub fn update(&mut self, mut files: Vec<File>) -> Update {
        let hidden = self.hidden(&files);
        files.extend(hidden);
        let unread = files.iter().any(|(_, text)| text.is_err());
        let mut before = std::mem::take(&mut self.files);
        let previous = std::mem::take(&mut self.in_force);
        let mut diagnostics = Vec::new();
        let mut missed = Vec::new();

        for (path, text) in files {
            let mut kept = before.remove(&path).unwrap_or_default();
            let had = std::mem::take(&mut kept.contributes);
            let problem = kept.take(&path, text, !had.is_empty(), self.compat);
            diagnostics.extend(kept.decoded.diagnostics.iter().cloned());
            if let Some((source, _)) = &kept.text {
                for resource in &mut kept.decoded.resources {
                    let id = resource.id();
                    if let Some(first) = self.in_force.get(&id) {
                        let first = first.resource.reference();
                        diagnostics.push(duplicate(resource, source, &first));
                    } else {
                        kept.contributes.insert(id.clone());
                        if let Some(before) = previous.get(&id)
                            && before.resource == *resource
                        {
                            // What looks at it later then knows at once that it did not change.
                            *resource = before.resource.clone();
                        }
                        let in_force = InForce {
                            resource: resource.clone(),
                            source: source.clone(),
                        };
                        self.in_force.insert(id, in_force);
                    }
                }
            }
            missed.extend(kept.decoded.broken.iter().map(|(id, reference)| Missed {
                file: path.clone(),
                id: id.clone(),
                broken: Some(reference.clone()),
            }));
            // It is not known what the unreadable part says, so nothing of it is taken as removed.
            if problem.is_some() || kept.decoded.unnamed {
                missed.extend(had.into_iter().map(|id| Missed {
                    file: path.clone(),
                    id,
                    broken: None,
                }));
            }
            diagnostics.extend(problem);
            self.files.insert(path, kept);
        }

        // Only now, because a good version in another file comes before a retained one.
        for Missed { file, id, broken } in missed {
            if self.in_force.contains_key(&id) {
                continue;
            }
            let Some(good) = previous.get(&id) else {
                continue;
            };
            let mut kept = self.files.get_mut(&file);
            let present = kept.as_ref().and_then(|kept| kept.text.as_ref());
            let present = present.map(|(source, _)| source);
            diagnostics.push(last_good(good, broken.as_ref(), present));
            self.in_force.insert(id.clone(), good.clone());
            if let Some(kept) = &mut kept {
                kept.contributes.insert(id);
            }
        }
        let sources = self.in_force.iter();
        Update {
            snapshot: self.snapshot(),
            diagnostics,
            places: Arc::new(Places::new(
                sources.map(|(id, of)| (id.clone(), of.source.clone())),
            )),
            unread,
        }
    }

    /// The known files below directories that cannot be read: it is not known that they are gone.
    fn hidden(&self, files: &[File]) -> Vec<File> {
        let mut unread = files.iter().filter(|(_, text)| text.is_err()).peekable();
        if unread.peek().is_none() {
            return Vec::new();
        }
        let unread: Vec<&Path> = unread.map(|(path, _)| path.as_path()).collect();
        let found: BTreeSet<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
        let is_below = |path: &Path| unread.iter().any(|dir| path.starts_with(dir));
        let hidden = self.files.iter().filter(|(path, kept)| {
            !kept.contributes.is_empty() && !found.contains(path.as_path()) && is_below(path)
        });
        let cause = || io::Error::other("its directory cannot be read");
        hidden
            .map(|(path, _)| (path.clone(), Err(cause())))
            .collect()
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for InForce { resource, .. } in self.in_force.values() {
            match resource.clone() {
                Resource::Sidecar(object) => snapshot.sidecars.push(object),
                Resource::Service(object) => snapshot.services.push(object),
                Resource::EndpointSlice(object) | Resource::Endpoints(object) => {
                    snapshot.endpoints.push(object);
                }
                Resource::ServiceEntry(object) => snapshot.service_entries.push(object),
                Resource::WorkloadEntry(object) => snapshot.workloads.push(object),
                Resource::VirtualService(object) => snapshot.virtual_services.push(object),
                Resource::MeshConfig(object) => {
                    snapshot.mesh_origin = Some(resource.reference());
                    snapshot.mesh = object.spec.clone();
                }
            }
        }
        sort(&mut snapshot.sidecars);
        sort(&mut snapshot.services);
        sort(&mut snapshot.endpoints);
        sort(&mut snapshot.service_entries);
        sort(&mut snapshot.virtual_services);
        sort(&mut snapshot.workloads);
        snapshot
    }
}

/// Istio's order: the oldest first.
fn sort<T>(objects: &mut [Arc<Object<T>>]) {
    objects.sort_by(|a, b| a.order().cmp(&b.order()));
}

impl Kept {
    /// Takes the file's present text, and says what is wrong with the file as a whole.
    fn take(
        &mut self,
        path: &Path,
        text: io::Result<String>,
        had_resources: bool,
        compat: Compat,
    ) -> Option<Diagnostic> {
        let name = path.display().to_string();
        let text = match text {
            Ok(text) => text,
            Err(cause) => {
                *self = Self::default();
                let message = format!("cannot read {name}: {cause}");
                return Some(Diagnostic::new(catalogue::UNREADABLE, message));
            }
        };
        // What an editor leaves for a moment between truncating and writing.
        if had_resources && text.trim().is_empty() {
            *self = Self::default();
            let source = Source::new(name, text);
            let message = "the file held resources and is empty now; they stay in force";
            return Some(Diagnostic::new(catalogue::EMPTIED, message).at(source.location(0..0)));
        }
        let hash = blake3::hash(text.as_bytes());
        if self.text.as_ref().is_none_or(|(_, known)| *known != hash) {
            let source = Source::new(name, text);
            self.decoded = decode::text_as(&source, compat);
            self.text = Some((source, hash));
        }
        None
    }
}

fn duplicate(resource: &Resource, source: &Source, first: &ResourceRef) -> Diagnostic {
    let reference = resource.reference();
    let ResourceRef {
        kind,
        namespace,
        name,
        file,
        line,
    } = first;
    let message =
        format!("{kind} {namespace}/{name} is defined in {file}:{line} already; that one is used");
    Diagnostic::new(catalogue::DUPLICATE_RESOURCE, message)
        .at(source.line(reference.line))
        .about(reference)
}

/// `present` is the text of the file that should hold the resource. Shows its invalid version
/// there, else the good one where it was.
fn last_good(good: &InForce, broken: Option<&ResourceRef>, present: Option<&Source>) -> Diagnostic {
    let in_force = good.resource.reference();
    let why = match broken {
        Some(ResourceRef { file, line, .. }) => format!("the one in {file}:{line} is not valid"),
        None => format!("{} cannot be read as a whole", in_force.file),
    };
    let location = match (broken, present) {
        (Some(broken), Some(present)) => present.line(broken.line),
        _ => good.source.line(in_force.line),
    };
    let ResourceRef {
        kind,
        namespace,
        name,
        ..
    } = &in_force;
    let message = format!("{kind} {namespace}/{name}: last good version stays in force; {why}");
    Diagnostic::new(catalogue::LAST_GOOD, message)
        .at(location)
        .about(in_force)
}
