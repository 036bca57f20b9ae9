//! The names that the systemd driver and the runtimes give.

use sidecar_agent::source::pods::find::Sought;
use sidecar_tests::{Cgroup, DEADLINE, Place, poll::poll_result};

use super::{ADDRESS, address, finder, found, leads_to, namespace, require_node, sought, uid};

/// A pod's cgroups as the systemd driver makes them, with real processes in them.
#[test]
fn the_systemd_driver() -> anyhow::Result<()> {
    require_node!();
    for runtime in ["cri-containerd", "crio", "docker"] {
        let uid = uid();
        let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
        let top = Cgroup::new("systemd")?;
        let kubepods = top.child("kubepods.slice")?;
        let burstable = kubepods.child("kubepods-burstable.slice")?;
        let pod = burstable.child(&slice)?;
        let container = |id: &str| pod.child(&format!("{runtime}-{id}.scope"));
        let (pause, proxy) = (container("0a")?, container("0b")?);
        // cri-o's monitor is beside the container, with the same id.
        let _monitor = pod.child("crio-conmon-0b.scope")?;
        let netns = namespace(ADDRESS)?;
        let start = |group: &Cgroup| {
            let place = Place::here().netns(&netns).cgroup(group);
            place.command("sleep").arg("infinity").spawn()
        };
        let mut processes = [start(&pause)?, start(&proxy)?];
        let sought = Sought {
            proxy: Some("0b".into()),
            ..sought(&uid)
        };
        let mut finder = finder()?;
        let at = poll_result(DEADLINE, "the pod", || found(&mut finder, &sought));
        for process in &mut processes {
            process.kill()?;
            process.wait()?;
        }
        let at = at?;
        assert_eq!(at.cgroup, pod.below_root()?, "{runtime}");
        assert_eq!(at.proxy_cgroup, Some(proxy.below_root()?), "{runtime}");
        anyhow::ensure!(leads_to(&at.netns, &netns)?);
        assert_eq!(at.addresses, [address()]);
    }
    Ok(())
}
