//! What a runtime says in the environment.

use super::{
    error::{Code, Error, Result},
    wire::PodRef,
};

/// The pod that `CNI_ARGS` names; `None`: it names none, as outside of Kubernetes.
///
/// # Errors
/// If it is no list of `KEY=VALUE` separated by `;`.
pub fn pod(args: &str) -> Result<Option<PodRef>> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            let message = format!("CNI_ARGS: `{pair}` is not KEY=VALUE");
            return Err(Error::new(Code::InvalidEnvironment, message));
        };
        let value = (!value.is_empty()).then(|| value.to_owned());
        match key {
            "K8S_POD_NAMESPACE" => namespace = value,
            "K8S_POD_NAME" => name = value,
            "K8S_POD_UID" => uid = value,
            _ => {}
        }
    }
    Ok(namespace.zip(name).map(|(namespace, name)| PodRef {
        namespace,
        name,
        uid,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_by_kubernetes() {
        let named = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=shop;\
                     K8S_POD_INFRA_CONTAINER_ID=1;K8S_POD_UID=u";
        let shop = |uid: Option<&str>| PodRef {
            namespace: "prod".into(),
            name: "shop".into(),
            uid: uid.map(str::to_owned),
        };
        assert_eq!(pod(named), Ok(Some(shop(Some("u")))));
        // containerd before 1.6 tells no UID.
        assert_eq!(
            pod("K8S_POD_NAMESPACE=prod;K8S_POD_NAME=shop;"),
            Ok(Some(shop(None)))
        );
        for none in [
            "",
            "IgnoreUnknown=1",
            "K8S_POD_NAMESPACE=prod",
            "K8S_POD_NAMESPACE=;K8S_POD_NAME=",
        ] {
            assert_eq!(pod(none), Ok(None), "{none}");
        }
        assert_eq!(pod("x").unwrap_err().code, Code::InvalidEnvironment);
    }
}
