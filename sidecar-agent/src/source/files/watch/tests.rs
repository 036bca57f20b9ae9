//! What a watch has to see.

use std::{os::unix::fs::symlink, path::Path};

use super::*;

/// Far more than a change may take, so that a loaded machine fails no test.
const DEADLINE: Duration = Duration::from_secs(10);

async fn is_seen(watch: &mut Watch, what: &str) {
    tokio::time::timeout(DEADLINE, watch.changed())
        .await
        .unwrap_or_else(|_| {
            panic!("not seen: {what}");
        });
    // What belongs to the same change may come in a second burst.
    while tokio::time::timeout(4 * POLL, watch.changed())
        .await
        .is_ok()
    {}
}

/// What a watch has to survive, whichever way it sees changes.
async fn survives(start: fn(&[PathBuf]) -> Watch) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("specs");
    let file = root.join("a.yaml");
    let mut watch = start(std::slice::from_ref(&root));

    fs::create_dir(&root).unwrap();
    fs::write(&file, "1").unwrap();
    is_seen(&mut watch, "a directory that did not exist at first").await;
    fs::write(&file, "22").unwrap();
    is_seen(&mut watch, "a write").await;
    fs::write(root.join("b.tmp"), "333").unwrap();
    fs::rename(root.join("b.tmp"), &file).unwrap();
    is_seen(&mut watch, "a rename onto the file").await;
    fs::create_dir_all(root.join("sub/sub")).unwrap();
    fs::write(root.join("sub/sub/c.yaml"), "1").unwrap();
    is_seen(&mut watch, "a new directory").await;
    fs::write(root.join("sub/sub/c.yaml"), "22").unwrap();
    is_seen(&mut watch, "a write in a new directory").await;
    fs::remove_dir_all(&root).unwrap();
    is_seen(&mut watch, "removal of the directory").await;
    fs::create_dir(&root).unwrap();
    fs::write(&file, "1").unwrap();
    is_seen(&mut watch, "creation of the directory").await;
    fs::write(&file, "22").unwrap();
    is_seen(&mut watch, "a write in the recreated directory").await;
    fs::rename(&root, dir.path().join("old")).unwrap();
    is_seen(&mut watch, "the directory moved away").await;
    fs::rename(dir.path().join("old"), &root).unwrap();
    is_seen(&mut watch, "the directory moved back").await;

    survives_links(&mut watch, dir.path(), &root).await;
}

async fn survives_links(watch: &mut Watch, dir: &Path, root: &Path) {
    // As the kubelet updates a volume.
    let publish = |version: &str| {
        fs::create_dir(root.join(version)).unwrap();
        fs::write(root.join(version).join("v.yaml"), version).unwrap();
        symlink(version, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    publish("..1");
    symlink("..data/v.yaml", root.join("v.yaml")).unwrap();
    is_seen(watch, "a volume").await;
    publish("..2");
    is_seen(watch, "an update of the volume").await;

    fs::create_dir(dir.join("elsewhere")).unwrap();
    fs::write(dir.join("elsewhere/d.yaml"), "1").unwrap();
    symlink(dir.join("elsewhere/d.yaml"), root.join("d.yaml")).unwrap();
    is_seen(watch, "a link to a file").await;
    fs::write(dir.join("elsewhere/d.yaml"), "22").unwrap();
    is_seen(watch, "a write to the file a link leads to").await;

    // The directory itself becomes a link, and the link is swapped.
    fs::remove_dir_all(root).unwrap();
    for version in ["one", "two"] {
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("a.yaml"), version).unwrap();
        symlink(version, dir.join("link")).unwrap();
        fs::rename(dir.join("link"), root).unwrap();
        is_seen(watch, version).await;
    }
    fs::write(dir.join("two/a.yaml"), "2222").unwrap();
    is_seen(watch, "a write behind the swapped link").await;
}

#[tokio::test]
async fn inotify_survives() {
    survives(|paths| {
        let watch = watch(paths);
        assert!(watch.degraded().is_none(), "{:?}", watch.degraded());
        watch
    })
    .await;
}

#[tokio::test]
async fn polling_survives() {
    survives(|paths| {
        let watch = watch_by(paths, |_, _| Err(notify::Error::generic("not today")));
        let degraded = watch.degraded().expect("it polls");
        assert!(degraded.message.contains("not today"), "{degraded:?}");
        watch
    })
    .await;
}

#[tokio::test]
async fn reading_is_no_change_and_a_burst_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let mut watch = watch(std::slice::from_ref(&root));
    for i in 0..100 {
        fs::write(root.join(format!("{i}.yaml")), "1").unwrap();
    }
    is_seen(&mut watch, "a burst").await;
    assert_eq!(super::super::read(std::slice::from_ref(&root)).len(), 100);
    // A change outside, in a directory that is on the way.
    fs::write(root.with_extension("other"), "").unwrap();
    fs::remove_file(root.with_extension("other")).unwrap();
    let more = tokio::time::timeout(4 * POLL, watch.changed()).await;
    assert!(
        more.is_err(),
        "reading, or a change elsewhere, was reported"
    );
}

#[tokio::test]
async fn a_change_is_seen_soon() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    let mut watch = watch(&[dir.path().into()]);
    let mut best = DEADLINE;
    for round in 0..5 {
        let start = Instant::now();
        fs::write(&file, "x".repeat(round + 1)).unwrap();
        tokio::time::timeout(DEADLINE, watch.changed())
            .await
            .expect("the write is seen");
        best = best.min(start.elapsed());
        while tokio::time::timeout(4 * POLL, watch.changed())
            .await
            .is_ok()
        {}
    }
    // The best of several, because the machine may be busy.
    assert!(best < Duration::from_millis(100), "{best:?}");
}
