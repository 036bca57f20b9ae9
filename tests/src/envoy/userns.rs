//! User namespaces, as those of pods with `hostUsers: false`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::poll::{DEADLINE, poll_result};

/// How many users one has: Kubernetes gives each pod as many.
const USERS: u32 = 65536;

/// A user namespace whose users are others outside. A process holds it for as long as this lives.
#[derive(Debug)]
pub struct UserNamespace {
    holder: Child,
    first: u32,
}

impl UserNamespace {
    /// Makes one whose user (and group) 0 is `first` outside, 1 the next, and so on.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub fn new(first: u32) -> anyhow::Result<Self> {
        // It ends when its standard input does: at the latest with this process.
        let holder = Command::new("unshare")
            .args(["--user", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run `unshare --user cat`")?;
        // From here on, dropping ends the process.
        let namespace = Self { holder, first };
        let own = fs::read_link("/proc/self/ns/user").context("cannot read /proc/self/ns/user")?;
        poll_result(DEADLINE, "a user namespace", || {
            ensure!(fs::read_link(namespace.path())? != own, "it is still ours");
            Ok(())
        })?;
        for map in ["uid_map", "gid_map"] {
            let file = namespace.proc().join(map);
            fs::write(&file, format!("0 {first} {USERS}"))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(namespace)
    }

    /// Who a user in there is outside.
    #[must_use]
    pub fn outside(&self, id: u32) -> u32 {
        self.first + id
    }

    /// A path that names it, for `nsenter --user=`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.proc().join("ns/user")
    }

    fn proc(&self) -> PathBuf {
        Path::new("/proc").join(self.holder.id().to_string())
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
