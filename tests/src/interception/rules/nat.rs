//! What is redirected, and what not.

use super::{
    DNS_CAPTURE_PORT,
    settings::{InboundPorts, Owner, OwnerGroups, Ranges, Servers, Settings},
    table::Table,
};

const OUTPUT: &str = "ISTIO_OUTPUT";
const DNS: &str = "ISTIO_OUTPUT_DNS";
const INBOUND: &str = "ISTIO_INBOUND";

/// The table `nat`.
pub fn table(settings: &Settings<'_>) -> Table {
    let mut table = Table::new("nat");
    let options = settings.options;
    for (chain, port) in [
        ("ISTIO_REDIRECT", &options.proxy_port),
        ("ISTIO_IN_REDIRECT", &options.inbound_capture_port),
    ] {
        table.append(chain, format!("-p tcp -j REDIRECT --to-ports {port}"));
    }
    prerouting(&mut table, settings);
    output(&mut table, settings);
    table
}

fn prerouting(table: &mut Table, settings: &Settings<'_>) {
    let chain = "PREROUTING";
    // Virtual interfaces first: what comes from them is on its way out, or nobody's.
    for interface in &settings.virtual_interfaces {
        for range in ranges(&settings.include_ranges) {
            table.append(chain, format!("-i {interface}{range} -j ISTIO_REDIRECT"));
        }
    }
    for interface in &settings.virtual_interfaces {
        table.append(chain, format!("-i {interface} -j RETURN"));
    }
    for interface in &settings.exclude_interfaces {
        table.append(chain, format!("-i {interface} -j RETURN"));
    }
    let tunnel = &settings.options.inbound_tunnel_port;
    table.append(INBOUND, format!("-p tcp --dport {tunnel} -j RETURN"));
    if settings.tproxy || !settings.captures_inbound() {
        return;
    }
    table.append(chain, format!("-p tcp -j {INBOUND}"));
    match &settings.inbound_ports {
        InboundPorts::AllBut(exempt) => {
            for port in exempt {
                table.append(INBOUND, format!("-p tcp --dport {port} -j RETURN"));
            }
            table.append(INBOUND, "-p tcp -j ISTIO_IN_REDIRECT");
        }
        InboundPorts::These(ports) => {
            for port in ports {
                let rule = format!("-p tcp --dport {port} -j ISTIO_IN_REDIRECT");
                table.append(INBOUND, rule);
            }
        }
    }
}

/// The condition of each range on its own, with a blank before it.
fn ranges(ranges: &Ranges) -> Vec<String> {
    match ranges {
        Ranges::All => vec![String::new()],
        Ranges::These(nets) => nets.iter().map(|net| format!(" -d {net}")).collect(),
    }
}

fn output(table: &mut Table, settings: &Settings<'_>) {
    for interface in &settings.exclude_interfaces {
        table.append("OUTPUT", format!("-o {interface} -j RETURN"));
    }
    table.append("OUTPUT", format!("-j {OUTPUT}"));
    for port in &settings.exclude_outbound_ports {
        for protocol in ["tcp", "udp"] {
            let rule = format!("-p {protocol} --dport {port} -j RETURN");
            table.append(OUTPUT, rule);
        }
    }
    let passthrough = settings.passthrough;
    table.append(OUTPUT, format!("-o lo -s {passthrough} -j RETURN"));
    proxy(table, settings);
    owner_groups(table, settings);
    dns(table, settings);
    let loopback = &settings.loopback;
    table.append(OUTPUT, format!("-d {loopback} -j RETURN"));
    for net in &settings.exclude_ranges {
        table.append(OUTPUT, format!("-d {net} -j RETURN"));
    }
    for port in &settings.include_outbound_ports {
        table.append(OUTPUT, format!("-p tcp --dport {port} -j ISTIO_REDIRECT"));
    }
    for range in ranges(&settings.include_ranges) {
        table.append(OUTPUT, format!("{} -j ISTIO_REDIRECT", range.trim_start()));
    }
}

/// What the proxy does itself, by each of its uids, then by each of its gids.
fn proxy(table: &mut Table, settings: &Settings<'_>) {
    let tunnel = &settings.options.inbound_tunnel_port;
    for Owner { is_uid, option } in settings.owners() {
        // Only the rules of uids spare DNS; those of gids do not.
        let port = if settings.dns.is_some() && is_uid {
            format!("-m multiport ! --dports 53,{tunnel}")
        } else {
            format!("! --dport {tunnel}")
        };
        let loopback = &settings.loopback;
        table.append(
            OUTPUT,
            format!("-o lo ! -d {loopback} -p tcp {port} -m owner {option} -j ISTIO_IN_REDIRECT"),
        );
        if !settings.includes_loopback {
            let what = if settings.dns.is_some() {
                "-p tcp ! --dport 53 "
            } else {
                ""
            };
            table.append(OUTPUT, format!("-o lo {what}-m owner ! {option} -j RETURN"));
        }
        table.append(OUTPUT, format!("-m owner {option} -j RETURN"));
    }
}

fn owner_groups(table: &mut Table, settings: &Settings<'_>) {
    match &settings.owner_groups {
        OwnerGroups::AllBut(exempt) => {
            for gid in exempt {
                table.append(OUTPUT, format!("-m owner --gid-owner {gid} -j RETURN"));
            }
        }
        OwnerGroups::These(gids) => {
            // In none of them; without any, that is everybody.
            let conditions = gids
                .iter()
                .map(|gid| format!("-m owner ! --gid-owner {gid}"));
            let in_none: Vec<String> = conditions.chain(["-j RETURN".to_owned()]).collect();
            table.append(OUTPUT, in_none.join(" "));
        }
    }
}

fn dns(table: &mut Table, settings: &Settings<'_>) {
    let conditions = match &settings.dns {
        None => return,
        Some(Servers::All) => vec![String::new()],
        Some(Servers::These(servers)) => servers.iter().map(|ip| format!(" -d {ip}")).collect(),
    };
    if conditions.is_empty() {
        return;
    }
    table.append(OUTPUT, format!("-j {DNS}"));
    for protocol in ["tcp", "udp"] {
        for condition in &conditions {
            table.append(
                DNS,
                format!(
                    "-p {protocol} --dport 53{condition} -j REDIRECT --to-ports {DNS_CAPTURE_PORT}"
                ),
            );
        }
    }
}
