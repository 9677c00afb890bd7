//! Takes a module out of what a source serves: raw, gzip, tar, tar in gzip. Streams: memory does not
//! depend on the size of anything, and every limit ends in an error, never in a shorter module.
//!
//! The whole body is read before success is returned, also what lies behind the module, since
//! digests cover that too. Whether the module is any good is [`check`](super::check)'s question.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::bufread::GzDecoder;

use super::tar::{self, Archive, Kind, Malformed};
use super::{ReadToSlice as _, looks_like, printable};

/// How a module is wrapped in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packaging {
    /// The body is the module.
    Raw,
    /// A tar archive, perhaps in gzip, that holds one `plugin.wasm` at any depth. A body that is a
    /// module after all (`oras push` calls any file a tar layer) is taken as one.
    Layer,
    /// A module, gzip, tar, or tar in gzip, told by its content. A tar must hold exactly one
    /// `*.wasm`, of any name and at any depth.
    Sniff,
}

/// How much is read, at most. Every limit is an error when it is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The module's own size in bytes.
    pub max_module_bytes: u64,
    /// What may be unpacked around the module: other entries of a tar, headers and padding.
    pub max_other_bytes: u64,
    /// Entries of a tar.
    pub max_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_module_bytes: 256 << 20, max_other_bytes: 64 << 20, max_entries: 10_000 }
    }
}

/// How often gzip may be wrapped in gzip. There are gzip files that contain themselves.
const MAX_GZIP_DEPTH: u32 = 2;

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
    #[error("there is gzip within gzip more than {MAX_GZIP_DEPTH} deep")]
    NestedTooDeep,
    #[error("the gzip stream is damaged: {0}")]
    Gzip(#[source] io::Error),
    #[error("the tar archive is damaged: {0}")]
    Tar(&'static str),
    #[error("there is no {wanted} in the archive, only {seen}")]
    NoModule { wanted: &'static str, seen: String },
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
            Self::Tar(_) => "tar",
            Self::NoModule { .. } => "no_module",
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
    let mut unpacking = Unpacking { packaging, limits, out };
    let mut body = Source(body);
    match packaging {
        Packaging::Raw => unpacking.module(&mut body),
        Packaging::Layer | Packaging::Sniff => unpacking.unwrap(&mut body, 0),
    }
}

struct Unpacking<'a> {
    packaging: Packaging,
    limits: &'a Limits,
    out: &'a mut dyn Write,
}

impl Unpacking<'_> {
    /// Tells what the reader holds, takes the module out of it, and reads it to its end.
    fn unwrap(&mut self, reader: &mut dyn Read, depth: u32) -> Result<u64, UnpackError> {
        let limit = self.limits.max_module_bytes.saturating_add(self.limits.max_other_bytes);
        let mut reader = Bounded { inner: reader, left: limit, limit };
        let mut head = [0; 512];
        let filled = reader.read_to_slice(&mut head)?;
        let head = head.get(..filled).unwrap_or_default();
        let mut whole = head.chain(&mut reader);
        let size = match head {
            [0, b'a', b's', b'm', ..] => self.module(&mut whole)?,
            [0x1f, 0x8b, ..] if depth < MAX_GZIP_DEPTH => {
                self.unwrap(&mut Gunzip::new(BufReader::with_capacity(BUFFER, &mut whole)), depth + 1)?
            }
            [0x1f, 0x8b, ..] => return Err(UnpackError::NestedTooDeep),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(UnpackError::Unsupported("zstd compression")),
            _ if tar::is_header(head) => self.archive(&mut whole, limit)?,
            _ => return Err(UnpackError::NotAModule(looks_like(head))),
        };
        io::copy(&mut whole, &mut io::sink())?;
        Ok(size)
    }

    fn archive(&mut self, reader: &mut dyn Read, limit: u64) -> Result<u64, UnpackError> {
        let wanted = match self.packaging {
            Packaging::Layer => "plugin.wasm",
            Packaging::Raw | Packaging::Sniff => "*.wasm",
        };
        let is_wanted =
            |base: &[u8]| base == wanted.as_bytes() || (wanted == "*.wasm" && base.ends_with(b".wasm"));
        let mut archive = Archive::new(reader);
        let mut seen = Seen::default();
        let mut found = None;
        while let Some(entry) = archive.next_entry()? {
            if seen.count >= self.limits.max_entries {
                return Err(UnpackError::TooManyEntries { limit: self.limits.max_entries });
            }
            let name = printable(&entry.name);
            if is_wanted(entry.base_name()) && entry.kind != Kind::Other {
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
            seen.add(name, entry.kind);
        }
        match found {
            Some((size, _)) => Ok(size),
            None => Err(UnpackError::NoModule { wanted, seen: seen.to_string() }),
        }
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

/// The names of an archive's entries, as many as a message holds.
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

/// The body, whose errors must not be taken for those of the format that is read from it.
struct Source<R>(R);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map_err(|e| UnpackError::Read(e).into()),
            }
        }
    }
}

/// A reader that fails where `limit` bytes were not its end.
struct Bounded<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.left =
            self.left.checked_sub(read as u64).ok_or(UnpackError::ExpandsTooFar { limit: self.limit })?;
        Ok(read)
    }
}

/// Decompresses gzip, of any number of members; what follows the last one is left in the reader.
struct Gunzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Gunzip<R> {
    fn new(reader: R) -> Self {
        Self(Some(GzDecoder::new(reader)))
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(buf).map_err(|error| match error.get_ref() {
                Some(inner) if inner.is::<UnpackError>() => error,
                _ => UnpackError::Gzip(error).into(),
            })?;
            if read > 0 || buf.is_empty() {
                return Ok(read);
            }
            // The member has ended, its checksum was right. The first byte of the magic tells
            // another member from padding, which gzip ignores too.
            let Some(mut reader) = self.0.take().map(GzDecoder::into_inner) else { break };
            if reader.fill_buf()?.first() == Some(&0x1f) {
                self.0 = Some(GzDecoder::new(reader));
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests;
