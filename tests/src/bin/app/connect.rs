//! Clients.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    thread,
};

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio},
    net::{self, AddressFamily, Shutdown, SocketFlags, SocketType, ipproto, sockopt::socket_error},
};
use sidecar_tests::apps::{
    stream::{self, Stream},
    wire::{self, Outcome, Received, Transfer},
};

use crate::{http, socket};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    target: Target,
    /// Connect from a non-blocking socket
    #[arg(long, global = true)]
    non_blocking: bool,
    /// Connect from an IPv6 socket to the v4-mapped form of the address
    #[arg(long, global = true)]
    mapped: bool,
    /// Use Multipath TCP
    #[arg(long, global = true)]
    mptcp: bool,
    /// Bind to this address first
    #[arg(long, global = true)]
    bind: Option<SocketAddr>,
    /// What to do with the connection
    #[arg(long, global = true, value_enum, default_value_t = Then::Close)]
    then: Then,
    /// How much to send or receive
    #[arg(long, global = true, default_value_t = 0)]
    bytes: u64,
}

#[derive(Subcommand)]
enum Target {
    /// To a TCP address
    Tcp { address: SocketAddr },
    /// To a unix stream socket; `@name` for one in the abstract namespace
    Unix { path: PathBuf },
    /// One HTTP request; the other options are not for it
    Http { url: String },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Then {
    /// Nothing
    Close,
    /// Wait for the server's banner
    Banner,
    /// Send, half-close, and compare what comes back
    Echo,
    /// Send, half-close, and compare what the server says it received
    Send,
    /// Receive and compare
    Receive,
    /// Send each line of standard input and print the one that comes back
    Hold,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Target::Http { url } = &args.target {
        return print(&http::request(url));
    }
    let socket = open(args).context("cannot make the socket")?;
    let mut outcome = Outcome::default();
    match connect(args, &socket, &mut outcome) {
        Ok(()) => outcome.connected = true,
        Err(errno) => outcome.errno = Some(errno.raw_os_error()),
    }
    if !outcome.connected {
        return print(&outcome);
    }
    outcome.local = socket::local(&socket);
    outcome.peer = socket::peer(&socket);
    let connection = socket::stream(socket);
    if args.then == Then::Hold {
        print(&outcome)?;
        return hold(&connection);
    }
    if let Err(error) = act(args, &connection, &mut outcome) {
        outcome.error = Some(error.to_string());
    }
    print(&outcome)
}

fn open(args: &Args) -> rustix::io::Result<OwnedFd> {
    let family = match &args.target {
        Target::Tcp { address } if address.is_ipv4() && !args.mapped => AddressFamily::INET,
        Target::Tcp { .. } => AddressFamily::INET6,
        Target::Unix { .. } | Target::Http { .. } => AddressFamily::UNIX,
    };
    let protocol = args.mptcp.then_some(ipproto::MPTCP);
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, protocol)?;
    socket::limit(&socket)?;
    Ok(socket)
}

fn connect(args: &Args, socket: &OwnedFd, outcome: &mut Outcome) -> rustix::io::Result<()> {
    if let Some(address) = args.bind {
        let address = if args.mapped {
            wire::mapped(address)
        } else {
            address
        };
        net::bind(socket, &address)?;
    }
    ioctl_fionbio(socket, args.non_blocking)?;
    let connected = match &args.target {
        Target::Tcp { address } if args.mapped => net::connect(socket, &wire::mapped(*address)),
        Target::Tcp { address } => net::connect(socket, address),
        Target::Unix { path } => net::connect(socket, &socket::unix_address(path)?),
        // Has been done.
        Target::Http { .. } => Ok(()),
    };
    if args.non_blocking && connected == Err(Errno::INPROGRESS) {
        outcome.in_progress = true;
        wait_writable(socket)?;
        socket_error(socket)??;
    } else {
        connected?;
    }
    ioctl_fionbio(socket, false)
}

fn wait_writable(socket: &OwnedFd) -> rustix::io::Result<()> {
    let patience = Timespec::try_from(socket::PATIENCE).map_err(|_| Errno::INVAL)?;
    match poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&patience))? {
        0 => Err(Errno::TIMEDOUT),
        _ => Ok(()),
    }
}

fn act(args: &Args, connection: &File, outcome: &mut Outcome) -> io::Result<()> {
    let bytes = args.bytes;
    match args.then {
        Then::Close | Then::Hold => {}
        Then::Banner => {
            let mut line = String::new();
            BufReader::new(connection).read_line(&mut line)?;
            outcome.banner = Some(serde_json::from_str(&line)?);
        }
        Then::Echo => {
            let (sent, received) = thread::scope(|scope| {
                let sender = scope.spawn(|| send(connection, bytes));
                let received = stream::hash(connection);
                (
                    sender
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    received,
                )
            });
            outcome.transfer = Some(compare(sent?, bytes, &received?)?);
        }
        Then::Send => {
            let sent = send(connection, bytes)?;
            let mut line = String::new();
            BufReader::new(connection).read_line(&mut line)?;
            outcome.transfer = Some(compare(sent, bytes, &serde_json::from_str(&line)?)?);
        }
        Then::Receive => {
            outcome.transfer = Some(compare(0, bytes, &stream::hash(connection)?)?);
        }
    }
    Ok(())
}

fn send(mut connection: &File, bytes: u64) -> io::Result<u64> {
    let sent = io::copy(&mut Stream::new(bytes), &mut connection)?;
    net::shutdown(connection, Shutdown::Write)?;
    Ok(sent)
}

fn compare(sent: u64, expected: u64, received: &Received) -> io::Result<Transfer> {
    let intact = received.bytes == expected && received.hash == Stream::hash(expected)?;
    Ok(Transfer {
        sent,
        received: received.bytes,
        intact,
    })
}

/// Ends with standard input, or with the connection.
fn hold(mut connection: &File) -> anyhow::Result<()> {
    let mut replies = BufReader::new(connection);
    for line in io::stdin().lock().lines() {
        let line = line.context("cannot read standard input")?;
        let mut exchange = || -> io::Result<String> {
            connection.write_all(format!("{line}\n").as_bytes())?;
            let mut reply = String::new();
            if replies.read_line(&mut reply)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(reply.trim_end_matches('\n').to_owned())
        };
        print(&exchange().map_err(|error| error.to_string()))?;
    }
    Ok(())
}

pub fn print(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    io::stdout().flush().context("cannot print")
}
