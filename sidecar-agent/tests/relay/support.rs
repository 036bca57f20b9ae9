//! Engines, listeners, servers and clients for the tests.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    num::NonZeroUsize,
    os::{
        fd::{AsFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixSocketAddr, UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::sockopt;
use sidecar_agent::{
    compile::{Target, UnixAddr},
    relay::{
        Accepted, Engine, EngineConfig, ListenerId, ListenerSpec, Namespaces, Route, Routes,
        SocketName, Way,
        listen::{self, Listening},
    },
};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The same answer for every connection.
pub struct Always(pub Route);

impl Routes for Always {
    fn route(&self, _: &Accepted<'_>) -> Way {
        self.0.clone().into()
    }
}

pub fn lead_to(targets: impl Into<Arc<[Target]>>) -> Arc<dyn Routes> {
    Arc::new(Always(Route::Dial(targets.into())))
}

/// An engine of two threads.
pub fn engine() -> Engine {
    engine_with(|_| {})
}

pub fn engine_with(change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let threads = NonZeroUsize::new(2).unwrap();
    let mut config = EngineConfig {
        threads,
        ..EngineConfig::default()
    };
    change(&mut config);
    Engine::start(&config).unwrap()
}

/// Serves `socket` with `routes`; its id and its name.
pub fn serve(engine: &Engine, socket: Listening, routes: Arc<dyn Routes>) -> (ListenerId, Name) {
    serve_in(engine, socket, routes, Namespaces::default())
}

pub fn serve_in(
    engine: &Engine,
    socket: Listening,
    routes: Arc<dyn Routes>,
    namespaces: Namespaces,
) -> (ListenerId, Name) {
    let name = Name::from(socket.local().unwrap());
    (
        engine
            .add(ListenerSpec {
                socket,
                namespaces,
                routes,
            })
            .unwrap(),
        name,
    )
}

pub fn loopback() -> Listening {
    listen::tcp(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

pub fn unix_at(path: &Path) -> Result<Listening, sidecar_agent::relay::Error> {
    listen::unix(None, &path_of(path), listen::ANYBODY)
}

pub fn path_of(path: &Path) -> UnixAddr {
    UnixAddr::Path(path.to_str().unwrap().to_owned())
}

/// An abstract name nobody else uses.
pub fn fresh_name() -> UnixAddr {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    UnixAddr::Abstract(format!("relay-test-{}-{next}", std::process::id()))
}

/// Where something listens.
#[derive(Clone, Debug)]
pub enum Name {
    Tcp(SocketAddr),
    Unix(UnixAddr),
}

impl From<SocketName> for Name {
    fn from(name: SocketName) -> Self {
        match name {
            SocketName::Tcp(address) => Self::Tcp(address),
            SocketName::Unix(address) => Self::Unix(address),
            SocketName::Unnamed => panic!("a listener without a name"),
        }
    }
}

impl Name {
    pub fn target(&self) -> Target {
        match self {
            Self::Tcp(address) => Target::Tcp(*address),
            Self::Unix(address) => Target::Unix(address.clone()),
        }
    }

    pub fn connect(&self) -> io::Result<Stream> {
        let stream = match self {
            Self::Tcp(address) => Stream::Tcp(TcpStream::connect(address)?),
            Self::Unix(address) => Stream::Unix(UnixStream::connect_addr(&unix_name(address))?),
        };
        stream.be_patient(PATIENCE);
        Ok(stream)
    }
}

fn unix_name(address: &UnixAddr) -> UnixSocketAddr {
    match address {
        UnixAddr::Path(path) => UnixSocketAddr::from_pathname(path).unwrap(),
        UnixAddr::Abstract(name) => UnixSocketAddr::from_abstract_name(name).unwrap(),
    }
}

/// A listening socket of the test's own.
pub enum Server {
    Tcp(TcpListener),
    Unix(UnixListener, UnixAddr),
}

impl Server {
    pub fn tcp() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        wait_no_longer_than_patience(&listener);
        Self::Tcp(listener)
    }

    pub fn unix(address: UnixAddr) -> Self {
        let listener = UnixListener::bind_addr(&unix_name(&address)).unwrap();
        wait_no_longer_than_patience(&listener);
        Self::Unix(listener, address)
    }

    pub fn name(&self) -> Name {
        match self {
            Self::Tcp(listener) => Name::Tcp(listener.local_addr().unwrap()),
            Self::Unix(_, address) => Name::Unix(address.clone()),
        }
    }

    pub fn accept(&self) -> Stream {
        let stream = match self {
            Self::Tcp(listener) => Stream::Tcp(listener.accept().unwrap().0),
            Self::Unix(listener, _) => Stream::Unix(listener.accept().unwrap().0),
        };
        stream.be_patient(PATIENCE);
        stream
    }
}

/// Makes accept(2) fail instead of hanging.
pub fn wait_no_longer_than_patience(listener: &impl AsFd) {
    sockopt::set_socket_timeout(listener, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// A stream of either family.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub fn be_patient(&self, patience: Duration) {
        let patience = Some(patience);
        match self {
            Self::Tcp(it) => it
                .set_read_timeout(patience)
                .and_then(|()| it.set_write_timeout(patience)),
            Self::Unix(it) => it
                .set_read_timeout(patience)
                .and_then(|()| it.set_write_timeout(patience)),
        }
        .unwrap();
    }

    pub fn end(&self) {
        match self {
            Self::Tcp(it) => it.shutdown(Shutdown::Write).unwrap(),
            Self::Unix(it) => it.shutdown(Shutdown::Write).unwrap(),
        }
    }

    pub fn another(&self) -> Self {
        match self {
            Self::Tcp(it) => Self::Tcp(it.try_clone().unwrap()),
            Self::Unix(it) => Self::Unix(it.try_clone().unwrap()),
        }
    }

    /// Closes with a reset.
    pub fn reset(self) {
        sockopt::set_socket_linger(&self, Some(Duration::ZERO)).unwrap();
    }

    pub fn receive(&mut self, length: usize) -> Vec<u8> {
        let mut answer = vec![0; length];
        self.read_exact(&mut answer).unwrap();
        answer
    }

    pub fn receive_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        self.read_to_end(&mut all).unwrap();
        all
    }

    /// Reads until there is an end or an error: the bytes before, and the error.
    pub fn receive_until_broken(&mut self) -> (Vec<u8>, Option<io::ErrorKind>) {
        let mut all = Vec::new();
        let error = self.read_to_end(&mut all).err().map(|error| error.kind());
        (all, error)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(it) => it.read(buffer),
            Self::Unix(it) => it.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(it) => it.write(buffer),
            Self::Unix(it) => it.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(it) => it.as_fd(),
            Self::Unix(it) => it.as_fd(),
        }
    }
}

/// A relayed connection: the client's end and the server's.
pub fn connect_through(relay: &Name, server: &Server) -> (Stream, Stream) {
    let client = relay.connect().unwrap();
    (client, server.accept())
}

/// Waits until `done` says so.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// The byte at every position of a test stream: a period no buffer size divides.
pub fn pattern(seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    (0..65_521)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}

/// Writes `length` bytes of the pattern, then the end.
pub fn send_pattern(stream: &mut Stream, seed: u8, length: usize) {
    let pattern = pattern(seed);
    let mut left = length;
    while left > 0 {
        let part = &pattern[..left.min(pattern.len())];
        stream.write_all(part).unwrap();
        left -= part.len();
    }
    stream.end();
}

/// Reads to the end; the number of bytes, which all were the pattern's.
pub fn check_pattern(stream: &mut Stream, seed: u8) -> usize {
    let pattern = pattern(seed);
    let mut buffer = vec![0; 1 << 18];
    let mut got = 0;
    loop {
        let n = stream.read(&mut buffer).unwrap();
        if n == 0 {
            return got;
        }
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let expected = &pattern[got % pattern.len()..];
            let part = rest.len().min(expected.len());
            assert!(rest[..part] == expected[..part], "other bytes after {got}");
            got += part;
            rest = &rest[part..];
        }
    }
}
