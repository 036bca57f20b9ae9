//! The file system that a virtual machine starts with.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use cpio::newc;

/// What is at a path.
enum Entry {
    Directory,
    Link(PathBuf),
    /// The content of a file of this machine.
    File {
        from: PathBuf,
        mode: u32,
        mtime: u32,
    },
    Text {
        text: String,
    },
}

/// Files by their paths, which begin at the root.
#[derive(Default)]
pub struct Initramfs(BTreeMap<PathBuf, Entry>);

/// Directories that a system may have as symbolic links.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

impl Initramfs {
    /// One with the links from the root to `/usr` that this machine has.
    pub fn new() -> Self {
        let mut new = Self::default();
        for name in MERGED {
            if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
                new.insert(Path::new(name), Entry::Link(target));
            }
        }
        new
    }

    /// Adds a file of this machine by its own path, under the names of the directories behind
    /// symbolic links.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let no_file = || format!("there is no file {}", path.display());
        let dir = path.parent().with_context(no_file)?;
        let name = path.file_name().with_context(no_file)?;
        let to = dir.canonicalize().with_context(no_file)?.join(name);
        self.add_as(path, &to)
    }

    /// Adds a file of this machine under another path.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn add_as(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        let metadata =
            fs::metadata(from).with_context(|| format!("there is no file {}", from.display()))?;
        let entry = Entry::File {
            from: from.to_owned(),
            mode: metadata.mode() & 0o7777,
            mtime: u32::try_from(metadata.mtime()).unwrap_or_default(),
        };
        self.insert(to, entry);
        Ok(())
    }

    /// Adds a directory of this machine by its own path, without what `wanted` does not want.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn add_tree(&mut self, dir: &Path, wanted: fn(&Path) -> bool) -> anyhow::Result<()> {
        let entries =
            fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("cannot list {}", dir.display()))?
                .path();
            if !wanted(&path) {
                continue;
            }
            if path.is_dir() {
                self.add_tree(&path, wanted)?;
            } else if path.is_file() {
                self.add(&path)?;
            }
        }
        Ok(())
    }

    /// Adds a file with a text.
    pub fn add_text(&mut self, at: &Path, text: String) {
        self.insert(at, Entry::Text { text });
    }

    fn insert(&mut self, at: &Path, entry: Entry) {
        let at = at.strip_prefix("/").unwrap_or(at);
        for dir in at.ancestors().skip(1) {
            if !dir.as_os_str().is_empty() {
                self.0.entry(dir.to_owned()).or_insert(Entry::Directory);
            }
        }
        self.0.insert(at.to_owned(), entry);
    }

    /// Writes it as the kernel reads it: an archive of cpio, not compressed, which takes the least
    /// time where the processor is an emulated one.
    ///
    /// # Errors
    /// When a file cannot be read, or the archive not written.
    pub fn write(&self, to: &Path) -> anyhow::Result<()> {
        let file = File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
        let mut out = BufWriter::new(file);
        for (number, (path, entry)) in (1..).zip(&self.0) {
            write_entry(&mut out, number, path, entry)
                .with_context(|| format!("cannot put {} into an initramfs", path.display()))?;
        }
        newc::trailer(&mut out)
            .and_then(Write::flush)
            .with_context(|| format!("cannot write {}", to.display()))
    }
}

fn write_entry(out: &mut impl Write, number: u32, path: &Path, entry: &Entry) -> io::Result<()> {
    const DIRECTORY: u32 = 0o040_755;
    const LINK: u32 = 0o120_777;
    const FILE: u32 = 0o100_000;
    let name = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
    let header = newc::Builder::new(name).ino(number).nlink(1);
    match entry {
        Entry::Directory => put(out, header.mode(DIRECTORY).nlink(2), b""),
        Entry::Link(target) => put(
            out,
            header.mode(LINK),
            target.as_os_str().as_encoded_bytes(),
        ),
        Entry::Text { text } => put(out, header.mode(FILE | 0o644), text.as_bytes()),
        Entry::File { from, mode, mtime } => put(
            out,
            header.mode(FILE | mode).mtime(*mtime),
            &fs::read(from)?,
        ),
    }
}

fn put(out: &mut impl Write, header: newc::Builder, content: &[u8]) -> io::Result<()> {
    let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut file = header.write(out, size);
    file.write_all(content)?;
    file.finish().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        let mut initramfs = Initramfs::default();
        initramfs.add_text(Path::new("/b/c/d.txt"), "text".to_owned());
        initramfs.insert(Path::new("/b-link"), Entry::Link("b".into()));
        initramfs.write(&archive).unwrap();
        let mut file = File::open(&archive).unwrap();
        let mut names = Vec::new();
        loop {
            let reader = newc::Reader::new(file).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            names.push((entry.name().to_owned(), entry.mode(), entry.file_size()));
            file = reader.finish().unwrap();
        }
        let expected = [
            ("b", 0o040_755, 0),
            ("b/c", 0o040_755, 0),
            ("b/c/d.txt", 0o100_644, 4),
            ("b-link", 0o120_777, 1),
        ];
        assert_eq!(
            names,
            expected.map(|(name, mode, size)| (name.to_owned(), mode, size))
        );
    }
}
