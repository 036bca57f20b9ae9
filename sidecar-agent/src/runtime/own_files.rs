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
    remove_dir(&nowhere(run_dir))?;
    for (file, dir) in [
        (wire::socket_path(run_dir), run_dir),
        (admin::socket_path(run_dir), run_dir),
        (toggles::path(state_dir), state_dir),
    ] {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", file.display()));
            }
            _ => remove_dir(dir)?,
        }
    }
    Ok(())
}

/// If nothing is in it, and it is no mount, as a container's is.
fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir(dir) {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::NotFound
                    | ErrorKind::DirectoryNotEmpty
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::ResourceBusy
            ) =>
        {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
