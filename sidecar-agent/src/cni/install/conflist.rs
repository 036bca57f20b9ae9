//! Lists of plugins as text: ours put in and taken out, every other value left as it was written.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::cni::TYPE;

/// What comes in place of `cniVersion` where a configuration has none: the first version with
/// chains.
const OLDEST: &str = "0.3.1";

/// A file of a runtime's configuration.
#[derive(Debug)]
pub struct Conflist(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Conflist {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Conflist;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a network configuration")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Conflist, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Conflist(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[derive(Deserialize)]
struct Typed {
    #[serde(rename = "type")]
    kind: String,
}

fn is_ours(plugin: &RawValue) -> bool {
    serde_json::from_str::<Typed>(plugin.get()).is_ok_and(|plugin| plugin.kind == TYPE)
}

fn same(one: &str, other: &str) -> bool {
    let value = |text| serde_json::from_str::<serde_json::Value>(text).ok();
    value(one).is_some() && value(one) == value(other)
}

impl Conflist {
    /// Reads a list of plugins (`*.conflist`).
    ///
    /// # Errors
    /// If it is none, or an empty one, which runtimes pass over.
    pub fn read(text: &str) -> Result<Self, String> {
        let list: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if list.plugins()?.is_empty() {
            return Err("it has no plugins".into());
        }
        Ok(list)
    }

    /// Makes a list of a single plugin's configuration (`*.conf`, `*.json`).
    ///
    /// # Errors
    /// If it is none.
    pub fn of_one(text: &str) -> Result<Self, String> {
        let plugin: Box<RawValue> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        serde_json::from_str::<Typed>(text).map_err(|error| error.to_string())?;
        let Self(entries) = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let of = |name: &str| {
            let mut entries = entries.iter();
            entries
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        };
        let text = |text: &str| {
            RawValue::from_string(format!("{text:?}")).map_err(|error| error.to_string())
        };
        let version = match of("cniVersion") {
            // There were no lists before.
            Some(version) if !matches!(version.get(), r#""0.1.0""# | r#""0.2.0""# | r#""""#) => {
                version
            }
            _ => text(OLDEST)?,
        };
        let name = of("name").map_or_else(|| text("k8s-pod-network"), Ok)?;
        let plugins = RawValue::from_string(format!("[{}]", plugin.get()));
        Ok(Self(vec![
            ("cniVersion".into(), version),
            ("name".into(), name),
            (
                "plugins".into(),
                plugins.map_err(|error| error.to_string())?,
            ),
        ]))
    }

    /// Puts ours last, or in its place if it is there and says something else; `false`: it is there
    /// as it is to be.
    ///
    /// # Errors
    /// If it has no list of plugins.
    pub fn insert(&mut self, ours: &str) -> Result<bool, String> {
        let mut plugins = self.plugins()?;
        let ours = RawValue::from_string(ours.to_owned()).map_err(|error| error.to_string())?;
        match plugins.iter().position(|plugin| is_ours(plugin)) {
            Some(at)
                if plugins
                    .get(at)
                    .is_some_and(|plugin| same(plugin.get(), ours.get())) =>
            {
                return Ok(false);
            }
            Some(at) => {
                plugins.splice(at..=at, [ours]);
            }
            None => plugins.push(ours),
        }
        self.set_plugins(&plugins)?;
        Ok(true)
    }

    /// Takes ours out; `false`: it is not there.
    ///
    /// # Errors
    /// If it has no list of plugins.
    pub fn remove(&mut self) -> Result<bool, String> {
        let mut plugins = self.plugins()?;
        let before = plugins.len();
        plugins.retain(|plugin| !is_ours(plugin));
        if plugins.len() == before {
            return Ok(false);
        }
        self.set_plugins(&plugins)?;
        Ok(true)
    }

    /// The plugins, as they are written.
    ///
    /// # Errors
    /// If it has no list of them.
    pub fn plugins(&self) -> Result<Vec<Box<RawValue>>, String> {
        let mut entries = self.0.iter();
        let plugins = entries.find(|(key, _)| key == "plugins");
        let (_, plugins) = plugins.ok_or("it has no `plugins`")?;
        serde_json::from_str(plugins.get()).map_err(|error| format!("plugins: {error}"))
    }

    fn set_plugins(&mut self, plugins: &[Box<RawValue>]) -> Result<(), String> {
        let plugins: Vec<&str> = plugins.iter().map(|plugin| plugin.get()).collect();
        let text = format!("[\n    {}\n  ]", plugins.join(",\n    "));
        let text = RawValue::from_string(text).map_err(|error| error.to_string())?;
        for (key, value) in &mut self.0 {
            if key == "plugins" {
                value.clone_from(&text);
            }
        }
        Ok(())
    }
}

impl fmt::Display for Conflist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<String> = self
            .0
            .iter()
            .map(|(key, value)| {
                let key = serde_json::to_string(key).unwrap_or_default();
                format!("  {key}: {}", value.get())
            })
            .collect();
        write!(f, "{{\n{}\n}}\n", entries.join(",\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = r#"{"type":"sidecar-agent","timeoutSeconds":30}"#;
    /// Nothing that another reader of JSON would write the same way.
    const THEIRS: &str = r#"{"name": "k8s", "cniVersion": "0.4.0", "x": 1.10, "plugins": [
        {"type": "ptp",  "mtu": 1e3, "b": 12345678901234567890123, "a": "\u00e9"}
    ], "disableCheck": true}"#;

    #[test]
    fn ours_comes_and_goes_and_everything_else_stays_as_written() {
        let mut list = Conflist::read(THEIRS).unwrap();
        assert_eq!(list.insert(OURS), Ok(true));
        assert_eq!(
            list.insert(r#"{"timeoutSeconds": 30, "type": "sidecar-agent"}"#),
            Ok(false)
        );
        let text = list.to_string();
        let mut list = Conflist::read(&text).unwrap();
        let plugins = list.plugins().unwrap();
        let theirs = r#"{"type": "ptp",  "mtu": 1e3, "b": 12345678901234567890123, "a": "\u00e9"}"#;
        assert_eq!([plugins[0].get(), plugins[1].get()], [theirs, OURS]);
        assert!(text.contains(r#""x": 1.10"#), "{text}");
        let keys: Vec<&str> = list.0.iter().map(|(key, _)| &**key).collect();
        assert_eq!(keys, ["name", "cniVersion", "x", "plugins", "disableCheck"]);
        // With other settings it is replaced where it is.
        let other = r#"{"type":"sidecar-agent","timeoutSeconds":5}"#;
        assert_eq!(list.insert(other), Ok(true));
        assert_eq!(list.plugins().unwrap()[1].get(), other);
        assert_eq!(list.remove(), Ok(true));
        assert_eq!(list.remove(), Ok(false));
        assert_eq!(list.plugins().unwrap().len(), 1);
        assert_eq!(list.plugins().unwrap()[0].get(), theirs);
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let one = r#"{"cniVersion":"1.0.0","name":"net","type":"bridge","n":1.0}"#;
        let list = Conflist::of_one(one).unwrap().to_string();
        let read = Conflist::read(&list).unwrap();
        assert_eq!(read.plugins().unwrap()[0].get(), one);
        assert!(list.contains(r#""cniVersion": "1.0.0""#) && list.contains(r#""name": "net""#));
        let old = Conflist::of_one(r#"{"cniVersion":"0.2.0","type":"bridge"}"#).unwrap();
        let old = old.to_string();
        assert!(
            old.contains(r#""cniVersion": "0.3.1""#) && old.contains("k8s-pod-network"),
            "{old}"
        );
    }

    #[test]
    fn what_runtimes_pass_over_is_refused() {
        for none in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"plugins":[]}"#,
            r#"{"plugins":{}}"#,
        ] {
            assert!(Conflist::read(none).is_err(), "{none}");
        }
        for none in ["", "{}", r#"{"plugins":[]}"#, r#"{"type":1}"#] {
            assert!(Conflist::of_one(none).is_err(), "{none}");
        }
    }
}
