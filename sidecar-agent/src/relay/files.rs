//! Unix sockets in the file system: reaching them without following a workload's symlinks out of
//! its root, whatever the length of the path.
//!
//! A path is opened (`O_PATH`) and the socket then named `/proc/self/fd/<n>`: what was looked at is
//! what is used, and `sun_path`'s 108 bytes are no limit.

use std::{
    ffi::{OsStr, OsString},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, chmodat, fstat, openat, openat2,
        statat, unlinkat,
    },
    io::Errno,
    net::SocketAddrUnix,
};

/// Bytes of a path that fit `sun_path` with the terminating zero.
const SHORT: usize = 107;

/// The address under which the unix socket at `path` can be connected to, valid while the
/// descriptor with it, if any, is open.
pub(super) fn address_of(
    root: Option<BorrowedFd<'_>>,
    path: &str,
) -> Result<(SocketAddrUnix, Option<OwnedFd>), Errno> {
    if root.is_none() && path.len() <= SHORT {
        return Ok((SocketAddrUnix::new(path)?, None));
    }
    let file = open(root, Path::new(path), OFlags::empty())?;
    Ok((SocketAddrUnix::new(descriptor_path(&file))?, Some(file)))
}

/// Opens `path` as `O_PATH`, inside `root` where there is one.
fn open(root: Option<BorrowedFd<'_>>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
    match root {
        Some(root) => openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT),
        None => openat(CWD, path, flags, Mode::empty()),
    }
}

fn descriptor_path(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// A name in an open directory: where a unix socket is, or is to be.
#[derive(Debug)]
pub(super) struct Place {
    dir: OwnedFd,
    name: OsString,
    /// The address that people know, where it can be used as it is.
    plain: Option<PathBuf>,
}

impl Place {
    /// Opens the directory of `path`.
    ///
    /// # Errors
    /// `EINVAL` where the path names no file; else as open(2).
    pub(super) fn open(root: Option<BorrowedFd<'_>>, path: &str) -> Result<Self, Errno> {
        let whole = Path::new(path);
        let name = whole.file_name().ok_or(Errno::INVAL)?.to_owned();
        let parent = whole
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let dir = open(root, parent.unwrap_or(Path::new(".")), OFlags::DIRECTORY)?;
        let plain = (root.is_none() && path.len() <= SHORT).then(|| whole.to_owned());
        Ok(Self { dir, name, plain })
    }

    /// The address to bind. The kernel shows it to clients (getpeername), so the plain path is
    /// used where it can be.
    pub(super) fn address(&self) -> Result<SocketAddrUnix, Errno> {
        match &self.plain {
            Some(path) => SocketAddrUnix::new(path),
            None => SocketAddrUnix::new(Path::new(&descriptor_path(&self.dir)).join(&self.name)),
        }
    }

    /// What is there now, not following a symlink.
    pub(super) fn find(&self) -> Result<Found, Errno> {
        let file = openat(
            &self.dir,
            &self.name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let stat = fstat(&file)?;
        Ok(Found { file, stat })
    }

    /// Removes the socket `id` if it is still what is there; whether it was.
    pub(super) fn remove(&self, id: FileId) -> Result<bool, Errno> {
        let now = match statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            now => now?,
        };
        if FileId::of(&now) != id {
            return Ok(false);
        }
        unlinkat(&self.dir, &self.name, AtFlags::empty())?;
        Ok(true)
    }

    /// The last component.
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }
}

/// Identity of a file: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    fn of(stat: &Stat) -> Self {
        Self(stat.st_dev, stat.st_ino)
    }
}

/// A file that was found at a [`Place`], held by a descriptor.
#[derive(Debug)]
pub(super) struct Found {
    file: OwnedFd,
    stat: Stat,
}

impl Found {
    pub(super) fn id(&self) -> FileId {
        FileId::of(&self.stat)
    }

    /// What it is, in words; `None`: a socket.
    pub(super) fn other_than_socket(&self) -> Option<&'static str> {
        Some(match FileType::from_raw_mode(self.stat.st_mode) {
            FileType::Socket => return None,
            FileType::RegularFile => "a regular file",
            FileType::Directory => "a directory",
            FileType::Symlink => "a symbolic link",
            _ => "a file that is no socket",
        })
    }

    /// Address to connect to this very socket.
    pub(super) fn address(&self) -> Result<SocketAddrUnix, Errno> {
        SocketAddrUnix::new(descriptor_path(&self.file))
    }

    /// Sets the permissions of this very file, whatever its name stands for by now.
    pub(super) fn set_mode(&self, mode: Mode) -> Result<(), Errno> {
        chmodat(CWD, descriptor_path(&self.file), mode, AtFlags::empty())
    }
}

impl AsFd for Found {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
