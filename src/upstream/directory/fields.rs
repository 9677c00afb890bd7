//! Strict access to the fields of a document: each error names line and field, and a field that nobody
//! asked for is an error too. The first mistake ends the reading.
//!
//! Knows nothing of what the fields mean.

use crate::yaml::{Entry, Malformed, Node, Value};

/// What is wrong with one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub line: Option<u64>,
    pub field: Option<String>,
    pub why: String,
}

impl From<Malformed> for Fault {
    fn from(error: Malformed) -> Self {
        Self { line: error.line, field: error.key, why: format!("not valid YAML: {}", error.why) }
    }
}

/// The documents of a text, those that are empty left out.
pub(super) fn documents(text: &str) -> Result<Vec<Field>, Fault> {
    let documents = Node::parse_all(text)?;
    Ok(documents.into_iter().map(|node| Field { path: String::new(), node }).collect())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Boolean(_) => "true or false",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Text(_) => "a string",
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
    }
}

/// As JSON; the keys of a map come out sorted.
fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Boolean(value) => (*value).into(),
        Value::Integer(value) => match (i64::try_from(*value), u64::try_from(*value)) {
            (Ok(value), _) => value.into(),
            (_, Ok(value)) => value.into(),
            // Beyond what JSON's readers take as whole numbers.
            _ => (*value as f64).into(),
        },
        Value::Float(value) => number(*value),
        Value::Text(value) => value.as_str().into(),
        Value::List(items) => items.iter().map(|item| json(&item.value)).collect(),
        Value::Map(entries) => map_json(entries),
    }
}

fn map_json(entries: &[Entry]) -> serde_json::Value {
    entries.iter().map(|entry| (entry.key.clone(), json(&entry.node.value))).collect()
}

/// A whole number is written without a fraction, as protobuf's `Struct` prints it.
fn number(value: f64) -> serde_json::Value {
    const EXACT: f64 = (1_u64 << 53) as f64;
    if value.fract() == 0.0 && value.abs() <= EXACT { (value as i64).into() } else { value.into() }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Field {
    path: String,
    node: Node,
}

impl Field {
    /// An error about this field.
    pub fn fault(&self, why: impl Into<String>) -> Fault {
        Fault {
            line: Some(self.node.line).filter(|line| *line > 0),
            field: Some(self.path.clone()).filter(|path| !path.is_empty()),
            why: why.into(),
        }
    }

    fn expected(&self, what: &str) -> Fault {
        self.fault(format!("expected {what}, found {}", kind(&self.node.value)))
    }

    /// A string of at most `max` bytes, not empty.
    pub fn text(&self, max: usize) -> Result<String, Fault> {
        match &self.node.value {
            Value::Text(text) if text.is_empty() => Err(self.fault("must not be empty")),
            Value::Text(text) if text.len() > max => Err(self.fault(format!("longer than {max} bytes"))),
            Value::Text(text) => Ok(text.clone()),
            Value::Boolean(_) | Value::Integer(_) | Value::Float(_) => {
                Err(self.fault(format!("expected a string, found {}; quote it", kind(&self.node.value))))
            }
            _ => Err(self.expected("a string")),
        }
    }

    /// A string that may be empty.
    pub fn text_or_empty(&self, max: usize) -> Result<String, Fault> {
        match &self.node.value {
            Value::Text(text) if text.is_empty() => Ok(String::new()),
            _ => self.text(max),
        }
    }

    /// A whole number within these bounds.
    pub fn integer(&self, min: i64, max: i64) -> Result<i64, Fault> {
        let number = match &self.node.value {
            Value::Integer(number) => i64::try_from(*number).ok(),
            Value::Float(_) => None,
            _ => return Err(self.expected("a whole number")),
        };
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| self.fault(format!("expected a whole number from {min} to {max}")))
    }

    /// One of these names.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Fault> {
        let Value::Text(text) = &self.node.value else { return Err(self.expected("a string")) };
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
        match &self.node.value {
            Value::List(items) if items.len() > max => Err(self.fault(format!("more than {max} items"))),
            Value::List(items) => {
                let item = |(at, node): (usize, &Node)| Field {
                    path: format!("{}[{at}]", self.path),
                    node: node.clone(),
                };
                Ok(items.iter().enumerate().map(item).collect())
            }
            _ => Err(self.expected("a list")),
        }
    }

    /// The fields of a map.
    pub fn map(self) -> Result<Fields, Fault> {
        match self.node.value {
            Value::Map(entries) => Ok(Fields { path: self.path, line: self.node.line, entries }),
            _ => Err(self.expected("a map")),
        }
    }

    /// From 1.
    pub fn line(&self) -> u64 {
        self.node.line
    }

    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// As compact JSON with sorted keys.
    pub fn json(&self) -> String {
        json(&self.node.value).to_string()
    }
}

/// The fields of a map, taken one by one.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    path: String,
    line: u64,
    entries: Vec<Entry>,
}

impl Fields {
    fn at(&self, name: &str) -> String {
        // A key may be any text: it must not break the line that an error is printed on.
        let name = name.escape_debug();
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// The field, unless it is absent or null.
    pub fn take(&mut self, name: &str) -> Option<Field> {
        let index = self.entries.iter().position(|entry| entry.key == name)?;
        let Entry { key, line, node } = self.entries.remove(index);
        // People look for the line of the key, whatever line its value begins on.
        let node = Node { line, ..node };
        (!matches!(node.value, Value::Null)).then(|| Field { path: self.at(&key), node })
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
        map_json(&self.entries).to_string()
    }

    /// Refuses fields that were not taken: a misspelt one would otherwise be silently without
    /// effect.
    pub fn finish(self) -> Result<(), Fault> {
        match self.entries.first() {
            None => Ok(()),
            Some(entry) => Err(Fault {
                line: Some(entry.line),
                field: Some(self.at(&entry.key)),
                why: "is not a known field".to_owned(),
            }),
        }
    }
}
