//! Servers.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, ErrorKind, Write as _},
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::PathBuf,
    process, thread,
};

use anyhow::Context as _;
use clap::Subcommand;
use rustix::net::{
    self, AddressFamily, Shutdown, SocketFlags, SocketType,
    sockopt::{set_socket_reuseaddr, set_socket_reuseport},
};
use sidecar_tests::apps::{
    stream::{self, Stream},
    wire::{Mode, Seen},
};

use crate::{http, socket};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    listen: Listen,
    /// What to do with a connection
    #[arg(long, global = true, value_enum, default_value_t = Mode::Banner)]
    mode: Mode,
    /// Name in the banner
    #[arg(long, global = true, default_value = "server")]
    name: String,
    /// How much a source sends
    #[arg(long, global = true, default_value_t = 0)]
    bytes: u64,
    /// Share the address with others (`SO_REUSEPORT`)
    #[arg(long, global = true)]
    reuse_port: bool,
}

#[derive(Subcommand)]
enum Listen {
    /// On a TCP address
    Tcp { address: SocketAddr },
    /// On a unix stream socket
    Unix { path: PathBuf },
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    thread::spawn(end_with_stdin);
    match &args.listen {
        Listen::Tcp { address } => {
            let listener = listen(*address, args.reuse_port)
                .with_context(|| format!("cannot listen on {address}"))?;
            ready(&listener.local_addr()?.to_string())?;
            serve(args, || Ok(listener.accept()?.0.into()))
        }
        Listen::Unix { path } => {
            // A socket that another server has left.
            let _ = fs::remove_file(path);
            let listener = UnixListener::bind(path)
                .with_context(|| format!("cannot listen on {}", path.display()))?;
            ready(&path.display().to_string())?;
            serve(args, || Ok(listener.accept()?.0.into()))
        }
    }
}

/// The standard library's `bind` has no place for `SO_REUSEPORT`.
fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, reuse_port)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, 1024)?;
    Ok(socket.into())
}

fn ready(address: &str) -> io::Result<()> {
    println!("READY {address}");
    io::stdout().flush()
}

fn serve(args: &Args, accept: impl Fn() -> io::Result<OwnedFd>) -> anyhow::Result<()> {
    loop {
        let connection = accept().context("cannot accept")?;
        let (mode, bytes, name) = (args.mode, args.bytes, args.name.clone());
        thread::spawn(move || {
            // A client that does not want what we send has closed: nothing to tell.
            if let Err(error) = handle(&socket::stream(connection), mode, bytes, name)
                && !matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                )
            {
                eprintln!("app: {}: {error}", mode.name());
            }
        });
    }
}

fn handle(mut connection: &File, mode: Mode, bytes: u64, name: String) -> io::Result<()> {
    match mode {
        Mode::Echo => {
            io::copy(&mut &*connection, &mut connection)?;
        }
        Mode::Banner => {
            let seen = serde_json::to_string(&see(connection, name))?;
            writeln!(connection, "{seen}")?;
        }
        Mode::Http => http::answer(connection, &serde_json::to_string(&see(connection, name))?)?,
        Mode::Sink => {
            let received = stream::hash(connection)?;
            writeln!(connection, "{}", serde_json::to_string(&received)?)?;
        }
        Mode::Source => {
            io::copy(&mut Stream::new(bytes), &mut connection)?;
        }
    }
    net::shutdown(connection, Shutdown::Write)?;
    Ok(())
}

fn see(connection: &File, name: String) -> Seen {
    let original_dst = socket::original_dst(connection);
    Seen {
        name,
        peer: socket::peer(connection),
        local: socket::local(connection),
        original_dst: original_dst.ok(),
        original_dst_errno: original_dst.err().map(rustix::io::Errno::raw_os_error),
    }
}

/// The test holds the other end of standard input: when it is gone, so are we.
fn end_with_stdin() {
    let mut lines = io::stdin().lock().lines();
    while lines.next().is_some_and(|line| line.is_ok()) {}
    process::exit(0);
}
