//! What arrives, which the kernel has the attached program decide.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::Value;
use sidecar_tests::{Place, Server, lab::Lab, require_root};

use super::agrees;

const INGRESS: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: prod-us1}
spec:
  ingress:
  - port: {number: 9080, protocol: TCP, name: direct}
    defaultEndpoint: 127.0.0.1:8080
  - port: {number: 9081, protocol: TCP, name: relayed}
    defaultEndpoint: unix:///var/run/app.sock
  - port: {number: 9082, protocol: TCP, name: nobody}
    defaultEndpoint: 127.0.0.1:8082
";

/// A lab with these listeners, an application and an agent.
fn with_ingress() -> anyhow::Result<Lab> {
    let mut lab = Lab::new()?;
    lab.write("sidecar.yaml", INGRESS)?;
    lab.write_mesh("{}\n")?;
    lab.write_workload(&[])?;
    lab.serve_inside("127.0.0.1:8080", "app")?;
    lab.start_agent()?;
    Ok(lab)
}

fn notes(answer: &Value) -> String {
    answer["notes"].to_string()
}

#[test]
fn it_is_given_to_whom_it_belongs_with_an_agent_and_without() -> anyhow::Result<()> {
    require_root!();
    let mut lab = with_ingress()?;
    let (v4, v6) = (lab.workload().v4, lab.workload().v6);
    let at = |port: u16| format!("inbound:{v4}:{port}");
    let by_listener = "ingress-listener";
    for has_agent in [true, false] {
        let direct = agrees(&lab, &[&at(9080)], "direct", by_listener)?;
        ensure!(direct["target"] == "127.0.0.1:8080", "{direct}");
        let nobody = agrees(&lab, &[&at(9082)], "deny", "target-not-listening")?;
        ensure!(
            notes(&nobody).contains("the application does not listen"),
            "{nobody}"
        );
        let other = agrees(&lab, &[&at(7)], "pass", "undeclared-port")?;
        ensure!(other["target"].is_null(), "{other}");
        // IPv6, which a listener on 127.0.0.1 cannot be given.
        let by_v6 = format!("inbound:[{v6}]:9081");
        if has_agent {
            for destination in [&at(9081), &by_v6] {
                let relayed = agrees(&lab, &[destination], "relay", by_listener)?;
                let target: SocketAddr = relayed["target"].as_str().unwrap_or_default().parse()?;
                ensure!(target.ip().is_loopback(), "{relayed}");
            }
            lab.agent_mut()?.stop()?;
        } else {
            let gone = agrees(&lab, &[&at(9081)], "deny", "target-not-listening")?;
            ensure!(notes(&gone).contains("the relay does not listen"), "{gone}");
        }
    }
    Ok(())
}

/// With the source that decides: the workload's own calls pass.
#[test]
fn a_source_can_be_given() -> anyhow::Result<()> {
    require_root!();
    let lab = with_ingress()?;
    let (own, client) = (lab.workload().v4.to_string(), lab.client().v4.to_string());
    let destination = format!("inbound:{own}:9080");
    agrees(
        &lab,
        &[&destination, "--from", &client],
        "direct",
        "ingress-listener",
    )?;
    agrees(&lab, &[&destination, "--from", &own], "pass", "self-call")?;
    Ok(())
}

#[test]
fn the_proxys_absence_is_told_with_the_policy() -> anyhow::Result<()> {
    require_root!();
    for (policy, path) in [("proxy-gone=open", "pass"), ("closed", "deny")] {
        let mut lab = Lab::new()?;
        lab.write_mesh("{}\n")?;
        lab.write_workload(&[
            "capture.sidecar-agent.io/proxy: external",
            &format!("capture.sidecar-agent.io/failure-policy: {policy}"),
        ])?;
        lab.start_agent()?;
        let policy = policy.trim_start_matches("proxy-gone=");
        let told = format!("by proxy-gone={policy}");
        let inbound = format!("inbound:{}:8080", lab.workload().v4);
        let gone = agrees(&lab, &[&inbound], path, GONE[usize::from(path == "deny")])?;
        ensure!(notes(&gone).contains(&told), "{gone}");
        if policy == "open" {
            let gone = agrees(&lab, &["10.96.0.1:9080"], "pass", "proxy-gone")?;
            ensure!(notes(&gone).contains(&told), "{gone}");
        }
        let _proxy = Server::tcp("0.0.0.0:15006".parse()?)
            .place(proxy(&lab))
            .start()?;
        let led = agrees(&lab, &[&inbound], "proxy", "capture-all")?;
        ensure!(
            led["target"] == "0.0.0.0:15006" && led["notes"] == Value::Array(vec![]),
            "{led}"
        );
    }
    Ok(())
}

/// Why it passes, or is refused.
const GONE: [&str; 2] = ["proxy-gone", "target-not-listening"];

fn proxy(lab: &Lab) -> Place<'_> {
    lab.inside().user(1337, 1337)
}
