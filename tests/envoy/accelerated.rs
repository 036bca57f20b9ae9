//! Real proxies at the other end of accelerated connections.

use std::{
    fs::{self, Permissions},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use sidecar_agent::dataplane::socket_offsets;
use sidecar_tests::{
    DEADLINE, Place, command, envoy::Bootstrap, lab::Lab, poll::poll_result, require_envoy,
    require_root, scrape::Page, skip, tempdir::TempDir,
};

use crate::fixture::{SERVICES, SIDECAR, as_proxy, envoy, lab_with};

const PORT: u16 = 9080;

/// Makes requests, one after the other over one connection that does not block, with bodies of all
/// sizes; prints how many were answered.
const CLIENT: &str = r#"
import select, socket, sys
sock = socket.socket()
sock.setblocking(False)
try: sock.connect((sys.argv[1], 9080))
except BlockingIOError: pass
poll = select.poll()
def wait(events):
    poll.register(sock, events)
    if not poll.poll(30000): raise SystemExit("no answer")
answered = 0
for number in range(100):
    body = b"x" * [0, 10, 3000, 40000][number % 4]
    request = b"POST /details/1 HTTP/1.1\r\nhost: details\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    view = memoryview(request)
    while view:
        try: view = view[sock.send(view):]
        except BlockingIOError: wait(select.POLLOUT)
    answer = b""
    while True:
        head, found, rest = answer.partition(b"\r\n\r\n")
        if found:
            lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            if len(rest) >= int(lines[b"content-length"]): break
        try: part = sock.recv(65536)
        except BlockingIOError:
            wait(select.POLLIN)
            continue
        if not part: raise SystemExit(f"it ended after {answered} answers")
        answer += part
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    answered += 1
print(answered)
"#;

/// A lab whose workload asks for acceleration.
fn accelerated_lab() -> anyhow::Result<Lab> {
    let mut lab = lab_with(&["capture.sidecar-agent.io/accelerate: 'true'"], SIDECAR)?;
    lab.start_agent()?;
    Ok(lab)
}

fn requests(lab: &Lab) -> anyhow::Result<()> {
    // Whoever is not the proxy; as another user python may be out of reach.
    let mut client = lab.inside().command("python3");
    let service = SERVICES[0].to_string();
    let printed = command::output(client.args(["-c", CLIENT, &service]))?;
    assert_eq!(printed, "100\n");
    let status = lab.agent()?.status()?;
    let count = |what: &str| status["acceleration"][what].as_u64().unwrap_or_default();
    ensure!(count("joined") == 1, "{:#}", status["acceleration"]);
    // Most requests, and most responses.
    ensure!(count("redirected") > 100, "{:#}", status["acceleration"]);
    let page = Page::of(lab.agent()?)?;
    let joined = page.sum("sidecar_agent_accelerated_total", &[("what", "joined")]);
    ensure!(joined == Some(1.), "{joined:?}");
    Ok(())
}

#[test]
fn envoy_is_accelerated() -> anyhow::Result<()> {
    require_envoy!();
    if let Err(missing) = socket_offsets() {
        skip!("acceleration: {missing:#}");
    }
    let lab = accelerated_lab()?;
    let _server = upstream(&lab)?;
    let _envoy = envoy(&lab)
        .bootstrap(Bootstrap::default().http(PORT))
        .start()?;
    requests(&lab)
}

#[test]
fn haproxy_is_accelerated() -> anyhow::Result<()> {
    require_root!();
    if command::output(Command::new("haproxy").arg("-v")).is_err() {
        skip!("HAProxy; `cargo xtask setup` installs it");
    }
    if let Err(missing) = socket_offsets() {
        skip!("acceleration: {missing:#}");
    }
    let lab = accelerated_lab()?;
    let _server = upstream(&lab)?;
    let dir = TempDir::new("sidecar-haproxy-")?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    let file = dir.path().join("haproxy.cfg");
    let text = format!(
        "global\n  nbthread 1\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
         listen outbound\n  bind 0.0.0.0:15001\n  server service {}:{PORT}\n",
        SERVICES[0]
    );
    fs::write(&file, text)?;
    let mut haproxy = as_proxy(&lab).command("haproxy");
    let _haproxy = Ended(haproxy.args(["-db", "-q", "-f"]).arg(&file).spawn()?);
    let netns = &lab.workload().netns;
    poll_result(DEADLINE, "HAProxy to listen", || {
        netns.run(|| TcpStream::connect("127.0.0.1:15001"))??;
        anyhow::Ok(())
    })?;
    requests(&lab)
}

/// Starts an HTTP server on the services' host that keeps connections.
fn upstream(lab: &Lab) -> anyhow::Result<Ended> {
    const SERVER: &str = "
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('content-length', 0)))
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(('0.0.0.0', 9080), Handler).serve_forever()
";
    let netns = &lab.services().netns;
    let server = Place::here()
        .netns(netns)
        .command("python3")
        .args(["-c", SERVER])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run python3")?;
    let server = Ended(server);
    poll_result(DEADLINE, "the service to listen", || {
        netns.run(|| TcpStream::connect(("127.0.0.1", PORT)))??;
        anyhow::Ok(())
    })?;
    Ok(server)
}

/// A process that is killed when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
