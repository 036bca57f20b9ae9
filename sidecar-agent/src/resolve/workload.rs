//! The workloads of this node: workload entries that name a cgroup.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use crate::model::{
    FailurePolicy, Object, ResourceRef, Snapshot, failure,
    mesh::InterceptionMode,
    settings::{PROXY_GID, PROXY_UID},
    sidecar::Sidecar,
    workload::{
        ADDRESSES_ANNOTATION, CAPTURE_ANNOTATION, CGROUP_ANNOTATION, FAILURE_POLICY_ANNOTATION,
        NETNS_ANNOTATION, PROXY_ANNOTATION, PROXY_CGROUP_ANNOTATION, ROOT_ANNOTATION,
        WorkloadEntry,
    },
};

use super::{
    ambient,
    finding::{Finding, FindingKind},
    registry,
    select::{ProxyType, Sidecars},
    traffic::{Origins, Problem, Settings, Traffic},
};

/// A workload on this node, with all that decides about its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedWorkload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The workload entry.
    pub resource: ResourceRef,
    /// Labels of the spec over those of the metadata.
    pub labels: BTreeMap<String, String>,
    /// Names of the annotations it has.
    pub annotations: BTreeSet<String>,
    /// Named ports.
    pub ports: BTreeMap<String, u16>,
    /// Its cgroup, below the cgroup2 root, without slashes at the ends.
    pub cgroup: String,
    /// Its network namespace, as a path; `None`: the host's.
    pub netns: Option<String>,
    /// What is `/` for its paths of unix sockets; `None`: the agent's own.
    pub root: Option<String>,
    /// Its proxy.
    pub proxy: Proxy,
    /// Whether its traffic is captured, by its annotation; `None`: by default, it is.
    pub capture: Option<bool>,
    /// What becomes of its connections when something fails.
    pub failure: FailurePolicy,
    /// Its addresses, in the order declared; v4-mapped ones are IPv4.
    pub addresses: Vec<IpAddr>,
    /// What is captured and what is exempt.
    pub traffic: Traffic,
    /// Where that was written.
    pub origins: Origins,
    /// The Sidecar that applies; `None`: Istio's built-in default.
    pub sidecar: Option<Arc<Object<Sidecar>>>,
}

/// Whether a workload has a sidecar proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// None: the agent itself does what it can.
    None,
    /// One that somebody else runs; known by its cgroup, or by [`Traffic::proxy_uids`] and
    /// [`Traffic::proxy_gids`].
    External {
        /// Its own cgroup, below the cgroup2 root.
        cgroup: Option<String>,
    },
}

impl ResolvedWorkload {
    /// The interception mode.
    #[must_use]
    pub fn mode(&self) -> InterceptionMode {
        self.traffic.mode
    }
}

impl fmt::Display for ResolvedWorkload {
    /// `namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The workloads of this node, in the snapshot's order, and what is wrong with them.
#[must_use]
pub fn workloads(snapshot: &Snapshot) -> (Vec<ResolvedWorkload>, Vec<Finding>) {
    let sidecars = Sidecars::new(&snapshot.sidecars, &snapshot.mesh.root_namespace);
    let mut findings = Vec::new();
    let mut cgroups = Cgroups::default();
    let mut workloads = Vec::new();
    for entry in &snapshot.workloads {
        let Some(cgroup) = entry.meta.annotations.get(CGROUP_ANNOTATION) else {
            continue;
        };
        let resource = entry.reference("WorkloadEntry");
        let Some(cgroup) = cgroup_path(cgroup) else {
            findings.push(bad_annotation(
                resource,
                CGROUP_ANNOTATION,
                cgroup,
                "a path below the cgroup2 root, without `..`, and not the root itself",
            ));
            continue;
        };
        match cgroups.claim(&cgroup, &resource) {
            Ok(()) => {
                let mut workload =
                    resolve(entry, resource, cgroup, snapshot, &sidecars, &mut findings);
                findings.extend(cgroups.claim_proxy(&mut workload));
                know_by_cgroup(&mut workload);
                workloads.push(workload);
            }
            Err(other) => findings.push(Finding {
                message: format!(
                    "cgroup {cgroup:?} is, contains, or lies within that of {other}, which \
                     comes first; this workload is not captured"
                ),
                resource: Some(resource),
                kind: FindingKind::CgroupConflict,
                field: annotation_field(CGROUP_ANNOTATION),
                remedy: "give each workload a cgroup of its own".into(),
                related: vec![other],
            }),
        }
    }
    let labels: Vec<_> = snapshot
        .workloads
        .iter()
        .map(|e| registry::labels(e))
        .collect();
    let known: Vec<_> = snapshot
        .workloads
        .iter()
        .zip(&labels)
        .map(|(entry, labels)| ambient::Workload {
            namespace: &entry.meta.namespace,
            labels,
            annotations: &entry.meta.annotations,
        })
        .collect();
    findings.extend(ambient::conflicts(
        &snapshot.sidecars,
        &snapshot.mesh.root_namespace,
        &known,
        // Namespaces are not read.
        &BTreeMap::new(),
    ));
    (workloads, findings)
}

fn resolve(
    entry: &Object<WorkloadEntry>,
    resource: ResourceRef,
    cgroup: String,
    snapshot: &Snapshot,
    sidecars: &Sidecars<'_>,
    findings: &mut Vec<Finding>,
) -> ResolvedWorkload {
    let Object { meta, spec, .. } = entry;
    let annotation = |name: &str| meta.annotations.get(name).map(String::as_str);
    let Settings {
        traffic,
        origins,
        problems,
    } = Traffic::read(&meta.annotations, &snapshot.mesh.default_config);
    findings.extend(
        problems
            .into_iter()
            .map(|problem| setting_problem(resource.clone(), problem)),
    );
    let addresses = addresses(entry, &resource, findings);
    let proxy = match annotation(PROXY_ANNOTATION) {
        None | Some("none") => Proxy::None,
        Some("external") => Proxy::External {
            cgroup: annotation(PROXY_CGROUP_ANNOTATION).and_then(|path| {
                let cgroup = cgroup_path(path);
                if cgroup.is_none() {
                    findings.push(bad_annotation(
                        resource.clone(),
                        PROXY_CGROUP_ANNOTATION,
                        path,
                        "a path below the cgroup2 root, without `..`",
                    ));
                }
                cgroup
            }),
        },
        Some(other) => {
            findings.push(bad_annotation(
                resource.clone(),
                PROXY_ANNOTATION,
                other,
                "none or external",
            ));
            Proxy::None
        }
    };
    let capture = match annotation(CAPTURE_ANNOTATION) {
        None => None,
        Some("on") => Some(true),
        Some("off") => Some(false),
        Some(other) => {
            findings.push(bad_annotation(
                resource.clone(),
                CAPTURE_ANNOTATION,
                other,
                "on or off",
            ));
            None
        }
    };
    let root = annotation(ROOT_ANNOTATION).filter(|path| {
        let usable = path.starts_with('/');
        if !usable {
            let expected = "an absolute path";
            findings.push(bad_annotation(
                resource.clone(),
                ROOT_ANNOTATION,
                path,
                expected,
            ));
        }
        usable
    });
    let root = root.map(str::to_owned);
    let labels = registry::labels(entry);
    let failure = failure_policy(entry, &resource, snapshot.failure_policy, findings);
    ResolvedWorkload {
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        resource,
        sidecar: sidecars
            .select(ProxyType::Sidecar, &meta.namespace, &labels)
            .cloned(),
        labels,
        annotations: meta.annotations.keys().cloned().collect(),
        ports: spec.ports.clone(),
        cgroup,
        netns: annotation(NETNS_ANNOTATION)
            .filter(|path| !path.is_empty())
            .map(str::to_owned),
        root,
        proxy,
        capture,
        failure,
        addresses,
        traffic,
        origins,
    }
}

/// The workload's failure policy; `node` is what holds where it says nothing.
fn failure_policy(
    entry: &Object<WorkloadEntry>,
    resource: &ResourceRef,
    node: FailurePolicy,
    findings: &mut Vec<Finding>,
) -> FailurePolicy {
    let Some(said) = entry.meta.annotations.get(FAILURE_POLICY_ANNOTATION) else {
        return node;
    };
    node.but(said).unwrap_or_else(|_| {
        findings.push(bad_annotation(
            resource.clone(),
            FAILURE_POLICY_ANNOTATION,
            said,
            failure::EXPECTED,
        ));
        node
    })
}

/// The workload's addresses; the first is that of its spec.
fn addresses(
    entry: &Object<WorkloadEntry>,
    resource: &ResourceRef,
    findings: &mut Vec<Finding>,
) -> Vec<IpAddr> {
    let Object { meta, spec, .. } = entry;
    let mut addresses: Vec<IpAddr> = Vec::new();
    let further = meta
        .annotations
        .get(ADDRESSES_ANNOTATION)
        .map_or("", String::as_str);
    for text in further
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        match text.parse::<IpAddr>() {
            Ok(ip) => addresses.push(ip.to_canonical()),
            Err(_) => findings.push(bad_annotation(
                resource.clone(),
                ADDRESSES_ANNOTATION,
                text,
                "IP addresses, separated by commas",
            )),
        }
    }
    if let Ok(ip) = spec.address.parse::<IpAddr>() {
        addresses.retain(|further| *further != ip.to_canonical());
        addresses.insert(0, ip.to_canonical());
    }
    addresses
}

/// A path below the cgroup2 root in one form; `None`: it is none.
fn cgroup_path(text: &str) -> Option<String> {
    let parts: Vec<&str> = text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// The cgroups given out so far.
#[derive(Default)]
struct Cgroups(BTreeMap<String, ResourceRef>);

impl Cgroups {
    /// Takes `path`, or names the workload whose cgroup it is, contains, or lies within.
    fn claim(&mut self, path: &str, resource: &ResourceRef) -> Result<(), ResourceRef> {
        let ancestors = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
        let around = ancestors.chain([path]).find_map(|path| self.0.get(path));
        // '0' is the character after '/': the range holds exactly what lies below `path`.
        let within = || {
            self.0
                .range(format!("{path}/")..format!("{path}0"))
                .next()
                .map(|(_, r)| r)
        };
        if let Some(other) = around.or_else(within) {
            return Err(other.clone());
        }
        self.0.insert(path.to_owned(), resource.clone());
        Ok(())
    }

    /// Takes the cgroup of a workload's proxy where it is not within the workload's own. One that
    /// is another's is left out: the proxy is then known by its uid.
    fn claim_proxy(&mut self, workload: &mut ResolvedWorkload) -> Option<Finding> {
        let Proxy::External { cgroup, .. } = &mut workload.proxy else {
            return None;
        };
        let path = cgroup.as_ref()?;
        if path.starts_with(&format!("{}/", workload.cgroup)) {
            return None;
        }
        let other = self.claim(path, &workload.resource).err()?;
        let finding = Finding {
            message: format!(
                "cgroup {path:?} is, contains, or lies within that of {other}; the proxy is known \
                 by its uid only"
            ),
            resource: Some(workload.resource.clone()),
            kind: FindingKind::CgroupConflict,
            field: annotation_field(PROXY_CGROUP_ANNOTATION),
            remedy: "give the proxy a cgroup of its own, or one within the workload's".into(),
            related: vec![other],
        };
        *cgroup = None;
        Some(finding)
    }
}

/// A proxy that has a cgroup of its own is known by ids only where some are written: anybody in the
/// workload who may choose a number could be the proxy otherwise.
fn know_by_cgroup(workload: &mut ResolvedWorkload) {
    if !matches!(workload.proxy, Proxy::External { cgroup: Some(_) }) {
        return;
    }
    let is_written = |setting| workload.origins.of(setting).is_some();
    let (users, groups) = (is_written(&PROXY_UID), is_written(&PROXY_GID));
    if !users {
        workload.traffic.proxy_uids.clear();
    }
    // Groups follow the users, see `Traffic::read`.
    if !users && !groups {
        workload.traffic.proxy_gids.clear();
    }
}

fn annotation_field(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

fn setting_problem(resource: ResourceRef, problem: Problem) -> Finding {
    Finding {
        resource: Some(resource),
        kind: if problem.without_effect {
            FindingKind::WithoutEffect
        } else {
            FindingKind::BadAnnotation
        },
        field: annotation_field(problem.annotation),
        message: problem.message,
        remedy: problem.remedy,
        related: Vec::new(),
    }
}

fn bad_annotation(resource: ResourceRef, annotation: &str, value: &str, expected: &str) -> Finding {
    Finding {
        resource: Some(resource),
        kind: FindingKind::BadAnnotation,
        field: annotation_field(annotation),
        message: format!("{value:?} cannot be used and is left out"),
        remedy: format!("write {expected}"),
        related: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectMeta, Origin};

    fn entry(name: &str, cgroup: &str) -> Object<WorkloadEntry> {
        Object {
            meta: ObjectMeta {
                name: name.into(),
                namespace: "ns".into(),
                labels: [("app".into(), "meta".into()), ("tier".into(), "web".into())].into(),
                annotations: [(CGROUP_ANNOTATION.into(), cgroup.into())].into(),
                ..ObjectMeta::default()
            },
            origin: Origin {
                file: "w.yaml".into(),
                line: 1,
            },
            spec: WorkloadEntry {
                address: "::ffff:10.0.0.1".into(),
                labels: [("app".into(), "spec".into())].into(),
                ..WorkloadEntry::default()
            },
        }
    }

    fn resolve(entries: Vec<Object<WorkloadEntry>>) -> (Vec<ResolvedWorkload>, Vec<Finding>) {
        workloads(&Snapshot {
            workloads: entries.into_iter().map(Arc::new).collect(),
            ..Snapshot::default()
        })
    }

    #[test]
    fn a_proxys_cgroup_is_nobody_elses() {
        let with_proxy = |name: &str, cgroup: &str, proxy: &str| {
            let mut entry = entry(name, cgroup);
            let more = [
                (PROXY_ANNOTATION, "external"),
                (PROXY_CGROUP_ANNOTATION, proxy),
            ];
            let more = more.map(|(key, value)| (key.to_owned(), value.to_owned()));
            entry.meta.annotations.extend(more);
            entry
        };
        let cgroup_of_proxy = |workload: &ResolvedWorkload| match &workload.proxy {
            Proxy::External { cgroup, .. } => cgroup.clone(),
            Proxy::None => None,
        };
        let (workloads, findings) = resolve(vec![
            with_proxy("a", "a", "a/proxy"),
            with_proxy("b", "b", "b-proxy"),
            with_proxy("c", "c", "b"),
            with_proxy("d", "d", "b-proxy"),
            entry("e", "b-proxy"),
        ]);
        let proxies: Vec<_> = workloads.iter().map(cgroup_of_proxy).collect();
        let own = |path: &str| Some(path.to_owned());
        assert_eq!(proxies, [own("a/proxy"), own("b-proxy"), None, None]);
        let conflicts = findings
            .iter()
            .filter(|f| f.kind == FindingKind::CgroupConflict);
        assert_eq!(conflicts.count(), 3, "{findings:?}");
    }

    #[test]
    fn one_workload() {
        let mut w = entry("a", "/sys.slice//a.service/");
        w.meta
            .annotations
            .insert(ADDRESSES_ANNOTATION.into(), "fd00::1, 10.0.0.1,x".into());
        w.meta
            .annotations
            .insert(PROXY_ANNOTATION.into(), "external".into());
        w.meta
            .annotations
            .insert(ROOT_ANNOTATION.into(), "/proc/7/root".into());
        w.meta
            .annotations
            .insert(PROXY_CGROUP_ANNOTATION.into(), "envoy".into());
        let (workloads, findings) = resolve(vec![w]);
        let w = &workloads[0];
        assert_eq!(w.cgroup, "sys.slice/a.service");
        assert_eq!(
            w.addresses,
            [
                "10.0.0.1".parse::<IpAddr>().unwrap(),
                "fd00::1".parse().unwrap()
            ]
        );
        assert_eq!(w.labels["app"], "spec");
        assert_eq!(w.labels["tier"], "web");
        assert_eq!(w.root.as_deref(), Some("/proc/7/root"));
        assert_eq!(w.to_string(), "ns/a");
        assert_eq!(
            w.proxy,
            Proxy::External {
                cgroup: Some("envoy".into()),
            }
        );
        assert!(w.traffic.proxy_uids.is_empty(), "it is known by its cgroup");
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].kind, FindingKind::BadAnnotation);
    }

    #[test]
    fn a_proxy_with_a_cgroup_is_known_by_ids_only_if_they_are_written() {
        let (uid, gid) = (PROXY_UID.annotation, PROXY_GID.annotation);
        let cgroup = PROXY_CGROUP_ANNOTATION;
        for (annotations, uids, gids) in [
            (&[][..], &[1337][..], &[1337][..]),
            (&[(cgroup, "envoy")], &[], &[]),
            (&[(cgroup, "envoy"), (uid, "7")], &[7], &[7]),
            (&[(cgroup, "envoy"), (gid, "8")], &[], &[8]),
            (&[(cgroup, "envoy"), (uid, "7"), (gid, "8")], &[7], &[8]),
            // That of the workload itself is none of its own.
            (&[(cgroup, "x")], &[1337], &[1337]),
        ] {
            let mut w = entry("a", "x");
            let external = (PROXY_ANNOTATION, "external");
            for (name, value) in annotations.iter().chain([&external]) {
                w.meta.annotations.insert((*name).into(), (*value).into());
            }
            let (workloads, _) = resolve(vec![w]);
            let traffic = &workloads[0].traffic;
            assert_eq!(
                (&*traffic.proxy_uids, &*traffic.proxy_gids),
                (uids, gids),
                "{annotations:?}"
            );
        }
    }

    #[test]
    fn a_failure_policy_is_the_nodes_as_far_as_the_workload_says_nothing() {
        let node: FailurePolicy = "proxy-gone=open,map-full=open".parse().unwrap();
        for (said, expected, findings) in [
            (None, "proxy-gone=open,map-full=open", 0),
            (Some("map-full=closed"), "proxy-gone=open", 0),
            (Some("open"), "open", 0),
            (Some("ajar"), "proxy-gone=open,map-full=open", 1),
        ] {
            let mut entry = entry("a", "a");
            let said = said.map(|said| (FAILURE_POLICY_ANNOTATION.to_owned(), said.to_owned()));
            entry.meta.annotations.extend(said);
            let (workloads, found) = workloads(&Snapshot {
                workloads: vec![Arc::new(entry)],
                failure_policy: node,
                ..Snapshot::default()
            });
            assert_eq!(Ok(workloads[0].failure), expected.parse(), "{expected}");
            assert_eq!(found.len(), findings, "{found:?}");
        }
    }

    #[test]
    fn cgroups_are_not_shared_nor_nested() {
        for (first, second) in [
            ("a/b", "a/b/"),
            ("a/b", "a/b/c"),
            ("a/b/c", "a/b"),
            ("a/b/c", "a"),
        ] {
            let (workloads, findings) = resolve(vec![entry("x", first), entry("y", second)]);
            assert_eq!(workloads.len(), 1, "{first} {second}");
            assert_eq!(workloads[0].name, "x");
            assert_eq!(findings[0].kind, FindingKind::CgroupConflict);
            assert_eq!(findings[0].resource.as_ref().unwrap().name, "y");
            assert_eq!(findings[0].related[0].name, "x");
        }
        let (workloads, findings) = resolve(vec![
            entry("x", "a/b"),
            entry("y", "a/bc"),
            entry("z", "a/b-c"),
            entry("r", "/"),
        ]);
        assert_eq!(workloads.len(), 3);
        assert_eq!(
            findings[0].kind,
            FindingKind::BadAnnotation,
            "the root is nobody's"
        );
    }
}
