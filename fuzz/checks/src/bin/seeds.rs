//! Makes the fuzz targets' first inputs of the test vectors: `seeds CASES DIR`.
//!
//! Writes `DIR/model/*` (Sidecars), `DIR/grammars/*` (texts of fields), `DIR/words`, a dictionary
//! of the fields' names and short values, and `DIR/noise/*` for what is made of any bytes.

use std::{
    collections::BTreeSet,
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

/// How many inputs of noise, and bytes of each.
const NOISE: (u64, usize) = (64, 1024);
/// Longest word of the dictionary.
const LONGEST_WORD: usize = 40;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let (Some(cases), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: seeds CASES DIR".into());
    };
    let mut found = Found::default();
    for file in ["validation-cases.yaml", "cgroup-cases.yaml"] {
        let path = cases.join(file);
        let text = fs::read_to_string(&path)
            .map_err(|cause| format!("cannot read {}: {cause}", path.display()))?;
        let cases: Value = serde_saphyr::from_str(&text)
            .map_err(|cause| format!("cannot parse {}: {cause}", path.display()))?;
        found.walk(&cases);
    }
    write(&dir.join("model"), &found.sidecars)?;
    write(&dir.join("grammars"), &found.texts)?;
    let (inputs, bytes) = NOISE;
    write(
        &dir.join("noise"),
        (1..=inputs).map(|seed| noise(seed, bytes)),
    )?;
    let quoted: Vec<String> = found
        .words
        .iter()
        .map(|word| format!("\"{word}\""))
        .collect();
    fs::write(dir.join("words"), quoted.join("\n") + "\n")?;
    Ok(())
}

/// What the cases are made of, each once.
#[derive(Default)]
struct Found {
    sidecars: BTreeSet<String>,
    texts: BTreeSet<String>,
    words: BTreeSet<String>,
}

impl Found {
    fn walk(&mut self, value: &Value) {
        match value {
            Value::String(text) => {
                self.word(text);
                self.texts.insert(text.clone());
            }
            Value::Array(items) => items.iter().for_each(|item| self.walk(item)),
            Value::Object(fields) => {
                if let Some(spec) = fields.get("spec") {
                    self.sidecar(spec, fields.get("namespace"));
                }
                for (name, value) in fields {
                    self.word(name);
                    self.walk(value);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn sidecar(&mut self, spec: &Value, namespace: Option<&Value>) {
        let document = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "Sidecar",
            "metadata": {"name": "seed", "namespace": namespace},
            "spec": spec,
        });
        // JSON is YAML.
        self.sidecars.insert(format!("{document:#}"));
    }

    /// Only what needs no escape in a dictionary.
    fn word(&mut self, text: &str) {
        let plain = |c: char| (c.is_ascii_graphic() || c == ' ') && !matches!(c, '"' | '\\');
        if (2..=LONGEST_WORD).contains(&text.len()) && text.chars().all(plain) {
            self.words.insert(text.to_owned());
        }
    }
}

/// Bytes without meaning, the same each time (Marsaglia's xorshift).
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    };
    (0..bytes).map(|_| next()).collect()
}

fn write(
    dir: &Path,
    inputs: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(dir).map_err(|cause| format!("cannot create {}: {cause}", dir.display()))?;
    for (number, input) in inputs.into_iter().enumerate() {
        let path = dir.join(number.to_string());
        fs::write(&path, input)
            .map_err(|cause| format!("cannot write {}: {cause}", path.display()))?;
    }
    Ok(())
}
