//! What is told of the cluster at `/metrics` is what is documented, and it is true.

use anyhow::{Context as _, ensure};
use sidecar_tests::{
    kube::patiently,
    require_kube,
    scrape::{Page, documented},
};

use crate::world::World;

const OURS: &str = "sidecar_agent_cluster_";

#[test]
fn what_is_told_of_the_cluster_is_what_is_documented() -> anyhow::Result<()> {
    require_kube!();
    let world = World::captured()?;
    patiently("everything to be up to date", || {
        let stale = world.cluster()?["stale_seconds"].clone();
        ensure!(stale.is_null(), "{stale}");
        Ok(())
    })?;
    let page = Page::of(world.lab.agent()?)?;
    let (mut labels, mut families) = (page.names(), page.families.clone());
    labels.retain(|name, _| name.starts_with(OURS));
    families.retain(|name, _| name.starts_with(OURS));
    let documented: Vec<_> = documented()?
        .into_iter()
        .filter(|(name, _)| name.starts_with(OURS))
        .collect();
    ensure!(documented.len() > 3, "{documented:?}");
    let names = documented.iter();
    let names = names.map(|(name, (_, labels))| (name.clone(), labels.clone()));
    assert_eq!(labels, names.collect());
    // All of them are gauges, which are called as their families.
    let kinds = documented.into_iter();
    assert_eq!(
        families,
        kinds.map(|(name, (kind, _))| (name, kind)).collect()
    );

    let of = |name: &str, kind: Option<&str>| {
        let labels: Vec<_> = kind.map(|kind| ("kind", kind)).into_iter().collect();
        let found = page.sum(&format!("{OURS}{name}"), &labels);
        found.with_context(|| format!("no {name} of {kind:?}"))
    };
    assert_eq!(of("listed", None)?.to_string(), "1");
    assert_eq!(of("stale_seconds", None)?.to_string(), "0");
    for kind in ["Sidecar", "WorkloadEntry", "MeshConfig"] {
        assert_eq!(of("objects", Some(kind))?.to_string(), "1", "{kind}");
    }
    let kinds = world.cluster()?["kinds"].as_array().map_or(0, Vec::len);
    let up_to_date = of("up_to_date", None)?;
    assert_eq!(up_to_date.to_string(), kinds.to_string(), "not all are");
    Ok(())
}
