//! Pods are found where they are: by real containers in the cgroups that kubelet and runtimes make.

mod names;
mod strangers;

use std::{fs, net::IpAddr, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, ensure};
use sidecar_agent::{
    dataplane::{cgroup, netns::Netns},
    source::pods::{
        entry::At,
        find::{Finder, Missing, Sandbox, Sought},
    },
};
use sidecar_tests::{Namespace, node::Node};

/// Needs root, runc and CNI plugins.
macro_rules! require_node {
    () => {
        sidecar_tests::require_root!();
        if let Some(missing) = sidecar_tests::node::missing() {
            sidecar_tests::skip!("{missing}");
        }
    };
}
pub(crate) use require_node;

/// A UID that nobody else has, in its canonical form.
pub fn uid() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "5c7e57ed-0000-4000-8000-{:06x}{number:06x}",
        std::process::id()
    )
}

pub const ADDRESS: &str = "10.78.0.2";

/// Nothing is looked for there in these tests: any directory that is there.
const NOWHERE: &str = "/proc";

fn address() -> IpAddr {
    [10, 78, 0, 2].into()
}

/// A namespace with an interface that has the pod's address.
fn namespace(address: &str) -> anyhow::Result<Namespace> {
    let netns = Namespace::new("pod")?;
    netns.ip("link add eth0 type veth peer name peer0")?;
    netns.add_address("eth0", format!("{address}/24").parse()?)?;
    netns.ip("link set eth0 up")?;
    Ok(netns)
}

fn finder() -> anyhow::Result<Finder> {
    Finder::new("/proc".into(), cgroup::root()?, NOWHERE.to_owned())
}

fn sought(uid: &str) -> Sought {
    Sought {
        uids: vec![uid.to_owned()],
        addresses: vec![address()],
        application: None,
        proxy: None,
    }
}

fn find(finder: &mut Finder, pod: &Sought) -> anyhow::Result<Result<At, Missing>> {
    let found = finder.find(std::slice::from_ref(pod))?;
    found.into_iter().next().context("nothing was said of it")
}

fn found(finder: &mut Finder, pod: &Sought) -> anyhow::Result<At> {
    Ok(find(finder, pod)??)
}

/// Whether this is the name of that namespace.
fn leads_to(name: &str, netns: &Namespace) -> anyhow::Result<bool> {
    Ok(Netns::open(Some(name))?.id.1 == netns.inode()?)
}

const SLEEP: [&str; 2] = ["sleep", "infinity"];

#[test]
fn a_pod_is_found_and_followed_when_its_containers_restart() -> anyhow::Result<()> {
    require_node!();
    let (node, uid) = (Node::new()?, uid());
    let netns = namespace(ADDRESS)?;
    let mut finder = finder()?;
    assert_eq!(find(&mut finder, &sought(&uid))?, Err(Missing::Cgroup));
    node.make_pod_cgroup(&uid)?;
    assert_eq!(find(&mut finder, &sought(&uid))?, Err(Missing::Netns));
    let _pause = node.run(&uid, &netns, "pause", &SLEEP)?;
    let at = found(&mut finder, &sought(&uid))?;
    assert_eq!(
        at.cgroup,
        node.pod_cgroup(&uid),
        "the pod's, not a container's"
    );
    ensure!(leads_to(&at.netns, &netns)?);
    assert_eq!(
        (at.root.as_str(), at.proxy_cgroup.as_deref()),
        (NOWHERE, None)
    );
    assert_eq!(at.addresses, [address()]);

    let before = at;
    for generation in ["1", "2"] {
        let (app, proxy) = (format!("app{generation}"), format!("proxy{generation}"));
        let app = node.run(&uid, &netns, &app, &SLEEP)?;
        let proxy = node.run(&uid, &netns, &proxy, &SLEEP)?;
        let pod = Sought {
            application: Some(app.id.clone()),
            proxy: Some(proxy.id.clone()),
            ..sought(&uid)
        };
        let at = found(&mut finder, &pod)?;
        assert_eq!((&at.cgroup, &at.netns), (&before.cgroup, &before.netns));
        let id = |path: &Path| -> anyhow::Result<_> {
            let found = fs::metadata(path).with_context(|| path.display().to_string())?;
            Ok((found.dev(), found.ino()))
        };
        ensure!(id(Path::new(&at.root))? == id(&app.root())?, "{}", at.root);
        let expected = format!("{}/{}", at.cgroup, proxy.id);
        assert_eq!(at.proxy_cgroup, Some(expected));
        // The next agent finds the same.
        assert_eq!(found(&mut self::finder()?, &pod)?, at);
    }
    Ok(())
}

#[test]
fn a_sandbox_that_is_made_anew_is_followed() -> anyhow::Result<()> {
    require_node!();
    let (node, uid) = (Node::new()?, uid());
    let mut finder = finder()?;
    let first = namespace(ADDRESS)?;
    let pause = node.run(&uid, &first, "pause1", &SLEEP)?;
    let at = found(&mut finder, &sought(&uid))?;
    drop(pause);
    let second = namespace("10.78.0.3")?;
    let _pause = node.run(&uid, &second, "pause2", &SLEEP)?;
    // The API server has not heard of it yet.
    assert_eq!(
        found(&mut finder, &sought(&uid))?,
        at,
        "nothing has changed that is known"
    );
    let pod = Sought {
        addresses: vec![[10, 78, 0, 3].into()],
        ..sought(&uid)
    };
    let now = found(&mut finder, &pod)?;
    ensure!(leads_to(&now.netns, &second)?);
    assert_eq!((&now.cgroup, &now.addresses), (&at.cgroup, &pod.addresses));
    ensure!(
        Netns::open(Some(&at.netns)).is_err(),
        "the one before is held still"
    );
    Ok(())
}

/// The CNI plugin tells of a sandbox before there is a process, and before the API server knows.
#[test]
fn what_the_cni_plugin_says_comes_first() -> anyhow::Result<()> {
    require_node!();
    let (node, uid) = (Node::new()?, uid());
    let mut finder = finder()?;
    let netns = namespace(ADDRESS)?;
    let hold =
        |netns: &Namespace| -> anyhow::Result<Netns> { Netns::hold(fs::File::open(netns.path())?) };
    let unknown = Sought {
        addresses: Vec::new(),
        ..sought(&uid)
    };
    node.make_pod_cgroup(&uid)?;
    assert_eq!(find(&mut finder, &unknown)?, Err(Missing::Address));
    finder.note(
        &uid,
        Sandbox {
            netns: hold(&netns)?,
            addresses: vec![address()],
        },
    );
    let at = found(&mut finder, &unknown)?;
    ensure!(leads_to(&at.netns, &netns)?);
    assert_eq!(
        (at.cgroup.as_str(), &at.addresses),
        (&*node.pod_cgroup(&uid), &vec![address()])
    );
    // Containers come, then the API server's word of the address.
    let pause = node.run(&uid, &netns, "pause", &SLEEP)?;
    assert_eq!(found(&mut finder, &unknown)?, at);
    assert_eq!(found(&mut finder, &sought(&uid))?, at);

    // A new sandbox, while the API server still tells the old address.
    let next = namespace("10.78.0.3")?;
    drop(pause);
    finder.note(
        &uid,
        Sandbox {
            netns: hold(&next)?,
            addresses: vec![[10, 78, 0, 3].into()],
        },
    );
    let now = found(&mut finder, &sought(&uid))?;
    ensure!(leads_to(&now.netns, &next)?, "{now:?}");
    // What ends is not what was noted last.
    finder.forget(&uid, hold(&netns)?.id);
    assert_eq!(found(&mut finder, &sought(&uid))?, now);
    finder.forget(&uid, hold(&next)?.id);
    assert_eq!(find(&mut finder, &sought(&uid))?, Err(Missing::Netns));
    Ok(())
}
