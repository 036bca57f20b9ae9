//! The benchmark, with as little of everything as there can be: every side works, and is what it is
//! called. No figure is looked at, as that would be a test of the machine.

use sidecar_tests::{
    bench::{self, Group, Plan, asked_for},
    command, require_envoy, skip, tempdir,
};

#[test]
fn everything_that_is_asked_for_is_measured() -> anyhow::Result<()> {
    require_envoy!();
    if command::output(std::process::Command::new("haproxy").arg("-v")).is_err() {
        skip!("HAProxy; `cargo xtask setup` installs it");
    }
    if std::thread::available_parallelism()?.get() < 2 {
        skip!("a second CPU");
    }
    let report = bench::run(Plan::SMOKE, &Group::ALL, &mut |line| println!("{line}"))?;

    let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&report)?)?;
    let metrics = json["metrics"].as_array().expect("a list of metrics");
    let names: Vec<&str> = metrics
        .iter()
        .filter_map(|metric| metric["name"].as_str())
        .collect();
    for name in asked_for() {
        let fits = |of: &&str| *of == name || of.starts_with(&format!("{name}."));
        assert!(names.iter().any(fits), "{name} is not among {names:?}");
    }
    for metric in metrics {
        let figures = ["low", "value", "high"].map(|of| metric[of].as_f64());
        let [Some(low), Some(value), Some(high)] = figures else {
            panic!("no figures: {metric}");
        };
        assert!(low <= value && value <= high, "{metric}");
        assert_eq!(
            metric["target"].is_null(),
            metric["meets"].is_null(),
            "{metric}"
        );
    }
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(
        sorted.len(),
        names.len(),
        "a name is there twice: {names:?}"
    );
    assert!(json["host"]["haproxy"].is_string() && json["host"]["envoy"].is_string());

    let dir = tempdir::TempDir::new("sidecar-chart-")?;
    let file = dir.path().join("chart.svg");
    bench::draw(&report.metrics, &file)?;
    let drawn = std::fs::read_to_string(&file)?;
    assert!(drawn.contains("connect_rate.proxy_over_plain"), "{drawn}");
    Ok(())
}
