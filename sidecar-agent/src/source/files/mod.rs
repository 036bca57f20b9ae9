//! Resources in files: finding and reading them ([`read`]), keeping what was last good of them
//! ([`Store`]), and noticing changes ([`watch()`]).

pub mod places;
pub mod store;
pub mod watch;

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

pub use places::Places;
pub use store::{Store, Update};
pub use watch::{Watch, watch};

use crate::{
    limits::Exhausted,
    model::{Compat, tree::MAX_BYTES},
};

/// A file that holds resources, and its text or why it could not be read.
pub type File = (PathBuf, io::Result<String>);

/// Reads all resources of files and directories once, keeping nothing.
#[must_use]
pub fn load(paths: &[PathBuf], compat: Compat) -> Update {
    Store::new(compat).update(read(paths))
}

/// Reads every file that holds resources: files that are named, and below directories all
/// `*.yaml`, `*.yml` and `*.json`. Sorted by path, each file once.
///
/// Hidden files and directories (which the `..data` directories of Kubernetes volumes are, too:
/// their files are seen through the links beside them) and backups of editors are passed over.
#[must_use]
pub fn read(paths: &[PathBuf]) -> Vec<File> {
    let Found { files, failed, .. } = find(paths);
    let read = files.into_iter().filter_map(read_file).chain(failed);
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
            if path.is_dir() {
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
fn read_file(path: PathBuf) -> Option<File> {
    let text = fs::metadata(&path).and_then(|metadata| {
        if metadata.len() > MAX_BYTES as u64 {
            let message = format!(
                "it has {} bytes; at most {MAX_BYTES} are read",
                metadata.len()
            );
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        if !metadata.is_file() {
            // Reading a FIFO would wait for a writer.
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ));
        }
        fs::read_to_string(&path)
    });
    match text {
        // A symbolic link that leads nowhere is a file that cannot be read, not one that is gone.
        Err(cause)
            if cause.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() =>
        {
            None
        }
        text => Some((path, text)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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
        assert_eq!(files[0].1.as_deref().unwrap(), "x: 1");
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
}
