//! `cargo xtask setup`: installs what building and testing need, and only what is missing.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, bail};
use ebpf_build::{Compiler, Linker};

use crate::cargo;

pub mod apt;
mod compiler;
mod containers;
mod cross;
mod envoy;
pub mod fuzzing;
mod helm;
mod kube;
mod linker;
mod programs;
mod vm;

pub use fuzzing::version;
pub use programs::names as programs;

#[derive(clap::Args)]
pub struct Args {
    /// Only tell what is there and what is missing; fail when something is missing
    #[arg(long)]
    check: bool,
    /// Get the compiler from here only, instead of from rustup or else from Debian
    #[arg(long, value_enum)]
    compiler: Option<compiler::From>,
}

/// Something that must be there.
struct Need {
    name: &'static str,
    /// Describes what was found, or says what is missing and how to get it by hand.
    find: fn() -> anyhow::Result<String>,
    install: fn(&Args) -> anyhow::Result<()>,
}

/// In this order: the linker is built for the compiler's LLVM.
const NEEDS: [Need; 3] = [
    Need {
        name: "compiler for the bpf target",
        find: || Ok(Compiler::find()?.to_string()),
        install: |args| compiler::install(args.compiler),
    },
    Need {
        name: "bpf-linker",
        find: || Ok(Linker::find(&Compiler::find()?)?.to_string()),
        install: |_| linker::install(&Compiler::find()?),
    },
    Need {
        name: "programs the tests run",
        find: programs::find,
        install: |_| programs::install(),
    },
];

/// What only fuzzing needs besides.
const FUZZING: [Need; 2] = [
    Need {
        name: "compiler of the fuzzer",
        find: fuzzing::find_cxx,
        install: |_| fuzzing::install_cxx(),
    },
    Need {
        name: "cargo-fuzz",
        find: fuzzing::find,
        install: |_| fuzzing::install(),
    },
];

/// What only the suite `envoy` needs besides.
const ENVOY: [Need; 1] = [Need {
    name: "Envoy",
    find: envoy::find,
    install: |_| envoy::install(),
}];

/// What only the benchmark needs besides Envoy.
const BENCH: [Need; 1] = [Need {
    name: "programs to compare with",
    find: programs::find_compared,
    install: |_| programs::install_compared(),
}];

/// What only virtual machines need besides.
const VM: [Need; 2] = [
    Need {
        name: "qemu",
        find: vm::find_qemu,
        install: |_| vm::install_qemu(),
    },
    Need {
        name: "programs that unpack kernels",
        find: vm::find_tools,
        install: |_| vm::install_tools(),
    },
];

/// What only the suite `kube` needs besides.
const KUBE: [Need; 1] = [Need {
    name: "API server of Kubernetes",
    find: kube::find,
    install: |_| kube::install(),
}];

/// What its tests need that run pods.
const NODE: [Need; 1] = [Need {
    name: "container runtime and CNI plugins",
    find: programs::find_node,
    install: |_| programs::install_node(),
}];

/// What only checking for another machine needs besides.
const CROSS: [Need; 1] = [Need {
    name: "C compiler for aarch64",
    find: cross::find,
    install: |_| cross::install(),
}];

/// What only the image needs besides.
const IMAGE: [Need; 2] = [
    Need {
        name: "musl, for a static agent",
        find: containers::find_musl,
        install: |_| containers::install_musl(),
    },
    Need {
        name: "buildah",
        find: containers::find_buildah,
        install: |_| containers::install_buildah(),
    },
];

/// What only rendering the Helm chart needs.
const CHART: [Need; 1] = [Need {
    name: "helm and kubectl",
    find: helm::find,
    install: |_| helm::install(),
}];

/// What only running the image needs.
const CONTAINERS: [Need; 1] = [Need {
    name: "podman and runc",
    find: containers::find_podman,
    install: |_| containers::install_podman(),
}];

/// The command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let needs: Vec<&Need> = NEEDS
        .iter()
        .chain(&FUZZING)
        .chain(&ENVOY)
        .chain(&KUBE)
        .chain(&NODE)
        .chain(&BENCH)
        .chain(&VM)
        .chain(&CROSS)
        .chain(&IMAGE)
        .chain(&CHART)
        .chain(&CONTAINERS)
        .collect();
    provide(&needs, args)
}

fn provide(needs: &[&Need], args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut missing = String::new();
    for (number, need) in (1..).zip(needs) {
        print!("[{number}/{}] {}: ", needs.len(), need.name);
        io::stdout().flush()?;
        let why = match (need.find)() {
            Ok(found) => {
                println!("{found}");
                continue;
            }
            Err(why) => why,
        };
        println!("missing");
        if args.check {
            write!(missing, "\n{}: {why:#}", need.name)?;
            continue;
        }
        let started = Instant::now();
        (need.install)(args).with_context(|| format!("cannot install: {}", need.name))?;
        let found = (need.find)()
            .with_context(|| format!("{} was installed and cannot be used", need.name))?;
        println!(
            "      installed in {} s: {found}",
            started.elapsed().as_secs()
        );
    }
    if !missing.is_empty() {
        bail!("`cargo xtask setup` would install what is missing:{missing}");
    }
    println!("everything is there ({} s)", started.elapsed().as_secs());
    Ok(())
}

/// Installs what is missing, and prints nothing when nothing is.
///
/// # Errors
/// As [`run`].
pub fn ensure() -> anyhow::Result<()> {
    ensure_all(&NEEDS.iter().collect::<Vec<_>>())
}

/// As [`ensure`], and what fuzzing needs.
///
/// # Errors
/// As [`run`].
pub fn ensure_with_fuzzing() -> anyhow::Result<()> {
    ensure_all(&NEEDS.iter().chain(&FUZZING).collect::<Vec<_>>())
}

/// Installs Envoy if it is missing; see [`ensure`].
///
/// # Errors
/// As [`run`].
pub fn ensure_envoy() -> anyhow::Result<()> {
    ensure_all(&ENVOY.iter().collect::<Vec<_>>())
}

/// Finds an API server, or builds one, and what runs pods; see [`ensure`].
///
/// # Errors
/// As [`run`].
pub fn ensure_kube() -> anyhow::Result<()> {
    ensure_all(&KUBE.iter().chain(&NODE).collect::<Vec<_>>())
}

/// `cargo xtask kube-assets`: only the API server, and tells where it is.
///
/// # Errors
/// As [`run`].
pub fn kube_assets() -> anyhow::Result<()> {
    let args = Args {
        check: false,
        compiler: None,
    };
    provide(&KUBE.iter().collect::<Vec<_>>(), &args)
}

/// As [`ensure`], and what the benchmark compares with.
///
/// # Errors
/// As [`run`].
pub fn ensure_bench() -> anyhow::Result<()> {
    ensure_all(&NEEDS.iter().chain(&ENVOY).chain(&BENCH).collect::<Vec<_>>())
}

/// Installs what virtual machines need if it is missing; see [`ensure`].
///
/// # Errors
/// As [`run`].
pub fn ensure_vm() -> anyhow::Result<()> {
    ensure_all(&VM.iter().collect::<Vec<_>>())
}

/// Installs what checking for another machine needs if it is missing; see [`ensure`].
///
/// # Errors
/// As [`run`].
pub fn ensure_cross() -> anyhow::Result<()> {
    ensure_all(&NEEDS.iter().chain(&CROSS).collect::<Vec<_>>())
}

/// As [`ensure`], and what the image needs.
///
/// # Errors
/// As [`run`].
pub fn ensure_image() -> anyhow::Result<()> {
    ensure_all(&NEEDS.iter().chain(&IMAGE).collect::<Vec<_>>())
}

/// Installs helm if it is missing; see [`ensure`].
///
/// # Errors
/// As [`run`].
pub fn ensure_chart() -> anyhow::Result<()> {
    ensure_all(&CHART.iter().collect::<Vec<_>>())
}

/// Installs what runs the image if it is missing; see [`ensure`].
///
/// # Errors
/// As [`run`].
pub fn ensure_containers() -> anyhow::Result<()> {
    ensure_all(&CONTAINERS.iter().collect::<Vec<_>>())
}

fn ensure_all(needs: &[&Need]) -> anyhow::Result<()> {
    if needs.iter().all(|need| (need.find)().is_ok()) {
        return Ok(());
    }
    let args = Args {
        check: false,
        compiler: None,
    };
    provide(needs, &args)
}

/// Runs one command of an installation, telling so.
fn step(command: &mut Command) -> anyhow::Result<()> {
    println!("      $ {}", cargo::shown(command));
    cargo::run(command)
}
