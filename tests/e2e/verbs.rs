//! The verbs that need neither root nor kernel, run as an ordinary user.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Output, Stdio},
};

use anyhow::ensure;
use serde_json::{Value, json};
use sidecar_tests::programs;

const NOBODY: u32 = 65534;

const WORKLOAD: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: productpage
  namespace: prod-us1
  annotations:
    capture.sidecar-agent.io/cgroup: shop
    capture.sidecar-agent.io/netns: /run/netns/shop
spec:
  address: 10.0.0.1
  labels: {app: productpage}
";

/// Resources, and the agent's verbs over them.
struct Resources(tempfile::TempDir);

impl Resources {
    fn new(files: &[(&str, &str)]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        for (name, text) in files {
            fs::write(dir.path().join(name), text)?;
        }
        Ok(Self(dir))
    }

    /// Runs the agent with the resources as directory, as nobody if the test is root's.
    fn agent(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(self.program()?);
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let dir = self.0.path().display().to_string();
        let args = args.iter().map(|arg| arg.replace("DIR", &dir));
        Ok(command
            .args(args)
            .current_dir("/")
            .stdin(Stdio::null())
            .output()?)
    }

    /// A copy that nobody can run: the build directory may be out of reach for others.
    fn program(&self) -> anyhow::Result<std::path::PathBuf> {
        let copy = self.0.path().join("agent-for-nobody");
        if !copy.exists() {
            // By another process: a child that another test forks just now would inherit the open
            // file, and what is open for writing cannot be run.
            let copied = Command::new("cp")
                .arg(programs::agent()?)
                .arg(&copy)
                .status()?;
            ensure!(copied.success(), "cp: {copied}");
        }
        Ok(copy)
    }

    fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let output = self.agent(args)?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

#[test]
fn explain_names_listener_target_and_resource() -> anyhow::Result<()> {
    let resources = Resources::new(&[
        ("workload.yaml", WORKLOAD),
        (
            "sidecar.yaml",
            include_str!("../resources/unix-ingress.yaml"),
        ),
    ])?;
    let workload = "prod-us1/productpage";
    let explain = |destination: &str| {
        resources.json(&[
            "explain",
            "--config",
            "DIR",
            "-o",
            "json",
            workload,
            destination,
        ])
    };
    let inbound = explain("inbound:10.0.0.1:9080")?;
    assert_eq!(inbound["path"], "relay");
    assert_eq!(inbound["reason"], "ingress-listener");
    assert_eq!(inbound["target"], "unix:///var/run/someuds.sock");
    assert_eq!(inbound["resource"]["kind"], "Sidecar");
    assert_eq!(inbound["resource"]["namespace"], "prod-us1");
    assert_eq!(inbound["resource"]["name"], "default");
    assert_eq!(inbound["resource"]["line"], 1);
    let file = inbound["resource"]["file"].as_str().unwrap_or_default();
    ensure!(file.ends_with("/sidecar.yaml"), "{file}");
    ensure!(
        inbound["listener"]
            .as_str()
            .is_some_and(|name| name.contains("9080")),
        "{inbound}"
    );
    let outbound = explain("203.0.113.1:443")?;
    assert_eq!(outbound["path"], "pass");
    assert_eq!(outbound["reason"], "allow-any");
    Ok(())
}

#[test]
fn who_calls_and_by_which_way_can_be_said() -> anyhow::Result<()> {
    let workload = WORKLOAD.replace(
        "  annotations:\n",
        "  annotations:\n    \
         capture.sidecar-agent.io/proxy: external\n    \
         capture.sidecar-agent.io/proxy-uid: '7,8'\n    \
         capture.sidecar-agent.io/outbound-owner-groups-exclude: '5'\n    \
         capture.sidecar-agent.io/dns-capture: 'true'\n    \
         traffic.sidecar.istio.io/excludeInterfaces: net1\n    \
         istio.io/reroute-virtual-interfaces: net2\n",
    );
    let resources = Resources::new(&[("workload.yaml", &workload)])?;
    let name = "prod-us1/productpage";
    for (destination, options, reason, target) in [
        ("8.8.8.8:53", &[][..], "dns", "127.0.0.1:15053"),
        ("8.8.8.8:53", &["--udp"], "dns", "127.0.0.1:15053"),
        (
            "8.8.8.8:54",
            &["--udp"],
            "not-included",
            "original destination",
        ),
        (
            "8.8.8.8:80",
            &["--gid", "5"],
            "owner-group",
            "original destination",
        ),
        (
            "8.8.8.8:80",
            &["--uid", "8"],
            "proxy-own",
            "original destination",
        ),
        (
            "10.0.0.1:80",
            &["--from-proxy"],
            "proxy-self-call",
            "127.0.0.1:15006",
        ),
        (
            "10.0.0.1:80",
            &["--from-proxy", "--from", "127.0.0.6"],
            "passthrough",
            "original destination",
        ),
        (
            "8.8.8.8:80",
            &["--interface", "net1"],
            "excluded-interface",
            "original destination",
        ),
        (
            "inbound:8.8.8.8:80",
            &["--interface", "net2"],
            "virtual-interface",
            "127.0.0.1:15001",
        ),
    ] {
        let args = [
            "explain",
            "--config",
            "DIR",
            "-o",
            "json",
            name,
            destination,
        ];
        let answer = resources.json(&[&args[..], options].concat())?;
        assert_eq!(answer["reason"], reason, "{destination} {options:?}");
        assert_eq!(answer["target"], target, "{destination} {options:?}");
    }
    let args = ["explain", "--config", "DIR", name, "8.8.8.8:80", "--uid"];
    let output = resources.agent(&[&args[..], &["1", "--from-proxy"]].concat())?;
    assert_eq!(output.status.code(), Some(2));

    let plan = &resources.json(&["plan", "--config", "DIR", "-o", "json"])?[0]["callers"];
    assert_eq!(plan["proxy"]["uids"], json!([7, 8]));
    assert_eq!(plan["proxy"]["loopback"], "127.0.0.1/32");
    assert_eq!(plan["proxy"]["dns_port"], 15053);
    assert_eq!(plan["except_groups"], json!([5]));
    assert_eq!(
        plan["interfaces"],
        json!({"net1": ["excluded"], "net2": ["virtual"]})
    );
    assert_eq!(plan["virtual_ranges"], json!(["*"]));
    let output = resources.agent(&["plan", "--config", "DIR"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in [
        "proxy: uids 7,8, gids 7,8; loopback 127.0.0.1/32; tunnel port 15008; DNS",
        "exempt groups: 5",
        "interface net2: virtual",
        "captured at virtual interfaces: *",
    ] {
        assert!(text.lines().any(|of| of == line), "{line}: {text}");
    }
    Ok(())
}

#[test]
fn explain_names_the_connection_pool_that_holds_for_a_port() -> anyhow::Result<()> {
    let resources = Resources::new(&[
        ("workload.yaml", WORKLOAD),
        (
            "sidecar.yaml",
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
             metadata: {name: pools, namespace: prod-us1}\n\
             spec:\n  inboundConnectionPool: {tcp: {maxConnections: 9}}\n  ingress:\n  \
             - port: {number: 9080, protocol: HTTP}\n    connectionPool: {http: {maxRetries: 1}}\n  \
             - port: {number: 9081, protocol: HTTP}\n",
        ),
    ])?;
    let explain = |destination: &str, format: &str| {
        let args = ["explain", "--config", "DIR", "-o", format];
        resources.agent(&[&args[..], &["prod-us1/productpage", destination]].concat())
    };
    for (destination, field, line) in [
        ("inbound:10.0.0.1:9080", "spec.ingress[0].connectionPool", 8),
        ("inbound:10.0.0.1:9081", "spec.inboundConnectionPool", 5),
    ] {
        let answer: Value = serde_json::from_slice(&explain(destination, "json")?.stdout)?;
        let pool = &answer["connection_pool"];
        assert_eq!(pool["field"], field, "{answer}");
        assert_eq!(pool["resource"]["name"], "pools", "{answer}");
        assert_eq!(pool["location"]["line"], line, "{answer}");
        let text = explain(destination, "table")?.stdout;
        let text = String::from_utf8_lossy(&text);
        let shown = format!("left to the proxy: Sidecar prod-us1/pools {field} (");
        ensure!(text.contains(&shown), "{shown:?} is not in\n{text}");
    }
    // No listener, and no inbound connection.
    for destination in ["inbound:10.0.0.1:9082", "10.0.0.1:9080"] {
        let answer: Value = serde_json::from_slice(&explain(destination, "json")?.stdout)?;
        ensure!(answer["connection_pool"].is_null(), "{answer}");
    }
    Ok(())
}

#[test]
fn explain_of_an_unknown_workload_names_those_that_are_known() -> anyhow::Result<()> {
    let resources = Resources::new(&[("workload.yaml", WORKLOAD)])?;
    let output = resources.agent(&["explain", "--config", "DIR", "prod-us1/x", "10.0.0.1:80"])?;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.contains("prod-us1/productpage"), "{error}");
    let output = resources.agent(&["explain", "--config", "DIR", "prod-us1/x", "10.0.0.1"])?;
    assert_eq!(
        output.status.code(),
        Some(2),
        "a destination without port is wrong usage"
    );
    Ok(())
}

#[test]
fn plan_prints_in_every_format() -> anyhow::Result<()> {
    let resources = Resources::new(&[
        ("workload.yaml", WORKLOAD),
        ("sidecar.yaml", include_str!("../resources/default.yaml")),
    ])?;
    let json = resources.json(&["plan", "--config", "DIR", "-o", "json"])?;
    assert_eq!(json[0]["workload"], "prod-us1/productpage");
    ensure!(
        json[0]["rules"]
            .as_array()
            .is_some_and(|rules| rules.len() >= 2),
        "{json}"
    );
    let table = resources.agent(&["plan", "--config", "DIR"])?;
    ensure!(String::from_utf8_lossy(&table.stdout).contains("everything else"));
    let yaml = resources.agent(&["plan", "--config", "DIR", "-o", "yaml"])?;
    ensure!(String::from_utf8_lossy(&yaml.stdout).contains("workload: prod-us1/productpage"));
    Ok(())
}

#[test]
fn check_tells_where_what_and_how_to_mend_it() -> anyhow::Result<()> {
    let resources = Resources::new(&[(
        "sidecar.yaml",
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {name: x, namespace: shop}\n\
         spec:\n  egress:\n  - hosts: ['*']\n    captureMod: NONE\n",
    )])?;
    let output = resources.agent(&["check", "DIR"])?;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    for wanted in [
        "sidecar.yaml:6:",
        "sidecar.yaml:7:",
        "spec.egress[0].hosts[0]",
        "captureMode",
    ] {
        ensure!(text.contains(wanted), "no {wanted} in\n{text}");
    }
    let json = resources.agent(&["check", "DIR", "-o", "json"])?;
    let json: Value = serde_json::from_slice(&json.stdout)?;
    assert_eq!(json["summary"]["errors"], 2);
    let place = &json["diagnostics"][0]["location"];
    ensure!(place["line"].is_u64() && place["column"].is_u64(), "{json}");
    Ok(())
}

#[test]
fn the_reference_resources_are_clean() -> anyhow::Result<()> {
    let resources = Resources::new(&[
        ("workload.yaml", WORKLOAD),
        (
            "no-ip-tables.yaml",
            include_str!("../resources/no-ip-tables.yaml"),
        ),
        (
            "mysql.yaml",
            include_str!("../resources/external-svc-mysql.yaml"),
        ),
    ])?;
    let output = resources.agent(&["check", "DIR"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains(" 0 errors"), "{text}");
    Ok(())
}

#[test]
fn status_without_an_agent_says_what_to_look_at() -> anyhow::Result<()> {
    let resources = Resources::new(&[])?;
    let output = resources.agent(&["status", "--run-dir", "DIR/nowhere"])?;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.contains("is it running"), "{error}");
    Ok(())
}
