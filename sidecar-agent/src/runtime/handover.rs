//! From one agent to the next, without a connection that is refused: the relay's listening sockets and
//! the admin socket go over, whoever connects meanwhile waits in their backlogs.
//!
//! The next agent loads its programs first: if they do not load, the one before is never asked. Then
//! it asks over the admin socket, borrows the sockets (`pidfd_getfd`), takes over what is in the
//! kernel, and confirms. Without its confirmation the agent before goes on where it was.

use std::{
    collections::BTreeMap,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::relays::{Paused, Sockets};
use crate::{
    observe::admin::{self, Answer, Offer, OfferedSocket, Request},
    relay::Role,
};

/// The agent before, which waits for a confirmation.
pub struct Predecessor {
    stream: UnixStream,
    process: OwnedFd,
    offer: Offer,
}

/// Asks the agent that runs with this run directory to hand over; `None`: none runs.
///
/// # Errors
/// If it refuses.
pub fn ask(run_dir: &Path) -> Result<Option<Predecessor>> {
    let path = admin::socket_path(run_dir);
    let Ok(stream) = UnixStream::connect(&path) else {
        return Ok(None);
    };
    match admin::ask_on(&stream, &Request::TakeOver).context("taking over from the agent before")? {
        Answer::Offer(offer) => Ok(Some(Predecessor {
            process: open(offer.pid)?,
            stream,
            offer,
        })),
        Answer::Error(message) => bail!("the agent before does not hand over: {message}"),
        _ => bail!("the agent before has answered something else"),
    }
}

fn open(pid: i32) -> Result<OwnedFd> {
    let pid = Pid::from_raw(pid).context("the agent before has told no process id")?;
    pidfd_open(pid, PidfdFlags::empty()).context("opening the agent before")
}

impl Predecessor {
    /// Its admin socket.
    ///
    /// # Errors
    /// If it has ended.
    pub fn admin(&self) -> Result<OwnedFd> {
        self.borrow(self.offer.admin)
    }

    /// The relay's listening sockets, by workload; those of TCP only if `tcp`.
    ///
    /// # Errors
    /// If it has ended.
    pub fn sockets(&self, tcp: bool) -> Result<BTreeMap<String, Sockets>> {
        let mut sockets: BTreeMap<String, Sockets> = BTreeMap::new();
        for offered in &self.offer.sockets {
            if tcp || matches!(offered.role, Role::Unix(_)) {
                let socket = self.borrow(offered.descriptor)?;
                let of_workload = sockets.entry(offered.workload.clone()).or_default();
                of_workload.insert(offered.role.clone(), socket);
            }
        }
        Ok(sockets)
    }

    /// Tells it that everything is taken over, with the relay's TCP listeners or without.
    ///
    /// # Errors
    /// If it has ended.
    pub fn confirm(self, tcp: bool) -> Result<()> {
        let mut line = serde_json::to_vec(&Request::Taken { tcp })?;
        line.push(b'\n');
        std::io::Write::write_all(&mut &self.stream, &line)
            .context("telling the agent before that it is relieved")
    }

    fn borrow(&self, descriptor: i32) -> Result<OwnedFd> {
        pidfd_getfd(&self.process, descriptor, PidfdGetfdFlags::empty())
            .context("borrowing a listening socket of the agent before (CAP_SYS_PTRACE is needed)")
    }
}

/// What is handed over. Valid as long as these sockets are open.
pub fn offer(admin: i32, paused: &BTreeMap<String, Paused>) -> Offer {
    let mut sockets = Vec::new();
    for (workload, paused) in paused {
        let offered = paused.sockets.iter().map(|(role, socket)| OfferedSocket {
            workload: workload.clone(),
            role: role.clone(),
            descriptor: socket.as_raw_fd(),
        });
        sockets.extend(offered);
    }
    Offer {
        pid: getpid().as_raw_nonzero().get(),
        admin,
        sockets,
    }
}
