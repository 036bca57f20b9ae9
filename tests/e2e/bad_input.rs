//! Bad input: a clear diagnostic, everything else stays in force, nothing panics.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::Value;

use crate::fixture::{SIDECAR, registry_only, workload_entry};
use sidecar_tests::{Cgroup, Client, lab::Lab, require_root};

/// A lab with a captured workload that reaches `details` and nothing else.
fn captured() -> anyhow::Result<Lab> {
    let mut lab = registry_only()?;
    lab.start_agent()?;
    Ok(lab)
}

/// The good state is still in force.
fn still_in_force(lab: &Lab) -> anyhow::Result<()> {
    let connected = |address: &str| -> anyhow::Result<bool> {
        let client = Client::tcp(address.parse::<SocketAddr>()?).place(lab.inside());
        Ok(client.connect()?.connected)
    };
    ensure!(
        connected("10.96.0.1:9080")?,
        "the exposed service is not reached any more"
    );
    ensure!(!connected("10.96.0.4:9080")?, "capture was lost");
    Ok(())
}

/// Waits for a diagnostic with this code about this file, and returns it.
fn diagnostic(lab: &Lab, code: &str, file: &str) -> anyhow::Result<Value> {
    let find = |status: &Value| {
        status["diagnostics"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|found| {
                let of_file =
                    |at: &Value| at["file"].as_str().is_some_and(|name| name.ends_with(file));
                found["code"] == code
                    && (of_file(&found["location"]) || of_file(&found["resource"]))
            })
            .cloned()
    };
    let what = format!("a diagnostic {code} about {file}");
    let status = lab
        .agent()?
        .wait_until(&what, |status| find(status).is_some())?;
    let found = find(&status).unwrap_or_default();
    ensure!(
        found["remedy"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "no remedy: {found}"
    );
    Ok(found)
}

#[test]
fn broken_yaml_keeps_the_last_good_version() -> anyhow::Result<()> {
    require_root!();
    let lab = captured()?;
    lab.write("sidecar.yaml", "spec: [\n")?;
    let found = diagnostic(&lab, "SCA0001", "sidecar.yaml")?;
    ensure!(found["location"]["line"].is_u64(), "{found}");
    still_in_force(&lab)?;
    // Half of the file is there, as while an editor writes it.
    let half = SIDECAR.split_at(SIDECAR.len() / 2).0;
    lab.write("sidecar.yaml", half)?;
    still_in_force(&lab)?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.agent()?
        .wait_until("all diagnostics to be gone", |status| {
            status["diagnostics"].as_array().is_some_and(Vec::is_empty)
        })?;
    still_in_force(&lab)
}

#[test]
fn unknown_kind_and_field_and_invalid_sidecar_are_named() -> anyhow::Result<()> {
    require_root!();
    let lab = captured()?;
    lab.write(
        "kind.yaml",
        "apiVersion: networking.istio.io/v1\nkind: Sidecarr\nmetadata: {name: x}\n",
    )?;
    diagnostic(&lab, "SCA0005", "kind.yaml")?;
    lab.write("sidecar.yaml", &SIDECAR.replace("egress:", "egres:"))?;
    let found = diagnostic(&lab, "SCA0022", "sidecar.yaml")?;
    assert_eq!(found["field"], "spec.egres");
    assert_eq!(found["location"]["line"], 5);
    still_in_force(&lab)?;
    lab.write("sidecar.yaml", &SIDECAR.replace("prod-us1/*", "prod-us1"))?;
    let status = lab.agent()?.status()?;
    let errors = status["diagnostics"].as_array().into_iter().flatten();
    ensure!(
        errors
            .into_iter()
            .any(|found| found["field"] == "spec.egress[0].hosts[0]"),
        "{status}"
    );
    still_in_force(&lab)
}

#[test]
fn a_workload_without_cgroup_or_namespace_disturbs_no_other() -> anyhow::Result<()> {
    require_root!();
    let lab = captured()?;
    let other = Cgroup::new("other")?;
    let path = other.below_root()?;
    lab.write(
        "a.yaml",
        &workload_entry("no-cgroup", "sct-no-such-cgroup", "/proc/self/ns/net"),
    )?;
    lab.write(
        "b.yaml",
        &workload_entry("no-netns", &path, "/run/netns/sct-no-such-netns"),
    )?;
    let status = lab.agent()?.wait_until("both problems", |status| {
        let workloads = status["workloads"].as_array();
        workloads
            .into_iter()
            .flatten()
            .filter(|of| of["problem"].is_string())
            .count()
            == 2
    })?;
    for (name, object) in [
        ("no-cgroup", "sct-no-such-cgroup"),
        ("no-netns", "sct-no-such-netns"),
    ] {
        let problem = status["workloads"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|of| of["workload"] == format!("prod-us1/{name}"))
            .and_then(|of| of["problem"].as_str())
            .unwrap_or_default()
            .to_owned();
        ensure!(problem.contains(object), "{name}: {problem}");
    }
    still_in_force(&lab)
}

#[test]
fn of_two_workloads_on_one_cgroup_the_first_stays() -> anyhow::Result<()> {
    require_root!();
    let lab = captured()?;
    let own = std::fs::read_to_string(lab.config_dir().join("workload.yaml"))?;
    lab.write(
        "zz-second.yaml",
        &own.replace("name: productpage", "name: zz-second"),
    )?;
    let found = diagnostic(&lab, "SCA0411", "zz-second.yaml")?;
    let message = found["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("productpage"),
        "the other one is not named: {message}"
    );
    still_in_force(&lab)
}

#[test]
fn an_unresolvable_host_is_refused_and_named() -> anyhow::Result<()> {
    require_root!();
    let lab = captured()?;
    let sidecar = include_str!("../resources/no-ip-tables.yaml");
    lab.write(
        "mysql.yaml",
        include_str!("../resources/external-svc-mysql.yaml"),
    )?;
    lab.write("sidecar.yaml", sidecar)?;
    lab.agent()?.wait_until("the host to be named", |status| {
        status["diagnostics"].to_string().contains("mysql.foo.com")
    })?;
    lab.wait_captured()?;
    let call = || -> anyhow::Result<Option<i32>> {
        Ok(Client::tcp(([127, 0, 0, 1], 3306).into())
            .place(lab.inside())
            .connect()?
            .errno)
    };
    assert_eq!(call()?, Some(rustix::io::Errno::CONNREFUSED.raw_os_error()));
    let explained = lab.explain("127.0.0.1:3306")?;
    assert_eq!(explained["reason"], "no-endpoint", "{explained}");
    Ok(())
}

#[test]
fn a_unix_path_that_is_a_regular_file_is_left_alone() -> anyhow::Result<()> {
    require_root!();
    let lab = captured()?;
    let file = lab.in_root("/run/details.sock");
    std::fs::write(&file, "precious")?;
    let with_unix = SIDECAR.replace(
        "  egress:\n",
        "  egress:\n  - port: {number: 0, protocol: TCP, name: u}\n    \
         bind: unix:///run/details.sock\n    hosts: ['prod-us1/*']\n",
    );
    lab.write("sidecar.yaml", &with_unix)?;
    let status = lab.agent()?.wait_until("the problem", |status| {
        status["workloads"][0]["problem"].is_string()
    })?;
    let problem = status["workloads"][0]["problem"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        problem.contains("/run/details.sock") && problem.contains("regular file"),
        "{problem}"
    );
    assert_eq!(std::fs::read_to_string(&file)?, "precious");
    still_in_force(&lab)?;
    // Mended: it is tried again without a change of configuration.
    std::fs::remove_file(&file)?;
    lab.wait_captured()?;
    let outcome = Client::unix(&file).place(lab.inside()).banner()?;
    assert_eq!(
        outcome.banner.map(|seen| seen.name).as_deref(),
        Some("details")
    );
    // A directory that is missing is named as well.
    lab.write(
        "sidecar.yaml",
        &with_unix.replace("/run/details.sock", "/no/such/dir/x.sock"),
    )?;
    let status = lab.agent()?.wait_until("the problem", |status| {
        status["workloads"][0]["problem"].is_string()
    })?;
    ensure!(
        status.to_string().contains("/no/such/dir/x.sock"),
        "{status}"
    );
    still_in_force(&lab)
}
