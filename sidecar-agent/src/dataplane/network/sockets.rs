//! Sockets of a namespace, by `sock_diag`: /proc/net/tcp also walks every connection, which
//! takes seconds on a busy node.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use sidecar_common::decide::Transport;

use crate::dataplane::netns::Netns;

/// What one answer of the kernel's fits in.
const BUFFER: usize = 64 * 1024;

/// The addresses of all TCP sockets that listen in a namespace, by inode number.
///
/// # Errors
/// If the namespace cannot be entered, or netlink fails.
pub fn listening(netns: &Netns) -> Result<BTreeMap<u64, SocketAddr>> {
    let mut found = BTreeMap::new();
    all(netns, Transport::Tcp, StateFlags::LISTEN, |socket| {
        let id = &socket.socket_id;
        let address = SocketAddr::new(id.source_address, id.source_port);
        found.insert(socket.inode.into(), address);
    })
    .with_context(|| format!("listing the listeners of {}", netns.path.display()))?;
    Ok(found)
}

/// The address of the TCP socket that listens in a namespace and has this cookie.
///
/// # Errors
/// As [`listening`].
pub fn listener(netns: &Netns, cookie: u64) -> Result<Option<SocketAddr>> {
    let mut found = None;
    all(netns, Transport::Tcp, StateFlags::LISTEN, |socket| {
        let id = &socket.socket_id;
        if u64::from_ne_bytes(id.cookie) == cookie {
            found = Some(SocketAddr::new(id.source_address, id.source_port));
        }
    })
    .with_context(|| format!("listing the listeners of {}", netns.path.display()))?;
    Ok(found)
}

/// Where the socket that is bound to this port of its own connects to: by TCP one that has no
/// answer yet.
///
/// # Errors
/// As [`listening`].
pub fn connecting(netns: &Netns, transport: Transport, port: u16) -> Result<Option<SocketAddr>> {
    let mut found = None;
    let states = match transport {
        Transport::Tcp => StateFlags::SYN_SENT,
        Transport::Udp => StateFlags::ESTABLISHED,
    };
    all(netns, transport, states, |socket| {
        let id = &socket.socket_id;
        if id.source_port == port {
            found = Some(SocketAddr::new(id.destination_address, id.destination_port));
        }
    })
    .with_context(|| format!("listing the sockets of {}", netns.path.display()))?;
    Ok(found)
}

fn all(
    netns: &Netns,
    transport: Transport,
    states: StateFlags,
    mut each: impl FnMut(&InetResponseHeader) + Send,
) -> Result<()> {
    netns.run(|| {
        let protocol = match transport {
            Transport::Tcp => IPPROTO_TCP,
            Transport::Udp => IPPROTO_UDP,
        };
        let v4 = (AF_INET, SocketId::new_v4());
        let v6 = (AF_INET6, SocketId::new_v6());
        dump(v4, protocol, states.clone(), &mut each)?;
        dump(v6, protocol, states, &mut each)
    })?
}

fn dump(
    (family, any): (u8, SocketId),
    protocol: u8,
    states: StateFlags,
    each: &mut impl FnMut(&InetResponseHeader),
) -> Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: any,
    });
    let mut request = NetlinkMessage::new(header, request.into());
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .context("an answer that is not understood")?;
            let length = message.header.length as usize;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                    each(&socket.header);
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => bail!("{error}"),
                _ => {}
            }
            // Messages are aligned to four bytes.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
