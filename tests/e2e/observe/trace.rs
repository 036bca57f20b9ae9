//! `trace`: each decision of each connection, with its names, and nothing else.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use aya::maps::{Array, Map, MapData};
use serde_json::{Value, json};
use sidecar_tests::{
    Agent, Client, DEADLINE, Probe, Server,
    lab::{Lab, service},
    poll::poll_result,
    require_root,
    tracer::Tracer,
};

use crate::fixture::registry_only;

const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: mixed, namespace: prod-us1}
spec:
  ingress:
  - port: {number: 9080, protocol: TCP, name: main}
    defaultEndpoint: 127.0.0.1:8080
  - port: {number: 9081, protocol: TCP, name: socket}
    defaultEndpoint: unix:///var/run/app.sock
  - port: {number: 9082, protocol: TCP, name: nobody}
    defaultEndpoint: 127.0.0.1:8099
  egress:
  - port: {number: 3306, protocol: TCP, name: db}
    bind: 127.0.0.1
    captureMode: NONE
    hosts: ['prod-us1/db.prod-us1.svc.cluster.local']
  - hosts: ['prod-us1/*']
";

const BY_UNIX_SOCKET: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: socket, namespace: prod-us1}
spec:
  hosts: [socket.example.com]
  addresses: [10.96.0.9]
  ports: [{number: 80, protocol: TCP, name: tcp}]
  resolution: STATIC
  endpoints: [{address: unix:///var/run/app.sock}]
";

fn connect(client: Client<'_>) -> anyhow::Result<bool> {
    Ok(client.banner()?.banner.is_some())
}

/// What of a decision does not differ from run to run.
fn essence(decision: &Value) -> Value {
    json!([
        decision["direction"],
        decision["path"],
        decision["reason"],
        decision["destination"],
        decision["targets"],
    ])
}

/// A workload whose connections travel in every way that needs no proxy.
fn mixed() -> anyhow::Result<Lab> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.serve("10.96.0.1:9080", "details")?;
    lab.serve("10.96.0.7:3306", "db")?;
    lab.serve_inside("127.0.0.1:8080", "application")?;
    lab.serve_inside("0.0.0.0:7000", "undeclared")?;
    let socket = Server::unix(&lab.in_root("/var/run/app.sock"))
        .place(lab.inside())
        .name("socket")
        .start()?;
    lab.keep(socket);
    let mut services = service("prod-us1", "details", "10.96.0.1".parse()?, 9080);
    services += &service("prod-us1", "db", "10.96.0.7".parse()?, 3306);
    lab.write("services.yaml", &services)?;
    lab.write("entry.yaml", BY_UNIX_SOCKET)?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write_workload(&[])?;
    lab.write_mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")?;
    lab.start_agent()?;
    Ok(lab)
}

#[test]
fn each_connection_of_a_workload_is_told_with_its_resource() -> anyhow::Result<()> {
    require_root!();
    let lab = mixed()?;
    let outbound = Tracer::start(lab.agent()?, &["--direction", "outbound"])?;
    let pod = lab.workload().v4;
    // The workload's calls to itself and to the relay arrive in its namespace, too.
    let inbound = ["--direction", "inbound", "--dst", &pod.to_string()];
    let inbound = Tracer::start(lab.agent()?, &inbound)?;
    let call = |address: &str| connect(Client::tcp(address.parse()?).place(lab.inside()));
    for (address, reached) in [
        ("10.96.0.1:9080", true),
        ("127.0.0.1:3306", true),
        ("10.96.0.9:80", true),
        ("10.96.0.4:9080", false),
        ("127.0.0.1:8080", true),
    ] {
        ensure!(call(address)? == reached, "{address}");
    }
    for (port, reached) in [(9080, true), (9081, true), (7000, true), (9082, false)] {
        let client = Client::tcp((pod, port).into()).place(lab.outside());
        ensure!(connect(client)? == reached, "{port}");
    }
    let decisions = outbound.take(5)?;
    let essences: Vec<Value> = decisions.iter().map(essence).collect();
    let expected = [
        json!([
            "outbound",
            "direct",
            "egress-service",
            "10.96.0.1:9080",
            ["10.96.0.1:9080"]
        ]),
        json!([
            "outbound",
            "direct",
            "egress-listener",
            "127.0.0.1:3306",
            ["10.96.0.7:3306"]
        ]),
        json!([
            "outbound",
            "relay",
            "egress-service",
            "10.96.0.9:80",
            ["unix:///var/run/app.sock"]
        ]),
        json!(["outbound", "deny", "registry-only", "10.96.0.4:9080", []]),
        json!(["outbound", "pass", "loopback", "127.0.0.1:8080", []]),
    ];
    for (is, expected) in essences.iter().zip(&expected) {
        ensure!(is == expected, "{is}; expected {expected}");
    }
    // Who declared it is who `explain` says declared it.
    for decision in &decisions {
        let address = decision["destination"].as_str().context("no destination")?;
        let explained = lab.explain(address)?;
        for field in ["path", "reason", "listener", "service", "field", "resource"] {
            ensure!(
                decision[field] == explained[field],
                "{field} of {decision}; {explained}"
            );
        }
    }
    let first = &decisions[0];
    ensure!(first["workload"] == "prod-us1/productpage", "{first}");
    ensure!(first["transport"] == "tcp", "{first}");
    ensure!(first["resource"]["kind"] == "Sidecar", "{first}");
    ensure!(first["resource"]["name"] == "mixed", "{first}");
    ensure!(first["field"] == "spec.egress[1]", "{first}");
    ensure!(first["resource"]["line"] == 1, "{first}");

    let decisions = inbound.take(4)?;
    let expected = [
        ("direct", "ingress-listener", 9080, "spec.ingress[0]"),
        ("relay", "ingress-listener", 9081, "spec.ingress[1]"),
        ("pass", "undeclared-port", 7000, "spec.ingress"),
        ("deny", "target-not-listening", 9082, "spec.ingress[2]"),
    ];
    for (decision, (path, reason, port, field)) in decisions.iter().zip(expected) {
        ensure!(decision["path"] == path, "{decision}");
        ensure!(decision["reason"] == reason, "{decision}");
        let destination = SocketAddr::from((pod, port)).to_string();
        ensure!(decision["destination"] == destination, "{decision}");
        ensure!(decision["field"] == field, "{decision}");
        let source = decision["source"].as_str().unwrap_or_default();
        ensure!(
            source.starts_with(&format!("{}:", lab.client().v4)),
            "{decision}"
        );
    }
    ensure!(decisions[1]["targets"] == json!(["unix:///var/run/app.sock"]));
    // Nothing else was told, nor lost.
    for (tracer, count) in [(outbound, 5), (inbound, 4)] {
        let ended = tracer.interrupt()?;
        ensure!(
            ended.decisions.is_empty() && ended.count == count,
            "{ended:?}"
        );
        ensure!(ended.lost_in_kernel + ended.lost_in_agent == 0, "{ended:?}");
    }
    Ok(())
}

#[test]
fn a_proxys_connections_are_told() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    for address in ["0.0.0.0:15001", "0.0.0.0:15006"] {
        let server = Server::tcp(address.parse()?)
            .place(lab.inside().user(1337, 1337))
            .name("proxy")
            .start()?;
        lab.keep(server);
    }
    lab.write_workload(&["capture.sidecar-agent.io/proxy: external"])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;
    let tracer = Tracer::start(lab.agent()?, &["--path", "proxy", "--count", "2"])?;
    let pod = lab.workload().v4;
    ensure!(connect(
        Client::tcp("10.96.0.1:80".parse()?).place(lab.inside())
    )?);
    ensure!(connect(
        Client::tcp((pod, 7000).into()).place(lab.outside())
    )?);
    // As many as were wanted: it ends by itself.
    let ended = tracer.end()?;
    let [outbound, inbound] = &ended.decisions[..] else {
        anyhow::bail!("{ended:?}")
    };
    ensure!(outbound["direction"] == "outbound", "{outbound}");
    ensure!(outbound["reason"] == "capture-all", "{outbound}");
    ensure!(outbound["destination"] == "10.96.0.1:80", "{outbound}");
    let target = outbound["targets"][0].as_str().unwrap_or_default();
    ensure!(
        target.starts_with("127.") && target.ends_with(":15001"),
        "{outbound}"
    );
    ensure!(inbound["direction"] == "inbound", "{inbound}");
    ensure!(
        inbound["targets"] == json!(["127.0.0.1:15006"]),
        "{inbound}"
    );
    ensure!(
        inbound["field"] == "metadata.annotations[capture.sidecar-agent.io/proxy]",
        "{inbound}"
    );
    Ok(())
}

#[test]
fn filters_are_heeded() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let agent = lab.agent()?;
    let of = |args: &[&str]| Tracer::start(agent, args);
    let wanted = [
        of(&["prod-us1/productpage"])?,
        of(&["--reason", "registry-only", "--reason", "egress-service"])?,
        of(&["--dst", "10.96.0.0/24", "--port", "9080"])?,
    ];
    let others = [
        of(&["prod-us1/other"])?,
        of(&["--direction", "inbound"])?,
        of(&["--dst", "10.97.0.0/16"])?,
        of(&["--port", "80"])?,
        of(&["--path", "relay", "--path", "proxy"])?,
    ];
    let (allowed, refused) = (of(&["--path", "direct"])?, of(&["--path", "deny"])?);
    let call = |address: &str| connect(Client::tcp(address.parse()?).place(lab.inside()));
    ensure!(call("10.96.0.1:9080")?);
    ensure!(!call("10.96.0.4:9080")?);
    let reasons = |tracer: Tracer| -> anyhow::Result<Vec<Value>> {
        let ended = tracer.interrupt()?;
        let reasons = ended.decisions.iter().map(|of| of["reason"].clone());
        Ok(reasons.collect())
    };
    for tracer in wanted {
        assert_eq!(reasons(tracer)?, ["egress-service", "registry-only"]);
    }
    for tracer in others {
        assert_eq!(reasons(tracer)?, [""; 0]);
    }
    assert_eq!(reasons(allowed)?, ["egress-service"]);
    assert_eq!(reasons(refused)?, ["registry-only"]);

    let output = agent.cli(&["trace", "--reason", "bad-weather"])?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    let output = agent.cli(&["trace", "--dst", "10.96"])?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}

/// The pin of one of an agent's maps.
fn pin(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    entries.map(|entry| entry.path()).find_map(|path| {
        if path.file_name()? == name {
            Some(path)
        } else {
            path.is_dir().then(|| pin(&path, name)).flatten()
        }
    })
}

/// Whether programs tell their decisions.
fn is_on(agent: &Agent) -> anyhow::Result<bool> {
    let pin = pin(&agent.bpffs(), "TRACE").context("no map TRACE")?;
    let word: Array<_, u64> = Map::Array(MapData::from_pin(pin)?).try_into()?;
    Ok(word.get(&0, 0)? != 0)
}

#[test]
fn programs_are_silent_once_the_last_client_is_gone() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let agent = lab.agent()?;
    let off = |agent: &Agent| {
        poll_result(DEADLINE, "tracing to be off", || {
            ensure!(!is_on(agent)?, "it is on");
            Ok(())
        })
    };
    ensure!(!is_on(agent)?, "on although nobody traces");
    let first = Tracer::start(agent, &[])?;
    let second = Tracer::start(agent, &[])?;
    ensure!(is_on(agent)?);
    ensure!(agent.status()?["trace"]["clients"] == 2);
    first.interrupt()?;
    agent.wait_until("one client", |status| status["trace"]["clients"] == 1)?;
    ensure!(is_on(agent)?, "off although somebody traces");
    // One that goes without a word.
    second.kill()?;
    off(agent)?;
    ensure!(agent.status()?["trace"]["clients"] == 0);

    // An agent that starts anew knows of no client.
    let tracer = Tracer::start(agent, &[])?;
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.start()?;
    lab.wait_captured()?;
    off(lab.agent()?)?;
    drop(tracer);
    Ok(())
}

/// A client made of nothing but a socket, and the first line it is told.
fn raw(agent: &Agent) -> anyhow::Result<(UnixStream, String)> {
    let mut stream = UnixStream::connect(agent.run_dir().join("admin.sock"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"{\"trace\":{}}\n")?;
    let (mut line, mut byte) = (String::new(), [0]);
    // No more than the line: what follows is for whoever reads next.
    while !line.ends_with('\n') {
        stream.read_exact(&mut byte)?;
        line.push(char::from(byte[0]));
    }
    Ok((stream, line))
}

#[test]
fn no_more_clients_than_there_is_room_for() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let agent = lab.agent()?;
    let mut clients = Vec::new();
    for number in 0..16 {
        let (stream, line) = raw(agent)?;
        ensure!(line == "\"started\"\n", "client {number}: {line}");
        clients.push(stream);
    }
    let output = agent.cli(&["trace"])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.contains("16 clients trace already"), "{error}");
    ensure!(agent.status()?["trace"]["clients"] == 16);
    clients.pop();
    agent.wait_until("room", |status| status["trace"]["clients"] == 15)?;
    Tracer::start(agent, &[])?.interrupt()?;
    Ok(())
}

/// Decisions that a client made of nothing but a socket gets, and what it is told was lost.
fn read_to_end(stream: UnixStream) -> anyhow::Result<(u64, u64, u64)> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let (mut decisions, mut lost) = (0, Value::Null);
    for line in BufReader::new(stream).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        if line["decision"].is_object() {
            decisions += 1;
        }
        if line["lost"].is_object() {
            lost = line["lost"].clone();
        }
    }
    let number = |field: &str| lost[field].as_u64().context("no last word");
    Ok((decisions, number("kernel")?, number("agent")?))
}

#[test]
fn a_flood_is_bounded_and_what_is_dropped_is_counted() -> anyhow::Result<()> {
    /// More than a client's queue and its socket hold.
    const MANY: u32 = 8000;
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let agent = lab.agent()?;
    let reads = Tracer::start(agent, &["--path", "deny"])?;
    let reads_not = raw(agent)?;
    ensure!(reads_not.1 == "\"started\"\n", "{}", reads_not.1);
    let reads_not = reads_not.0;

    let app = Probe::start(lab.inside())?;
    for seen in app.visits("10.96.0.4:9080".parse()?, MANY)? {
        ensure!(seen.is_err(), "not refused");
    }
    // The agent serves others meanwhile.
    let refused = lab.decisions("outbound")?;
    ensure!(
        refused.contains(&("registry-only".to_owned(), MANY.into())),
        "{refused:?}"
    );
    let ended = reads.interrupt()?;
    ensure!(
        ended.count + ended.lost_in_kernel + ended.lost_in_agent == u64::from(MANY),
        "{} of {MANY} told, {} lost in the kernel, {} in the agent",
        ended.count,
        ended.lost_in_kernel,
        ended.lost_in_agent
    );
    ensure!(ended.decisions.len() as u64 == ended.count);
    ensure!(ended.count > 1000, "hardly any was told: {}", ended.count);

    let (told, kernel, own) = read_to_end(reads_not)?;
    ensure!(own > 0, "a client that does not read has lost nothing");
    ensure!(
        told + kernel + own == u64::from(MANY),
        "{told} of {MANY} told, {kernel} lost in the kernel, {own} in the agent"
    );
    let trace = &agent.wait_until("all clients to be gone", |status| {
        status["trace"]["clients"] == 0
    })?["trace"];
    ensure!(trace["lost_in_kernel"] == kernel, "{trace}");
    ensure!(
        trace["lost_in_agent"].as_u64() == Some(own + ended.lost_in_agent),
        "{trace}"
    );
    Ok(())
}
