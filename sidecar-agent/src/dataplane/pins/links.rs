//! The links of one workload.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use aya::maps::{MapInfo, MapType};

use super::{WORKLOADS, entries, remove_pin};
use crate::dataplane::sys::{self, AttachType, LinkInfo, LinkTarget};

/// Maps of which every program of every version uses one: what each workload follows, who is whose,
/// and what sockets have asked for.
const OUR_MAPS: [(&str, MapType); 3] = [
    (WORKLOADS, MapType::Array),
    ("IDENTITIES", MapType::CgroupStorage),
    ("ASKED_FOR", MapType::SkStorage),
];

/// Ids of programs that are an agent's. The kernel gives an id again only once it has given all.
static OURS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// So many are remembered at most.
const MOST_KNOWN: usize = 4096;

/// A link that has to be there.
pub struct LinkSpec<'a> {
    /// The name of its pin.
    pub name: String,
    /// The program that it is to run; `None`: it is there already, and runs it.
    pub program: Option<BorrowedFd<'a>>,
    /// What it is attached to, opened.
    pub target: BorrowedFd<'a>,
    /// The same, as the kernel names it.
    pub target_id: LinkTarget,
    /// How it is attached.
    pub attach_type: AttachType,
}

/// What was done to have a link as it has to be.
pub enum Change {
    /// It was so before.
    None,
    /// It was made.
    Made(PathBuf),
    /// It ran another program before.
    Updated {
        /// The link.
        link: OwnedFd,
        /// The program that it ran.
        before: OwnedFd,
    },
}

/// A directory `workload-N`.
#[derive(Clone, Debug)]
pub struct Links {
    dir: PathBuf,
}

impl Links {
    pub(super) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes every link be there, pinned, with its program. Links that are there already are kept,
    /// and change their program without a moment in which none runs.
    ///
    /// # Errors
    /// If the kernel refuses one; all are as they were then.
    pub fn ensure(&self, wanted: &[LinkSpec<'_>]) -> Result<()> {
        let is_new = match DirBuilder::new().mode(0o700).create(&self.dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => {
                return Err(error).with_context(|| format!("creating {}", self.dir.display()));
            }
        };
        if let Err(error) = self.add(wanted) {
            if is_new {
                let _ = fs::remove_dir(&self.dir);
            }
            return Err(error);
        }
        // Of a proxy's cgroup that is not apart any more.
        for (path, _) in self.infos()? {
            if !wanted.iter().any(|spec| path.ends_with(&spec.name)) {
                remove_pin(&path)?;
            }
        }
        Ok(())
    }

    /// Makes some more links be there, beside those there are.
    ///
    /// # Errors
    /// If the kernel refuses one; all are as they were then.
    pub fn add(&self, wanted: &[LinkSpec<'_>]) -> Result<()> {
        let mut changes = Vec::new();
        for spec in wanted {
            let Some(program) = spec.program else {
                continue;
            };
            match self.ensure_one(spec, program) {
                Ok(change) => changes.push(change),
                Err(error) => {
                    undo(changes);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Removes the link of this name, if there is one of this agent's.
    ///
    /// # Errors
    /// If its pin cannot be removed.
    pub fn drop_one(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        match open(&path) {
            Some(_) => remove_pin(&path),
            None => Ok(()),
        }
    }

    /// Whether the link of this name is attached to `target`, and its program is of a kind.
    pub fn runs(&self, name: &str, target: LinkTarget, is_wanted: impl Fn(u32) -> bool) -> bool {
        open(&self.dir.join(name))
            .is_some_and(|(_, info)| info.target == target && is_wanted(info.program))
    }

    fn ensure_one(&self, spec: &LinkSpec<'_>, program: BorrowedFd<'_>) -> Result<Change> {
        let path = self.dir.join(&spec.name);
        let (name, attach_type) = (&spec.name, spec.attach_type);
        if let Some((link, info)) = open(&path) {
            if info.target == spec.target_id && info.attach_type == attach_type as u32 {
                let before = sys::program_by_id(info.program)
                    .with_context(|| format!("opening the program of link {name}"))?;
                if is_same(program, before.as_fd())? {
                    return Ok(Change::None);
                }
                sys::link_update(link.as_fd(), program)
                    .with_context(|| format!("updating the link {}", path.display()))?;
                return Ok(Change::Updated { link, before });
            }
            // Attached to what is gone, or what the workload has left.
            remove_pin(&path)?;
        } else if path.exists() {
            bail!(
                "something else is where the link {} is to be pinned; remove it",
                path.display()
            );
        }
        let link = sys::link_create(program, spec.target, attach_type)
            .with_context(|| format!("attaching {attach_type:?}"))?;
        sys::pin(link.as_fd(), &path).with_context(|| format!("pinning {}", path.display()))?;
        Ok(Change::Made(path))
    }

    /// What its links are attached to, by the names of their pins. What is no link, or another's,
    /// is not among them.
    pub fn infos(&self) -> Result<Vec<(PathBuf, LinkInfo)>> {
        Ok(entries(&self.dir)?
            .into_iter()
            .filter_map(|path| {
                let (_, info) = open(&path)?;
                Some((path, info))
            })
            .collect())
    }

    /// What is in it that is no link of this agent's.
    pub fn strangers(&self) -> Result<Vec<PathBuf>> {
        let mut found = entries(&self.dir)?;
        found.retain(|path| open(path).is_none());
        Ok(found)
    }

    /// Removes its links, which detaches them, and the directory, unless something else is in it.
    pub fn remove(&self) -> Result<()> {
        for (path, _) in self.infos()? {
            remove_pin(&path)?;
        }
        match fs::remove_dir(&self.dir) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(error).with_context(|| format!("removing {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The link of this agent's that is pinned at `path`.
fn open(path: &Path) -> Option<(OwnedFd, LinkInfo)> {
    let link = sys::open_pin(path).ok()?;
    let info = sys::link_info(link.as_fd()).ok()?;
    is_ours(info.program).then_some((link, info))
}

/// Whether the program with this id is an agent's, of whatever version: each of them, and nobody
/// else's, uses one of [`OUR_MAPS`]. A name in our directory proves nothing: others may have pinned
/// their link there.
pub fn is_ours(program: u32) -> bool {
    // Hundreds of workloads run the same few programs.
    let known = || OURS.lock().unwrap_or_else(PoisonError::into_inner);
    if known().contains(&program) {
        return true;
    }
    let is_our_map = |id: &u32| {
        MapInfo::from_id(*id).is_ok_and(|map| {
            let mut ours = OUR_MAPS.iter();
            ours.any(|(name, kind)| {
                name.as_bytes() == map.name() && map.map_type().ok() == Some(*kind)
            })
        })
    };
    let info = sys::program_by_id(program).and_then(|program| sys::program_info(program.as_fd()));
    let is_ours = info.is_ok_and(|info| info.maps.iter().any(is_our_map));
    if is_ours {
        let mut known = known();
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(program);
    }
    is_ours
}

fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool> {
    let info = |program| sys::program_info(program).context("asking for a program's tag");
    Ok(info(one)?.is_same(&info(other)?))
}

fn undo(changes: Vec<Change>) {
    for change in changes.into_iter().rev() {
        let undone = match change {
            Change::None => Ok(()),
            Change::Made(path) => remove_pin(&path),
            Change::Updated { link, before } => {
                sys::link_update(link.as_fd(), before.as_fd()).context("updating a link back")
            }
        };
        if let Err(error) = undone {
            tracing::error!("going back to the programs that ran before: {error:#}");
        }
    }
}
