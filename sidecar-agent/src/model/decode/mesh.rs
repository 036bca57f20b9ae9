//! Istio's `MeshConfig` as a document of its own: its schema, its rules, its decoder.

use crate::model::{
    catalogue as codes,
    diagnostic::Finding,
    mesh::{InterceptionMode, MeshConfig, ProxyConfig},
    schema::{self, Object, Type, Unknown, list, map, open, optional, strict},
    settings,
    sidecar::OutboundTrafficPolicy,
    tree::{self, Node, Source},
    validate::syntax,
};

const DYNAMIC_DNS: &str = "ALLOW_ANY_DYNAMIC_DNS";
const DEFAULT_SERVICE_EXPORT_TO: &str = "defaultServiceExportTo";
const DEFAULT_VIRTUAL_SERVICE_EXPORT_TO: &str = "defaultVirtualServiceExportTo";
const DEFAULT_CONFIG: &str = "defaultConfig";
const PROXY_METADATA: &str = "proxyMetadata";
const PORT: Type = Type::Int(1, 65535);

/// The document. Fields of type `Any` are known, but do not decide about capture.
pub(super) static SCHEMA: Object = Object {
    fields: &[
        optional("rootNamespace", Type::Text),
        optional(
            "outboundTrafficPolicy",
            Type::Object(&OUTBOUND_TRAFFIC_POLICY),
        ),
        optional(
            "inboundTrafficPolicy",
            Type::Object(&INBOUND_TRAFFIC_POLICY),
        ),
        optional(DEFAULT_SERVICE_EXPORT_TO, list(&Type::Text)),
        optional(DEFAULT_VIRTUAL_SERVICE_EXPORT_TO, list(&Type::Text)),
        optional("proxyListenPort", PORT),
        optional("proxyInboundListenPort", PORT),
        optional(DEFAULT_CONFIG, Type::Object(&PROXY_CONFIG)),
        optional("accessLogEncoding", Type::Any),
        optional("accessLogFile", Type::Any),
        optional("accessLogFormat", Type::Any),
        optional("ca", Type::Any),
        optional("caCertificates", Type::Any),
        optional("certificates", Type::Any),
        optional("configSources", Type::Any),
        optional("connectTimeout", Type::Any),
        optional("defaultDestinationRuleExportTo", Type::Any),
        optional("defaultHttpRetryPolicy", Type::Any),
        optional("defaultProviders", Type::Any),
        optional("discoverySelectors", Type::Any),
        optional("dnsRefreshRate", Type::Any),
        optional("enableAutoMtls", Type::Any),
        optional("enableEnvoyAccessLogService", Type::Any),
        optional("enablePrometheusMerge", Type::Any),
        optional("enableTracing", Type::Any),
        optional("extensionProviders", Type::Any),
        optional("h2UpgradePolicy", Type::Any),
        optional("inboundClusterStatName", Type::Any),
        optional("ingressClass", Type::Any),
        optional("ingressControllerMode", Type::Any),
        optional("ingressSelector", Type::Any),
        optional("ingressService", Type::Any),
        optional("localityLbSetting", Type::Any),
        optional("meshMTLS", Type::Any),
        optional("outboundClusterStatName", Type::Any),
        optional("pathNormalization", Type::Any),
        optional("protocolDetectionTimeout", Type::Any),
        optional("proxyHttpPort", Type::Any),
        optional("serviceScopeConfigs", Type::Any),
        optional("serviceSettings", Type::Any),
        optional("tcpKeepalive", Type::Any),
        optional("tlsDefaults", Type::Any),
        optional("trustDomain", Type::Any),
        optional("trustDomainAliases", Type::Any),
        optional("verifyCertificateAtClient", Type::Any),
    ],
    unknown: Unknown::Warning,
    exclusive: &[],
};

static OUTBOUND_TRAFFIC_POLICY: Object = strict(&[optional(
    "mode",
    Type::Enum(&["REGISTRY_ONLY", "ALLOW_ANY", DYNAMIC_DNS]),
)]);

static INBOUND_TRAFFIC_POLICY: Object =
    strict(&[optional("mode", Type::Enum(&["PASSTHROUGH", "LOCALHOST"]))]);

static PROXY_CONFIG: Object = open(&[
    optional(
        "interceptionMode",
        Type::Enum(&["REDIRECT", "TPROXY", "NONE"]),
    ),
    optional("statusPort", Type::Int(0, 65535)),
    optional(PROXY_METADATA, map(&Type::Text)),
]);

/// Whether a document without kind is meant to be a `MeshConfig`: it has one of its fields.
pub(super) fn is_mesh_config(node: &Node) -> bool {
    let known = |name| SCHEMA.fields.iter().any(|field| field.name == name);
    node.entries()
        .iter()
        .any(|(key, _)| known(key.name.as_str()))
}

/// What the schema cannot say.
pub(super) fn rules(node: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    let root = node.text("rootNamespace");
    if !root.is_empty() && !syntax::is_dns_label(root) {
        let message = format!("`{root}` is not a name of a namespace");
        findings.push(Finding::new(codes::BAD_MESH, "rootNamespace", message));
    }
    for default in [DEFAULT_SERVICE_EXPORT_TO, DEFAULT_VIRTUAL_SERVICE_EXPORT_TO] {
        for (i, to) in node.texts(default).enumerate() {
            if !matches!(to, "." | "*" | "~") && !syntax::is_dns_label(to) {
                let message = format!("`{to}` is neither a namespace nor `.`, `*` or `~`");
                let field = format!("{default}[{i}]");
                findings.push(Finding::new(codes::BAD_MESH, field, message));
            }
        }
    }
    if outbound_mode(node) == DYNAMIC_DNS {
        let message = "names of unknown destinations are not resolved again here";
        let field = "outboundTrafficPolicy.mode";
        findings.push(Finding::new(codes::MESH_DYNAMIC_DNS, field, message));
    }
    if let Some(config) = node.get(DEFAULT_CONFIG) {
        for (name, problem) in metadata_problems(config) {
            let field = format!("{DEFAULT_CONFIG}.{PROXY_METADATA}[{name}]");
            findings.push(Finding::new(codes::BAD_MESH, field, problem));
        }
    }
    findings
}

/// What is wrong with environment variables, by name.
fn metadata_problems(config: &Node) -> impl Iterator<Item = (&str, String)> {
    let metadata = config.labels(PROXY_METADATA);
    metadata.filter_map(|(name, value)| Some((name, settings::environment_problem(name, value)?)))
}

/// Reads a `ProxyConfig` as the annotation `proxy.istio.io/config` holds it. A field that cannot be
/// used is named, with what is wrong, and left out; so is a text that is no mapping.
#[must_use]
pub fn proxy_config(text: &str) -> (ProxyConfig, Vec<String>) {
    let (nodes, diagnostics) = tree::parse(&Source::new("proxy.istio.io/config", text));
    let mut problems: Vec<String> = diagnostics
        .into_iter()
        .map(|diagnostic| diagnostic.message)
        .collect();
    let [node] = &nodes[..] else {
        if nodes.len() > 1 {
            problems.push("there are several documents".into());
        }
        return (ProxyConfig::default(), problems);
    };
    let findings = schema::check(node, &PROXY_CONFIG, "").findings;
    problems.extend(findings.into_iter().map(|found| {
        // The mapping as a whole has no name.
        match found.field.as_str() {
            "" => found.message,
            field => format!("{field}: {}", found.message),
        }
    }));
    problems.extend(
        metadata_problems(node)
            .map(|(name, problem)| format!("{PROXY_METADATA}[{name}]: {problem}")),
    );
    (decode_proxy_config(node), problems)
}

/// Decodes what can be used.
fn decode_proxy_config(node: &Node) -> ProxyConfig {
    ProxyConfig {
        interception_mode: match node.text("interceptionMode") {
            "REDIRECT" => Some(InterceptionMode::Redirect),
            "TPROXY" => Some(InterceptionMode::Tproxy),
            "NONE" => Some(InterceptionMode::None),
            _ => None,
        },
        status_port: node
            .int("statusPort")
            .and_then(|port| u16::try_from(port).ok()),
        proxy_metadata: node
            .labels(PROXY_METADATA)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}

fn outbound_mode(node: &Node) -> &str {
    node.get("outboundTrafficPolicy")
        .map_or("", |policy| policy.text("mode"))
}

/// Decodes a document without errors. It is merged into the defaults, as Istio does: an object
/// without `mode` changes nothing here, other than in a `Sidecar`.
pub(super) fn decode(node: &Node) -> MeshConfig {
    let defaults = MeshConfig::default();
    let text = |key| node.get(key).and_then(Node::as_text).map(str::to_owned);
    let port = |key| node.int(key).and_then(|port| u16::try_from(port).ok());
    let export_to = |key, default: Vec<String>| {
        let listed: Vec<&str> = node.texts(key).collect();
        // Of a default Istio honours these two only, the private one first; with other entries a
        // resource that says nothing is nobody's.
        let honoured = [".", "*"].into_iter().find(|to| listed.contains(to));
        if listed.is_empty() {
            default
        } else {
            vec![honoured.unwrap_or("~").to_owned()]
        }
    };
    MeshConfig {
        root_namespace: text("rootNamespace").unwrap_or(defaults.root_namespace),
        outbound_traffic_policy: match outbound_mode(node) {
            "REGISTRY_ONLY" => OutboundTrafficPolicy::RegistryOnly,
            _ => OutboundTrafficPolicy::AllowAny,
        },
        default_service_export_to: export_to(
            DEFAULT_SERVICE_EXPORT_TO,
            defaults.default_service_export_to,
        ),
        default_virtual_service_export_to: export_to(
            DEFAULT_VIRTUAL_SERVICE_EXPORT_TO,
            defaults.default_virtual_service_export_to,
        ),
        proxy_listen_port: port("proxyListenPort").unwrap_or(defaults.proxy_listen_port),
        proxy_inbound_listen_port: port("proxyInboundListenPort")
            .unwrap_or(defaults.proxy_inbound_listen_port),
        default_config: node
            .get(DEFAULT_CONFIG)
            .map(decode_proxy_config)
            .unwrap_or_default(),
        inbound_localhost: node
            .get("inboundTrafficPolicy")
            .is_some_and(|policy| policy.text("mode") == "LOCALHOST"),
        cluster_domain: defaults.cluster_domain,
    }
}
