//! The resources that Envoy's configuration consists of.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use serde_json::{Value, json};

use super::Access;

/// How many connections a cluster may have at once: a loop stops growing there.
const MOST_CONNECTIONS: u32 = 16;

/// Makes filters that write to one access log.
pub struct Writer<'a> {
    pub log: &'a Path,
}

impl Writer<'_> {
    pub fn tcp(&self, listener: &str, cluster: &str) -> Value {
        let config = json!({
            "stat_prefix": cluster,
            "cluster": cluster,
            "access_log": self.access_log(listener),
        });
        json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": typed("filters.network.tcp_proxy.v3.TcpProxy", config),
        })
    }

    pub fn http(&self, listener: &str, cluster: &str) -> Value {
        let config = json!({
            "stat_prefix": listener,
            "access_log": self.access_log(listener),
            "route_config": {"virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
            }]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": typed("filters.http.router.v3.Router", json!({})),
            }],
        });
        json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": typed(
                "filters.network.http_connection_manager.v3.HttpConnectionManager",
                config,
            ),
        })
    }

    fn access_log(&self, listener: &str) -> Value {
        let config = json!({
            "path": self.log,
            "log_format": {"json_format": Access::format(listener)},
        });
        json!([{
            "name": "envoy.access_loggers.file",
            "typed_config": typed("access_loggers.file.v3.FileAccessLog", config),
        }])
    }
}

/// Istio's way to name listeners: `10.0.0.1_80`.
pub fn listener_name(at: SocketAddr) -> String {
    format!("{}_{}", at.ip(), at.port())
}

pub fn listener(name: &str, at: SocketAddr, chains: &[Value], bound: bool) -> Value {
    json!({
        "name": name,
        "stat_prefix": name,
        "address": socket_address(at),
        "bind_to_port": bound,
        "filter_chains": chains,
    })
}

/// A cluster that leads to where the client wanted to go.
pub fn original_dst(name: &str, source: Option<IpAddr>) -> Value {
    let mut made = cluster(name, &[]);
    made["type"] = "ORIGINAL_DST".into();
    made["lb_policy"] = "CLUSTER_PROVIDED".into();
    if let Some(source) = source {
        let address = json!({"address": source, "port_value": 0});
        made["upstream_bind_config"] = json!({"source_address": address});
    }
    made
}

pub fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|endpoint| json!({"endpoint": {"address": socket_address(*endpoint)}}))
        .collect();
    let mut made = json!({
        "name": name,
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": MOST_CONNECTIONS}]},
    });
    if !endpoints.is_empty() {
        made["load_assignment"] =
            json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]});
    }
    made
}

pub fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

/// A configuration with the type that Envoy knows it by.
pub fn typed(name: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.{name}").into();
    config
}
