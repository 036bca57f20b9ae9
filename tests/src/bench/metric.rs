//! What is measured, and what it should be.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::statistics::Median;

/// What a metric should be.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

/// One result.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
pub struct Metric {
    /// What it is, as [`TARGETS`] has it, perhaps with more behind: `rr.relay_over_haproxy.1KiB.64`.
    pub name: String,
    /// Its value: a median unless the name says otherwise.
    pub value: f64,
    /// `ratio`, `ns`, `ms`, ...
    pub unit: Cow<'static, str>,
    /// Where the interval of the median begins, or the least value.
    pub low: f64,
    /// Where it ends, or the greatest value.
    pub high: f64,
    /// What it should be, if anything is asked for.
    pub target: Option<Target>,
    /// Whether it is; `None` without a target.
    pub meets: Option<bool>,
}

use Target::{AtLeast, AtMost};

/// What is asked for, by the beginning of names; of those that fit the longest counts.
const TARGETS: &[(&str, Target)] = &[
    ("connect_rate.proxy_over_plain", AtLeast(0.96)),
    ("connect_rate.proxy_over_iptables", AtLeast(1.3)),
    ("cpu_per_connect.proxy_over_iptables", AtMost(0.75)),
    ("connect_rate.direct_in_over_plain", AtLeast(0.98)),
    ("connect_rate.direct_out_over_plain", AtLeast(0.98)),
    ("stream.direct_over_plain", AtLeast(0.99)),
    ("rr.direct_over_plain", AtLeast(0.99)),
    ("connect_rate.accelerated_over_proxy", AtLeast(0.98)),
    ("stream.accelerated_over_proxy", AtLeast(0.98)),
    ("rr.accelerated_over_proxy", AtLeast(0.98)),
    ("rr.accelerated_over_proxy.1B.64", AtLeast(1.15)),
    ("rr.accelerated_over_proxy.1KiB.64", AtLeast(1.15)),
    ("rr.accelerated_over_proxy.16KiB.64", AtLeast(1.15)),
    ("rr.accelerated_over_proxy.64KiB.64", AtLeast(1.15)),
    ("rps.envoy_accelerated_over_envoy", AtLeast(0.98)),
    ("rps.envoy_accelerated_over_envoy.64", AtLeast(1.15)),
    ("connect_rate.relay_over_haproxy", AtLeast(1.)),
    ("connect_rate.relay_over_envoy", AtLeast(1.)),
    ("stream.relay_over_haproxy", AtLeast(1.)),
    ("stream.relay_over_haproxy.bulk.8", AtLeast(1.5)),
    ("rr.relay_over_haproxy", AtLeast(1.)),
    ("stream.relay_over_envoy", AtLeast(1.)),
    ("stream.relay_over_envoy.bulk.8", AtLeast(1.2)),
    ("rr.relay_over_envoy", AtLeast(1.)),
    ("cpu_per_byte.relay_over_haproxy", AtMost(1.)),
    ("cpu_per_byte.relay_over_envoy", AtMost(1.)),
    ("bystander.connect_over_plain", AtLeast(0.995)),
    ("hook_ns.connect", AtMost(500.)),
    ("hook_ns.sock_ops", AtMost(400.)),
    ("hook_ns.sk_lookup", AtMost(100.)),
    ("hook_ns.getsockopt", AtMost(150.)),
    ("conntrack.added", AtMost(0.)),
    ("toggle_ms.p99", AtMost(10.)),
    ("apply_ms.p99", AtMost(50.)),
    ("restart_adopt_ms", AtMost(500.)),
    ("rss_mib", AtMost(40.)),
    ("map_bytes_per_workload", AtMost(1024.)),
    ("relay_idle.bytes_per_connection", AtMost(2048.)),
    ("relay_idle.pipes", AtMost(0.)),
];

/// The names, or beginnings of names, of all that something is asked of.
pub fn asked_for() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|(name, _)| *name)
}

impl Metric {
    /// A result, with the target that its name has.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: &'static str, median: Median) -> Self {
        let name = name.into();
        let target = target(&name);
        Self {
            value: median.value,
            unit: unit.into(),
            low: median.low,
            high: median.high,
            target,
            meets: target.map(|target| target.is_met_by(median.value)),
            name,
        }
    }

    /// One value that is not the middle of others.
    #[must_use]
    pub fn single(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        let (low, high) = (value, value);
        Self::new(name, unit, Median { value, low, high })
    }
}

impl Target {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            AtLeast(least) => value >= least,
            AtMost(most) => value <= most,
        }
    }
}

/// What is asked for of the metric of this name. A name fits a beginning that ends where a word does.
fn target(name: &str) -> Option<Target> {
    let fits = |beginning: &str| {
        let rest = name.strip_prefix(beginning);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let fitting = TARGETS.iter().filter(|(beginning, _)| fits(beginning));
    fitting
        .max_by_key(|(beginning, _)| beginning.len())
        .map(|(_, target)| *target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_target_counts() {
        assert_eq!(target("stream.relay_over_haproxy.1B.64"), Some(AtLeast(1.)));
        assert_eq!(
            target("stream.relay_over_haproxy.bulk.8"),
            Some(AtLeast(1.5))
        );
        assert_eq!(target("rss_mib"), Some(AtMost(40.)));
        assert_eq!(target("rss_mib_of_another"), None);
        assert_eq!(target("hook_ns.connect.10000_rules"), Some(AtMost(500.)));
    }

    #[test]
    fn a_target_is_met_from_its_own_side() {
        let of = |name: &str, value| Metric::single(name, "", value).meets;
        assert_eq!(of("connect_rate.proxy_over_plain", 0.96), Some(true));
        assert_eq!(of("connect_rate.proxy_over_plain", 0.959), Some(false));
        assert_eq!(of("conntrack.added", 0.), Some(true));
        assert_eq!(of("conntrack.added", 1.), Some(false));
        assert_eq!(of("unasked", 1.), None);
    }
}
