//! Whatever is written: it is read without a panic, and what is wrong is found within the text.

use proptest::prelude::*;
use sidecar_agent::model::Compat;

use crate::{config, generate, subject};

const REAL: [&str; 5] = [
    include_str!("../../../tests/resources/default.yaml"),
    include_str!("../../../tests/resources/external-svc-mysql.yaml"),
    include_str!("../../../tests/resources/no-ip-tables.yaml"),
    include_str!("../../../tests/resources/partial-ip-tables.yaml"),
    include_str!("../../../tests/resources/unix-ingress.yaml"),
];

/// What breaks YAML, or means something in a Sidecar.
const SHREDS: [&str; 30] = [
    "\n",
    "  ",
    "\t",
    ":",
    ": ",
    "- ",
    "---\n",
    "...\n",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "#",
    "&a ",
    "*a",
    "!!str ",
    "|\n",
    "~",
    "0x10",
    "1e400",
    "99999999999999999999",
    "unix://",
    "*/*",
    "null",
    "\u{0}",
    "\u{feff}",
    "\u{85}é𝄞",
    "spec:\n",
];

#[derive(Clone, Debug)]
enum Mutation {
    Insert(prop::sample::Index, &'static str),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), prop::sample::select(&SHREDS[..]))
            .prop_map(|(at, shred)| Mutation::Insert(at, shred)),
        (index(), 1..20_usize).prop_map(|(at, length)| Mutation::Remove(at, length)),
        (index(), 1..60_usize).prop_map(|(at, length)| Mutation::Repeat(at, length)),
    ]
}

fn mutate(text: &str, mutations: &[Mutation]) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for mutation in mutations {
        let (Mutation::Insert(at, _) | Mutation::Remove(at, _) | Mutation::Repeat(at, _)) =
            mutation;
        let at = at.index(text.len() + 1);
        let until = |length: usize| (at + length).min(text.len());
        match mutation {
            Mutation::Insert(_, shred) => {
                text.splice(at..at, shred.chars());
            }
            Mutation::Remove(_, length) => {
                text.drain(at..until(*length));
            }
            Mutation::Repeat(_, length) => {
                let part = text[at..until(*length)].to_vec();
                text.splice(at..at, part);
            }
        }
    }
    text.into_iter().collect()
}

/// Reads the text, and holds every diagnostic's place against it.
fn read(text: &str) -> Result<(), TestCaseError> {
    for compat in [Compat::Current, Compat::Istio1_0] {
        for diagnostic in subject::parse(text, compat) {
            let Some(location) = &diagnostic.location else {
                continue;
            };
            let span = location.span.clone();
            prop_assert!(
                span.start <= span.end && text.get(span.clone()).is_some(),
                "{span:?} is not in the text: {diagnostic}"
            );
            let before = &text[..span.start];
            let line = before.matches('\n').count() + 1;
            prop_assert_eq!(location.line as usize, line, "{}", diagnostic);
            let column = before.chars().rev().take_while(|c| *c != '\n');
            // A byte order mark takes no column.
            let column = column.filter(|c| *c != '\u{feff}').count() + 1;
            prop_assert_eq!(location.column as usize, column, "{}", diagnostic);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn any_text_is_read(text in "\\PC*") {
        read(&text)?;
    }

    #[test]
    fn shreds_of_yaml_are_read(shreds in prop::collection::vec(prop::sample::select(&SHREDS[..]), 0..40)) {
        read(&shreds.concat())?;
    }

    #[test]
    fn mutated_examples_are_read(
        example in prop::sample::select(&REAL[..]),
        mutations in prop::collection::vec(mutation(), 1..8),
    ) {
        read(&mutate(example, &mutations))?;
    }
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn mutated_worlds_are_read(
        world in generate::world(),
        mutations in prop::collection::vec(mutation(), 1..8),
    ) {
        let documents: Vec<String> = world.documents.iter().map(ToString::to_string).collect();
        read(&mutate(&documents.join("\n---\n"), &mutations))?;
    }
}
