//! The command's options.

use std::{path::PathBuf, time::Duration};

use sidecar_vm_init::Cgroups;

use super::versions::Wanted;

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
    pub(super) kernels: Vec<Wanted>,
    /// The modules of the images given by path, if not where their release is installed:
    /// a directory like /lib/modules/RELEASE
    #[arg(long, value_name = "DIR")]
    pub(super) modules: Option<PathBuf>,
    /// How cgroups are mounted: version 2 alone, or version 1 beside it, too
    #[arg(long, value_enum, value_delimiter = ',', default_value = "pure,hybrid")]
    pub(super) cgroups: Vec<Layout>,
    /// Tests at a time in one machine
    #[arg(long, default_value_t = THREADS)]
    pub(super) threads: usize,
    /// Machines at a time; as many as there are processors for, unless said
    #[arg(long)]
    pub(super) machines: Option<usize>,
    /// Processors of a machine
    #[arg(long, default_value_t = CPUS)]
    pub(super) cpus: usize,
    /// Run the tests, too, that are left out for the time they take
    #[arg(long)]
    pub(super) all: bool,
    /// Run only the few tests that tell whether a kernel does at all
    #[arg(long, conflicts_with = "all")]
    pub(super) few: bool,
    /// An environment variable of the tests
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) env: Vec<(String, String)>,
    /// Seconds until a machine is ended
    #[arg(long, default_value_t = LIMIT.as_secs())]
    pub(super) timeout: u64,
    /// List the kernels that can be had, and the tests left out, and run none
    #[arg(long)]
    pub(super) list: bool,
    /// Run only the tests whose name contains one of these; `SUITE` and `SUITE::TEST` name those
    /// of one suite
    #[arg(value_name = "TEST")]
    pub(super) tests: Vec<String>,
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
        let words = ["vm", "--kernel", "5.10,newest", "--few"];
        let command: Command = clap::Parser::try_parse_from(words.into_iter().chain(filter))?;
        Ok(command.args)
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it has no `=`")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// How cgroups are mounted, as an option.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Layout {
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

/// Measured with an emulated processor: a second one costs a test 1.7 times the time of this
/// machine's, and is of more use to another machine. Tests wait for the kernel, if not long.
const CPUS: usize = 1;
const THREADS: usize = 2;
const LIMIT: Duration = Duration::from_mins(10);
