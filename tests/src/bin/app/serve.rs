//! Servers.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, ErrorKind, Write as _},
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::PathBuf,
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Context as _;
use clap::Subcommand;
use rustix::net::{
    self, Shutdown, SocketFlags, SocketType,
    sockopt::{set_socket_reuseaddr, set_socket_reuseport},
};
use sidecar_tests::apps::{
    stream::{self, Stream},
    wire::{Kept, Mode},
};

use crate::{connect::print, http, socket};

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
    if args.mode == Mode::Keep {
        return keep(args);
    }
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

/// Accepts in one thread, as tens of thousands of connections may come.
fn keep(args: &Args) -> anyhow::Result<()> {
    let Listen::Tcp { address } = &args.listen else {
        anyhow::bail!("only connections to a TCP address are kept");
    };
    let listener =
        listen(*address, args.reuse_port).with_context(|| format!("cannot listen on {address}"))?;
    ready(&listener.local_addr()?.to_string())?;
    let kept: Arc<Mutex<Vec<(OwnedFd, Kept)>>> = Arc::default();
    thread::spawn({
        let kept = kept.clone();
        move || {
            for line in io::stdin().lock().lines() {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let told: Vec<&Kept> = kept.iter().map(|(_, told)| told).collect();
                if line.and(print(&told).map_err(io::Error::other)).is_err() {
                    break;
                }
            }
            process::exit(0);
        }
    });
    loop {
        let (connection, peer) = listener.accept().context("cannot accept")?;
        let original_dst = socket::original_dst(&connection).ok();
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push((connection.into(), (peer, original_dst)));
    }
}

/// The standard library's `bind` has no place for `SO_REUSEPORT`.
fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let family = socket::family(address);
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, reuse_port)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, 4096)?;
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
            let seen = socket::seen(connection, name);
            writeln!(connection, "{}", serde_json::to_string(&seen)?)?;
        }
        Mode::Http => http::answer(
            connection,
            &serde_json::to_string(&socket::seen(connection, name))?,
        )?,
        Mode::Sink => {
            let received = stream::hash(connection)?;
            writeln!(connection, "{}", serde_json::to_string(&received)?)?;
        }
        Mode::Source => {
            io::copy(&mut Stream::new(bytes), &mut connection)?;
        }
        // It has a loop of its own.
        Mode::Keep => {}
    }
    net::shutdown(connection, Shutdown::Write)?;
    Ok(())
}

/// The test holds the other end of standard input: when it is gone, so are we.
fn end_with_stdin() {
    let mut lines = io::stdin().lock().lines();
    while lines.next().is_some_and(|line| line.is_ok()) {}
    process::exit(0);
}
