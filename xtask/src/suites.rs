//! The test suites.

use crate::{image, setup};

/// One suite.
pub struct Suite {
    /// What `--suite` takes.
    pub name: &'static str,
    /// What it tests, for `--list`.
    pub about: &'static str,
    /// How it is run.
    pub run: Run,
}

/// How a suite is run.
pub enum Run {
    /// By `cargo test`.
    Tests(Tests),
    /// Each fuzz target for a short time; it counts as one test.
    Fuzz,
    /// Checks for other machines.
    Cross,
    /// Tests in virtual machines.
    Vm,
}

/// One run of `cargo test`.
pub struct Tests {
    /// Which packages and targets, as arguments of `cargo test`.
    pub targets: &'static [&'static str],
    /// Tests at a time; `None` is one per CPU. Tests that wait for the kernel more than they
    /// compute, with processes of their own, gain from more than one and suffer from many.
    pub threads: Option<usize>,
    /// Packages whose programs it runs, which are built first: `cargo test` builds those of the
    /// tested package at most.
    pub programs: &'static [&'static str],
    /// What it needs besides, which is installed first. Where it cannot be had the tests skip
    /// themselves, and say what they lack.
    pub ensure: Option<fn() -> anyhow::Result<()>>,
}

/// All suites, in the order they run: the cheapest first.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "unit",
        about: "everything that needs no kernel feature and no root",
        run: Run::Tests(Tests {
            targets: &[
                "-p",
                "sidecar-common",
                "-p",
                "sidecar-agent",
                "-p",
                "ebpf-build",
                "-p",
                "xtask",
                "-p",
                "sidecar-vm-init",
                "-p",
                "sidecar-fuzz-checks",
                "--features",
                "sidecar-common/user",
            ],
            threads: None,
            programs: &[],
            ensure: None,
        }),
    },
    Suite {
        name: "harness",
        about: "the test harness itself: namespaces, cgroups, servers and clients",
        run: Run::Tests(Tests {
            targets: &["-p", "sidecar-tests", "--lib"],
            threads: Some(4),
            programs: &["sidecar-tests"],
            ensure: None,
        }),
    },
    Suite {
        name: "kernel",
        about: "each BPF program in the running kernel: hit, miss, fail-safe",
        run: Run::Tests(Tests {
            targets: &["-p", "sidecar-tests", "--test", "kernel"],
            threads: Some(4),
            programs: &["sidecar-tests", "sidecar-agent"],
            ensure: None,
        }),
    },
    Suite {
        name: "parity",
        about: "the options of istio-iptables: real iptables and the agent, connection by connection",
        run: Run::Tests(Tests {
            targets: &["-p", "sidecar-tests", "--test", "parity"],
            threads: Some(4),
            programs: &["sidecar-tests"],
            ensure: None,
        }),
    },
    Suite {
        name: "e2e",
        about: "the agent as users run it, with real applications",
        run: Run::Tests(Tests {
            targets: &["-p", "sidecar-tests", "--test", "e2e"],
            threads: Some(4),
            programs: &["sidecar-tests", "sidecar-agent"],
            ensure: None,
        }),
    },
    Suite {
        name: "envoy",
        about: "the agent and a real, unmodified Envoy behind it",
        run: Run::Tests(Tests {
            targets: &["-p", "sidecar-tests", "--test", "envoy"],
            threads: Some(4),
            programs: &["sidecar-tests", "sidecar-agent"],
            ensure: Some(setup::ensure_envoy),
        }),
    },
    Suite {
        name: "packaging",
        about: "the Helm chart and what it renders, and the image in a real container runtime",
        run: Run::Tests(Tests {
            targets: &["-p", "sidecar-tests", "--test", "packaging"],
            threads: Some(4),
            programs: &["sidecar-tests", "sidecar-agent"],
            ensure: Some(ensure_packaging),
        }),
    },
    Suite {
        name: "kube",
        about: "the agent and a real API server of Kubernetes",
        run: Run::Tests(Tests {
            targets: &["-p", "sidecar-tests", "--test", "kube"],
            // Each has an API server, which computes.
            threads: Some(2),
            programs: &["sidecar-tests", "sidecar-agent"],
            ensure: Some(setup::ensure_kube),
        }),
    },
    Suite {
        name: "benchmark",
        about: "the benchmark works; its figures are not looked at",
        run: Run::Tests(Tests {
            targets: &["-p", "sidecar-tests", "--test", "benchmark"],
            threads: None,
            programs: &["sidecar-tests", "sidecar-agent"],
            ensure: Some(setup::ensure_bench),
        }),
    },
    Suite {
        name: "fuzz",
        about: "each fuzz target for some seconds",
        run: Run::Fuzz,
    },
    Suite {
        name: "cross",
        about: "whether everything compiles for aarch64, and the BPF programs in the other byte order",
        run: Run::Cross,
    },
    Suite {
        name: "vm",
        about: "the oldest kernel and the newest, in virtual machines: each BPF program, each path",
        run: Run::Vm,
    },
];

/// Also builds the image. What one lacks keeps nobody from testing the other.
fn ensure_packaging() -> anyhow::Result<()> {
    let chart = setup::ensure_chart();
    setup::ensure_containers()?;
    image::run()?;
    chart
}
