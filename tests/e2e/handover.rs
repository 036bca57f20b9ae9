//! From one agent to the next, without a connection that is refused.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use rustix::io::Errno;
use sidecar_tests::{
    Client, Mode, Probe, Server,
    command::output,
    lab::{Lab, service},
    require_root,
    scrape::Page,
    tempdir::TempDir,
};

/// One relayed listener each way, one that is served in the kernel alone, and the rest refused.
const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: relayed, namespace: prod-us1}
spec:
  ingress:
  - port: {number: 9080, protocol: TCP, name: in}
    defaultEndpoint: unix:///var/run/app.sock
  egress:
  - port: {number: 0, protocol: TCP, name: out}
    bind: unix:///run/out.sock
    hosts: ['*/*']
  - hosts: ['*/*']
";

/// A lab with an application on a unix socket. No agent runs yet.
fn lab(application: Mode) -> anyhow::Result<Lab> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.serve("10.96.0.1:9081", "service")?;
    let application = Server::unix(&lab.in_root("/var/run/app.sock"))
        .place(lab.inside())
        .mode(application)
        .name("application")
        .start()?;
    lab.keep(application);
    lab.write(
        "services.yaml",
        &service("prod-us1", "service", "10.96.0.1".parse()?, 9081),
    )?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write_workload(&[])?;
    lab.write_mesh("outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n")?;
    Ok(lab)
}

/// The same, with an agent; the application tells its name.
fn relayed() -> anyhow::Result<Lab> {
    let mut lab = lab(Mode::Banner)?;
    lab.start_agent()?;
    Ok(lab)
}

fn ingress(lab: &Lab) -> SocketAddr {
    (lab.workload().v4, 9080).into()
}

/// While `change` runs, connections are made through the relay and through the kernel alone, one
/// after the other. None may fail.
fn under_load(
    lab: &mut Lab,
    change: impl FnOnce(&mut Lab) -> anyhow::Result<()>,
) -> anyhow::Result<u32> {
    let relay = Probe::start(lab.outside())?;
    let kernel = Probe::start(lab.inside())?;
    let (to_relay, to_kernel) = (ingress(lab), "10.96.0.1:9081".parse()?);
    let (done, made) = (AtomicBool::new(false), AtomicU32::new(0));
    let visit = |probe: &Probe, address, name: &str| -> anyhow::Result<()> {
        while !done.load(Ordering::Relaxed) {
            let seen = probe.visit(address)?.with_context(|| {
                format!("connection {} to {name}", made.load(Ordering::Relaxed))
            })?;
            ensure!(seen.name == name, "{seen:?}");
            made.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let visit = &visit;
    thread::scope(|scope| {
        let relayed = scope.spawn(move || visit(&relay, to_relay, "application"));
        let direct = scope.spawn(move || visit(&kernel, to_kernel, "service"));
        let changed = change(lab);
        done.store(true, Ordering::Relaxed);
        let results = [relayed.join(), direct.join()];
        for result in results {
            result.map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        changed
    })?;
    Ok(made.into_inner())
}

#[test]
fn no_connection_is_refused_while_agents_follow_each_other() -> anyhow::Result<()> {
    require_root!();
    let mut lab = relayed()?;
    let first = lab.agent()?.pid();
    let made = under_load(&mut lab, |lab| {
        for _ in 0..3 {
            let before = lab.agent_mut()?.succeed::<&str>(&[])?;
            lab.wait_captured()?;
            ensure!(before.wait()?.success(), "it did not end well");
        }
        Ok(())
    })?;
    ensure!(lab.agent()?.pid() != first, "nothing has changed");
    ensure!(made > 20, "only {made} connections");
    println!("{made} connections while agents followed each other");
    Ok(())
}

/// Maps of another size: the next agent's programs are beside those of the one before.
#[test]
fn no_connection_is_refused_when_the_maps_change() -> anyhow::Result<()> {
    require_root!();
    let mut lab = relayed()?;
    under_load(&mut lab, |lab| {
        for rules in ["100000", "200000"] {
            let before = lab.agent_mut()?.succeed(&["--max-rules", rules])?;
            lab.wait_captured()?;
            ensure!(before.wait()?.success(), "it did not end well");
        }
        Ok(())
    })?;
    let pins = lab.agent()?.bpffs().join("sidecar-agent");
    ensure!(pins.join("set-3").exists(), "the maps have not changed");
    Ok(())
}

#[test]
fn live_connections_go_on_in_the_agent_before_which_ends_with_the_last() -> anyhow::Result<()> {
    require_root!();
    let mut lab = lab(Mode::Echo)?;
    lab.start_agent_with(|agent| agent.args(["--drain", "20"]))?;
    lab.wait_captured()?;
    let mut held = Client::tcp(ingress(&lab)).place(lab.outside()).hold()?;
    ensure!(held.exchange("there?")? == "there?");
    let before = lab.agent_mut()?.succeed::<&str>(&[])?;
    lab.wait_captured()?;
    ensure!(held.exchange("still there?")? == "still there?");
    ensure!(
        before.has_ended()?.is_none(),
        "it has ended before its connection"
    );
    drop(held);
    ensure!(before.wait()?.success(), "it did not end well");
    Ok(())
}

/// A connection that goes on for ever, in the agent before.
#[test]
fn live_connections_are_cut_at_the_drain_limit_or_by_a_second_signal() -> anyhow::Result<()> {
    require_root!();
    // Longer than any test waits, and a moment.
    for drain in ["3600", "1"] {
        let mut lab = lab(Mode::Echo)?;
        lab.start_agent_with(|agent| agent.args(["--drain", drain]))?;
        lab.wait_captured()?;
        let mut held = Client::tcp(ingress(&lab)).place(lab.outside()).hold()?;
        ensure!(held.exchange("there?")? == "there?");
        let before = lab.agent_mut()?.succeed::<&str>(&[])?;
        if drain == "3600" {
            lab.agent()?.wait_log("waiting for relayed connections")?;
            ensure!(held.exchange("still there?")? == "still there?");
            before.terminate()?;
        }
        ensure!(before.wait()?.success(), "it did not end well");
        ensure!(held.exchange("gone?").is_err(), "it goes on");
    }
    Ok(())
}

#[test]
fn one_that_does_not_load_or_does_not_confirm_changes_nothing() -> anyhow::Result<()> {
    require_root!();
    let mut lab = relayed()?;
    let pid = lab.agent()?.pid();
    under_load(&mut lab, |lab| {
        let agent = lab.agent()?;
        let before = agent.status()?["generation"].clone();
        let output = agent.cli(&["run", "--take-over", "--max-rules", "4294967295"])?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && error.contains("loading BPF maps"),
            "{error}"
        );
        // One that was asked begins anew, with another generation.
        let after = agent.status()?["generation"].clone();
        ensure!(after == before, "it was asked: {before} -> {after}");
        // One that asks, and is gone.
        let mut stream = UnixStream::connect(agent.run_dir().join("admin.sock"))?;
        stream.write_all(b"\"take-over\"\n")?;
        let mut offer = String::new();
        BufReader::new(&stream).read_line(&mut offer)?;
        ensure!(offer.contains("descriptor"), "{offer}");
        drop(stream);
        agent.wait_log("has not taken over")?;
        lab.wait_captured()?;
        Page::of(lab.agent()?).context("metrics are not served any more")?;
        Ok(())
    })?;
    ensure!(lab.agent()?.pid() == pid, "another agent runs");
    Ok(())
}

#[test]
fn where_none_runs_it_just_starts() -> anyhow::Result<()> {
    require_root!();
    let mut lab = lab(Mode::Banner)?;
    lab.start_agent_with(|agent| agent.args(["--take-over"]))?;
    lab.wait_captured()
}

/// A service that is reached by a unix socket of the workload's, through the relay.
fn by_socket(ip: &str, socket: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: local, namespace: prod-us1}}\n\
         spec:\n  hosts: [local.example.com]\n  addresses: [{ip}]\n  \
         ports: [{{number: 9080, name: tcp, protocol: TCP}}]\n  resolution: STATIC\n  \
         endpoints: [{{address: 'unix://{socket}'}}]\n"
    )
}

/// The next agent has another plan, in which the relay's listener leads elsewhere: connections that
/// were decided by the plan before, and wait in the listener that is handed over, are not led there.
#[test]
fn what_another_plan_has_decided_is_not_led_by_the_next() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.serve("10.96.0.1:9080", "direct")?;
    for name in ["first", "second"] {
        let socket = lab.in_root(&format!("/run/{name}.sock"));
        lab.keep(Server::unix(&socket).name(name).start()?);
    }
    lab.write("service.yaml", &by_socket("10.96.0.1", "/run/first.sock"))?;
    lab.write_mesh("{}\n")?;
    lab.write_workload(&[])?;
    let dir = TempDir::new("sidecar-next-")?;
    let entry = "workload.yaml";
    fs::copy(lab.config_dir().join(entry), dir.path().join(entry))?;
    fs::write(
        dir.path().join("service.yaml"),
        by_socket("10.96.0.2", "/run/second.sock"),
    )?;
    lab.start_agent()?;
    let (probe, done) = (Probe::start(lab.inside())?, AtomicBool::new(false));
    let is_done = &done;
    let (seen, refused) = thread::scope(|scope| -> anyhow::Result<_> {
        let visits = scope.spawn(move || {
            let (mut seen, mut refused) = (BTreeSet::new(), 0_u32);
            while !is_done.load(Ordering::Relaxed) {
                match probe.visit("10.96.0.1:9080".parse()?)? {
                    Ok(answer) => drop(seen.insert(answer.name)),
                    Err(_) => refused += 1,
                }
            }
            anyhow::Ok((seen, refused))
        });
        let own = lab.config_dir();
        let changed = [dir.path(), &own, dir.path()]
            .iter()
            .try_for_each(|config| {
                let config = ["--config".as_ref(), config.as_os_str()];
                let before = lab.agent_mut()?.succeed(&config)?;
                lab.wait_captured()?;
                ensure!(before.wait()?.success(), "it did not end well");
                Ok(())
            });
        done.store(true, Ordering::Relaxed);
        let visits = visits.join();
        changed?;
        visits.map_err(|_| anyhow::anyhow!("the client panicked"))?
    })?;
    println!("{refused} connections were decided by a plan that the next agent does not know");
    ensure!(refused > 0, "none was handed over");
    ensure!(
        seen == ["direct", "first"].map(str::to_owned).into(),
        "{seen:?}"
    );
    Ok(())
}

/// Who calls the relay's port itself asks for nothing that could be decided.
#[test]
fn a_direct_call_to_the_relay_is_refused() -> anyhow::Result<()> {
    require_root!();
    let lab = relayed()?;
    let listening = output(lab.inside().command("ss").args(["-ltnH"]))?;
    let own: Vec<SocketAddr> = listening
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.parse().ok())
        .filter(|address: &SocketAddr| address.ip().is_loopback())
        .collect();
    ensure!(own.len() == 2, "the relay's listeners: {listening}");
    let probe = Probe::start(lab.inside())?;
    for address in own {
        let answer = probe.visit(address)?;
        ensure!(
            answer == Err(Errno::CONNRESET) || answer == Err(Errno::CONNREFUSED),
            "{address}: {answer:?}"
        );
    }
    Ok(())
}
