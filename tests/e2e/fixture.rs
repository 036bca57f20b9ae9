//! What most tests begin with.

use sidecar_tests::lab::{Lab, service};

/// Exposes the services of one namespace.
pub const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: prod-us1}
spec:
  egress:
  - hosts: ['prod-us1/*']
";

/// A lab whose workload, once an agent runs, reaches `details` at 10.96.0.1:9080 and not `secret`
/// at 10.96.0.4:9080.
pub fn registry_only() -> anyhow::Result<Lab> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.serve("10.96.0.1:9080", "details")?;
    lab.serve("10.96.0.4:9080", "secret")?;
    lab.write(
        "services.yaml",
        &service("prod-us1", "details", "10.96.0.1".parse()?, 9080),
    )?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write_workload(&[])?;
    lab.write_mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")?;
    Ok(lab)
}

/// A service at these addresses (as YAML has lists), port 9080, whose endpoint in the workload's root
/// is the socket /run/local.sock: connections to it are relayed.
pub fn relayed_service(addresses: &str) -> String {
    format!(
        "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: local, namespace: prod-us1}}
spec:
  hosts: [local.example.com]
  addresses: [{addresses}]
  ports:
  - {{number: 9080, name: tcp, protocol: TCP}}
  resolution: STATIC
  endpoints:
  - address: unix:///run/local.sock
"
    )
}

/// The entry of another workload in the lab's namespace.
pub fn workload_entry(name: &str, cgroup: &str, netns: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata:\n  name: {name}\n  namespace: prod-us1\n  annotations:\n    \
         capture.sidecar-agent.io/cgroup: {cgroup}\n    \
         capture.sidecar-agent.io/netns: {netns}\n\
         spec: {{address: 10.77.0.99}}\n"
    )
}
