//! How Envoy is started: where, as whom, with what configuration.

use std::{
    ffi::OsString,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    process::Command,
};

use anyhow::Context as _;

use super::{Bootstrap, Envoy, PROXY_ID, UserNamespace, process::ACCESS_LOG};
use crate::{Namespace, Place, tempdir::TempDir};

/// How an Envoy is to be started.
#[derive(Debug)]
pub struct EnvoyBuilder<'a> {
    netns: &'a Namespace,
    place: Place<'a>,
    bootstrap: Bootstrap,
    workers: u32,
    net_admin: bool,
    uid: u32,
    userns: Option<&'a UserNamespace>,
}

impl<'a> EnvoyBuilder<'a> {
    pub(super) fn new(netns: &'a Namespace, place: Place<'a>) -> Self {
        Self {
            netns,
            place: place.netns(netns),
            bootstrap: Bootstrap::default(),
            workers: 1,
            net_admin: false,
            uid: PROXY_ID,
            userns: None,
        }
    }

    /// What it is to do.
    #[must_use]
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.bootstrap = bootstrap;
        self
    }

    /// How many workers it has, each with sockets of its own (`SO_REUSEPORT`); one unless set.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// Leaves it the one capability that transparent sockets need.
    #[must_use]
    pub fn net_admin(mut self) -> Self {
        self.net_admin = true;
        self
    }

    /// As user 0, known by its group 1337 only: so Istio's injector has it in TPROXY mode. It may do
    /// no more than otherwise.
    #[must_use]
    pub fn as_root(mut self) -> Self {
        self.uid = 0;
        self
    }

    /// In a user namespace, as that one's user 1337.
    #[must_use]
    pub fn userns(mut self, userns: &'a UserNamespace) -> Self {
        self.userns = Some(userns);
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// As [`Envoy::start`].
    pub fn start(self) -> anyhow::Result<Envoy> {
        let dir = TempDir::new("sidecar-envoy-")?;
        let access = dir.path().join(ACCESS_LOG);
        File::create(&access).with_context(|| format!("cannot make {}", access.display()))?;
        // Envoy, another user, opens it by its path.
        for (path, mode) in [(dir.path(), 0o711), (&*access, 0o666)] {
            fs::set_permissions(path, Permissions::from_mode(mode))
                .with_context(|| format!("cannot open {} to others", path.display()))?;
        }
        let config = self.bootstrap.json(&access).to_string();
        let mut command = self.command();
        command.args(["--config-yaml", &config]);
        command.args(["--concurrency", &self.workers.to_string()]);
        command.args(["--disable-hot-restart", "--log-level", "warning"]);
        // To the access log at once.
        command.args([
            "--file-flush-interval-msec",
            "10",
            "--file-flush-min-size-kb",
            "0",
        ]);
        Envoy::run(&command, self.netns, dir)
    }

    /// Envoy at its place as its user, without capabilities and without a way to new ones. The
    /// program is run as its standard input: that user may not be allowed to reach where it is.
    fn command(&self) -> Command {
        let (program, more): (_, Vec<OsString>) = match self.userns {
            Some(userns) => {
                let mut user = OsString::from("--user=");
                user.push(userns.path());
                ("nsenter", vec![user, "--".into(), "setpriv".into()])
            }
            None => ("setpriv", Vec::new()),
        };
        let mut command = self.place.command(program);
        let capabilities = if self.net_admin {
            "-all,+net_admin"
        } else {
            "-all"
        };
        command.args(more);
        command.args([
            &format!("--reuid={}", self.uid),
            &format!("--regid={PROXY_ID}"),
            "--clear-groups",
            "--no-new-privs",
            &format!("--inh-caps={capabilities}"),
            &format!("--ambient-caps={capabilities}"),
            &format!("--bounding-set={capabilities}"),
            "--",
            "/proc/self/fd/0",
        ]);
        command
    }
}
