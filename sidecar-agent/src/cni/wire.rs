//! What plugin and agent say to each other: one request, one reply, both a line of JSON. With the
//! request comes the pod's network namespace as a descriptor, so that it matters neither where the
//! runtime keeps it nor which mounts the agent sees.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Longest request.
pub const REQUEST_BYTES: usize = 16 * 1024;

/// A pod, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID as kubelet has it; old runtimes do not tell.
    pub uid: Option<String>,
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// To say when capture is in force. The descriptor of the network namespace comes along.
    Add {
        /// Whose.
        pod: PodRef,
        /// Its addresses there.
        addresses: Vec<IpAddr>,
        /// After so many milliseconds to answer in any case.
        patience: u64,
    },
    /// Whether capture is in force.
    Check {
        /// Whose.
        pod: PodRef,
    },
    /// The sandbox ends. The descriptor of its network namespace comes along if it still is there.
    Del {
        /// Whose.
        pod: PodRef,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Capture is in force (or suspended, as somebody wants it).
    InForce,
    /// The pod is none to be captured: why.
    Left(String),
    /// It is to be captured, and is not yet: why.
    NotYet(String),
    /// It was noted.
    Done,
    /// The request cannot be served: why.
    Refused(String),
}

/// Where the socket of the agent with this run directory is.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// Sends a request, all at once.
///
/// # Errors
/// As sendmsg(2).
pub fn send(socket: impl AsFd, request: &Request, netns: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = netns.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(&line)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent < line.len() {
        return Err(io::Error::other("the request was sent in part only"));
    }
    Ok(())
}

/// Receives what there is of a request, into `line`, with the descriptor if one came. `false`: there
/// is nothing more to come.
///
/// # Errors
/// As recvmsg(2).
pub fn receive(
    socket: impl AsFd,
    line: &mut Vec<u8>,
    netns: &mut Option<OwnedFd>,
) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            *netns = fds.last().or(netns.take());
        }
    }
    line.extend_from_slice(buffer.get(..received.bytes).unwrap_or_default());
    Ok(received.bytes > 0 && line.last() != Some(&b'\n') && line.len() < REQUEST_BYTES)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::MetadataExt, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn a_request_arrives_with_its_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let request = Request::Add {
            pod: PodRef {
                namespace: "prod".into(),
                name: "x".repeat(6000),
                uid: None,
            },
            addresses: vec!["fd00::1".parse().unwrap()],
            patience: 7,
        };
        send(&ours, &request, Some(file.as_fd())).unwrap();
        let (mut line, mut netns) = (Vec::new(), None);
        while receive(&theirs, &mut line, &mut netns).unwrap() {}
        assert_eq!(serde_json::from_slice::<Request>(&line).unwrap(), request);
        let arrived = File::from(netns.unwrap()).metadata().unwrap();
        assert_eq!(arrived.ino(), file.metadata().unwrap().ino());
    }
}
