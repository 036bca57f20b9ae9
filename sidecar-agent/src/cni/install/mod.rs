//! The plugin on the node: its program in the runtime's directory, and its place in the list of
//! plugins that the runtime uses. Every file is replaced in one step.
//!
//! It stays when the agent ends, so that pods that start meanwhile wait (or not, as their settings
//! say) rather than pass unnoticed; only [`Install::uninstall`] takes it out.

pub mod conflist;
pub mod keep;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> (tempfile::TempDir, Install) {
        let dir = tempfile::tempdir().unwrap();
        let (conf_dir, bin_dir) = (dir.path().join("net.d"), dir.path().join("bin"));
        fs::create_dir(&bin_dir).unwrap();
        fs::create_dir(&conf_dir).unwrap();
        let settings = Settings::default();
        let install = Install {
            conf_dir,
            bin_dir,
            settings,
        };
        (dir, install)
    }

    fn files(dir: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"ptp"}]}"#;
    const ONE: &str = "{ \"cniVersion\": \"1.0.0\", \"name\": \"b\", \"type\": \"bridge\" }\n";

    #[test]
    fn it_is_put_into_the_list_in_use_and_taken_out_again() {
        let (_dir, install) = node();
        let conf = &install.conf_dir;
        // Passed over by runtimes: not theirs, broken, empty.
        for (name, text) in [
            ("00.txt", LIST),
            ("01.conflist", "{"),
            ("02.conflist", "{\"plugins\":[]}"),
        ] {
            fs::write(conf.join(name), text).unwrap();
        }
        fs::write(conf.join("10-a.conflist"), LIST).unwrap();
        fs::write(conf.join("20-b.conflist"), LIST).unwrap();
        let before = files(conf);
        let done = install.install().unwrap();
        let list = conf.join("10-a.conflist");
        assert_eq!(done.list.as_ref(), Some(&list));
        assert_eq!(done.written, [install.bin_dir.join(TYPE), list.clone()]);
        let text = fs::read_to_string(&list).unwrap();
        assert!(
            text.contains(TYPE) && text.contains("\"agentAbsent\":\"wait\""),
            "{text}"
        );
        let mode = fs::metadata(install.bin_dir.join(TYPE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o755);
        // Nothing to do.
        let again = install.install().unwrap();
        assert_eq!((again.written, again.removed), (vec![], vec![]));
        // Somebody comes before, or writes it anew.
        fs::write(conf.join("05-c.conflist"), LIST).unwrap();
        fs::write(&list, LIST).unwrap();
        assert_eq!(
            install.install().unwrap().list,
            Some(conf.join("05-c.conflist"))
        );
        fs::remove_file(conf.join("05-c.conflist")).unwrap();
        assert_eq!(install.install().unwrap().written, [list]);
        install.uninstall().unwrap();
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        for ((name, now), (_, was)) in files(conf).iter().zip(&before) {
            assert!(now == was || value(now) == value(was), "{name}: {now}");
        }
        assert_eq!(files(conf).len(), before.len());
        assert_eq!(files(&install.bin_dir), []);
    }

    #[test]
    fn a_single_plugin_becomes_a_list_and_comes_back_as_it_was() {
        let (_dir, install) = node();
        let conf = &install.conf_dir;
        fs::write(conf.join("10-b.conf"), ONE).unwrap();
        let done = install.install().unwrap();
        assert_eq!(done.list, Some(conf.join("10-b.conflist")));
        assert!(!conf.join("10-b.conf").exists());
        install.uninstall().unwrap();
        assert_eq!(files(conf), [("10-b.conf".to_owned(), ONE.to_owned())]);
        // Its owner writes it anew while it is a list: then that is it.
        install.install().unwrap();
        let other = ONE.replace("bridge", "macvlan");
        fs::write(conf.join("10-b.conf"), &other).unwrap();
        install.install().unwrap();
        install.uninstall().unwrap();
        assert_eq!(files(conf), [("10-b.conf".to_owned(), other)]);
    }

    #[test]
    fn a_node_without_configuration_is_waited_for() {
        let (_dir, install) = node();
        assert_eq!(install.install().unwrap().list, None);
        fs::remove_dir(&install.conf_dir).unwrap();
        assert_eq!(install.install().unwrap().list, None);
        install.uninstall().unwrap();
    }
}
