//! One decision with its names.

use std::net::SocketAddr;

use jiff::Timestamp;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};
use sidecar_common::{
    Endpoint, Event, Path, Reason,
    decide::{Direction, Transport},
};

use super::directory::{Directory, Entry, nanoseconds};
use crate::{
    compile::{Listener, Target},
    model::ResourceRef,
    resolve::declared::{self, Declared},
};

/// A decision of the kernel, as `trace` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, by the wall clock.
    pub time: Timestamp,
    /// `namespace/name`; absent: a workload that is not known any more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub workload: Option<String>,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// `tcp` or `udp`.
    pub transport: String,
    /// How it travels.
    pub path: String,
    /// Why.
    pub reason: String,
    /// Where it comes from; outbound: what its socket is bound to, absent if to nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<SocketAddr>,
    /// Where it was going.
    pub destination: SocketAddr,
    /// Where it was led to; several, if the relay chooses. Empty: where it was going, or nowhere.
    pub targets: Vec<String>,
    /// The listener that took it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub listener: Option<String>,
    /// The service it reaches.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// The resource that says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resource: Option<Resource>,
    /// The field of it that does; empty: the resource as a whole.
    pub field: String,
}

/// A resource, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// `Sidecar`, ...
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The file it was read from.
    pub file: String,
    /// 1-based line in that file.
    pub line: u32,
}

impl From<ResourceRef> for Resource {
    fn from(resource: ResourceRef) -> Self {
        Self {
            kind: resource.kind.to_owned(),
            namespace: resource.namespace,
            name: resource.name,
            file: resource.file,
            line: resource.line,
        }
    }
}

impl Record {
    /// Gives an event its names; `None`: it is none.
    #[must_use]
    pub fn of(event: &Event, directory: &Directory) -> Option<Self> {
        let direction = Direction::from_number(event.direction)?;
        let transport = Transport::from_number(event.transport)?;
        let path = Path::from_number(event.path)?;
        let reason = Reason::from_number(event.reason)?;
        let entry = directory.find(event.workload, event.plan, event.time);
        let listener = entry
            .as_ref()
            .and_then(|of| of.plan.listener(event.listener));
        let declared = entry.as_ref().and_then(|of| {
            let Entry { workload, mesh, .. } = &**of;
            let port = event.destination.port;
            declared::declared(workload, mesh.as_ref(), direction, reason, listener, port)
        });
        let (resource, field) = declared.map_or((None, String::new()), |of| {
            let Declared { resource, field } = of;
            (Some(resource.into()), field)
        });
        Some(Self {
            time: wall_time(event.time),
            workload: entry.as_ref().map(|of| of.workload.to_string()),
            direction: direction.name().to_owned(),
            transport: transport.name().to_owned(),
            path: path.name().to_owned(),
            reason: reason.name().to_owned(),
            source: is_somewhere(&event.source).then(|| event.source.into()),
            destination: event.destination.into(),
            targets: targets(event, path, listener),
            listener: listener.map(ToString::to_string),
            service: listener.and_then(|of| of.service.as_deref().map(str::to_owned)),
            resource,
            field,
        })
    }
}

fn targets(event: &Event, path: Path, listener: Option<&Listener>) -> Vec<String> {
    let destination = SocketAddr::from(event.destination);
    match path {
        Path::Pass | Path::Deny => Vec::new(),
        Path::Direct | Path::Proxy if event.target.port == 0 => vec![destination.to_string()],
        Path::Direct | Path::Proxy => vec![event.target.to_string()],
        // Where the relay listens is nothing to anybody.
        Path::Relay => listener
            .into_iter()
            .flat_map(|listener| &*listener.targets)
            .map(|target| match target {
                Target::Original => destination.to_string(),
                other => other.to_string(),
            })
            .collect(),
    }
}

fn is_somewhere(endpoint: &Endpoint) -> bool {
    endpoint.port != 0 || !endpoint.addr.is_wildcard()
}

/// The wall clock's time of a time since boot.
fn wall_time(boot: u64) -> Timestamp {
    let ago = nanoseconds(ClockId::Boottime).saturating_sub(boot);
    let then = nanoseconds(ClockId::Realtime).saturating_sub(ago);
    Timestamp::from_nanosecond(i128::from(then)).unwrap_or_default()
}
