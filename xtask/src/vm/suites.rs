//! The suites that run in virtual machines, and what of them is worth its time there.

/// A suite that can run there.
pub struct VmSuite {
    /// Its name: that of the test target, unless it is a program.
    pub name: &'static str,
    /// The arguments of a program of its own, which is not libtest's.
    pub program: Option<&'static [&'static str]>,
    /// Parts of names of tests that do not run unless asked for, and why.
    pub left_out: &'static [(&'static str, &'static str)],
    /// Parts of names of the few tests that tell whether a kernel does at all, which suffice where
    /// there are machines with the same kernel, or little time: each program is loaded and
    /// attached, each path taken, by IPv4 and IPv6, and what is pinned goes on.
    pub few: &'static [&'static str],
}

impl VmSuite {
    /// All parts of names that are told here.
    pub fn parts(&self) -> impl Iterator<Item = &'static str> {
        let left_out = self.left_out.iter().map(|(part, _)| *part);
        left_out.chain(self.few.iter().copied())
    }
}

const LOGIC: &str = "what it tests is the agent's work on maps, alike on any kernel";
const MANY: &str = "so many connections take minutes where the processor is emulated";
const LONG: &str = "it takes a minute where the processor is emulated";
const SAME: &str = "another test asks the kernel the same";
const USER: &str = "what it tests happens outside the kernel";
const ALIKE: &str = "the suite kernel tests the same of the kernel, in less time";

/// All of them, in the order they run.
pub const SUITES: &[VmSuite] = &[
    VmSuite {
        name: "kernel",
        program: None,
        left_out: &[
            ("accelerate::bulk::a_gibibyte", LONG),
            ("accelerate::order::a_mixture", LONG),
            ("coexistence::a_balancer", SAME),
            ("coexistence::accounting", SAME),
            ("collection::", MANY),
            ("connect4::a_", SAME),
            ("connect4::calls", SAME),
            ("connect4::datagrams", SAME),
            ("connect4::every_backend", SAME),
            ("connect4::the_port", SAME),
            ("connect4::two", SAME),
            ("connect6::a_plan", SAME),
            ("connect6::a_relay", SAME),
            ("counters::", LOGIC),
            ("dns::an_excluded", SAME),
            ("dns::one_socket", SAME),
            ("events::a", SAME),
            ("events::what_finds_the_ring_full", MANY),
            ("failure::no_plan::", LOGIC),
            ("failure::proxy_gone::open_e", SAME),
            ("failure::proxy_gone::open_only", SAME),
            ("failure::proxy_gone::the_proxys", SAME),
            ("failure::proxy_gone::what_cannot", LOGIC),
            ("failure::proxy_gone_dns::", SAME),
            ("failure::proxy_gone_inbound::open_an", SAME),
            ("failure::proxy_gone_inbound::open_what", SAME),
            ("getpeername::a_socket", SAME),
            ("getpeername::an_untouched", SAME),
            ("getsockopt::a_process", SAME),
            ("getsockopt::an_earlier", SAME),
            ("getsockopt::the_proxys_own", SAME),
            ("healing::", LOGIC),
            ("interfaces::no_connection", MANY),
            ("interfaces::virtual_interfaces_are_found", SAME),
            ("interfaces::what_a_plan", LOGIC),
            ("left_alone::raw", SAME),
            ("left_alone::sctp", SAME),
            ("life::adopted::a_plan", LOGIC),
            ("life::adopted::suspended", LOGIC),
            ("life::adopted::what_is_gone", SAME),
            ("life::adopted::what_nobody", LOGIC),
            ("life::adopted::what_was_begun", LOGIC),
            ("life::refused::a_second", LOGIC),
            ("life::refused::what_does_not_load", LOGIC),
            ("life::sets::", LOGIC),
            ("life::strangers::", LOGIC),
            ("owners::one", SAME),
            ("owners::only", SAME),
            ("parity::", MANY),
            ("plans::", LOGIC),
            ("preflight::", LOGIC),
            ("sk_lookup::a_listener_in", SAME),
            ("sk_lookup::a_rule", SAME),
            ("sk_lookup::another_host", SAME),
            ("sk_lookup::datagrams", SAME),
            ("sk_lookup::listeners_follow", LOGIC),
            ("sk_lookup::one_address", SAME),
            ("sk_lookup::the_workloads", SAME),
            ("sk_lookup::two_workloads", SAME),
            ("sock_ops::a_straight", SAME),
            ("sock_ops::what_goes_to_the_relay", SAME),
            ("sock_ops::what_is_direct", SAME),
            ("source::a_bound", SAME),
            ("source::the_address", SAME),
            ("source::the_source_follows", LOGIC),
            ("source::the_source_is_the_only", LOGIC),
            ("source::what_the_proxy", SAME),
            ("tproxy::such", SAME),
            ("transparency::a_listener_that", LOGIC),
            ("tuples::a_socket", SAME),
            ("tuples::sixty_thousand", MANY),
            ("uninstall::links", LOGIC),
            ("usage::", LOGIC),
        ],
        few: &[
            "verifier::",
            "connect4::cgroups_below",
            "connect6::rules_for_ipv6",
            "getsockopt::a_proxy_is_known_by_its_cgroup",
            "sk_lookup::a_connection_is_given",
            "life::adopted::what_is_attached_goes_on",
        ],
    },
    VmSuite {
        name: "e2e",
        program: None,
        left_out: &[
            ("admin::", USER),
            ("attacks::", ALIKE),
            ("bad_input::", USER),
            ("coexistence::", ALIKE),
            ("conformance::", USER),
            ("doctor::cgroups", USER),
            ("doctor::foreign", LONG),
            ("doctor::the_programs", LONG),
            ("doctor::rules", USER),
            ("doctor::what_is_missing", USER),
            ("doctor::workloads", USER),
            ("dump::", USER),
            ("explain_kernel::", ALIKE),
            ("failure::", ALIKE),
            ("handover::", USER),
            ("healing::", ALIKE),
            ("in_use::", USER),
            ("life::", USER),
            ("limits::", LONG),
            ("observe::", USER),
            ("pinned::a_", USER),
            ("pinned::capture", USER),
            ("pinned::uninstalled", ALIKE),
            ("pinned::what_", USER),
            ("privileges::", USER),
            ("scenarios::default", ALIKE),
            ("scenarios::egress", ALIKE),
            ("scenarios::every", USER),
            ("scenarios::in", ALIKE),
            ("scenarios::no_ip", ALIKE),
            ("scenarios::partial", ALIKE),
            ("seccomp::", USER),
            ("service::", USER),
            ("verbs::", USER),
        ],
        few: &["scenarios::external_proxy"],
    },
    VmSuite {
        name: "parity",
        program: None,
        left_out: &[(
            "",
            "connections by chance and by iptables take minutes where the processor is emulated; \
             conformance makes those of the agent",
        )],
        few: &[],
    },
    VmSuite {
        name: "conformance",
        program: Some(&["--live"]),
        left_out: &[],
        few: &[],
    },
];
