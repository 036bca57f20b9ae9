//! Kernels on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use ebpf_build::tools_dir;

use super::{
    archive::{Archive, Offer},
    modules,
    versions::{Version, Wanted, choose},
};

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it is called in results.
    pub label: String,
    /// Its image.
    pub image: PathBuf,
    /// The directory of its modules as [`modules::copy`] makes it, and the kernel's release.
    pub modules: Option<(PathBuf, String)>,
}

/// Kernels that were fetched, each in a directory by its version. They are kept among the
/// project's own tools.
pub struct Store {
    dir: PathBuf,
    archive: anyhow::Result<(Archive, Vec<Offer>)>,
}

impl Store {
    /// Opens it. Where the archive cannot be reached there is what was fetched before.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn open() -> anyhow::Result<Self> {
        let dir = tools_dir()?.join("kernels");
        let apt = dir.join("apt");
        fs::create_dir_all(&apt).with_context(|| format!("cannot make {}", apt.display()))?;
        let archive = Archive::open(&apt).and_then(|archive| {
            let offers = archive.offers()?;
            Ok((archive, offers))
        });
        Ok(Self { dir, archive })
    }

    /// The kernels that were fetched.
    pub fn cached(&self) -> Vec<Version> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut versions: Vec<Version> = entries
            .filter(|entry| is_complete(&entry.path()))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        versions.sort();
        versions
    }

    /// The kernels that can be fetched.
    ///
    /// # Errors
    /// When the archive cannot be reached.
    pub fn offers(&self) -> anyhow::Result<&[Offer]> {
        match &self.archive {
            Ok((_, offers)) => Ok(offers),
            Err(error) => bail!("no kernels can be fetched: {error:#}"),
        }
    }

    /// The kernel that is wanted; fetches it if it must.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn get(&self, wanted: &Wanted) -> anyhow::Result<Kernel> {
        let cached = self.cached();
        let version = match &self.archive {
            Ok((archive, offers)) => {
                let offer = choose(wanted, offers, |offer| &offer.version)
                    .with_context(|| format!("no package has a kernel {wanted}"))?;
                if !cached.contains(&offer.version) {
                    self.fetch(archive, offer)
                        .with_context(|| format!("cannot fetch kernel {}", offer.version))?;
                }
                &offer.version
            }
            Err(error) => choose(wanted, &cached, |version| version).with_context(|| {
                format!("no kernel {wanted} was fetched, and none can be: {error:#}")
            })?,
        };
        let dir = self.dir.join(version.to_string());
        let release = fs::read_to_string(dir.join("release"))
            .with_context(|| format!("{} has no release", dir.display()))?;
        Ok(Kernel {
            label: version.to_string(),
            image: dir.join("vmlinuz"),
            modules: Some((dir.join("modules"), release)),
        })
    }

    fn fetch(&self, archive: &Archive, offer: &Offer) -> anyhow::Result<()> {
        let scratch = tempfile::tempdir_in(&self.dir).context("cannot make a directory")?;
        println!("fetching kernel {}", offer.version);
        archive.unpack(offer, scratch.path())?;
        let release = &offer.release;
        let places = ["usr/lib/modules", "lib/modules"].map(|at| scratch.path().join(at));
        let modules_dir = places
            .iter()
            .map(|place| place.join(release))
            .find(|dir| dir.exists())
            .context("its packages have no modules")?;
        let images = [
            scratch.path().join(format!("boot/vmlinuz-{release}")),
            modules_dir.join("vmlinuz"),
        ];
        let image = images
            .iter()
            .find(|image| image.exists())
            .context("its packages have no image")?;

        let made = tempfile::tempdir_in(&self.dir).context("cannot make a directory")?;
        modules::copy(&modules_dir, &made.path().join("modules"))?;
        let copied = fs::copy(image, made.path().join("vmlinuz")).map(|_| ());
        copied
            .and_then(|()| fs::write(made.path().join("release"), release))
            .and_then(|()| fs::write(made.path().join("wanted"), wanted_modules()))
            .with_context(|| format!("cannot keep {}", image.display()))?;
        let at = self.dir.join(offer.version.to_string());
        let _ = fs::remove_dir_all(&at);
        fs::rename(made.keep(), &at).with_context(|| format!("cannot make {}", at.display()))
    }
}

/// Which modules were copied: where others are wanted now, the kernel must be fetched again.
fn wanted_modules() -> String {
    modules::WANTED.join("\n")
}

fn is_complete(dir: &Path) -> bool {
    fs::read_to_string(dir.join("wanted")).is_ok_and(|wanted| wanted == wanted_modules())
}

/// A kernel of the user's. `modules` is its directory of modules, if that is not where a system
/// has it that the kernel is installed on. They are copied into `scratch`.
///
/// # Errors
/// When there is no such image, or its modules cannot be copied.
pub fn image(path: &Path, modules: Option<&Path>, scratch: &Path) -> anyhow::Result<Kernel> {
    if !path.is_file() {
        bail!("there is no kernel image {}", path.display());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let release = name.strip_prefix("vmlinuz-");
    let installed = release.map(|release| Path::new("/lib/modules").join(release));
    let beside = path.parent().map(Path::to_owned);
    let dir = modules.map(Path::to_owned).or_else(|| {
        let mut places = [installed, beside].into_iter().flatten();
        places.find(|dir| dir.join("modules.order").exists())
    });
    let modules = match dir {
        None => None,
        Some(dir) => {
            let dir = dir
                .canonicalize()
                .with_context(|| format!("there is no directory {}", dir.display()))?;
            let release = dir.file_name().unwrap_or_default().to_string_lossy();
            let out = scratch.join(release.as_ref());
            let _ = fs::remove_dir_all(&out);
            modules::copy(&dir, &out)?;
            Some((out, release.into_owned()))
        }
    };
    Ok(Kernel {
        label: release.unwrap_or(&name).to_owned(),
        image: path.to_owned(),
        modules,
    })
}
