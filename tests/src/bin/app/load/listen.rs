//! The end that listens.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Subcommand;
use rustix::net::{self, SocketFlags, SocketType, sockopt};

use super::many;
use crate::socket;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

#[derive(clap::Args)]
pub struct Args {
    /// Listen at this TCP address
    #[arg(long, required_unless_present = "unix")]
    tcp: Option<SocketAddr>,
    /// Listen at this unix socket
    #[arg(long)]
    unix: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Take connections one after the other, and send back a byte
    Exchange,
    /// Take connections one after the other, and close them
    Close,
    /// Send so many bytes for so many received
    Answer { receive: usize, send: usize },
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match (&args.tcp, &args.unix) {
        (Some(address), _) => {
            let listener = listen(*address).with_context(|| format!("{address}"))?;
            println!("READY");
            match args.what {
                What::Exchange => one_by_one(&listener, true),
                What::Close => one_by_one(&listener, false),
                What::Answer { receive, send } => many::serve(&listener, receive, send),
            }
        }
        (None, Some(path)) => {
            // One that an earlier server has left.
            let _ = fs::remove_file(path);
            let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
            let What::Answer { receive, send } = args.what else {
                anyhow::bail!("a unix socket can be asked to answer only");
            };
            println!("READY");
            many::serve(&listener, receive, send)
        }
        (None, None) => anyhow::bail!("neither --tcp nor --unix"),
    }
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let family = socket::family(address);
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn one_by_one(listener: &TcpListener, exchange: bool) -> anyhow::Result<()> {
    loop {
        let (mut connection, _) = listener.accept().context("cannot accept")?;
        // As a proxy does. Whether there is an answer depends on who captured it.
        let _ = sockopt::ip_original_dst(&connection);
        if exchange {
            let mut byte = [0];
            // A client that has ended meanwhile; it says why itself.
            let _ = connection
                .read_exact(&mut byte)
                .and_then(|()| connection.write_all(&byte))
                .and_then(|()| connection.read(&mut byte));
        }
    }
}
