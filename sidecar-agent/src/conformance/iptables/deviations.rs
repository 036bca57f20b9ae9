//! `deviations.yaml`: cases of `iptables-cases.yaml` that are decided otherwise on purpose.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cases::File;
use crate::conformance::{self, CaseResult, Malformed, Outcome};

/// The name of the file.
pub const FILE: &str = "deviations.yaml";

/// More than these would no longer be parity.
const MOST: usize = 8;

/// A case that is decided otherwise.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deviation {
    /// The case's id.
    pub id: String,
    /// Why iptables does what it does, and why that is an accident.
    pub reason: String,
    /// What users gain.
    pub gain: String,
}

/// The deviations, by the ids of their cases.
#[derive(Clone, Debug, Default)]
pub struct Deviations(BTreeMap<String, Deviation>);

impl Deviations {
    /// Reads the text of a file that goes with a file of cases.
    ///
    /// # Errors
    /// When it is no list of deviations, has more than eight, names a case that is not there or
    /// one twice, or does not say why.
    pub fn read(text: &str, cases: &File) -> Result<Self, Malformed> {
        let listed: Vec<Deviation> = conformance::read(text)?;
        if listed.len() > MOST {
            let count = listed.len();
            return Err(Malformed(format!(
                "{count} deviations are listed; at most {MOST} may be"
            )));
        }
        let mut deviations = BTreeMap::new();
        for deviation in listed {
            let id = deviation.id.clone();
            if cases.cases.iter().all(|case| case.id != id) {
                return Err(Malformed(format!("there is no case {id} to deviate from")));
            }
            if deviation.reason.trim().is_empty() || deviation.gain.trim().is_empty() {
                return Err(Malformed(format!("{id}: reason and gain must be said")));
            }
            if deviations.insert(id.clone(), deviation).is_some() {
                return Err(Malformed(format!("{id} is listed twice")));
            }
        }
        Ok(Self(deviations))
    }

    /// The results with deviations taken into account: a case that is listed must differ.
    #[must_use]
    pub fn apply(&self, results: Vec<CaseResult>) -> Vec<CaseResult> {
        let judge = |result: CaseResult| {
            let outcome = match (self.0.get(&result.name), result.outcome) {
                (None, outcome) => outcome,
                (Some(_), Outcome::Failed(_)) => Outcome::Passed,
                (Some(_), Outcome::Passed) => Outcome::Failed(format!(
                    "it is decided as iptables does; {FILE} must not list it"
                )),
            };
            CaseResult { outcome, ..result }
        };
        results.into_iter().map(judge).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::iptables::cases;

    fn file(ids: usize) -> File {
        let case = |id| {
            format!(
                "- {{id: case-{id}, options: o, direction: outbound, protocol: tcp, \
                 dst: 10.0.0.1, dport: 80, captured: false}}\n"
            )
        };
        let cases: String = (0..ids).map(case).collect();
        cases::read(&format!("optionSets: {{o: {{}}}}\ncases:\n{cases}")).unwrap()
    }

    fn entry(id: &str) -> String {
        format!("- {{id: {id}, reason: an accident, gain: something}}\n")
    }

    fn refused(text: &str) -> String {
        Deviations::read(text, &file(9)).unwrap_err().to_string()
    }

    #[test]
    fn a_listed_case_must_differ_and_no_other() {
        let deviations = Deviations::read(&entry("case-0"), &file(9)).unwrap();
        let result = |name: &str, outcome| CaseResult {
            name: name.to_owned(),
            outcome,
        };
        let differs = || Outcome::Failed("why".to_owned());
        let outcomes = |name| {
            let results = vec![result(name, Outcome::Passed), result(name, differs())];
            let judged = deviations.apply(results).into_iter();
            let passed: Vec<bool> = judged
                .map(|result| result.outcome == Outcome::Passed)
                .collect();
            passed
        };
        assert_eq!(outcomes("case-0"), [false, true]);
        assert_eq!(outcomes("case-1"), [true, false]);
    }

    #[test]
    fn what_is_listed_wrongly_is_refused() {
        assert!(Deviations::read("[]", &file(1)).unwrap().0.is_empty());
        assert!(refused(&entry("case-9")).contains("no case case-9"));
        assert!(refused(&entry("case-0").repeat(2)).contains("twice"));
        let blank = "- {id: case-0, reason: ' ', gain: something}";
        assert!(refused(blank).contains("must be said"));
        let many: String = (0..9).map(|id| entry(&format!("case-{id}"))).collect();
        assert!(refused(&many).contains("at most 8"));
        let eight: String = (0..8).map(|id| entry(&format!("case-{id}"))).collect();
        assert_eq!(Deviations::read(&eight, &file(9)).unwrap().0.len(), 8);
    }
}
