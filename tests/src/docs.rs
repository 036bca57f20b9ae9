//! What of `docs/` follows from the code; written by `cargo xtask gen-docs`.

use std::{fmt::Write as _, fs, io, path::Path as FilePath};

use anyhow::{Context as _, Result};
use clap::Command;
use sidecar_agent::{
    cli,
    doctor::{
        FEATURES,
        catalogue::{self as findings, Code as Finding, Severity as FindingSeverity},
        report,
    },
    model::{
        catalogue::{self, Code},
        diagnostic::Severity,
        failure::{self, About},
        settings::{self, Setting},
        workload::{FAILURE_POLICY_ANNOTATION, PROXY_CONFIG_ANNOTATION},
    },
    observe::metrics::catalogue as metrics,
    privileges::{NEEDS, Need},
    source::kube::rbac,
};
use sidecar_common::{Path, Reason};

/// The files, by name below `docs/`, and what is in them.
#[must_use]
pub fn files() -> [(&'static str, String); 10] {
    [
        ("capabilities.md", capabilities()),
        ("cli.md", command_line()),
        ("diagnostics.md", diagnostics()),
        ("doctor.md", doctor()),
        ("failure-policy.md", failure_policy()),
        ("kernels.md", kernels()),
        ("metrics.md", metrics()),
        ("rbac.md", rbac()),
        ("reasons.md", reasons()),
        ("settings.md", settings()),
    ]
}

/// Names of the files below `docs` that are not as the code has it.
///
/// # Errors
/// When a file cannot be read, other than because it is not there.
pub fn outdated(docs: &FilePath) -> Result<Vec<&'static str>> {
    let mut outdated = Vec::new();
    for (name, wanted) in files() {
        let path = docs.join(name);
        let found = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => Some(found.with_context(|| format!("cannot read {}", path.display()))?),
        };
        if found.as_ref() != Some(&wanted) {
            outdated.push(name);
        }
    }
    Ok(outdated)
}

/// What every generated file begins with.
fn head(title: &str, text: &str) -> String {
    format!("<!-- Written by `cargo xtask gen-docs`. -->\n\n# {title}\n\n{text}\n")
}

fn diagnostics() -> String {
    let text = "What `check`, `plan`, `status` and the log report. A resource with an error is not \
                used (its last good version stays in force); one with a warning is.";
    let mut page = head("Diagnostics", text);
    for code in catalogue::ALL {
        let Code {
            id,
            severity,
            title,
            explanation,
            remedy,
        } = code;
        let severity = match severity {
            Severity::Error => "Error",
            Severity::Warning => "Warning",
        };
        _ = write!(
            page,
            "\n## {id}: {title}\n\n{severity}. {explanation}\n\nRemedy: {remedy}.\n"
        );
    }
    page
}

fn rbac() -> String {
    let mesh = ("istio-system".to_owned(), "istio".to_owned());
    let verbs = rbac::VERBS.map(|verb| format!("`{verb}`")).join(" and ");
    let text = format!(
        "What `run --kube` reads of the Kubernetes API, and therefore has to be allowed to: {verbs} of \
         the following, and nothing else of this source. What kinds there are (`/apis/...`) and \
         whether the API server is ready (`/readyz`) every service account may ask. Kinds of \
         `networking.istio.io` need not exist; they are found when they come."
    );
    let mut page = head("What the agent may read of a cluster", &text);
    page += "\n| group | resource | where | what for |\n|---|---|---|---|\n";
    for rule in rbac::rules(&mesh) {
        let group = if rule.group.is_empty() {
            "(core)"
        } else {
            rule.group
        };
        let only = match &rule.only {
            Some((namespace, name)) => {
                format!("only `{namespace}/{name}` (`--mesh-config-map`)")
            }
            None => "all namespaces".to_owned(),
        };
        _ = writeln!(
            page,
            "| `{group}` | `{}` | {only} | {} |",
            rule.resource, rule.reason
        );
    }
    _ = write!(
        page,
        "\nAs roles:\n\n```yaml\n{}```\n",
        rbac::roles("sidecar-agent", &mesh)
    );
    page
}

fn doctor() -> String {
    let text = format!(
        "What `sidecar-agent doctor` can find wrong with a node. It tries everything on things of \
         its own (a new cgroup, new namespaces, a BPF file system that nobody else sees), and \
         leaves nothing. With `--config` it also looks at the cgroups and network namespaces of \
         the workloads, and at all cgroups above them.\n\n\
         Exit codes: {} all well, {} something is missing that the agent cannot do without, {} \
         only warnings, 2 wrong usage.\n\n\
         `run` begins with those checks that take no time (cgroups, bpffs, capabilities, \
         foreign programs at the root cgroup). It refuses to start where \
         something is missing, and logs warnings.",
        report::WELL,
        report::MISSING,
        report::WARNINGS
    );
    let mut page = head("What doctor finds", &text);
    for finding in findings::ALL {
        let Finding {
            id,
            severity,
            name,
            lost,
            remedy,
        } = finding;
        let severity = match severity {
            FindingSeverity::Missing => "Missing",
            FindingSeverity::Warning => "Warning",
        };
        _ = write!(
            page,
            "\n## {id}: {name}\n\n{severity}. {lost}.\n\nRemedy: {remedy}.\n"
        );
    }
    page
}

fn kernels() -> String {
    let text = "The agent runs on Linux 5.10 and newer. It never asks for the version: what it \
                needs of the kernel is tried, when it starts and by `sidecar-agent doctor`, which \
                also tries every program. What an older kernel lacks is done another way, or left \
                out, as the table tells; the metric `sidecar_agent_kernel_features` and `status -o \
                json` tell what is in use on a node. Distributions may have a feature earlier than \
                the first kernel that has it, or leave it out.\n\n\
                `cargo xtask vm` runs the tests on kernels that this machine does not run.";
    let mut page = head("Kernels", text);
    page.push_str("\n| feature | since | without it | code |\n|---|---|---|---|\n");
    for known in FEATURES {
        let Finding {
            id, severity, lost, ..
        } = known.code;
        let need = match severity {
            FindingSeverity::Missing => "The agent does not run. ",
            FindingSeverity::Warning => "",
        };
        let (name, since) = (known.name, known.since);
        _ = writeln!(page, "| {name} | {since} | {need}{lost} | {id} |");
    }
    page
}

fn capabilities() -> String {
    let text = "What the agent may do, and why. `run` gives up every other capability when it \
                starts (effective, permitted, inheritable, ambient, and bounding where it has \
                `CAP_SETPCAP`), and sets `no_new_privs`. A test runs it with exactly these, and \
                shows for each what fails without it. Workloads and proxies need none.\n\n\
                `CAP_SYS_ADMIN` cannot be replaced by `CAP_BPF` and `CAP_PERFMON`: the kernel asks \
                for it where a network namespace is entered, and then needs the other two no more. \
                The agent runs as root (uid 0): files that only root may use are its own.";
    let mut page = head("Capabilities", text);
    page.push_str("\n| capability | what it is needed for | without it |\n|---|---|---|\n");
    for Need {
        name, reason, lost, ..
    } in NEEDS
    {
        _ = writeln!(page, "| `{name}` | {reason} | {lost} |");
    }
    page
}

fn reasons() -> String {
    let text = "How a connection travels, and why. These are the words of `explain`, `status` and \
                the kernel's counters.";
    let mut page = head("Paths and reasons", text);
    let mut table = |title: &str, rows: &mut dyn Iterator<Item = (&str, &str)>| {
        _ = write!(page, "\n## {title}\n\n| name | meaning |\n|---|---|\n");
        for (name, meaning) in rows {
            _ = writeln!(page, "| `{name}` | {} |", meaning.trim());
        }
    };
    let paths = Path::ALL
        .iter()
        .map(|path| (path.name(), path.description()));
    table("Paths", &mut paths.into_iter());
    let reasons = Reason::ALL.iter().map(|r| (r.name(), r.description()));
    table("Reasons", &mut reasons.into_iter());
    page
}

fn metrics() -> String {
    let text = "What `run` serves at `/metrics` of `--metrics-address`, in the text format of \
                OpenMetrics. Names are those to ask Prometheus for; a histogram has `_bucket`, \
                `_sum` and `_count`.";
    let mut page = head("Metrics", text);
    page.push_str("\n| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
    for metric in metrics::ALL {
        let labels: Vec<String> = metric.labels.iter().map(|of| format!("`{of}`")).collect();
        let unit = metric.unit.map(metrics::UnitName::name);
        _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {} |",
            metric.sample(),
            metric.kind.as_str(),
            unit.unwrap_or_default(),
            labels.join(", "),
            metric.help
        );
    }
    page
}

fn failure_policy() -> String {
    let text = format!(
        "What becomes of a workload's connections when something fails: they are refused (closed), or \
         pass as if nothing were captured (open). A refusal is prompt: `ECONNREFUSED`, or a reset.\n\n\
         All cases are closed, unless the node's default (`--failure-policy`, \
         `SIDECAR_AGENT_FAILURE_POLICY`) or the workload's annotation \
         `{FAILURE_POLICY_ANNOTATION}` says otherwise; the annotation decides what it names, and the \
         default the rest. Both are written alike: {}. `explain` and `plan` show what holds, and what \
         becomes of a connection while what is to take it is gone.\n\n\
         While capture is off for a workload, everything passes. Established connections are never \
         touched.",
        failure::EXPECTED
    );
    let mut page = head("Failure policy", &text);
    for About {
        case: _,
        name,
        when,
        closed,
        open,
        limits,
    } in failure::CASES
    {
        _ = write!(
            page,
            "\n## {name}\n\n{when}\n\n- closed: {closed}\n- open: {open}\n\n{limits}\n"
        );
    }
    page
}

fn settings() -> String {
    let text = format!(
        "What is captured of a workload's traffic, and what is exempt. The first of these places \
         that says something decides, setting by setting:\n\n\
         1. the annotation of the workload,\n\
         2. its annotation `{PROXY_CONFIG_ANNOTATION}`, a `ProxyConfig` as YAML: the field, or the \
         variable in `proxyMetadata`,\n\
         3. `defaultConfig` of the `MeshConfig`, likewise,\n\
         4. the default.\n\n\
         An element of a list that cannot be used is reported and left out, and the rest holds; \
         empty elements are tolerated. An empty list of what is included includes nothing. A single \
         value that cannot be used, or is empty, leaves the word to the next place. Booleans are \
         written as Go reads them (`true`, `1`, `f`, ...), ports are single ones.\n\n\
         The proxy's ports are those of the mesh (`proxyListenPort`, `proxyInboundListenPort`). \
         What concerns the proxy, DNS, IPv6 and virtual interfaces matters only for a workload \
         with a proxy. Defaults are those of Istio's injector, unless noted."
    );
    let mut page = head("Settings of traffic capture", &text);
    page.push_str("\n| annotation | value | default | in a ProxyConfig | meaning |\n");
    page.push_str("|---|---|---|---|---|\n");
    for setting in settings::ALL {
        let Setting {
            about,
            annotation,
            environment,
            field,
            expected,
            default,
            ..
        } = setting;
        let elsewhere = [field, environment].map(|name| match *name {
            "" => String::new(),
            name => format!("`{name}`"),
        });
        let elsewhere = elsewhere.concat();
        _ = writeln!(
            page,
            "| `{annotation}` | {expected} | {default} | {elsewhere} | {about} |"
        );
    }
    page
}

fn command_line() -> String {
    let mut command = fixed(cli::command());
    command.build();
    let text = "What `--help` prints. Exit codes: 0 done, 1 failed or errors found, 2 wrong usage, \
                3 `check` or `doctor` found only warnings.";
    let mut page = head("Command line", text);
    help(&mut page, &mut command);
    for verb in command.get_subcommands_mut() {
        if verb.get_name() != "help" {
            help(&mut page, verb);
        }
    }
    page
}

/// The same help whatever the terminal and the environment are.
fn fixed(command: Command) -> Command {
    command
        .term_width(100)
        .mut_args(|arg| arg.hide_env_values(true))
        .mut_subcommands(fixed)
}

fn help(page: &mut String, command: &mut Command) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    _ = write!(page, "\n## {name}\n\n```text\n");
    for line in command.render_long_help().to_string().trim_end().lines() {
        _ = writeln!(page, "{}", line.trim_end());
    }
    page.push_str("```\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_generated_is_up_to_date() {
        let docs = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let outdated = outdated(&docs).unwrap();
        assert!(
            outdated.is_empty(),
            "run `cargo xtask gen-docs`: {outdated:?} in docs/ are not as the code has them"
        );
    }

    #[test]
    fn what_differs_or_is_missing_is_outdated() {
        let docs = tempfile::tempdir().unwrap();
        let [changed, missing, others @ ..] = files();
        fs::write(docs.path().join(changed.0), changed.1 + "more").unwrap();
        for (name, text) in others {
            fs::write(docs.path().join(name), text).unwrap();
        }
        assert_eq!(outdated(docs.path()).unwrap(), [changed.0, missing.0]);
    }
}
