//! Which pod and which container a process belongs to, from the paths of its cgroups.
//!
//! Kubelet and the container runtimes name cgroups in many ways (the cgroupfs and the systemd
//! driver, `docker-`, `cri-containerd-`, `crio-`, nested nodes), and in a cgroup namespace the
//! beginning of a path is missing. What they have in common: `pod` and the pod's UID between
//! punctuation, and the container's id at the end. The rules are Istio's
//! (`cni/pkg/nodeagent/podcgroupns_linux.go`), which are SPIRE's.

/// What a cgroup path tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodCgroup {
    /// The pod's UID in its canonical form, with `-` between the groups; `None`: cri-o leaves it
    /// out in some setups.
    pub pod_uid: Option<String>,
    /// The container's id.
    pub container_id: String,
}

/// The cgroups of one process contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Two container ids.
    #[error("the process has cgroups of several containers: {0:?} and {1:?}")]
    Containers(String, String),
    /// Two pod UIDs, or one and none.
    #[error("the process has cgroups of several pods: {0:?} and {1:?}")]
    Pods(String, String),
}

/// The pod and container of a process with these cgroup paths, such as the third fields of
/// `/proc/PID/cgroup`; `None`: it is in no container that could be told.
///
/// # Errors
/// When the paths name different containers or pods.
pub fn of_process<'a>(
    paths: impl IntoIterator<Item = &'a str>,
) -> Result<Option<PodCgroup>, Contradiction> {
    let mut found: Option<PodCgroup> = None;
    for new in paths.into_iter().filter_map(of_path) {
        let Some(known) = &found else {
            found = Some(new);
            continue;
        };
        if known.container_id != new.container_id {
            let ids = (known.container_id.clone(), new.container_id);
            return Err(Contradiction::Containers(ids.0, ids.1));
        }
        if known.pod_uid != new.pod_uid {
            let uid = |cgroup: &PodCgroup| cgroup.pod_uid.clone().unwrap_or_default();
            return Err(Contradiction::Pods(uid(known), uid(&new)));
        }
    }
    Ok(found)
}

/// The pod and container of one cgroup path; `None`: it is none of a container.
#[must_use]
pub fn of_path(path: &str) -> Option<PodCgroup> {
    let path = path.strip_suffix(".scope").unwrap_or(path);
    match (below_pod(path), crio(path)) {
        (Some(found), None) | (None, Some(found)) => Some(found),
        // Neither can be trusted where both hold.
        (Some(_), Some(_)) | (None, None) => None,
    }
}

/// The UID of the pod whose own cgroup has this name, as kubelet's two drivers name it:
/// `pod<UID>`, or `kubepods[-burstable|-besteffort]-pod<UID>.slice`; `None`: it is none of a pod.
#[must_use]
pub fn of_directory(name: &str) -> Option<String> {
    let path = format!("/{name}/");
    let is_whole = |uid: &PodUid| {
        let before = path
            .get(..uid.start)
            .is_some_and(|s| s.ends_with(punctuation));
        // `end` lies behind the first character after the UID.
        let after = path.get(uid.end - 1..);
        before && matches!(after, Some("/" | ".slice/"))
    };
    pod_uids(&path).find(is_whole).map(|uid| uid.canonical)
}

/// A UID in its canonical form, with `-` between the groups; `None`: it is none. (That of a static
/// pod is a hash, whose digits kubelet writes without.)
#[must_use]
pub fn canonical(uid: &str) -> Option<String> {
    of_directory(&format!("pod{uid}"))
}

fn punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
}

/// `...pod<UID>...<container id>`, with single punctuation all the way from the UID to the id.
fn below_pod(path: &str) -> Option<PodCgroup> {
    pod_uids(path)
        .filter(|uid| {
            path.get(..uid.start)
                .is_some_and(|s| s.ends_with(punctuation))
        })
        .find_map(|uid| {
            let mut parts = path.get(uid.end..)?.split(punctuation);
            let container_id = parts.clone().next_back()?;
            parts.all(|part| !part.is_empty()).then(|| PodCgroup {
                pod_uid: Some(uid.canonical),
                container_id: container_id.to_owned(),
            })
        })
}

/// `...crio-<container id>` without a pod UID right above it.
fn crio(path: &str) -> Option<PodCgroup> {
    let container_id = path
        .rsplit(punctuation)
        .next()
        .filter(|id| !id.is_empty())?;
    let above = path
        .strip_suffix(container_id)?
        .strip_suffix(punctuation)?
        .strip_suffix("crio")?;
    // A UID is right above if nothing but plain names and slashes are in between. One that is
    // itself such a name is not told from others: then both forms hold.
    let names = above
        .trim_end_matches(|c| c == '/' || !punctuation(c))
        .len();
    let below_pod = pod_uids(path).any(|uid| uid.start <= names && names <= uid.end);
    (!below_pod).then(|| PodCgroup {
        pod_uid: None,
        container_id: container_id.to_owned(),
    })
}

/// `pod`, a UID and one character of punctuation: where it begins and ends in the path.
struct PodUid {
    start: usize,
    end: usize,
    canonical: String,
}

fn pod_uids(path: &str) -> impl Iterator<Item = PodUid> + '_ {
    path.match_indices("pod").filter_map(|(start, pod)| {
        let mut rest = path.get(start + pod.len()..)?;
        let mut groups = Vec::new();
        for (index, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
            if index > 0 {
                rest = rest.strip_prefix(punctuation).unwrap_or(rest);
            }
            let (group, after) = rest.split_at_checked(length)?;
            if !group.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            groups.push(group);
            rest = after;
        }
        let rest = rest.strip_prefix(punctuation)?;
        Some(PodUid {
            start,
            end: path.len() - rest.len(),
            canonical: groups.join("-"),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::iter;

    use proptest::prelude::*;

    use super::*;

    const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";
    const ID: &str = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";

    /// The path with `UID` and `ID` (and `U_ID`: underscores) filled in.
    fn path(template: &str) -> String {
        let template = template.replace("U_ID", &UID.replace('-', "_"));
        template.replace("UID", UID).replace("ID", ID)
    }

    fn pod() -> PodCgroup {
        PodCgroup {
            pod_uid: Some(UID.into()),
            container_id: ID.into(),
        }
    }

    #[test]
    fn what_runtimes_and_drivers_make() {
        for template in [
            // cgroupfs.
            "/kubepods/besteffort/podUID/ID",
            "/kubepods/podUID/ID",
            "/kubepods/burstable/podUID/crio-ID",
            // systemd.
            "/kubepods.slice/kubepods-podU_ID.slice/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice/crio-ID.scope",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice/docker-ID.scope",
            "/kubepods-besteffort-podU_ID.slice:cri-containerd:ID",
            "/system.slice/containerd.service/kubepods-burstable-podU_ID.slice:cri-containerd:ID",
            // cri-o's monitor, beside its container.
            "/kubepods.slice/kubepods-podU_ID.slice/crio-conmon-ID.scope",
            // kind: a node that is itself a container.
            "/docker/8d461fa5765781bcf5f7eb192f101bc3103d4b932e26236f43feecfa20664f96/kubepods/besteffort/podUID/ID",
            "/system.slice/docker-8d461fa5765781bc.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_ID.slice/cri-containerd-ID.scope",
            // In a cgroup namespace, and as a whole line of /proc/PID/cgroup.
            "/../../podUID/ID",
            "0::/../../podUID/ID",
        ] {
            let path = path(template);
            assert_eq!(of_path(&path), Some(pod()), "{path}");
        }
    }

    #[test]
    fn cgroups_of_pods_themselves() {
        let hash = UID.replace('-', "");
        for name in [
            format!("pod{UID}"),
            format!("pod{hash}"),
            path("kubepods-podU_ID.slice"),
            path("kubepods-besteffort-podU_ID.slice"),
            path("kubelet-kubepods-burstable-podU_ID.slice"),
        ] {
            assert_eq!(of_directory(&name).as_deref(), Some(UID), "{name}");
        }
        for name in [
            "kubepods".to_owned(),
            "kubepods-besteffort.slice".into(),
            path("kubepods-podU_ID.slice:cri-containerd:ID"),
            path("xpodUID"),
            path("podUIDx"),
            path("podUID.scope"),
            ID.into(),
        ] {
            assert_eq!(of_directory(&name), None, "{name}");
        }
        assert_eq!(canonical(&hash).as_deref(), Some(UID));
        assert_eq!(canonical("mirror"), None);
    }

    #[test]
    fn crio_without_a_pod_uid() {
        let found = of_path(&path("/../crio-ID.scope")).unwrap();
        assert_eq!((found.pod_uid, found.container_id.as_str()), (None, ID));
    }

    #[test]
    fn paths_that_match_both_forms_are_rejected() {
        // A static pod's UID is a hash without punctuation.
        let uid = UID.replace('-', "");
        assert_eq!(of_path(&format!("/kubepods/pod{uid}/crio-{ID}")), None);
        assert_eq!(of_path(&path("/kubepods/podUID/a-b/crio-ID")), None);
        let systemd = format!("/kubepods.slice/kubepods-pod{uid}.slice/crio-{ID}.scope");
        assert_eq!(of_path(&systemd), Some(pod()));
    }

    #[test]
    fn what_is_no_container() {
        for template in [
            "",
            "/",
            "/user.slice/user-0.slice/session-1.scope",
            // The pod's own cgroup.
            "/kubepods/besteffort/podUID",
            "/kubepods/besteffort/podUID/",
            "/kubepods.slice/kubepods-podU_ID.slice//ID",
            // Not between punctuation.
            "/kubepods/xpodUID/ID",
            "/kubepods/podUIDx/ID",
            // Not a UID.
            "/kubepods/pod2c48913c-b29f-11e7-9350-02096814779/ID",
            "/kubepods/pod2c48913c--b29f-11e7-9350-020968147796/ID",
            "/kubepods/pod2c48913g-b29f-11e7-9350-020968147796/ID",
            "/crio-",
            "/crioID",
        ] {
            let path = path(template);
            assert_eq!(of_path(&path), None, "{path}");
        }
    }

    #[test]
    fn the_cgroups_of_one_process_agree() {
        let (one, other) = (
            path("/podUID/ID"),
            path("/kubepods-podU_ID.slice/docker-ID"),
        );
        assert_eq!(
            of_process([one.as_str(), "/user.slice", &other]),
            Ok(Some(pod()))
        );
        assert_eq!(of_process(["/", "/user.slice"]), Ok(None));
        assert_eq!(of_process([]), Ok(None));
        let container = path("/podUID/0123");
        assert!(matches!(
            of_process([one.as_str(), &container]),
            Err(Contradiction::Containers(..))
        ));
        let without_pod = path("/crio-ID");
        for pair in [[one.as_str(), &without_pod], [&without_pod, &one]] {
            assert!(matches!(of_process(pair), Err(Contradiction::Pods(..))));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(path in "(pod|crio|[0-9a-f]{8}|[0-9a-f]{4}|[0-9a-f]{12}|[-_/.:]|é|\\PC){0,24}(\\.scope)?") {
            let found = of_path(&path);
            prop_assert!(found.is_none_or(|found| path.contains(&found.container_id)));
            let _ = (of_directory(&path), canonical(&path));
        }

        #[test]
        fn any_punctuation_separates(marks in prop::collection::vec("[!-/:-@\\[-`{-~]?", 4), end in "[!-/:-@\\[-`{-~]") {
            let groups = UID.split('-').map(str::to_owned);
            let marks = marks.into_iter().chain(iter::once(end));
            let uid: String = groups.zip(marks).map(|(group, mark)| group + &mark).collect();
            prop_assert_eq!(of_path(&format!("/pod{uid}{ID}")), Some(pod()));
        }
    }
}
