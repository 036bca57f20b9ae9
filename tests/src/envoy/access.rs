//! Envoy's access log, one JSON object a line.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};

/// What Envoy tells of a connection once it has ended, or of an HTTP request.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Access {
    /// The name of the listener, or of its filter chain, that wrote the line.
    pub listener: String,
    /// `DOWNSTREAM_LOCAL_ADDRESS`: the original destination, when Envoy knows it.
    pub local: SocketAddr,
    /// `DOWNSTREAM_REMOTE_ADDRESS`: the client.
    pub remote: SocketAddr,
    /// `UPSTREAM_HOST`: where Envoy has connected to.
    pub upstream: Option<SocketAddr>,
    /// `UPSTREAM_LOCAL_ADDRESS`: from where.
    pub upstream_local: Option<SocketAddr>,
    /// `RESPONSE_FLAGS`: `-` if all went well.
    pub flags: String,
    /// `RESPONSE_CODE`: 0 for TCP.
    pub code: u16,
    /// The path of an HTTP request.
    pub path: Option<String>,
}

impl Access {
    /// The format that yields such lines, for the proxy's configuration.
    pub(super) fn format(listener: &str) -> Value {
        json!({
            "listener": listener,
            "local": "%DOWNSTREAM_LOCAL_ADDRESS%",
            "remote": "%DOWNSTREAM_REMOTE_ADDRESS%",
            "upstream": "%UPSTREAM_HOST%",
            "upstream_local": "%UPSTREAM_LOCAL_ADDRESS%",
            "flags": "%RESPONSE_FLAGS%",
            "code": "%RESPONSE_CODE%",
            "path": "%REQ(:PATH)%",
        })
    }

    /// The lines that are whole.
    pub(super) fn parse(text: &str) -> anyhow::Result<Vec<Self>> {
        text.split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
            .map(|line| {
                serde_json::from_str(line)
                    .with_context(|| format!("not an access log line: {line}"))
            })
            .collect()
    }

    /// The address that the upstream connection comes from.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        self.upstream_local.map(|address| address.ip())
    }
}
