//! The small grammars: hosts, endpoints, addresses of unix sockets, annotations, cgroup paths.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr, ops::Range, slice};

use sidecar_agent::{
    compile::{Target, UnixAddr},
    model::{
        Compat, FailurePolicy,
        mesh::{InterceptionMode, ProxyConfig},
        settings::{self, Setting},
        tree::{Key, Node, Value},
        validate::webhook_as,
        workload::PROXY_CONFIG_ANNOTATION,
    },
    resolve::{
        forward,
        hosts::Hosts,
        traffic::{Dns, Include, OwnerGroups, Settings, Traffic},
    },
    source::pod_cgroup,
};

/// Lines of one input that are looked at: some checks hold each against each.
const MOST_LINES: usize = 16;

/// The namespace of the Sidecar whose hosts these are.
const OWN: &str = "own";

const NOWHERE: Range<usize> = 0..0;

/// Checks each line by every grammar, and all lines as the hosts of one listener.
///
/// # Panics
/// When something does not hold.
pub fn check(text: &str) {
    let lines: Vec<&str> = text.lines().take(MOST_LINES).collect();
    for line in &lines {
        endpoint(line);
        unix(line);
        host(line);
        traffic(line);
        failure_policy(line);
        cgroup(line);
    }
    hosts(&lines);
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let entry = |(name, value): (&str, Value)| {
        let key = Key {
            name: name.to_owned(),
            span: NOWHERE,
        };
        (key, node(value))
    };
    Value::Map(entries.into_iter().map(entry).collect())
}

fn node(value: Value) -> Node {
    Node {
        value,
        span: NOWHERE,
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// Whether a Sidecar is valid whose only listener, in this direction, has these fields.
fn valid<const N: usize>(direction: &str, fields: [(&str, Value); N]) -> bool {
    let listeners = Value::List(vec![node(map(fields))]);
    let spec = node(map([(direction, listeners)]));
    let findings = webhook_as(&spec, OWN, Compat::Current);
    !findings
        .iter()
        .any(sidecar_agent::model::diagnostic::Finding::is_error)
}

/// A `defaultEndpoint` that is valid leads somewhere, whatever addresses the workload has.
fn endpoint(line: &str) {
    let port = map([("number", Value::Int(80))]);
    if !valid("ingress", [("port", port), ("defaultEndpoint", text(line))]) {
        return;
    }
    let (v4, v6) = (
        IpAddr::from([10, 0, 0, 1]),
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
    );
    for addresses in [&[][..], &[v4], &[v6], &[v6, v4]] {
        let forward = forward::forward(line, addresses);
        let Some(forward) = forward else {
            panic!("valid, and leads nowhere: {line:?}")
        };
        match forward.target {
            Target::Tcp(to) => {
                let own = addresses.contains(&to.ip()) || to.ip().is_loopback();
                assert!(own && to.port() != 0, "{line:?} leads to {to}");
            }
            Target::Unix(_) => assert!(line.starts_with("unix://"), "{line:?}"),
            Target::Original => assert!(
                line.is_empty() || line.starts_with(':') || line.starts_with("[]:"),
                "{line:?}"
            ),
        }
    }
}

/// A unix socket that is valid is one, and is written as it is read.
fn unix(line: &str) {
    let hosts = Value::List(vec![node(text("*/*"))]);
    let port = map([("number", Value::Int(0))]);
    let fields = [("port", port), ("bind", text(line)), ("hosts", hosts)];
    let read = UnixAddr::parse(line);
    if valid("egress", fields) {
        assert!(read.is_some(), "valid, and no unix socket: {line:?}");
    }
    if let Some(address) = read {
        assert_eq!(address.to_string(), line);
    }
}

fn valid_host(entry: &str) -> bool {
    valid("egress", [("hosts", Value::List(vec![node(text(entry))]))])
}

/// A valid entry selects the name it is made of, and an exclusion of it wins.
fn host(line: &str) {
    let Some((scope, name)) = line.split_once('/').filter(|_| valid_host(line)) else {
        return;
    };
    let excludes = scope.starts_with('~');
    let namespace = match scope.strip_prefix('~').unwrap_or(scope) {
        "." => OWN,
        "" | "*" => "any",
        namespace => namespace,
    };
    let below = name.strip_prefix('*').map(|suffix| format!("www{suffix}"));
    for host in [name].into_iter().chain(below.as_deref()) {
        let selects = |entries: &[String]| Hosts::parse(entries, OWN).selects(namespace, host);
        let entry = line.to_owned();
        assert_eq!(
            selects(slice::from_ref(&entry)),
            !excludes,
            "{line:?}: {host:?}"
        );
        if excludes {
            let everything = "*/*".to_owned();
            assert!(!selects(&[entry, everything]), "{line:?}: {host:?}");
        } else {
            let exclusion = format!("~/{name}");
            assert!(!selects(&[entry, exclusion]), "{line:?}: {host:?}");
        }
    }
}

/// Matching by tables comes to what matching entry by entry does, in any order.
fn hosts(lines: &[&str]) {
    let entries: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    let hosts = Hosts::parse(&entries, OWN);
    let reversed: Vec<String> = entries.iter().rev().cloned().collect();
    let reversed = Hosts::parse(&reversed, OWN);
    for (scope, name) in lines.iter().filter_map(|line| line.split_once('/')) {
        let namespace = scope.trim_start_matches('~');
        for namespace in [namespace, OWN] {
            for host in [name, &format!("www.{name}"), &name.replacen('*', "www", 1)] {
                let selects = hosts.selects(namespace, host);
                let hit = |exclude| {
                    lines
                        .iter()
                        .any(|line| covers(line, exclude, namespace, host))
                };
                assert_eq!(
                    selects,
                    hit(false) && !hit(true),
                    "{namespace}/{host} by {lines:?}"
                );
                assert_eq!(selects, reversed.selects(namespace, host), "{lines:?}");
                assert!(
                    !selects || hosts.meets(namespace, host),
                    "{namespace}/{host} by {lines:?}"
                );
            }
        }
    }
}

/// Whether an entry is an exclusion (or an inclusion) that covers a host.
fn covers(entry: &str, exclude: bool, namespace: &str, host: &str) -> bool {
    let Some((scope, name)) = entry.split_once('/') else {
        return false;
    };
    let excluded = scope.strip_prefix('~');
    let scope = match excluded.unwrap_or(scope) {
        "." => OWN,
        "" if excluded.is_some() => "*",
        scope => scope,
    };
    let named = match name.strip_prefix('*') {
        Some("") => true,
        // The suffix is some labels: it begins at a dot.
        Some(suffix) => suffix.starts_with('.') && host.ends_with(suffix),
        None => host == name,
    };
    excluded.is_some() == exclude
        && !(name.is_empty() || name.contains('/') || scope.is_empty())
        && (scope == "*" || scope == namespace)
        && named
}

/// What is read as a failure policy, written again, is read as the same, whatever it is based on.
fn failure_policy(line: &str) {
    let Ok(policy) = line.parse::<FailurePolicy>() else {
        return;
    };
    let written = policy.to_string();
    for base in ["open", "closed"] {
        let base: FailurePolicy = base.parse().expect("a policy");
        assert_eq!(base.but(&written), Ok(policy), "{line:?}");
        assert!(base.but(line).is_ok(), "{line:?}");
    }
}

/// What annotations are read as, written again, is read as the same.
fn traffic(line: &str) {
    let mut annotations: BTreeMap<String, String> = settings::ALL
        .iter()
        .map(|setting| (setting.annotation.to_owned(), line.to_owned()))
        .collect();
    let mesh = ProxyConfig::default();
    let Settings {
        traffic, problems, ..
    } = Traffic::read(&annotations, &mesh);
    for problem in problems {
        assert!(line.contains(&problem.value), "{problem:?} of {line:?}");
    }
    for port in traffic.exclude_outbound.iter().take(4) {
        assert!(
            traffic.outbound([192, 0, 2, 1].into(), *port).is_err(),
            "{line:?}"
        );
    }
    for net in traffic.exclude_ranges.iter().take(4) {
        assert!(traffic.outbound(net.addr(), 1).is_err(), "{line:?}");
    }
    for port in traffic.exempt_inbound() {
        let included =
            matches!(&traffic.include_inbound, Include::Only(ports) if ports.contains(&port));
        assert!(included || traffic.inbound(port).is_err(), "{line:?}");
    }

    for (setting, value) in written(&traffic) {
        annotations.insert(setting.annotation.to_owned(), value);
    }
    let again = Traffic::read(&annotations, &mesh).traffic;
    assert_eq!(traffic, again, "{line:?}");

    // As the value of a setting, and as a whole.
    annotations.insert(PROXY_CONFIG_ANNOTATION.to_owned(), line.to_owned());
    let _ = Traffic::read(&annotations, &mesh);
    for setting in settings::ALL {
        let _ = settings::environment_problem(setting.environment, line);
    }
}

/// The settings that come to this.
fn written(traffic: &Traffic) -> Vec<(&'static Setting, String)> {
    use settings as of;
    let (groups, except) = match &traffic.owner_groups {
        OwnerGroups::Only(groups) => (list(groups), String::new()),
        OwnerGroups::Except(groups) => ("*".to_owned(), list(groups)),
    };
    let (dns, all, servers) = match &traffic.dns {
        Dns::Off => (false, false, String::new()),
        Dns::All => (true, true, String::new()),
        Dns::Only(servers) => (true, false, list(servers)),
    };
    let mode = match traffic.mode {
        InterceptionMode::Redirect => "REDIRECT",
        InterceptionMode::Tproxy => "TPROXY",
        InterceptionMode::None => "NONE",
    };
    vec![
        (
            &of::INCLUDE_INBOUND_PORTS,
            included(&traffic.include_inbound, |ports| list(ports)),
        ),
        (&of::EXCLUDE_INBOUND_PORTS, list(&traffic.exclude_inbound)),
        (
            &of::INCLUDE_OUTBOUND_RANGES,
            included(&traffic.include_ranges, |nets| list(nets)),
        ),
        (&of::EXCLUDE_OUTBOUND_RANGES, list(&traffic.exclude_ranges)),
        (&of::INCLUDE_OUTBOUND_PORTS, list(&traffic.include_outbound)),
        (&of::EXCLUDE_OUTBOUND_PORTS, list(&traffic.exclude_outbound)),
        (&of::EXCLUDE_INTERFACES, list(&traffic.exclude_interfaces)),
        (&of::VIRTUAL_INTERFACES, list(&traffic.virtual_interfaces)),
        (&of::INTERCEPTION_MODE, mode.to_owned()),
        (&of::STATUS_PORT, traffic.status_port.to_string()),
        (&of::PROXY_UID, list(&traffic.proxy_uids)),
        (&of::PROXY_GID, list(&traffic.proxy_gids)),
        (&of::OWNER_GROUPS, groups),
        (&of::OWNER_GROUPS_EXCLUDE, except),
        (&of::LOOPBACK_CIDR, traffic.loopback.to_string()),
        (&of::DNS_CAPTURE, dns.to_string()),
        (&of::DNS_CAPTURE_ALL, all.to_string()),
        (&of::DNS_SERVERS, servers),
        (&of::DUAL_STACK, traffic.dual_stack.to_string()),
        (&of::DROP_INVALID, traffic.drop_invalid.to_string()),
        (&of::ACCELERATE, traffic.accelerate.to_string()),
        (&of::TUNNEL_PORT, traffic.tunnel_port.to_string()),
    ]
}

fn included<T>(include: &Include<T>, list: impl Fn(&T) -> String) -> String {
    match include {
        Include::All => "*".to_owned(),
        Include::Only(only) => list(only),
    }
}

fn list<'a, T: Display + 'a>(elements: impl IntoIterator<Item = &'a T>) -> String {
    let elements: Vec<String> = elements.into_iter().map(T::to_string).collect();
    elements.join(",")
}

/// What is told of a cgroup path is in it, and agrees with itself.
fn cgroup(line: &str) {
    let found = pod_cgroup::of_path(line);
    if let Some(found) = &found {
        let id = &found.container_id;
        assert!(
            line.contains(id.as_str()) && !id.is_empty(),
            "{line:?}: {found:?}"
        );
        assert!(
            !id.contains(|c: char| c.is_ascii_punctuation()),
            "{line:?}: {found:?}"
        );
        if let Some(uid) = &found.pod_uid {
            let groups: Vec<usize> = uid.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12], "{line:?}: {found:?}");
        }
        // One suffix is left out, and only one.
        let unit = line.strip_suffix(".scope").unwrap_or(line);
        let scope = pod_cgroup::of_path(&format!("{unit}.scope"));
        assert_eq!(scope.as_ref(), Some(found), "{line:?}");
    }
    assert_eq!(pod_cgroup::of_process([line, line]), Ok(found), "{line:?}");
}
