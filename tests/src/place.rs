//! Where and as whom a program runs.

use std::{ffi::OsStr, process::Command};

use crate::{Cgroup, Namespace};

/// A network namespace, a cgroup and a user; each is the test's own unless set.
#[derive(Clone, Copy, Default, Debug)]
pub struct Place<'a> {
    netns: Option<&'a Namespace>,
    cgroup: Option<&'a Cgroup>,
    user: Option<(u32, u32)>,
}

impl<'a> Place<'a> {
    /// Where the test itself is.
    #[must_use]
    pub fn here() -> Self {
        Self::default()
    }

    /// In a network namespace.
    #[must_use]
    pub fn netns(mut self, netns: &'a Namespace) -> Self {
        self.netns = Some(netns);
        self
    }

    /// In a cgroup.
    #[must_use]
    pub fn cgroup(mut self, cgroup: &'a Cgroup) -> Self {
        self.cgroup = Some(cgroup);
        self
    }

    /// As another user, without supplementary groups.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// The same place, as the test's own user.
    pub(crate) fn as_own_user(self) -> Self {
        Self { user: None, ..self }
    }

    pub(crate) fn get_user(&self) -> Option<(u32, u32)> {
        self.user
    }

    /// A command that runs `program` there. It is there before `program` begins, and the process
    /// id of the child is that of `program`: each helper replaces itself (`exec`).
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words: Vec<std::ffi::OsString> = Vec::new();
        if let Some(cgroup) = self.cgroup {
            let join = r#"echo $$ > "$0" && exec "$@""#;
            words.extend([
                "sh".into(),
                "-c".into(),
                join.into(),
                cgroup.procs_file().into(),
            ]);
        }
        if let Some(netns) = self.netns {
            // Not `ip netns exec`: it hides cgroup2 from what it runs.
            let mut net = std::ffi::OsString::from("--net=");
            net.push(netns.path());
            words.extend(["nsenter".into(), net, "--".into()]);
        }
        if let Some((uid, gid)) = self.user {
            let (uid, gid) = (format!("--reuid={uid}"), format!("--regid={gid}"));
            words.extend(["setpriv".into(), uid.into(), gid.into()]);
            words.extend(["--clear-groups".into(), "--".into()]);
        }
        words.push(program.as_ref().to_owned());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }
}
