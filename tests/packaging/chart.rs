//! helm accepts the chart, makes what is checked in, and refuses values that make no sense.

use anyhow::{Result, ensure};
use sidecar_tests::{
    command,
    manifests::{self, KUBERNETES, RENDERINGS, Rendering},
};

use crate::documents::{pod, rendered, require_helm};

#[test]
fn lint_finds_nothing_whatever_the_values() -> Result<()> {
    require_helm!();
    for Rendering {
        values, kubernetes, ..
    } in RENDERINGS
    {
        let mut helm = manifests::helm()?;
        helm.args(["lint", "--strict", "--quiet"])
            .args(["--kube-version", kubernetes])
            .arg(manifests::chart());
        if let Some(values) = values {
            helm.arg("--values").arg(manifests::values_file(values));
        }
        command::output(&mut helm)?;
    }
    Ok(())
}

#[test]
fn what_is_checked_in_is_what_the_chart_makes() -> Result<()> {
    require_helm!();
    for rendering in RENDERINGS {
        ensure!(
            rendering.is_current()?,
            "{} is not as the chart has it: run `cargo xtask manifests`",
            rendering.file
        );
    }
    Ok(())
}

#[test]
fn values_that_make_no_sense_are_refused() -> Result<()> {
    require_helm!();
    for (set, told) in [
        (&["agent.failurePolicy=maybe"][..], "failurePolicy"),
        (&["agent.drain=3"], "drain"),
        (&["metrics.port=0"], "port"),
        (&["metrics.address=localhost"], "address"),
        (&["image.digest=latest"], "digest"),
        (&["cni.binDir=opt/cni/bin"], "binDir"),
        (&["mode=remove"], "mode"),
        (&["updateStrategy.nodesAtATime=0"], "nodesAtATime"),
        (
            &["securityContext.extraCapabilities={CAP_BPF}"],
            "extraCapabilities",
        ),
        (&["staticConfig.shop=kind: Sidecar"], "staticConfig"),
        (&["podMonitor.enabled=true"], "metrics.address"),
        (
            &["kubernetes.enabled=false"],
            "kubernetes.enabled, or staticConfig",
        ),
    ] {
        let mut helm = manifests::template(KUBERNETES)?;
        for value in set {
            helm.args(["--set", value]);
        }
        let error = match command::output(&mut helm) {
            Ok(_) => anyhow::bail!("{set:?} is accepted"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains(told), "{set:?}: {error}");
    }
    Ok(())
}

/// Only what changes the pod starts the agents anew: readiness is asked of an agent by its name.
#[test]
fn the_name_of_an_agent_follows_from_what_it_is_started_with() -> Result<()> {
    require_helm!();
    let name = |set: &[&str]| -> Result<String> {
        let documents = rendered(set)?;
        let path = &pod(&documents)?["containers"][0]["readinessProbe"]["httpGet"]["path"];
        Ok(path.to_string())
    };
    let plain = name(&[])?;
    ensure!(plain.contains("instance="), "{plain}");
    for same in ["crds.install=true", "dashboard.enabled=true"] {
        ensure!(name(&[same])? == plain, "{same}");
    }
    for other in ["image.tag=next", "agent.log=debug", "metrics.port=1"] {
        ensure!(name(&[other])? != plain, "{other}");
    }
    Ok(())
}
