//! What an agent serves over HTTP.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use prometheus_parse::Value;

use crate::{Agent, DEADLINE};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// What the body is.
    pub content_type: String,
    /// The body.
    pub body: String,
}

/// Asks an agent for a path, at the address that its status tells.
///
/// # Errors
/// When it serves nothing, or does not answer.
pub fn get(agent: &Agent, path: &str) -> anyhow::Result<Answer> {
    let status = agent.status()?;
    let address = status["metrics"].as_str().context("nothing is served")?;
    get_at(address, path)
}

/// Asks the agent at an address for a path.
///
/// # Errors
/// When it does not answer.
pub fn get_at(address: &str, path: &str) -> anyhow::Result<Answer> {
    let client: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(DEADLINE))
        .http_status_as_error(false)
        .build()
        .into();
    let mut answer = client.get(format!("http://{address}{path}")).call()?;
    let content_type = answer.headers().get("content-type");
    Ok(Answer {
        code: answer.status().as_u16(),
        content_type: content_type
            .context("no content type")?
            .to_str()?
            .to_owned(),
        body: answer.body_mut().read_to_string()?,
    })
}

/// A metric as the document has it: type and labels.
pub type Documented = (String, BTreeSet<String>);

/// The table of `docs/metrics.md`, by name.
///
/// # Errors
/// When there is none.
pub fn documented() -> anyhow::Result<BTreeMap<String, Documented>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mut found = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, kind, _unit, labels, ..] = &cells[..] else {
            bail!("not a row: {row}")
        };
        let labels = labels.split(", ").map(|of| of.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        found.insert(
            name.trim_matches('`').to_owned(),
            ((*kind).to_owned(), labels),
        );
    }
    ensure!(!found.is_empty(), "the document has no table");
    Ok(found)
}

/// A page of metrics.
#[derive(Debug)]
pub struct Page {
    /// Families with their types, as the page declares them.
    pub families: BTreeMap<String, String>,
    samples: Vec<prometheus_parse::Sample>,
}

impl Page {
    /// Asks an agent for its metrics.
    ///
    /// # Errors
    /// When it has none, or they are not in the format of `OpenMetrics`.
    pub fn of(agent: &Agent) -> anyhow::Result<Self> {
        let answer = get(agent, "/metrics")?;
        if answer.code != 200 {
            bail!("{answer:?}");
        }
        if !answer
            .content_type
            .starts_with("application/openmetrics-text; version=1.0.0")
        {
            bail!("of type {}", answer.content_type);
        }
        Self::parse(&answer.body)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let Some(text) = text.strip_suffix("# EOF\n") else {
            bail!("it does not end with `# EOF`: {text}");
        };
        let mut families = BTreeMap::new();
        for declared in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = declared.split_once(' ').context("no type")?;
            if families.insert(name.to_owned(), kind.to_owned()).is_some() {
                bail!("{name} is declared twice");
            }
        }
        let lines = text.lines().map(|line| Ok(line.to_owned()));
        Ok(Self {
            families,
            samples: prometheus_parse::Scrape::parse(lines)?.samples,
        })
    }

    /// Names of the samples, each with its labels; a histogram's are one.
    #[must_use]
    pub fn names(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for sample in &self.samples {
            let labels = sample.labels.keys().cloned();
            let of_histogram = ["_sum", "_count"].iter().find_map(|suffix| {
                let family = sample.metric.strip_suffix(suffix)?;
                (self.families.get(family)? == "histogram").then_some(family)
            });
            let name = of_histogram.unwrap_or(&sample.metric);
            names.entry(name.to_owned()).or_default().extend(labels);
        }
        names
    }

    /// The sum of all samples of this name that have these labels, among others; `None`: there is
    /// none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let values: Vec<f64> = self
            .samples
            .iter()
            .filter(|sample| sample.metric == name)
            .filter(|sample| {
                let has = |(label, value): &(&str, &str)| sample.labels.get(label) == Some(value);
                labels.iter().all(has)
            })
            .filter_map(|sample| match sample.value {
                Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => Some(value),
                Value::Histogram(_) | Value::Summary(_) => None,
            })
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}
