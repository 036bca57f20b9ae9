//! What operators have said of single workloads: capture on, or off. Kept in a file of the state
//! directory, so that it outlives the agent.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::fs::fsync;
use serde::{Deserialize, Serialize};

use crate::{
    observe::status::{CaptureBy, CaptureStatus},
    resolve::ResolvedWorkload,
};

/// The file, in the state directory.
const FILE: &str = "capture.json";

/// What was said, by workload (`namespace/name`).
#[derive(Debug)]
pub struct Toggles {
    dir: PathBuf,
    said: Said,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    /// Whether capture is on.
    capture: BTreeMap<String, bool>,
}

/// Where it is kept.
pub fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

impl Toggles {
    /// Reads what was said before; nothing, if there is no file.
    ///
    /// # Errors
    /// If the directory cannot be made, or the file not be read: to start as if nothing had been
    /// said would capture what an operator has excluded.
    pub fn load(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("creating the state directory {}", dir.display()))?;
        let path = path(dir);
        let said = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Said::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
            Ok(text) => serde_json::from_slice(&text).with_context(|| {
                format!(
                    "reading {}; correct it, or remove it: then no workload is toggled",
                    path.display()
                )
            })?,
        };
        Ok(Self {
            dir: dir.to_owned(),
            said,
        })
    }

    /// What was said of this workload.
    #[must_use]
    pub fn get(&self, workload: &str) -> Option<bool> {
        self.said.capture.get(workload).copied()
    }

    /// Whether a workload is to be captured, and who says so: an operator, its annotation, or nobody.
    #[must_use]
    pub fn wanted(&self, workload: &ResolvedWorkload) -> CaptureStatus {
        wanted(self.get(&workload.to_string()), workload)
    }

    /// Remembers what is said of a workload; `None`: nothing any more.
    ///
    /// # Errors
    /// If it cannot be written; it is as it was then.
    pub fn set(&mut self, workload: &str, on: Option<bool>) -> Result<()> {
        let mut said = self.said.clone();
        match on {
            Some(on) => said.capture.insert(workload.to_owned(), on),
            None => said.capture.remove(workload),
        };
        self.write(&said)
            .with_context(|| format!("writing {}", path(&self.dir).display()))?;
        self.said = said;
        Ok(())
    }

    /// Another file, then renamed: whenever the machine stops, there is one of the two.
    fn write(&self, said: &Said) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&serde_json::to_vec_pretty(said)?)?;
        file.as_file().sync_all()?;
        file.persist(path(&self.dir))?;
        fsync(fs::File::open(&self.dir)?)?;
        Ok(())
    }
}

/// As [`Toggles::wanted`], if an operator has said this of the workload.
pub fn wanted(said: Option<bool>, workload: &ResolvedWorkload) -> CaptureStatus {
    let (wanted, by) = match (said, workload.capture) {
        (Some(on), _) => (on, CaptureBy::Operator),
        (None, Some(on)) => (on, CaptureBy::Annotation),
        (None, None) => (true, CaptureBy::Default),
    };
    CaptureStatus {
        wanted,
        by,
        actual: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let mut toggles = Toggles::load(&dir).unwrap();
        assert_eq!(toggles.get("prod/shop"), None);
        toggles.set("prod/shop", Some(false)).unwrap();
        toggles.set("prod/cart", Some(true)).unwrap();
        let mut again = Toggles::load(&dir).unwrap();
        assert_eq!(again.get("prod/shop"), Some(false));
        assert_eq!(again.get("prod/cart"), Some(true));
        again.set("prod/shop", None).unwrap();
        assert_eq!(Toggles::load(&dir).unwrap().get("prod/shop"), None);
        let left: Vec<_> = fs::read_dir(&dir).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path(dir.path()), "{\"capture\": [").unwrap();
        let error = format!("{:#}", Toggles::load(dir.path()).unwrap_err());
        assert!(error.contains("remove it"), "{error}");
    }
}
