//! What programs say of the rules, read for those that redirect. Pure.

use serde_json::Value;

/// What counts as redirecting, by the names of the targets. To rewrite the destination is a host's
/// daily work (service addresses, published ports), and odd in a workload's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirecting {
    /// In the host's network namespace.
    OnHost,
    /// In the network namespace of a workload.
    InWorkload,
}

impl Redirecting {
    /// As iptables names it.
    fn counts(self, target: &str) -> bool {
        match target {
            "REDIRECT" | "TPROXY" => true,
            "DNAT" => self == Self::InWorkload,
            _ => false,
        }
    }
}

/// Rules that redirect, and Istio's chains, in what `iptables-save` prints.
pub fn in_save(text: &str, redirecting: Redirecting) -> Vec<String> {
    let is_redirecting = |line: &&str| {
        let target = line
            .split_whitespace()
            .skip_while(|word| *word != "-j" && *word != "-g")
            .nth(1);
        line.starts_with("-A")
            && target
                .is_some_and(|target| redirecting.counts(target) || target.starts_with("ISTIO_"))
    };
    text.lines()
        .filter(|line| is_redirecting(line) || line.starts_with(":ISTIO_"))
        .map(str::to_owned)
        .collect()
}

/// The same in what `nft -j list ruleset` prints; Istio's tables there begin with `istio-`.
pub fn in_json(text: &str, redirecting: Redirecting) -> Vec<String> {
    let Ok(ruleset) = serde_json::from_str::<Value>(text) else {
        return Vec::new();
    };
    let objects = ruleset["nftables"].as_array().into_iter().flatten();
    let rules = objects.filter_map(|object| object.get("rule"));
    rules
        .filter_map(|rule| redirecting_rule(rule, redirecting))
        .collect()
}

fn redirecting_rule(rule: &Value, redirecting: Redirecting) -> Option<String> {
    let name = |field: &str| rule[field].as_str().unwrap_or_default();
    let place = format!("{} {} {}", name("family"), name("table"), name("chain"));
    let is_istios = name("table").starts_with("istio-") || name("chain").starts_with("ISTIO_");
    let mut statements = rule["expr"].as_array().into_iter().flatten();
    let target = statements.find_map(|statement| {
        let named = ["redirect", "tproxy", "dnat"]
            .into_iter()
            .find(|target| statement.get(target).is_some());
        // What iptables-nft has made.
        let target = named.or(statement["xt"]["name"].as_str())?;
        redirecting
            .counts(&target.to_ascii_uppercase())
            .then_some(target)
    });
    match (target, is_istios) {
        (Some(target), _) => Some(format!("{place}: {target}")),
        (None, true) => Some(place),
        (None, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_iptables_that_redirect() {
        let save = "\
*nat
:PREROUTING ACCEPT [0:0]
:ISTIO_INBOUND - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -m comment --comment \"no -j REDIRECT\" -j RETURN
-A OUTPUT -p tcp -m comment --comment REDIRECT -j ACCEPT
-A ISTIO_INBOUND -p tcp -j REDIRECT --to-ports 15006
COMMIT
*mangle
-A PREROUTING -p tcp -j TPROXY --on-port 15006 --on-ip 0.0.0.0
-A PREROUTING -j DNAT --to-destination 10.0.0.1
COMMIT
";
        let found = in_save(save, Redirecting::OnHost);
        assert_eq!(
            found
                .iter()
                .map(|line| line.split(' ').next_back().unwrap())
                .collect::<Vec<_>>(),
            ["[0:0]", "ISTIO_INBOUND", "15006", "0.0.0.0"],
            "{found:?}"
        );
        let in_workload = in_save(save, Redirecting::InWorkload);
        assert_eq!(in_workload.len(), found.len() + 1, "{in_workload:?}");
    }

    #[test]
    fn rules_of_nftables_that_redirect() {
        let json = r#"{"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": "a"}},
            {"rule": {"family": "inet", "table": "a", "chain": "c", "expr": [
                {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}},
                {"redirect": {"port": 15001}}]}},
            {"rule": {"family": "ip", "table": "a", "chain": "c", "expr": [{"tproxy": {"port": 1}}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "c", "expr": [{"xt": {"type": "target", "name": "REDIRECT"}}]}},
            {"rule": {"family": "ip", "table": "istio-proxy-nat", "chain": "output", "expr": [{"jump": {"target": "x"}}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "c", "expr": [{"accept": null}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "c", "expr": [{"dnat": {"addr": "10.0.0.1"}}]}}
        ]}"#;
        assert_eq!(
            in_json(json, Redirecting::OnHost),
            [
                "inet a c: redirect",
                "ip a c: tproxy",
                "ip nat c: REDIRECT",
                "ip istio-proxy-nat output"
            ]
        );
        let in_workload = in_json(json, Redirecting::InWorkload);
        assert_eq!(in_workload.last().unwrap(), "ip nat c: dnat");
        assert!(in_json("no JSON", Redirecting::OnHost).is_empty());
    }
}
