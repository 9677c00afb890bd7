//! Takes values out of a tree of nodes and collects every problem on the way, each with the path of
//! its key. Knows types and ranges; must not know any key.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Problem;
use super::units;
use crate::yaml::{Entry, Node, Value};

/// Longer values are cut when they are shown.
const MAX_SHOWN: usize = 80;

/// All that is wrong so far.
#[derive(Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub fn into_vec(self) -> Vec<Problem> {
        let mut problems = self.0.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    fn add(&self, place: &Place, value: Option<String>, why: impl Display) {
        let Place { key, line } = place.clone();
        self.0.borrow_mut().push(Problem { line: Some(line), key, value, why: why.to_string() });
    }
}

/// Where something stands.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The dotted path of the key; empty for the whole document.
    pub key: String,
    pub line: u64,
}

/// A value that is to be taken.
pub(super) struct Field<'p> {
    pub place: Place,
    node: Node,
    problems: &'p Problems,
}

/// A map, of which every key must be asked for.
pub(super) struct Section<'p> {
    place: Place,
    entries: Vec<Entry>,
    known: Vec<&'static str>,
    problems: &'p Problems,
}

impl<'p> Section<'p> {
    /// Reads a whole document, in which nothing at all is an empty map.
    pub fn read_root<T>(root: Node, problems: &'p Problems, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let place = Place { key: String::new(), line: root.line };
        Field { place, node: root, problems }.into_section_or_empty(read)
    }

    fn run<T>(
        place: Place,
        entries: Vec<Entry>,
        problems: &'p Problems,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let mut section = Self { place, entries, known: Vec::new(), problems };
        let value = read(&mut section);
        section.refuse_the_rest();
        value
    }

    /// What is left was never asked for. Its value is not shown: it may be a secret under a
    /// misspelt key.
    fn refuse_the_rest(self) {
        for entry in &self.entries {
            let place = Place { key: self.path_of(&entry.key), line: entry.line };
            let why = format!("unknown key; known are {}", self.known.join(", "));
            self.problems.add(&place, None, why);
        }
    }

    fn path_of(&self, key: &str) -> String {
        // A key is text from the file: keep it on one line, and a credential out of sight.
        let key = if key.contains('@') { "(not shown)".into() } else { cut(key.escape_debug().to_string()) };
        match (self.place.key.is_empty(), key.is_empty()) {
            (true, _) => key,
            (false, true) => self.place.key.clone(),
            (false, false) => format!("{}.{key}", self.place.key),
        }
    }

    /// The value of a key; a null counts as unset.
    pub fn take(&mut self, key: &'static str) -> Option<Field<'p>> {
        self.known.push(key);
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        let entry = self.entries.remove(index);
        if matches!(entry.node.value, Value::Null) {
            return None;
        }
        // A map begins at its first key; people look for the line of its name.
        let line = if matches!(entry.node.value, Value::Map(_)) { entry.line } else { entry.node.line };
        let place = Place { key: self.path_of(key), line };
        Some(Field { place, node: entry.node, problems: self.problems })
    }

    /// Reads the map under a key, an empty one where it is unset.
    pub fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'p>) -> T) -> Option<T> {
        match self.take(key) {
            Some(field) => field.into_section(read),
            None => {
                let place = Place { key: self.path_of(key), line: self.place.line };
                Some(Self::run(place, Vec::new(), self.problems, read))
            }
        }
    }

    /// Whether a key is there, even as null.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// Reports that a key of this map is missing or at odds with another; an empty key is the map itself.
    pub fn refuse(&self, key: &str, why: impl Display) {
        self.problems.add(&Place { key: self.path_of(key), line: self.place.line }, None, why);
    }

    /// Every key that is left with its value: for maps whose keys are data.
    pub fn take_all(&mut self) -> Vec<(String, Field<'p>)> {
        let entries = std::mem::take(&mut self.entries);
        let field = |entry: Entry| {
            let place = Place { key: self.path_of(&entry.key), line: entry.line };
            (entry.key, Field { place, node: entry.node, problems: self.problems })
        };
        entries.into_iter().map(field).collect()
    }
}

impl<'p> Field<'p> {
    /// Reports this value as wrong.
    pub fn refuse<T>(&self, why: impl Display) -> Option<T> {
        self.problems.add(&self.place, shown(&self.node.value), why);
        None
    }

    /// Reports what is wrong about this place rather than about the value.
    pub fn refuse_unseen(&self, why: impl Display) {
        self.problems.add(&self.place, None, why);
    }

    /// Whether this is the word.
    pub fn is(&self, word: &str) -> bool {
        matches!(&self.node.value, Value::Text(text) if text == word)
    }

    /// A text that `parse` takes.
    pub fn parsed<T, E: Display>(self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        match &self.node.value {
            Value::Text(text) => match parse(text) {
                Ok(value) => Some(value),
                Err(why) => self.refuse(why),
            },
            _ => self.refuse("expected a text (in quotes)"),
        }
    }

    /// As [`Field::parsed`] for a text that is never shown.
    pub fn secret<T, E: Display>(self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let parsed = match &self.node.value {
            Value::Text(text) => parse(text).map_err(|why| why.to_string()),
            _ => Err("expected a text (in quotes)".to_owned()),
        };
        parsed.map_err(|why| self.refuse_unseen(why)).ok()
    }

    /// A text or a whole number, which `parse` sees as text.
    pub fn parsed_or_number<T, E: Display>(self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let text = match &self.node.value {
            Value::Text(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            _ => return self.refuse("expected a text or a whole number"),
        };
        match parse(&text) {
            Ok(value) => Some(value),
            Err(why) => self.refuse(why),
        }
    }

    pub fn boolean(self) -> Option<bool> {
        match self.node.value {
            Value::Boolean(value) => Some(value),
            _ => self.refuse("expected true or false"),
        }
    }

    pub fn integer(self, range: RangeInclusive<u64>) -> Option<u64> {
        match &self.node.value {
            Value::Integer(value) => match u64::try_from(*value) {
                Ok(value) if range.contains(&value) => Some(value),
                _ => self.refuse(format_args!("must be from {} to {}", range.start(), range.end())),
            },
            _ => self.refuse("expected a whole number"),
        }
    }

    /// Bytes: `256MiB`, or a whole number.
    pub fn size(self, range: RangeInclusive<u64>) -> Option<u64> {
        self.within(&range, units::parse_size, units::show_size)
    }

    pub fn duration(self, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.within(&range, units::parse_duration, units::show_duration)
    }

    fn within<T: Copy + PartialOrd>(
        self,
        range: &RangeInclusive<T>,
        parse: impl Fn(&str) -> Result<T, &'static str>,
        show: impl Fn(T) -> String,
    ) -> Option<T> {
        self.parsed_or_number(|text| match parse(text) {
            Ok(value) if range.contains(&value) => Ok(value),
            Ok(_) => Err(format!("must be from {} to {}", show(*range.start()), show(*range.end()))),
            Err(why) => Err(why.to_owned()),
        })
    }

    /// An absolute path: what a relative one belongs to would depend on who starts us, and where.
    pub fn path(self) -> Option<PathBuf> {
        self.parsed(|text| {
            let sound = text.starts_with('/') && !text.contains('\0');
            if sound { Ok(PathBuf::from(text)) } else { Err("the path must be absolute") }
        })
    }

    /// A list whose items `read` takes; items that it refuses are left out, with their problems told.
    pub fn list<T>(self, mut read: impl FnMut(Field<'p>) -> Option<T>) -> Option<Vec<T>> {
        let Self { place, node, problems } = self;
        match node.value {
            Value::List(items) => {
                let field = |(index, node): (usize, Node)| {
                    let place = Place { key: format!("{}[{index}]", place.key), line: node.line };
                    Field { place, node, problems }
                };
                Some(items.into_iter().enumerate().filter_map(|item| read(field(item))).collect())
            }
            value => Field { place, node: Node { value, ..node }, problems }.refuse("expected a list"),
        }
    }

    /// A list of at least one item.
    pub fn list_of_some<T>(self, read: impl FnMut(Field<'p>) -> Option<T>) -> Option<Vec<T>> {
        match &self.node.value {
            Value::List(items) if items.is_empty() => self.refuse("must hold at least one"),
            _ => self.list(read),
        }
    }

    /// A map.
    pub fn into_section<T>(self, read: impl FnOnce(&mut Section<'p>) -> T) -> Option<T> {
        let Self { place, node, problems } = self;
        match node.value {
            Value::Map(entries) => Some(Section::run(place, entries, problems, read)),
            value => Field { place, node: Node { value, ..node }, problems }
                .refuse("expected keys with values (a map)"),
        }
    }

    /// A map, or nothing at all, which is an empty one.
    pub fn into_section_or_empty<T>(mut self, read: impl FnOnce(&mut Section<'p>) -> T) -> Option<T> {
        if matches!(self.node.value, Value::Null) {
            self.node.value = Value::Map(Vec::new());
        }
        self.into_section(read)
    }
}

/// A value as it may be shown: on one line, cut, and not at all where it may hold a credential (the
/// user part or the query of a URL).
fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) if text.contains(['@', '?']) => Some("(not shown)".to_owned()),
        Value::Text(text) => Some(format!("\"{}\"", cut(text.escape_debug().to_string()))),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(value) => Some(value.to_string()),
        Value::Null => Some("null".to_owned()),
        Value::List(_) | Value::Map(_) => None,
    }
}

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_SHOWN) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}
