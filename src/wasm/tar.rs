//! A small strict reader for tar streams: ustar, GNU long names, and the PAX records `path` and
//! `size`. It reads one entry after the other, holds no more than a header in memory, and takes an
//! archive only with its end marker, so that one that was cut off is never mistaken for a whole one.
//!
//! Knows nothing of modules: which entry is wanted, and how much may be read, is the caller's.

use std::io::{self, Read, Seek, SeekFrom};

use super::ReadToSlice as _;

const BLOCK: usize = 512;

/// The longest PAX header or GNU long name that is read, in bytes; Linux paths end at 4 KiB, but
/// PAX headers hold extended attributes too.
const MAX_EXTENSION: u64 = 256 * 1024;

/// What is wrong with an archive; arrives inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, malformed)
    }
}

const CUT_OFF: Malformed = Malformed("it is cut off: there is no end marker");

/// One entry; its content is read from the [`Archive`].
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// As the archive has it: not checked, not made safe.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Bytes of content, as declared; nothing has been checked against it yet.
    pub size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    /// A file whose content is stored with holes.
    Sparse,
    Folder,
    /// A link, device, or a kind that is not known.
    Other,
}

impl Entry {
    /// The last part of the name.
    pub fn base_name(&self) -> &[u8] {
        self.name.rsplit(|&b| b == b'/').next().unwrap_or_default()
    }
}

/// Whether these bytes begin with the header of a tar entry, by its checksum.
pub fn is_header(head: &[u8]) -> bool {
    head.first_chunk().is_some_and(|block| Header(block).has_valid_checksum())
}

/// Whether this is where an archive ends, which is all that there is of one of nothing.
pub fn is_end(head: &[u8]) -> bool {
    head.len() == BLOCK && head.iter().all(|&byte| byte == 0)
}

/// The entries of an archive. Reading it as [`Read`] gives the content of the last entry that
/// [`Archive::next_entry`] returned.
pub struct Archive<R> {
    inner: R,
    /// Bytes of the current entry's content that were not read yet.
    content: u64,
    /// Bytes between that content and the next header.
    padding: u64,
    /// Goes over so many bytes, or to the end if that is before; says how many those were.
    pass_over: fn(&mut R, u64) -> io::Result<u64>,
}

impl<R: Read> Archive<R> {
    pub fn new(inner: R) -> Self {
        let pass_over = |inner: &mut R, bytes| io::copy(&mut inner.take(bytes), &mut io::sink());
        Self { inner, content: 0, padding: 0, pass_over }
    }

    /// The next entry, after what is left of the current one was read over. `None` after the end
    /// marker: nothing after it was read then.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut long_name = None;
        let mut pax = Pax::default();
        loop {
            self.skip(self.content.saturating_add(self.padding))?;
            let mut block = [0; BLOCK];
            self.read_exact_inner(&mut block)?;
            let header = Header(&block);
            if block.iter().all(|&b| b == 0) {
                return match (long_name, pax.is_empty()) {
                    (None, true) => Ok(None),
                    _ => Err(Malformed("it ends after a header that describes a next entry").into()),
                };
            }
            if !header.has_valid_checksum() {
                return Err(Malformed("the checksum of a header is wrong").into());
            }
            let size = header.size()?;
            match header.type_flag() {
                b'L' => long_name = Some(until_nul(&self.extension(size)?).to_vec()),
                b'x' => pax = Pax::parse(&self.extension(size)?)?,
                // A link's long target; records for all entries, which name no entry.
                b'K' | b'g' => drop(self.extension(size)?),
                flag => {
                    let kind = match flag {
                        b'0' | b'7' | 0 if pax.sparse => Kind::Sparse,
                        b'0' | b'7' | 0 => Kind::File,
                        b'S' => Kind::Sparse,
                        b'5' => Kind::Folder,
                        _ => Kind::Other,
                    };
                    // Links, devices, folders and pipes have no content, whatever they declare.
                    let size = match flag {
                        b'1'..=b'6' => 0,
                        _ => pax.size.unwrap_or(size),
                    };
                    let name = pax.path.or(long_name).unwrap_or_else(|| header.name());
                    self.begin(size);
                    return Ok(Some(Entry { name, kind, size }));
                }
            }
        }
    }

    fn begin(&mut self, size: u64) {
        let block = BLOCK as u64;
        self.content = size;
        self.padding = (block - size % block) % block;
    }

    /// The content of an entry that describes the next one.
    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(Malformed("a long name or PAX header is larger than 256 KiB").into());
        }
        self.begin(size);
        let mut content = Vec::new();
        self.by_ref().take(size).read_to_end(&mut content)?;
        Ok(content)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = (self.pass_over)(&mut self.inner, bytes)?;
        (self.content, self.padding) = (0, 0);
        if skipped == bytes { Ok(()) } else { Err(CUT_OFF.into()) }
    }

    fn read_exact_inner(&mut self, block: &mut [u8]) -> io::Result<()> {
        let read = (&mut self.inner).take(block.len() as u64).read_to_slice(block)?;
        if read == block.len() { Ok(()) } else { Err(CUT_OFF.into()) }
    }
}

impl<R: Read + Seek> Archive<R> {
    /// The same of what need not be read to be passed over. That an entry is cut off shows where its
    /// content is read, or at the next entry.
    pub fn seeking(inner: R) -> Self {
        let pass_over = |inner: &mut R, bytes: u64| {
            let forward = i64::try_from(bytes).map_err(|_| CUT_OFF)?;
            inner.seek(SeekFrom::Current(forward)).map(|_| bytes)
        };
        Self { pass_over, ..Self::new(inner) }
    }

    /// Where the content of the last entry begins, if nothing of it was read.
    pub fn position(&mut self) -> io::Result<u64> {
        self.inner.stream_position()
    }
}

/// The content of the current entry.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = (&mut self.inner).take(self.content).read(buf)?;
        if n == 0 && self.content > 0 && !buf.is_empty() {
            return Err(CUT_OFF.into());
        }
        self.content -= n as u64;
        Ok(n)
    }
}

/// The 512 bytes before an entry.
struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn field(&self, start: usize, len: usize) -> &[u8] {
        self.0.get(start..start.saturating_add(len)).unwrap_or_default()
    }

    fn type_flag(&self) -> u8 {
        self.0[156]
    }

    fn has_valid_checksum(&self) -> bool {
        let Some(declared) = octal(self.field(148, 8)) else { return false };
        let sum = |value: fn(u8) -> i64| -> i64 {
            let checksum = 8 * i64::from(b' ');
            self.field(0, 148).iter().chain(self.field(156, 356)).map(|&b| value(b)).sum::<i64>() + checksum
        };
        // Some old writers summed the bytes as signed.
        [sum(|b| b.into()), sum(|b| b.cast_signed().into())].iter().any(|&s| u64::try_from(s) == Ok(declared))
    }

    /// Octal digits, or where the first bit is set a big-endian number.
    fn size(&self) -> Result<u64, Malformed> {
        let field = self.field(124, 12);
        let size = match field {
            [0x80, rest @ ..] => rest.iter().try_fold(0u64, |n, &b| Some(n.checked_mul(256)? | u64::from(b))),
            [first, ..] if *first > 0x80 => None,
            _ => octal(field),
        };
        size.ok_or(Malformed("the size of an entry is not a number"))
    }

    fn name(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = until_nul(self.field(345, 155));
        // GNU writes two spaces after "ustar", and uses the place of the prefix for times.
        if self.field(257, 6) == b"ustar\0" && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|&b| b == 0).next().unwrap_or_default()
}

/// Octal digits between optional spaces, up to the first NUL; an empty field is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = until_nul(field).trim_ascii();
    digits.iter().try_fold(0u64, |n, &b| match b {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// The records of a PAX header that change how the next entry is read.
#[derive(Debug, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Pax {
    fn is_empty(&self) -> bool {
        self.path.is_none() && self.size.is_none() && !self.sparse
    }

    /// Records are `LENGTH KEY=VALUE\n`, the length in decimal and of the whole record.
    fn parse(mut rest: &[u8]) -> Result<Self, Malformed> {
        let malformed = || Malformed("a PAX header is malformed");
        let mut pax = Self::default();
        while !rest.is_empty() {
            let space = rest.iter().position(|&b| b == b' ').ok_or_else(malformed)?;
            let digits = rest.get(..space).unwrap_or_default();
            let length = usize::try_from(decimal(digits).ok_or_else(malformed)?).map_err(|_| malformed())?;
            let (record, after) = rest.split_at_checked(length).ok_or_else(malformed)?;
            let record = record.get(space.saturating_add(1)..).and_then(|r| r.strip_suffix(b"\n"));
            let record = record.ok_or_else(malformed)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(malformed)?;
            let (key, value) = record.split_at(equals);
            match (key, value.get(1..).unwrap_or_default()) {
                (b"path" | b"size", b"") => {}
                (b"path", path) => pax.path = Some(path.to_vec()),
                (b"size", size) => pax.size = Some(decimal(size).ok_or_else(malformed)?),
                (key, _) => pax.sparse |= key.starts_with(b"GNU.sparse."),
            }
            rest = after;
        }
        Ok(pax)
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, &b| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
