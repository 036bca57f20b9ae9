//! The reference's first Sidecar: three egress hosts.

use std::fmt::Write as _;

use super::{Check, Row, run_all};
use crate::lab::{Lab, service};

const SIDECAR: &str = include_str!("../../resources/default.yaml");

pub fn run() -> anyhow::Result<Vec<Row>> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.serve("10.96.0.1:9080", "details")?;
    lab.serve("10.96.0.2:80", "api")?;
    lab.serve("10.96.0.3:15012", "istiod")?;
    lab.serve("10.96.0.4:9080", "secret")?;
    let reviews = format!("{}:8080", lab.services().v4);
    lab.serve(&reviews, "reviews-1")?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write("services.yaml", &services(&lab.services().v4.to_string())?)?;
    lab.write_workload(&[])?;
    lab.write_mesh("outboundTrafficPolicy:\n  mode: ALLOW_ANY\n")?;
    lab.start_agent()?;

    let mut rows = run_all(
        &lab,
        &[
            exposed("prod-us1/*: details", "10.96.0.1:9080", "details"),
            exposed(
                "prod-us1/*: reviews, by its endpoint",
                "10.96.1.1:9080",
                "reviews-1",
            ),
            exposed("prod-apis/*: api", "10.96.0.2:80", "api"),
            exposed("istio-system/*: istiod", "10.96.0.3:15012", "istiod"),
            Check {
                asked: "another namespace's, ALLOW_ANY",
                destination: "10.96.0.4:9080",
                reaches: Some("secret"),
                path: "pass",
                reason: "allow-any",
            },
        ],
    )?;
    lab.write_mesh("outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n")?;
    rows.extend(run_all(
        &lab,
        &[
            Check {
                asked: "another namespace's, REGISTRY_ONLY",
                destination: "10.96.0.4:9080",
                reaches: None,
                path: "deny",
                reason: "registry-only",
            },
            exposed(
                "prod-us1/* with REGISTRY_ONLY: details",
                "10.96.0.1:9080",
                "details",
            ),
        ],
    )?);
    Ok(rows)
}

fn exposed<'a>(asked: &'a str, destination: &'a str, name: &'a str) -> Check<'a> {
    Check {
        asked,
        destination,
        reaches: Some(name),
        path: "direct",
        reason: "egress-service",
    }
}

fn services(endpoint: &str) -> anyhow::Result<String> {
    let plain = [
        ("prod-us1", "details", "10.96.0.1", 9080),
        ("prod-apis", "api", "10.96.0.2", 80),
        ("istio-system", "istiod", "10.96.0.3", 15012),
        ("other", "secret", "10.96.0.4", 9080),
    ];
    let mut text = String::new();
    for (namespace, name, ip, port) in plain {
        text += &service(namespace, name, ip.parse()?, port);
    }
    write!(
        text,
        "apiVersion: v1\n\
         kind: Service\n\
         metadata:\n  name: reviews\n  namespace: prod-us1\n\
         spec:\n  clusterIP: 10.96.1.1\n  selector:\n    app: reviews\n  \
           ports:\n  - name: http\n    port: 9080\n    targetPort: 8080\n\
         ---\n\
         apiVersion: networking.istio.io/v1\n\
         kind: WorkloadEntry\n\
         metadata:\n  name: reviews-1\n  namespace: prod-us1\n\
         spec:\n  address: {endpoint}\n  labels:\n    app: reviews\n"
    )?;
    Ok(text)
}
