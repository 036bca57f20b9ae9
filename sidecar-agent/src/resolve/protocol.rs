//! Protocols, as far as capture distinguishes them.

/// What a port's protocol means for how its listener is found.
///
/// Istio: `protocol.Parse`, `ConvertProtocol` and `ModelProtocolToListenerProtocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protocol {
    /// HTTP, HTTP2, GRPC, GRPC-Web: services share a port and are told apart by `Host`.
    Http,
    /// `HTTP_PROXY`: an HTTP forward proxy.
    HttpProxy,
    /// HTTPS, TLS: told apart by SNI where there is no address of their own.
    Tls,
    /// MONGO, MYSQL: the server may speak first, so the port is never shared.
    ServerFirst,
    /// TCP, REDIS.
    Tcp,
    /// Not said, or not known: sniffed by a proxy; found by address like TCP.
    #[default]
    Auto,
    /// UDP: never captured.
    Udp,
}

impl Protocol {
    /// Reads a protocol's name as Istio does: any case, unknown names are [`Protocol::Auto`].
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "http" | "http2" | "grpc" | "grpc-web" => Self::Http,
            "http_proxy" => Self::HttpProxy,
            "https" | "tls" => Self::Tls,
            "mongo" | "mysql" => Self::ServerFirst,
            "tcp" | "redis" => Self::Tcp,
            "udp" => Self::Udp,
            _ => Self::Auto,
        }
    }

    /// The protocol of a Kubernetes service's port: `appProtocol`, else the prefix of its name,
    /// else a well-known port; `transport` is its `protocol` field.
    #[must_use]
    pub fn of_service_port(
        name: &str,
        app_protocol: Option<&str>,
        transport: &str,
        port: u16,
    ) -> Self {
        /// SMTP, DNS, `MySQL`, `MongoDB`: Istio takes these for TCP when nothing is said.
        const WELL_KNOWN_TCP: [u16; 4] = [25, 53, 3306, 27017];

        if !(transport.is_empty() || transport.eq_ignore_ascii_case("tcp")) {
            return Self::Udp;
        }
        let text = match app_protocol {
            Some("kubernetes.io/h2c" | "kubernetes.io/ws") => return Self::Http,
            Some("kubernetes.io/wss") => return Self::Tls,
            Some(text) => text,
            None => name,
        };
        let prefix = text.split('-').next().unwrap_or_default();
        match Self::parse(prefix) {
            Self::Auto if WELL_KNOWN_TCP.contains(&port) => Self::Tcp,
            protocol => protocol,
        }
    }

    /// Whether its services are told apart by `Host` rather than by address.
    #[must_use]
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::HttpProxy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_ports_follow_app_protocol_then_name_then_number() {
        let of = |name, app, port| Protocol::of_service_port(name, app, "TCP", port);
        assert_eq!(of("http-web", None, 80), Protocol::Http);
        assert_eq!(of("grpc-web-x", None, 80), Protocol::Http);
        assert_eq!(of("tcp-db", Some("https"), 80), Protocol::Tls);
        assert_eq!(of("web", Some("kubernetes.io/h2c"), 80), Protocol::Http);
        assert_eq!(of("db", None, 3306), Protocol::Tcp);
        assert_eq!(of("web", None, 80), Protocol::Auto);
        assert_eq!(
            Protocol::of_service_port("http", None, "SCTP", 80),
            Protocol::Udp
        );
    }
}
