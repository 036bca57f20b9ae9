//! Acceleration of the hop between an application and its proxy: what an `sk_msg` program has to
//! know to hand a message to the other end past TCP, and when it may.
//!
//! A message that is handed over is put into a queue beside the other end's receive queue, and read
//! before it. So it keeps its place only if nothing that was sent earlier is still with TCP; and
//! nobody holds back who writes, but for [`BUDGET`].

/// Key of `HOPS` and `MEMBERS`: both ends of a connection as one of them sees it. In
/// `HOPS` that is the application.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ends {
    /// The network namespace's cookie.
    pub netns: u64,
    /// This end's IPv4 address, in network order.
    pub here: u32,
    /// The other end's.
    pub there: u32,
    /// This end's port.
    pub here_port: u16,
    /// The other end's.
    pub there_port: u16,
    /// Always zero.
    pub pad: u32,
}

impl Ends {
    /// The same as the other end sees it.
    #[inline(always)]
    #[must_use]
    pub const fn seen_from_there(&self) -> Self {
        Self {
            netns: self.netns,
            here: self.there,
            there: self.here,
            here_port: self.there_port,
            there_port: self.here_port,
            pad: 0,
        }
    }
}

/// Which end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The application, which connected.
    App,
    /// The proxy, which accepted.
    Proxy,
}

/// What is known of one end (`HOPS`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct End {
    /// The kernel's address of its `struct sock`; 0: it has not joined.
    pub socket: u64,
    /// The cookie of that socket, which tells whether it is still the one at that address.
    pub cookie: u64,
    /// Bytes that were handed over to it since its queue was last seen empty.
    pub unread: u32,
    /// `End::NON_BLOCKING` and so on.
    pub flags: u32,
}

impl End {
    /// Its file is non-blocking: a blocking receiver may be told `EAGAIN`.
    pub const NON_BLOCKING: u32 = 1;
    /// It has left `MEMBERS`.
    pub const LEFT: u32 = 2;
    /// The callback for round trips was turned on for it by us.
    pub const CALLED_BACK: u32 = 4;
}

/// One accelerated connection (`HOPS`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hop {
    /// The application's end.
    pub app: End,
    /// The proxy's end.
    pub proxy: End,
    /// Who sent last: 0 the application, 1 the proxy.
    pub turn: u32,
    /// Bytes it has sent since the other end sent.
    pub run: u32,
    /// Messages it has sent since then.
    pub messages: u32,
    /// How far it is on its way to be demoted: see [`STRIKES`].
    pub strikes: u32,
    /// Not zero: no message is handed over any more, and both ends leave.
    pub demoted: u32,
    /// Always zero.
    pub pad: u32,
}

/// Most bytes that are with an end, handed over and not read: what acceleration adds to what a
/// reader that does not read makes the kernel keep.
pub const BUDGET: u32 = 256 << 10;

/// Most bytes that are handed over in one direction without a word from the other. Beyond that it is
/// a transfer, at which TCP is better.
pub const MOST_RUN: u32 = 256 << 10;

/// Most messages likewise. Beyond that they are pipelined, which TCP gathers.
pub const MOST_MESSAGES: u32 = 8;

/// A message that is not handed over counts one, one that is handed over takes one back. With so
/// many, the connection is demoted for good.
pub const STRIKES: u32 = 32;

/// `TCP_ESTABLISHED` and what is open in one direction.
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;

/// What a message meets.
#[derive(Clone, Copy, Debug)]
pub struct Met {
    /// `tcp_sock::write_seq` of the sender.
    pub write_seq: u32,
    /// `sock_common::skc_state` of the sender.
    pub state: u8,
    /// The sender or the receiver has a protocol above TCP (kTLS), or the sender has an error or copies
    /// nothing (`SO_ZEROCOPY`).
    pub is_special: bool,
    /// `tcp_sock::copied_seq` of the receiver.
    pub copied_seq: u32,
    /// `sock_common::skc_state` of the receiver.
    pub peer_state: u8,
    /// The queue beside the receiver's is empty.
    pub queue_is_empty: bool,
    /// `sock::sk_rcvlowat` of the receiver.
    pub low_water: i32,
}

impl Met {
    /// Whether it may be handed over and keep its place among all that was sent.
    #[inline(always)]
    #[must_use]
    pub fn keeps_order(&self) -> bool {
        // Nothing that TCP has, on its way or unread.
        self.write_seq == self.copied_seq
            && (self.state == ESTABLISHED || self.state == CLOSE_WAIT)
            // One that has closed its own direction reads on.
            && (self.peer_state == ESTABLISHED
                || self.peer_state == FIN_WAIT1
                || self.peer_state == FIN_WAIT2)
            && !self.is_special
            // It would be woken for less than it wants.
            && self.low_water <= 1
    }
}

impl Hop {
    /// Notes that an end sends so many bytes. Returns whether that is more than an end has to say at
    /// a time.
    #[inline(always)]
    pub fn take_turn(&mut self, side: Side, bytes: u32) -> bool {
        let turn = side as u32;
        if self.turn != turn {
            self.turn = turn;
            self.run = 0;
            self.messages = 0;
        }
        self.run = self.run.saturating_add(bytes);
        self.messages = self.messages.saturating_add(1);
        self.run > MOST_RUN || self.messages > MOST_MESSAGES
    }

    /// Notes that a message was handed over.
    #[inline(always)]
    pub fn handed_over(&mut self) {
        self.strikes = self.strikes.saturating_sub(1);
    }

    /// Notes that a message was not handed over. Returns whether it was the one that demotes.
    #[inline(always)]
    pub fn passed(&mut self) -> bool {
        self.strikes = self.strikes.saturating_add(1);
        if self.strikes < STRIKES || self.demoted != 0 {
            return false;
        }
        self.demoted = 1;
        true
    }
}

impl End {
    /// Whether `size` bytes more fit, with its queue as it is; they count from now on.
    #[inline(always)]
    pub fn take_in(&mut self, size: u32, queue_is_empty: bool) -> bool {
        let before = if queue_is_empty { 0 } else { self.unread };
        let after = before.saturating_add(size);
        if after > BUDGET {
            return false;
        }
        self.unread = after;
        true
    }
}

/// What is counted (`ACCELERATED`).
pub struct Accelerated;

impl Accelerated {
    /// A connection's second end has joined.
    pub const JOINED: u32 = 0;
    /// A message was handed over.
    pub const REDIRECTED: u32 = 1;
    /// A message went the ordinary way.
    pub const PASSED: u32 = 2;
    /// A connection was demoted.
    pub const DEMOTED: u32 = 3;
    /// An end of a demoted connection has left `MEMBERS`.
    pub const LEFT: u32 = 4;
    /// How many there are.
    pub const COUNT: u32 = 5;
    /// Their names, by index.
    pub const NAMES: [&str; Self::COUNT as usize] =
        ["joined", "redirected", "passed", "demoted", "left"];
}

/// Where the kernel keeps what the guards look at, in bytes, as its BTF tells: a constant of the
/// programs that the loader sets.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offsets {
    /// `sock::__sk_common.skc_cookie`.
    pub cookie: u32,
    /// `sock::__sk_common.skc_state`.
    pub state: u32,
    /// `sock::__sk_common.skc_flags`.
    pub flags: u32,
    /// `sock::sk_err`.
    pub err: u32,
    /// `sock::sk_rcvlowat`.
    pub low_water: u32,
    /// `sock::sk_user_data`, which leads to the `sk_psock`.
    pub user_data: u32,
    /// `sock::sk_socket`.
    pub socket: u32,
    /// `socket::file`.
    pub file: u32,
    /// `file::f_flags`.
    pub file_flags: u32,
    /// `inet_connection_sock::icsk_ulp_ops`.
    pub ulp: u32,
    /// `tcp_sock::write_seq`.
    pub write_seq: u32,
    /// `tcp_sock::copied_seq`.
    pub copied_seq: u32,
    /// `sk_psock::ingress_msg`.
    pub queue: u32,
    /// `sk_psock::refcnt`.
    pub references: u32,
}

/// References that a `sk_psock` has while nobody uses it: that of `MEMBERS`.
pub const IDLE_REFERENCES: u32 = 1;
/// `SOCK_ZEROCOPY`, as a bit of `skc_flags`.
pub const ZEROCOPY: u64 = 1 << 18;
/// What of `sk_user_data` is no address.
pub const USER_DATA_FLAGS: u64 = 7;
/// `O_NONBLOCK` in `file::f_flags`.
pub const O_NONBLOCK: u32 = 0o4000;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Met = Met {
        write_seq: 7,
        state: ESTABLISHED,
        is_special: false,
        copied_seq: 7,
        peer_state: ESTABLISHED,
        queue_is_empty: true,
        low_water: 1,
    };

    #[test]
    fn whatever_could_overtake_is_left_to_tcp() {
        assert!(GOOD.keeps_order());
        let half_closed = Met {
            state: CLOSE_WAIT,
            peer_state: FIN_WAIT2,
            ..GOOD
        };
        assert!(half_closed.keeps_order());
        for bad in [
            Met {
                write_seq: 8,
                ..GOOD
            },
            Met {
                copied_seq: 6,
                ..GOOD
            },
            Met {
                state: FIN_WAIT1,
                ..GOOD
            },
            Met {
                peer_state: 7,
                ..GOOD
            },
            Met {
                is_special: true,
                ..GOOD
            },
            Met {
                low_water: 2,
                ..GOOD
            },
        ] {
            assert!(!bad.keeps_order(), "{bad:?}");
        }
    }

    #[test]
    fn unread_bytes_are_bounded() {
        let mut end = End::default();
        assert!(end.take_in(BUDGET, true));
        assert!(!end.take_in(1, false));
        assert_eq!(end.unread, BUDGET);
        assert!(end.take_in(1, true));
        assert_eq!(end.unread, 1);
        assert!(!end.take_in(BUDGET + 1, true));
    }

    #[test]
    fn turns_are_told_from_transfers() {
        let mut hop = Hop::default();
        for _ in 0..1000 {
            assert!(!hop.take_turn(Side::App, MOST_RUN));
            assert!(!hop.take_turn(Side::Proxy, MOST_RUN));
        }
        assert!(hop.take_turn(Side::Proxy, 1), "a transfer");
        let mut hop = Hop::default();
        for _ in 0..MOST_MESSAGES {
            assert!(!hop.take_turn(Side::App, 1));
        }
        assert!(hop.take_turn(Side::App, 1), "pipelined");
    }

    #[test]
    fn what_mostly_passes_is_demoted_once() {
        let mut hop = Hop::default();
        for _ in 0..10 * STRIKES {
            assert!(!hop.passed());
            hop.handed_over();
        }
        let demotions = (0..10 * STRIKES).filter(|_| hop.passed()).count();
        assert_eq!(demotions, 1);
    }
}
