//! The shape of resources as data, and the one walk that checks a document against it.
//!
//! A schema says what the CRD schemas of istio/api (b8f8791d9653) say: types, required fields,
//! enums, limits. Decoding after a clean check needs no error handling of its own.

use super::{
    catalogue,
    diagnostic::Finding,
    tree::{Node, Value, join},
};

/// Largest `uint32`, the type of port numbers.
pub const MAX_U32: i128 = u32::MAX as i128;
/// Largest `int32`, the type of limits.
pub const MAX_I32: i128 = i32::MAX as i128;

/// What a field may hold.
pub enum Type {
    /// Anything; not looked at.
    Any,
    /// A string.
    Text,
    /// A string of at most so many characters without `*` (labels of a selector).
    Label(usize),
    /// A boolean.
    Bool,
    /// An integer within limits, both inclusive.
    Int(i128, i128),
    /// A number.
    Number,
    /// An integer, or a string (Kubernetes `IntOrString`).
    IntOrText,
    /// One of these strings.
    Enum(&'static [&'static str]),
    /// A duration.
    Duration(Floor),
    /// A sequence with limits on its length, both inclusive.
    List(&'static Type, usize, usize),
    /// A mapping with any keys, at most so many.
    Map(&'static Type, usize),
    /// A mapping with known keys.
    Object(&'static Object),
}

/// Lower limit of a duration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Floor {
    /// None.
    None,
    /// 1ms.
    Millisecond,
}

/// A mapping with known keys.
pub struct Object {
    /// The keys.
    pub fields: &'static [Field],
    /// What other keys mean.
    pub unknown: Unknown,
    /// Keys of which at most one may be there.
    pub exclusive: &'static [&'static str],
}

/// What a key means that an object's schema does not know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// A mistake.
    Error,
    /// Something that is not used.
    Warning,
    /// Nothing.
    Silent,
}

/// A field of an object.
pub struct Field {
    /// Its key.
    pub name: &'static str,
    /// What it may hold.
    pub of: Type,
    /// Whether it must be there.
    pub required: bool,
    /// Whether only a layer 7 proxy can honour it.
    pub proxy: bool,
}

/// A field that may be absent.
#[must_use]
pub const fn optional(name: &'static str, of: Type) -> Field {
    Field {
        name,
        of,
        required: false,
        proxy: false,
    }
}

/// A field that must be there.
#[must_use]
pub const fn required(name: &'static str, of: Type) -> Field {
    Field {
        name,
        of,
        required: true,
        proxy: false,
    }
}

/// A field that only a layer 7 proxy can honour.
#[must_use]
pub const fn proxied(name: &'static str, of: Type) -> Field {
    Field {
        name,
        of,
        required: false,
        proxy: true,
    }
}

/// An object whose other keys are mistakes.
#[must_use]
pub const fn strict(fields: &'static [Field]) -> Object {
    Object {
        fields,
        unknown: Unknown::Error,
        exclusive: &[],
    }
}

/// An object that has more keys than anybody here needs.
#[must_use]
pub const fn open(fields: &'static [Field]) -> Object {
    Object {
        fields,
        unknown: Unknown::Silent,
        exclusive: &[],
    }
}

/// A sequence of any length.
#[must_use]
pub const fn list(of: &'static Type) -> Type {
    Type::List(of, 0, usize::MAX)
}

/// A mapping of any size.
#[must_use]
pub const fn map(of: &'static Type) -> Type {
    Type::Map(of, usize::MAX)
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Checked {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Paths of fields that only a layer 7 proxy can honour.
    pub left_to_proxy: Vec<String>,
}

/// Checks a node against a schema; `path` is the node's own.
#[must_use]
pub fn check(node: &Node, schema: &'static Object, path: &str) -> Checked {
    let mut checked = Checked::default();
    checked.object(node, schema, path);
    checked
}

impl Checked {
    fn object(&mut self, node: &Node, schema: &'static Object, path: &str) {
        let Value::Map(entries) = &node.value else {
            return self.wrong_type(node, "a mapping", path);
        };
        for (key, value) in entries {
            let path = join(path, &key.name);
            match schema.fields.iter().find(|field| field.name == key.name) {
                // Null is the same as absent.
                Some(_) if value.value == Value::Null => {}
                Some(field) => {
                    if field.proxy {
                        self.left_to_proxy.push(path.clone());
                    }
                    self.value(value, &field.of, &path);
                }
                None => self.unknown(&key.name, schema, path),
            }
        }
        for field in schema.fields.iter().filter(|field| field.required) {
            if node.get(field.name).is_none() {
                let message = format!("`{}` is required", field.name);
                self.findings.push(
                    Finding::new(catalogue::MISSING_FIELD, join(path, field.name), message)
                        .remedy(format!("add `{}`", field.name)),
                );
            }
        }
        let mut present = schema
            .exclusive
            .iter()
            .filter(|name| node.get(name).is_some());
        if let (Some(first), Some(second)) = (present.next(), present.next()) {
            self.findings.push(Finding::new(
                catalogue::EXCLUSIVE_FIELDS,
                join(path, second),
                format!("`{first}` and `{second}` exclude each other"),
            ));
        }
    }

    fn unknown(&mut self, name: &str, schema: &Object, path: String) {
        let code = match schema.unknown {
            Unknown::Error => catalogue::UNKNOWN_FIELD,
            Unknown::Warning => catalogue::UNUSED_FIELD,
            Unknown::Silent => return,
        };
        let names = schema.fields.iter().map(|field| field.name);
        let mut finding = Finding::new(code, path, format!("unknown field `{name}`")).on_key();
        if let Some(near) = nearest(name, names.clone()) {
            finding = finding.remedy(format!("did you mean `{near}`?"));
        } else if schema.unknown == Unknown::Error {
            let names: Vec<_> = names.collect();
            finding = finding.remedy(format!("remove it; known are {}", names.join(", ")));
        }
        self.findings.push(finding);
    }

    fn value(&mut self, node: &Node, of: &'static Type, path: &str) {
        match (of, &node.value) {
            (Type::Any, _)
            | (Type::Text, Value::Text(_))
            | (Type::Bool, Value::Bool(_))
            | (Type::Number, Value::Int(_) | Value::Float(_))
            | (Type::IntOrText, Value::Int(_) | Value::Text(_)) => {}
            (Type::Label(max), Value::Text(text)) => {
                if text.chars().count() > *max {
                    let message = format!("at most {max} characters are allowed");
                    self.out_of_range(path, message);
                }
                if text.contains('*') {
                    self.findings.push(Finding::new(
                        catalogue::BAD_SELECTOR,
                        path,
                        format!("`{text}`: `*` is not a wildcard in a selector"),
                    ));
                }
            }
            (Type::Int(min, max), Value::Int(int)) => {
                if int < min || int > max {
                    self.out_of_range(path, format!("{int} is not within {min}..{max}"));
                }
            }
            (Type::Enum(values), Value::Text(text)) => self.one_of(text, values, path),
            (Type::Duration(floor), Value::Text(text)) => self.duration(text, *floor, path),
            (Type::List(of, min, max), Value::List(items)) => {
                self.length(items.len(), *min, *max, path);
                for (i, item) in items.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    if item.value == Value::Null {
                        let message = "an element of the list is empty";
                        self.findings
                            .push(Finding::new(catalogue::WRONG_TYPE, path, message));
                    } else {
                        self.value(item, of, &path);
                    }
                }
            }
            (Type::Map(of, max), Value::Map(entries)) => {
                self.length(entries.len(), 0, *max, path);
                for (key, value) in entries {
                    self.value(value, of, &format!("{path}[{}]", key.name));
                }
            }
            (Type::Object(schema), _) => self.object(node, schema, path),
            _ => self.wrong_type(node, of.name(), path),
        }
    }

    fn one_of(&mut self, text: &str, values: &'static [&'static str], path: &str) {
        if values.contains(&text) {
            return;
        }
        let mut finding = Finding::new(
            catalogue::BAD_ENUM,
            path,
            format!("`{text}` is not one of {}", values.join(", ")),
        );
        if let Some(near) = nearest(&text.to_ascii_uppercase(), values.iter().copied()) {
            finding = finding.remedy(format!("did you mean `{near}`?"));
        }
        self.findings.push(finding);
    }

    fn duration(&mut self, text: &str, floor: Floor, path: &str) {
        let message = match nanoseconds(text) {
            None => format!("`{text}` is not a duration"),
            Some(n) if floor == Floor::Millisecond && n < NANOS_PER_MILLI => {
                format!("`{text}` is shorter than 1ms")
            }
            Some(_) => return,
        };
        self.findings
            .push(Finding::new(catalogue::BAD_DURATION, path, message));
    }

    fn length(&mut self, len: usize, min: usize, max: usize, path: &str) {
        if len < min {
            self.out_of_range(path, format!("{len} elements; at least {min} are needed"));
        } else if len > max {
            self.out_of_range(path, format!("{len} elements; at most {max} are allowed"));
        }
    }

    fn out_of_range(&mut self, path: &str, message: String) {
        self.findings
            .push(Finding::new(catalogue::OUT_OF_RANGE, path, message));
    }

    fn wrong_type(&mut self, node: &Node, expected: &str, path: &str) {
        let message = format!("expected {expected}, found {}", node.describe());
        let mut finding = Finding::new(catalogue::WRONG_TYPE, path, message);
        match (&node.value, expected) {
            (Value::Text(text), "an integer") if text.parse::<i128>().is_ok() => {
                finding = finding.remedy("remove the quotes");
            }
            (Value::Bool(_) | Value::Int(_) | Value::Float(_), "a string") => {
                finding = finding.remedy("put the value in quotes");
            }
            _ => {}
        }
        self.findings.push(finding);
    }
}

impl Type {
    fn name(&self) -> &'static str {
        match self {
            Self::Any => "anything",
            Self::Text | Self::Label(_) | Self::Enum(_) => "a string",
            Self::Bool => "true or false",
            Self::Int(..) => "an integer",
            Self::Number => "a number",
            Self::IntOrText => "an integer or a string",
            Self::Duration(_) => "a duration such as `10s`",
            Self::List(..) => "a list",
            Self::Map(..) | Self::Object(_) => "a mapping",
        }
    }
}

/// The candidate that `name` was probably meant to be.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |candidate: &&'a str| strsim::jaro_winkler(name, candidate);
    let best = candidates
        .into_iter()
        .map(|c| (near(&c), c))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.85).then_some(best.1)
}

/// Nanoseconds of a millisecond.
pub const NANOS_PER_MILLI: i128 = 1_000_000;

/// Reads a duration as Go's `time.ParseDuration` does, which is what the API server's schema and
/// Istio use: an optional sign, then numbers with units (`1h30m`, `0.5s`, `10ms`), or `0`.
/// Fractions below a nanosecond are cut off.
#[must_use]
pub fn nanoseconds(text: &str) -> Option<i128> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    let mut parts = 0;
    while !rest.is_empty() {
        let number_len = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_len);
        let unit_len = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        rest = after;
        total = total.checked_add(scaled(number, unit_nanos(unit)?)?)?;
        parts += 1;
    }
    // Go keeps durations in 64 bits.
    (parts > 0 && total <= i128::from(i64::MAX)).then_some(if negative { -total } else { total })
}

fn unit_nanos(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => NANOS_PER_MILLI,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let mut nanos = if whole.is_empty() {
        0
    } else {
        whole.parse::<i128>().ok()?
    };
    nanos = nanos.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        nanos = nanos.checked_add(i128::from(digit - b'0') * place)?;
    }
    Some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tree::{Source, parse};

    static ITEM: Object = strict(&[
        required("number", Type::Int(0, MAX_U32)),
        optional("mode", Type::Enum(&["DEFAULT", "NONE"])),
        optional("timeout", Type::Duration(Floor::Millisecond)),
        proxied("tls", Type::Any),
    ]);
    static ROOT: Object = strict(&[
        optional("items", list(&Type::Object(&ITEM))),
        optional("labels", Type::Map(&Type::Label(3), 1)),
    ]);

    fn findings(text: &str) -> Vec<(&'static str, String, Option<String>)> {
        let (nodes, diagnostics) = parse(&Source::new("t", text));
        assert_eq!(diagnostics, []);
        let checked = check(&nodes[0], &ROOT, "spec");
        checked
            .findings
            .into_iter()
            .map(|f| (f.code.id, f.field, f.remedy))
            .collect()
    }

    #[test]
    fn everything_wrong_is_found_at_once() {
        let found = findings(
            "items:\n- {number: \"80\", mode: none, timout: 1s, timeout: 1}\n- {timeout: 10us, number: -1}\n- null\n- x\nlabels: {a: abcd, b: \"*\", c: 1}\nzzz: 1\n",
        );
        let codes: Vec<_> = found
            .iter()
            .map(|(code, field, _)| (*code, field.as_str()))
            .collect();
        assert_eq!(
            codes,
            [
                ("SCA0020", "spec.items[0].number"),
                ("SCA0024", "spec.items[0].mode"),
                ("SCA0022", "spec.items[0].timout"),
                ("SCA0020", "spec.items[0].timeout"),
                ("SCA0026", "spec.items[1].timeout"),
                ("SCA0025", "spec.items[1].number"),
                ("SCA0020", "spec.items[2]"),
                ("SCA0020", "spec.items[3]"),
                ("SCA0025", "spec.labels"),
                ("SCA0025", "spec.labels[a]"),
                ("SCA0101", "spec.labels[b]"),
                ("SCA0020", "spec.labels[c]"),
                ("SCA0022", "spec.zzz"),
            ]
        );
        assert_eq!(found[0].2.as_deref(), Some("remove the quotes"));
        assert_eq!(found[1].2.as_deref(), Some("did you mean `NONE`?"));
        assert_eq!(found[2].2.as_deref(), Some("did you mean `timeout`?"));
    }

    #[test]
    fn fields_of_the_proxy_are_noted() {
        let (nodes, _) = parse(&Source::new("t", "items: [{number: 1, tls: {a: 1}}]"));
        let checked = check(&nodes[0], &ROOT, "spec");
        assert!(checked.findings.is_empty());
        assert_eq!(checked.left_to_proxy, ["spec.items[0].tls"]);
    }

    #[test]
    fn durations_are_read_as_go_does() {
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("1ms", Some(1_000_000)),
            ("1h1m1.5s", Some(3_661_500_000_000)),
            (".5s", Some(500_000_000)),
            ("5.s", Some(5_000_000_000)),
            ("-1us", Some(-1000)),
            ("0.0005s", Some(500_000)),
            ("", None),
            ("-", None),
            ("1", None),
            ("1d", None),
            ("1.2.3s", None),
            (".s", None),
            ("s", None),
            ("1 s", None),
            ("99999999999999999999999999999999999999999h", None),
            ("9999999h", None),
        ] {
            assert_eq!(nanoseconds(text), expected, "{text:?}");
        }
    }
}
