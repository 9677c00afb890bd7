//! YAML, and JSON as the YAML that it is, as trees in which every node knows its line, so that whoever
//! reads one can say where a mistake stands. Knows the syntax; must not know any key.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned};

/// One node and the line on which it stands, from 1.
#[derive(Debug, Clone)]
pub struct Node {
    pub line: u64,
    pub value: Value,
}

/// What a node holds. Plain scalars have the types that YAML 1.2 infers.
#[derive(Debug, Clone)]
pub enum Value {
    Null,
    Boolean(bool),
    Integer(i128),
    /// Finite.
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map. The parser has refused duplicates.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    pub line: u64,
    pub node: Node,
}

/// Why a text is no YAML that we take. Never repeats a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    pub line: Option<u64>,
    pub key: Option<String>,
    pub why: String,
}

impl Node {
    /// Reads the one document of a text; nothing at all is a null. Another document is an error.
    pub fn parse(text: &str) -> Result<Node, Malformed> {
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| Malformed::from(&error))
    }

    /// Reads all documents of a text, those that are empty left out.
    pub fn parse_all(text: &str) -> Result<Vec<Node>, Malformed> {
        serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| Malformed::from(&error))
    }
}

/// Duplicate keys and tags of applications are errors, and what aliases unfold to is bounded.
fn options() -> Options {
    serde_saphyr::options! {
        // A snippet would show what stands around the error.
        with_snippet: false,
        reject_unsupported_tags: true,
        budget: serde_saphyr::budget! { max_total_scalar_bytes: 8 << 20 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 50_000 },
    }
}

impl From<&serde_saphyr::Error> for Malformed {
    fn from(error: &serde_saphyr::Error) -> Self {
        use serde_saphyr::Error as Yaml;
        let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
        let (key, why) = match error {
            Yaml::DuplicateMappingKey { key, .. } => (key.clone(), "this key is set twice".to_owned()),
            Yaml::MultipleDocuments { .. } => (None, "a second document (`---`) stands here".to_owned()),
            Yaml::Budget { .. } => (None, "too large or too deeply nested".to_owned()),
            // The parser's own words, without the location that is told already. They are about
            // syntax; a scalar's text is never in them.
            Yaml::ExternalMessage { msg, .. } | Yaml::Message { msg, .. } => (None, msg.clone()),
            Yaml::UnknownAnchor { .. } => (None, "an alias (`*name`) without its anchor".to_owned()),
            Yaml::UnsupportedTag { .. } => (None, "a tag (`!name`) that means nothing here".to_owned()),
            Yaml::NonFiniteFloat { .. } => (None, "a number that is none, or infinite".to_owned()),
            _ => (None, "a mistake in its syntax".to_owned()),
        };
        Self { line, key, why }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: node.referenced.line(), value: node.value })
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

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = map.next_entry::<Spanned<String>, Node>()? {
            let line = key.referenced.line();
            entries.push(Entry { key: key.value, line, node });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Vec<Entry> {
        match Node::parse(text).unwrap().value {
            Value::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    fn why(text: &str) -> Malformed {
        Node::parse(text).unwrap_err()
    }

    #[test]
    fn scalars_keep_their_types_and_lines() {
        let entries = map("a: \"0660\"\nb: 12\n\nc:\n  d: yes\n8080: [x]\ne:\n");
        let shown: Vec<_> = entries.iter().map(|e| (e.key.as_str(), e.line, e.node.line)).collect();
        assert_eq!(shown, [("a", 1, 1), ("b", 2, 2), ("c", 4, 5), ("8080", 6, 6), ("e", 7, 7)]);
        assert!(matches!(&entries[0].node.value, Value::Text(text) if text == "0660"));
        assert!(matches!(entries[1].node.value, Value::Integer(12)));
        assert!(matches!(entries[4].node.value, Value::Null));
    }

    #[test]
    fn a_key_that_is_set_twice_is_named_with_its_line() {
        let error = why("a: 1\nb: {c: 1, c: 2}");
        assert_eq!((error.line, error.key.as_deref()), (Some(2), Some("c")));
    }

    #[test]
    fn broken_yaml_is_refused_with_its_line_and_without_its_values() {
        for (text, line) in [
            ("a: [", 1),
            ("x: 1\na: hunter2: b", 2),
            ("a: \"unclosed hunter2", 1),
            ("a: !hunter2 b", 1),
            ("a: *hunter2", 1),
            ("a: 1\n\thunter2: 2", 1),
            ("? [hunter2]\n: b", 1),
            ("a: 1\n---\nb: 1\n", 3),
        ] {
            let error = why(text);
            assert_eq!(error.line, Some(line), "{text:?}: {error:?}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_number_is_finite() {
        for text in ["a: .inf", "a: -.inf", "a: .nan"] {
            let error = why(text);
            assert_eq!((error.line, error.why.as_str()), (Some(1), "a number that is none, or infinite"));
        }
    }

    #[test]
    fn all_documents_are_read_with_their_lines_in_the_text_and_empty_ones_left_out() {
        let lines =
            |text: &str| Node::parse_all(text).unwrap().iter().map(|node| node.line).collect::<Vec<_>>();
        assert_eq!(lines("---\n---\na: 1\n---\n# nothing\n---\nb: 2\nc: 3\n"), [3, 7]);
        assert_eq!(lines("# nothing\n"), [0; 0]);
        assert_eq!(lines("[{\"a\": 1},\n\t2]"), [1], "JSON, indented by a tab");
    }

    #[test]
    fn a_document_of_a_thousand_levels_is_an_error() {
        let error = why(&format!("{}{}", "[".repeat(1000), "]".repeat(1000)));
        assert_eq!(error.why, "recursion limit exceeded");
    }
}
