//! Envoy's own counters.

use std::collections::BTreeMap;

/// Names and values, at one time.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Stats(BTreeMap<String, u64>);

impl Stats {
    /// Reads what the admin interface prints, of which only numbers are of interest.
    pub(super) fn parse(text: &str) -> Self {
        let numbers = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(numbers.collect())
    }

    /// One value; 0 if there is no such name: Envoy makes some only when they are first used.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Connections that a listener has taken so far.
    #[must_use]
    pub fn taken(&self, listener: &str) -> u64 {
        self.get(&format!("listener.{listener}.downstream_cx_total"))
    }

    /// Connections that were made for a cluster so far.
    #[must_use]
    pub fn made(&self, cluster: &str) -> u64 {
        self.get(&format!("cluster.{cluster}.upstream_cx_total"))
    }

    /// Connections that all listeners have taken so far, the admin interface's apart.
    #[must_use]
    pub fn all_taken(&self) -> u64 {
        self.sum(".downstream_cx_total")
    }

    /// Connections that clients have with the proxy now.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.sum(".downstream_cx_active")
    }

    /// Over the listeners; their workers and the admin interface have counters of their own.
    fn sum(&self, suffix: &str) -> u64 {
        let of_listener = |name: &str| {
            let name = name.strip_prefix("listener.")?.strip_suffix(suffix)?;
            let is_admin = name == "admin" || name.starts_with("admin.");
            (!is_admin && !name.contains(".worker_")).then_some(())
        };
        self.0
            .iter()
            .filter(|(name, _)| of_listener(name).is_some())
            .map(|(_, value)| value)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_summed_without_workers_and_admin() {
        let stats = Stats::parse(
            "cluster.a.upstream_cx_total: 9\n\
             listener.admin.downstream_cx_total: 4\n\
             listener.admin.main_thread.downstream_cx_total: 4\n\
             listener.in.downstream_cx_total: 2\n\
             listener.in.worker_0.downstream_cx_total: 2\n\
             listener.out.downstream_cx_total: 3\n\
             listener.out.downstream_cx_length_ms: P0(nan,1.0) P25(nan,1.025)\n",
        );
        assert_eq!(stats.all_taken(), 5);
        assert_eq!(stats.taken("out"), 3);
        assert_eq!(stats.made("a"), 9);
        assert_eq!(stats.active(), 0);
    }
}
