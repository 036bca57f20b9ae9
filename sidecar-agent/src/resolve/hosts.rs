//! The `hosts` of an egress listener: `namespace/dnsName`, and exclusions.

use std::collections::{HashMap, HashSet};

/// The `hosts` of one egress listener, ready for matching.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    include: HashMap<String, Names>,
    exclude: HashMap<String, Names>,
    /// Every inclusion is a complete name: no `*` and no `*.suffix`.
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
                    hosts.exact_only &= !name.starts_with('*');
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
        self.any(namespace, |names| names.covers(hostname))
    }

    /// Whether a virtual service of `namespace` for `host` is selected: as [`Self::selects`],
    /// but a wildcard host also meets the narrower names it covers.
    #[must_use]
    pub fn meets(&self, namespace: &str, host: &str) -> bool {
        self.any(namespace, |names| {
            names.covers(host) || names.covered_by(host)
        })
    }

    /// Whether every inclusion is a complete name.
    #[must_use]
    pub fn exact_only(&self) -> bool {
        self.exact_only
    }

    fn any(&self, namespace: &str, matches: impl Fn(&Names) -> bool) -> bool {
        let hit = |side: &HashMap<String, Names>| {
            [namespace, ALL_NAMESPACES]
                .iter()
                .any(|scope| side.get(*scope).is_some_and(&matches))
        };
        hit(&self.include) && !hit(&self.exclude)
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
    fn malformed_entries_select_nothing() {
        assert!(!selects(&["x", "a/b/c", "/a.b", "x/"], "x", "a.b"));
    }
}
