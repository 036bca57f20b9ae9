//! What is in force of what files say: the last good version of every resource. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    /// Of a file that cannot be read, and of a resource that became invalid, the last good version
    /// stays in force. A file whose text did not change is not parsed again.
    pub fn update(&mut self, files: Vec<File>) -> Update {
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
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for InForce { resource, .. } in self.in_force.values() {
            match resource.clone() {
                Resource::Sidecar(object) => snapshot.sidecars.push(object),
                Resource::Service(object) => snapshot.services.push(object),
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
        sort(&mut snapshot.service_entries);
        sort(&mut snapshot.virtual_services);
        sort(&mut snapshot.workloads);
        snapshot
    }
}

/// Istio's order: the oldest first.
fn sort<T>(objects: &mut [Arc<Object<T>>]) {
    objects.sort_by(|a, b| {
        (a.meta.created, &a.meta.name, &a.meta.namespace).cmp(&(
            b.meta.created,
            &b.meta.name,
            &b.meta.namespace,
        ))
    });
}

impl Kept {
    /// Takes the file's present text, and says what is wrong with the file as a whole.
    fn take(
        &mut self,
        path: &Path,
        text: std::io::Result<String>,
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const GOOD: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: NAME, namespace: ns}
spec:
  egress:
  - hosts: [HOST]
";

    fn sidecar(name: &str, host: &str) -> String {
        GOOD.replace("NAME", name).replace("HOST", host)
    }

    fn file(name: &str, text: &str) -> File {
        (name.into(), Ok(text.into()))
    }

    fn hosts(update: &Update) -> Vec<(&str, &str)> {
        let of = |object| -> (&str, &str) {
            let object: &Arc<Object<crate::model::sidecar::Sidecar>> = object;
            let Object { meta, spec, .. } = &**object;
            (&meta.name, &spec.egress[0].hosts[0])
        };
        update.snapshot.sidecars.iter().map(of).collect()
    }

    fn codes(update: &Update) -> Vec<&str> {
        update
            .diagnostics
            .iter()
            .map(|diagnostic| diagnostic.code)
            .collect()
    }

    #[test]
    fn an_invalid_resource_keeps_its_last_good_version_and_nothing_else_is_touched() {
        let mut store = Store::default();
        let both = format!("{}---{}", sidecar("a", "x/*"), sidecar("b", "x/*"));
        assert_eq!(
            hosts(&store.update(vec![file("f", &both)])),
            [("a", "x/*"), ("b", "x/*")]
        );

        let broken = format!("{}---{}", sidecar("a", "nonsense"), sidecar("b", "y/*"));
        let update = store.update(vec![file("f", &broken)]);
        assert_eq!(hosts(&update), [("a", "x/*"), ("b", "y/*")]);
        assert_eq!(codes(&update), ["SCA0114", "SCA0009"]);
        // Unchanged and still broken: still in force, still said.
        let update = store.update(vec![file("f", &broken)]);
        assert_eq!(hosts(&update), [("a", "x/*"), ("b", "y/*")]);
        assert_eq!(codes(&update), ["SCA0114", "SCA0009"]);

        let update = store.update(vec![file("f", &sidecar("b", "y/*"))]);
        assert_eq!(
            hosts(&update),
            [("b", "y/*")],
            "removed from a good file: gone"
        );
        let update = store.update(vec![file("f", &broken)]);
        assert_eq!(hosts(&update), [("b", "y/*")], "nothing good of it is left");
        assert_eq!(codes(&update), ["SCA0114"]);
    }

    #[test]
    fn a_broken_unreadable_or_emptied_file_keeps_what_it_had() {
        let mut store = Store::default();
        let good = || file("f", &sidecar("a", "x/*"));
        let syntax_error = || file("f", &sidecar("a", "[[["));
        let unreadable = || {
            (
                "f".into(),
                Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            )
        };
        for (broken, code) in [
            (syntax_error(), "SCA0001"),
            (unreadable(), "SCA0003"),
            (file("f", ""), "SCA0010"),
            (
                file("f", "kind: Sidecr\napiVersion: networking.istio.io/v1\n"),
                "SCA0005",
            ),
        ] {
            assert_eq!(hosts(&store.update(vec![good()])), [("a", "x/*")]);
            let update = store.update(vec![broken]);
            assert_eq!(hosts(&update), [("a", "x/*")], "{code}");
            assert_eq!(codes(&update), [code, "SCA0009"]);
        }
        // From one broken state into the next.
        store.update(vec![syntax_error()]);
        assert_eq!(hosts(&store.update(vec![unreadable()])), [("a", "x/*")]);
        assert_eq!(
            hosts(&store.update(vec![])),
            [],
            "a deleted file takes its resources with it"
        );
        assert_eq!(hosts(&store.update(vec![unreadable()])), []);
    }

    #[test]
    fn a_file_that_is_meant_to_be_empty_is() {
        let mut store = Store::default();
        assert_eq!(codes(&store.update(vec![file("f", "")])), [""; 0]);
        store.update(vec![file("f", &sidecar("a", "x/*"))]);
        let update = store.update(vec![file("f", "# nothing here\n")]);
        assert_eq!((hosts(&update), codes(&update)), (vec![], vec![]));
    }

    #[test]
    fn the_first_of_two_equal_resources_is_used_and_both_places_are_named() {
        let mut store = Store::default();
        let files = || {
            vec![
                file("a", &sidecar("s", "x/*")),
                file("b", &sidecar("s", "y/*")),
            ]
        };
        let update = store.update(files());
        assert_eq!(hosts(&update), [("s", "x/*")]);
        let [duplicate] = &update.diagnostics[..] else {
            panic!("{:?}", update.diagnostics)
        };
        assert_eq!(duplicate.code, "SCA0008");
        assert!(duplicate.message.contains("a:2"), "{}", duplicate.message);
        assert_eq!(&*duplicate.location.as_ref().unwrap().file, "b");
        // The second takes over when the first is gone.
        let update = store.update(files().split_off(1));
        assert_eq!(hosts(&update), [("s", "y/*")]);
        // A broken first does not shadow a good second.
        let update = store.update(vec![
            file("a", &sidecar("s", "nonsense")),
            files().remove(1),
        ]);
        assert_eq!(hosts(&update), [("s", "y/*")]);
        assert_eq!(codes(&update), ["SCA0114"]);
    }

    #[test]
    fn a_resource_that_moves_and_breaks_at_once_stays() {
        let mut store = Store::default();
        store.update(vec![file("a", &sidecar("s", "x/*"))]);
        let update = store.update(vec![file("b", &sidecar("s", "nonsense"))]);
        assert_eq!(hosts(&update), [("s", "x/*")]);
        let update = store.update(vec![("b".into(), Err(io::Error::other("gone")))]);
        assert_eq!(hosts(&update), [("s", "x/*")]);
    }

    #[test]
    fn the_oldest_comes_first() {
        let at = |name: &str, time: &str| {
            sidecar(name, "x/*").replace("ns}", &format!("ns, creationTimestamp: {time}}}"))
        };
        let mut store = Store::default();
        let update = store.update(vec![
            file("1", &at("b", "\"2024-01-02T00:00:00Z\"")),
            file("2", &at("c", "\"2024-01-01T00:00:00Z\"")),
            file("3", &at("a", "\"2024-01-02T00:00:00Z\"")),
        ]);
        let names: Vec<_> = hosts(&update).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["c", "a", "b"], "{:?}", update.diagnostics);
    }
}
