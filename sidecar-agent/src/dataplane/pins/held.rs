//! Maps that are held open, so that their pins can be made again.

use std::{
    fs::DirBuilder,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use aya::maps::{MapData, MapInfo};

use crate::dataplane::sys;

/// Maps by their pins. As long as this lives, so do they, whoever removes the pins.
#[derive(Default)]
pub struct HeldPins(Vec<(PathBuf, MapData)>);

impl HeldPins {
    /// Opens the maps that are pinned at these paths. The last one's pin is the last to be made
    /// again.
    ///
    /// # Errors
    /// If one is not there.
    pub fn hold(paths: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let open = |path: PathBuf| {
            let map = MapData::from_pin(&path)
                .with_context(|| format!("opening the map at {}", path.display()))?;
            Ok((path, map))
        };
        Ok(Self(paths.into_iter().map(open).collect::<Result<_>>()?))
    }

    /// Makes the pins again that are gone, with the directories above them. Returns which those
    /// are.
    ///
    /// # Errors
    /// If a pin cannot be made, or something else is in its place.
    pub fn restore(&self) -> Result<Vec<PathBuf>> {
        let mut restored = Vec::new();
        for (path, map) in &self.0 {
            let name = path.display();
            let id = map
                .info()
                .with_context(|| format!("asking for {name}"))?
                .id();
            match MapInfo::from_pin(path) {
                Ok(found) if found.id() == id => continue,
                _ if path.exists() => bail!(
                    "something else is where the map {name} was pinned; remove it, and the agent \
                     pins its own again"
                ),
                _ => {}
            }
            if let Some(dir) = path.parent() {
                DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(dir)
                    .with_context(|| format!("creating {}", dir.display()))?;
            }
            sys::pin(map.fd().as_fd(), path).with_context(|| format!("pinning {name}"))?;
            restored.push(path.clone());
        }
        Ok(restored)
    }
}
