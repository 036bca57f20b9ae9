//! Which decisions a client wants.

use std::collections::BTreeMap;

use anyhow::Result;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::record::Record;

/// The key of a request; its value is a [`Filter`].
const REQUEST: &str = "trace";

/// What must hold of a decision; what is not given holds of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Of this workload (`namespace/name`).
    pub workload: Option<String>,
    /// `outbound` or `inbound`.
    pub direction: Option<String>,
    /// One of these paths.
    pub paths: Vec<String>,
    /// One of these reasons.
    pub reasons: Vec<String>,
    /// To this port.
    pub port: Option<u16>,
    /// To an address in this network.
    pub destination: Option<IpNet>,
    /// End after so many.
    pub count: Option<u64>,
}

impl Filter {
    /// The line that asks an agent for these.
    ///
    /// # Errors
    /// Never, as it is plain data.
    pub fn request(&self) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&BTreeMap::from([(REQUEST, self)]))?;
        line.push(b'\n');
        Ok(line)
    }

    /// What is to be traced, if a line is such a request.
    #[must_use]
    pub fn of_request(line: &str) -> Option<Self> {
        let mut request: BTreeMap<String, Self> = serde_json::from_str(line).ok()?;
        request.remove(REQUEST)
    }

    /// Whether the client wants it.
    #[must_use]
    pub fn matches(&self, record: &Record) -> bool {
        let is_one_of = |wanted: &[String], is: &String| wanted.is_empty() || wanted.contains(is);
        let address = record.destination.ip().to_canonical();
        self.workload
            .as_ref()
            .is_none_or(|name| record.workload.as_ref() == Some(name))
            && self
                .direction
                .as_ref()
                .is_none_or(|direction| *direction == record.direction)
            && is_one_of(&self.paths, &record.path)
            && is_one_of(&self.reasons, &record.reason)
            && self
                .port
                .is_none_or(|port| port == record.destination.port())
            && self.destination.is_none_or(|net| net.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            time: jiff::Timestamp::UNIX_EPOCH,
            workload: Some("a/b".into()),
            direction: "outbound".into(),
            transport: "tcp".into(),
            path: "direct".into(),
            reason: "egress-service".into(),
            source: None,
            destination: "10.96.0.1:80".parse().unwrap(),
            targets: Vec::new(),
            listener: None,
            service: None,
            resource: None,
            field: String::new(),
        }
    }

    #[test]
    fn each_part_of_a_filter_is_heeded() {
        let of = |text: &str| serde_json::from_str::<Filter>(text).unwrap();
        for wanted in [
            "{}",
            r#"{"workload": "a/b", "direction": "outbound", "port": 80}"#,
            r#"{"paths": ["deny", "direct"], "reasons": ["egress-service"]}"#,
            r#"{"destination": "10.96.0.0/16"}"#,
        ] {
            assert!(of(wanted).matches(&record()), "{wanted}");
        }
        for other in [
            r#"{"workload": "a/c"}"#,
            r#"{"direction": "inbound"}"#,
            r#"{"paths": ["deny"]}"#,
            r#"{"reasons": ["allow-any"]}"#,
            r#"{"port": 81}"#,
            r#"{"destination": "10.97.0.0/16"}"#,
            r#"{"destination": "::/0"}"#,
        ] {
            assert!(!of(other).matches(&record()), "{other}");
        }
        assert!(serde_json::from_str::<Filter>(r#"{"prot": 80}"#).is_err());
    }
}
