//! What `doctor` has to say. Pure.

use serde::Serialize;

use super::catalogue::{Code, Severity};

/// Exit code when all is well.
pub const WELL: u8 = 0;
/// Exit code when something is missing that the agent cannot do without.
pub const MISSING: u8 = 1;
/// Exit code when there are warnings only.
pub const WARNINGS: u8 = 3;

/// What came of looking at one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Neither good nor bad.
    Info,
    /// Something works less well.
    Warning,
    /// The agent cannot do without.
    Missing,
}

impl State {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Missing => "missing",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: String,
    /// What came of it.
    pub state: State,
    /// What was found.
    pub found: String,
    /// Present where something is wrong.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub finding: Option<Finding>,
}

/// Something that is wrong, in the words of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its code.
    pub code: &'static str,
    /// What is wrong.
    pub name: &'static str,
    /// What does not work because of it.
    pub lost: &'static str,
    /// How to mend it.
    pub remedy: &'static str,
}

impl Check {
    /// All is well.
    pub fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::plain(check, State::Ok, found)
    }

    /// Something to know.
    pub fn info(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::plain(check, State::Info, found)
    }

    /// Something is wrong.
    pub fn finding(
        check: impl Into<String>,
        code: &'static Code,
        found: impl Into<String>,
    ) -> Self {
        let state = match code.severity {
            Severity::Warning => State::Warning,
            Severity::Missing => State::Missing,
        };
        Self {
            finding: Some(Finding {
                code: code.id,
                name: code.name,
                lost: code.lost,
                remedy: code.remedy,
            }),
            ..Self::plain(check, state, found)
        }
    }

    /// Says what is lost better than the catalogue, which knows no details.
    #[must_use]
    pub fn losing(mut self, lost: &'static str) -> Self {
        if let Some(finding) = &mut self.finding {
            finding.lost = lost;
        }
        self
    }

    fn plain(check: impl Into<String>, state: State, found: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            state,
            found: found.into(),
            finding: None,
        }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many are missing.
    pub missing: usize,
    /// How many warnings there are.
    pub warnings: usize,
    /// One after the other.
    pub checks: Vec<Check>,
}

impl Report {
    /// Counts.
    #[must_use]
    pub fn new(checks: Vec<Check>) -> Self {
        let count = |state| checks.iter().filter(|check| check.state == state).count();
        Self {
            missing: count(State::Missing),
            warnings: count(State::Warning),
            checks,
        }
    }

    /// The exit code: [`WELL`], [`MISSING`] or [`WARNINGS`].
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match (self.missing, self.warnings) {
            (0, 0) => WELL,
            (0, _) => WARNINGS,
            _ => MISSING,
        }
    }

    /// What is wrong, as text for people: what, what is lost, how to mend it.
    pub fn findings(&self) -> impl Iterator<Item = (&Check, String)> {
        self.checks.iter().filter_map(|check| {
            let finding = check.finding.as_ref()?;
            let text = format!(
                "{}[{}]: {}\n  found:  {}: {}\n  lost:   {}\n  remedy: {}",
                check.state.name(),
                finding.code,
                finding.name,
                check.check,
                check.found,
                finding.lost,
                finding.remedy
            );
            Some((check, text))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::catalogue::{MAPS, NESTED};

    #[test]
    fn the_worst_decides_the_exit_code() {
        let ok = Check::ok("a", "b");
        let warning = Check::finding("a", NESTED, "b");
        let missing = Check::finding("a", MAPS, "b");
        for (checks, code) in [
            (vec![], WELL),
            (vec![ok.clone(), Check::info("a", "b")], WELL),
            (vec![ok.clone(), warning.clone()], WARNINGS),
            (vec![warning, missing, ok], MISSING),
        ] {
            assert_eq!(Report::new(checks).exit_code(), code);
        }
    }

    #[test]
    fn a_finding_tells_what_is_lost_and_how_to_mend_it() {
        let report = Report::new(vec![
            Check::ok("a", "b"),
            Check::finding("maps", MAPS, "EPERM").losing("all"),
        ]);
        let texts: Vec<_> = report.findings().map(|(_, text)| text).collect();
        let [text] = &texts[..] else {
            panic!("{texts:?}")
        };
        let beginning = "missing[SCD0102]: the BPF maps cannot be made\n  \
                         found:  maps: EPERM\n  lost:   all\n  remedy: use kernel";
        assert!(text.starts_with(beginning), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["missing"], 1);
        assert_eq!(json["checks"][1]["code"], "SCD0102");
        assert_eq!(json["checks"][0].get("code"), None);
    }
}
