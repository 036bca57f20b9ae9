//! Egress listeners on unix sockets: a path, and an abstract name.

use std::path::Path;

use super::{Row, relayed_from_unix};
use crate::lab::{Lab, service};

const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: unix-egress
  namespace: prod-us1
spec:
  egress:
  - port: {number: 0, protocol: TCP, name: by-path}
    bind: unix:///run/details.sock
    hosts: ['prod-us1/details.prod-us1.svc.cluster.local']
  - port: {number: 0, protocol: TCP, name: by-name}
    bind: unix://@db
    hosts: ['prod-us1/db.prod-us1.svc.cluster.local']
  - hosts: ['prod-us1/*']
";

pub fn run() -> anyhow::Result<Vec<Row>> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.serve("10.96.0.1:9080", "details")?;
    lab.serve("10.96.0.7:3306", "db")?;
    let mut services = service("prod-us1", "details", "10.96.0.1".parse()?, 9080);
    services += &service("prod-us1", "db", "10.96.0.7".parse()?, 3306);
    lab.write("services.yaml", &services)?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write_workload(&[])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;
    let by_path = lab.in_root("/run/details.sock");
    let check = |asked, socket: &Path, name| {
        relayed_from_unix(&lab, lab.inside(), asked, socket, (name, "egress-listener"))
    };
    Ok(vec![
        check("egress bind unix:///run/details.sock", &by_path, "details")?,
        check("egress bind unix://@db", Path::new("@db"), "db")?,
    ])
}
