//! Takes a module out of what a source serves: raw, in gzip or zstd, in a tar, in an image's layers.
//! Streams: memory does not depend on the size of anything, and every limit ends in an error, never in a
//! shorter module.
//!
//! Every body that is begun is read to its end before success is returned, also what lies behind the
//! module, since digests cover that too. Whether the module is any good is [`check`](super::check)'s
//! question.

use std::fmt;
use std::io::{self, BufReader, Read, Write};

use super::decompress::{Bounded, Gunzip, Source, Unzstd, is_gzip, is_zstd};
use super::hidden::Hidden;
use super::tar::{self, Archive, Entry, Kind, Malformed};
use super::{ReadToSlice as _, looks_like, printable};

/// How a module is wrapped in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packaging {
    /// The body is the module.
    Raw,
    /// A layer of an image: a tar archive, perhaps in gzip or zstd, that holds one `plugin.wasm` at any
    /// depth, or none. A body that is a module after all (`oras push` calls any file a tar layer) is
    /// taken as one.
    Layer,
    /// A module or a tar, perhaps in gzip or zstd, told by its content. A tar must hold exactly one
    /// `*.wasm`, of any name and at any depth.
    Sniff,
}

/// How much is read, at most, of all bodies together. Every limit is an error when it is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The module's own size in bytes.
    pub max_module_bytes: u64,
    /// What may be unpacked around the module: other entries of a tar, headers and padding.
    pub max_other_bytes: u64,
    /// Entries of tars.
    pub max_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_module_bytes: 256 << 20, max_other_bytes: 64 << 20, max_entries: 10_000 }
    }
}

/// How often compression may be wrapped in compression. There are gzip files that contain themselves.
const MAX_DEPTH: u32 = 2;

/// Bytes that are moved at a time.
const BUFFER: usize = 64 * 1024;

/// How many entry names a message lists.
const MAX_NAMES: usize = 5;

/// Why no module came out of a body.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The body could not be read; holds what its reader returned.
    #[error("the module could not be read: {0}")]
    Read(#[source] io::Error),
    /// The place where the module goes could not be written.
    #[error("the module could not be written: {0}")]
    Write(#[source] io::Error),
    #[error("the module is larger than the limit of {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the archive unpacks to more than the limit of {limit} bytes")]
    ExpandsTooFar { limit: u64 },
    #[error("the archive has more than {limit} entries")]
    TooManyEntries { limit: u64 },
    #[error("there is compression within compression more than {MAX_DEPTH} deep")]
    NestedTooDeep,
    #[error("the gzip stream is damaged: {0}")]
    Gzip(#[source] io::Error),
    #[error("the zstd stream is damaged, or asks for more memory than is given to one: {0}")]
    Zstd(#[source] io::Error),
    #[error("the tar archive is damaged: {0}")]
    Tar(&'static str),
    #[error("there is no {wanted} in the archive, only {seen}")]
    NoModule { wanted: &'static str, seen: String },
    #[error("a later layer of the image removes or replaces its {name}")]
    Removed { name: String },
    #[error("there is more than one {wanted} in the archive: {first} and {second}")]
    Ambiguous { wanted: &'static str, first: String, second: String },
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("this is neither a Wasm module nor an archive of one: it looks like {0}")]
    NotAModule(&'static str),
}

impl UnpackError {
    /// A short name for the metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Write(_) => "write",
            Self::TooLarge { .. } => "too_large",
            Self::ExpandsTooFar { .. } => "expands_too_far",
            Self::TooManyEntries { .. } => "too_many_entries",
            Self::NestedTooDeep => "nested_too_deep",
            Self::Gzip(_) => "gzip",
            Self::Zstd(_) => "zstd",
            Self::Tar(_) => "tar",
            Self::NoModule { .. } => "no_module",
            Self::Removed { .. } => "removed",
            Self::Ambiguous { .. } => "ambiguous",
            Self::Unsupported(_) => "unsupported",
            Self::NotAModule(_) => "not_a_module",
        }
    }
}

/// Readers are stacked, so what goes wrong in one comes out of those above it as an [`io::Error`];
/// this is how it keeps its name on the way.
impl From<UnpackError> for io::Error {
    fn from(error: UnpackError) -> Self {
        io::Error::other(error)
    }
}

impl From<io::Error> for UnpackError {
    fn from(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(|error| match error.downcast::<Malformed>() {
            Ok(Malformed(what)) => Self::Tar(what),
            Err(error) => Self::Read(error),
        })
    }
}

/// Bodies, one of which holds the module: a file, or the layers of an image, the last one first. As
/// [`Read`] it is the one at hand.
pub trait Layers: Read {
    /// How the module lies in the one at hand.
    fn packaging(&self) -> Packaging;

    /// Goes on to the next one, once this one was read to its end. False where there is none.
    fn next_layer(&mut self) -> io::Result<bool>;
}

/// Copies the module out of `body` into `out` and returns its size in bytes. Success means that
/// `body` was read to its end.
///
/// # Errors
///
/// See [`UnpackError`]. After an error what `out` received is worthless, and `body` may have been
/// left unread in part.
pub fn unpack(
    body: impl Read,
    packaging: Packaging,
    limits: &Limits,
    out: &mut dyn Write,
) -> Result<u64, UnpackError> {
    let mut unpacking = Unpacking::new(limits, out);
    match unpacking.body(body, packaging)? {
        Some(size) => Ok(size),
        None => Err(unpacking.nothing(packaging)),
    }
}

/// The same for an image: out of the first of `layers` that holds a module which none before it has
/// removed or replaced. Those behind that one are not asked for.
pub fn unpack_layers(
    layers: &mut impl Layers,
    limits: &Limits,
    out: &mut dyn Write,
) -> Result<u64, UnpackError> {
    let mut unpacking = Unpacking::new(limits, out);
    loop {
        let packaging = layers.packaging();
        if let Some(size) = unpacking.body(&mut *layers, packaging)? {
            return Ok(size);
        }
        if unpacking.hidden.is_all() || !layers.next_layer().map_err(UnpackError::Read)? {
            return Err(unpacking.nothing(packaging));
        }
    }
}

struct Unpacking<'a> {
    limits: &'a Limits,
    /// Bytes that may still be unpacked.
    left: u64,
    /// What the bodies so far leave nothing of in those that follow.
    hidden: Hidden,
    /// A module that one body holds and another one hides.
    removed: Option<String>,
    seen: Seen,
    out: &'a mut dyn Write,
}

impl<'a> Unpacking<'a> {
    fn new(limits: &'a Limits, out: &'a mut dyn Write) -> Self {
        let left = limits.max_module_bytes.saturating_add(limits.max_other_bytes);
        Self { limits, left, hidden: Hidden::default(), removed: None, seen: Seen::default(), out }
    }

    /// Why there is no module, once all was read.
    fn nothing(self, packaging: Packaging) -> UnpackError {
        match self.removed {
            Some(name) => UnpackError::Removed { name },
            None => UnpackError::NoModule { wanted: wanted(packaging), seen: self.seen.to_string() },
        }
    }

    /// Takes the module out of a body, if it holds one, and reads it to its end.
    fn body(&mut self, body: impl Read, packaging: Packaging) -> Result<Option<u64>, UnpackError> {
        let mut body = Source(body);
        match packaging {
            Packaging::Raw => self.module(&mut body).map(Some),
            Packaging::Layer | Packaging::Sniff => {
                let (found, left) = self.unwrap(&mut body, packaging, 0)?;
                self.left = left;
                Ok(found)
            }
        }
    }

    /// Tells what the reader holds, takes the module out of it, and reads it to its end. Says also how
    /// many bytes may still be unpacked after that.
    fn unwrap(
        &mut self,
        reader: &mut dyn Read,
        packaging: Packaging,
        depth: u32,
    ) -> Result<(Option<u64>, u64), UnpackError> {
        let limit = self.limits.max_module_bytes.saturating_add(self.limits.max_other_bytes);
        let mut reader = Bounded { inner: reader, left: self.left, limit };
        let mut head = [0; 512];
        let filled = reader.read_to_slice(&mut head)?;
        let head = head.get(..filled).unwrap_or_default();
        let mut whole = head.chain(&mut reader);
        let mut left = u64::MAX;
        let found = match head {
            [0, b'a', b's', b'm', ..] => Some(self.module(&mut whole)?),
            _ if is_gzip(head) || is_zstd(head) => {
                if depth >= MAX_DEPTH {
                    return Err(UnpackError::NestedTooDeep);
                }
                let buffered = BufReader::with_capacity(BUFFER, &mut whole);
                let (found, of_inner) = match is_gzip(head) {
                    true => self.unwrap(&mut Gunzip::new(buffered), packaging, depth + 1)?,
                    false => self.unwrap(&mut Unzstd::new(buffered)?, packaging, depth + 1)?,
                };
                left = of_inner;
                found
            }
            _ if tar::is_header(head) => self.archive(&mut whole, packaging, limit)?,
            // A layer that changes nothing is an archive of nothing.
            _ if packaging == Packaging::Layer && tar::is_end(head) => None,
            _ => return Err(UnpackError::NotAModule(looks_like(head))),
        };
        io::copy(&mut whole, &mut io::sink())?;
        Ok((found, left.min(reader.left)))
    }

    fn archive(
        &mut self,
        reader: &mut dyn Read,
        packaging: Packaging,
        limit: u64,
    ) -> Result<Option<u64>, UnpackError> {
        let wanted = wanted(packaging);
        let is_wanted = |entry: &Entry| match packaging {
            Packaging::Layer => entry.base_name() == wanted.as_bytes(),
            Packaging::Raw | Packaging::Sniff => entry.base_name().ends_with(b".wasm"),
        };
        let mut archive = Archive::new(reader);
        let mut found = None;
        // What this one hides is in those that follow, not in itself.
        let mut hides = Hidden::default();
        while let Some(entry) = archive.next_entry()? {
            if self.seen.count >= self.limits.max_entries {
                return Err(UnpackError::TooManyEntries { limit: self.limits.max_entries });
            }
            let name = printable(&entry.name);
            let is_module = is_wanted(&entry) && matches!(entry.kind, Kind::File | Kind::Sparse);
            if is_module && self.hidden.hides(&entry.name)? {
                self.removed.get_or_insert_with(|| name.clone());
            } else if is_module {
                if let Some((_, first)) = found {
                    return Err(UnpackError::Ambiguous { wanted, first, second: name });
                }
                if entry.kind == Kind::Sparse {
                    return Err(UnpackError::Unsupported("a module stored as a sparse file"));
                }
                // Known before a byte of it is written.
                if entry.size > self.limits.max_module_bytes {
                    return Err(UnpackError::TooLarge { limit: self.limits.max_module_bytes });
                }
                found = Some((self.module(&mut archive)?, name.clone()));
            } else if entry.size > limit {
                return Err(UnpackError::ExpandsTooFar { limit });
            }
            if packaging == Packaging::Layer {
                hides.add(&entry)?;
            }
            self.seen.add(name, entry.kind);
        }
        self.hidden.merge(hides)?;
        Ok(found.map(|(size, _)| size))
    }

    /// Copies what the reader holds.
    fn module(&mut self, reader: &mut dyn Read) -> Result<u64, UnpackError> {
        let limit = self.limits.max_module_bytes;
        let mut buffer = vec![0; BUFFER];
        let mut size = 0u64;
        loop {
            let read = reader.read_to_slice(&mut buffer)?;
            let bytes = buffer.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(size);
            }
            size = size.saturating_add(read as u64);
            if size > limit {
                return Err(UnpackError::TooLarge { limit });
            }
            self.out.write_all(bytes).map_err(UnpackError::Write)?;
        }
    }
}

/// What the module is called in an archive.
fn wanted(packaging: Packaging) -> &'static str {
    match packaging {
        Packaging::Layer => "plugin.wasm",
        Packaging::Raw | Packaging::Sniff => "*.wasm",
    }
}

/// The names of the entries, as many as a message holds.
#[derive(Default)]
struct Seen {
    names: Vec<String>,
    count: u64,
}

impl Seen {
    fn add(&mut self, name: String, kind: Kind) {
        if self.names.len() < MAX_NAMES {
            self.names.push(if kind == Kind::File { name } else { format!("{name} (not a regular file)") });
        }
        self.count = self.count.saturating_add(1);
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&self.names.join(", "))?;
        match self.count.saturating_sub(self.names.len() as u64) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests;
