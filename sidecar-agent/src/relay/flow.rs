//! One direction of a connection: bytes from one socket to the other.
//!
//! Small messages are copied through a buffer that all connections of a thread share; a direction
//! that shows bulk goes over to splice(2) through a borrowed pipe, and back when it calms down.
//! Measured: splice wins for bulk, copying for request and response.
//!
//! Sockets are watched edge-triggered, so a flow remembers what an event told it until a call
//! said `EAGAIN`.

use std::os::fd::OwnedFd;

use rustix::{
    io::{Errno, read, retry_on_intr},
    net::{SendFlags, Shutdown, send, shutdown},
    pipe::{SpliceFlags, splice},
};

use super::{
    pipes::{Pipe, Pipes},
    stats::Counter,
};

/// Size of the shared buffer.
const BUFFER: usize = 64 << 10;
/// This much until the source is empty is bulk: the direction goes over to splice.
const BULK: usize = 32 << 10;
/// Less than this until the source is empty is no bulk: the direction goes back to copying.
const CALM: usize = 16 << 10;
/// Bytes moved in one go before others get their turn.
const TURN: usize = 1 << 20;

/// What the flows of one thread share.
#[derive(Debug)]
pub(super) struct Kit {
    buffer: Box<[u8]>,
    pub(super) pipes: Pipes,
}

impl Kit {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            pipes: Pipes::default(),
        }
    }
}

/// Where a flow counts what it delivered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meters<'a> {
    /// All bytes of this direction.
    pub(super) bytes: &'a Counter,
    /// The same, of the connection's listener.
    pub(super) of_listener: Option<&'a Counter>,
    /// Of these, spliced ones.
    pub(super) spliced: &'a Counter,
}

impl Meters<'_> {
    fn delivered(&self, bytes: usize) {
        for counter in [Some(self.bytes), self.of_listener].into_iter().flatten() {
            counter.add(bytes as u64);
        }
    }
}

/// What has to happen for the flow to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// An event of either socket.
    Event,
    /// Another turn: there is more, but others wait too.
    Turn,
}

/// State of one direction.
#[derive(Debug)]
pub(super) struct Flow {
    source: Source,
    mode: Mode,
    /// The sink took less than it was offered: wait until it is writable.
    blocked: bool,
    /// A short read does not prove that the source is empty: its end, a descriptor passed along,
    /// or urgent data can stop a read too.
    exhaust: bool,
    /// Bytes read since the source was last empty.
    run: usize,
    /// Read but not delivered.
    held: Held,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Empty until an event says otherwise.
    Empty,
    /// May have bytes, or an end.
    Ready,
    /// Its end was read and is not passed on yet.
    Ended,
    /// Its end was passed on.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Copy,
    Splice,
    /// For good: splice is not to be trusted with this source.
    CopyOnly,
}

#[derive(Debug)]
enum Held {
    Nothing,
    /// A tail of the shared buffer, at most that long.
    Bytes {
        bytes: Box<[u8]>,
        sent: usize,
    },
    /// A pipe and the number of bytes in it.
    Pipe {
        pipe: Pipe,
        bytes: usize,
    },
}

impl Flow {
    /// A flow that has seen no event yet. `exhaust`: always read until `EAGAIN`, as a unix socket
    /// needs: a read stops where a descriptor was passed along.
    pub(super) fn new(exhaust: bool) -> Self {
        Self {
            source: Source::Empty,
            mode: Mode::Copy,
            blocked: false,
            exhaust,
            run: 0,
            held: Held::Nothing,
        }
    }

    /// The source may have bytes, its end, or an error.
    pub(super) fn source_ready(&mut self) {
        if self.source == Source::Empty {
            self.source = Source::Ready;
        }
    }

    /// The source will give its end without a further event.
    pub(super) fn source_ends(&mut self) {
        self.exhaust = true;
    }

    /// The source has urgent data: reads stop at it, and splice(2) never gets past it.
    pub(super) fn source_urgent(&mut self) {
        self.exhaust = true;
        self.mode = Mode::CopyOnly;
    }

    /// The sink may take bytes.
    pub(super) fn sink_ready(&mut self) {
        self.blocked = false;
    }

    /// Waits for the sink.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Everything was passed on, the end too.
    pub(super) fn is_done(&self) -> bool {
        self.source == Source::Done
    }

    /// Will not read before another event, and so not find an error of the source.
    pub(super) fn is_deaf(&self) -> bool {
        self.blocked || self.source == Source::Done
    }

    /// Moves what can be moved.
    ///
    /// # Errors
    /// Of either socket; what was read before has been delivered as far as the sink took it.
    pub(super) fn pump(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        kit: &mut Kit,
        meters: Meters<'_>,
    ) -> Result<Next, Errno> {
        let mut moved = 0;
        loop {
            if self.blocked {
                return Ok(Next::Event);
            }
            self.deliver(to, meters)?;
            if self.blocked {
                return Ok(Next::Event);
            }
            match self.source {
                Source::Ready if moved >= TURN => return Ok(Next::Turn),
                Source::Ready if self.mode == Mode::Splice => moved += self.fill(from, kit)?,
                Source::Ready => moved += self.copy(from, to, kit, meters)?,
                Source::Empty | Source::Done => {
                    self.give_back(kit);
                    return Ok(Next::Event);
                }
                Source::Ended => {
                    shutdown(to, Shutdown::Write)?;
                    self.source = Source::Done;
                }
            }
        }
    }

    /// Offers what is held to the sink.
    fn deliver(&mut self, to: &OwnedFd, meters: Meters<'_>) -> Result<(), Errno> {
        loop {
            let taken = match &self.held {
                Held::Bytes { bytes, sent } => send_some(to, bytes.get(*sent..).unwrap_or(&[])),
                Held::Pipe { pipe, bytes } if *bytes > 0 => splice_some(&pipe.read, to, *bytes),
                Held::Nothing | Held::Pipe { .. } => return Ok(()),
            };
            let taken = match taken {
                Ok(taken) => taken,
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(errno) => return Err(errno),
            };
            meters.delivered(taken);
            match &mut self.held {
                Held::Bytes { bytes, sent } => {
                    *sent += taken;
                    if *sent >= bytes.len() {
                        self.held = Held::Nothing;
                    }
                }
                Held::Pipe { bytes, .. } => {
                    *bytes = bytes.saturating_sub(taken);
                    meters.spliced.add(taken as u64);
                }
                Held::Nothing => {}
            }
        }
    }

    /// One read and one write through the shared buffer; the number of bytes read.
    fn copy(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        kit: &mut Kit,
        meters: Meters<'_>,
    ) -> Result<usize, Errno> {
        self.give_back(kit);
        let got = match retry_on_intr(|| read(from, &mut kit.buffer[..])) {
            Ok(0) => {
                self.source = Source::Ended;
                return Ok(0);
            }
            Ok(got) => got,
            Err(Errno::AGAIN) => {
                self.source_empty();
                return Ok(0);
            }
            Err(errno) => return Err(errno),
        };
        self.run = self.run.saturating_add(got);
        if self.run >= BULK && self.mode == Mode::Copy {
            self.mode = Mode::Splice;
        }
        if got < BUFFER && !self.exhaust {
            self.source_empty();
        }
        let bytes = kit.buffer.get(..got).unwrap_or(&[]);
        let taken = match send_some(to, bytes) {
            Ok(taken) => taken,
            Err(Errno::AGAIN) => 0,
            Err(errno) => return Err(errno),
        };
        meters.delivered(taken);
        if let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            // Offered once more by `deliver`, so that it is the kernel that says `EAGAIN`, and
            // with it promises an event.
            self.held = Held::Bytes {
                bytes: rest.into(),
                sent: 0,
            };
        }
        Ok(got)
    }

    /// Fills the pipe, which is empty; the number of bytes in it then.
    ///
    /// Filled only when empty, so that `EAGAIN` can only be the source's.
    fn fill(&mut self, from: &OwnedFd, kit: &mut Kit) -> Result<usize, Errno> {
        if !matches!(self.held, Held::Pipe { .. }) {
            let Ok(pipe) = kit.pipes.take() else {
                // Out of descriptors: copying goes on.
                self.mode = Mode::Copy;
                return Ok(0);
            };
            self.held = Held::Pipe { pipe, bytes: 0 };
        }
        let Held::Pipe { pipe, bytes } = &mut self.held else {
            return Ok(0);
        };
        match splice_some(from, &pipe.write, pipe.capacity) {
            Ok(0) => self.source = Source::Ended,
            Ok(got) => {
                *bytes = got;
                self.run = self.run.saturating_add(got);
                return Ok(got);
            }
            Err(Errno::AGAIN) => self.source_empty(),
            // A socket that cannot splice, such as one with an upper layer protocol.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => self.mode = Mode::CopyOnly,
            Err(errno) => return Err(errno),
        }
        Ok(0)
    }

    /// Nothing more to read for now: looks back at how much it was.
    fn source_empty(&mut self) {
        self.source = Source::Empty;
        if self.run < CALM && self.mode == Mode::Splice {
            self.mode = Mode::Copy;
        }
        self.run = 0;
    }

    /// Returns an empty pipe to the pool.
    fn give_back(&mut self, kit: &mut Kit) {
        if matches!(self.held, Held::Pipe { bytes: 0, .. })
            && let Held::Pipe { pipe, .. } = std::mem::replace(&mut self.held, Held::Nothing)
        {
            kit.pipes.put(pipe);
        }
    }
}

fn send_some(to: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    retry_on_intr(|| send(to, bytes, SendFlags::NOSIGNAL))
}

fn splice_some(from: &OwnedFd, to: &OwnedFd, bytes: usize) -> Result<usize, Errno> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    retry_on_intr(|| splice(from, None, to, None, bytes, flags))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    /// A flow between two unix socket pairs, and both far ends.
    struct Bench {
        flow: Flow,
        kit: Kit,
        from: OwnedFd,
        to: OwnedFd,
        writer: UnixStream,
        reader: UnixStream,
        bytes: Counter,
        spliced: Counter,
    }

    impl Bench {
        fn new() -> Self {
            let (writer, from) = UnixStream::pair().unwrap();
            let (to, reader) = UnixStream::pair().unwrap();
            for socket in [&writer, &from, &to, &reader] {
                socket.set_nonblocking(true).unwrap();
            }
            Self {
                flow: Flow::new(true),
                kit: Kit::new(),
                from: from.into(),
                to: to.into(),
                writer,
                reader,
                bytes: Counter::default(),
                spliced: Counter::default(),
            }
        }

        fn pump(&mut self) -> Result<Next, Errno> {
            self.flow.source_ready();
            self.flow.sink_ready();
            let meters = Meters {
                bytes: &self.bytes,
                of_listener: None,
                spliced: &self.spliced,
            };
            self.flow.pump(&self.from, &self.to, &mut self.kit, meters)
        }

        /// Pumps everything `writer` takes of `data`, and reads it all back.
        fn pass(&mut self, data: &[u8]) {
            let (mut put, mut got) = (0, Vec::new());
            let mut buffer = vec![0; 1 << 16];
            for _ in 0..10_000 {
                if got.len() >= data.len() {
                    break;
                }
                if put < data.len() {
                    put += self.writer.write(&data[put..]).unwrap_or(0);
                }
                self.pump().unwrap();
                while let Ok(n) = self.reader.read(&mut buffer) {
                    got.extend_from_slice(&buffer[..n]);
                }
            }
            assert!(got == data, "bytes changed on the way");
        }
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length)
            .map(|i| u8::try_from(i * 31 % 251).unwrap())
            .collect()
    }

    #[test]
    fn small_messages_are_copied() {
        let mut bench = Bench::new();
        for _ in 0..100 {
            bench.pass(b"ping");
        }
        assert_eq!((bench.bytes.get(), bench.spliced.get()), (400, 0));
        assert!(matches!(bench.flow.held, Held::Nothing));
    }

    #[test]
    fn bulk_is_spliced_and_the_pipe_given_back() {
        let mut bench = Bench::new();
        bench.pass(&pattern(1 << 20));
        assert!(bench.spliced.get() > 1 << 19, "{}", bench.spliced.get());
        bench.pump().unwrap();
        assert!(
            matches!(bench.flow.held, Held::Nothing),
            "{:?}",
            bench.flow.held
        );

        // A calm message or two later, copying again.
        bench.pass(b"ping");
        bench.pass(b"ping");
        let spliced = bench.spliced.get();
        bench.pass(b"ping");
        assert_eq!(bench.spliced.get(), spliced);
    }

    #[test]
    fn large_messages_are_spliced() {
        let mut bench = Bench::new();
        for _ in 0..10 {
            bench.pass(&pattern(BUFFER));
        }
        // All but the first, by which the flow got to know them.
        let spliced = bench.spliced.get();
        assert!(spliced >= 9 * BUFFER as u64, "{spliced}");
    }

    #[test]
    fn a_sink_that_does_not_take_stops_the_source() {
        let mut bench = Bench::new();
        let data = pattern(1 << 14);
        let mut put = 0;
        // Until the flow is blocked and the source's own queue is full.
        loop {
            match bench.writer.write(&data) {
                Ok(n) => put += n,
                Err(_) if bench.flow.is_blocked() => break,
                Err(_) => {}
            }
            bench.flow.source_ready();
            let meters = Meters {
                bytes: &bench.bytes,
                of_listener: None,
                spliced: &bench.spliced,
            };
            let next = bench
                .flow
                .pump(&bench.from, &bench.to, &mut bench.kit, meters)
                .unwrap();
            assert_eq!(next, Next::Event);
        }
        assert!(
            put < 4 << 20,
            "{put} bytes taken from a writer nobody reads"
        );
        let mut got = 0;
        let mut buffer = vec![0; 1 << 16];
        for _ in 0..10_000 {
            bench.pump().unwrap();
            while let Ok(n) = bench.reader.read(&mut buffer) {
                got += n;
            }
        }
        assert_eq!(got, put);
    }

    #[test]
    fn the_end_comes_after_the_last_byte() {
        let mut bench = Bench::new();
        bench.writer.write_all(b"last").unwrap();
        bench.writer.shutdown(std::net::Shutdown::Write).unwrap();
        bench.pump().unwrap();
        assert!(bench.flow.is_done());
        let mut got = Vec::new();
        bench.reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"last");
    }

    #[test]
    fn a_broken_sink_is_an_error() {
        let mut bench = Bench::new();
        let (_, gone) = UnixStream::pair().unwrap();
        bench.reader = gone;
        bench.writer.write_all(b"late").unwrap();
        assert_eq!(bench.pump(), Err(Errno::PIPE));
    }
}
