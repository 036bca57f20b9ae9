//! What is watched, and where the API server has it.

use kube::{
    Client,
    core::{ApiResource, GroupVersionKind},
    runtime::watcher,
};
use serde::Serialize;

/// One watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Watched {
    /// `Sidecar`s.
    Sidecar,
    /// `ServiceEntry`s.
    ServiceEntry,
    /// `VirtualService`s.
    VirtualService,
    /// `WorkloadEntry`s.
    WorkloadEntry,
    /// Kubernetes' services.
    Service,
    /// The endpoints of headless services, as far as Kubernetes makes them. Those of services with
    /// an address of their own are the cluster's business.
    HeadlessSlices,
    /// Endpoints that others make.
    OtherSlices,
    /// Labels of namespaces.
    Namespace,
    /// The pods of this node.
    Pod,
    /// The `ConfigMap` with the mesh configuration.
    MeshConfig,
}

/// Where a kind may be: group, versions from the newest on, the plural of its name, its name.
type Place = (
    &'static str,
    &'static [&'static str],
    &'static str,
    &'static str,
);

const ISTIO: &str = "networking.istio.io";
const ISTIO_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SLICES: Place = (
    "discovery.k8s.io",
    &["v1"],
    "endpointslices",
    "EndpointSlice",
);
/// Set by Kubernetes on the endpoints of headless services.
const HEADLESS: &str = "service.kubernetes.io/headless";

impl Watched {
    /// Every one.
    pub const ALL: [Self; 10] = [
        Self::Sidecar,
        Self::ServiceEntry,
        Self::VirtualService,
        Self::WorkloadEntry,
        Self::Service,
        Self::HeadlessSlices,
        Self::OtherSlices,
        Self::Namespace,
        Self::Pod,
        Self::MeshConfig,
    ];

    /// The places where it may be; the first that the API server has is taken.
    fn places(self) -> &'static [Place] {
        match self {
            Self::Sidecar => &[(ISTIO, ISTIO_VERSIONS, "sidecars", "Sidecar")],
            Self::ServiceEntry => &[(ISTIO, ISTIO_VERSIONS, "serviceentries", "ServiceEntry")],
            Self::VirtualService => &[(ISTIO, ISTIO_VERSIONS, "virtualservices", "VirtualService")],
            Self::WorkloadEntry => &[(ISTIO, ISTIO_VERSIONS, "workloadentries", "WorkloadEntry")],
            Self::Service => &[("", &["v1"], "services", "Service")],
            // Before Kubernetes 1.21 there are no slices of this version.
            Self::HeadlessSlices => &[SLICES, ("", &["v1"], "endpoints", "Endpoints")],
            Self::OtherSlices => &[SLICES],
            Self::Namespace => &[("", &["v1"], "namespaces", "Namespace")],
            Self::Pod => &[("", &["v1"], "pods", "Pod")],
            Self::MeshConfig => &[("", &["v1"], "configmaps", "ConfigMap")],
        }
    }

    /// The name of its kind.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::MeshConfig => "MeshConfig",
            _ => self.places()[0].3,
        }
    }

    /// Where it may be: group and plural.
    pub(super) fn resources(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let places = self.places().iter();
        places.map(|(group, _, plural, _)| (*group, *plural))
    }

    /// What it is read for.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Sidecar => "what is captured, and where it leads",
            Self::ServiceEntry => "services outside the cluster",
            Self::VirtualService => "which hosts a Sidecar's egress listeners have",
            Self::WorkloadEntry => {
                "endpoints that are no pods; workloads bound to a node by annotations"
            }
            Self::Service => "services of the cluster",
            Self::HeadlessSlices | Self::OtherSlices => {
                "endpoints of headless services; `endpoints` only before Kubernetes 1.21"
            }
            Self::Namespace => "whether a namespace's labels have its pods captured",
            Self::Pod => "the pods of the agent's own node, by field selector",
            Self::MeshConfig => "the mesh configuration",
        }
    }

    /// Which of its objects are watched.
    pub(super) fn config(self, node: &str, mesh_config_map: &str) -> watcher::Config {
        let all = watcher::Config::default();
        match self {
            Self::HeadlessSlices => all.labels(HEADLESS),
            Self::OtherSlices => all.labels(&format!(
                "!{HEADLESS},endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io"
            )),
            Self::Pod => all.fields(&format!("spec.nodeName={node}")),
            Self::MeshConfig => all.fields(&format!("metadata.name={mesh_config_map}")),
            _ => all,
        }
    }

    /// Whether none of the places where it may be comes before this one.
    pub(super) fn is_newest(self, resource: &ApiResource) -> bool {
        let (group, versions, ..) = self.places()[0];
        resource.group == group && resource.version == versions[0]
    }

    /// Where the API server has it now; `None`: nowhere.
    ///
    /// # Errors
    /// If it does not tell.
    pub(super) async fn find(self, client: &Client) -> kube::Result<Option<ApiResource>> {
        for (group, versions, plural, kind) in self.places() {
            for version in *versions {
                let gvk = GroupVersionKind::gvk(group, version, kind);
                let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
                // Kubernetes always has its own.
                if group.is_empty() || serves(client, &resource).await? {
                    return Ok(Some(resource));
                }
            }
        }
        Ok(None)
    }
}

async fn serves(client: &Client, of: &ApiResource) -> kube::Result<bool> {
    match client.list_api_group_resources(&of.api_version).await {
        Ok(list) => Ok(list.resources.iter().any(|found| {
            found.name == of.plural && found.verbs.iter().any(|verb| verb == "watch")
        })),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the API server says that it is ready. One that has just started may not know its CRDs
/// yet. Everyone may ask.
///
/// # Errors
/// If it does not answer.
pub(super) async fn is_ready(client: &Client) -> kube::Result<bool> {
    let request = hyper::Request::get("/readyz").body(Vec::new());
    let request = request.map_err(kube::Error::HttpError)?;
    Ok(client.request_text(request).await? == "ok")
}
