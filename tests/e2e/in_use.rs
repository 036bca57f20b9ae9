//! An application that listens where a Sidecar declares a real ingress listener.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::Value;
use sidecar_tests::{Client, Server, lab::Lab, require_root};

const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: real, namespace: prod-us1}
spec:
  ingress:
  - port: {number: 9080, protocol: TCP, name: in}
    bind: ADDRESS
    captureMode: NONE
    defaultEndpoint: 127.0.0.1:8080
  - port: {number: 9081, protocol: TCP, name: free}
    bind: ADDRESS
    captureMode: NONE
    defaultEndpoint: 127.0.0.1:8080
";

fn collisions(status: &Value) -> Vec<&Value> {
    let diagnostics = status["diagnostics"].as_array().into_iter().flatten();
    diagnostics
        .filter(|diagnostic| diagnostic["code"] == "SCA0426")
        .collect()
}

#[test]
fn an_application_in_the_way_is_shown_until_it_is_gone() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    let address: SocketAddr = (lab.workload().v4, 9080).into();
    lab.serve_inside("127.0.0.1:8080", "endpoint")?;
    let application = Server::tcp(address)
        .place(lab.inside())
        .name("in the way")
        .start()?;
    let ip = address.ip().to_string();
    lab.write("sidecar.yaml", &SIDECAR.replace("ADDRESS", &ip))?;
    lab.write_workload(&[])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;
    let status = lab
        .agent()?
        .wait_until("the collision to be shown", |status| {
            !collisions(status).is_empty()
        })?;
    let [found] = collisions(&status)[..] else {
        panic!("not just one: {status}")
    };
    ensure!(found["field"] == "spec.ingress[0]", "{found}");
    ensure!(found["resource"]["name"] == "real", "{found}");
    ensure!(found["location"]["line"] == 6, "{found}");
    let message = found["message"].as_str().unwrap_or_default();
    for fact in [
        "prod-us1/productpage",
        &format!("already listens on {address}"),
        "sk_lookup",
    ] {
        ensure!(message.contains(fact), "{fact:?} is not in {message:?}");
    }
    // It is as the message says.
    let outcome = Client::tcp(address).place(lab.outside()).banner()?;
    let reached = outcome.banner.map(|banner| banner.name);
    ensure!(reached.as_deref() == Some("endpoint"), "{reached:?}");

    drop(application);
    lab.agent()?
        .wait_until("the collision to be over", |status| {
            collisions(status).is_empty()
        })?;
    Ok(())
}
