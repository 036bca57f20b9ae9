//! Rules of iptables and nftables that redirect connections, too. Their own programs are asked, in
//! every variant that is installed: rules of one are not seen by the other.

mod rules;

use std::{
    collections::BTreeSet,
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use self::rules::Redirecting;
use super::{Check, catalogue, workloads::Found};
use crate::dataplane::netns::Netns;

/// How many rules are shown.
const SHOWN: usize = 5;

/// Programs that tell the rules, with their arguments. Several may be the same one.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("iptables-save", &[]),
    ("iptables-nft-save", &[]),
    ("iptables-legacy-save", &[]),
    ("ip6tables-save", &[]),
    ("ip6tables-nft-save", &[]),
    ("ip6tables-legacy-save", &[]),
    ("nft", &["-j", "list", "ruleset"]),
];

/// What tells the rules.
struct Program {
    name: &'static str,
    path: PathBuf,
    /// Where that leads: one program may have several names, and does what its name says.
    real: PathBuf,
    args: &'static [&'static str],
}

/// Looks at the host's network namespace and the workloads'.
pub fn look(workloads: &[Found]) -> Vec<Check> {
    let programs = installed();
    let mut checks = Vec::new();
    for (kind, variants) in [
        (
            "iptables",
            ["iptables-nft-save", "iptables-legacy-save"].as_slice(),
        ),
        ("nftables", &["nft"]),
    ] {
        let is_there = |name: &&str| programs.iter().any(|program| program.name == *name);
        let missing: Vec<&str> = variants
            .iter()
            .copied()
            .filter(|name| !is_there(name) && !has_alias(&programs, name))
            .collect();
        if !missing.is_empty() {
            let found = format!(
                "{} not installed: its rules are not looked at",
                missing.join(", ")
            );
            checks.push(Check::info(format!("rules of {kind}"), found));
        }
    }
    if programs.is_empty() {
        return checks;
    }
    let host = Netns::open(None).ok();
    let others = workloads.iter().filter_map(|of| of.netns.as_ref().ok());
    let mut seen = BTreeSet::new();
    let on_host = host.iter().map(|netns| (netns, Redirecting::OnHost));
    for (netns, redirecting) in on_host.chain(others.map(|netns| (netns, Redirecting::InWorkload)))
    {
        if seen.insert(netns.id) {
            checks.push(look_in(netns, redirecting, &programs));
        }
    }
    checks
}

/// Whether a program that is installed under another name is this one, too: the plain name is that
/// of either variant.
fn has_alias(programs: &[Program], name: &str) -> bool {
    let variant = if name.contains("legacy") {
        "xtables-legacy"
    } else {
        "xtables-nft"
    };
    name.starts_with("iptables")
        && programs.iter().any(|program| {
            program
                .real
                .file_name()
                .is_some_and(|file| file.to_string_lossy().starts_with(variant))
        })
}

/// Those that are installed, each once.
fn installed() -> Vec<Program> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .collect();
    let mut seen = BTreeSet::new();
    PROGRAMS
        .into_iter()
        .filter_map(|(name, args)| {
            let path = dirs
                .iter()
                .map(|dir| dir.join(name))
                .find(|at| at.exists())?;
            let real = path.canonicalize().ok()?;
            let is_new = seen.insert((real.clone(), name.starts_with("ip6")));
            is_new.then_some(Program {
                name,
                path,
                real,
                args,
            })
        })
        .collect()
}

fn look_in(netns: &Netns, counts: Redirecting, programs: &[Program]) -> Check {
    let what = format!("rules in netns {}", netns.path.display());
    let mut redirecting = Vec::new();
    let mut asked = Vec::new();
    let mut silent = Vec::new();
    for program in programs {
        match ask(netns, program) {
            Ok(text) => {
                asked.push(program.name);
                let found = if program.name == "nft" {
                    rules::in_json(&text, counts)
                } else {
                    rules::in_save(&text, counts)
                };
                let named = |rule| format!("{}: {rule}", program.name);
                redirecting.extend(found.into_iter().map(named));
            }
            Err(error) => silent.push(format!("{} did not answer: {error}", program.name)),
        }
    }
    if redirecting.is_empty() {
        let found = format!("none that redirects, say {}", asked.join(", "));
        return match (asked.is_empty(), silent.is_empty()) {
            (_, true) => Check::ok(what, found),
            (false, false) => Check::info(what, format!("{found}; {}", silent.join("; "))),
            (true, false) => Check::info(what, silent.join("; ")),
        };
    }
    let more = match redirecting.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    redirecting.truncate(SHOWN);
    let found = redirecting.join("; ") + &more;
    Check::finding(what, catalogue::REDIRECTING_RULES, found)
}

fn ask(netns: &Netns, program: &Program) -> Result<String, String> {
    let run = || {
        Command::new(&program.path)
            .args(program.args)
            .stdin(Stdio::null())
            .output()
    };
    // A child is in the namespace of the thread that starts it.
    let output = netns
        .run(run)
        .map_err(|error| format!("{error:#}"))?
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        let why = text.lines().next().unwrap_or("it said nothing").to_owned();
        Err(format!("{why} ({})", output.status))
    }
}
