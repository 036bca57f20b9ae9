//! `cargo xtask vm`: the tests that need a kernel, on kernels that this machine does not run.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use sidecar_vm_init::{Cgroups, Job};

use crate::{cargo, setup, test::Counts};

pub mod archive;
mod args;
mod build;
mod contents;
mod initramfs;
mod modules;
pub mod qemu;
mod report;
mod results;
mod selection;
mod store;
mod suites;
mod userland;
mod versions;

pub use args::Args;
use qemu::{Accel, Machine};
use report::All;
use results::Results;
use selection::Extent;
use store::{Kernel, Store};
use versions::Wanted;

/// Runs the tests in machines, and prints the sum of their counts as the last line.
///
/// Returns whether at least one test ran and none failed.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    if args.list {
        list()?;
        return Ok(true);
    }
    let counts = counted(args, &prepare(args)?)?;
    println!("\n{}", counts.line());
    Ok(counts.failed == 0 && counts.passed > 0)
}

fn list() -> anyhow::Result<()> {
    let store = Store::open()?;
    let cached = store.cached();
    let mut versions = cached.clone();
    match store.offers() {
        Ok(offers) => versions.extend(offers.iter().map(|offer| offer.version.clone())),
        Err(error) => println!("{error:#}"),
    }
    versions.sort();
    versions.dedup();
    for of_series in versions.chunk_by(|a, b| a.series() == b.series()) {
        let texts: Vec<String> = of_series
            .iter()
            .map(|version| {
                let mark = if cached.contains(version) {
                    " (fetched)"
                } else {
                    ""
                };
                format!("{version}{mark}")
            })
            .collect();
        println!("{:<6} {}", of_series[0].series(), texts.join(", "));
    }
    for suite in suites::SUITES {
        for (test, why) in suite.left_out {
            println!("left out: {}::{test}: {why}", suite.name);
        }
    }
    Ok(())
}

/// Everything that machines are made of, apart from the tests.
pub struct Ready {
    kernels: Vec<Kernel>,
    dir: PathBuf,
}

/// Gets kernels and what runs them.
///
/// # Errors
/// When something cannot be had here: it is said what.
pub fn prepare(args: &Args) -> anyhow::Result<Ready> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "only machines with x86-64 can be run so far, on one of those"
    );
    setup::ensure_vm()?;
    let dir = cargo::target_dir().join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let kernels = kernels(args, &dir)?;
    Ok(Ready { kernels, dir })
}

/// Runs the tests in machines and tells of them; returns the sums.
///
/// # Errors
/// When something does not compile, or a machine cannot be started.
pub fn counted(args: &Args, ready: &Ready) -> anyhow::Result<Counts> {
    let Ready { kernels, dir } = ready;
    let suites = selection::wanted(&args.tests);
    ensure!(!suites.is_empty(), "no suite is named like that");
    setup::ensure()?;
    let built = build::tests(&selection::targets(&suites))?;
    let suites = selection::with_tests(suites, &built)?;
    if suites.is_empty() {
        println!("no test has such a name");
        return Ok(Counts::default());
    }
    let mut job = selection::job(&suites, &built, args.threads, extent(args))?;
    job.env.extend(args.env.iter().cloned());
    let image = dir.join("initramfs");
    contents::whole(&job, kernels, &built, dir)?.write(&image)?;
    let probe = dir.join("initramfs-probe");
    contents::only_init(&Job::default())?.write(&probe)?;
    let accel = qemu::accel(&kernels[0].image, &probe, dir)?;
    let all = run_all(args, kernels, &image, accel, dir)?;
    tell(&all, dir)?;
    Ok(report::counts(&all))
}

/// Who says which tests wants all of those.
fn extent(args: &Args) -> Extent {
    if args.all || !args.tests.is_empty() {
        Extent::All
    } else if args.few {
        Extent::Few
    } else {
        Extent::Usual
    }
}

fn kernels(args: &Args, dir: &Path) -> anyhow::Result<Vec<Kernel>> {
    let mut store = None;
    let mut kernels: Vec<Kernel> = Vec::new();
    for wanted in &args.kernels {
        let kernel = if let Wanted::Image(path) = wanted {
            store::image(path, args.modules.as_deref(), dir)?
        } else {
            // Opened once, and only if it is needed: it may have to fetch package lists.
            let store = match &store {
                Some(store) => store,
                None => store.insert(Store::open()?),
            };
            store.get(wanted)?
        };
        if !kernels.iter().any(|known| known.image == kernel.image) {
            kernels.push(kernel);
        }
    }
    if kernels.is_empty() {
        bail!("no kernel is asked for");
    }
    Ok(kernels)
}

fn run_all(
    args: &Args,
    kernels: &[Kernel],
    initramfs: &Path,
    accel: Accel,
    dir: &Path,
) -> anyhow::Result<All> {
    let machines = kernels.iter().flat_map(|kernel| {
        args.cgroups
            .iter()
            .map(move |&layout| (kernel, Cgroups::from(layout)))
    });
    let queue = Mutex::new(machines.enumerate());
    let done = Mutex::new(All::new());
    let next = || queue.lock().ok()?.next();
    let work = || -> anyhow::Result<()> {
        while let Some((number, (kernel, cgroups))) = next() {
            let name = format!("{} {cgroups}", kernel.label);
            let logs = dir.join(format!("{}-{cgroups}", kernel.label));
            fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
            let machine = Machine {
                image: &kernel.image,
                initramfs,
                cgroups,
                cpus: args.cpus,
                accel,
                logs: &logs,
            };
            let run = machine.run(Duration::from_secs(args.timeout))?;
            let results = Results::of(&run);
            let whole = report::failures(&results, true);
            fs::write(logs.join("failures.log"), whole)
                .with_context(|| format!("cannot write to {}", logs.display()))?;
            println!("{name}: ended after {:.1} s", results.total.as_secs_f64());
            if let Ok(mut done) = done.lock() {
                done.insert((number, name), results);
            }
        }
        Ok(())
    };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let workers = args.machines.unwrap_or((cpus / args.cpus).max(1));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    done.into_inner().ok().context("a worker has panicked")
}

fn tell(all: &All, dir: &Path) -> anyhow::Result<()> {
    for ((_, machine), results) in all {
        for trouble in &results.troubles {
            println!("{machine}: {trouble}");
        }
    }
    println!("{}", report::suites(all));
    let every = report::tests(all, false);
    let file = dir.join("tests.txt");
    fs::write(&file, &every).with_context(|| format!("cannot write {}", file.display()))?;
    let few = every.lines().count() < FEW;
    let shown = if few { every } else { report::tests(all, true) };
    if !shown.is_empty() {
        println!("{shown}");
    }
    for ((_, machine), results) in all {
        for line in report::failures(results, false).lines() {
            println!("{machine}: {line}");
        }
    }
    println!("times of all tests: {}; logs are beside it", file.display());
    Ok(())
}

/// Lines of a table of tests that is printed whole.
const FEW: usize = 40;
