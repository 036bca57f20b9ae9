//! What the agent may read of the API server, and nothing more: it writes nothing by this source.

use std::fmt::Write as _;

use super::watched::Watched;

/// What is done with what is watched.
pub const VERBS: [&str; 2] = ["list", "watch"];

/// Something that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its group; empty: Kubernetes' own.
    pub group: &'static str,
    /// The plural of its kind's name.
    pub resource: &'static str,
    /// Only this one, in its namespace; otherwise those of all namespaces.
    pub only: Option<(String, String)>,
    /// What for.
    pub reason: &'static str,
}

/// Everything that is read, with the mesh configuration in this `ConfigMap`: namespace and name.
#[must_use]
pub fn rules(mesh_config_map: &(String, String)) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for of in Watched::ALL {
        for (group, resource) in of.resources() {
            let rule = Rule {
                group,
                resource,
                only: (of == Watched::MeshConfig).then(|| mesh_config_map.clone()),
                reason: of.reason(),
            };
            if !rules
                .iter()
                .any(|known| (known.group, known.resource) == (group, resource))
            {
                rules.push(rule);
            }
        }
    }
    rules
}

/// The roles that allow it, as YAML: what is bound to the agent's service account.
#[must_use]
pub fn roles(name: &str, mesh_config_map: &(String, String)) -> String {
    let rules = rules(mesh_config_map);
    let verbs = VERBS.join(", ");
    let mut text = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: {name}\nrules:\n"
    );
    // Writing to a string cannot fail.
    for Rule {
        group, resource, ..
    } in rules.iter().filter(|rule| rule.only.is_none())
    {
        _ = writeln!(
            text,
            "- {{apiGroups: ['{group}'], resources: [{resource}], verbs: [{verbs}]}}"
        );
    }
    for Rule {
        group,
        resource,
        only,
        ..
    } in &rules
    {
        if let Some((namespace, only)) = only {
            _ = write!(
                text,
                "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n  name: {name}\n  \
                 namespace: {namespace}\nrules:\n- {{apiGroups: ['{group}'], resources: [{resource}], \
                 resourceNames: [{only}], verbs: [{verbs}]}}\n"
            );
        }
    }
    text
}
