//! What is in force of what files say: the last good version of every resource. Pure.

mod kept;
mod lists;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use foldhash::fast::RandomState;

use self::{kept::Kept, lists::Lists};
use super::{File, Places, Version};
use crate::model::{
    Compat, ResourceRef, Snapshot, catalogue,
    decode::{Id, Resource},
    diagnostic::Diagnostic,
    tree::Source,
};

/// The state that is kept between two readings.
#[derive(Default)]
pub struct Store {
    compat: Compat,
    files: BTreeMap<PathBuf, Kept>,
    in_force: Resources,
    lists: Lists,
    /// What is in force is just what the files say, each resource in one of them.
    plain: bool,
}

/// Resources by their names.
type Resources = HashMap<Arc<Id>, InForce, RandomState>;

/// A resource, and the text it was decoded from.
#[derive(Clone)]
struct InForce {
    resource: Resource,
    source: Source,
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

/// A file, and what there is to know of it.
struct Taken {
    path: PathBuf,
    kept: Kept,
    /// What it contributed before.
    had: Vec<Arc<Id>>,
    /// What is wrong with it as a whole.
    problem: Option<Diagnostic>,
    /// It says something else than before.
    new: bool,
}

/// A resource of which no good version is in its file now.
struct Missed {
    file: PathBuf,
    id: Arc<Id>,
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
        let mut diagnostics = Vec::new();
        let mut missed = Vec::new();

        let take = |(path, text): File| {
            let mut kept = before.remove(&path).unwrap_or_default();
            let had = std::mem::take(&mut kept.contributes);
            let problem = kept.take(&path, text, !had.is_empty());
            Taken {
                path,
                new: problem.is_some() || kept.is_new(),
                kept,
                had,
                problem,
            }
        };
        let mut taken: Vec<Taken> = files.into_iter().map(take).collect();
        kept::decode(taken.iter_mut().map(|of| &mut of.kept), self.compat);
        let previous = self.set_aside(&mut taken, before.into_values());

        self.plain = true;
        for of in taken {
            let Taken {
                path,
                mut kept,
                had,
                problem,
                new,
            } = of;
            diagnostics.extend(kept.decoded().diagnostics.iter().cloned());
            if !new {
                kept.contributes = had;
                self.files.insert(path, kept);
                continue;
            }
            let twice = kept.contribute(&mut self.in_force, &previous);
            self.plain &= twice.is_empty();
            diagnostics.extend(twice);
            missed.extend(kept.decoded().broken.iter().map(|(id, reference)| Missed {
                file: path.clone(),
                id: Arc::new(id.clone()),
                broken: Some(reference.clone()),
            }));
            // It is not known what the unreadable part says, so nothing of it is taken as removed.
            if problem.is_some() || kept.decoded().unnamed {
                missed.extend(had.into_iter().map(|id| Missed {
                    file: path.clone(),
                    id,
                    broken: None,
                }));
            }
            diagnostics.extend(problem);
            self.files.insert(path, kept);
        }
        self.plain &= missed.is_empty();

        let mut places = Places::new(self.files.values().filter_map(Kept::source));
        // Only now, because a good version in another file comes before a retained one.
        for Missed { file, id, broken } in missed {
            if self.in_force.contains_key(&id) {
                continue;
            }
            let (Some(good), Some(kept)) = (previous.get(&id), self.files.get_mut(&file)) else {
                continue;
            };
            diagnostics.push(last_good(good, broken.as_ref(), kept.source()));
            places.retain(Id::clone(&id), good.source.clone());
            self.in_force.insert(id.clone(), good.clone());
            kept.contributes.push(id);
        }
        let ids = self.files.values().flat_map(|kept| &kept.contributes);
        let resources = ids.filter_map(|id| Some(&self.in_force.get(id)?.resource));
        Update {
            snapshot: self.lists.snapshot(resources),
            diagnostics,
            places: Arc::new(places),
            unread,
        }
    }

    /// Takes out of force what has to be decided anew, and returns it: what changed files, and those
    /// that are gone, have contributed. Where resources are in several files, or not as their file
    /// has them, all of it, and every file is new.
    fn set_aside(&mut self, taken: &mut [Taken], gone: impl Iterator<Item = Kept>) -> Resources {
        let changed = || taken.iter().filter(|of| of.new);
        if self.plain {
            let mut aside = Resources::default();
            let gone = gone.flat_map(|of| of.contributes);
            let had = changed().flat_map(|of| &of.had).cloned();
            for id in gone.chain(had) {
                aside.extend(self.in_force.remove_entry(&id));
            }
            let mut named = HashSet::with_hasher(RandomState::default());
            let mut ids = changed().flat_map(|of| of.kept.ids());
            if ids.all(|id| named.insert(id) && !self.in_force.contains_key(id)) {
                return aside;
            }
            self.in_force.extend(aside);
        }
        for of in taken {
            of.new = true;
        }
        let previous = std::mem::take(&mut self.in_force);
        self.in_force.reserve(previous.len());
        previous
    }

    /// Which version of a file is known, if its text need not be read again.
    #[must_use]
    pub fn version(&self, file: &Path) -> Option<Version> {
        self.files.get(file)?.version
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
