//! Interception by TPROXY, and packets that are invalid.

use super::{
    settings::{InboundPorts, Owner, Settings},
    table::Table,
};

/// The mark of packets that belong to the proxy's inbound side; it routes them to the pod itself.
pub const TPROXY_MARK: u32 = 1337;

/// The mark of what the proxy sends to the pod's own addresses.
const SELF_CALL_MARK: u32 = 1338;

const INBOUND: &str = "ISTIO_INBOUND";

/// The table `mangle`.
pub fn table(settings: &Settings<'_>) -> Table {
    let mut table = Table::new("mangle");
    if settings.tproxy {
        for interface in &settings.exclude_interfaces {
            table.append("PREROUTING", format!("-i {interface} -j RETURN"));
            table.append("OUTPUT", format!("-o {interface} -j RETURN"));
        }
    }
    if settings.options.drop_invalid {
        let rule = "-m conntrack --ctstate INVALID -j DROP";
        table.append("PREROUTING", rule);
    }
    if settings.tproxy {
        if settings.captures_inbound() {
            inbound(&mut table, settings);
        }
        marks(&mut table, settings);
    }
    table
}

fn inbound(table: &mut Table, settings: &Settings<'_>) {
    table.append("PREROUTING", format!("-p tcp -j {INBOUND}"));
    table.append("ISTIO_DIVERT", format!("-j MARK --set-mark {TPROXY_MARK}"));
    table.append("ISTIO_DIVERT", "-j ACCEPT");
    table.append(
        "ISTIO_TPROXY",
        format!(
            "! -d {} -p tcp -j TPROXY --tproxy-mark {TPROXY_MARK}/0xffffffff --on-port {}",
            settings.loopback, settings.options.inbound_capture_port
        ),
    );
    // Not what the proxy's inbound side sends, nor what others do to the pod's own addresses.
    for exempt in [
        format!("-m mark --mark {TPROXY_MARK}"),
        format!("-s {} -i lo", settings.passthrough),
        format!("-i lo -m mark ! --mark {SELF_CALL_MARK}"),
    ] {
        table.append(INBOUND, format!("-p tcp {exempt} -j RETURN"));
    }
    let conditions = match &settings.inbound_ports {
        InboundPorts::AllBut(exempt) => {
            for port in exempt {
                table.append(INBOUND, format!("-p tcp --dport {port} -j RETURN"));
            }
            vec![String::new()]
        }
        InboundPorts::These(ports) => ports
            .iter()
            .map(|port| format!(" --dport {port}"))
            .collect(),
    };
    for condition in conditions {
        table.append(
            INBOUND,
            format!("-p tcp{condition} -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT"),
        );
        table.append(INBOUND, format!("-p tcp{condition} -j ISTIO_TPROXY"));
    }
}

/// Marks outlive a packet with its connection.
fn marks(table: &mut Table, settings: &Settings<'_>) {
    table.append(
        "PREROUTING",
        format!("-p tcp -m mark --mark {TPROXY_MARK} -j CONNMARK --save-mark"),
    );
    table.append(
        "OUTPUT",
        format!("-p tcp -o lo -m mark --mark {TPROXY_MARK} -j RETURN"),
    );
    for Owner { option, .. } in settings.owners() {
        table.append(
            "OUTPUT",
            format!(
                "! -d {} -p tcp -o lo -m owner {option} -j MARK --set-mark {SELF_CALL_MARK}",
                settings.loopback
            ),
        );
    }
    table.append(
        "OUTPUT",
        format!("-p tcp -m connmark --mark {TPROXY_MARK} -j CONNMARK --restore-mark"),
    );
}
