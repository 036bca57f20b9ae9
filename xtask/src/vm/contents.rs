//! What is in the file system of the machines.

use std::{fs, path::Path};

use anyhow::Context as _;
use sidecar_vm_init::{JOB, Job, MODULES};

use super::{build, initramfs::Initramfs, store::Kernel, userland};
use crate::{
    artifacts::{self, Built},
    cargo,
};

/// With a job and nothing to do it with.
pub fn only_init(job: &Job) -> anyhow::Result<Initramfs> {
    let mut initramfs = Initramfs::new();
    initramfs.add_as(&build::init()?, Path::new("/init"))?;
    let text = serde_json::to_string(job).context("cannot make JSON of the job")?;
    initramfs.add_text(Path::new(JOB), text);
    Ok(initramfs)
}

/// With the tests and what they need, and the modules of all kernels: all machines have the same.
pub fn whole(
    job: &Job,
    kernels: &[Kernel],
    built: &Built,
    dir: &Path,
) -> anyhow::Result<Initramfs> {
    let mut initramfs = only_init(job)?;
    userland::add(&mut initramfs)?;
    let stripped = dir.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("cannot make {}", stripped.display()))?;
    for program in built.paths() {
        initramfs.add_as(&artifacts::stripped(program, &stripped)?, program)?;
        userland::add_libraries_of(&mut initramfs, program)?;
    }
    let workspace = cargo::workspace();
    for data in ["docs", "deploy", "tests/cases", "tests/resources"] {
        initramfs.add_tree(&workspace.join(data), |_| true)?;
    }
    for kernel in kernels {
        let Some((modules, release)) = &kernel.modules else {
            continue;
        };
        let to = Path::new(MODULES).join(release);
        for module in fs::read_dir(modules)
            .with_context(|| format!("cannot list {}", modules.display()))?
            .flatten()
        {
            initramfs.add_as(&module.path(), &to.join(module.file_name()))?;
        }
    }
    Ok(initramfs)
}
