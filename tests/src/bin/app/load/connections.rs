//! Many connections at once, from the end that made them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use anyhow::{Context as _, bail};
use rustix::{
    buffer::spare_capacity,
    event::{
        PollFd, PollFlags,
        epoll::{self, EventData, EventFlags},
        poll,
    },
    fd::OwnedFd,
    io::Errno,
};
use socket2::{Domain, Socket, Type};

/// What is asked of an HTTP server.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n";

/// How many writes one connection makes before it is the next one's turn.
const TURN: u32 = 16;

/// What is done over each connection, piece by piece.
pub struct Work {
    /// Bytes of a write.
    size: usize,
    /// Bytes of a piece.
    piece: usize,
    /// Bytes that come back for a piece.
    answer: usize,
    /// The next piece does not wait for the answer to the one before.
    ahead: bool,
    /// How much a piece counts for.
    worth: u64,
    /// What is written.
    bytes: Vec<u8>,
}

impl Work {
    /// A message there, one back.
    pub fn round_trips(size: u32) -> Self {
        let bytes = size as usize;
        Self::new(bytes, bytes, bytes, false, 1)
    }

    /// Messages there, a byte back for each unit.
    pub fn stream(size: u32, unit: u32) -> Self {
        Self::new(size as usize, unit as usize, 1, true, unit.into())
    }

    /// An HTTP request there, a response of `answer` bytes back.
    fn requests(answer: usize) -> Self {
        let size = REQUEST.len();
        Self {
            bytes: REQUEST.to_vec(),
            ..Self::new(size, size, answer, false, 1)
        }
    }

    fn new(size: usize, piece: usize, answer: usize, ahead: bool, worth: u64) -> Self {
        let bytes = vec![0x5a; size];
        Self {
            size,
            piece,
            answer,
            ahead,
            worth,
            bytes,
        }
    }

    /// How much a piece counts for.
    pub fn worth(&self) -> u64 {
        self.worth
    }
}

/// Open connections.
pub struct Connections {
    epoll: OwnedFd,
    all: Vec<Connection>,
}

struct Connection {
    stream: TcpStream,
    /// Bytes of the piece that are not written yet.
    to_write: usize,
    /// Bytes of answers that are awaited.
    to_read: usize,
    /// Woken when it can be written to.
    writes: bool,
}

impl Connections {
    /// Makes them.
    pub fn open(address: SocketAddr, connections: u32) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut all = Vec::new();
        for number in 0..u64::from(connections) {
            let stream =
                connect(address).with_context(|| format!("cannot make connection {number}"))?;
            stream.set_nodelay(true)?;
            epoll::add(&epoll, &stream, EventData::new_u64(number), EventFlags::IN)?;
            all.push(Connection {
                stream,
                to_write: 0,
                to_read: 0,
                writes: false,
            });
        }
        Ok(Self { epoll, all })
    }

    /// HTTP requests, whose responses all have the length of the first one.
    pub fn requests(&mut self) -> anyhow::Result<Work> {
        let connection = &self.all.first().context("no connections are open")?.stream;
        connection.set_nonblocking(false)?;
        let mut connection: &TcpStream = connection;
        connection.write_all(REQUEST)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte).context("no response")?;
            head.extend(byte);
        }
        let text = String::from_utf8_lossy(&head).to_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .context("a response without a length")?;
        let body: usize = length.trim().parse()?;
        connection.read_exact(&mut vec![0; body])?;
        connection.set_nonblocking(true)?;
        Ok(Work::requests(head.len() + body))
    }

    /// Works until the time is over and everything that was begun is answered. Returns how many
    /// pieces that were, of all connections.
    pub fn work(&mut self, work: &Work, until: Instant) -> anyhow::Result<u64> {
        let mut run = Run {
            work,
            until,
            pieces: 0,
            busy: self.all.len(),
            buffer: vec![0; 256 << 10],
        };
        for number in 0..self.all.len() {
            self.all[number].begin(&mut run);
            self.turn(number, &mut run)?;
        }
        let mut events = Vec::with_capacity(self.all.len());
        while run.busy > 0 {
            epoll::wait(&self.epoll, spare_capacity(&mut events), None)?;
            for event in events.drain(..) {
                self.turn(usize::try_from(event.data.u64())?, &mut run)?;
            }
        }
        Ok(run.pieces)
    }

    fn turn(&mut self, number: usize, run: &mut Run<'_>) -> anyhow::Result<()> {
        let connection = &mut self.all[number];
        connection.receive(run)?;
        connection.send(run)?;
        let writes = connection.to_write > 0;
        if writes != connection.writes {
            connection.writes = writes;
            let flags = if writes {
                EventFlags::IN | EventFlags::OUT
            } else {
                EventFlags::IN
            };
            let data = EventData::new_u64(number as u64);
            epoll::modify(&self.epoll, &connection.stream, data, flags)?;
        }
        Ok(())
    }
}

/// Connects without blocking, as servers do that have many connections.
fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
        result => return Ok(result.map(|()| socket.into())?),
    }
    poll(&mut [PollFd::new(&socket, PollFlags::OUT)], None)?;
    match socket.take_error()? {
        Some(error) => Err(error.into()),
        None => Ok(socket.into()),
    }
}

/// What goes on.
struct Run<'a> {
    work: &'a Work,
    until: Instant,
    /// Begun so far.
    pieces: u64,
    /// Connections over which something is to be sent or awaited.
    busy: usize,
    buffer: Vec<u8>,
}

impl Connection {
    fn begin(&mut self, run: &mut Run<'_>) {
        self.to_write = run.work.piece;
        self.to_read += run.work.answer;
        run.pieces += 1;
    }

    fn next(&mut self, run: &mut Run<'_>) {
        if Instant::now() < run.until {
            self.begin(run);
        } else if self.to_read == 0 {
            run.busy -= 1;
        }
    }

    fn receive(&mut self, run: &mut Run<'_>) -> anyhow::Result<()> {
        // No call for nothing: of a stream few answers come.
        while self.to_read > 0 {
            let received = match rustix::io::read(&self.stream, &mut run.buffer) {
                Ok(0) => bail!("the server has closed"),
                Ok(received) => received,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno).context("cannot receive"),
            };
            let left = self.to_read.checked_sub(received);
            self.to_read = left.context("more came than was asked for")?;
            if self.to_read == 0 && self.to_write == 0 {
                self.next(run);
            }
            if received < run.buffer.len() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn send(&mut self, run: &mut Run<'_>) -> anyhow::Result<()> {
        for _ in 0..TURN {
            if self.to_write == 0 {
                return Ok(());
            }
            let within = self.to_write % run.work.size;
            let size = if within == 0 { run.work.size } else { within };
            match rustix::io::write(&self.stream, &run.work.bytes[..size]) {
                Ok(written) => self.to_write -= written,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno).context("cannot send"),
            }
            if self.to_write == 0 && run.work.ahead {
                self.next(run);
            }
        }
        Ok(())
    }
}
