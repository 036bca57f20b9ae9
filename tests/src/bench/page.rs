//! The results as a page of `docs/`.

use std::fmt::Write as _;

use super::{
    Metric, Report,
    report::{Host, figure},
};

/// What keeps metrics from what is asked for, by the beginning of their names. A page says it of those
/// that miss it.
const LIMITS: &[(&str, &str)] = &[
    (
        "connect_rate.proxy_over_plain",
        "the programs themselves: `connect`, nine calls of `sock_ops` (both ends are in the cgroup; the \
         kernel makes each of them, whatever is wanted) and `getsockopt` take some 1.4 \u{b5}s \
         (`hook_ns`), about a twentieth of a connection; empty ones alone cost 1.3 % here.",
    ),
    (
        "connect_rate.proxy_over_iptables",
        "iptables alone reaches 0.76 to 0.80 of plain here (`connect_rate.iptables_over_plain`), so \
         that 1.3 of it would be about as much as plain, or more.",
    ),
    (
        "cpu_per_connect.proxy_over_iptables",
        "capture adds some 5 % of CPU to a plain connection, iptables a quarter: what is left is the \
         connection itself.",
    ),
    (
        "connect_rate.accelerated_over_proxy",
        "both ends enter a sockhash and get a structure beside their socket, which the kernel allows \
         only when a connection is established: before it is known whether it stays.",
    ),
    (
        "connect_rate.direct_out",
        "`connect` allocates what getpeername(2) is answered by, beside the socket: 0.5 \u{b5}s more than \
         for a proxy (`hook_ns.connect.direct`).",
    ),
    ("connect_rate.relay", "not found out yet."),
    (
        "stream.relay",
        "not CPU time, of which a byte takes less in nearly all cells (`cpu_per_byte`); what else has \
         not been found out yet. Both ends and the relay share two CPUs here.",
    ),
    (
        "relay_idle.pipes",
        "they are the pool's, for all connections: none belongs to an idle one.",
    ),
    (
        "hook_ns",
        "to count takes 40 to 60 ns of it, a look into a hash map 20 to 40 ns in this virtual \
         machine. `connect` makes five and allocates the socket's storage where a connection is led \
         by the kernel alone, `sk_lookup` makes four and one into the table of sockets, `getsockopt` \
         four.",
    ),
    (
        "apply_ms",
        "5 ms are waited for a burst of changes to end. Then 1,200 files are looked at, and the whole \
         node is resolved and what changed is compiled, some 20 ms of CPU time each; what is looked \
         after each second may come before that.",
    ),
    (
        "restart_adopt_ms",
        "half a second of CPU time to parse 10,000 services, 0.25 s to load the programs, 0.2 s to \
         compile, 0.2 s to read the plans that are in the maps, entry by entry, then 3 ms for each of \
         250 workloads, whose namespaces are visited and whose links are looked at. Meanwhile they \
         stay captured, by what was in force.",
    ),
    (
        "rss_mib",
        "some 23 MiB are pages of the program's own file. Of the heap (`heaptrack`, 50 MB live) the \
         plans of 250 workloads take 19: what each listener is, and their rules; 10,000 services 28, \
         as read and as resolved, of which 11 are selectors; texts and names the rest. The allocator \
         keeps half as much again; others (mimalloc, jemalloc) keep as much.",
    ),
];

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
        "The accelerated hop to a proxy",
        &[
            "connect_rate.accelerated",
            "rr.accelerated",
            "stream.accelerated",
            "cpu_per_rr.accelerated",
            "cpu_per_stream.accelerated",
            "cpu_per_request",
            "rps",
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
            "busy",
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
