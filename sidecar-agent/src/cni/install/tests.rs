use super::*;

fn node() -> (tempfile::TempDir, Install) {
    let dir = tempfile::tempdir().unwrap();
    let (conf_dir, bin_dir) = (dir.path().join("net.d"), dir.path().join("bin"));
    fs::create_dir(&bin_dir).unwrap();
    fs::create_dir(&conf_dir).unwrap();
    let settings = Settings::default();
    let install = Install {
        conf_dir,
        bin_dir,
        settings,
    };
    (dir, install)
}

fn files(dir: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"ptp"}]}"#;
const ONE: &str = "{ \"cniVersion\": \"1.0.0\", \"name\": \"b\", \"type\": \"bridge\" }\n";

#[test]
fn it_is_put_into_the_list_in_use_and_taken_out_again() {
    let (_dir, install) = node();
    let conf = &install.conf_dir;
    // Passed over by runtimes: not theirs, broken, empty.
    for (name, text) in [
        ("00.txt", LIST),
        ("01.conflist", "{"),
        ("02.conflist", "{\"plugins\":[]}"),
    ] {
        fs::write(conf.join(name), text).unwrap();
    }
    fs::write(conf.join("10-a.conflist"), LIST).unwrap();
    fs::write(conf.join("20-b.conflist"), LIST).unwrap();
    let before = files(conf);
    let done = install.install().unwrap();
    let list = conf.join("10-a.conflist");
    assert_eq!(done.list.as_ref(), Some(&list));
    assert_eq!(done.written, [install.bin_dir.join(TYPE), list.clone()]);
    let text = fs::read_to_string(&list).unwrap();
    assert!(
        text.contains(TYPE) && text.contains("\"agentAbsent\":\"wait\""),
        "{text}"
    );
    let mode = fs::metadata(install.bin_dir.join(TYPE)).unwrap().mode();
    assert_eq!(mode & 0o777, 0o755);
    // Nothing to do.
    let again = install.install().unwrap();
    assert_eq!((again.written, again.removed), (vec![], vec![]));
    // Somebody comes before, or writes it anew.
    fs::write(conf.join("05-c.conflist"), LIST).unwrap();
    fs::write(&list, LIST).unwrap();
    assert_eq!(
        install.install().unwrap().list,
        Some(conf.join("05-c.conflist"))
    );
    fs::remove_file(conf.join("05-c.conflist")).unwrap();
    assert_eq!(install.install().unwrap().written, [list]);
    install.uninstall().unwrap();
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    for ((name, now), (_, was)) in files(conf).iter().zip(&before) {
        assert!(now == was || value(now) == value(was), "{name}: {now}");
    }
    assert_eq!(files(conf).len(), before.len());
    assert_eq!(files(&install.bin_dir), []);
}

#[test]
fn a_single_plugin_becomes_a_list_and_comes_back_as_it_was() {
    let (_dir, install) = node();
    let conf = &install.conf_dir;
    fs::write(conf.join("10-b.conf"), ONE).unwrap();
    let done = install.install().unwrap();
    assert_eq!(done.list, Some(conf.join("10-b.conflist")));
    assert!(!conf.join("10-b.conf").exists());
    install.uninstall().unwrap();
    assert_eq!(files(conf), [("10-b.conf".to_owned(), ONE.to_owned())]);
    // Its owner writes it anew while it is a list: then that is it.
    install.install().unwrap();
    let other = ONE.replace("bridge", "macvlan");
    fs::write(conf.join("10-b.conf"), &other).unwrap();
    install.install().unwrap();
    install.uninstall().unwrap();
    assert_eq!(files(conf), [("10-b.conf".to_owned(), other)]);
}

#[test]
fn a_node_without_configuration_is_waited_for() {
    let (_dir, install) = node();
    assert_eq!(install.install().unwrap().list, None);
    fs::remove_dir(&install.conf_dir).unwrap();
    assert_eq!(install.install().unwrap().list, None);
    install.uninstall().unwrap();
}
