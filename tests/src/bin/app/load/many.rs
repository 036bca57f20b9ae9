//! Many connections at once, from the end that accepted them.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context as _;
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, EventData, EventFlags},
    io::{Errno, ioctl_fionbio},
    net::{SocketFlags, accept_with, sockopt::set_tcp_nodelay},
};
use slab::Slab;

/// The listener's place; connections count from 0.
const LISTENER: u64 = u64::MAX;

/// The most that is read at once.
const BUFFER: usize = 256 << 10;

struct Connection {
    socket: OwnedFd,
    /// Bytes until the next answer.
    to_read: usize,
    /// Bytes of answers that could not be written yet.
    to_write: usize,
    /// Woken when it can be written to.
    writes: bool,
}

/// Sends `send` bytes for each `receive` bytes of a connection.
pub fn serve(listener: impl AsFd, receive: usize, send: usize) -> anyhow::Result<()> {
    let (mut buffer, answer) = (vec![0; BUFFER], vec![0xa5; send]);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    ioctl_fionbio(&listener, true)?;
    epoll::add(
        &epoll,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut connections: Slab<Connection> = Slab::new();
    let mut events = Vec::with_capacity(128);
    loop {
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let data = event.data.u64();
            if data == LISTENER {
                accept(&listener, &epoll, &mut connections, receive)?;
                continue;
            }
            let key = usize::try_from(data)?;
            let Some(connection) = connections.get_mut(key) else {
                continue;
            };
            if turn(connection, &mut buffer, &answer, receive).is_err() {
                // Closed by the client, which is all that can be wrong.
                connections.remove(key);
                continue;
            }
            let writes = connection.to_write > 0;
            if writes != connection.writes {
                connection.writes = writes;
                let flags = if writes {
                    EventFlags::OUT
                } else {
                    EventFlags::IN
                };
                epoll::modify(&epoll, &connection.socket, EventData::new_u64(data), flags)?;
            }
        }
    }
}

fn accept(
    listener: impl AsFd,
    epoll: &OwnedFd,
    connections: &mut Slab<Connection>,
    receive: usize,
) -> anyhow::Result<()> {
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match accept_with(&listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno).context("cannot accept"),
        };
        // A unix socket has no such option.
        let _ = set_tcp_nodelay(&socket, true);
        let entry = connections.vacant_entry();
        let data = EventData::new_u64(entry.key() as u64);
        epoll::add(epoll, &socket, data, EventFlags::IN)?;
        entry.insert(Connection {
            socket,
            to_read: receive,
            to_write: 0,
            writes: false,
        });
    }
}

/// Writes what is to be written, else reads once.
fn turn(
    connection: &mut Connection,
    buffer: &mut [u8],
    answer: &[u8],
    receive: usize,
) -> rustix::io::Result<()> {
    if connection.to_write == 0 {
        let received = match rustix::io::read(&connection.socket, buffer) {
            Ok(0) => return Err(Errno::CONNRESET),
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let mut received = received;
        while received >= connection.to_read {
            received -= connection.to_read;
            connection.to_read = receive;
            connection.to_write += answer.len();
        }
        connection.to_read -= received;
    }
    while connection.to_write > 0 {
        let size = connection.to_write.min(answer.len());
        match rustix::io::write(&connection.socket, &answer[..size]) {
            Ok(written) => connection.to_write -= written,
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
