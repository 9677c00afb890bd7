//! The bytes of a module's source, for the blocking thread that unpacks and hashes them.
//!
//! A task reads from the network into a channel of a few chunks, and [`Body`] reads from the channel: a
//! slow disk slows the network down, and memory stays the same whatever the size. What was promised,
//! size and digest, is checked before the reader sees the end.

use std::fs::File;
use std::io::{self, Read};
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::error::FetchError;
use super::http::Response;
use crate::clock::Clock;
use crate::digest::{BlobDigest, SourceDigest};
use crate::wasm::Packaging;

/// Chunks between network and reader, each at most the client's read buffer.
const CHUNKS: usize = 4;

/// What the body is held to.
#[derive(Debug, Clone)]
pub(super) enum Promise {
    /// An OCI layer: exactly these bytes. The source is its manifest.
    Blob { digest: BlobDigest, size: u64, manifest: SourceDigest },
    /// Whatever comes, up to a limit. The source is the body itself; its size is known at times.
    AtMost { limit: u64, size: Option<u64> },
}

/// Blocking reader over the bytes of a module's source.
///
/// An error of `read` carries a [`FetchError`], to be taken out with [`FetchError::from_io`].
/// `Ok(0)` means that all bytes came and are what was promised. Must not be read on a thread of the
/// async runtime. Dropping it ends the download.
pub struct Body {
    what: String,
    packaging: Packaging,
    promise: Promise,
    stream: Stream,
    hasher: Sha256,
    seen: u64,
    state: State,
}

enum Stream {
    Network {
        events: mpsc::Receiver<Event>,
        chunk: Bytes,
        clock: Clock,
        deadline: Instant,
        _pump: AbortOnDropHandle<()>,
    },
    File(File),
}

enum Event {
    Chunk(Bytes),
    End,
    Failed(FetchError),
}

#[derive(Clone, Copy)]
enum State {
    Reading,
    Ended { source: SourceDigest },
    Failed,
}

impl Body {
    /// A body from the network. `what` names it in errors.
    pub(super) fn network(
        what: String,
        packaging: Packaging,
        promise: Promise,
        response: Response,
        clock: Clock,
        deadline: Instant,
    ) -> Self {
        let (sender, events) = mpsc::channel(CHUNKS);
        let pump = AbortOnDropHandle::new(tokio::spawn(pump(response, sender)));
        let stream = Stream::Network { events, chunk: Bytes::new(), clock, deadline, _pump: pump };
        Self::new(what, packaging, promise, stream)
    }

    /// A body from a regular file.
    pub(super) fn file(what: String, promise: Promise, file: File) -> Self {
        Self::new(what, Packaging::Sniff, promise, Stream::File(file))
    }

    fn new(what: String, packaging: Packaging, promise: Promise, stream: Stream) -> Self {
        Self { what, packaging, promise, stream, hasher: Sha256::new(), seen: 0, state: State::Reading }
    }

    /// How the module is packed in these bytes.
    pub fn packaging(&self) -> Packaging {
        self.packaging
    }

    /// How many bytes will come, where that is known.
    pub fn size(&self) -> Option<u64> {
        match self.promise {
            Promise::Blob { size, .. } => Some(size),
            Promise::AtMost { size, .. } => size,
        }
    }

    /// The digest of the source: of the manifest for OCI; otherwise of these bytes, known after the
    /// end was read.
    pub fn source(&self) -> Option<SourceDigest> {
        match (&self.promise, self.state) {
            (Promise::Blob { manifest, .. }, _) => Some(*manifest),
            (Promise::AtMost { .. }, State::Ended { source }) => Some(source),
            (Promise::AtMost { .. }, _) => None,
        }
    }

    fn advance(&mut self, buffer: &mut [u8]) -> Result<usize, FetchError> {
        match &mut self.stream {
            Stream::File(file) => {
                let count = file.read(buffer).map_err(FetchError::Io)?;
                let bytes = buffer.get(..count).unwrap_or_default();
                if bytes.is_empty() {
                    return self.end();
                }
                self.hasher.update(bytes);
                self.count(count)?;
                Ok(count)
            }
            Stream::Network { events, chunk, clock, deadline, .. } => {
                if chunk.is_empty() {
                    // The pump waits for the server only; here is where a slow reader's time runs out.
                    if clock.now() >= *deadline {
                        return Err(FetchError::Timeout { during: "reading", host: self.what.clone() });
                    }
                    match events.blocking_recv() {
                        Some(Event::Chunk(bytes)) => *chunk = bytes,
                        Some(Event::End) => return self.end(),
                        Some(Event::Failed(error)) => return Err(error),
                        None => return Err(FetchError::Interrupted),
                    }
                    self.hasher.update(&*chunk);
                    let count = chunk.len();
                    self.count(count)?;
                }
                Ok(self.take(buffer))
            }
        }
    }

    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let Stream::Network { chunk, .. } = &mut self.stream else { return 0 };
        let count = chunk.len().min(buffer.len());
        chunk.split_to(count).copy_to_slice(&mut buffer[..count]);
        count
    }

    fn count(&mut self, bytes: usize) -> Result<(), FetchError> {
        self.seen = self.seen.saturating_add(bytes as u64);
        match self.promise {
            Promise::Blob { size, .. } if self.seen > size => Err(self.wrong_size(size, true)),
            Promise::AtMost { limit, .. } if self.seen > limit => {
                Err(FetchError::TooLarge { what: self.what.clone(), limit })
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<usize, FetchError> {
        let hash: [u8; 32] = std::mem::take(&mut self.hasher).finalize().into();
        if let Promise::Blob { digest, size, .. } = self.promise {
            if self.seen != size {
                return Err(self.wrong_size(size, false));
            }
            let actual = BlobDigest::from_bytes(hash);
            if actual != digest {
                return Err(FetchError::DigestMismatch {
                    what: self.what.clone(),
                    expected: digest.to_string(),
                    actual: actual.to_string(),
                });
            }
        }
        self.state = State::Ended { source: SourceDigest::from_bytes(hash) };
        Ok(0)
    }

    fn wrong_size(&self, expected: u64, at_least: bool) -> FetchError {
        FetchError::SizeMismatch { what: self.what.clone(), expected, actual: self.seen, at_least }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.state {
            _ if buffer.is_empty() => Ok(0),
            State::Ended { .. } => Ok(0),
            // Whoever reads on after an error must not mistake the silence for the end.
            State::Failed => Err(FetchError::Interrupted.into()),
            State::Reading => self.advance(buffer).map_err(|error| {
                self.state = State::Failed;
                error.into()
            }),
        }
    }
}

/// Moves the answer's body into the channel until either end is done.
async fn pump(mut response: Response, events: mpsc::Sender<Event>) {
    loop {
        let event = match response.chunk().await {
            Ok(Some(chunk)) => Event::Chunk(chunk),
            Ok(None) => Event::End,
            Err(error) => Event::Failed(error),
        };
        let last = !matches!(event, Event::Chunk(_));
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}
