//! `cargo xtask vm`: the tests that need a kernel, on kernels that this machine does not run.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use sidecar_vm_init::{Cgroups, JOB, Job, MODULES};

use crate::{cargo, setup, test::Counts};

mod archive;
mod build;
mod initramfs;
mod modules;
pub mod qemu;
mod report;
mod results;
mod selection;
mod store;
mod userland;
mod versions;

use initramfs::Initramfs;
use qemu::{Accel, Machine};
use report::All;
use results::Results;
use store::{Kernel, Store};
use versions::Wanted;

#[derive(clap::Args)]
pub struct Args {
    /// Kernels: a series such as 5.10, whose newest is taken; a version; `newest`; or the path of
    /// an image
    #[arg(
        long = "kernel",
        value_name = "V,...",
        value_delimiter = ',',
        default_value = "5.10,6.1,6.12,newest"
    )]
    kernels: Vec<Wanted>,
    /// The modules of the images given by path, if not where their release is installed:
    /// a directory like /lib/modules/RELEASE
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// How cgroups are mounted: version 2 alone, or version 1 beside it, too
    #[arg(long, value_enum, value_delimiter = ',', default_value = "pure,hybrid")]
    cgroups: Vec<Layout>,
    /// Tests at a time in one machine
    #[arg(long, default_value_t = THREADS)]
    threads: usize,
    /// Machines at a time; one for each two processors, unless said
    #[arg(long)]
    machines: Option<usize>,
    /// Processors of a machine
    #[arg(long, default_value_t = CPUS)]
    cpus: usize,
    /// Run the tests, too, that are left out for the time they take
    #[arg(long)]
    all: bool,
    /// Seconds until a machine is ended
    #[arg(long, default_value_t = LIMIT.as_secs())]
    timeout: u64,
    /// List the kernels that can be had, and the tests left out, and run none
    #[arg(long)]
    list: bool,
    /// Run only the tests whose name contains one of these; `SUITE` and `SUITE::TEST` name those
    /// of one suite
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
}

impl Args {
    /// For `cargo xtask test`: the oldest kernel, and one that is newer than those that people
    /// run, with the tests of most worth for their time.
    ///
    /// # Errors
    /// When what is said here is no command.
    pub fn small(filter: Option<&str>) -> anyhow::Result<Self> {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            args: Args,
        }
        let tests = match &filter {
            Some(filter) => std::slice::from_ref(filter),
            None => SMALL,
        };
        let words = ["vm", "--kernel", "5.10,newest"].iter().chain(tests);
        let command: Command = clap::Parser::try_parse_from(words)?;
        Ok(command.args)
    }
}

/// How cgroups are mounted, as an option.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Layout {
    Pure,
    Hybrid,
}

impl From<Layout> for Cgroups {
    fn from(layout: Layout) -> Self {
        match layout {
            Layout::Pure => Self::Pure,
            Layout::Hybrid => Self::Hybrid,
        }
    }
}

/// Measured: more wait for each other.
const THREADS: usize = 4;
const CPUS: usize = 2;
const LIMIT: Duration = Duration::from_mins(10);

/// The tests that `cargo xtask test` runs in machines.
const SMALL: &[&str] = &["kernel::connect4", "kernel::verifier"];

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
    for suite in selection::SUITES {
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
    let job = selection::job(&suites, &built, args.threads, args.all)?;
    let image = dir.join("initramfs");
    whole(&job, kernels, &built, dir)?.write(&image)?;
    let probe = dir.join("initramfs-probe");
    only_init(&Job::default())?.write(&probe)?;
    let accel = qemu::accel(&kernels[0].image, &probe, dir)?;
    let all = run_all(args, kernels, &image, accel, dir)?;
    tell(&all, dir)?;
    Ok(report::counts(&all))
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

/// With a job and nothing to do it with.
fn only_init(job: &Job) -> anyhow::Result<Initramfs> {
    let mut initramfs = Initramfs::new();
    initramfs.add_as(&build::init()?, Path::new("/init"))?;
    let text = serde_json::to_string(job).context("cannot make JSON of the job")?;
    initramfs.add_text(Path::new(JOB), text);
    Ok(initramfs)
}

/// With the tests and what they need, and the modules of all kernels: all machines have the same.
fn whole(
    job: &Job,
    kernels: &[Kernel],
    built: &build::Built,
    dir: &Path,
) -> anyhow::Result<Initramfs> {
    let mut initramfs = only_init(job)?;
    userland::add(&mut initramfs)?;
    let stripped = dir.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("cannot make {}", stripped.display()))?;
    for program in built.paths() {
        initramfs.add_as(&build::stripped(program, &stripped)?, program)?;
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
