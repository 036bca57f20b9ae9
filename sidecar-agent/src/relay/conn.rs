//! One connection: two sockets and what is between them.

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::epoll::{self, EventFlags},
    io::Errno,
    net::sockopt,
};

use super::{
    engine::Listener,
    flow::{Flow, Kit, Meters, Next},
    stats::{Counters, Tally, Tallying},
    token::Token,
};
use crate::compile::Target;

/// A connection. Small, and nothing else is held for it while it is idle.
#[derive(Debug)]
pub(super) struct Conn {
    /// See [`Token`].
    pub(super) generation: u32,
    /// Is on the list of those that get another turn.
    pub(super) queued: bool,
    pub(super) client: End,
    pub(super) stage: Stage,
    pub(super) tally: Option<Tallying>,
}

#[derive(Debug)]
pub(super) enum Stage {
    Dialing(Box<Dialing>),
    Relaying(Relaying),
}

/// Looking for a target that can be connected.
pub(super) struct Dialing {
    pub(super) listener: Arc<Listener>,
    pub(super) targets: Arc<[Target]>,
    /// The last target is where the client was going: see [`Route::DialElse`].
    ///
    /// [`Route::DialElse`]: super::Route::DialElse
    last_resort: bool,
    /// Index of the target in hand.
    pub(super) current: usize,
    /// The socket on its way there.
    pub(super) pending: Option<End>,
    /// When to give up the target in hand; set when it has to be waited for.
    pub(super) deadline: Option<Instant>,
    /// When to look again: the deadline, or the next attempt before it.
    pub(super) timer: Option<Instant>,
    /// Why the last target could not be connected.
    pub(super) cause: Errno,
}

/// Both sides are there.
#[derive(Debug)]
pub(super) struct Relaying {
    pub(super) target: End,
    /// Client to target.
    up: Flow,
    /// Target to client.
    down: Flow,
}

/// Which socket of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Target,
}

/// What a connection is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Wait for events.
    Wait,
    /// Get another turn.
    Again,
    /// Both directions have ended.
    Ended,
    /// One side broke: reset the other too.
    Broken,
}

/// One of our two sockets.
#[derive(Debug)]
pub(super) struct End {
    pub(super) socket: OwnedFd,
    is_unix: bool,
    /// Watched for writability.
    armed: bool,
}

/// Watched for always. `RDHUP` tells that the end is near without a read, `PRI` of urgent data.
const INTEREST: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::PRI)
    .union(EventFlags::ET);

impl End {
    pub(super) fn new(socket: OwnedFd, is_unix: bool) -> Self {
        // TCP reports that it is writable only after it was not. A unix socket reports it with
        // every message its peer reads, so there it is asked for only when it is waited for.
        Self {
            socket,
            is_unix,
            armed: !is_unix,
        }
    }

    /// Adds the socket to `epoll`, which reports at once what there is.
    pub(super) fn watch(&self, epoll: &OwnedFd, token: Token) -> Result<(), Errno> {
        epoll::add(epoll, &self.socket, token.data(), self.interest())
    }

    fn arm(&mut self, epoll: &OwnedFd, token: Token, armed: bool) -> Result<(), Errno> {
        if self.armed == armed || !self.is_unix {
            return Ok(());
        }
        self.armed = armed;
        epoll::modify(epoll, &self.socket, token.data(), self.interest())
    }

    fn interest(&self) -> EventFlags {
        if self.armed {
            INTEREST | EventFlags::OUT
        } else {
            INTEREST
        }
    }

    /// Makes the close that follows a reset (TCP; a unix socket has none).
    pub(super) fn will_reset(&self) {
        reset_on_close(&self.socket);
    }
}

/// Makes the close that follows a reset. Where it fails the peer has gone already.
pub(super) fn reset_on_close(socket: &OwnedFd) {
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

impl Dialing {
    pub(super) fn new(listener: Arc<Listener>, targets: Arc<[Target]>, last_resort: bool) -> Self {
        Self {
            listener,
            targets,
            last_resort,
            current: 0,
            pending: None,
            deadline: None,
            timer: None,
            cause: Errno::DESTADDRREQ,
        }
    }

    /// Whether the target in hand is where the client was going, for want of the others.
    pub(super) fn is_last_resort(&self) -> bool {
        self.last_resort && self.current + 1 == self.targets.len()
    }

    /// Turns to the next target.
    pub(super) fn give_up(&mut self, cause: Errno) {
        if let Some(target) = self.targets.get(self.current) {
            tracing::debug!(?target, errno = %cause, "relay: target not connected");
        }
        self.cause = cause;
        self.current += 1;
        self.pending = None;
        self.deadline = None;
        self.timer = None;
    }
}

impl std::fmt::Debug for Dialing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            targets,
            current,
            cause,
            ..
        } = self;
        write!(
            f,
            "Dialing {{ targets: {targets:?}, current: {current}, cause: {cause} }}"
        )
    }
}

impl Relaying {
    pub(super) fn new(client: &End, target: End) -> Self {
        let (up, down) = (Flow::new(client.is_unix), Flow::new(target.is_unix));
        Self { target, up, down }
    }

    /// Takes in what an event on `side` says, and goes on.
    pub(super) fn event(
        &mut self,
        side: Side,
        flags: EventFlags,
        client: &mut End,
        with: &mut With<'_>,
    ) -> Outcome {
        let (end, from, to, token) = match side {
            Side::Client => (&mut *client, &mut self.up, &mut self.down, with.client),
            Side::Target => (&mut self.target, &mut self.down, &mut self.up, with.target),
        };
        if flags.contains(EventFlags::OUT)
            && !to.is_blocked()
            && end.arm(with.epoll, token, false).is_err()
        {
            return Outcome::Broken;
        }
        let ends = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        if flags.intersects(ends) {
            from.source_ends();
        }
        if flags.contains(EventFlags::PRI) {
            from.source_urgent();
        }
        if flags.intersects(ends | EventFlags::IN | EventFlags::PRI) {
            from.source_ready();
        }
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            to.sink_ready();
        }
        let outcome = self.advance(client, with);
        let from = match side {
            Side::Client => &self.up,
            Side::Target => &self.down,
        };
        // An error that no read will meet, as the reset of a client that has sent its end.
        let unmet = flags.contains(EventFlags::ERR) && from.is_deaf();
        if unmet && outcome != Outcome::Ended {
            Outcome::Broken
        } else {
            outcome
        }
    }

    /// Moves what can be moved, both ways.
    pub(super) fn advance(&mut self, client: &mut End, with: &mut With<'_>) -> Outcome {
        let Self { target, up, down } = self;
        let Counters {
            bytes_to_target,
            bytes_to_client,
            bytes_spliced: spliced,
            ..
        } = with.counters;
        let to_target = Meters {
            bytes: bytes_to_target,
            of_listener: with.tally.map(|tally| &tally.bytes_to_target),
            spliced,
        };
        let to_client = Meters {
            bytes: bytes_to_client,
            of_listener: with.tally.map(|tally| &tally.bytes_to_client),
            spliced,
        };
        // Both in any case: what a side sent before it broke is still delivered.
        let up_next = up.pump(&client.socket, &target.socket, with.kit, to_target);
        let down_next = down.pump(&target.socket, &client.socket, with.kit, to_client);
        let (Ok(up_next), Ok(down_next)) = (up_next, down_next) else {
            return Outcome::Broken;
        };
        if up.is_done() && down.is_done() {
            return Outcome::Ended;
        }
        if up.is_blocked() && target.arm(with.epoll, with.target, true).is_err()
            || down.is_blocked() && client.arm(with.epoll, with.client, true).is_err()
        {
            return Outcome::Broken;
        }
        if Next::Turn == up_next || Next::Turn == down_next {
            Outcome::Again
        } else {
            Outcome::Wait
        }
    }
}

/// What a connection needs of its thread to go on.
pub(super) struct With<'a> {
    pub(super) epoll: &'a OwnedFd,
    pub(super) kit: &'a mut Kit,
    pub(super) counters: &'a Counters,
    /// Where the connection is counted as well.
    pub(super) tally: Option<&'a Tally>,
    /// The tokens of its two sockets.
    pub(super) client: Token,
    pub(super) target: Token,
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::relay::token::Kind;

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Conn>() <= 200, "{} bytes", size_of::<Conn>());
    }

    #[test]
    fn an_answer_is_delivered_though_the_request_no_longer_can_be() {
        let (mut far_client, client) = UnixStream::pair().unwrap();
        let (target, mut far_target) = UnixStream::pair().unwrap();
        for socket in [&client, &target] {
            socket.set_nonblocking(true).unwrap();
        }
        let mut client = End::new(client.into(), true);
        let mut relaying = Relaying::new(&client, End::new(target.into(), true));
        far_target.write_all(b"too large").unwrap();
        drop(far_target);
        far_client.write_all(b"a long request").unwrap();

        // Both events in one go: the request meets the closed socket before the answer is read.
        relaying.down.source_ready();
        let outcome = relaying.event(
            Side::Client,
            EventFlags::IN,
            &mut client,
            &mut With {
                epoll: &epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
                kit: &mut Kit::new(),
                counters: &Counters::default(),
                tally: None,
                client: Token::new(Kind::Client, 0, 0),
                target: Token::new(Kind::Target, 0, 0),
            },
        );
        assert_eq!(outcome, Outcome::Broken);
        let patience = Some(Duration::from_secs(5));
        far_client.set_read_timeout(patience).unwrap();
        let mut answer = [0; 9];
        far_client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"too large");
    }
}
