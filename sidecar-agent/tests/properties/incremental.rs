//! One compiler that is given one state after another says what a fresh one says of each.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::{prelude::*, sample::Index};

use crate::{
    config,
    generate::{self, World},
    subject::{self, Agent},
};

/// From one state to the next.
#[derive(Clone, Debug)]
enum Edit {
    Remove(Index),
    /// A document of the other world takes the place of one with its name, or is added.
    Take(Index),
    /// A document's content moves to another one of its kind.
    Swap(Index, Index),
    Resolve(&'static str, BTreeSet<IpAddr>),
    Nothing,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let index = any::<Index>;
    let edit = prop_oneof![
        2 => index().prop_map(Edit::Remove),
        4 => index().prop_map(Edit::Take),
        3 => (index(), index()).prop_map(|(a, b)| Edit::Swap(a, b)),
        2 => generate::resolved().prop_map(|(name, ips)| Edit::Resolve(name, ips)),
        1 => Just(Edit::Nothing),
    ];
    prop::collection::vec(edit, 1..3)
}

fn apply(world: &mut World, other: &World, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Remove(at) if world.documents.len() > 1 => {
                world.documents.remove(at.index(world.documents.len()));
            }
            Edit::Take(at) => {
                let new = at.get(&other.documents);
                let known = world
                    .documents
                    .iter_mut()
                    .find(|known| generate::id(known) == generate::id(new));
                match known {
                    Some(known) => known.clone_from(new),
                    None => world.documents.push(new.clone()),
                }
            }
            Edit::Swap(a, b) => {
                let (a, b) = (
                    a.index(world.documents.len()),
                    b.index(world.documents.len()),
                );
                if world.documents[a]["kind"] == world.documents[b]["kind"] {
                    let spec = world.documents[b]["spec"].clone();
                    world.documents[a]["spec"] = spec;
                }
            }
            Edit::Resolve(name, ips) => {
                world.dns.insert((*name).to_owned(), ips.clone());
            }
            Edit::Remove(_) | Edit::Nothing => {}
        }
    }
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn what_did_not_change_is_still_right(
        world in generate::world(),
        other in generate::world(),
        steps in prop::collection::vec(edits(), 1..6),
    ) {
        let mut agent = Agent::default();
        let mut world = world;
        agent.take(&world);
        for step in steps {
            apply(&mut world, &other, &step);
            let (snapshot, node) = agent.take(&world);
            let fresh = subject::plans(&snapshot);
            prop_assert_eq!(
                format!("{:#?}", node),
                format!("{:#?}", fresh),
                "after {:?}",
                step
            );
        }
    }
}
