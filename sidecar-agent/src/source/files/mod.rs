//! Resources in files: finding and reading them ([`read`]), keeping what was last good of them
//! ([`Store`]), and noticing changes ([`watch()`]).

pub mod places;
pub mod store;
mod version;
pub mod watch;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

pub use places::{Located, Places};
pub use store::{Store, Update};
pub use version::Version;
pub use watch::{Watch, watch};

use crate::{
    limits::Exhausted,
    model::{Compat, tree::MAX_BYTES},
};

/// A file that holds resources, and its text or why it could not be read.
pub type File = (PathBuf, io::Result<Text>);

/// What a file says.
#[derive(Clone, Debug)]
pub enum Text {
    /// What it said when it was read last.
    Unchanged,
    /// This. With a version, if equal versions are sure to be the same text.
    New(Arc<str>, Option<Version>),
}

impl<T: Into<Arc<str>>> From<T> for Text {
    fn from(text: T) -> Self {
        Self::New(text.into(), None)
    }
}

/// Reads all resources of files and directories once, keeping nothing.
#[must_use]
pub fn load(paths: &[PathBuf], compat: Compat) -> Update {
    Store::new(compat).update(read(paths))
}

/// Reads every file that holds resources: files that are named, and below directories all
/// `*.yaml`, `*.yml` and `*.json`. Sorted by path, each file once.
#[must_use]
pub fn read(paths: &[PathBuf]) -> Vec<File> {
    read_changed(paths, |_| None)
}

/// The same, but of a file that still has the version which is `known` the text is not read again.
///
/// Hidden files and directories (which the `..data` directories of Kubernetes volumes are, too:
/// their files are seen through the links beside them) and backups of editors are passed over.
#[must_use]
pub fn read_changed(paths: &[PathBuf], known: impl Fn(&Path) -> Option<Version>) -> Vec<File> {
    let Found { files, failed, .. } = find(paths);
    let now = SystemTime::now();
    let read = |path: PathBuf| {
        let known = known(&path);
        read_file(path, known, now)
    };
    let read = files.into_iter().filter_map(read).chain(failed);
    let explained = read.map(|(path, text)| (path, text.map_err(Exhausted::explain_io)));
    let mut files: Vec<File> = explained.collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

fn find(paths: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for path in paths {
        // What is named counts, whatever its name is.
        if path.is_dir() {
            found.walk(path);
        } else {
            found.files.insert(path.clone());
        }
    }
    found
}

#[derive(Default)]
struct Found {
    files: BTreeSet<PathBuf>,
    failed: Vec<File>,
    /// Directories and symbolic links: what else is to be found depends on them.
    ways: BTreeSet<PathBuf>,
    /// Device and inode of directories that were looked into: symbolic links can make loops.
    seen: BTreeSet<(u64, u64)>,
}

impl Found {
    fn walk(&mut self, dir: &Path) {
        match self.try_walk(dir) {
            // Removed while we were looking; what it held is gone.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => self.failed.push((dir.into(), Err(cause))),
            Ok(()) => {}
        }
    }

    fn try_walk(&mut self, dir: &Path) -> io::Result<()> {
        let metadata = fs::metadata(dir)?;
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
        // Of several ways to the same directory, always the same one is taken.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if is_passed_over(&entry.file_name().to_string_lossy()) {
                continue;
            }
            // Mostly the directory says what it is, which saves a look at each.
            let found = entry.file_type().ok().filter(|of| !of.is_symlink());
            let is_dir = found.map_or_else(|| path.is_dir(), |of| of.is_dir());
            if is_dir || found.is_none() {
                self.ways.insert(path.clone());
            }
            if is_dir {
                self.walk(&path);
            } else if is_resource_file(&path) {
                self.files.insert(path);
            }
        }
        Ok(())
    }
}

fn is_passed_over(name: &str) -> bool {
    name.starts_with(['.', '#']) || name.ends_with('~')
}

fn is_resource_file(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known))
}

/// `None`: the file was removed after its directory was listed.
fn read_file(path: PathBuf, known: Option<Version>, now: SystemTime) -> Option<File> {
    match read_text(&path, known, now) {
        // A symbolic link that leads nowhere is a file that cannot be read, not one that is gone.
        Err(cause)
            if cause.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() =>
        {
            None
        }
        text => Some((path, text)),
    }
}

fn read_text(path: &Path, known: Option<Version>, now: SystemTime) -> io::Result<Text> {
    let metadata = fs::metadata(path)?;
    let size = metadata.len();
    if size > MAX_BYTES as u64 {
        let message = format!("it has {size} bytes; at most {MAX_BYTES} are read");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    if !metadata.is_file() {
        // Reading a FIFO would wait for a writer.
        let message = "it is not a regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    if known == Some(Version::of(&metadata)) {
        return Ok(Text::Unchanged);
    }
    let mut file = fs::File::open(path)?;
    // Of what is read, and from before that: what is written meanwhile makes another one.
    let version = Version::of(&file.metadata()?);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Text::New(
        text.into(),
        version.is_at_rest(now).then_some(version),
    ))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let relative = |path: PathBuf| path.strip_prefix(root).unwrap().display().to_string();
        read(&[root.into()])
            .into_iter()
            .map(|(path, _)| relative(path))
            .collect()
    }

    #[test]
    fn files_are_found_sorted_and_backups_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("sub/.git")).unwrap();
        for name in [
            "b.yaml",
            "a.yml",
            "c.json",
            "d.txt",
            ".hidden.yaml",
            "e.yaml~",
            "#f.yaml#",
            ".g.yaml.swp",
            "sub/a.yaml",
            "sub/.git/x.yaml",
        ] {
            fs::write(root.join(name), "").unwrap();
        }
        symlink(root, root.join("sub/loop")).unwrap();
        assert_eq!(names(root), ["a.yml", "b.yaml", "c.json", "sub/a.yaml"]);
    }

    #[test]
    fn kubernetes_volumes_are_read_through_their_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("..2024")).unwrap();
        fs::write(root.join("..2024/a.yaml"), "x: 1").unwrap();
        symlink("..2024", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        assert_eq!(names(root), ["a.yaml"]);
        let files = read(&[root.into()]);
        assert!(matches!(&files[0].1, Ok(Text::New(text, _)) if **text == *"x: 1"));
    }

    #[test]
    fn what_cannot_be_read_is_reported_and_what_is_gone_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::write(root.join("latin1.yaml"), b"\xe4").unwrap();
        symlink("nowhere", root.join("dangling.yaml")).unwrap();
        let files = read(&[root.into(), root.join("missing.yaml")]);
        let failed: Vec<_> = files
            .iter()
            .map(|(path, text)| (path.file_name().unwrap(), text.is_err()))
            .collect();
        assert_eq!(failed.len(), 2, "{failed:?}");
        assert!(failed.iter().all(|(_, failed)| *failed));
    }

    #[test]
    fn a_text_is_read_again_when_the_file_may_have_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "x: 1").unwrap();
        let version = Version::of(&fs::metadata(&path).unwrap());
        let (now, later) = (
            SystemTime::now(),
            SystemTime::now() + Duration::from_mins(1),
        );
        let of = |known, now| read_text(&path, known, now).unwrap();
        assert!(
            matches!(of(None, now), Text::New(_, None)),
            "it may change at once"
        );
        assert!(matches!(of(None, later), Text::New(_, Some(of)) if of == version));
        assert!(matches!(of(Some(version), later), Text::Unchanged));
        let other = dir.path().join("other");
        fs::write(&other, "x: 2").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(matches!(of(Some(version), later), Text::New(text, _) if *text == *"x: 2"));
    }
}
