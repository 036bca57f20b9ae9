//! The clock jumps, as it does when a machine wakes, or learns the time late.

use std::{env, time::Instant};

use anyhow::{Context as _, ensure};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use sidecar_tests::{
    Cgroup,
    cleanup::{self, Cleanup},
    lab::WORKLOAD,
    require_root, skip,
};

use super::{REFUSED, SECRET, entries, errno, in_force, remove, wait_captured};
use crate::fixture::registry_only;

const YEAR: i64 = 365 * 24 * 60 * 60;

/// Sets the clock so many seconds from what it is.
fn jump(seconds: i64) -> anyhow::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let to = Timespec {
        tv_sec: now.tv_sec + seconds,
        ..now
    };
    clock_settime(ClockId::Realtime, to).context("cannot set the clock")
}

/// The clock goes back to what it would be.
fn restored() -> Cleanup {
    let (clock, since) = (clock_gettime(ClockId::Realtime), Instant::now());
    cleanup::on_drop(move || {
        if let Ok(passed) = Timespec::try_from(since.elapsed()) {
            let _ = clock_settime(ClockId::Realtime, clock + passed);
        }
    })
}

#[test]
fn a_clock_that_jumps_changes_nothing() -> anyhow::Result<()> {
    require_root!();
    // As `cargo xtask vm` tells its machines' tests.
    if env::var_os("SIDECAR_TEST_OWN_MACHINE").is_none() {
        skip!("the machine's clock is not this test's to set; `cargo xtask vm` has machines");
    }
    let mut lab = registry_only()?;
    lab.start_agent()?;
    lab.wait_captured()?;
    let cgroup = Cgroup::new("crowd")?;
    let another = entries([(0, &cgroup, &lab.workload().netns)].into_iter())?;
    let _restored = restored();
    for seconds in [10 * YEAR, -20 * YEAR, 10 * YEAR - 60] {
        jump(seconds)?;
        in_force(&lab)?;
        // Everything that waits for something still comes: toggles, files, the watch on both.
        let toggled = |to: &str| {
            let said = lab.agent()?.cli(&["capture", to, WORKLOAD])?;
            let error = String::from_utf8_lossy(&said.stderr).into_owned();
            ensure!(said.status.success(), "{seconds} s: capture {to}: {error}");
            errno(lab.inside(), SECRET)
        };
        let off = toggled("off")?;
        ensure!(off.is_none(), "{seconds} s: off, and {off:?}");
        let on = toggled("on")?;
        ensure!(on == REFUSED, "{seconds} s: on, and {on:?}");
        let started = Instant::now();
        lab.write_only("crowd.yaml", &another)?;
        wait_captured(&lab, 2)?;
        remove(&lab, "crowd.yaml")?;
        wait_captured(&lab, 1)?;
        println!("{seconds} s: came and went in {:?}", started.elapsed());
        in_force(&lab)?;
    }
    Ok(())
}
