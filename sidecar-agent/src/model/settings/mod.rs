//! The settings of a workload's traffic capture: how they are called, and their syntax.
//!
//! What Istio has as flags or environment variables only is an annotation here as well. An
//! environment variable is an entry of `proxyMetadata`, in the annotation `proxy.istio.io/config` or
//! in `MeshConfig.defaultConfig`.

mod syntax;

pub use syntax::{boolean, elements, id, interface, loopback_cidr, port, server};

/// A setting by which a workload's traffic capture is told.
#[derive(Debug)]
pub struct Setting {
    /// What it says.
    pub about: &'static str,
    /// The annotation of the workload.
    pub annotation: &'static str,
    /// The environment variable of Istio's proxy, or one of our own among them; empty: there is none
    /// that is heeded.
    pub environment: &'static str,
    /// The field of a `ProxyConfig`; empty: there is none.
    pub field: &'static str,
    /// What can be written.
    pub expected: &'static str,
    /// What holds where it is not written.
    pub default: &'static str,
    /// What is wrong with a value of the environment variable; `None`: nothing.
    problem: fn(&str) -> Option<String>,
}

impl Setting {
    const fn new(annotation: &'static str, expected: &'static str, default: &'static str) -> Self {
        Self {
            about: "",
            annotation,
            environment: "",
            field: "",
            expected,
            default,
            problem: |_| None,
        }
    }

    const fn or_environment(
        self,
        environment: &'static str,
        problem: fn(&str) -> Option<String>,
    ) -> Self {
        Self {
            environment,
            problem,
            ..self
        }
    }

    const fn or_field(self, field: &'static str) -> Self {
        Self { field, ..self }
    }
}

/// Declares the settings as statics, and the list of all.
macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident = $setting:expr;)+) => {
        $(
            $(#[doc = $doc])+
            pub static $name: Setting = Setting {
                about: concat!($($doc),+).trim_ascii(),
                ..$setting
            };
        )+

        /// Every setting.
        pub static ALL: &[&Setting] = &[$(&$name,)+];
    };
}

const BOOLEAN: &str = "true or false";
const IDS: &str = "numbers of users or groups, separated by commas";
const PORTS: &str = "ports (0..65535), separated by commas";
const NETWORKS: &str = "networks such as 10.0.0.0/8, separated by commas";
const INTERFACES: &str = "names of interfaces, separated by commas";

settings! {
    /// Captured inbound ports, or `*`.
    INCLUDE_INBOUND_PORTS =
        Setting::new("traffic.sidecar.istio.io/includeInboundPorts", PORTS, "`*`");
    /// Exempt inbound ports; counts only where all are included.
    EXCLUDE_INBOUND_PORTS = Setting::new(
        "traffic.sidecar.istio.io/excludeInboundPorts",
        PORTS,
        "none; 15021, 15090 and the status port always are",
    );
    /// Captured outbound networks, or `*`.
    INCLUDE_OUTBOUND_RANGES =
        Setting::new("traffic.sidecar.istio.io/includeOutboundIPRanges", NETWORKS, "`*`");
    /// Exempt outbound networks.
    EXCLUDE_OUTBOUND_RANGES =
        Setting::new("traffic.sidecar.istio.io/excludeOutboundIPRanges", NETWORKS, "none");
    /// Outbound ports that are captured whatever the network.
    INCLUDE_OUTBOUND_PORTS =
        Setting::new("traffic.sidecar.istio.io/includeOutboundPorts", PORTS, "none");
    /// Exempt outbound ports.
    EXCLUDE_OUTBOUND_PORTS = Setting::new(
        "traffic.sidecar.istio.io/excludeOutboundPorts",
        PORTS,
        "none, as of the injector (15020 as of Istio's CNI plugin)",
    );
    /// Interfaces by which nothing is captured.
    EXCLUDE_INTERFACES =
        Setting::new("traffic.sidecar.istio.io/excludeInterfaces", INTERFACES, "none");
    /// Interfaces whose inbound traffic is taken for outbound.
    VIRTUAL_INTERFACES =
        Setting::new("istio.io/reroute-virtual-interfaces", INTERFACES, "none");
    /// The same under its old name, which does not count beside the new one.
    KUBEVIRT_INTERFACES =
        Setting::new("traffic.sidecar.istio.io/kubevirtInterfaces", INTERFACES, "none");
    /// The interception mode.
    INTERCEPTION_MODE = Setting::new(
        "sidecar.istio.io/interceptionMode",
        "REDIRECT, TPROXY or NONE",
        "REDIRECT",
    )
    .or_field("interceptionMode");
    /// The port of the proxy's merged metrics and health, exempt inbound.
    STATUS_PORT = Setting::new("status.sidecar.istio.io/port", "a port, or 0 for none", "15020")
        .or_field("statusPort");
    /// The proxy's users. Of their calls to the workload itself only the first one's are led to
    /// the inbound listener, as in Istio.
    PROXY_UID = Setting::new("capture.sidecar-agent.io/proxy-uid", IDS, "1337; none if the proxy has a cgroup of its own");
    /// The proxy's groups.
    PROXY_GID = Setting::new("capture.sidecar-agent.io/proxy-gid", IDS, "as proxy-uid");
    /// Groups whose outbound connections are captured, by number, at most 64, or `*`. Supplementary
    /// groups do not count.
    OWNER_GROUPS = Setting::new("capture.sidecar-agent.io/outbound-owner-groups", IDS, "`*`")
        .or_environment("ISTIO_OUTBOUND_OWNER_GROUPS", |value| {
            (value != "*").then(|| groups_problem(value)).flatten()
        });
    /// Groups whose outbound connections are exempt, at most 64; counts only where all are included.
    OWNER_GROUPS_EXCLUDE = Setting::new(
        "capture.sidecar-agent.io/outbound-owner-groups-exclude",
        IDS,
        "none",
    )
    .or_environment("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", groups_problem);
    /// What is never captured as loopback.
    LOOPBACK_CIDR = Setting::new(
        "capture.sidecar-agent.io/outbound-ipv4-loopback-cidr",
        "an IPv4 network such as 127.0.0.1/32",
        "127.0.0.1/32",
    )
    .or_environment("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", |value| {
        (!value.is_empty() && loopback_cidr(value).is_none())
            .then(|| format!("`{value}` is no IPv4 network such as 127.0.0.1/32"))
    });
    /// Whether DNS, by UDP and TCP, goes to the proxy's port 15053.
    DNS_CAPTURE = Setting::new("capture.sidecar-agent.io/dns-capture", BOOLEAN, "false")
        .or_environment("ISTIO_META_DNS_CAPTURE", boolean_problem);
    /// Whether DNS to any server does.
    DNS_CAPTURE_ALL = Setting::new(
        "capture.sidecar-agent.io/dns-capture-all",
        BOOLEAN,
        "true, as of Istio's CNI plugin, unless servers are named",
    );
    /// The servers to which DNS is captured, where it is not to any; Istio reads them from the
    /// workload's resolv.conf.
    DNS_SERVERS = Setting::new(
        "capture.sidecar-agent.io/dns-servers",
        "IP addresses, separated by commas",
        "none",
    );
    /// Whether any address of the workload, not only its first, turns the capture of IPv6 on.
    DUAL_STACK = Setting::new("capture.sidecar-agent.io/dual-stack", BOOLEAN, "false")
        .or_environment("ISTIO_DUAL_STACK", boolean_problem);
    /// Whether packets that connection tracking finds invalid are dropped. Accepted; there is no
    /// connection tracking here, so that nothing follows from it.
    DROP_INVALID = Setting::new("capture.sidecar-agent.io/drop-invalid", BOOLEAN, "false")
        .or_environment("INVALID_DROP", boolean_problem);
    /// Whether connections to the proxy's outbound port are accelerated: messages are handed over
    /// past TCP. Experimental; docs/acceleration.md tells what changes for the application.
    ACCELERATE = Setting::new("capture.sidecar-agent.io/accelerate", BOOLEAN, "false")
        .or_environment("SIDECAR_AGENT_ACCELERATE", boolean_problem);
    /// The tunnel port, exempt in mode REDIRECT.
    TUNNEL_PORT = Setting::new("capture.sidecar-agent.io/inbound-tunnel-port", "a port", "15008")
        .or_environment("INBOUND_TUNNEL_PORT", |value| {
            (!value.is_empty() && port(value).is_none()).then(|| format!("`{value}` is no port"))
        });
}

/// Istio's limit on the number of owner groups.
pub const MAX_GROUPS: usize = 64;

/// What is wrong with the value of an environment variable; `None`: nothing, or it is no setting.
#[must_use]
pub fn environment_problem(name: &str, value: &str) -> Option<String> {
    let is_it = |setting: &&&Setting| !name.is_empty() && setting.environment == name;
    let setting = ALL.iter().find(is_it)?;
    (setting.problem)(value.trim())
}

fn boolean_problem(value: &str) -> Option<String> {
    let is_usable = value.is_empty() || boolean(value).is_some();
    (!is_usable).then(|| format!("`{value}` is neither true nor false"))
}

fn groups_problem(value: &str) -> Option<String> {
    let count = elements(value).count();
    if count > MAX_GROUPS {
        return Some(too_many_groups(count));
    }
    let bad = elements(value).find(|group| id(group).is_none())?;
    Some(format!("`{bad}` is not the number of a group"))
}

/// What is said of a list of owner groups that is too long.
#[must_use]
pub fn too_many_groups(count: usize) -> String {
    format!("{count} owner groups; at most {MAX_GROUPS} are allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment() {
        let many = (0..65).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        for (name, value, good) in [
            ("ISTIO_OUTBOUND_OWNER_GROUPS", "*", true),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", "1,,2,", true),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", "1,*", false),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", &many, false),
            ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "*", false),
            ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.1/8", true),
            ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.1", false),
            ("ISTIO_META_DNS_CAPTURE", "yes", false),
            ("ISTIO_META_DNS_CAPTURE", "true", true),
            ("INBOUND_TUNNEL_PORT", "70000", false),
            ("ISTIO_META_ANYTHING", "yes", true),
            ("", "yes", true),
        ] {
            assert_eq!(
                environment_problem(name, value).is_none(),
                good,
                "{name}={value}"
            );
        }
    }
}
