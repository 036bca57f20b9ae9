//! The iptables rules that stand for an [`OptionSet`], in the order in which istio-iptables has
//! them (`iptables-reference` names the order; the vectors of `tests/cases` are measured with it).
//!
//! The test's own work, independent of what the agent makes of the same options.

mod mangle;
mod nat;
mod raw;
mod settings;
mod table;

use sidecar_agent::conformance::iptables::cases::OptionSet;

pub use self::{mangle::TPROXY_MARK, settings::Family};
use self::{settings::Settings, table::Table};

/// Where the DNS proxy listens; no option of istio-iptables changes it.
pub const DNS_CAPTURE_PORT: u16 = 15053;

/// The rules of one family, as `iptables-restore` and `ip6tables-restore` want them. All tables are
/// in it, so that nothing of an earlier option set stays.
///
/// # Errors
/// When an option holds what istio-iptables refuses.
pub fn restore(options: &OptionSet, family: Family) -> anyhow::Result<String> {
    let settings = Settings::new(options, family)?;
    let tables = if family == Family::V6 && !options.enable_ipv6 {
        ["raw", "mangle", "nat"].map(Table::new)
    } else {
        [
            raw::table(&settings),
            mangle::table(&settings),
            nat::table(&settings),
        ]
    };
    Ok(tables.iter().map(ToString::to_string).collect())
}
