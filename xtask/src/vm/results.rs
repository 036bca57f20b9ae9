//! What became of the tests of one machine.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use sidecar_vm_init::Record;

use super::qemu::Run;

/// How a test ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// With what it printed.
    Failed(String),
    /// It did not run, for this reason.
    Skipped(String),
}

/// A test that was run.
#[derive(Clone, PartialEq, Debug)]
pub struct Test {
    /// Its suite.
    pub suite: String,
    /// Its name within the suite.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub time: Duration,
}

/// One machine.
#[derive(Default, Debug)]
pub struct Results {
    /// How long it took until tests began; `None` if it did not get so far.
    pub boot: Option<Duration>,
    /// How long it took in all.
    pub total: Duration,
    /// What could not be had.
    pub troubles: Vec<String>,
    /// The tests by suite and name.
    pub tests: Vec<Test>,
    /// How long each suite took.
    pub suites: BTreeMap<String, Duration>,
}

/// One of libtest's lines in JSON.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "event")]
    what: String,
    name: Option<String>,
    exec_time: Option<f64>,
    stdout: Option<String>,
    message: Option<String>,
}

/// The suite that is running.
struct Current {
    name: String,
    since: Duration,
    tests: Vec<Test>,
    begun: BTreeMap<String, Duration>,
    /// What is no event of libtest: it is a program of its own.
    output: Vec<String>,
}

impl Results {
    /// Reads a machine's records.
    pub fn of(run: &Run) -> Self {
        let mut results = Self::default();
        let mut current = None;
        for (at, record) in &run.records {
            results.total = *at;
            results.take(*at, record, &mut current);
        }
        if let Some(failure) = &run.failure {
            match current {
                Some(mut current) => {
                    current.lose(results.total, failure);
                    results.tests.append(&mut current.tests);
                }
                // A machine that ends before its tests fails, whatever it ran.
                None => results.tests.push(Test {
                    suite: "boot".to_owned(),
                    name: "the machine".to_owned(),
                    outcome: Outcome::Failed(failure.clone()),
                    time: results.total,
                }),
            }
        }
        results
            .tests
            .sort_by(|a, b| (&a.suite, &a.name).cmp(&(&b.suite, &b.name)));
        results
    }

    fn take(&mut self, at: Duration, record: &Record, current: &mut Option<Current>) {
        match record {
            Record::Booted { .. } => self.boot = Some(at),
            Record::Trouble(what) => self.troubles.push(what.clone()),
            Record::Begun { suite } => *current = Some(Current::new(suite, at)),
            Record::Line { line, .. } => {
                if let Some(current) = current {
                    current.line(at, line);
                }
            }
            Record::Ended {
                suite,
                failure,
                skips,
            } => {
                let Some(mut ended) = current.take() else {
                    return;
                };
                self.suites
                    .insert(suite.clone(), at.saturating_sub(ended.since));
                ended.end(at, failure.as_deref(), skips);
                self.tests.append(&mut ended.tests);
            }
            Record::Finished => {}
        }
    }
}

impl Current {
    fn new(name: &str, since: Duration) -> Self {
        Self {
            name: name.to_owned(),
            since,
            tests: Vec::new(),
            begun: BTreeMap::new(),
            output: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, outcome: Outcome, time: Duration) {
        self.tests.push(Test {
            suite: self.name.clone(),
            name: name.to_owned(),
            outcome,
            time,
        });
    }

    fn line(&mut self, at: Duration, line: &str) {
        let Ok(event) = serde_json::from_str::<Event>(line) else {
            self.output.push(line.to_owned());
            return;
        };
        let (Some(name), "test") = (&event.name, event.kind.as_str()) else {
            return;
        };
        if event.what == "started" {
            self.begun.insert(name.clone(), at);
            return;
        }
        let outcome = match event.what.as_str() {
            "ok" => Outcome::Passed,
            "ignored" => Outcome::Skipped(event.message.unwrap_or_default()),
            "failed" => {
                let texts = [event.message, event.stdout];
                let texts: Vec<String> = texts.into_iter().flatten().collect();
                Outcome::Failed(texts.join("\n"))
            }
            // It tells that a test takes long.
            _ => return,
        };
        self.begun.remove(name);
        let time = Duration::try_from_secs_f64(event.exec_time.unwrap_or_default());
        self.add(name, outcome, time.unwrap_or_default());
    }

    fn end(&mut self, at: Duration, failure: Option<&str>, skips: &[String]) {
        if let Some(failure) = failure {
            let has_failed = |test: &Test| matches!(test.outcome, Outcome::Failed(_));
            if !self.begun.is_empty() || !self.tests.iter().any(has_failed) {
                self.lose(at, failure);
            }
        } else if self.tests.is_empty() && !self.output.is_empty() {
            // A program of its own is one test.
            self.add("all", Outcome::Passed, at.saturating_sub(self.since));
        }
        for skip in skips {
            // `SKIPPED CRATE::TEST: WHY`
            let Some((test, why)) = skip
                .strip_prefix("SKIPPED ")
                .and_then(|s| s.split_once(": "))
            else {
                continue;
            };
            let name = test.split_once("::").map_or(test, |(_, name)| name);
            for test in self.tests.iter_mut().filter(|test| test.name == name) {
                test.outcome = Outcome::Skipped(why.to_owned());
            }
        }
    }

    /// What had begun will not end.
    fn lose(&mut self, at: Duration, failure: &str) {
        for (name, since) in std::mem::take(&mut self.begun) {
            let why = format!("it had not ended: {failure}");
            self.add(&name, Outcome::Failed(why), at.saturating_sub(since));
        }
        let mut said = self.output.join("\n");
        said.push_str(failure);
        self.add("all", Outcome::Failed(said), at.saturating_sub(self.since));
    }
}

#[cfg(test)]
mod tests;
