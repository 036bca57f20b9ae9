//! Envoy's configuration, as Istio's control plane makes it for a sidecar: the same listeners,
//! filters and clusters under the same names, with nothing that has to do with other features.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use serde_json::{Value, json};

use super::PROXY_ID;
use super::resources::{
    Writer, cluster, listener, listener_name, original_dst, socket_address, typed,
};

/// The port of `virtualOutbound`.
pub const OUTBOUND_PORT: u16 = 15001;

/// The port of `virtualInbound`.
pub const INBOUND_PORT: u16 = 15006;

/// The port of the admin interface, on 127.0.0.1.
pub(super) const ADMIN_PORT: u16 = 15000;

/// Where the two virtual listeners listen, for both families.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Binds {
    /// `0.0.0.0` and `::`, as Istio has it.
    #[default]
    Wildcard,
    /// `127.0.0.1` and `::1`.
    Loopback,
}

/// What is to be configured beside the virtual listeners.
#[derive(Clone, Debug, Default)]
pub struct Bootstrap {
    binds: Binds,
    transparent: bool,
    original_src: bool,
    no_blackhole: bool,
    http: Vec<u16>,
    services: Vec<(SocketAddr, SocketAddr)>,
    real: Vec<(SocketAddr, SocketAddr)>,
}

impl Bootstrap {
    /// Where the virtual listeners listen; [`Binds::Wildcard`] unless set.
    #[must_use]
    pub fn binds(mut self, binds: Binds) -> Self {
        self.binds = binds;
        self
    }

    /// Makes the virtual listeners' sockets transparent (`IP_TRANSPARENT`), as in TPROXY mode.
    #[must_use]
    pub fn transparent(mut self) -> Self {
        self.transparent = true;
        self
    }

    /// Passes inbound connections on from their clients' own addresses, with Istio's mark, as in
    /// TPROXY mode.
    #[must_use]
    pub fn original_src(mut self) -> Self {
        self.original_src = true;
        self
    }

    /// Leaves out Istio's own guard against loops: the filter chains that end connections whose
    /// original destination is the capture port itself.
    #[must_use]
    pub fn no_blackhole(mut self) -> Self {
        self.no_blackhole = true;
        self
    }

    /// A port that is spoken HTTP at: outbound it gets a listener that is not bound and reached by
    /// original destination, inbound a filter chain.
    #[must_use]
    pub fn http(mut self, port: u16) -> Self {
        self.http.push(port);
        self
    }

    /// A service, called at an address, with an endpoint: a listener that is not bound, and a
    /// cluster.
    #[must_use]
    pub fn service(mut self, address: SocketAddr, endpoint: SocketAddr) -> Self {
        self.services.push((address, endpoint));
        self
    }

    /// A real listener (`captureMode: NONE`), and where it leads.
    #[must_use]
    pub fn real(mut self, address: SocketAddr, endpoint: SocketAddr) -> Self {
        self.real.push((address, endpoint));
        self
    }

    /// The configuration; `log` is the file of the access log.
    pub(super) fn json(&self, log: &Path) -> Value {
        let writer = Writer { log };
        let mut listeners = vec![self.outbound(&writer), self.inbound(&writer)];
        let mut clusters = vec![
            original_dst("PassthroughCluster", None),
            original_dst(
                "InboundPassthroughClusterIpv4",
                self.inbound_source(INBOUND_SOURCE.into()),
            ),
            original_dst(
                "InboundPassthroughClusterIpv6",
                self.inbound_source(INBOUND_SOURCE6.into()),
            ),
            cluster("BlackHoleCluster", &[]),
        ];
        for port in &self.http {
            for wildcard in [
                IpAddr::from(Ipv4Addr::UNSPECIFIED),
                Ipv6Addr::UNSPECIFIED.into(),
            ] {
                let at = SocketAddr::new(wildcard, *port);
                let name = listener_name(at);
                let chain = json!({"filters": [writer.http(&name, "PassthroughCluster")]});
                listeners.push(listener(&name, at, &[chain], false));
            }
        }
        for (targets, bound) in [(&self.services, false), (&self.real, true)] {
            for (at, endpoint) in targets {
                let (name, target) = (listener_name(*at), format!("outbound|{at}"));
                let chain = json!({"filters": [writer.tcp(&name, &target)]});
                listeners.push(listener(&name, *at, &[chain], bound));
                clusters.push(cluster(&target, &[*endpoint]));
            }
        }
        json!({
            "node": {"id": "sidecar", "cluster": "tests"},
            "admin": {"address": socket_address((Ipv4Addr::LOCALHOST, ADMIN_PORT).into())},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        })
    }

    /// Hands a connection to the listener of its original destination if there is one.
    fn outbound(&self, writer: &Writer<'_>) -> Value {
        let name = "virtualOutbound";
        let chains: Vec<Value> = self
            .blackhole(writer, OUTBOUND_PORT)
            .into_iter()
            .chain([json!({"filters": [writer.tcp(name, "PassthroughCluster")]})])
            .collect();
        let mut outbound = self.virtual_listener(name, OUTBOUND_PORT, &chains);
        outbound["traffic_direction"] = "OUTBOUND".into();
        outbound["use_original_dst"] = true.into();
        outbound
    }

    fn inbound(&self, writer: &Writer<'_>) -> Value {
        let name = "virtualInbound";
        let mut chains: Vec<Value> = self.blackhole(writer, INBOUND_PORT).into_iter().collect();
        for (range, cluster) in [
            (
                IpAddr::from(Ipv4Addr::UNSPECIFIED),
                "InboundPassthroughClusterIpv4",
            ),
            (
                Ipv6Addr::UNSPECIFIED.into(),
                "InboundPassthroughClusterIpv6",
            ),
        ] {
            let prefixes = json!([{"address_prefix": range, "prefix_len": 0}]);
            for port in &self.http {
                chains.push(json!({
                    "name": format!("http {range} {port}"),
                    "filter_chain_match": {"destination_port": port, "prefix_ranges": prefixes},
                    "filters": [writer.http(name, cluster)],
                }));
            }
            chains.push(json!({
                "name": format!("tcp {range}"),
                "filter_chain_match": {"prefix_ranges": prefixes},
                "filters": [writer.tcp(name, cluster)],
            }));
        }
        let mut inbound = self.virtual_listener(name, INBOUND_PORT, &chains);
        inbound["traffic_direction"] = "INBOUND".into();
        inbound["listener_filters"] = json!([{
            "name": "envoy.filters.listener.original_dst",
            "typed_config": typed("filters.listener.original_dst.v3.OriginalDst", json!({})),
        }]);
        if self.original_src
            && let Some(filters) = inbound["listener_filters"].as_array_mut()
        {
            let config = json!({"mark": PROXY_ID});
            filters.push(json!({
                "name": "envoy.filters.listener.original_src",
                "typed_config": typed("filters.listener.original_src.v3.OriginalSrc", config),
            }));
        }
        inbound
    }

    /// Where inbound connections are passed on from, if not from their clients' addresses.
    fn inbound_source(&self, passthrough: IpAddr) -> Option<IpAddr> {
        (!self.original_src).then_some(passthrough)
    }

    fn blackhole(&self, writer: &Writer<'_>, port: u16) -> Option<Value> {
        (!self.no_blackhole).then(|| {
            json!({
                "name": "blackhole",
                "filter_chain_match": {"destination_port": port},
                "filters": [writer.tcp("blackhole", "BlackHoleCluster")],
            })
        })
    }

    fn virtual_listener(&self, name: &str, port: u16, chains: &[Value]) -> Value {
        let (v4, v6) = match self.binds {
            Binds::Wildcard => (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
            Binds::Loopback => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        };
        let mut made = listener(name, (v4, port).into(), chains, true);
        made["additional_addresses"] = json!([{"address": socket_address((v6, port).into())}]);
        made["transparent"] = self.transparent.into();
        made
    }
}

/// The address that inbound passthrough comes from, by which it is told from captured traffic.
const INBOUND_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// The same for IPv6.
const INBOUND_SOURCE6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
