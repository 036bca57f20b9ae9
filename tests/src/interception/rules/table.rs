//! A table of iptables.

use std::{collections::BTreeMap, fmt};

/// Chains the kernel calls; all our rules begin in these two.
const BUILT_IN: [&str; 2] = ["PREROUTING", "OUTPUT"];

/// What the names of our own chains begin with.
const OWN: &str = "ISTIO_";

/// A table and its chains. A chain is there once it has a rule, or a rule leads to it.
pub struct Table {
    name: &'static str,
    chains: BTreeMap<String, Vec<String>>,
}

impl Table {
    /// A table that does nothing.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            chains: BTreeMap::new(),
        }
    }

    /// Appends a rule, in the words of `iptables`.
    pub fn append(&mut self, chain: &str, rule: impl Into<String>) {
        let rule = rule.into();
        if let Some((_, target)) = rule.rsplit_once("-j ")
            && target.starts_with(OWN)
        {
            self.chains.entry(target.to_owned()).or_default();
        }
        self.chains.entry(chain.to_owned()).or_default().push(rule);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.name)?;
        for chain in self.chains.keys() {
            let policy = if BUILT_IN.contains(&chain.as_str()) {
                "ACCEPT"
            } else {
                "-"
            };
            writeln!(f, ":{chain} {policy}")?;
        }
        for (chain, rules) in &self.chains {
            for rule in rules {
                writeln!(f, "-A {chain} {rule}")?;
            }
        }
        writeln!(f, "COMMIT")
    }
}
