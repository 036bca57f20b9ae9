//! The test suites.

/// One run of `cargo test`.
pub struct Suite {
    /// What `--suite` takes.
    pub name: &'static str,
    /// What it tests, for `--list`.
    pub about: &'static str,
    /// Which packages and targets, as arguments of `cargo test`.
    pub targets: &'static [&'static str],
    /// Tests at a time; `None` is one per CPU. Tests that wait for the kernel more than they
    /// compute, with processes of their own, gain from more than one and suffer from many.
    pub threads: Option<usize>,
    /// Packages whose programs it runs, which are built first: `cargo test` builds those of the
    /// tested package at most.
    pub programs: &'static [&'static str],
}

/// All suites, in the order they run: the cheapest first.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "unit",
        about: "everything that needs no kernel feature and no root",
        targets: &[
            "-p",
            "sidecar-common",
            "-p",
            "sidecar-agent",
            "-p",
            "ebpf-build",
            "-p",
            "xtask",
            "--features",
            "sidecar-common/user",
        ],
        threads: None,
        programs: &[],
    },
    Suite {
        name: "harness",
        about: "the test harness itself: namespaces, cgroups, servers and clients",
        targets: &["-p", "sidecar-tests", "--lib"],
        threads: Some(4),
        programs: &["sidecar-tests"],
    },
    Suite {
        name: "kernel",
        about: "each BPF program in the running kernel: hit, miss, fail-safe",
        targets: &["-p", "sidecar-tests", "--test", "kernel"],
        threads: Some(4),
        programs: &["sidecar-tests", "sidecar-agent"],
    },
    Suite {
        name: "e2e",
        about: "the agent as users run it, with real applications",
        targets: &["-p", "sidecar-tests", "--test", "e2e"],
        threads: Some(4),
        programs: &["sidecar-tests", "sidecar-agent"],
    },
];
