//! What the kernel's connection tracking holds.

use std::fs;

use anyhow::Context as _;

use crate::Namespace;

/// Connections of a network namespace that are tracked.
///
/// # Errors
/// When the kernel has no connection tracking.
pub fn entries(netns: &Namespace) -> anyhow::Result<u32> {
    let file = "/proc/sys/net/netfilter/nf_conntrack_count";
    let text = netns.run(|| fs::read_to_string(file))?;
    let text = text.with_context(|| format!("cannot read {file}"))?;
    Ok(text.trim().parse()?)
}
