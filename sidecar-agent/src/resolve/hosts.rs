//! The `hosts` of an egress listener: `namespace/dnsName`, and exclusions.

use std::collections::{HashMap, HashSet};

/// The `hosts` of one egress listener, ready for matching.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    include: HashMap<String, Names>,
    exclude: HashMap<String, Names>,
    /// Every inclusion is a complete name (no `*` and no `*.suffix`) in one namespace.
    exact_only: bool,
}

/// Key for entries of every namespace.
const ALL_NAMESPACES: &str = "*";

impl Hosts {
    /// Reads the entries. `.` is `namespace`; `~` before the namespace excludes, and alone means
    /// every namespace. An entry without exactly one `/` selects nothing, as in Istio.
    #[must_use]
    pub fn parse(entries: &[String], namespace: &str) -> Self {
        let mut hosts = Self {
            exact_only: true,
            ..Self::default()
        };
        for entry in entries {
            let Some((scope, name)) = entry.split_once('/') else {
                continue;
            };
            if name.is_empty() || name.contains('/') {
                continue;
            }
            let (side, scope) = match scope.strip_prefix('~') {
                Some("") => (&mut hosts.exclude, ALL_NAMESPACES),
                Some(scope) => (&mut hosts.exclude, scope),
                None if scope.is_empty() => continue,
                None => {
                    hosts.exact_only &= scope != ALL_NAMESPACES && !name.starts_with('*');
                    (&mut hosts.include, scope)
                }
            };
            let scope = if scope == "." { namespace } else { scope };
            side.entry(scope.to_owned()).or_default().add(name);
        }
        hosts
    }

    /// Whether a service of `namespace` with this host name is exposed. Exclusions win,
    /// wherever they stand in the list.
    #[must_use]
    pub fn selects(&self, namespace: &str, hostname: &str) -> bool {
        Self::any(&self.include, namespace, |names| names.covers(hostname))
            && !self.excludes(namespace, hostname)
    }

    /// Whether a virtual service of `namespace` for `host` is selected: as [`Self::selects`],
    /// but a wildcard host also meets the narrower names it covers.
    #[must_use]
    pub fn meets(&self, namespace: &str, host: &str) -> bool {
        let meets = |names: &Names| names.covers(host) || names.covered_by(host);
        Self::any(&self.include, namespace, meets) && !self.excludes(namespace, host)
    }

    /// The namespaces that inclusions name; `None`: one is for all namespaces.
    #[must_use]
    pub fn scopes(&self) -> Option<Vec<&str>> {
        (!self.include.contains_key(ALL_NAMESPACES))
            .then(|| self.include.keys().map(String::as_str).collect())
    }

    /// Whether every inclusion is a complete name in one namespace.
    #[must_use]
    pub fn exact_only(&self) -> bool {
        self.exact_only
    }

    /// An exclusion takes away what it covers, no more: Istio's `Excluded`.
    fn excludes(&self, namespace: &str, host: &str) -> bool {
        Self::any(&self.exclude, namespace, |names| names.covers(host))
    }

    fn any(
        side: &HashMap<String, Names>,
        namespace: &str,
        matches: impl Fn(&Names) -> bool,
    ) -> bool {
        [namespace, ALL_NAMESPACES]
            .iter()
            .any(|scope| side.get(*scope).is_some_and(&matches))
    }
}

/// The names given for one namespace. Lookup costs one step per label of the host name, however
/// many entries there are.
#[derive(Clone, Debug, Default)]
struct Names {
    all: bool,
    exact: HashSet<String>,
    /// `.example.com` for `*.example.com`.
    suffixes: HashSet<String>,
}

impl Names {
    fn add(&mut self, name: &str) {
        match name.strip_prefix('*') {
            Some("") => self.all = true,
            Some(suffix) => _ = self.suffixes.insert(suffix.to_owned()),
            None => _ = self.exact.insert(name.to_owned()),
        }
    }

    /// `*.example.com` covers names and narrower wildcards below it, and itself; a complete
    /// name covers itself only.
    fn covers(&self, hostname: &str) -> bool {
        self.all
            || self.exact.contains(hostname)
            || !self.suffixes.is_empty()
                && hostname.match_indices('.').any(|(at, _)| {
                    hostname
                        .get(at..)
                        .is_some_and(|s| self.suffixes.contains(s))
                })
    }

    fn covered_by(&self, host: &str) -> bool {
        host.strip_prefix('*').is_some_and(|suffix| {
            self.exact
                .iter()
                .chain(&self.suffixes)
                .any(|name| name.ends_with(suffix))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(entries: &[&str], namespace: &str, hostname: &str) -> bool {
        let entries: Vec<_> = entries.iter().map(ToString::to_string).collect();
        Hosts::parse(&entries, "own").selects(namespace, hostname)
    }

    #[test]
    fn namespaces() {
        assert!(selects(&["./*"], "own", "a.b"));
        assert!(!selects(&["./*"], "other", "a.b"));
        assert!(selects(&["*/a.b"], "other", "a.b"));
        assert!(!selects(&["*/*", "~./*"], "own", "a.b"));
        assert!(selects(&["*/*", "~./*"], "other", "a.b"));
        assert!(!selects(&["*/*", "~/a.b"], "other", "a.b"));
        assert!(!selects(&["~/*"], "own", "a.b"));
    }

    #[test]
    fn names() {
        assert!(selects(&["*/*.b.c"], "x", "a.b.c"));
        assert!(selects(&["*/*.c"], "x", "*.b.c"));
        assert!(selects(&["*/*.b.c"], "x", "*.b.c"));
        assert!(!selects(&["*/*.b.c"], "x", "b.c"));
        assert!(!selects(&["*/*.b.c"], "x", "*.c"));
        assert!(!selects(&["*/a.b.c"], "x", "*.b.c"));
    }

    #[test]
    fn virtual_services_are_excluded_by_what_covers_them() {
        let meets = |entries: &[&str], host: &str| {
            let entries: Vec<_> = entries.iter().map(ToString::to_string).collect();
            Hosts::parse(&entries, "own").meets("x", host)
        };
        assert!(meets(&["x/a.b.c"], "*.b.c"), "covered by the wildcard");
        assert!(meets(&["*/*", "~/a.b.c"], "*.b.c"), "more is left of it");
        assert!(!meets(&["*/*", "~/*.b.c"], "*.b.c"));
        assert!(!meets(&["*/*", "~x/*.c"], "a.b.c"));
    }

    #[test]
    fn malformed_entries_select_nothing() {
        assert!(!selects(&["x", "a/b/c", "/a.b", "x/"], "x", "a.b"));
    }
}
