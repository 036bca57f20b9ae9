//! Documents to typed resources: which kind, checked against its schema and its rules, decoded.

pub mod endpoints;
pub mod mesh;
pub mod meta;
pub mod service;
pub mod service_entry;
pub mod sidecar;
pub mod virtual_service;
pub mod workload_entry;

use std::sync::Arc;

use super::{
    Compat, catalogue,
    diagnostic::{Diagnostic, Finding},
    endpoints::Endpoints,
    mesh::MeshConfig,
    meta::{Object, ObjectMeta, Origin, ResourceRef},
    schema::{self, Checked, Type, nearest, optional, required, strict},
    service::Service,
    service_entry::ServiceEntry,
    sidecar::Sidecar,
    tree::{self, Node, Source, Value},
    validate,
    virtual_service::VirtualService,
    workload::WorkloadEntry,
};

/// Istio's group of the kinds that are read.
const NETWORKING: &str = "networking.istio.io/";
/// Its versions, which are the same to us.
const NETWORKING_VERSIONS: [&str; 3] = [
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
];
/// Kinds that do not decide about capture, and are therefore passed over.
const IGNORED: &[&str] = &[
    // Istio
    "AuthorizationPolicy",
    "DestinationRule",
    "EnvoyFilter",
    "Gateway",
    "IstioOperator",
    "PeerAuthentication",
    "ProxyConfig",
    "RequestAuthentication",
    "Telemetry",
    "WasmPlugin",
    "WorkloadGroup",
    // Kubernetes
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "Event",
    "HorizontalPodAutoscaler",
    "Ingress",
    "IngressClass",
    "Job",
    "Lease",
    "LimitRange",
    "MutatingWebhookConfiguration",
    "Namespace",
    "NetworkPolicy",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodDisruptionBudget",
    "PodTemplate",
    "PriorityClass",
    "ReplicaSet",
    "ReplicationController",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "Secret",
    "ServiceAccount",
    "StatefulSet",
    "StorageClass",
    "ValidatingWebhookConfiguration",
    // Gateway API
    "GRPCRoute",
    "GatewayClass",
    "HTTPRoute",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "UDPRoute",
];

/// A document of one of Istio's kinds.
static RESOURCE: schema::Object = strict(&[
    required("apiVersion", Type::Text),
    required("kind", Type::Text),
    required("metadata", Type::Object(&meta::META)),
    optional("spec", Type::Any),
    optional("status", Type::Any),
]);

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `Sidecar`.
    Sidecar,
    /// `ServiceEntry`.
    ServiceEntry,
    /// `WorkloadEntry`.
    WorkloadEntry,
    /// `VirtualService`.
    VirtualService,
    /// Kubernetes' `Service`.
    Service,
    /// Kubernetes' `EndpointSlice`.
    EndpointSlice,
    /// Kubernetes' `Endpoints`.
    Endpoints,
    /// Istio's `MeshConfig`, which is a document without kind.
    MeshConfig,
}

impl Kind {
    const NAMED: [Self; 7] = [
        Self::Sidecar,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::VirtualService,
        Self::Service,
        Self::EndpointSlice,
        Self::Endpoints,
    ];
    const ALL: [Self; 8] = [
        Self::Sidecar,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::VirtualService,
        Self::Service,
        Self::EndpointSlice,
        Self::Endpoints,
        Self::MeshConfig,
    ];

    /// Its name, as in `kind`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "Sidecar",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::VirtualService => "VirtualService",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::MeshConfig => "MeshConfig",
        }
    }

    fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Service | Self::Endpoints => &["v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"],
            _ => &NETWORKING_VERSIONS,
        }
    }
}

/// Names a resource, wherever it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for the `MeshConfig`.
    pub namespace: String,
    /// Its name; empty for the `MeshConfig`.
    pub name: String,
}

impl Id {
    /// Names the resource that `reference` refers to; `None`: its kind is none that is read.
    #[must_use]
    pub fn of(reference: &ResourceRef) -> Option<Self> {
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == reference.kind)?;
        Some(Self {
            kind,
            namespace: reference.namespace.clone(),
            name: reference.name.clone(),
        })
    }
}

/// A typed resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A `Sidecar`.
    Sidecar(Arc<Object<Sidecar>>),
    /// A `ServiceEntry`.
    ServiceEntry(Arc<Object<ServiceEntry>>),
    /// A `WorkloadEntry`.
    WorkloadEntry(Arc<Object<WorkloadEntry>>),
    /// A `VirtualService`.
    VirtualService(Arc<Object<VirtualService>>),
    /// A `Service`.
    Service(Arc<Object<Service>>),
    /// An `EndpointSlice`.
    EndpointSlice(Arc<Object<Endpoints>>),
    /// An `Endpoints`.
    Endpoints(Arc<Object<Endpoints>>),
    /// The `MeshConfig`; its metadata are empty.
    MeshConfig(Arc<Object<MeshConfig>>),
}

impl Resource {
    /// Names the resource and where it was written, for people.
    #[must_use]
    pub fn reference(&self) -> ResourceRef {
        let kind = self.kind().name();
        match self {
            Self::Sidecar(object) => object.reference(kind),
            Self::ServiceEntry(object) => object.reference(kind),
            Self::WorkloadEntry(object) => object.reference(kind),
            Self::VirtualService(object) => object.reference(kind),
            Self::Service(object) => object.reference(kind),
            Self::EndpointSlice(object) | Self::Endpoints(object) => object.reference(kind),
            Self::MeshConfig(object) => object.reference(kind),
        }
    }

    /// Names the resource.
    #[must_use]
    pub fn id(&self) -> Id {
        let ResourceRef {
            namespace, name, ..
        } = self.reference();
        Id {
            kind: self.kind(),
            namespace,
            name,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Sidecar(_) => Kind::Sidecar,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::VirtualService(_) => Kind::VirtualService,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::MeshConfig(_) => Kind::MeshConfig,
        }
    }
}

/// What a text holds.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// The valid resources, in the order written.
    pub resources: Vec<Resource>,
    /// The invalid ones that at least could be named.
    pub broken: Vec<(Id, ResourceRef)>,
    /// Whether there are documents of which not even a name is known.
    pub unnamed: bool,
    /// What is wrong, or worth a warning.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads all documents of a text as current Istio does.
#[must_use]
pub fn text(source: &Source) -> Decoded {
    text_as(source, Compat::default())
}

/// Reads all documents of a text as a release of Istio did.
#[must_use]
pub fn text_as(source: &Source, compat: Compat) -> Decoded {
    let (nodes, diagnostics) = tree::parse(source);
    let mut reader = Reader {
        source,
        compat,
        out: Decoded {
            unnamed: !diagnostics.is_empty(),
            ..Decoded::default()
        },
    };
    reader.out.diagnostics = diagnostics;
    for node in &nodes {
        reader.document(node, "", "");
    }
    reader.out
}

/// The documents of a text: lists are replaced by their items.
#[must_use]
pub fn documents(nodes: Vec<Node>) -> Vec<Node> {
    nodes
        .into_iter()
        .flat_map(|node| match node.get("items") {
            Some(items) if node.text("kind").ends_with("List") => documents(items.items().to_vec()),
            _ => vec![node],
        })
        .collect()
}

/// Namespace and name of a document, as [`Id`] has them.
#[must_use]
pub fn namespaced_name(document: &Node) -> (String, String) {
    match document.get("metadata") {
        Some(metadata) => {
            let (meta, _) = meta::decode(metadata);
            (meta.namespace, meta.name)
        }
        // A MeshConfig has no name.
        None => Default::default(),
    }
}

struct Reader<'a> {
    source: &'a Source,
    compat: Compat,
    out: Decoded,
}

impl Reader<'_> {
    /// Reads one document, or one item of a list; `api_version` and `kind` are what an item
    /// without its own inherits from its list.
    fn document(&mut self, node: &Node, api_version: &str, kind: &str) {
        let or =
            |own: &str, inherited: &str| if own.is_empty() { inherited } else { own }.to_owned();
        let api_version = or(node.text("apiVersion"), api_version);
        let kind = or(node.text("kind"), kind);
        let items = node
            .get("items")
            .filter(|items| matches!(items.value, Value::List(_)));
        if let (Some(items), Some(of)) = (items, kind.strip_suffix("List")) {
            for item in items.items() {
                let version = if of.is_empty() { "" } else { &api_version };
                self.document(item, version, of);
            }
        } else if node.get("kind").is_none() && node.get("apiVersion").is_none() && kind.is_empty()
        {
            if mesh::is_mesh_config(node) {
                self.mesh_config(node);
            } else {
                self.nameless(
                    node,
                    catalogue::NOT_A_RESOURCE,
                    "",
                    "it has neither `apiVersion` nor `kind`",
                    None,
                );
            }
        } else if let Some(known) = Kind::NAMED.into_iter().find(|known| known.name() == kind) {
            if known.versions().contains(&api_version.as_str()) {
                self.resource(node, known);
            } else if known == Kind::Service && api_version.contains('/') {
                // Some other group's Service, such as Knative's.
                self.ignored(node, &kind, &api_version);
            } else {
                let message = format!("`{api_version}` is not a version of {kind}");
                let remedy = format!("use one of {}", known.versions().join(", "));
                self.nameless(
                    node,
                    catalogue::UNKNOWN_VERSION,
                    "apiVersion",
                    &message,
                    Some(remedy),
                );
            }
        } else if IGNORED.contains(&kind.as_str()) {
            self.ignored(node, &kind, &api_version);
        } else {
            let known = Kind::NAMED.map(Kind::name);
            let remedy = nearest(&kind, known.into_iter().chain(IGNORED.iter().copied()))
                .map(|near| format!("did you mean `{near}`?"));
            let message = match api_version.strip_prefix(NETWORKING) {
                Some(_) => format!("`{kind}` is not a kind of {api_version}"),
                None => format!("`{kind}` ({api_version}) is not a known kind"),
            };
            self.nameless(node, catalogue::UNKNOWN_KIND, "kind", &message, remedy);
        }
    }

    fn ignored(&mut self, node: &Node, kind: &str, api_version: &str) {
        let message = format!("{kind} ({api_version}) does not decide what is captured; ignored");
        let finding = Finding::new(catalogue::IGNORED_KIND, "kind", message);
        self.report(node, None, [finding]);
    }

    /// Reports a document of which not even the name is known.
    fn nameless(
        &mut self,
        node: &Node,
        code: &'static catalogue::Code,
        field: &str,
        message: &str,
        remedy: Option<String>,
    ) {
        let finding = Finding {
            remedy,
            ..Finding::new(code, field, message)
        };
        self.out.unnamed = true;
        self.report(node, None, [finding]);
    }

    fn report(
        &mut self,
        node: &Node,
        resource: Option<&ResourceRef>,
        findings: impl IntoIterator<Item = Finding>,
    ) {
        for finding in findings {
            let span = node.find(&finding.field, finding.on_key);
            self.out.diagnostics.push(Diagnostic {
                code: finding.code.id,
                severity: finding.code.severity,
                resource: resource.cloned(),
                field: finding.field,
                message: finding.message,
                remedy: finding.remedy.unwrap_or_else(|| finding.code.remedy.into()),
                location: Some(self.source.location(span)),
            });
        }
    }

    fn origin(&self, node: &Node) -> Origin {
        let location = self.source.location(node.find("", false));
        Origin {
            file: location.file,
            line: location.line,
        }
    }

    fn resource(&mut self, node: &Node, kind: Kind) {
        let nothing = Node {
            value: Value::Map(Vec::new()),
            span: node.span.clone(),
        };
        let metadata = node.get("metadata").unwrap_or(&nothing);
        // Endpoints have none: the document is what there is.
        let spec = match kind {
            Kind::EndpointSlice | Kind::Endpoints => node,
            _ => node.get("spec").unwrap_or(&nothing),
        };
        let (meta, wrong) = meta::decode(metadata);
        let mut findings = of_document(node, kind);
        findings.extend(wrong);
        let Checked {
            findings: wrong,
            left_to_proxy,
        } = of_spec(spec, metadata, &meta, kind, self.compat);
        findings.extend(wrong);

        let valid = !findings.iter().any(Finding::is_error);
        let object = Object {
            meta,
            origin: self.origin(node),
            spec: (),
        };
        let reference = object.reference(kind.name());
        let named = !reference.name.is_empty();
        self.report(node, named.then_some(&reference), findings);
        if valid {
            self.out
                .resources
                .push(typed(kind, object, spec, left_to_proxy));
        } else if named {
            let ResourceRef {
                namespace, name, ..
            } = reference.clone();
            self.out.broken.push((
                Id {
                    kind,
                    namespace,
                    name,
                },
                reference,
            ));
        } else {
            self.out.unnamed = true;
        }
    }

    /// The document is the spec, and there is one name: none.
    fn mesh_config(&mut self, node: &Node) {
        let (kind, meta) = (Kind::MeshConfig, ObjectMeta::default());
        let Checked { findings, .. } = of_spec(node, node, &meta, kind, self.compat);
        let valid = !findings.iter().any(Finding::is_error);
        let object = Object {
            meta,
            origin: self.origin(node),
            spec: (),
        };
        let reference = object.reference(kind.name());
        self.report(node, Some(&reference), findings);
        if valid {
            self.out
                .resources
                .push(typed(kind, object, node, Vec::new()));
        } else {
            let id = Id {
                kind,
                namespace: String::new(),
                name: String::new(),
            };
            self.out.broken.push((id, reference));
        }
    }
}

/// Checks what is around the spec.
fn of_document(node: &Node, kind: Kind) -> Vec<Finding> {
    let schema = match kind {
        Kind::Service => &service::RESOURCE,
        Kind::EndpointSlice => &endpoints::SLICE,
        Kind::Endpoints => &endpoints::ENDPOINTS,
        _ => &RESOURCE,
    };
    let mut findings = schema::check(node, schema, "").findings;
    // An item of a list may inherit these two.
    let inherited = |field: &str| matches!(field, "apiVersion" | "kind");
    findings.retain(|found| found.code != catalogue::MISSING_FIELD || !inherited(&found.field));
    findings
}

/// Checks the spec, and what the rules want to know of the metadata.
fn of_spec(spec: &Node, metadata: &Node, meta: &ObjectMeta, kind: Kind, compat: Compat) -> Checked {
    let (schema, rules) = match kind {
        Kind::Sidecar => (
            &sidecar::SPEC,
            validate::webhook_as(spec, &meta.namespace, compat),
        ),
        Kind::ServiceEntry => (
            &service_entry::SPEC,
            validate::service_entry::service_entry(spec, &meta.namespace),
        ),
        Kind::WorkloadEntry => (
            &workload_entry::SPEC,
            validate::workload::workload_entry(spec, metadata),
        ),
        Kind::VirtualService => (&virtual_service::SPEC, Vec::new()),
        Kind::Service => (&service::SPEC, validate::service::service(spec)),
        // Its schema was that of the document.
        Kind::EndpointSlice | Kind::Endpoints => {
            return Checked {
                findings: endpoints::rules(spec),
                ..Checked::default()
            };
        }
        Kind::MeshConfig => (&mesh::SCHEMA, mesh::rules(spec)),
    };
    let path = if kind == Kind::MeshConfig { "" } else { "spec" };
    let mut checked = schema::check(spec, schema, path);
    let rules = without_consequences(&checked.findings, rules);
    checked.findings.extend(rules);
    checked
        .findings
        .extend(checked.left_to_proxy.iter().map(|path| {
            let message = "only a layer 7 proxy can honour this; it is left to the proxy";
            Finding::new(catalogue::LEFT_TO_PROXY, path, message).on_key()
        }));
    checked
}

/// Decodes a spec without errors.
fn typed(kind: Kind, object: Object<()>, spec: &Node, left_to_proxy: Vec<String>) -> Resource {
    let Object { meta, origin, .. } = object;
    match kind {
        Kind::Sidecar => {
            let spec = sidecar::decode(spec, left_to_proxy);
            Resource::Sidecar(Arc::new(Object { meta, origin, spec }))
        }
        Kind::ServiceEntry => {
            let spec = service_entry::decode(spec);
            Resource::ServiceEntry(Arc::new(Object { meta, origin, spec }))
        }
        Kind::WorkloadEntry => {
            let spec = workload_entry::decode(spec, &meta.labels);
            Resource::WorkloadEntry(Arc::new(Object { meta, origin, spec }))
        }
        Kind::VirtualService => {
            let spec = virtual_service::decode(spec);
            Resource::VirtualService(Arc::new(Object { meta, origin, spec }))
        }
        Kind::Service => {
            let spec = service::decode(spec, &meta.annotations);
            Resource::Service(Arc::new(Object { meta, origin, spec }))
        }
        Kind::EndpointSlice => {
            let spec = endpoints::slice(spec, &meta.labels);
            Resource::EndpointSlice(Arc::new(Object { meta, origin, spec }))
        }
        Kind::Endpoints => {
            let spec = endpoints::endpoints(spec, &meta.name);
            Resource::Endpoints(Arc::new(Object { meta, origin, spec }))
        }
        Kind::MeshConfig => {
            let spec = mesh::decode(spec);
            Resource::MeshConfig(Arc::new(Object { meta, origin, spec }))
        }
    }
}

/// Leaves out findings of the rules that only follow from what the schema check has found: a
/// value of the wrong type counts as absent to the rules.
fn without_consequences(of_schema: &[Finding], mut rules: Vec<Finding>) -> Vec<Finding> {
    let counts_as_absent = |finding: &Finding| {
        finding.code == catalogue::WRONG_TYPE
            || finding.code == catalogue::UNKNOWN_FIELD
            || finding.code == catalogue::MISSING_FIELD
    };
    rules.retain(|rule| {
        !of_schema
            .iter()
            .any(|found| match found.field.strip_prefix(&rule.field) {
                Some("") => true,
                Some(within) => within.starts_with(['.', '[']) && counts_as_absent(found),
                None => false,
            })
    });
    rules
}
