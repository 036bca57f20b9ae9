//! `/metrics`: what is documented and what is served are the same, and it is true.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
};

use anyhow::{Context as _, ensure};
use sidecar_tests::{
    Client, DEADLINE, Mode, Server,
    lab::{Lab, WORKLOAD},
    poll::poll_result,
    require_root,
    scrape::{Page, documented},
};

use crate::fixture::{registry_only, relayed_service};

const DECISIONS: &str = "sidecar_agent_decisions_total";

fn visit(lab: &Lab, address: &str) -> anyhow::Result<bool> {
    let address: SocketAddr = address.parse()?;
    Ok(Client::tcp(address)
        .place(lab.inside())
        .connect()?
        .connected)
}

#[test]
fn what_is_served_is_what_is_documented() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    // Something to find fault with: the service it names is nobody's.
    lab.write(
        "odd.yaml",
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {name: odd, namespace: prod-us1}\n\
         spec:\n  workloadSelector: {labels: {app: nobody}}\n  egress: [{hosts: ['./*']}]\n",
    )?;
    lab.write(
        "broken.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {}\n",
    )?;
    lab.write("relayed.yaml", &relayed_service("10.96.0.9"))?;
    // With all that may be served.
    lab.start_agent_with(|agent| agent.args(["--metrics-per-workload"]))?;
    lab.wait_captured()?;
    ensure!(visit(&lab, "10.96.0.1:9080")?, "not reached");
    let page = Page::of(lab.agent()?)?;
    let mut documented = documented()?;
    // Those are of agents that follow one: suite `kube`.
    documented.retain(|name, _| !name.starts_with("sidecar_agent_cluster_"));

    let declared: BTreeMap<String, String> = documented
        .iter()
        .map(|(name, (kind, _))| {
            let suffix = match &**kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let family = name.strip_suffix(suffix).unwrap_or("?").to_owned();
            (family, kind.clone())
        })
        .collect();
    assert_eq!(page.families, declared);
    // Where somebody has asked to be accelerated: suite `envoy`.
    documented.remove("sidecar_agent_accelerated_total");
    let mut labels: BTreeMap<String, BTreeSet<String>> = documented
        .into_iter()
        .map(|(name, (_, labels))| (name, labels))
        .collect();
    let of_decisions = labels.entry(DECISIONS.to_owned()).or_default();
    of_decisions.insert("workload".to_owned());
    assert_eq!(page.names(), labels);
    Ok(())
}

#[test]
fn decisions_are_counted_and_outlive_their_workload() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent_with(|agent| agent.args(["--metrics-per-workload"]))?;
    lab.wait_captured()?;
    for _ in 0..3 {
        ensure!(visit(&lab, "10.96.0.1:9080")?, "not reached");
    }
    for _ in 0..2 {
        ensure!(!visit(&lab, "10.96.0.4:9080")?, "reached");
    }
    let [direct, deny] =
        [("egress-service", "direct"), ("registry-only", "deny")].map(|(reason, path)| {
            [
                ("direction", "outbound"),
                ("path", path),
                ("reason", reason),
            ]
        });
    let check = |workload: &str| -> anyhow::Result<()> {
        let page = Page::of(lab.agent()?)?;
        for (labels, count) in [(direct, 3.0), (deny, 2.0)] {
            let mut all = labels.to_vec();
            all.push(("workload", workload));
            for labels in [&labels[..], &all] {
                let counted = page.sum(DECISIONS, labels);
                ensure!(
                    counted == Some(count),
                    "{labels:?}: {counted:?} of {page:?}"
                );
            }
        }
        Ok(())
    };
    check("prod-us1/productpage")?;
    let workloads = |state: &str| -> anyhow::Result<Option<f64>> {
        Ok(Page::of(lab.agent()?)?.sum("sidecar_agent_workloads", &[("state", state)]))
    };
    ensure!(
        workloads("captured")? == Some(1.0),
        "{:?}",
        workloads("captured")?
    );
    let programs = Page::of(lab.agent()?)?;
    for program in ["connect4", "getsockopt", "inbound"] {
        let attached = programs.sum("sidecar_agent_programs_attached", &[("program", program)]);
        ensure!(attached == Some(1.0), "{program}: {attached:?}");
    }

    fs::remove_file(lab.config_dir().join("workload.yaml"))?;
    poll_result(DEADLINE, "the workload to go", || {
        let left = workloads("captured")?;
        ensure!(left == Some(0.0), "{left:?}");
        Ok(())
    })?;
    check("")?;
    let attached = Page::of(lab.agent()?)?.sum("sidecar_agent_programs_attached", &[]);
    ensure!(attached == Some(0.0), "{attached:?}");

    // Its counters begin anew, and what was counted is not forgotten.
    lab.write_workload(&[])?;
    lab.wait_captured()?;
    check("")?;
    ensure!(!visit(&lab, "10.96.0.4:9080")?, "reached");
    let refused = Page::of(lab.agent()?)?.sum(DECISIONS, &deny);
    ensure!(refused == Some(3.0), "{refused:?}");
    Ok(())
}

#[test]
fn without_a_wish_no_workload_is_named() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    ensure!(!visit(&lab, "10.96.0.4:9080")?, "reached");
    let page = Page::of(lab.agent()?)?;
    let labels = &page.names()[DECISIONS];
    ensure!(!labels.contains("workload"), "{labels:?}");
    Ok(())
}

const TO_A_UNIX_SOCKET: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: prod-us1}
spec:
  ingress:
  - port: {number: 9080, protocol: TCP, name: echo}
    defaultEndpoint: unix:///var/run/echo.sock
  - port: {number: 9081, protocol: TCP, name: nobody}
    defaultEndpoint: unix:///var/run/nobody.sock
";

#[test]
fn relayed_bytes_and_failures_are_told() -> anyhow::Result<()> {
    const BYTES: u32 = 300_000;
    require_root!();
    let mut lab = Lab::new()?;
    lab.write("sidecar.yaml", TO_A_UNIX_SOCKET)?;
    lab.write_workload(&[])?;
    lab.write_mesh("{}\n")?;
    let server = Server::unix(&lab.in_root("/var/run/echo.sock"))
        .place(lab.inside())
        .mode(Mode::Echo)
        .start()?;
    lab.keep(server);
    lab.start_agent_with(|agent| agent.args(["--metrics-per-workload"]))?;
    lab.wait_captured()?;
    let address = |port: u16| SocketAddr::from((lab.workload().v4, port));
    let client = Client::tcp(address(9080)).place(lab.outside());
    let transfer = client.echo(BYTES.into())?.transfer.context("no transfer")?;
    ensure!(transfer.intact, "{transfer:?}");
    // It is accepted, and then reset.
    let _ = Client::tcp(address(9081)).place(lab.outside()).banner()?;
    poll_result(DEADLINE, "the relay's figures", || {
        let page = Page::of(lab.agent()?)?;

        let bytes = f64::from(BYTES);
        let of = |port| vec![("workload", WORKLOAD), ("listener", port)];
        let to_client = [of("ingress *:9080"), vec![("to", "client")]].concat();
        for (name, labels, expected) in [
            (
                "listener_relayed_bytes_total",
                of("ingress *:9080"),
                2.0 * bytes,
            ),
            ("listener_relayed_bytes_total", to_client, bytes),
            ("listener_relayed_bytes_total", of("ingress *:9081"), 0.0),
            (
                "listener_relay_connections_accepted_total",
                of("ingress *:9081"),
                1.0,
            ),
            ("listener_relay_connections", of("ingress *:9080"), 0.0),
            ("relayed_bytes_total", vec![("to", "target")], bytes),
            ("relayed_bytes_total", vec![("to", "client")], bytes),
            ("relay_connections_accepted_total", vec![], 2.0),
            (
                "relay_connections_failed_total",
                vec![("cause", "missing")],
                1.0,
            ),
            ("relay_connections_failed_total", vec![], 1.0),
            ("relay_connections", vec![], 0.0),
        ] {
            let told = page.sum(&format!("sidecar_agent_{name}"), &labels);
            ensure!(told == Some(expected), "{name} {labels:?}: {told:?}");
        }
        let labels = [
            ("direction", "inbound"),
            ("path", "relay"),
            ("reason", "ingress-listener"),
        ];
        let told = page.sum(DECISIONS, &labels);
        ensure!(told == Some(2.0), "{told:?}");
        Ok(())
    })
}
