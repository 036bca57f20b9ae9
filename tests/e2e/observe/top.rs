//! `top`: as text, and on a terminal.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, bail, ensure};
use sidecar_tests::{
    Client, DEADLINE, Mode, Server, lab::Lab, poll::poll_result, programs, require_root,
};

use crate::fixture::{registry_only, workload_entry};

#[test]
fn one_table_where_no_terminal_is() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.write(
        "later.yaml",
        &workload_entry("later", "nowhere.slice", "/nowhere"),
    )?;
    lab.start_agent_unready()?;
    lab.agent()?.wait_until("the workload", |status| {
        let states = status["workloads"].as_array().into_iter().flatten();
        states.filter(|of| of["state"] == "captured").count() == 1
    })?;
    for _ in 0..3 {
        Client::tcp("10.96.0.4:9080".parse()?)
            .place(lab.inside())
            .connect()?;
    }
    for args in [&["top", "--once"][..], &["top"]] {
        let output = lab.agent()?.cli(args)?;
        ensure!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout)?;
        let mut lines = text.lines();
        let heading = lines.next().context("no heading")?;
        ensure!(
            heading.contains("workloads: 1 captured, 0 stale, 0 off, 1 pending"),
            "{text}"
        );
        let relay = lines.next().context("no second line")?;
        ensure!(relay.starts_with("relay: 0 connections"), "{text}");
        ensure!(!text.contains('\u{1b}'), "escape sequences: {text:?}");
        let rows: Vec<Vec<&str>> = lines
            .map(|line| line.split_whitespace().collect())
            .collect();
        let header = "WORKLOAD STATE PASS/S DIRECT/S RELAY/S PROXY/S DENY/S TOTAL PROBLEM";
        ensure!(rows[0].join(" ") == header, "{text}");
        let first = "prod-us1/productpage captured 0 0 0 0 0 3";
        ensure!(rows[1].join(" ") == first, "{text}");
        let second = rows[2].join(" ");
        ensure!(
            second.starts_with("prod-us1/later pending 0 0 0 0 0 0")
                && second.contains("nowhere.slice"),
            "{text}"
        );
        ensure!(rows[3].is_empty() && rows[4][0] == "LISTENER", "{text}");
        let listed: Vec<_> = rows[5..].iter().map(|row| row.join(" ")).collect();
        let service =
            "egress 0.0.0.0:9080 prod-us1/productpage direct - - - - original destination";
        ensure!(listed.iter().any(|row| row.starts_with(service)), "{text}");
    }
    Ok(())
}

const RELAYED: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: prod-us1}
spec:
  ingress:
  - port: {number: 9080, protocol: TCP, name: idle}
    defaultEndpoint: unix:///var/run/idle.sock
  - port: {number: 9081, protocol: TCP, name: busy}
    defaultEndpoint: unix:///var/run/busy.sock
";

/// Live connections and bytes, by listener.
#[test]
fn what_the_relay_does_for_a_listener_is_shown() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    lab.write("sidecar.yaml", RELAYED)?;
    lab.write_mesh("{}\n")?;
    lab.write_workload(&[])?;
    let server = Server::unix(&lab.in_root("/var/run/busy.sock"))
        .place(lab.inside())
        .mode(Mode::Echo)
        .start()?;
    lab.keep(server);
    lab.start_agent()?;
    let busy = SocketAddr::from((lab.workload().v4, 9081));
    let mut client = Client::tcp(busy).place(lab.outside()).hold()?;
    // While it talks, in which time it sends more than a byte a second.
    poll_result(DEADLINE, "the listeners' rates", || {
        let agent = lab.agent()?;
        let shown = thread::scope(|scope| {
            let shown = scope.spawn(|| agent.cli(&["top", "--once"]));
            while !shown.is_finished() {
                client.exchange("so that bytes are moved")?;
            }
            shown.join().unwrap_or_else(|_| bail!("it panicked"))
        })?;
        let text = String::from_utf8(shown.stdout)?;
        let row = |listener: &str| -> anyhow::Result<Vec<String>> {
            let row = text.lines().find(|line| line.contains(listener));
            let row = row.with_context(|| text.clone())?;
            Ok(row.split_whitespace().map(str::to_owned).collect())
        };
        let idle = row("*:9080")?.join(" ");
        let expected =
            "ingress *:9080 prod-us1/productpage relay 0 0 0.0 B 0.0 B unix:///var/run/idle.sock";
        ensure!(idle == expected, "{text}");
        let busy = row("*:9081")?;
        ensure!(busy[4] == "1", "connections: {text}");
        ensure!(busy[6] != "0.0" && busy[6] == busy[8], "bytes: {text}");
        let first = text.lines().position(|line| line.contains("*:9081"));
        ensure!(
            first < text.lines().position(|line| line.contains("*:9080")),
            "{text}"
        );
        Ok(())
    })
}

#[test]
fn without_an_agent_it_says_so() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let output = Command::new(programs::agent()?)
        .args(["top", "--run-dir"])
        .arg(dir.path())
        .output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.contains("is it running"), "{error}");
    Ok(())
}

/// `script` gives it a terminal.
#[test]
fn on_a_terminal_it_is_live_until_q() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let agent = programs::agent()?;
    let command = format!("stty cols 120 rows 20; exec {} top", agent.display());
    let mut script = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("SIDECAR_AGENT_RUN_DIR", lab.agent()?.run_dir())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run `script`")?;
    let mut keys = script.stdin.take().context("no stdin")?;
    let mut output = script.stdout.take().context("no stdout")?;
    let screen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let reader = thread::spawn({
        let screen = Arc::clone(&screen);
        move || {
            let mut part = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut part) {
                let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
                screen.extend_from_slice(&part[..length]);
            }
        }
    });
    let shown = |text: &str| {
        poll_result(DEADLINE, &format!("{text:?} on the screen"), || {
            let screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = String::from_utf8_lossy(&screen);
            ensure!(seen.contains(text), "{seen:?}");
            Ok(())
        })
    };
    let result = shown("prod-us1/productpage")
        .and_then(|()| shown("q: quit"))
        // A key that means nothing, and one that does.
        .and_then(|()| Ok(keys.write_all(b"x")?))
        .and_then(|()| Ok(keys.write_all(b"q")?))
        .and_then(|()| {
            poll_result(DEADLINE, "`top` to end", || {
                script.try_wait()?.context("it still runs")
            })
        });
    if result.is_err() {
        let _ = script.kill();
        let _ = script.wait();
    }
    let ended = result?;
    let _ = reader.join();
    ensure!(ended.success(), "`top` ended with {ended}");
    // The terminal is as it was: the other screen is left, and the cursor is there.
    let screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
    let screen = String::from_utf8_lossy(&screen);
    for sequence in ["\u{1b}[?1049h", "\u{1b}[?1049l", "\u{1b}[?25h"] {
        ensure!(screen.contains(sequence), "{sequence:?}: {screen:?}");
    }
    Ok(())
}
