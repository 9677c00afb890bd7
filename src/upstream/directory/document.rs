//! A YAML or JSON document as a tree that knows its lines, and strict access to its fields: each
//! error names line and field, and a field that nobody asked for is an error too.
//!
//! Knows nothing of what the fields mean.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, UserMessageFormatter};

/// What is wrong with one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub line: Option<u64>,
    pub field: Option<String>,
    pub why: String,
}

/// The documents of a text, those that are empty left out.
///
/// JSON is read as the YAML that it is. Booleans and numbers are told from strings as kubectl
/// does; nesting, aliases and merge keys are bounded, duplicate keys refused.
pub(super) fn documents(text: &str) -> Result<Vec<Field>, Fault> {
    // A snippet would show what stands around the error.
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_total_scalar_bytes: 8 << 20 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 50_000 },
    };
    let documents: Vec<Spanned<Value>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
            let line = error.location().map(|location| location.line());
            let rendered = error.render_with_formatter(&UserMessageFormatter);
            let why = rendered.rsplit_once(" at line ").map_or(rendered.as_str(), |(why, _)| why);
            Fault { line, field: None, why: format!("not valid YAML: {why}") }
        })?;
    Ok(documents.into_iter().map(|document| Field::new(String::new(), document)).collect())
}

#[derive(Debug, Clone)]
enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Spanned<Value>>),
    /// With the line of each key.
    Map(BTreeMap<String, (u64, Value)>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(value) => value.clone().into(),
            Value::Text(value) => value.as_str().into(),
            Value::List(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Value::Map(fields) => map_to_json(fields),
        }
    }
}

fn map_to_json(fields: &BTreeMap<String, (u64, Value)>) -> serde_json::Value {
    fields.iter().map(|(key, (_, value))| (key.clone(), value.to_json())).collect()
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value that JSON has too")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                Value::deserialize(deserializer)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Number(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Number(value.into()))
            }

            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
                number(value).map(Value::Number).ok_or_else(|| E::custom("a number that JSON does not have"))
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
                let mut fields = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<Spanned<String>, Value>()? {
                    let line = key.referenced.line();
                    if fields.insert(key.value, (line, value)).is_some() {
                        return Err(A::Error::custom("a key occurs twice"));
                    }
                }
                Ok(Value::Map(fields))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

/// A whole number is written without a fraction, as protobuf's `Struct` prints it.
fn number(value: f64) -> Option<serde_json::Number> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return Some((value as i64).into());
    }
    serde_json::Number::from_f64(value)
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Field {
    path: String,
    line: u64,
    value: Value,
}

impl Field {
    fn new(path: String, value: Spanned<Value>) -> Self {
        Self { path, line: value.referenced.line(), value: value.value }
    }

    /// An error about this field.
    pub fn fault(&self, why: impl Into<String>) -> Fault {
        Fault {
            line: Some(self.line).filter(|line| *line > 0),
            field: Some(self.path.clone()).filter(|path| !path.is_empty()),
            why: why.into(),
        }
    }

    fn expected(&self, what: &str) -> Fault {
        self.fault(format!("expected {what}, found {}", self.value.kind()))
    }

    /// A string of at most `max` bytes, not empty.
    pub fn text(&self, max: usize) -> Result<String, Fault> {
        match &self.value {
            Value::Text(text) if text.is_empty() => Err(self.fault("must not be empty")),
            Value::Text(text) if text.len() > max => Err(self.fault(format!("longer than {max} bytes"))),
            Value::Text(text) => Ok(text.clone()),
            Value::Bool(_) | Value::Number(_) => {
                Err(self.fault(format!("expected a string, found {}; quote it", self.value.kind())))
            }
            _ => Err(self.expected("a string")),
        }
    }

    /// A string that may be empty.
    pub fn text_or_empty(&self, max: usize) -> Result<String, Fault> {
        match &self.value {
            Value::Text(text) if text.is_empty() => Ok(String::new()),
            _ => self.text(max),
        }
    }

    /// A whole number within these bounds.
    pub fn integer(&self, min: i64, max: i64) -> Result<i64, Fault> {
        let Value::Number(number) = &self.value else { return Err(self.expected("a whole number")) };
        number
            .as_i64()
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| self.fault(format!("expected a whole number from {min} to {max}")))
    }

    /// One of these names.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Fault> {
        let Value::Text(text) = &self.value else { return Err(self.expected("a string")) };
        let chosen = choices.iter().find(|(name, _)| name == text);
        chosen.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            // Quoted by Debug and cut, so that a name which is no name stays one short line.
            let found: String = text.chars().take(64).collect();
            self.fault(format!("{found:?} is not one of {}", names.join(", ")))
        })
    }

    /// The items of a list of at most `max`.
    pub fn list(&self, max: usize) -> Result<Vec<Field>, Fault> {
        match &self.value {
            Value::List(items) if items.len() > max => Err(self.fault(format!("more than {max} items"))),
            Value::List(items) => {
                let item = |(at, item): (usize, &Spanned<Value>)| {
                    Field::new(format!("{}[{at}]", self.path), item.clone())
                };
                Ok(items.iter().enumerate().map(item).collect())
            }
            _ => Err(self.expected("a list")),
        }
    }

    /// The fields of a map.
    pub fn map(self) -> Result<Fields, Fault> {
        match self.value {
            Value::Map(fields) => Ok(Fields { path: self.path, line: self.line, fields }),
            _ => Err(self.expected("a map")),
        }
    }

    /// From 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    pub fn is_list(&self) -> bool {
        matches!(self.value, Value::List(_))
    }

    /// As compact JSON with sorted keys.
    pub fn json(&self) -> String {
        self.value.to_json().to_string()
    }
}

/// The fields of a map, taken one by one.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    path: String,
    line: u64,
    fields: BTreeMap<String, (u64, Value)>,
}

impl Fields {
    fn at(&self, name: &str) -> String {
        // A key may be any text: it must not break the line that an error is printed on.
        let name = name.escape_debug();
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// The field, unless it is absent or null.
    pub fn take(&mut self, name: &str) -> Option<Field> {
        let (line, value) = self.fields.remove(name)?;
        (!matches!(value, Value::Null)).then(|| Field { path: self.at(name), line, value })
    }

    /// The field, which must be there.
    pub fn require(&mut self, name: &str) -> Result<Field, Fault> {
        self.take(name).ok_or_else(|| Fault {
            line: Some(self.line).filter(|line| *line > 0),
            field: Some(self.at(name)),
            why: "is required".to_owned(),
        })
    }

    /// What `read` makes of the field, if it is there.
    pub fn optional<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Field) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        self.take(name).as_ref().map(read).transpose()
    }

    /// What is left, as compact JSON with sorted keys.
    pub fn json(&self) -> String {
        map_to_json(&self.fields).to_string()
    }

    /// Refuses fields that were not taken: a misspelt one would otherwise be silently without
    /// effect.
    pub fn finish(self) -> Result<(), Fault> {
        match self.fields.first_key_value() {
            None => Ok(()),
            Some((name, (line, _))) => Err(Fault {
                line: Some(*line),
                field: Some(self.at(name)),
                why: "is not a known field".to_owned(),
            }),
        }
    }
}
