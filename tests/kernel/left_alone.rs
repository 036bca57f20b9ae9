//! Sockets that are not touched, and one way to connect that is like any other.

use std::process::Stdio;

use anyhow::Context as _;
use rustix::io::Errno;
use sidecar_common::Reason;
use sidecar_tests::{Kind, require_root, skip, skip::kernel_has};

use crate::{
    fixture::{Fixture, reached, serve},
    plan::{Planner, at, deny, proxy},
};

fn captured() -> anyhow::Result<Fixture> {
    Fixture::of_pod(
        Planner::new()
            .proxied()
            .outbound_default(proxy())
            .dns(&["0.0.0.0/0"]),
    )
}

/// Led to a loopback address it could not get there.
#[test]
fn a_socket_bound_to_an_interface_passes_and_is_refused_all_the_same() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = captured()?;
    let _proxy = serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?;
    let _server = serve(fixture.outside(), "192.168.50.5:80", "server")?;
    let app = fixture.app()?;
    let connect = |interface: Option<&str>| {
        let socket = app.socket(Kind::Tcp4)??;
        if let Some(interface) = interface {
            socket.bind_to_device(interface)??;
        }
        let connected = socket.connect(at("10.96.0.20:80"))?;
        anyhow::Ok((connected, socket))
    };
    let (connected, socket) = connect(None)?;
    assert_eq!(connected, Ok(()));
    assert_eq!(socket.banner()??.name, "proxy");
    // Nobody is out there: a dummy interface has no neighbours.
    let (connected, _) = connect(Some("eth0"))?;
    assert!(
        matches!(
            connected,
            Err(Errno::HOSTUNREACH | Errno::TIMEDOUT | Errno::INPROGRESS | Errno::AGAIN)
        ),
        "{connected:?}"
    );
    assert_eq!(fixture.outbound(Reason::BoundDevice)?, 1);
    // It is no way round what is forbidden.
    fixture.follow(Planner::new().outbound_default(deny()))?;
    let refused = if kernel_has("set_retval") {
        Errno::CONNREFUSED
    } else {
        Errno::PERM
    };
    assert_eq!(connect(Some("eth0"))?.0, Err(refused));
    Ok(())
}

/// Multicast, and what is neither TCP nor UDP.
#[test]
fn raw_sockets_and_multicast_are_untouched() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    let script = r#"
import socket, struct
# A receiver that is a member, and a datagram to the group's port of DNS.
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("224.0.0.251", 53))
member = struct.pack("4s4s", socket.inet_aton("224.0.0.251"), socket.inet_aton("10.244.1.5"))
receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
receiver.settimeout(10)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.244.1.5"))
sender.sendto(b"mdns", ("224.0.0.251", 53))
print(receiver.recvfrom(16)[0].decode())
# A raw socket of TCP's own number.
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.connect(("10.96.0.20", 7))
print(raw.getpeername()[0])
"#;
    assert_eq!(python(&fixture, script)?, "mdns\n10.96.0.20\n");
    assert_eq!(fixture.outbound(Reason::Dns)?, 0);
    assert_eq!(fixture.outbound(Reason::CaptureAll)?, 0);
    Ok(())
}

#[test]
fn sctp_is_untouched() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    // Within the namespace: it is its own address that is called.
    let script = r#"
import socket
try:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
except OSError:
    print("no sctp")
    raise SystemExit
server.bind(("10.244.1.5", 80))
server.listen()
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
client.connect(("10.244.1.5", 80))
print(client.getpeername())
"#;
    let printed = python(&fixture, script)?;
    if printed == "no sctp\n" {
        skip!("kernel has no CONFIG_IP_SCTP");
    }
    assert_eq!(printed, "('10.244.1.5', 80)\n");
    assert_eq!(fixture.loaded.dataplane.counters(fixture.workload), []);
    Ok(())
}

/// Submits one `IORING_OP_CONNECT` by the raw system calls.
const IO_URING: &str = r#"
import ctypes, mmap, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
params = (ctypes.c_uint32 * 30)()
ring = libc.syscall(425, 4, ctypes.byref(params))
if ring < 0: print("errno", ctypes.get_errno()); sys.exit()
entries, cq_entries = params[0], params[1]
sq = list(params[10:20]); cq = list(params[20:30])
size = max(sq[6] + entries * 4, cq[5] + cq_entries * 16)
queue = mmap.mmap(ring, size, offset=0)
sqes = mmap.mmap(ring, entries * 64, offset=0x10000000)
def word(at): return struct.unpack_from("I", queue, at)[0]
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
address = struct.pack("=H", 2) + struct.pack(">H", 80) + socket.inet_aton("10.96.0.20") + bytes(8)
buffer = ctypes.create_string_buffer(address, 16)
# opcode 16 is IORING_OP_CONNECT; IOSQE_ASYNC (16): by a worker thread.
struct.pack_into("=BBHiQQIIQ24x", sqes, 0, 16, int(sys.argv[1]), 0, client.fileno(), 16, ctypes.addressof(buffer), 0, 0, 7)
struct.pack_into("I", queue, sq[6], 0)
struct.pack_into("I", queue, sq[1], word(sq[1]) + 1)
done = libc.syscall(426, ring, 1, 1, 1, None, 0)
if done != 1: print("errno", ctypes.get_errno()); sys.exit()
user, result, flags = struct.unpack_from("=QiI", queue, cq[5])
print("result", user, result)
client.settimeout(10)
print(client.recv(4096).decode(), end="")
"#;

#[test]
fn a_connect_by_io_uring_is_like_any_other() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    let _proxy = serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?;
    for flags in ["0", "16"] {
        let output = python(&fixture, &IO_URING.replace("sys.argv[1]", flags))?;
        let (result, banner) = output.split_once('\n').context("no result")?;
        if result == "errno 38" || result == "errno 1" {
            skip!("io_uring");
        }
        assert_eq!(result, "result 7 0");
        let seen: sidecar_tests::apps::Seen = serde_json::from_str(banner)?;
        assert_eq!(seen.original_dst, Some(at("10.96.0.20:80")), "{seen:?}");
        let peer = seen.peer.map(|peer| peer.ip());
        assert_eq!(peer, Some(at("10.244.1.5:0").ip()));
        assert_eq!(reached(&seen)?.port(), 15001);
    }
    assert_eq!(fixture.outbound(Reason::CaptureAll)?, 2);
    Ok(())
}

/// What a script prints that the workload runs.
fn python(fixture: &Fixture, script: &str) -> anyhow::Result<String> {
    let output = fixture
        .inside()
        .command("python3")
        .args(["-c", script])
        .stdin(Stdio::null())
        .output()
        .context("cannot run python3")?;
    anyhow::ensure!(
        output.status.success(),
        "python3: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
