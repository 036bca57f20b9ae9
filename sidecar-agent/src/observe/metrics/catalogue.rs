//! Every metric: what is served is encoded by these, and `docs/metrics.md` is written from them.

use prometheus_client::{metrics::MetricType, registry::Unit};

/// What the name of every metric of ours begins with.
pub const PREFIX: &str = "sidecar_agent";

/// One metric family.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, without prefix, unit and suffix.
    pub name: &'static str,
    /// Whether the name has our prefix; those of the process have the names that all exporters use.
    pub ours: bool,
    /// Counter, gauge, histogram or info.
    pub kind: MetricType,
    /// Its unit, if it has one.
    pub unit: Option<UnitName>,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it counts, without a full stop.
    pub help: &'static str,
}

/// Units in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitName {
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

impl UnitName {
    /// As it is in names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
        }
    }
}

impl From<UnitName> for Unit {
    fn from(unit: UnitName) -> Self {
        Self::Other(unit.name().to_owned())
    }
}

impl Metric {
    /// The family's name as it is served: `sidecar_agent_relayed_bytes`.
    #[must_use]
    pub fn family(&self) -> String {
        let prefix = if self.ours { PREFIX } else { "" };
        let unit = self.unit.map_or("", UnitName::name);
        [prefix, self.name, unit]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("_")
    }

    /// The name to ask Prometheus for: the family's, with `_total` or `_info` where the kind has it.
    #[must_use]
    pub fn sample(&self) -> String {
        match self.kind {
            MetricType::Counter => self.family() + "_total",
            MetricType::Info => self.family() + "_info",
            _ => self.family(),
        }
    }

    const fn new(kind: MetricType, name: &'static str) -> Self {
        Self {
            name,
            ours: true,
            kind,
            unit: None,
            labels: &[],
            help: "",
        }
    }

    const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }

    const fn in_unit(self, unit: UnitName) -> Self {
        Self {
            unit: Some(unit),
            ..self
        }
    }

    const fn of_process(self) -> Self {
        Self {
            ours: false,
            ..self
        }
    }
}

/// Declares metrics, whose documentation is their help, and the list of them all.
macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $constant:ident = $metric:expr;)+) => {
        $(
            $(#[doc = $doc])+
            pub const $constant: Metric = Metric {
                help: concat!($($doc),+).trim_ascii(),
                ..$metric
            };
        )+

        /// Every metric.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    /// The agent's version
    BUILD = Metric::new(MetricType::Info, "build").by(&["version"]);
    /// Connections and DNS queries decided in the kernel, also those of workloads that are gone;
    /// paths and reasons are those of docs/reasons.md. With --metrics-per-workload there is a
    /// label workload as well, which is empty for workloads that are gone
    DECISIONS = Metric::new(MetricType::Counter, "decisions").by(&["direction", "path", "reason"]);
    /// Workloads of this node: captured, stale (an older plan is in force), or pending (nothing
    /// is in force)
    WORKLOADS = Metric::new(MetricType::Gauge, "workloads").by(&["state"]);
    /// How many times the configuration was applied since the agent started
    GENERATION = Metric::new(MetricType::Gauge, "configuration_generation");
    /// How long it took to compile the configuration and bring all workloads to it
    APPLY = Metric::new(MetricType::Histogram, "configuration_apply_duration").in_unit(UnitName::Seconds);
    /// Errors and warnings of the configuration in force; codes are those of docs/diagnostics.md
    FINDINGS = Metric::new(MetricType::Gauge, "configuration_findings").by(&["severity", "code"]);
    /// BPF programs attached to workloads' cgroups and network namespaces
    PROGRAMS = Metric::new(MetricType::Gauge, "programs_attached").by(&["program"]);
    /// Whether a feature of the kernel is in use that the agent can do without (1), or it is done
    /// without, as docs/kernels.md tells (0). `netns_inode` is not looked for where there is
    /// `netns_cookie`
    KERNEL_FEATURES = Metric::new(MetricType::Gauge, "kernel_features").by(&["feature"]);
    /// Entries in use of a BPF map. `SOCKETS` is as of the last look, a second ago at most. Storage
    /// of sockets and cgroups (`ASKED_FOR`, `IDENTITIES`) cannot be counted, and arrays (`COUNTERS`)
    /// need not be
    MAP_ENTRIES = Metric::new(MetricType::Gauge, "map_entries").by(&["map"]);
    /// Most entries of a BPF map
    MAP_CAPACITY = Metric::new(MetricType::Gauge, "map_capacity").by(&["map"]);
    /// Updates of a BPF map that were refused, mostly because it was full: the agent's, and for
    /// `SOCKETS` and `ORIGINAL_DST` also those of programs
    MAP_UPDATE_ERRORS = Metric::new(MetricType::Counter, "map_update_errors").by(&["map"]);
    /// What has become of accelerated connections and their messages, as docs/acceleration.md has
    /// it: joined, redirected, passed, demoted, left. Only where a workload has asked for it
    ACCELERATED = Metric::new(MetricType::Counter, "accelerated").by(&["what"]);
    /// Whether all that is watched of the cluster was listed at least once (1): before that nothing of
    /// it is in force. This and what follows there is only with --kube
    CLUSTER_LISTED = Metric::new(MetricType::Gauge, "cluster_listed");
    /// For how long something that is watched of the cluster was not up to date; 0 when everything is
    CLUSTER_STALE = Metric::new(MetricType::Gauge, "cluster_stale").in_unit(UnitName::Seconds);
    /// Objects of the cluster that are kept
    CLUSTER_OBJECTS = Metric::new(MetricType::Gauge, "cluster_objects").by(&["kind"]);
    /// Whether a kind that is watched is up to date (1), or not (0)
    CLUSTER_UP_TO_DATE = Metric::new(MetricType::Gauge, "cluster_up_to_date").by(&["kind"]);
    /// Bytes that the relay delivered, to targets or back to clients
    RELAYED = Metric::new(MetricType::Counter, "relayed").by(&["to"]).in_unit(UnitName::Bytes);
    /// Connections open in the relay
    RELAY_CONNECTIONS = Metric::new(MetricType::Gauge, "relay_connections");
    /// Connections the relay accepted
    RELAY_ACCEPTED = Metric::new(MetricType::Counter, "relay_connections_accepted");
    /// Connections the relay reset before it dialed: they lead nowhere (no-route), or too many
    /// are open (limit)
    RELAY_REFUSED = Metric::new(MetricType::Counter, "relay_connections_refused").by(&["cause"]);
    /// Connections of the relay of whose targets none could be reached, by the last one's cause
    RELAY_FAILED = Metric::new(MetricType::Counter, "relay_connections_failed").by(&["cause"]);
    /// Connections of the relay that ended by a reset or another error after both sides were
    /// connected
    RELAY_RESET = Metric::new(MetricType::Counter, "relay_connections_reset");
    /// Times the relay could not accept a connection, mostly for want of descriptors
    RELAY_ACCEPT_ERRORS = Metric::new(MetricType::Counter, "relay_accept_errors");
    /// Bytes that the relay delivered for one listener of a workload, to targets or back to
    /// clients. These three have series only with --metrics-per-workload, and for the first 32
    /// listeners of a workload; a listener that is no more declared takes its own along
    LISTENER_RELAYED = Metric::new(MetricType::Counter, "listener_relayed").by(&["to", "workload", "listener"]).in_unit(UnitName::Bytes);
    /// Connections open in the relay, by listener
    LISTENER_CONNECTIONS = Metric::new(MetricType::Gauge, "listener_relay_connections").by(&["workload", "listener"]);
    /// Connections the relay accepted, by listener
    LISTENER_ACCEPTED = Metric::new(MetricType::Counter, "listener_relay_connections_accepted").by(&["workload", "listener"]);
    /// What other tools had taken away and the agent has put back: links of programs that were
    /// detached or unpinned, pins of maps that were removed
    HEALED = Metric::new(MetricType::Counter, "healed").by(&["kind"]);
    /// Clients that trace
    TRACE_CLIENTS = Metric::new(MetricType::Gauge, "trace_clients");
    /// Decisions that were to be traced and were lost: in the kernel, as the ring was full, or in
    /// the agent, as a client did not read
    TRACE_LOST = Metric::new(MetricType::Counter, "trace_events_lost").by(&["side"]);
    /// CPU time of the agent's process
    PROCESS_CPU = Metric::new(MetricType::Counter, "process_cpu").in_unit(UnitName::Seconds).of_process();
    /// Resident memory of the agent's process
    PROCESS_RESIDENT = Metric::new(MetricType::Gauge, "process_resident_memory").in_unit(UnitName::Bytes).of_process();
    /// Virtual memory of the agent's process
    PROCESS_VIRTUAL = Metric::new(MetricType::Gauge, "process_virtual_memory").in_unit(UnitName::Bytes).of_process();
    /// Open descriptors of the agent's process
    PROCESS_OPEN_FDS = Metric::new(MetricType::Gauge, "process_open_fds").of_process();
    /// Most descriptors of the agent's process
    PROCESS_MAX_FDS = Metric::new(MetricType::Gauge, "process_max_fds").of_process();
    /// When the agent's process started, since the Unix epoch
    PROCESS_START = Metric::new(MetricType::Gauge, "process_start_time").in_unit(UnitName::Seconds).of_process();
    /// Threads of the agent's process
    PROCESS_THREADS = Metric::new(MetricType::Gauge, "process_threads").of_process();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in ALL {
            let name = metric.sample();
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert!(name.starts_with("sidecar_agent_") || !metric.ours, "{name}");
            assert_eq!(
                name.ends_with("_total"),
                matches!(metric.kind, MetricType::Counter),
                "{name}"
            );
            assert!(
                !metric.help.is_empty() && !metric.help.ends_with('.'),
                "{name}"
            );
            assert!(seen.insert(name), "twice: {metric:?}");
        }
        assert_eq!(RELAYED.sample(), "sidecar_agent_relayed_bytes_total");
        assert_eq!(PROCESS_CPU.sample(), "process_cpu_seconds_total");
        assert_eq!(BUILD.sample(), "sidecar_agent_build_info");
        assert_eq!(
            APPLY.sample(),
            "sidecar_agent_configuration_apply_duration_seconds"
        );
    }
}
