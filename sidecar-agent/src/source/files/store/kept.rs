//! What is kept of a file.

use std::{io, path::Path, sync::Arc, thread};

use rayon::{
    ThreadPoolBuilder,
    iter::{IntoParallelRefMutIterator as _, ParallelIterator as _},
};

use super::{InForce, Resources};
use crate::{
    model::{
        Compat, ResourceRef, catalogue,
        decode::{self, Decoded, Id, Resource},
        diagnostic::Diagnostic,
        tree::Source,
    },
    source::files::{Text, Version},
};

/// So many bytes are worth further threads.
const MUCH: usize = 1 << 18;

/// At most so many: others have work to do as well.
const MOST_THREADS: usize = 4;

static NOTHING: Decoded = Decoded {
    resources: Vec::new(),
    broken: Vec::new(),
    unnamed: false,
    diagnostics: Vec::new(),
};

/// What is kept of a file.
#[derive(Default)]
pub struct Kept {
    /// The text that `decoded` comes from, and its hash.
    text: Option<(Source, blake3::Hash)>,
    /// Files of which version have this text.
    pub version: Option<Version>,
    /// What the text says; `None`: it is not decoded yet.
    decoded: Option<Decoded>,
    /// The names of the resources that were decoded, in their order.
    ids: Vec<Arc<Id>>,
    /// Which of the resources in force are this file's.
    pub contributes: Vec<Arc<Id>>,
}

/// Decodes the texts that are not yet, on several threads where that pays.
pub fn decode<'a>(files: impl Iterator<Item = &'a mut Kept>, compat: Compat) {
    let mut new: Vec<&mut Kept> = files.filter(|of| of.is_new()).collect();
    let texts = new.iter().filter_map(|of| of.source());
    let bytes: usize = texts.map(|source| source.text.len()).sum();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let pool = ThreadPoolBuilder::new().num_threads(threads.min(MOST_THREADS));
    // Without threads it takes longer.
    if bytes > MUCH
        && let Ok(pool) = pool.build()
    {
        pool.install(|| new.par_iter_mut().for_each(|kept| kept.decode(compat)));
    } else {
        for kept in new {
            kept.decode(compat);
        }
    }
}

impl Kept {
    /// What it says.
    pub fn decoded(&self) -> &Decoded {
        self.decoded.as_ref().unwrap_or(&NOTHING)
    }

    /// Whether its text is not decoded yet.
    pub fn is_new(&self) -> bool {
        self.decoded.is_none()
    }

    /// The names of the resources that it decodes to.
    pub fn ids(&self) -> &[Arc<Id>] {
        &self.ids
    }

    fn decode(&mut self, compat: Compat) {
        let Some((source, _)) = &self.text else {
            return;
        };
        let decoded = decode::text_as(source, compat);
        let resources = decoded.resources.iter();
        self.ids = resources.map(|of| Arc::new(of.id())).collect();
        self.decoded = Some(decoded);
    }

    /// The text that is decoded.
    pub fn source(&self) -> Option<&Source> {
        self.text.as_ref().map(|(source, _)| source)
    }

    /// Adds its resources to those in force, unless another file has been first, which is told.
    /// `previous`: those that were in force.
    pub fn contribute(
        &mut self,
        in_force: &mut Resources,
        previous: &Resources,
    ) -> Vec<Diagnostic> {
        let mut diagnostics = Vec::new();
        let (Some((source, _)), Some(decoded)) = (&self.text, &mut self.decoded) else {
            return diagnostics;
        };
        for (id, resource) in self.ids.iter().zip(&mut decoded.resources) {
            if let Some(first) = in_force.get(id) {
                let first = first.resource.reference();
                diagnostics.push(duplicate(resource, source, &first));
                continue;
            }
            if let Some(before) = previous.get(id)
                && before.resource == *resource
            {
                // What looks at it later then knows at once that it did not change.
                *resource = before.resource.clone();
            }
            let now = InForce {
                resource: resource.clone(),
                source: source.clone(),
            };
            in_force.insert(id.clone(), now);
            self.contributes.push(id.clone());
        }
        diagnostics
    }

    /// Takes the file's present text, and says what is wrong with the file as a whole. A new text has
    /// to be [decoded](decode()).
    pub fn take(
        &mut self,
        path: &Path,
        text: io::Result<Text>,
        had_resources: bool,
    ) -> Option<Diagnostic> {
        let name = path.display().to_string();
        let (text, version) = match text {
            Ok(Text::Unchanged) => return None,
            Ok(Text::New(text, version)) => (text, version),
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
        self.version = version;
        if let Some((known, _)) = &self.text
            && Arc::ptr_eq(&known.text, &text)
        {
            return None;
        }
        let hash = blake3::hash(text.as_bytes());
        if self.text.as_ref().is_none_or(|(_, known)| *known != hash) {
            self.text = Some((Source::new(name, text), hash));
            self.decoded = None;
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
