//! Conntrack zones that keep a DNS query apart from the one that the proxy makes of it.

use super::{
    DNS_CAPTURE_PORT,
    settings::{Owner, Servers, Settings},
    table::Table,
};

/// Between the proxy and the resolver.
const UPSTREAM: u32 = 1;

/// Between the application and the proxy.
const DOWNSTREAM: u32 = 2;

const OUTPUT: &str = "ISTIO_OUTPUT_DNS";
const INBOUND: &str = "ISTIO_INBOUND";

/// The table `raw`.
pub fn table(settings: &Settings<'_>) -> Table {
    let mut table = Table::new("raw");
    let Some(servers) = &settings.dns else {
        return table;
    };
    table.append("OUTPUT", format!("-j {OUTPUT}"));
    for Owner { option, .. } in settings.owners() {
        for (port, zone) in [
            ("--dport 53".to_owned(), UPSTREAM),
            (format!("--sport {DNS_CAPTURE_PORT}"), DOWNSTREAM),
        ] {
            table.append(
                OUTPUT,
                format!("-p udp {port} -m owner {option} -j CT --zone {zone}"),
            );
        }
    }
    let servers = match servers {
        Servers::All => vec![None],
        Servers::These(servers) => servers.iter().map(Some).collect(),
    };
    if !servers.is_empty() {
        table.append("PREROUTING", format!("-j {INBOUND}"));
    }
    for server in servers {
        let (to, from) = server.map_or_else(Default::default, |ip| {
            (format!(" -d {ip}"), format!(" -s {ip}"))
        });
        table.append(
            OUTPUT,
            format!("-p udp --dport 53{to} -j CT --zone {DOWNSTREAM}"),
        );
        table.append(
            INBOUND,
            format!("-p udp --sport 53{from} -j CT --zone {UPSTREAM}"),
        );
    }
    table
}
