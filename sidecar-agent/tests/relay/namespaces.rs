//! A listener and its targets in another network namespace.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    os::linux::net::SocketAddrExt,
    os::unix::net::UnixListener,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use sidecar_agent::{
    compile::{Target, UnixAddr},
    relay::{Error, Namespaces, listen, netns},
};

use crate::support::{
    Stream, engine, eventually, fresh_name, lead_to, serve_in, wait_no_longer_than_patience,
};

/// A new network namespace with `lo` up, kept by a process that ends with this value, or with the
/// test.
struct Netns {
    keeper: Child,
    fd: Arc<OwnedFd>,
}

impl Netns {
    fn new() -> Option<Self> {
        let script = "ip link set lo up && echo ready && exec cat";
        let mut keeper = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let _ = BufReader::new(keeper.stdout.take()?).read_line(&mut line);
        if line != "ready\n" {
            let _ = keeper.wait();
            return None;
        }
        let path = format!("/proc/{}/ns/net", keeper.id());
        let fd = Arc::new(std::fs::File::open(path).unwrap().into());
        Some(Self { keeper, fd })
    }

    fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        netns::within(self.fd.as_fd(), || Ok::<_, Error>(f())).unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

#[test]
fn sockets_are_made_where_the_listener_is() {
    let (Some(one), Some(two)) = (Netns::new(), Netns::new()) else {
        println!("skipped: a network namespace needs root, unshare(1) and ip(8)");
        return;
    };
    let engine = engine();
    let mut cases = Vec::new();
    let UnixAddr::Abstract(name) = fresh_name() else {
        unreachable!()
    };
    for netns in [&one, &two] {
        // The same addresses in both: only the namespace tells them apart.
        let any = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (relay, tcp, unix) = netns.within(|| {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
            let tcp = TcpListener::bind(any(8080)).unwrap();
            (
                listen::tcp(any(9000)).unwrap(),
                tcp,
                UnixListener::bind_addr(&address).unwrap(),
            )
        });
        wait_no_longer_than_patience(&tcp);
        wait_no_longer_than_patience(&unix);
        let namespaces = Namespaces {
            net: Some(Arc::clone(&netns.fd)),
            root: None,
        };
        let to_tcp = lead_to([Target::Tcp(any(8080))]);
        serve_in(&engine, relay, to_tcp, namespaces.clone());
        let abstract_relay = netns.within(|| listen::tcp(any(9001)).unwrap());
        let to_unix = lead_to([Target::Unix(UnixAddr::Abstract(name.clone()))]);
        serve_in(&engine, abstract_relay, to_unix, namespaces);
        cases.push((netns, tcp, unix));
    }
    for round in 0..20 {
        for (netns, tcp, unix) in &cases {
            let connect = |port| {
                netns.within(|| Stream::Tcp(TcpStream::connect(("127.0.0.1", port)).unwrap()))
            };
            let message = format!("round {round}");
            let mut client = connect(9000);
            client.write_all(message.as_bytes()).unwrap();
            let mut accepted = Stream::Tcp(tcp.accept().unwrap().0);
            assert_eq!(accepted.receive(message.len()), message.as_bytes());
            let mut client = connect(9001);
            client.write_all(message.as_bytes()).unwrap();
            let mut accepted = Stream::Unix(unix.accept().unwrap().0);
            assert_eq!(accepted.receive(message.len()), message.as_bytes());
        }
    }
    eventually("all are forgotten", || engine.stats().active == 0);
    assert_eq!(engine.stats().failed.total(), 0);

    // No thread stays behind.
    let home = std::fs::read_link("/proc/self/ns/net").unwrap();
    eventually("all threads are home", || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .flatten()
            .all(|task| {
                let netns = std::fs::read_link(task.path().join("ns/net"));
                netns.is_ok_and(|netns| netns == home)
            })
    });
}

#[test]
fn what_is_no_namespace_cannot_be_entered() {
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let error = netns::within(file.as_fd(), || Ok::<(), Error>(())).unwrap_err();
    assert!(
        error.to_string().contains("cannot enter network namespace"),
        "{error}"
    );
}
