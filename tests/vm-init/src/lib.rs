//! What `cargo xtask vm` tells the init of its virtual machines, and what that says in return.
//!
//! The one is a file in the initramfs ([`JOB`]), the other lines of JSON on a serial port
//! ([`PORT`]), one [`Record`] each. The kernel's own messages, and what tests print on standard
//! error, are on the console, which is another port.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The file with the [`Job`], in JSON.
pub const JOB: &str = "/job.json";

/// The directory with a directory for each kernel release; it holds the modules of that kernel,
/// not compressed, named so that each comes after those that it needs.
pub const MODULES: &str = "/modules";

/// Where records are written.
pub const PORT: &str = "/dev/ttyS1";

/// The parameter on the kernel's command line that says how cgroups are mounted; the kernel makes
/// an environment variable of what it does not know itself.
pub const CGROUPS: &str = "cgroups";

/// Where programs are.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names a file that a test which cannot run here appends a line to (see `sidecar_tests::skip`).
const SKIPS_ENV: &str = "SIDECAR_TEST_SKIPS";

/// How control groups are mounted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cgroups {
    /// Version 2 alone, on `/sys/fs/cgroup`.
    Pure,
    /// Version 2 on `/sys/fs/cgroup/unified`, and each controller of version 1 beside it.
    Hybrid,
}

impl Cgroups {
    /// Its name, on the kernel's command line too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Hybrid => "hybrid",
        }
    }

    /// What has a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Pure, Self::Hybrid]
            .into_iter()
            .find(|cgroups| cgroups.name() == name)
    }
}

impl fmt::Display for Cgroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is to be run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Job {
    /// Environment variables of the tests.
    pub env: Vec<(String, String)>,
    /// Run one after the other.
    pub suites: Vec<Suite>,
}

/// One test program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Suite {
    /// The name of its suite.
    pub name: String,
    /// The machines that run it.
    pub cgroups: Cgroups,
    /// Its path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Suite {
    /// The environment variable that names the file for skipped tests.
    #[must_use]
    pub fn skips_env() -> &'static str {
        SKIPS_ENV
    }
}

/// What happens in a virtual machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// It is ready for the tests.
    Booted {
        /// The kernel's release, as `uname -r` has it.
        release: String,
        /// How cgroups are mounted.
        cgroups: Cgroups,
    },
    /// Something cannot be had, and tests may fail for it.
    Trouble(String),
    /// A suite begins.
    Begun {
        /// Its name.
        suite: String,
    },
    /// A line that a suite printed on standard output.
    Line {
        /// The suite's name.
        suite: String,
        /// Without its end.
        line: String,
    },
    /// A suite has ended.
    Ended {
        /// Its name.
        suite: String,
        /// Its exit status in words, unless it succeeded.
        failure: Option<String>,
        /// What tests that skipped themselves said, a line each.
        skips: Vec<String>,
    },
    /// All suites have ended.
    Finished,
}
