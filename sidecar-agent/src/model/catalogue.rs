//! The catalogue of everything that can be reported: one entry per code, and nothing else
//! defines a code.

use std::fmt;

use super::diagnostic::Severity;

/// A kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `SCA` and four digits; never reused for something else.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in a few words.
    pub title: &'static str,
    /// Why it matters, and where the rule comes from.
    pub explanation: &'static str,
    /// How to mend it, where the finding itself knows nothing better.
    pub remedy: &'static str,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

macro_rules! catalogue {
    ($($name:ident $id:literal $severity:ident $title:literal, $explanation:literal, $remedy:literal;)*) => {
        $(
            #[doc = concat!($id, ": ", $title, ".")]
            pub const $name: &Code = &Code {
                id: $id,
                severity: Severity::$severity,
                title: $title,
                explanation: $explanation,
                remedy: $remedy,
            };
        )*

        /// Every code, in the order of their ids.
        pub const ALL: &[&Code] = &[$($name),*];
    };
}

catalogue! {
    // Reading files and documents.
    SYNTAX "SCA0001" Error "not valid YAML",
        "The document could not be parsed. Other documents of the file are used.",
        "correct the syntax at the place shown";
    TOO_LARGE "SCA0002" Error "input is too large or too deeply nested",
        "Limits on size, nesting and alias expansion keep a broken or hostile file from using up the node's memory.",
        "split the file, and write out aliases";
    UNREADABLE "SCA0003" Error "file cannot be read",
        "A file of the configuration could not be read, or is not UTF-8.",
        "check that the file exists, its permissions and its encoding";
    NOT_A_RESOURCE "SCA0004" Error "document is not a resource",
        "A resource is a mapping with `apiVersion`, `kind`, `metadata` and `spec`; a MeshConfig is a mapping of its own fields.",
        "give the document an `apiVersion` and a `kind`";
    UNKNOWN_KIND "SCA0005" Error "unknown kind",
        "The kind is neither one that decides about capture nor one that is known to be irrelevant.",
        "correct `kind`, or move the document elsewhere";
    UNKNOWN_VERSION "SCA0006" Error "unknown apiVersion",
        "The kind exists, but not in this group and version.",
        "correct `apiVersion`";
    IGNORED_KIND "SCA0007" Warning "kind is not used",
        "Resources of this kind do not decide what is captured on a node.",
        "nothing has to be done; move the document elsewhere to silence this";
    DUPLICATE_RESOURCE "SCA0008" Error "resource is defined twice",
        "Two documents have the same kind, namespace and name. The first one, in the order of file names, is used.",
        "remove or rename one of the two";
    LAST_GOOD "SCA0009" Warning "last good version stays in force",
        "The resource, or the file it came from, is broken now. What was last read without errors is still used.",
        "mend the error that is reported with this warning";
    EMPTIED "SCA0010" Error "file is empty now",
        "A file that held resources is empty, as a file is that is just being written. Its resources stay in force.",
        "delete the file if its resources shall go, or leave a comment in it";
    WATCH_DEGRADED "SCA0011" Warning "changes are found by polling",
        "inotify is not available, so directories are compared at short intervals, until it is.",
        "raise what is used up: fs.inotify.max_user_watches, fs.inotify.max_user_instances, or LimitNOFILE of the agent's systemd unit";

    // Shape of a document: types, required fields, names of fields and values.
    WRONG_TYPE "SCA0020" Error "wrong type",
        "The field holds a value of another YAML type than its schema says. A number in quotes is a string; yes, no, on and off are booleans.",
        "write a value of the type named";
    MISSING_FIELD "SCA0021" Error "required field is missing",
        "The schema requires the field.",
        "add the field";
    UNKNOWN_FIELD "SCA0022" Error "unknown field",
        "The schema has no such field. Ignoring it would silently do something else than what was written.",
        "correct the field's name, or remove it";
    UNUSED_FIELD "SCA0023" Warning "field is not used",
        "The field is not one that decides about capture.",
        "nothing has to be done; remove the field to silence this";
    BAD_ENUM "SCA0024" Error "value is not one of the allowed ones",
        "Enum values are written by their names, in upper case.",
        "use one of the values listed";
    OUT_OF_RANGE "SCA0025" Error "value is out of range",
        "The schema limits numbers, lengths of strings and numbers of list elements.",
        "use a value within the limits";
    BAD_DURATION "SCA0026" Error "not a valid duration",
        "Durations are written as 1h, 1m, 1s, 1ms; most of them must be at least 1ms, in whole milliseconds.",
        "write a duration such as `10s`";
    BAD_NAME "SCA0027" Error "not a valid name",
        "Names of resources are DNS names: lower-case letters, digits, `-` and `.`; namespaces have no `.`.",
        "correct the name";
    BAD_TIMESTAMP "SCA0028" Error "not a valid timestamp",
        "`metadata.creationTimestamp` decides which of two resources is older; it is written as in RFC 3339.",
        "write a timestamp such as `2024-05-01T12:00:00Z`, or leave it out";
    EXCLUSIVE_FIELDS "SCA0029" Error "fields exclude each other",
        "The schema allows only one of these fields.",
        "keep one of the fields";
    LEFT_TO_PROXY "SCA0030" Warning "left to the proxy",
        "Only a layer 7 proxy can honour the field. A workload without one gets its connections without it.",
        "give the workload a sidecar proxy if the setting matters";

    // Sidecar: the rules of Istio's validating webhook.
    EMPTY_SIDECAR "SCA0100" Error "Sidecar configures nothing",
        "At least one of egress, ingress, outboundTrafficPolicy and inboundConnectionPool must be set; a selector alone selects for nothing.",
        "add an egress or ingress listener, or an outboundTrafficPolicy";
    BAD_SELECTOR "SCA0101" Error "workload selector cannot match",
        "Labels of a selector are compared as they are: keys must not be empty, and `*` is not a wildcard there.",
        "write each label in full";
    SELECTOR_WITHOUT_LABELS "SCA0102" Warning "workload selector without labels",
        "A selector without labels selects every workload of the namespace, which is rarely meant.",
        "add labels, or remove workloadSelector";
    BAD_PORT "SCA0103" Error "not a valid port number",
        "Port numbers are 1..65535. Port 0 is accepted only for egress listeners on a unix socket.",
        "use a port number in 1..65535";
    BAD_PORT_NAME "SCA0104" Error "not a valid port name",
        "Port names are DNS labels: letters, digits and `-`, at most 63 characters.",
        "correct the name, or leave it out";
    BAD_PROTOCOL "SCA0105" Error "unknown protocol",
        "Known protocols: TCP, UDP, GRPC, GRPC-Web, HTTP, HTTP_PROXY, HTTP2, HTTPS, TLS, Mongo, Redis, MySQL, in any case.",
        "use one of the known protocols, or leave it out";
    TARGET_PORT "SCA0106" Error "targetPort has no effect in a Sidecar",
        "The field exists only because the port type once was shared with ServiceEntry.",
        "remove targetPort; where connections lead is said by defaultEndpoint";
    BAD_BIND "SCA0107" Error "not a valid bind address",
        "A listener with a port is bound to an IP address, without brackets, port or prefix length; an egress listener with port 0 to a unix socket.",
        "write an IP address, or for an egress listener with port 0 `unix:///path` or `unix://@abstract`";
    PORT_TWICE "SCA0108" Error "port is used by two listeners",
        "Port numbers are unique within ingress and within egress, whatever the bind addresses are.",
        "use another port, or merge the two listeners";
    UNIX_BIND_TWICE "SCA0109" Error "unix socket is used by two listeners",
        "Each egress listener with port 0 needs a unix socket of its own.",
        "use another unix socket, or merge the two listeners";
    UNIX_CAPTURE_MODE "SCA0110" Error "captureMode does not fit a unix socket",
        "Nothing can be captured on its way to a unix socket.",
        "use captureMode NONE or DEFAULT, or leave it out";
    BAD_DEFAULT_ENDPOINT "SCA0111" Error "not a valid defaultEndpoint",
        "Connections can be handed to the workload on loopback, to its own address, or to a unix socket.",
        "write 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT, unix:///path or unix://@abstract";
    CATCH_ALL_NOT_LAST "SCA0112" Error "egress listener without port is not the last one",
        "An egress listener without port takes what the listeners before it have left; there can be one, and it must be the last.",
        "move the listener to the end, or give it a port";
    NO_HOSTS "SCA0113" Error "egress listener without hosts",
        "An egress listener names the hosts that can be reached through it.",
        "add hosts; `*/*` means all";
    BAD_HOST "SCA0114" Error "not a valid host",
        "Hosts are written `namespace/dnsName`: the namespace is a name, `*`, `.` or, to exclude, preceded by `~`; the DNS name is in full, or `*`, or begins with `*.`.",
        "write for instance `prod/reviews.prod.svc.cluster.local`, `./*` or `*/*.example.com`";
    DUPLICATE_HOST "SCA0115" Warning "host is covered already",
        "Another entry of the same listener selects the same host.",
        "remove the entry";
    WILDCARD_WITH_OTHERS "SCA0116" Warning "`*/*` makes other hosts pointless",
        "`*/*` selects everything; entries besides it add nothing.",
        "remove `*/*`, or the other entries";
    BAD_OUTBOUND_POLICY "SCA0117" Error "outboundTrafficPolicy is not allowed here",
        "ALLOW_ANY_DYNAMIC_DNS can be set only for the whole mesh.",
        "use REGISTRY_ONLY or ALLOW_ANY";
    BAD_EGRESS_PROXY "SCA0118" Error "egressProxy is not valid",
        "An egress proxy needs mode ALLOW_ANY, a host that is a full name without wildcard, and a port.",
        "correct outboundTrafficPolicy";
    BAD_TLS "SCA0119" Error "TLS settings are not valid",
        "A Sidecar's ingress listener terminates TLS with certificates from files only, on ports with protocol HTTPS or TLS.",
        "correct the TLS settings";
    TLS_WARNING "SCA0120" Warning "TLS settings are partly ineffective",
        "The proxy will ignore these settings, or clients will not be able to use them.",
        "correct the TLS settings";
    BAD_POOL "SCA0121" Error "connection pool settings are not valid",
        "Limits must not be negative, and some settings exclude or need each other.",
        "correct the connection pool settings";
    HTTP_POOL_ON_TCP "SCA0122" Warning "HTTP settings on a port that is not HTTP",
        "Only the TCP settings of the connection pool apply to this port.",
        "set the port's protocol to HTTP, HTTP2 or GRPC, or remove the http settings";

    COMPATIBILITY "SCA0123" Warning "accepted for compatibility only",
        "Istio 1.0 described ingress listeners on unix sockets (`bind: unix://...`, port 0). Current Istio refuses them; they are accepted because of `--compat istio-1.0`.",
        "bind to an IP address and a port before the resource goes to a current Istio";

    // ServiceEntry, WorkloadEntry, Service, MeshConfig.
    BAD_SERVICE_HOST "SCA0200" Error "not a valid service host",
        "A ServiceEntry needs at least one host; hosts are full DNS names, which may begin with `*.`.",
        "write a full DNS name";
    BAD_ADDRESS "SCA0201" Error "not a valid address",
        "Addresses are IP addresses or networks (`10.0.0.0/8`).",
        "correct the address";
    BAD_RESOLUTION "SCA0202" Error "resolution does not fit the rest",
        "NONE takes no endpoints; networks as addresses need NONE or STATIC; DNS needs host names that can be resolved; plain TCP ports cannot tell several hosts apart.",
        "change resolution, or what does not fit it";
    BAD_ENDPOINT "SCA0203" Error "not a valid endpoint",
        "An endpoint is an IP address, a unix socket (only with resolution STATIC, and then with exactly one service port), or a full DNS name (only with resolution DNS).",
        "correct the endpoint";
    BAD_EXPORT_TO "SCA0204" Error "exportTo is not valid",
        "exportTo lists namespaces, or is `.` (own namespace), `*` (everybody) or `~` (nobody); `*` and `~` stand alone.",
        "correct exportTo";
    SERVICE_WARNING "SCA0205" Warning "setting has no effect",
        "The setting has no effect together with the resolution, or not the one that is expected.",
        "remove the setting, or change resolution";
    DUPLICATE_SERVICE_PORT "SCA0206" Error "port is defined twice",
        "Names and numbers of a service's ports are unique.",
        "rename or remove one of the two";
    BAD_LABELS "SCA0207" Error "not valid labels",
        "Label keys are `[prefix/]name`; names and values have at most 63 letters, digits, `-`, `_` and `.`, and begin and end with a letter or digit.",
        "correct the label";
    UNKNOWN_CAPTURE_ANNOTATION "SCA0220" Error "unknown capture annotation",
        "Annotations below capture.sidecar-agent.io/ bind a WorkloadEntry to this node.",
        "correct the annotation's name";
    BAD_CAPTURE_ANNOTATION "SCA0221" Error "capture annotation is not valid",
        "cgroup and proxy-cgroup are paths below the cgroup2 root, netns and root are absolute paths, addresses is a list of IP addresses, proxy is `none` or `external`, capture is `on` or `off`, failure-policy is a list such as `proxy-gone=open` (docs/failure-policy.md).",
        "correct the annotation's value";
    BAD_SERVICE "SCA0230" Error "not a valid Service",
        "The part of the Service that decides where connections lead is not valid.",
        "correct the Service";
    BAD_MESH "SCA0240" Error "not a valid MeshConfig",
        "The mesh-wide settings could not be used.",
        "correct the MeshConfig";
    MESH_DYNAMIC_DNS "SCA0241" Warning "ALLOW_ANY_DYNAMIC_DNS is treated as ALLOW_ANY",
        "Resolving names of unknown destinations again for each connection needs a layer 7 proxy.",
        "use ALLOW_ANY";

    // Name resolution.
    DNS_FAILED "SCA0300" Warning "host name could not be resolved",
        "No name server answered. Addresses that were found before stay in use.",
        "check the name servers, and that they can be reached from the node";

    // What the resources come to, taken together.
    SEVERAL_SELECTORS "SCA0400" Warning "several Sidecars select one workload",
        "Exactly one Sidecar applies to a workload, and nothing is merged. Among those whose selector matches, the oldest applies, then the first by name. Istio: ConflictingSidecarWorkloadSelectors.",
        "give them selectors that do not overlap";
    SEVERAL_DEFAULTS "SCA0401" Warning "several Sidecars without a selector in one namespace",
        "A namespace has one default. The oldest applies, then the first by name. Istio: MultipleSidecarsWithoutWorkloadSelectors.",
        "keep one of them, or give the others a workloadSelector";
    SELECTOR_MATCHES_NOTHING "SCA0402" Warning "selector matches no workload",
        "No known workload of the Sidecar's namespace has these labels. Istio: ReferencedResourceNotFound.",
        "correct the labels, or delete the Sidecar";
    HOST_MATCHES_NOTHING "SCA0403" Warning "host matches no service",
        "No service that is exported to the workload's namespace has a name that the entry covers. Istio: the listener does not expose anything for it.",
        "correct the entry, or add the service";
    PORT_MATCHES_NOTHING "SCA0404" Warning "no selected service has the listener's port",
        "An egress listener with a port exposes only services that have this port. Without one it creates nothing, and connections to the port are treated as to unknown destinations.",
        "correct the port, or the hosts";
    INEFFECTIVE "SCA0405" Warning "Sidecar for workloads in ambient mode",
        "Workloads in ambient mode have no sidecar, so that no Sidecar applies to them. Istio: IneffectivePolicy.",
        "delete the Sidecar, or take what it selects out of ambient mode";
    BAD_ANNOTATION "SCA0410" Error "annotation cannot be used",
        "The annotation, or the element of its list that is named, is left out; the rest holds.",
        "correct the annotation's value";
    CGROUP_CONFLICT "SCA0411" Error "workloads share a cgroup",
        "What a socket belongs to is told by its cgroup, so that no workload's cgroup may be, contain, or lie within another's. The older workload is captured, the other is not.",
        "give each workload a cgroup of its own";
    WITHOUT_EFFECT "SCA0412" Warning "setting has no effect",
        "Another setting of the workload leaves this one without effect.",
        "remove one of the two settings";
    UNREACHABLE "SCA0420" Warning "listener cannot be reached",
        "No connection gets to the listener as things are.",
        "change the listener, or what keeps connections from it";
    LISTENER_CONFLICT "SCA0421" Warning "several services want one listener",
        "A listener leads to one service unless something tells its services apart. The first one has it, as in Istio.",
        "select one service, or give the services addresses of their own";
    NO_ENDPOINT "SCA0422" Warning "service has no endpoint",
        "Nothing is known that connections could be sent to, so they are refused.",
        "add an endpoint, or correct the selector or the host name";
    NEEDS_PROXY "SCA0423" Warning "only a layer 7 proxy can do this",
        "What is told apart by a Host header or a server name cannot be told apart by address and port.",
        "give the workload a sidecar proxy, or the services addresses of their own";
    SHADOWED "SCA0424" Warning "listener hides services of another one",
        "The most specific port wins: an address and port that a listener with a port has is closed to the services of the listener without one. HTTP services share one address, so that the port as a whole is closed to them.",
        "name the services in the listener with the port";
    RESERVED_PORT "SCA0425" Warning "port is reserved",
        "Istio makes no listener on the wildcard address at the ports of its proxy: 15021 and 15090 (health, metrics), and outbound proxyListenPort and proxyInboundListenPort (15001, 15006).",
        "use another port, or bind to one address";
    PORT_IN_USE "SCA0426" Warning "the application listens where an ingress listener is",
        "A listener with captureMode NONE is to be a real one, but a process of the workload already listens at its address and port. Istio's proxy could not bind it; without a proxy, sk_lookup comes before the application's socket, which gets none of the connections.",
        "let the application listen elsewhere, on 127.0.0.1 for instance, or use another port";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_sorted_and_nothing_is_empty() {
        for pair in ALL.windows(2) {
            assert!(
                pair[0].id < pair[1].id,
                "{} before {}",
                pair[0].id,
                pair[1].id
            );
        }
        for code in ALL {
            assert!(
                code.id.len() == 7
                    && code
                        .id
                        .strip_prefix("SCA")
                        .is_some_and(|n| n.parse::<u16>().is_ok()),
                "{}",
                code.id
            );
            assert!(
                !code.title.is_empty() && !code.explanation.is_empty() && !code.remedy.is_empty(),
                "{}",
                code.id
            );
        }
    }
}
