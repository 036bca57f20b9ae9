//! What is not the pod's, although something says so.

use sidecar_agent::source::pods::find::{Missing, Sought};
use sidecar_tests::{Namespace, Place, node::Node};

use super::{ADDRESS, SLEEP, find, finder, found, leads_to, namespace, require_node, sought, uid};

/// Its oldest process is there, as one may that visits namespaces.
#[test]
fn a_namespace_without_the_pods_address_is_not_the_pods() -> anyhow::Result<()> {
    require_node!();
    let (node, uid) = (Node::new()?, uid());
    let other = namespace("10.78.0.9")?;
    let _visitor = node.run(&uid, &other, "visitor", &SLEEP)?;
    let mut finder = finder()?;
    assert_eq!(find(&mut finder, &sought(&uid))?, Err(Missing::Netns));
    let netns = namespace(ADDRESS)?;
    let _pause = node.run(&uid, &netns, "pause", &SLEEP)?;
    let at = found(&mut finder, &sought(&uid))?;
    anyhow::ensure!(leads_to(&at.netns, &netns)?, "{at:?}");
    Ok(())
}

/// The oldest process decides between two namespaces with the pod's address.
#[test]
fn the_oldest_process_decides() -> anyhow::Result<()> {
    require_node!();
    let (node, uid) = (Node::new()?, uid());
    let (first, second) = (namespace(ADDRESS)?, namespace(ADDRESS)?);
    let _first = node.run(&uid, &first, "first", &SLEEP)?;
    let _second = node.run(&uid, &second, "second", &SLEEP)?;
    let mut finder = finder()?;
    let at = found(&mut finder, &sought(&uid))?;
    anyhow::ensure!(leads_to(&at.netns, &first)?, "{at:?}");
    Ok(())
}

#[test]
fn two_pods_with_the_same_address_are_told_apart() -> anyhow::Result<()> {
    require_node!();
    let node = Node::new()?;
    let (one, other) = (uid(), uid());
    let (of_one, of_other) = (namespace(ADDRESS)?, namespace(ADDRESS)?);
    let _one = node.run(&one, &of_one, "one", &SLEEP)?;
    let _other = node.run(&other, &of_other, "other", &SLEEP)?;
    let mut finder = finder()?;
    let found = finder.find(&[sought(&one), sought(&other)])?;
    let [Ok(found_one), Ok(found_other)] = found.as_slice() else {
        anyhow::bail!("{found:?}");
    };
    anyhow::ensure!(leads_to(&found_one.netns, &of_one)?);
    anyhow::ensure!(leads_to(&found_other.netns, &of_other)?);
    Ok(())
}

/// Whatever address it has: it is the node's.
#[test]
fn the_hosts_namespace_is_no_pods() -> anyhow::Result<()> {
    require_node!();
    let (node, uid) = (Node::new()?, uid());
    let host = Namespace::of_process("host", std::process::id())?;
    let _container = node.run(&uid, &host, "pause", &SLEEP)?;
    let pod = Sought {
        addresses: vec![[127, 0, 0, 1].into()],
        ..sought(&uid)
    };
    assert_eq!(find(&mut finder()?, &pod)?, Err(Missing::Netns));
    Ok(())
}

/// As runtimes do that know only version 1, on a node that has both.
#[test]
fn a_pod_outside_of_its_cgroup_in_version_2_is_refused() -> anyhow::Result<()> {
    require_node!();
    let (node, uid) = (Node::new()?, uid());
    if !node.is_hybrid() {
        sidecar_tests::skip!("control groups of version 1");
    }
    node.make_pod_cgroup(&uid)?;
    let netns = namespace(ADDRESS)?;
    let mut process = Place::here()
        .netns(&netns)
        .command("sleep")
        .arg("infinity")
        .spawn()?;
    let moved = node.move_in_v1_only(process.id(), &uid, "pause");
    let result = moved.and_then(|()| find(&mut finder()?, &sought(&uid)));
    process.kill()?;
    process.wait()?;
    assert_eq!(result?, Err(Missing::NotInCgroup2));
    Ok(())
}
