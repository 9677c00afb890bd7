//! Takes a message apart around one field deep inside it, and puts it together again with
//! something else there. All that is not on the way to that field stays as it was written, unknown
//! fields included, byte for byte and in place.

use bytes::Bytes;

use super::RewriteError;
use crate::protobuf::wire::{Field, Fields, Value, len_size, put_len_head};

/// A message with a gap where one field's value belongs.
#[derive(Clone)]
pub(super) struct Frame {
    before: Bytes,
    number: u32,
    after: Bytes,
}

impl Frame {
    /// A message of a field that is already encoded (or nothing), then the gap.
    pub fn behind(before: Vec<u8>, number: u32) -> Self {
        Self { before: before.into(), number, after: Bytes::new() }
    }

    /// The message without the field.
    pub fn without(&self) -> Bytes {
        [&self.before[..], &self.after[..]].concat().into()
    }
}

/// A whole message with a gap deep inside it: frames, the outermost first.
#[derive(Clone, Default)]
pub(super) struct Template(Vec<Frame>);

impl Template {
    /// Makes the gap smaller: what filled it is now `frame`, around a gap of its own.
    pub fn push(&mut self, frame: Frame) {
        self.0.push(frame);
    }

    /// Goes down into a singular sub-message; `None`, and nothing changed, where there is none.
    pub fn enter(
        &mut self,
        name: &'static str,
        message: &Bytes,
        number: u32,
    ) -> Result<Option<Bytes>, RewriteError> {
        let opened = open(name, message, number)?;
        Ok(opened.map(|(frame, inner)| {
            self.push(frame);
            inner
        }))
    }

    /// The message with `leaf` in its gap.
    pub fn fill(&self, leaf: &[u8]) -> Bytes {
        // Lengths are known from the inside, bytes are written from the outside.
        let mut lengths = Vec::with_capacity(self.0.len());
        let mut length = leaf.len();
        for frame in self.0.iter().rev() {
            lengths.push(length);
            length = frame.before.len() + len_size(frame.number, length) + frame.after.len();
        }
        let mut out = Vec::with_capacity(length);
        for (frame, length) in self.0.iter().zip(lengths.into_iter().rev()) {
            out.extend_from_slice(&frame.before);
            put_len_head(&mut out, frame.number, length);
        }
        out.extend_from_slice(leaf);
        for frame in self.0.iter().rev() {
            out.extend_from_slice(&frame.after);
        }
        out.into()
    }
}

impl FromIterator<Frame> for Template {
    fn from_iter<I: IntoIterator<Item = Frame>>(frames: I) -> Self {
        Self(frames.into_iter().collect())
    }
}

/// A field that was cut out.
pub(super) struct Taken {
    pub number: u32,
    /// The value of a string, bytes or message; empty for a number.
    pub bytes: Bytes,
    /// The value of a number.
    pub bits: u64,
}

/// A message that some fields were cut out of; never none of them.
pub(super) struct Cut {
    before: Bytes,
    pub taken: Vec<Taken>,
    after: Bytes,
}

impl Cut {
    /// The message with a gap for one field, where the first of those that were cut out stood.
    pub fn into_frame(self, number: u32) -> Frame {
        Frame { before: self.before, number, after: self.after }
    }

    /// The message without the fields.
    pub fn without(&self) -> Bytes {
        [&self.before[..], &self.after[..]].concat().into()
    }

    /// The last field that was cut out: of a singular scalar, of one-of fields and of equal keys of a
    /// map it is the one that counts.
    pub fn last(&self) -> Option<&Taken> {
        self.taken.last()
    }

    /// The sub-message that the last fields with the last one's number merge to, which by
    /// protobuf's rule is their concatenation. (An earlier one-of of another number cleared what
    /// was before it.)
    pub fn merged(&self) -> Bytes {
        let number = self.last().map(|last| last.number);
        let run = self.taken.rsplit(|taken| Some(taken.number) != number).next().unwrap_or_default();
        match run {
            [one] => one.bytes.clone(),
            run => run.iter().map(|taken| &taken.bytes[..]).collect::<Vec<_>>().concat().into(),
        }
    }
}

/// Cuts the fields that `belongs` chooses out of a message called `name`. `None` if there are none.
pub(super) fn cut(
    name: &'static str,
    message: &Bytes,
    mut belongs: impl FnMut(&Field<'_>) -> Result<bool, RewriteError>,
) -> Result<Option<Cut>, RewriteError> {
    let mut taken = Vec::new();
    let mut gaps = Vec::new();
    for field in Fields::of(name, message) {
        let field = field?;
        if !belongs(&field)? {
            continue;
        }
        let (bytes, bits) = match field.value {
            Value::Len(bytes) | Value::Group(bytes) => (message.slice_ref(bytes), 0),
            Value::Varint(bits) => (Bytes::new(), bits),
            Value::Fixed64(bits) => (Bytes::new(), u64::from_le_bytes(bits)),
            Value::Fixed32(bits) => (Bytes::new(), u32::from_le_bytes(bits).into()),
        };
        taken.push(Taken { number: field.number, bytes, bits });
        gaps.push(field.range);
    }
    let Some(first) = gaps.first() else { return Ok(None) };
    let before = message.slice(..first.start);
    let starts = gaps.iter().map(|gap| gap.end);
    let ends = gaps.iter().skip(1).map(|gap| gap.start).chain([message.len()]);
    let mut rest: Vec<Bytes> = starts.zip(ends).map(|(start, end)| message.slice(start..end)).collect();
    let after = match rest.as_mut_slice() {
        [one] => std::mem::take(one),
        rest => rest.concat().into(),
    };
    Ok(Some(Cut { before, taken, after }))
}

/// A singular sub-message, and what is around it.
pub(super) fn open(
    name: &'static str,
    message: &Bytes,
    number: u32,
) -> Result<Option<(Frame, Bytes)>, RewriteError> {
    let cut = cut(name, message, |field| Ok(is_len(field, number)))?;
    Ok(cut.map(|cut| {
        let inner = cut.merged();
        (cut.into_frame(number), inner)
    }))
}

/// Whether this is the string, bytes or message field of that number.
pub(super) fn is_len(field: &Field<'_>, number: u32) -> bool {
    field.number == number && matches!(field.value, Value::Len(_))
}
