//! Every scenario of the demo, row by row.

use sidecar_tests::{require_root, scenario::SCENARIOS};

fn run(name: &str) -> anyhow::Result<()> {
    let scenario = SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .ok_or_else(|| anyhow::anyhow!("there is no scenario `{name}`"))?;
    let rows = (scenario.run)()?;
    assert!(!rows.is_empty(), "{name} has no rows");
    let wrong: Vec<String> = rows
        .iter()
        .filter(|row| !row.ok)
        .map(|row| {
            let (did, path, reason) = (&row.did, &row.path, &row.reason);
            format!(
                "{}: {did}, {path}, {reason}; expected {}",
                row.asked, row.expected
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

macro_rules! scenarios {
    ($($test:ident $name:literal;)+) => {
        $(
            #[test]
            fn $test() -> anyhow::Result<()> {
                require_root!();
                run($name)
            }
        )+

        #[test]
        fn every_scenario_has_a_test() {
            let tested = [$($name),+];
            for scenario in SCENARIOS {
                assert!(tested.contains(&scenario.name), "{} has none", scenario.name);
            }
        }
    };
}

scenarios! {
    default_sidecar "default";
    ingress_to_a_unix_socket "unix-ingress";
    no_ip_tables "no-ip-tables";
    partial_ip_tables "partial-ip-tables";
    mixed_modes "mixed";
    egress_from_unix_sockets "unix-egress";
    ingress_on_a_unix_socket "unix-ingress-bind";
    external_proxy "proxied";
}
