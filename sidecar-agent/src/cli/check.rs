//! `check`: what is wrong with files, and whether that is a failure.

use std::{
    fmt,
    io::{IsTerminal, Read, stdin, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;

use super::{
    inputs::CompatArg,
    output::{Format, print},
    render,
};
use crate::{
    compile,
    model::{
        Snapshot,
        diagnostic::{Diagnostic, Severity},
    },
    source::files,
};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files or directories of resources, or `-` for standard input.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    compat: CompatArg,
    #[command(flatten)]
    format: Format,
}

/// Reads, validates and analyses; prints what was found.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let (standard_input, paths): (Vec<&PathBuf>, Vec<&PathBuf>) =
        args.paths.iter().partition(|path| *path == Path::new("-"));
    let mut read = files::read(&paths.into_iter().cloned().collect::<Vec<_>>());
    if !standard_input.is_empty() {
        let mut text = String::new();
        let result = stdin().read_to_string(&mut text).map(|_| text.into());
        read.push(("<stdin>".into(), result));
    }
    let mut found = files::Store::new(args.compat.compat).update(read);
    let node = compile::plans(&found.snapshot);
    found
        .diagnostics
        .extend(found.places.diagnostics(&node.findings));
    let unused = compile::unused_sidecars(&found.snapshot, &node);
    found.diagnostics.extend(found.places.diagnostics(&unused));
    let report = json(&found.snapshot, &found.diagnostics);
    print(args.format, &report, || {
        text(&found.snapshot, &found.diagnostics, stdout().is_terminal())
    })?;
    let summary = Summary::of(&found.snapshot, &found.diagnostics);
    Ok(ExitCode::from(summary.exit_code()))
}

/// Exit code when nothing was found.
pub const CLEAN: u8 = 0;
/// Exit code when there are errors.
pub const ERRORS: u8 = 1;
/// Exit code when there are warnings only.
pub const WARNINGS: u8 = 3;

/// How much was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Resources that are used.
    pub resources: usize,
    /// Findings because of which a resource is not used.
    pub errors: usize,
    /// Other findings.
    pub warnings: usize,
}

impl Summary {
    /// Counts.
    #[must_use]
    pub fn of(snapshot: &Snapshot, diagnostics: &[Diagnostic]) -> Self {
        let Snapshot {
            sidecars,
            services,
            service_entries,
            virtual_services,
            workloads,
            ..
        } = snapshot;
        let count = |severity| {
            diagnostics
                .iter()
                .filter(|found| found.severity == severity)
                .count()
        };
        Self {
            resources: sidecars.len()
                + services.len()
                + service_entries.len()
                + virtual_services.len()
                + workloads.len(),
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
        }
    }

    /// The exit code: [`CLEAN`], [`ERRORS`] or [`WARNINGS`].
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match (self.errors, self.warnings) {
            (0, 0) => CLEAN,
            (0, _) => WARNINGS,
            _ => ERRORS,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |n: usize, what: &str| match n {
            1 => format!("1 {what}"),
            n => format!("{n} {what}s"),
        };
        let Self {
            resources,
            errors,
            warnings,
        } = *self;
        write!(
            f,
            "{}, {}, {}",
            counted(resources, "resource"),
            counted(errors, "error"),
            counted(warnings, "warning")
        )
    }
}

/// The report for people: all diagnostics in the order of their places, and the summary.
#[must_use]
pub fn text(snapshot: &Snapshot, diagnostics: &[Diagnostic], colour: bool) -> String {
    let summary = Summary::of(snapshot, diagnostics);
    format!("{}{summary}\n", render::text(&sorted(diagnostics), colour))
}

/// The report for programs: `summary` and `diagnostics`.
#[must_use]
pub fn json(snapshot: &Snapshot, diagnostics: &[Diagnostic]) -> serde_json::Value {
    serde_json::json!({
        "summary": Summary::of(snapshot, diagnostics),
        "diagnostics": render::json(&sorted(diagnostics)),
    })
}

/// In the order of files, lines and columns; what has no place comes last.
fn sorted(diagnostics: &[Diagnostic]) -> Vec<Diagnostic> {
    let mut sorted = diagnostics.to_vec();
    sorted.sort_by(|a, b| {
        let place = |found: &'_ Diagnostic| {
            let at = found.location.as_ref();
            at.map(|at| (at.file.clone(), at.line, at.column)).ok_or(())
        };
        match (place(a), place(b)) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (a, b) => a.is_err().cmp(&b.is_err()),
        }
    });
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::files::Store;

    #[test]
    fn everything_is_reported_in_order_and_counted() {
        let update = Store::default().update(vec![
            (
                "b.yaml".into(),
                Ok("apiVersion: v1\nkind: Pod\n---\n[\n".into()),
            ),
            (
                "a.yaml".into(),
                Ok("kind: Sidecr\napiVersion: networking.istio.io/v1\n".into()),
            ),
            (
                "c.yaml".into(),
                Ok("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {}}".into()),
            ),
            ("d.yaml".into(), Err(std::io::Error::other("no luck"))),
        ]);
        let report = text(&update.snapshot, &update.diagnostics, false);
        let codes: Vec<_> = report
            .lines()
            .filter_map(|line| line.split_once("[SCA")?.1.get(..4))
            .collect();
        assert_eq!(codes, ["0005", "0007", "0001", "0003"], "{report}");
        assert!(
            report.ends_with("1 resource, 3 errors, 1 warning\n"),
            "{report}"
        );
        let json = json(&update.snapshot, &update.diagnostics);
        assert_eq!(json["summary"]["errors"], 3);
        assert_eq!(json["diagnostics"][0]["location"]["file"], "a.yaml");
    }

    #[test]
    fn exit_codes() {
        let summary = |errors, warnings| Summary {
            resources: 1,
            errors,
            warnings,
        };
        assert_eq!(summary(0, 0).exit_code(), CLEAN);
        assert_eq!(summary(0, 1).exit_code(), WARNINGS);
        assert_eq!(summary(1, 1).exit_code(), ERRORS);
    }
}
