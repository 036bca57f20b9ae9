//! What stays in force.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{model::Object, source::files::Text};

const GOOD: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: NAME, namespace: ns}
spec:
  egress:
  - hosts: [HOST]
";

fn sidecar(name: &str, host: &str) -> String {
    GOOD.replace("NAME", name).replace("HOST", host)
}

fn file(name: &str, text: &str) -> File {
    (name.into(), Ok(text.into()))
}

fn hosts(update: &Update) -> Vec<(&str, &str)> {
    let of = |object| -> (&str, &str) {
        let object: &Arc<Object<crate::model::sidecar::Sidecar>> = object;
        let Object { meta, spec, .. } = &**object;
        (&meta.name, &spec.egress[0].hosts[0])
    };
    update.snapshot.sidecars.iter().map(of).collect()
}

fn codes(update: &Update) -> Vec<&str> {
    update
        .diagnostics
        .iter()
        .map(|diagnostic| diagnostic.code)
        .collect()
}

#[test]
fn what_is_below_a_directory_that_cannot_be_read_stays() {
    let mut store = Store::default();
    let all = || {
        vec![
            file("d/a.yaml", &sidecar("a", "x/*")),
            file("d/e/b.yaml", &sidecar("b", "x/*")),
            file("other/c.yaml", &sidecar("c", "x/*")),
        ]
    };
    assert!(!store.update(all()).unread);
    let failed = |dir: &str| (PathBuf::from(dir), Err(io::Error::other("no descriptors")));
    for _ in 0..2 {
        let update = store.update(vec![failed("d")]);
        assert_eq!(
            hosts(&update),
            [("a", "x/*"), ("b", "x/*")],
            "but not what is gone"
        );
        assert!(update.unread);
        let told = codes(&update);
        let count = |code| told.iter().filter(|told| **told == code).count();
        assert_eq!((count("SCA0003"), count("SCA0009")), (3, 2), "{told:?}");
    }
    let update = store.update(vec![all().remove(0), failed("d/e")]);
    assert_eq!(hosts(&update), [("a", "x/*"), ("b", "x/*")]);
    let update = store.update(all());
    assert_eq!(hosts(&update).len(), 3);
    assert!(!update.unread);
    assert_eq!(hosts(&store.update(Vec::new())), []);
}

#[test]
fn an_invalid_resource_keeps_its_last_good_version_and_nothing_else_is_touched() {
    let mut store = Store::default();
    let both = format!("{}---{}", sidecar("a", "x/*"), sidecar("b", "x/*"));
    assert_eq!(
        hosts(&store.update(vec![file("f", &both)])),
        [("a", "x/*"), ("b", "x/*")]
    );

    let broken = format!("{}---{}", sidecar("a", "nonsense"), sidecar("b", "y/*"));
    let update = store.update(vec![file("f", &broken)]);
    assert_eq!(hosts(&update), [("a", "x/*"), ("b", "y/*")]);
    assert_eq!(codes(&update), ["SCA0114", "SCA0009"]);
    // Unchanged and still broken: still in force, still said.
    let update = store.update(vec![file("f", &broken)]);
    assert_eq!(hosts(&update), [("a", "x/*"), ("b", "y/*")]);
    assert_eq!(codes(&update), ["SCA0114", "SCA0009"]);

    let update = store.update(vec![file("f", &sidecar("b", "y/*"))]);
    assert_eq!(
        hosts(&update),
        [("b", "y/*")],
        "removed from a good file: gone"
    );
    let update = store.update(vec![file("f", &broken)]);
    assert_eq!(hosts(&update), [("b", "y/*")], "nothing good of it is left");
    assert_eq!(codes(&update), ["SCA0114"]);
}

#[test]
fn a_broken_unreadable_or_emptied_file_keeps_what_it_had() {
    let mut store = Store::default();
    let good = || file("f", &sidecar("a", "x/*"));
    let syntax_error = || file("f", &sidecar("a", "[[["));
    let unreadable = || {
        (
            "f".into(),
            Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        )
    };
    for (broken, code) in [
        (syntax_error(), "SCA0001"),
        (unreadable(), "SCA0003"),
        (file("f", ""), "SCA0010"),
        (
            file("f", "kind: Sidecr\napiVersion: networking.istio.io/v1\n"),
            "SCA0005",
        ),
    ] {
        assert_eq!(hosts(&store.update(vec![good()])), [("a", "x/*")]);
        let update = store.update(vec![broken]);
        assert_eq!(hosts(&update), [("a", "x/*")], "{code}");
        assert_eq!(codes(&update), [code, "SCA0009"]);
    }
    // From one broken state into the next.
    store.update(vec![syntax_error()]);
    assert_eq!(hosts(&store.update(vec![unreadable()])), [("a", "x/*")]);
    assert_eq!(
        hosts(&store.update(vec![])),
        [],
        "a deleted file takes its resources with it"
    );
    assert_eq!(hosts(&store.update(vec![unreadable()])), []);
}

#[test]
fn a_file_that_is_meant_to_be_empty_is() {
    let mut store = Store::default();
    assert_eq!(codes(&store.update(vec![file("f", "")])), [""; 0]);
    store.update(vec![file("f", &sidecar("a", "x/*"))]);
    let update = store.update(vec![file("f", "# nothing here\n")]);
    assert_eq!((hosts(&update), codes(&update)), (vec![], vec![]));
}

#[test]
fn the_first_of_two_equal_resources_is_used_and_both_places_are_named() {
    let mut store = Store::default();
    let files = || {
        vec![
            file("a", &sidecar("s", "x/*")),
            file("b", &sidecar("s", "y/*")),
        ]
    };
    let update = store.update(files());
    assert_eq!(hosts(&update), [("s", "x/*")]);
    let [duplicate] = &update.diagnostics[..] else {
        panic!("{:?}", update.diagnostics)
    };
    assert_eq!(duplicate.code, "SCA0008");
    assert!(duplicate.message.contains("a:2"), "{}", duplicate.message);
    assert_eq!(&*duplicate.location.as_ref().unwrap().file, "b");
    // The second takes over when the first is gone.
    let update = store.update(files().split_off(1));
    assert_eq!(hosts(&update), [("s", "y/*")]);
    // A broken first does not shadow a good second.
    let update = store.update(vec![
        file("a", &sidecar("s", "nonsense")),
        files().remove(1),
    ]);
    assert_eq!(hosts(&update), [("s", "y/*")]);
    assert_eq!(codes(&update), ["SCA0114"]);
}

#[test]
fn a_resource_that_moves_and_breaks_at_once_stays() {
    let mut store = Store::default();
    store.update(vec![file("a", &sidecar("s", "x/*"))]);
    let update = store.update(vec![file("b", &sidecar("s", "nonsense"))]);
    assert_eq!(hosts(&update), [("s", "x/*")]);
    let update = store.update(vec![("b".into(), Err(io::Error::other("gone")))]);
    assert_eq!(hosts(&update), [("s", "x/*")]);
}

#[test]
fn the_oldest_comes_first() {
    let at = |name: &str, time: &str| {
        sidecar(name, "x/*").replace("ns}", &format!("ns, creationTimestamp: {time}}}"))
    };
    let mut store = Store::default();
    let update = store.update(vec![
        file("1", &at("b", "\"2024-01-02T00:00:00Z\"")),
        file("2", &at("c", "\"2024-01-01T00:00:00Z\"")),
        file("3", &at("a", "\"2024-01-02T00:00:00Z\"")),
    ]);
    let names: Vec<_> = hosts(&update).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["c", "a", "b"], "{:?}", update.diagnostics);
}

/// What may become of a file: `None`: it is removed.
fn any_file() -> impl Strategy<Value = Option<Result<String, ()>>> {
    let name = prop::sample::select(vec!["a", "b", "c", "[["]);
    let host = prop::sample::select(vec!["x/*", "y/*", "nonsense"]);
    let documents = vec((name, host), 0..3);
    let text = documents.prop_map(|of| {
        let of: Vec<_> = of.iter().map(|(name, host)| sidecar(name, host)).collect();
        of.join("---")
    });
    prop_oneof![
        6 => text.prop_map(|text| Some(Ok(text))),
        1 => Just(Some(Err(()))),
        1 => Just(None),
    ]
}

proptest! {
    /// Files that did not change are passed over, with the same outcome as if they were not.
    #[test]
    fn what_changed_is_all_that_has_to_be_decided(
        changes in vec(vec((0..4_usize, any_file()), 1..3), 1..8),
    ) {
        let [mut store, mut from_all] = [Store::default(), Store::default()];
        let mut present: BTreeMap<usize, Result<String, ()>> = BTreeMap::new();
        for change in changes {
            for (number, becomes) in change {
                match becomes {
                    Some(text) => present.insert(number, text),
                    None => present.remove(&number),
                };
            }
            let files = || {
                let files = present.iter().map(|(number, text)| -> File {
                    let text = text.clone().map(Text::from);
                    (format!("f{number}").into(), text.map_err(|()| io::Error::other("no")))
                });
                files.collect::<Vec<_>>()
            };
            from_all.plain = false;
            let [found, wanted] = [store.update(files()), from_all.update(files())];
            prop_assert_eq!(&found.snapshot, &wanted.snapshot);
            prop_assert_eq!(codes(&found), codes(&wanted));
            prop_assert_eq!(found.unread, wanted.unread);
            prop_assert_eq!(store.in_force.len(), from_all.in_force.len());
        }
    }
}
