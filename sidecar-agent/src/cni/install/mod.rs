//! The plugin on the node: its program in the runtime's directory, and its place in the list of
//! plugins that the runtime uses. Every file is replaced in one step.
//!
//! It stays when the agent ends, so that pods that start meanwhile wait (or not, as their settings
//! say) rather than pass unnoticed; only [`Install::uninstall`] takes it out.

pub mod conflist;
pub mod keep;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use self::conflist::Conflist;
use super::{TYPE, config::Settings};

/// What the name of a file ends with that keeps a single plugin's configuration, as it was.
const SAVED: &str = "sidecar-agent-saved";

/// Where the plugin is installed, and how.
#[derive(Clone, Debug)]
pub struct Install {
    /// The runtime's directory of configurations.
    pub conf_dir: PathBuf,
    /// The runtime's directory of plugins.
    pub bin_dir: PathBuf,
    /// What the plugin is told.
    pub settings: Settings,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Files that were written.
    pub written: Vec<PathBuf>,
    /// Files that were removed.
    pub removed: Vec<PathBuf>,
    /// The list of plugins that the runtime uses; `None`: there is none yet.
    pub list: Option<PathBuf>,
}

/// A file of the runtime's configuration.
struct Conf {
    path: PathBuf,
    text: String,
    list: Conflist,
}

impl Install {
    /// Makes it so that the plugin is there; what is as it is to be is not written.
    ///
    /// # Errors
    /// If something cannot be read or written: the runtime has what it had then.
    pub fn install(&self) -> Result<Done> {
        let mut done = Done::default();
        // First the program: a list that names it makes the runtime run it.
        let program = self.bin_dir.join(TYPE);
        if copy_self(&program)? {
            done.written.push(program);
        }
        let Some(mut conf) = self.in_use()? else {
            return Ok(done);
        };
        let changed = conf.list.insert(&self.ours()?);
        let changed =
            changed.map_err(|cause| anyhow::anyhow!("{}: {cause}", conf.path.display()))?;
        let path = as_list(&conf.path);
        if changed {
            if path != conf.path {
                let saved = saved(&conf.path);
                replace(&saved, conf.text.as_bytes(), &conf.path)?;
                done.written.push(saved);
            }
            replace(&path, conf.list.to_string().as_bytes(), &conf.path)?;
            done.written.push(path.clone());
            if path != conf.path {
                // The runtime takes the first by name, which is this one.
                remove(&conf.path)?;
                done.removed.push(conf.path);
            }
        }
        done.list = Some(path);
        Ok(done)
    }

    /// Takes the plugin out of every list, and its program away.
    ///
    /// # Errors
    /// If something cannot be read or written.
    pub fn uninstall(&self) -> Result<Done> {
        let mut done = Done::default();
        for mut conf in self.all()? {
            if !conf.list.remove().unwrap_or(false) {
                continue;
            }
            if let Some((path, saved)) = saved_text(&conf) {
                // It was a single plugin's, and still is the same.
                fs::rename(&saved, &path)
                    .with_context(|| format!("restoring {}", path.display()))?;
                remove(&conf.path)?;
                done.written.push(path);
                done.removed.push(conf.path);
            } else {
                replace(&conf.path, conf.list.to_string().as_bytes(), &conf.path)?;
                done.written.push(conf.path);
            }
        }
        let program = self.bin_dir.join(TYPE);
        if remove(&program)? {
            done.removed.push(program);
        }
        Ok(done)
    }

    fn ours(&self) -> Result<String> {
        #[derive(Serialize)]
        struct Entry<'a> {
            r#type: &'a str,
            #[serde(flatten)]
            settings: &'a Settings,
        }
        let entry = Entry {
            r#type: TYPE,
            settings: &self.settings,
        };
        serde_json::to_string(&entry).context("writing the plugin's configuration")
    }

    /// The configuration that runtimes use: the first by name that can be read.
    fn in_use(&self) -> Result<Option<Conf>> {
        Ok(self.all()?.into_iter().next())
    }

    /// All that can be read, in the order in which runtimes look at them.
    fn all(&self) -> Result<Vec<Conf>> {
        let context = || format!("listing {}", self.conf_dir.display());
        let entries = match fs::read_dir(&self.conf_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(context)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.with_context(context)?.path());
        }
        paths.sort();
        Ok(paths.into_iter().filter_map(read).collect())
    }
}

fn read(path: PathBuf) -> Option<Conf> {
    let extension = path.extension()?.to_str()?;
    if !matches!(extension, "conf" | "conflist" | "json") {
        return None;
    }
    let text = fs::read_to_string(&path).ok()?;
    let list = match extension {
        "conflist" => Conflist::read(&text),
        _ => Conflist::of_one(&text),
    };
    match list {
        Ok(list) => Some(Conf { path, text, list }),
        Err(cause) => {
            // Being written, mostly, or passed over by the runtime as well.
            tracing::debug!("{}: {cause}", path.display());
            None
        }
    }
}

/// The name of the list that a single plugin's configuration becomes.
fn as_list(path: &Path) -> PathBuf {
    path.with_extension("conflist")
}

fn saved(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(SAVED);
    name.into()
}

/// The file that a list without ours was made of, and where its text is kept.
fn saved_text(conf: &Conf) -> Option<(PathBuf, PathBuf)> {
    let plugins = conf.list.plugins().ok()?;
    let [only] = plugins.as_slice() else {
        return None;
    };
    ["conf", "json"].iter().find_map(|extension| {
        let path = conf.path.with_extension(extension);
        let saved = saved(&path);
        let text = fs::read_to_string(&saved).ok()?;
        (text.trim() == only.get()).then_some((path, saved))
    })
}

/// Replaces a file in one step, with the permissions of another.
fn replace(path: &Path, text: &[u8], like: &Path) -> Result<()> {
    let mode = fs::metadata(like).map_or(0o600, |found| found.mode() & 0o7777);
    write_atomically(path, mode, |file| file.write_all(text))
}

fn write_atomically(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<()> {
    let context = || format!("writing {}", path.display());
    let dir = path.parent().with_context(context)?;
    // A name that no runtime reads.
    let mut file = tempfile::Builder::new()
        .prefix(".sidecar-agent-")
        .suffix(".tmp")
        .tempfile_in(dir)
        .with_context(context)?;
    write(file.as_file_mut()).with_context(context)?;
    let permissions = Permissions::from_mode(mode);
    file.as_file()
        .set_permissions(permissions)
        .with_context(context)?;
    file.as_file().sync_all().with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

/// `false`: it was not there.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

/// Copies this program; `false`: it is there already.
fn copy_self(to: &Path) -> Result<bool> {
    let mut own = File::open("/proc/self/exe").context("opening this program")?;
    if let Ok(there) = File::open(to)
        && hash(&own)? == hash(&there)?
    {
        return Ok(false);
    }
    write_atomically(to, 0o755, |file| io::copy(&mut own, file).map(|_| ()))?;
    Ok(true)
}

fn hash(file: &File) -> Result<blake3::Hash> {
    let mut file = file.try_clone()?;
    let mut hasher = blake3::Hasher::new();
    io::Seek::rewind(&mut file)?;
    io::copy(&mut file, &mut hasher)?;
    io::Seek::rewind(&mut file)?;
    Ok(hasher.finalize())
}
