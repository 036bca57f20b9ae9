//! What `run` looks at before it starts.

use std::time::{Duration, Instant};

use sidecar_agent::doctor::preflight;
use sidecar_tests::{Bpffs, require_root};

#[test]
fn the_preflight_takes_no_time() -> anyhow::Result<()> {
    require_root!();
    let bpffs = Bpffs::temporary()?;
    // Other tests run beside it: the quickest counts.
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let begin = Instant::now();
        preflight(bpffs.path())?;
        quickest = quickest.min(begin.elapsed());
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
    Ok(())
}
