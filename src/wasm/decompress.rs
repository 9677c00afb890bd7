//! Readers that are stacked between a body and its archive: decompression, and the bound on how much of it
//! there may be. An error keeps its name on the way up: see [`UnpackError`].

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use super::unpack::UnpackError;

/// The most that a zstd stream may have its reader remember, as a power of two: 32 MiB, the most of the
/// common tools' ordinary levels. Allocated only where a stream asks for it.
const MAX_WINDOW_LOG: u32 = 25;

/// Whether this begins a gzip stream.
pub(super) fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
}

/// Whether this begins a zstd stream, be it with a frame that holds something else (RFC 8878, 3.1.2).
pub(super) fn is_zstd(head: &[u8]) -> bool {
    matches!(head, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The body, whose errors must not be taken for those of the format that is read from it.
pub(super) struct Source<R>(pub(super) R);

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
pub(super) struct Bounded<R> {
    pub(super) inner: R,
    pub(super) left: u64,
    pub(super) limit: u64,
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
pub(super) struct Gunzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Gunzip<R> {
    pub(super) fn new(reader: R) -> Self {
        Self(Some(GzDecoder::new(reader)))
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(buf).map_err(|error| named(error, UnpackError::Gzip))?;
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

/// Decompresses zstd, of any number of frames; nothing else may follow the last one.
pub(super) struct Unzstd<R: BufRead>(zstd::Decoder<'static, R>);

impl<R: Read> Unzstd<BufReader<R>> {
    pub(super) fn new(reader: BufReader<R>) -> Result<Self, UnpackError> {
        let mut decoder = zstd::Decoder::with_buffer(reader).map_err(UnpackError::Zstd)?;
        decoder.window_log_max(MAX_WINDOW_LOG).map_err(UnpackError::Zstd)?;
        Ok(Self(decoder))
    }
}

impl<R: BufRead> Read for Unzstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|error| named(error, UnpackError::Zstd))
    }
}

/// The error of a format, unless it is one of the reader below.
fn named(error: io::Error, format: impl FnOnce(io::Error) -> UnpackError) -> io::Error {
    match error.get_ref() {
        Some(inner) if inner.is::<UnpackError>() => error,
        _ => format(error).into(),
    }
}
