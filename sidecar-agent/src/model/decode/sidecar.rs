//! `Sidecar`: its schema (istio/api b8f8791d9653) and its decoder.

use super::meta::strings;
use crate::model::{
    schema::{
        Floor, MAX_I32, MAX_U32, Object, Type, Unknown, list, optional, proxied, required, strict,
    },
    sidecar::{
        CaptureMode, EgressListener, EgressProxy, IngressListener, OutboundTrafficPolicy, Port,
        Sidecar,
    },
    tree::Node,
    validate::syntax::MAX_LABEL,
};

const UINT32: Type = Type::Int(0, MAX_U32);
const INT32: Type = Type::Int(-MAX_I32 - 1, MAX_I32);
const DURATION: Type = Type::Duration(Floor::Millisecond);
const CAPTURE_MODE: Type = Type::Enum(&["DEFAULT", "IPTABLES", "NONE"]);
const TLS_VERSION: Type = Type::Enum(&["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]);

/// `spec`. Port numbers go through here as any `uint32`; it is the webhook that wants ports.
pub(in crate::model) static SPEC: Object = strict(&[
    optional("workloadSelector", Type::Object(&WORKLOAD_SELECTOR)),
    optional("ingress", list(&Type::Object(&INGRESS))),
    optional("egress", list(&Type::Object(&EGRESS))),
    proxied("inboundConnectionPool", Type::Object(&CONNECTION_POOL)),
    optional(
        "outboundTrafficPolicy",
        Type::Object(&OUTBOUND_TRAFFIC_POLICY),
    ),
]);

/// `WorkloadSelector`, also of a `ServiceEntry`.
pub(super) static WORKLOAD_SELECTOR: Object =
    strict(&[optional("labels", Type::Map(&Type::Label(MAX_LABEL), 256))]);

static INGRESS: Object = strict(&[
    required("port", Type::Object(&PORT)),
    optional("bind", Type::Text),
    optional("captureMode", CAPTURE_MODE),
    optional("defaultEndpoint", Type::Text),
    proxied("tls", Type::Object(&TLS)),
    proxied("connectionPool", Type::Object(&CONNECTION_POOL)),
]);

static EGRESS: Object = strict(&[
    optional("port", Type::Object(&PORT)),
    optional("bind", Type::Text),
    optional("captureMode", CAPTURE_MODE),
    required("hosts", list(&Type::Text)),
]);

static PORT: Object = strict(&[
    optional("number", UINT32),
    optional("protocol", Type::Text),
    optional("name", Type::Text),
    optional("targetPort", UINT32),
]);

static OUTBOUND_TRAFFIC_POLICY: Object = strict(&[
    optional("mode", Type::Enum(&["REGISTRY_ONLY", "ALLOW_ANY"])),
    optional("egressProxy", Type::Object(&DESTINATION)),
]);

static DESTINATION: Object = strict(&[
    required("host", Type::Text),
    optional("subset", Type::Text),
    optional("port", Type::Object(&PORT_SELECTOR)),
]);

static PORT_SELECTOR: Object = strict(&[optional("number", UINT32)]);

static TLS: Object = Object {
    fields: &[
        optional(
            "mode",
            Type::Enum(&[
                "PASSTHROUGH",
                "SIMPLE",
                "MUTUAL",
                "AUTO_PASSTHROUGH",
                "ISTIO_MUTUAL",
                "OPTIONAL_MUTUAL",
            ]),
        ),
        optional("httpsRedirect", Type::Bool),
        optional("serverCertificate", Type::Text),
        optional("privateKey", Type::Text),
        optional("caCertificates", Type::Text),
        optional("caCrl", Type::Text),
        optional("caCertCredentialName", Type::Text),
        optional("credentialName", Type::Text),
        optional("credentialNames", Type::List(&Type::Text, 1, 2)),
        optional(
            "tlsCertificates",
            Type::List(&Type::Object(&TLS_CERTIFICATE), 1, 2),
        ),
        optional("subjectAltNames", list(&Type::Text)),
        optional("verifyCertificateSpki", list(&Type::Text)),
        optional("verifyCertificateHash", list(&Type::Text)),
        optional("minProtocolVersion", TLS_VERSION),
        optional("maxProtocolVersion", TLS_VERSION),
        optional("cipherSuites", list(&Type::Text)),
    ],
    unknown: Unknown::Error,
    exclusive: &["credentialName", "credentialNames", "tlsCertificates"],
};

static TLS_CERTIFICATE: Object = strict(&[
    optional("serverCertificate", Type::Text),
    optional("privateKey", Type::Text),
    optional("caCertificates", Type::Text),
]);

static CONNECTION_POOL: Object = strict(&[
    optional("tcp", Type::Object(&TCP)),
    optional("http", Type::Object(&HTTP)),
]);

static TCP: Object = strict(&[
    optional("maxConnections", INT32),
    optional("connectTimeout", DURATION),
    optional("tcpKeepalive", Type::Object(&TCP_KEEPALIVE)),
    optional("maxConnectionDuration", DURATION),
    // Zero switches it off.
    optional("idleTimeout", Type::Duration(Floor::None)),
]);

static TCP_KEEPALIVE: Object = strict(&[
    optional("probes", UINT32),
    optional("time", DURATION),
    optional("interval", DURATION),
]);

static HTTP: Object = strict(&[
    optional("http1MaxPendingRequests", INT32),
    optional("http2MaxRequests", INT32),
    optional("maxRequestsPerConnection", INT32),
    optional("maxRetries", INT32),
    optional("maxConcurrentStreams", INT32),
    optional("idleTimeout", DURATION),
    optional(
        "h2UpgradePolicy",
        Type::Enum(&["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"]),
    ),
    optional("useClientProtocol", Type::Bool),
    optional("http2KeepAlive", Type::Object(&HTTP2_KEEPALIVE)),
]);

static HTTP2_KEEPALIVE: Object = strict(&[
    optional("interval", DURATION),
    optional("timeout", DURATION),
]);

/// Decodes a spec without errors.
pub(super) fn decode(spec: &Node, left_to_proxy: Vec<String>) -> Sidecar {
    Sidecar {
        selector: selector(spec),
        ingress: spec.list("ingress").iter().map(ingress).collect(),
        egress: spec.list("egress").iter().map(egress).collect(),
        outbound_traffic_policy: spec.get("outboundTrafficPolicy").map(policy),
        egress_proxy: spec
            .get("outboundTrafficPolicy")
            .and_then(|policy| policy.get("egressProxy"))
            .map(egress_proxy),
        left_to_proxy,
    }
}

/// `workloadSelector.labels`, also of a `ServiceEntry`.
pub(super) fn selector(spec: &Node) -> Option<std::collections::BTreeMap<String, String>> {
    spec.get("workloadSelector")
        .map(|selector| strings(selector, "labels"))
}

fn policy(policy: &Node) -> OutboundTrafficPolicy {
    match policy.text("mode") {
        "ALLOW_ANY" => OutboundTrafficPolicy::AllowAny,
        // The zero value of the enum, so also where the mode is absent.
        _ => OutboundTrafficPolicy::RegistryOnly,
    }
}

fn egress_proxy(destination: &Node) -> EgressProxy {
    let port = destination.get("port").and_then(|port| port.int("number"));
    EgressProxy {
        host: destination.text("host").into(),
        port: port.and_then(|port| port.try_into().ok()).unwrap_or(0),
        subset: destination.text("subset").into(),
    }
}

fn ingress(listener: &Node) -> IngressListener {
    IngressListener {
        port: listener.get("port").map(port).unwrap_or_default(),
        bind: listener.text("bind").into(),
        capture_mode: capture_mode(listener),
        default_endpoint: listener.text("defaultEndpoint").into(),
    }
}

fn egress(listener: &Node) -> EgressListener {
    EgressListener {
        port: listener.get("port").map(port),
        bind: listener.text("bind").into(),
        capture_mode: capture_mode(listener),
        hosts: listener.texts("hosts").map(Into::into).collect(),
    }
}

fn port(port: &Node) -> Port {
    Port {
        number: port
            .int("number")
            .and_then(|number| number.try_into().ok())
            .unwrap_or(0),
        protocol: port.text("protocol").into(),
        name: port.text("name").into(),
    }
}

fn capture_mode(listener: &Node) -> CaptureMode {
    match listener.text("captureMode") {
        "IPTABLES" => CaptureMode::Iptables,
        "NONE" => CaptureMode::None,
        _ => CaptureMode::Default,
    }
}
