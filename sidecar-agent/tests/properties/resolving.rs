//! Which Sidecar applies, and which services are seen.

use proptest::prelude::*;

use crate::{
    config,
    generate::{self, World},
    naive, subject,
};

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn the_sidecar_that_applies(world in generate::world()) {
        let snapshot = subject::snapshot(&world)?;
        for workload in &subject::plans(&snapshot).workloads {
            let known = naive::Workload::of(&snapshot, workload);
            let expected = known.sidecar.map(|sidecar| sidecar.reference("Sidecar"));
            prop_assert_eq!(&subject::selected(&snapshot, workload), &expected);
            // The plan is made of the one that is selected.
            let planned = workload.workload.sidecar.as_ref();
            prop_assert_eq!(planned.map(|sidecar| sidecar.reference("Sidecar")), expected);
            prop_assert_eq!(subject::egress(workload), naive::egress(known.sidecar));
        }
    }

    #[test]
    fn the_services_that_are_seen(world in generate::world()) {
        seen(&world)?;
    }
}

/// In every namespace and through every Sidecar's listeners.
fn seen(world: &World) -> Result<(), TestCaseError> {
    let snapshot = subject::snapshot(world)?;
    let services = naive::services(&snapshot);
    for namespace in ["a", "b", "root", "c"] {
        let sidecars = snapshot.sidecars.iter().map(|sidecar| Some(&**sidecar));
        for sidecar in sidecars.chain([None]) {
            let egress = naive::egress(sidecar);
            let expected: Vec<Vec<subject::Seen>> = egress
                .iter()
                .map(|listener| {
                    let exposed = naive::exposed(&snapshot, &services, namespace, listener);
                    exposed.iter().map(naive::Exposed::seen).collect()
                })
                .collect();
            prop_assert_eq!(
                subject::exposed(&snapshot, namespace, &egress),
                expected,
                "exposed to {} by {:#?}",
                namespace,
                egress
            );
            let expected: Vec<subject::Seen> =
                naive::scope(&snapshot, &services, namespace, &egress)
                    .iter()
                    .map(naive::Exposed::seen)
                    .collect();
            prop_assert_eq!(
                subject::scope(&snapshot, namespace, &egress),
                expected,
                "seen in {} by {:#?}",
                namespace,
                egress
            );
        }
    }
    Ok(())
}
