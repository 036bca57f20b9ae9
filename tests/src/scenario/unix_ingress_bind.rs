//! An ingress listener on a unix socket, which only Istio 1.0 had.

use std::path::Path;

use super::{Row, relayed_from_unix};
use crate::lab::Lab;

const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: Sidecar
metadata:
  name: unix-ingress-bind
  namespace: prod-us1
spec:
  ingress:
  - port: {number: 0, protocol: TCP, name: by-path}
    bind: unix:///run/app.sock
    defaultEndpoint: 127.0.0.1:8080
";

pub fn run() -> anyhow::Result<Vec<Row>> {
    let mut lab = Lab::new()?;
    lab.serve_inside("127.0.0.1:8080", "application")?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write_workload(&[])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent_with(|agent| agent.env("SIDECAR_AGENT_COMPAT", "istio-1.0"))?;
    lab.wait_captured()?;
    let socket = lab.in_root("/run/app.sock");
    let by_path = |place, asked| {
        let expected = ("application", "ingress-listener");
        relayed_from_unix(&lab, place, asked, Path::new(&socket), expected)
    };
    Ok(vec![
        by_path(lab.outside(), "ingress bind unix:///run/app.sock")?,
        by_path(lab.inside(), "the same from the workload itself")?,
    ])
}
