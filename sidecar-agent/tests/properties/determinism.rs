//! Equal input, equal plans; and where the order of files decides nothing, it decides nothing.

use proptest::prelude::*;

use crate::{config, generate, subject};

proptest! {
    #![proptest_config(config(50))]

    #[test]
    fn compiling_twice_gives_the_same(world in generate::world()) {
        let snapshot = subject::snapshot(&world)?;
        let (first, second) = (subject::plans(&snapshot), subject::plans(&snapshot));
        prop_assert_eq!(first.workloads.len(), second.workloads.len());
        for (a, b) in first.workloads.iter().zip(&second.workloads) {
            prop_assert_eq!(format!("{:#?}", a), format!("{:#?}", b));
            prop_assert_eq!(a.digest, b.digest);
            prop_assert_eq!(a.plan.digest(), a.digest);
        }
        prop_assert_eq!(first.findings, second.findings);
        prop_assert_eq!(first.dns, second.dns);
    }

    #[test]
    fn equal_plans_have_equal_digests_and_others_others(one in generate::world(), other in generate::world()) {
        let mut plans = Vec::new();
        for world in [one, other] {
            plans.extend(subject::plans(&subject::snapshot(&world)?).workloads);
        }
        for a in &plans {
            for b in &plans {
                let equal = subject::content(&a.plan) == subject::content(&b.plan);
                prop_assert_eq!(equal, a.digest == b.digest, "{:#?}\n{:#?}", a, b);
            }
        }
    }

    #[test]
    fn the_order_of_files_decides_nothing(
        (world, order) in generate::world().prop_flat_map(|world| {
            let order: Vec<usize> = (0..world.documents.len()).collect();
            (Just(world), Just(order).prop_shuffle())
        }),
    ) {
        let straight = subject::snapshot(&world)?;
        let shuffled = subject::load(&world, &order).snapshot;
        prop_assert_eq!(&straight, &shuffled);
        let (a, b) = (subject::plans(&straight), subject::plans(&shuffled));
        prop_assert_eq!(a.workloads.len(), b.workloads.len());
        for (a, b) in a.workloads.iter().zip(&b.workloads) {
            prop_assert_eq!(a.digest, b.digest);
            prop_assert_eq!(&a.workload.name, &b.workload.name);
        }
        prop_assert_eq!(a.findings, b.findings);
    }
}
