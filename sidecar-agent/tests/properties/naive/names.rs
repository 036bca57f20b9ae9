//! `hosts` of egress listeners, entry by entry.

/// Whether the entries select a service of this namespace and name.
pub fn select(entries: &[String], own: &str, namespace: &str, host: &str) -> bool {
    matched(entries, own, namespace, &|pattern| covers(pattern, host))
}

/// Whether they select a virtual service's host: one that is a wildcard also meets what it covers.
/// What is excluded must be covered as a whole.
pub fn meet(entries: &[String], own: &str, namespace: &str, host: &str) -> bool {
    let excluded = split(entries, own)
        .filter(|entry| entry.excludes)
        .any(|entry| entry.is_for(namespace) && covers(entry.name, host));
    !excluded
        && split(entries, own)
            .filter(|entry| !entry.excludes && entry.is_for(namespace))
            .any(|entry| covers(entry.name, host) || covers(host, entry.name))
}

/// Whether every inclusion is one complete name in one namespace.
pub fn complete_only(entries: &[String], own: &str) -> bool {
    split(entries, own)
        .filter(|entry| !entry.excludes)
        .all(|entry| !entry.name.starts_with('*') && entry.namespace != "*")
}

fn matched(entries: &[String], own: &str, namespace: &str, covers: &dyn Fn(&str) -> bool) -> bool {
    let any = |excludes| {
        split(entries, own).any(|entry| {
            entry.excludes == excludes && entry.is_for(namespace) && covers(entry.name)
        })
    };
    any(false) && !any(true)
}

struct Entry<'a> {
    excludes: bool,
    namespace: &'a str,
    name: &'a str,
}

impl Entry<'_> {
    fn is_for(&self, namespace: &str) -> bool {
        self.namespace == "*" || self.namespace == namespace
    }
}

fn split<'a>(entries: &'a [String], own: &'a str) -> impl Iterator<Item = Entry<'a>> {
    entries.iter().map(move |text| {
        let (namespace, name) = text.split_once('/').expect("validated");
        let (excludes, namespace) = match namespace.strip_prefix('~') {
            Some(namespace) => (true, namespace),
            None => (false, namespace),
        };
        let namespace = match namespace {
            "" => "*",
            "." => own,
            namespace => namespace,
        };
        Entry {
            excludes,
            namespace,
            name,
        }
    })
}

fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => pattern == host || host.ends_with(suffix),
        None => pattern == host,
    }
}
