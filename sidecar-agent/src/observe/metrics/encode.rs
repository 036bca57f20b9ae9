//! A state of the agent as metrics.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{counter::ConstCounter, gauge::ConstGauge, histogram::Histogram, info::Info},
    registry::Unit,
};

use super::{
    catalogue::{self, Metric, PREFIX},
    process::Figures,
};
use crate::observe::{
    listeners::Relayed,
    status::{ClusterKind, DecisionCount, Healed, MapStatus, State, Status},
};

/// What one scrape serves.
#[derive(Debug)]
pub struct Snapshot {
    /// The agent's state.
    pub status: Status,
    /// Durations of applying.
    pub applied: Histogram,
    /// The process; `None`: /proc cannot be read.
    pub process: Option<Figures>,
    /// Whether decisions are told by workload.
    pub per_workload: bool,
}

/// Label values, in the order of [`Metric::labels`], and the value of one series.
type Series = (Vec<String>, u64);

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        let status = &self.status;
        out.put(
            &catalogue::BUILD,
            &Info::new(vec![("version", status.version.clone())]),
        )?;
        self.decisions(&mut out)?;
        let by_state = State::ALL.map(|state| {
            let of = status.workloads.iter().filter(|of| of.state == state);
            (vec![state.name().to_owned()], of.count() as u64)
        });
        out.gauges(&catalogue::WORKLOADS, by_state)?;
        out.gauge(&catalogue::GENERATION, status.generation)?;
        out.put(&catalogue::APPLY, &self.applied)?;
        let findings = status.findings.iter();
        let findings = findings.map(|of| (vec![of.severity.clone(), of.code.clone()], of.count));
        out.gauges(&catalogue::FINDINGS, findings)?;
        let programs = status.programs.iter();
        let programs = programs.map(|(name, count)| (vec![name.clone()], *count as u64));
        out.gauges(&catalogue::PROGRAMS, programs)?;
        let features = status.kernel_features.iter();
        let features = features.map(|(name, has)| (vec![name.clone()], u64::from(*has)));
        out.gauges(&catalogue::KERNEL_FEATURES, features)?;
        self.maps(&mut out)?;
        let accelerated = status.acceleration.iter();
        let accelerated = accelerated.map(|(what, count)| (vec![what.clone()], *count));
        out.counters(&catalogue::ACCELERATED, accelerated)?;
        self.cluster(&mut out)?;
        self.relay(&mut out)?;
        self.listeners(&mut out)?;
        let Healed { links, map_pins } = status.healed;
        let healed = [("link", links), ("map-pin", map_pins)];
        let healed = healed.map(|(kind, count)| (vec![kind.to_owned()], count));
        out.counters(&catalogue::HEALED, healed)?;
        let trace = &status.trace;
        out.gauge(&catalogue::TRACE_CLIENTS, trace.clients as u64)?;
        let lost = [
            ("kernel", trace.lost_in_kernel),
            ("agent", trace.lost_in_agent),
        ];
        let lost = lost.map(|(place, count)| (vec![place.to_owned()], count));
        out.counters(&catalogue::TRACE_LOST, lost)?;
        self.process(&mut out)
    }
}

impl Snapshot {
    fn decisions(&self, out: &mut Out<'_>) -> fmt::Result {
        let Status {
            workloads, gone, ..
        } = &self.status;
        let named = workloads.iter().map(|of| (&*of.workload, &of.decisions));
        let mut sums: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        for (workload, decisions) in named.chain([("", gone)]) {
            for of in decisions {
                let DecisionCount {
                    direction,
                    path,
                    reason,
                    count,
                } = of;
                let mut labels = vec![direction.clone(), path.clone(), reason.clone()];
                if self.per_workload {
                    labels.push(workload.to_owned());
                }
                *sums.entry(labels).or_default() += count;
            }
        }
        out.counters(&catalogue::DECISIONS, sums)
    }

    fn maps(&self, out: &mut Out<'_>) -> fmt::Result {
        let maps = &self.status.maps;
        let of = |value: fn(&MapStatus) -> Option<u64>| {
            maps.iter()
                .filter_map(move |map| Some((vec![map.map.clone()], value(map)?)))
        };
        out.gauges(
            &catalogue::MAP_ENTRIES,
            of(|map| map.entries.map(|entries| entries as u64)),
        )?;
        out.gauges(
            &catalogue::MAP_CAPACITY,
            of(|map| map.capacity.map(u64::from)),
        )?;
        out.counters(
            &catalogue::MAP_UPDATE_ERRORS,
            of(|map| Some(map.refused_updates)),
        )
    }

    fn cluster(&self, out: &mut Out<'_>) -> fmt::Result {
        let Some(cluster) = &self.status.cluster else {
            return Ok(());
        };
        out.gauge(&catalogue::CLUSTER_LISTED, u64::from(cluster.listed))?;
        let stale = ConstGauge::new(cluster.stale_seconds.unwrap_or(0.0));
        out.put(&catalogue::CLUSTER_STALE, &stale)?;
        let each = |value: fn(&ClusterKind) -> u64| {
            let kinds = cluster.kinds.iter();
            kinds.map(move |of| (vec![of.kind.clone()], value(of)))
        };
        out.gauges(&catalogue::CLUSTER_OBJECTS, each(|of| of.objects as u64))?;
        out.gauges(
            &catalogue::CLUSTER_UP_TO_DATE,
            each(|of| u64::from(of.problem.is_none())),
        )
    }

    fn relay(&self, out: &mut Out<'_>) -> fmt::Result {
        let relay = &self.status.relay;
        let by = |cause: &str, count| (vec![cause.to_owned()], count);
        out.counters(
            &catalogue::RELAYED,
            [
                by("target", relay.bytes_to_target),
                by("client", relay.bytes_to_client),
            ],
        )?;
        out.gauge(&catalogue::RELAY_CONNECTIONS, relay.active)?;
        out.counter(&catalogue::RELAY_ACCEPTED, relay.accepted)?;
        out.counters(
            &catalogue::RELAY_REFUSED,
            [by("no-route", relay.refused), by("limit", relay.limited)],
        )?;
        let failed = relay.failed_by.iter();
        out.counters(
            &catalogue::RELAY_FAILED,
            failed.map(|(cause, count)| by(cause, *count)),
        )?;
        out.counter(&catalogue::RELAY_RESET, relay.reset)?;
        out.counter(&catalogue::RELAY_ACCEPT_ERRORS, relay.accept_errors)
    }

    /// By listener, where decisions are told by workload: there may be many.
    fn listeners(&self, out: &mut Out<'_>) -> fmt::Result {
        let workloads = self.status.workloads.iter().filter(|_| self.per_workload);
        let relayed: Vec<([String; 2], Relayed)> = workloads
            .flat_map(|workload| {
                let listed = workload.listeners.listed.iter();
                listed.filter_map(|of| {
                    let labels = [workload.workload.clone(), of.listener.clone()];
                    Some((labels, of.relayed?))
                })
            })
            .collect();
        let each = |value: fn(&Relayed) -> u64| {
            let series = relayed.iter();
            series.map(move |(labels, of)| (labels.to_vec(), value(of)))
        };
        let bytes = relayed.iter().flat_map(|(labels, of)| {
            let to = [
                ("target", of.bytes_to_target),
                ("client", of.bytes_to_client),
            ];
            to.map(|(to, bytes)| {
                let labels = [&[to.to_owned()], labels.as_slice()].concat();
                (labels, bytes)
            })
        });
        out.counters(&catalogue::LISTENER_RELAYED, bytes)?;
        out.gauges(&catalogue::LISTENER_CONNECTIONS, each(|of| of.active))?;
        out.counters(&catalogue::LISTENER_ACCEPTED, each(|of| of.accepted))
    }

    fn process(&self, out: &mut Out<'_>) -> fmt::Result {
        let Some(process) = &self.process else {
            return Ok(());
        };
        out.put(&catalogue::PROCESS_CPU, &ConstCounter::new(process.cpu))?;
        out.gauge(&catalogue::PROCESS_RESIDENT, process.resident)?;
        out.gauge(&catalogue::PROCESS_VIRTUAL, process.virtual_memory)?;
        out.gauge(&catalogue::PROCESS_OPEN_FDS, process.open_fds as u64)?;
        out.put(
            &catalogue::PROCESS_MAX_FDS,
            &ConstGauge::new(process.max_fds),
        )?;
        out.put(&catalogue::PROCESS_START, &ConstGauge::new(process.start))?;
        out.put(
            &catalogue::PROCESS_THREADS,
            &ConstGauge::new(process.threads),
        )
    }
}

/// Where metrics go.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    /// One family: its description, and whatever `series` encodes.
    fn family(
        &mut self,
        metric: &Metric,
        series: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let prefix = if metric.ours { PREFIX } else { "" };
        let name = [prefix, metric.name].join("_");
        let unit = metric.unit.map(Unit::from);
        let name = name.trim_start_matches('_');
        series(
            self.0
                .encode_descriptor(name, metric.help, unit.as_ref(), metric.kind)?,
        )
    }

    /// A family of one series without labels.
    fn put(&mut self, metric: &Metric, value: &impl EncodeMetric) -> fmt::Result {
        self.family(metric, |encoder| value.encode(encoder))
    }

    fn gauge(&mut self, metric: &Metric, value: u64) -> fmt::Result {
        self.put(metric, &ConstGauge::new(value))
    }

    fn counter(&mut self, metric: &Metric, value: u64) -> fmt::Result {
        self.put(metric, &ConstCounter::new(value))
    }

    fn gauges(&mut self, metric: &Metric, of: impl IntoIterator<Item = Series>) -> fmt::Result {
        self.each(metric, of, |mut encoder, value| {
            encoder.encode_gauge(&value)
        })
    }

    fn counters(&mut self, metric: &Metric, of: impl IntoIterator<Item = Series>) -> fmt::Result {
        self.each(metric, of, |mut encoder, value| {
            encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    fn each(
        &mut self,
        metric: &Metric,
        of: impl IntoIterator<Item = Series>,
        encode: impl Fn(MetricEncoder<'_>, u64) -> fmt::Result,
    ) -> fmt::Result {
        self.family(metric, |mut encoder| {
            for (values, value) in of {
                // Further values are of labels that are asked for.
                let names = metric.labels.iter().copied().chain(ON_REQUEST);
                let labels: Vec<_> = names.zip(values).collect();
                encode(encoder.encode_family(&labels)?, value)?;
            }
            Ok(())
        })
    }
}

/// Labels that only some want.
const ON_REQUEST: [&str; 1] = ["workload"];
