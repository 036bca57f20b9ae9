//! Kernel modules.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rustix::{io::Errno, system::finit_module};
use sidecar_vm_init::MODULES;

/// Loads the modules that are there for the running kernel, and tells what did not work.
///
/// # Errors
/// When their directory is there and cannot be read.
pub fn load() -> anyhow::Result<Vec<String>> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let dir = Path::new(MODULES).join(&release);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(vec![format!(
                "there are no modules for {release}: what is not built into it is missing"
            )]);
        }
        entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<PathBuf>>>()
        .with_context(|| format!("cannot list {}", dir.display()))?;
    paths.sort();
    let troubles = paths.iter().filter_map(|path| {
        let name = path.file_name().unwrap_or_default().display();
        let error = load_one(path).err()?;
        Some(format!("module {name}: {error:#}"))
    });
    Ok(troubles.collect())
}

fn load_one(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    match finit_module(&file, c"", 0) {
        // Built in, or another one has brought it along.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).context("the kernel does not load it"),
    }
}
