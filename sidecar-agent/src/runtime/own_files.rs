//! The files of an agent.

use std::{io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};

use super::toggles;
use crate::{cni::wire, observe::admin, source::pods::find::nowhere};

/// Removes the files of an agent that does not run: its socket and what operators have said. What
/// else is in those directories stays, and they do then.
///
/// # Errors
/// If one cannot be removed.
pub fn remove(run_dir: &Path, state_dir: &Path) -> Result<()> {
    let nowhere = nowhere(run_dir);
    if let Err(error) = std::fs::remove_dir(&nowhere)
        && !matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty
        )
    {
        return Err(error).with_context(|| format!("removing {}", nowhere.display()));
    }
    for (file, dir) in [
        (wire::socket_path(run_dir), run_dir),
        (admin::socket_path(run_dir), run_dir),
        (toggles::path(state_dir), state_dir),
    ] {
        for (path, result) in [
            (&*file, std::fs::remove_file(&file)),
            (dir, std::fs::remove_dir(dir)),
        ] {
            match result {
                Err(error)
                    if !matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(error).with_context(|| format!("removing {}", path.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
