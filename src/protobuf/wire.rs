//! Reads and writes the wire format: fields, without any knowledge of which ones a message has.

use std::ops::Range;

use super::{Fault, WireError};

/// Groups within groups; the limit that Envoy's own parser has for nesting.
const MAX_GROUP_DEPTH: usize = 100;
/// 2^29 - 1.
const MAX_FIELD_NUMBER: u32 = (1 << 29) - 1;

/// One field's value as it is on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    /// A string, bytes, a message or packed numbers.
    Len(&'a [u8]),
    /// What is between the two tags of a group. Nothing that Envoy reads is a group, but an
    /// unknown field may be.
    Group(&'a [u8]),
    Fixed32([u8; 4]),
}

/// One field of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Field<'a> {
    pub number: u32,
    pub value: Value<'a>,
    /// Where the whole field is in its message, tag included.
    pub range: Range<usize>,
}

/// The fields of a message in the order that they were written. After an error it ends.
///
/// As in Envoy's parser a known field with a wire type that it should not have is an unknown
/// field. That comes by itself where a reader matches on number and [`Value`] together.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    name: &'static str,
}

impl<'a> Fields<'a> {
    /// The fields of `bytes`, which should be a message called `name` (for errors).
    pub fn of(name: &'static str, bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, name }
    }

    #[inline]
    fn read(&mut self) -> Result<Field<'a>, Fault> {
        let start = self.at;
        let (number, wire_type) = self.tag()?;
        let value = match wire_type {
            4 => return Err(Fault::Group),
            3 => Value::Group(self.group(number)?),
            wire_type => self.scalar(wire_type)?,
        };
        Ok(Field { number, value, range: start..self.at })
    }

    #[inline]
    fn tag(&mut self) -> Result<(u32, u8), Fault> {
        let tag = self.short_varint()?;
        match tag >> 3 {
            number @ 1..=MAX_FIELD_NUMBER => Ok((number, (tag & 7) as u8)),
            _ => Err(Fault::FieldNumber),
        }
    }

    #[inline]
    fn scalar(&mut self, wire_type: u8) -> Result<Value<'a>, Fault> {
        match wire_type {
            0 => self.varint().map(Value::Varint),
            1 => self.array().map(Value::Fixed64),
            2 => {
                let length = self.short_varint()?;
                self.take(length as usize).map(Value::Len)
            }
            5 => self.array().map(Value::Fixed32),
            _ => Err(Fault::WireType),
        }
    }

    /// What is between the start tag, already read, and its end tag, which is read too.
    fn group(&mut self, number: u32) -> Result<&'a [u8], Fault> {
        let start = self.at;
        let mut open = vec![number];
        loop {
            let end = self.at;
            match self.tag()? {
                (_, 3) if open.len() == MAX_GROUP_DEPTH => return Err(Fault::TooDeep),
                (number, 3) => open.push(number),
                (number, 4) => {
                    if open.pop() != Some(number) {
                        return Err(Fault::Group);
                    }
                    if open.is_empty() {
                        return self.bytes.get(start..end).ok_or(Fault::Truncated);
                    }
                }
                (_, wire_type) => {
                    self.scalar(wire_type)?;
                }
            }
        }
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                return Err(Fault::Overlong);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Fault::Overlong)
    }

    /// A tag or a length: 32 bits in five bytes at most.
    #[inline]
    fn short_varint(&mut self) -> Result<u32, Fault> {
        match self.bytes.get(self.at) {
            // Nearly all tags and most lengths: every message that passes by is walked over.
            Some(byte) if *byte < 0x80 => {
                self.at += 1;
                Ok(u32::from(*byte))
            }
            _ => self.longer_varint(),
        }
    }

    fn longer_varint(&mut self) -> Result<u32, Fault> {
        let start = self.at;
        let value = u32::try_from(self.varint()?).map_err(|_| Fault::Overlong)?;
        if self.at - start > 5 { Err(Fault::Overlong) } else { Ok(value) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.take(N)?.try_into().map_err(|_| Fault::Truncated)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(length).ok_or(Fault::Truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(Fault::Truncated)?;
        self.at = end;
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.read().map_err(|fault| {
            self.at = self.bytes.len();
            WireError::Malformed { message: self.name, fault }
        });
        Some(field)
    }
}

/// The text of the string field called `field` (for the error).
pub fn text<'a>(field: &'static str, bytes: &'a [u8]) -> Result<&'a str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| WireError::Utf8 { field })
}

/// Key and value of an entry of a map from string to string, whose UTF-8 is for the caller to
/// check. What is missing is empty; the last of each counts.
pub fn entry<'a>(name: &'static str, bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), WireError> {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    for field in Fields::of(name, bytes) {
        let field = field?;
        match (field.number, field.value) {
            (1, Value::Len(bytes)) => key = bytes,
            (2, Value::Len(bytes)) => value = bytes,
            _ => {}
        }
    }
    Ok((key, value))
}

/// Writes a string, bytes or an encoded message; an empty one too.
pub fn put_len(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_len_head(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// Writes what stands before the `length` bytes of a string, bytes or an encoded message.
pub fn put_len_head(out: &mut Vec<u8>, number: u32, length: usize) {
    put_tag(out, number, 2);
    put_raw_varint(out, length as u64);
}

/// Writes a singular string, which proto3 leaves out where it is empty. For a string whose
/// presence counts (repeated, or one of several) use [`put_len`].
pub fn put_string(out: &mut Vec<u8>, number: u32, text: &str) {
    if !text.is_empty() {
        put_len(out, number, text.as_bytes());
    }
}

/// Writes a number, an enum or a bool, which proto3 leaves out where it is zero. A negative one is
/// its two's complement.
pub fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    if value != 0 {
        put_tag(out, number, 0);
        put_raw_varint(out, value);
    }
}

/// Writes the message that `fill` fills; an empty one too.
pub fn put_message(out: &mut Vec<u8>, number: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut message = Vec::new();
    fill(&mut message);
    put_len(out, number, &message);
}

/// Writes one entry of a map from string to string.
pub fn put_entry(out: &mut Vec<u8>, number: u32, key: &str, value: &str) {
    put_message(out, number, |entry| {
        put_string(entry, 1, key);
        put_string(entry, 2, value);
    });
}

/// How many bytes [`put_len`] writes for a value of `length` bytes.
pub fn len_size(number: u32, length: usize) -> usize {
    varint_size(u64::from(number) << 3) + varint_size(length as u64) + length
}

fn varint_size(value: u64) -> usize {
    // Seven bits a byte, and zero takes one.
    (70 - (value | 1).leading_zeros() as usize) / 7
}

fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u64) {
    put_raw_varint(out, u64::from(number) << 3 | wire_type);
}

fn put_raw_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The message without its fields of these numbers, and with `append`, itself a run of fields,
/// after the others. All else stays byte for byte.
pub fn replace_fields(message: &[u8], drop: &[u32], append: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len() + append.len());
    for field in Fields::of("the message", message) {
        let field = field?;
        if !drop.contains(&field.number) {
            out.extend_from_slice(message.get(field.range).unwrap_or_default());
        }
    }
    out.extend_from_slice(append);
    Ok(out)
}
