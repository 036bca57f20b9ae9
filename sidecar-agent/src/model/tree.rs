//! YAML text as trees of nodes that know where they were written.
//!
//! Parsing, merge keys, anchors, duplicate keys and limits are serde-saphyr's work; what is added
//! here is a tree that keeps YAML's types (a quoted `"80"` stays a string) and byte ranges, and
//! the isolation of documents from each other.

use std::{
    fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    Error, Location as YamlLocation, MessageFormatter, Spanned, UserMessageFormatter,
};

use super::{
    catalogue,
    diagnostic::{Diagnostic, Location},
};

/// Largest text that is parsed, in bytes.
pub const MAX_BYTES: usize = 64 << 20;
/// Deepest nesting of mappings and sequences.
const MAX_DEPTH: usize = 64;
/// Most nodes of one document: a `List` of some 50 000 services.
const MAX_NODES: usize = 2_000_000;
/// Most nodes that aliases may add to a document.
const MAX_ALIASED: usize = 100_000;

/// Stack for parsing, as the parser recurses: what `MAX_DEPTH` levels need without optimisation
/// (measured: 3 MiB), with room to spare. The stacks of most threads are smaller.
const STACK: usize = 16 << 20;

/// A text and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file, or a pseudo-name such as `<stdin>`.
    pub file: Arc<str>,
    /// The whole text.
    pub text: Arc<str>,
    /// Where each line begins.
    lines: Arc<[usize]>,
}

impl Source {
    /// Names a text.
    #[must_use]
    pub fn new(file: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        let after = text.match_indices('\n').map(|(newline, _)| newline + 1);
        Self {
            file: file.into(),
            lines: std::iter::once(0).chain(after).collect(),
            text,
        }
    }

    /// The place of a byte range; a range outside the text is moved to its end.
    #[must_use]
    pub fn location(&self, span: Range<usize>) -> Location {
        let start = self.text.floor_char_boundary(span.start);
        let end = self.text.ceil_char_boundary(span.end.max(start));
        let line = self.lines.partition_point(|begin| *begin <= start);
        let begin = line.checked_sub(1).and_then(|at| self.lines.get(at));
        let before = self.text.get(begin.copied().unwrap_or(0)..start);
        let column = before.unwrap_or_default().chars();
        Location {
            file: self.file.clone(),
            line: saturate(line),
            // A byte order mark takes no column.
            column: saturate(column.filter(|&c| c != '\u{feff}').count() + 1),
            span: start..end,
            text: self.text.clone(),
        }
    }

    /// The place of a whole line, by its 1-based number.
    #[must_use]
    pub fn line(&self, line: u32) -> Location {
        let at = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
        let start = self.lines.get(at).copied().unwrap_or(self.text.len());
        let rest = self.text.get(start..).unwrap_or_default();
        let len = rest.lines().next().map_or(0, |line| line.trim_end().len());
        self.location(start..start + len)
    }
}

fn saturate(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Byte range in the source; empty at the first key of a block mapping. What comes in through
    /// an alias or a merge key is where the alias is.
    pub span: Range<usize>,
}

/// A value with the type YAML gives it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~`, or nothing.
    Null,
    /// `true`, `yes`, `on`, ... without quotes.
    Bool(bool),
    /// An integer.
    Int(i128),
    /// Another number.
    Float(f64),
    /// Everything else, and everything in quotes.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order written; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key.
    pub name: String,
    /// Byte range in the source.
    pub span: Range<usize>,
}

impl Node {
    /// The value of a mapping's key; `None` where the key is absent or null, which is the same to
    /// the Kubernetes API, and where this is no mapping.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        let (_, node) = self.entries().iter().find(|(k, _)| k.name == key)?;
        (node.value != Value::Null).then_some(node)
    }

    /// The entries of a mapping; empty where this is none.
    #[must_use]
    pub fn entries(&self) -> &[(Key, Self)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The elements of a sequence; empty where this is none.
    #[must_use]
    pub fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The elements of the sequence at a key; empty where there is none.
    #[must_use]
    pub fn list(&self, key: &str) -> &[Self] {
        self.get(key).map_or(&[], Self::items)
    }

    /// The string, if it is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one.
    #[must_use]
    pub fn as_int(&self) -> Option<i128> {
        match self.value {
            Value::Int(int) => Some(int),
            _ => None,
        }
    }

    /// The string at a key; empty where there is none, which is the same to protobuf.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Self::as_text).unwrap_or_default()
    }

    /// The integer at a key.
    #[must_use]
    pub fn int(&self, key: &str) -> Option<i128> {
        self.get(key).and_then(Self::as_int)
    }

    /// Whether a key holds `true`.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.get(key)
            .is_some_and(|node| node.value == Value::Bool(true))
    }

    /// The strings of the sequence at a key.
    pub fn texts(&self, key: &str) -> impl Iterator<Item = &str> {
        self.list(key).iter().filter_map(Self::as_text)
    }

    /// The string entries of the mapping at a key.
    pub fn labels(&self, key: &str) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.get(key).map_or(&[][..], Self::entries);
        entries
            .iter()
            .filter_map(|(key, value)| Some((key.name.as_str(), value.as_text()?)))
    }

    /// What kind of value this is, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "null".into(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Int(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(value) => format!("the string `{value}`"),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        }
    }

    /// Byte range of the field at a path such as `spec.egress[1].hosts[0]` or
    /// `metadata.labels[app]`; of its name if `on_key`. Where there is no such field, that of the
    /// innermost field on the way to it.
    #[must_use]
    pub fn find(&self, path: &str, on_key: bool) -> Range<usize> {
        let mut node = self;
        // The name leading to `node`: what a missing field is shown at, where there is one.
        let mut key: Option<&Key> = None;
        let mut segments = segments(path).peekable();
        while let Some(segment) = segments.next() {
            let index = segment.parse::<usize>().ok();
            if let Some(item) = index.and_then(|index| node.items().get(index)) {
                (node, key) = (item, None);
            } else if let Some((name, value)) =
                node.entries().iter().find(|(k, _)| k.name == segment)
            {
                (node, key) = (value, Some(name));
            } else {
                break;
            }
            if on_key && segments.peek().is_none() {
                return key.map_or(node.span.clone(), |key| key.span.clone());
            }
        }
        match (&node.value, key) {
            // A block mapping or sequence has no text of its own to point at, nor has nothing.
            (Value::Map(_) | Value::List(_) | Value::Null, Some(key)) => key.span.clone(),
            (Value::Map(entries), None) => entries
                .first()
                .map_or(node.span.clone(), |(key, _)| key.span.clone()),
            _ => node.span.clone(),
        }
    }

    fn shift(&mut self, by: usize) {
        let shifted = |span: &Range<usize>| span.start + by..span.end + by;
        self.span = shifted(&self.span);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(by)),
            Value::Map(entries) => {
                for (key, value) in entries {
                    key.span = shifted(&key.span);
                    value.shift(by);
                }
            }
            _ => {}
        }
    }
}

/// Appends a field's name to a path; names that are not plain words go into brackets.
#[must_use]
pub fn join(path: &str, name: &str) -> String {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match (path.is_empty(), plain && !name.is_empty()) {
        (true, true) => name.into(),
        (false, true) => format!("{path}.{name}"),
        (_, false) => format!("{path}[{name}]"),
    }
}

/// Splits a path at dots and brackets; dots within brackets belong to the name.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        let (segment, left) = if let Some(bracket) = rest.strip_prefix('[') {
            bracket.split_once(']').unwrap_or((bracket, ""))
        } else {
            rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()))
        };
        rest = left;
        Some(segment)
    })
}

/// Parses all documents of a text. A document that cannot be parsed yields a diagnostic; empty
/// ones yield nothing.
#[must_use]
pub fn parse(source: &Source) -> (Vec<Node>, Vec<Diagnostic>) {
    let mut nodes = Vec::new();
    let mut diagnostics = Vec::new();
    if source.text.len() > MAX_BYTES {
        diagnostics.push(
            Diagnostic::new(
                catalogue::TOO_LARGE,
                format!(
                    "the text has {} bytes; at most {MAX_BYTES} are read",
                    source.text.len()
                ),
            )
            .at(source.location(0..0)),
        );
        return (nodes, diagnostics);
    }
    let parsed = stacker::maybe_grow(STACK, STACK, || {
        // A defect of the parser is no reason to end.
        catch_unwind(AssertUnwindSafe(|| parse_documents(source)))
    });
    let Ok(parsed) = parsed else {
        let message = "the YAML parser panicked";
        diagnostics.push(Diagnostic::new(catalogue::SYNTAX, message).at(source.location(0..0)));
        return (nodes, diagnostics);
    };
    for (start, parsed) in parsed {
        match parsed {
            Ok(Node {
                value: Value::Null, ..
            }) => {}
            Ok(mut node) => {
                node.shift(start);
                nodes.push(node);
            }
            Err(diagnostic) => diagnostics.push(diagnostic),
        }
    }
    (nodes, diagnostics)
}

/// Where each document begins, and what it is.
fn parse_documents(source: &Source) -> Vec<(usize, Result<Node, Diagnostic>)> {
    let parse = |range: Range<usize>| {
        let text = source.text.get(range.clone()).unwrap_or_default();
        let parsed = serde_saphyr::from_str_with_options::<Node>(text, options());
        let parsed = parsed.map_err(|error| syntax(source, text, range.start, &error));
        (range.start, parsed)
    };
    documents(&source.text).into_iter().map(parse).collect()
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIASED,
        },
        with_snippet: false,
    }
}

/// Byte ranges of the documents of a text.
///
/// A line that begins with the marker `---` or `...` is a document marker wherever it stands (YAML
/// 1.2, rule c-forbidden), so that documents can be told apart without parsing them, and a broken
/// one does not hide the others.
fn documents(text: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    let mut at = 0;
    // Directives and comments before `---` belong to the document that follows.
    let mut content = false;
    for line in text.split_inclusive('\n') {
        let end = at + line.len();
        let is = |marker| {
            let rest = line.strip_prefix(marker);
            rest.is_some_and(|rest: &str| {
                rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])
            })
        };
        if is("---") {
            if content {
                ranges.push(start..at);
                start = at;
            }
            content = true;
        } else if is("...") {
            ranges.push(start..end);
            (start, content) = (end, false);
        } else if !line.trim_start().is_empty() && !line.starts_with(['#', '%']) {
            content = true;
        }
        at = end;
    }
    ranges.push(start..at);
    ranges
}

fn syntax(source: &Source, text: &str, base: usize, error: &Error) -> Diagnostic {
    let location = error.location();
    let mut cause = error;
    while let Error::AliasError { error, .. } | Error::WithSnippet { error, .. } = cause {
        cause = error;
    }
    let code = match cause {
        Error::Budget { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => catalogue::TOO_LARGE,
        _ => catalogue::SYNTAX,
    };
    let message: String = UserMessageFormatter
        .format_message(cause)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let span = location.map_or(0..0, |location| span(&location, text));
    Diagnostic::new(code, message)
        .at(source.location(base.saturating_add(span.start)..base.saturating_add(span.end)))
}

/// The byte range of a parser's location; texts are always parsed from a string, so offsets of
/// nodes are in bytes.
fn bytes(location: &YamlLocation) -> Option<Range<usize>> {
    let span = location.span();
    let start = size(span.byte_offset()?);
    Some(start..start.saturating_add(span.byte_len().map_or(0, size)))
}

/// The byte range of an error. Errors of the scanner carry line and column only.
fn span(location: &YamlLocation, text: &str) -> Range<usize> {
    if let Some(bytes) = bytes(location) {
        return bytes;
    }
    let lines = size(location.line().saturating_sub(1));
    let before: usize = text.split_inclusive('\n').take(lines).map(str::len).sum();
    let line = text.get(before..).unwrap_or_default();
    let columns = size(location.column().saturating_sub(1));
    let start = before
        + line
            .chars()
            .take(columns)
            .map(char::len_utf8)
            .sum::<usize>();
    start..start
}

fn size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned {
            value, referenced, ..
        } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            value,
            span: bytes(&referenced).unwrap_or_default(),
        })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned {
            value, referenced, ..
        } = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self {
            name: value,
            span: bytes(&referenced).unwrap_or_default(),
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(text: &str) -> Vec<Node> {
        let (nodes, diagnostics) = parse(&Source::new("test.yaml", text));
        assert_eq!(diagnostics, []);
        nodes
    }

    fn only(text: &str) -> Node {
        let mut nodes = nodes(text);
        assert_eq!(nodes.len(), 1, "{nodes:?}");
        nodes.remove(0)
    }

    fn shown<'a>(text: &'a str, node: &Node, path: &str) -> &'a str {
        &text[node.find(path, false)]
    }

    #[test]
    fn scalars_keep_their_type() {
        let node = only(
            "int: 80\nquoted: \"80\"\nhex: 0x50\nneg: -3\nbool: no\nnothing:\ntext: a.b\nfloat: 1.5\ndate: 2024-01-01T00:00:00Z\n",
        );
        let value = |key: &str| {
            let entry = node.entries().iter().find(|(k, _)| k.name == key);
            entry.unwrap().1.value.clone()
        };
        assert_eq!(value("int"), Value::Int(80));
        assert_eq!(value("quoted"), Value::Text("80".into()));
        assert_eq!(value("hex"), Value::Int(80));
        assert_eq!(value("neg"), Value::Int(-3));
        assert_eq!(value("bool"), Value::Bool(false));
        assert_eq!(value("nothing"), Value::Null);
        assert_eq!(value("text"), Value::Text("a.b".into()));
        assert_eq!(value("float"), Value::Float(1.5));
        assert_eq!(value("date"), Value::Text("2024-01-01T00:00:00Z".into()));
        assert!(node.get("nothing").is_none(), "null counts as absent");
    }

    #[test]
    fn spans_are_absolute_in_the_file_and_paths_find_them() {
        let text =
            "# first\na: 1\n---\nspec:\n  é: ü\n  hosts: [x, \"y z\"]\n  labels: {a.b/c: d}\n";
        let nodes = nodes(text);
        assert_eq!(nodes.len(), 2);
        let node = &nodes[1];
        assert_eq!(shown(text, node, "spec.é"), "ü");
        assert_eq!(shown(text, node, "spec.hosts[1]"), "\"y z\"");
        assert_eq!(shown(text, node, "spec.labels[a.b/c]"), "d");
        assert_eq!(&text[node.find("spec.labels[a.b/c]", true)], "a.b/c");
        // What is not there is shown at what it would be in.
        assert_eq!(shown(text, node, "spec.hosts[7]"), "hosts");
        assert_eq!(shown(text, node, "spec.port.number"), "spec");
        let location = Source::new("test.yaml", text).location(node.find("spec.hosts[1]", false));
        assert_eq!((location.line, location.column), (6, 14));
    }

    #[test]
    fn merges_and_aliases_are_resolved_and_shown_where_they_are_used() {
        let text = "x: &a {p: 1, q: 2}\ny:\n  <<: *a\n  q: 3\nz: *a\n";
        let node = only(text);
        let y = node.get("y").unwrap();
        assert_eq!((y.int("p"), y.int("q")), (Some(1), Some(3)));
        assert_eq!(shown(text, &node, "z.p"), "*a");
    }

    #[test]
    fn empty_documents_yield_nothing() {
        for text in [
            "",
            "\n",
            "# only a comment\n",
            "---\n",
            "---\n---\n",
            "...\n",
            "~\n",
            "\u{feff}",
        ] {
            assert_eq!(nodes(text), [], "{text:?}");
        }
        assert_eq!(nodes("---\na: 1\n---\n---\nb: 1\n...\nc: 1\n").len(), 3);
        assert_eq!(
            nodes("%YAML 1.2\n# c\n--- {a: 1}\n--- {b: 1}\r\n---\r\nc: 1\r\n").len(),
            3
        );
        assert_eq!(nodes("\u{feff}a: 1\n").len(), 1);
        assert_eq!(nodes("{\"a\": 1}").len(), 1);
    }

    #[test]
    fn a_broken_document_has_a_place_and_leaves_the_others_alone() {
        let source = Source::new(
            "f.yaml",
            "a: 1\n---\nb: [1\nc: ü: 2\n---\nd: 1\nd: 2\n---\ne: 1\n",
        );
        let (nodes, diagnostics) = parse(&source);
        assert_eq!(nodes.len(), 2);
        let places: Vec<_> = diagnostics
            .iter()
            .map(|d| {
                let location = d.location.as_ref().unwrap();
                (
                    d.code,
                    location.line,
                    location.column,
                    &location.text[location.span.clone()],
                )
            })
            .collect();
        assert_eq!(places, [("SCA0001", 4, 2, ""), ("SCA0001", 7, 1, "d")]);
    }

    #[test]
    fn document_markers_end_block_scalars() {
        let nodes = nodes("a: |\n  x\n  --- not a marker\n---\nb: 1\n");
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[0].text("a"), "x\n--- not a marker\n");
    }

    #[test]
    fn hostile_input_is_refused() {
        let deep_flow = "[".repeat(100_000);
        let mut deep_block = String::new();
        for depth in 0..1000 {
            deep_block.push_str(&" ".repeat(depth));
            deep_block.push_str("a:\n");
        }
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.extend([format!("a{i}: &a{i} [{aliases}]\n")]);
        }
        let deepest = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert_eq!(nodes(&deepest).len(), 1);
        for text in [
            &deep_flow,
            &deep_block,
            &bomb,
            "a: &a [*a]\n",
            "a: *unknown\n",
            "? [1]\n: 2\n",
            "a: .nan\n",
            "\0",
            "\"\\xZZ\"",
            "a: !!int x\n",
        ] {
            let (nodes, diagnostics) = parse(&Source::new("f.yaml", text));
            let start: String = text.chars().take(20).collect();
            assert_eq!((nodes.len(), diagnostics.len()), (0, 1), "{start:?}");
        }
        let (_, diagnostics) = parse(&Source::new("f.yaml", bomb));
        assert_eq!(diagnostics[0].code, "SCA0002");
    }

    #[test]
    fn no_text_panics() {
        // Every prefix of a text that has a bit of everything, cut at every character.
        let text = "%YAML 1.2\n---\na: &x {p: \"q\\n\", 'r': [1, ~]}\nb: *x\nc:\n  <<: *x\n  d: |\n    ü\n...\n--- >\n e\n";
        for (cut, _) in text.char_indices() {
            let source = Source::new("f.yaml", &text[..cut]);
            let (nodes, diagnostics) = parse(&source);
            for node in nodes {
                let location = source.location(node.find("c.d.e[9].f", true));
                assert!(location.line >= 1);
            }
            assert!(diagnostics.iter().all(|d| d.location.is_some()));
        }
    }
}
