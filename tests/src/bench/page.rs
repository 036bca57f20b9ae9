//! The results as a page of `docs/`.

use std::fmt::Write as _;

use super::{
    Metric, Report,
    report::{Host, figure},
};

/// What keeps metrics from what is asked for, by the beginning of their names. A page says it of those
/// that miss it.
const LIMITS: &[(&str, &str)] = &[];

/// The parts of the page: a title, and which metrics are in it, by the beginnings of their names.
const PARTS: &[(&str, &[&str])] = &[
    (
        "New connections to a proxy",
        &[
            "connect_rate.proxy",
            "connect_rate.iptables",
            "cpu_per_connect",
            "conntrack",
        ],
    ),
    (
        "Led by the kernel alone",
        &["connect_rate.direct", "stream.direct", "rr.direct"],
    ),
    (
        "The relay",
        &[
            "connect_rate.relay",
            "stream.relay",
            "rr.relay",
            "cpu_per_byte",
            "relay_idle",
        ],
    ),
    ("Programs", &["hook_ns"]),
    (
        "A large node",
        &[
            "toggle_ms",
            "first_start_ms",
            "apply_ms",
            "restart_adopt_ms",
            "rss_mib",
            "map_bytes_per_workload",
            "counter_bytes_reserved_per_workload",
        ],
    ),
    ("Who is not captured", &["bystander"]),
];

/// The page, in Markdown, without a title.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut page = conditions(&report.host);
    let (met, all) = report.met();
    let _ = writeln!(page, "\n{met} of {all} targets are met.");
    let mut left: Vec<&Metric> = report.metrics.iter().collect();
    for (title, beginnings) in PARTS {
        let begins = |metric: &&Metric| beginnings.iter().any(|of| metric.name.starts_with(of));
        let part: Vec<&Metric> = left.extract_if(.., |metric| begins(metric)).collect();
        page += &section(title, &part);
    }
    page += &section("Others", &left);
    page
}

fn conditions(host: &Host) -> String {
    let Host {
        kernel,
        cpu,
        cpus,
        haproxy,
        envoy,
        slices,
        connections,
        millis,
    } = host;
    let version = |of: &Option<String>| of.clone().unwrap_or_else(|| "not installed".to_owned());
    format!(
        "Measured on Linux {kernel}, {cpus} CPUs ({cpu}), HAProxy {}, Envoy {}: {slices} slices of \
         each comparison, of {connections} connections or {millis} ms. The sides take turns within \
         a slice, and the next slice has them the other way round; what is told is the median of \
         the slices' ratios, with the interval that holds it in 95 of 100 cases. Both ends are \
         pinned to a CPU each, which a relay between them shares with them, in network namespaces \
         without an uplink.\n",
        version(haproxy),
        version(envoy),
    )
}

fn section(title: &str, metrics: &[&Metric]) -> String {
    if metrics.is_empty() {
        return String::new();
    }
    let mut section = format!(
        "\n## {title}\n\n| metric | value | from | to | unit | target | |\n\
         |---|---:|---:|---:|---|---|---|\n"
    );
    for metric in metrics {
        let [value, low, high] = [metric.value, metric.low, metric.high].map(figure);
        let target = metric.target.map_or_else(String::new, |of| of.to_string());
        let verdict = match metric.meets {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "",
        };
        let Metric { name, unit, .. } = metric;
        let _ = writeln!(
            section,
            "| `{name}` | {value} | {low} | {high} | {unit} | {target} | {verdict} |"
        );
    }
    let missed = |beginning: &str| {
        let mut metrics = metrics.iter();
        metrics.any(|metric| metric.meets == Some(false) && metric.name.starts_with(beginning))
    };
    for (beginning, limit) in LIMITS.iter().filter(|(beginning, _)| missed(beginning)) {
        let _ = writeln!(section, "\n`{beginning}`: {limit}");
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_told_once_and_every_limit_is_one_of_a_target() {
        let host = Host {
            kernel: String::new(),
            cpu: String::new(),
            cpus: 2,
            haproxy: None,
            envoy: None,
            slices: 1,
            connections: 1,
            millis: 1,
        };
        let names = super::super::asked_for().chain(["unknown"]);
        let metrics = names
            .map(|name| Metric::single(name, "ratio", 0.5))
            .collect();
        let page = page(&Report { host, metrics });
        for name in super::super::asked_for().chain(["unknown"]) {
            assert_eq!(page.matches(&format!("| `{name}` |")).count(), 1, "{page}");
        }
        assert_eq!(page.matches("## Others").count(), 1);
        for (beginning, _) in LIMITS {
            let mut asked_for = super::super::asked_for();
            assert!(
                asked_for.any(|name| name.starts_with(beginning)),
                "{beginning}"
            );
        }
    }
}
