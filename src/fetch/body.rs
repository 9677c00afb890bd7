//! The bytes of a module's source, for the blocking thread that unpacks and hashes them.
//!
//! A task reads from the network into a channel of a few chunks, and [`Body`] reads from the channel: a
//! slow disk slows the network down, and memory stays the same whatever the size. What was promised,
//! size and digest, is checked before the reader sees the end. One thing is left to [`Body::finish`]:
//! where the body is the module itself, whoever stores it hashes it anyway, and once is enough.
//!
//! Of an image the body is one layer at a time, the last one first; each is held to its own promise, and
//! the next one is asked for when the reader wants it.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::task::AbortOnDropHandle;

use super::download::{Download, Event};
use super::error::FetchError;
use super::hosts::Doubt;
use super::layers::Below;
use super::layout::Layout;
use super::manifest::Layer;
use crate::clock::Clock;
use crate::digest::{BlobDigest, Hasher, PayloadDigest, SourceDigest};
use crate::module::Validators;
use crate::wasm::{Layers, Packaging};

/// Chunks between network and reader, each at most the client's read buffer.
const CHUNKS: usize = 6;
/// As many of them are read from the network at a time: where the reader is the slower one, it wakes another
/// thread each of these times, which is not cheap on a virtual machine.
const AT_A_TIME: usize = 3;

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
/// `Ok(0)` means that all bytes came; [`Body::finish`] tells whether they are what was promised. Must
/// not be read on a thread of the async runtime. Dropping it ends the download.
pub struct Body {
    what: String,
    packaging: Packaging,
    promise: Promise,
    stream: Stream,
    /// What an image has below this layer.
    below: Option<Below>,
    validators: Validators,
    /// None where the body is the module itself.
    hasher: Option<Hasher>,
    /// Bytes of the whole, those before the first one that is read here included.
    seen: u64,
    resumed: Resumed,
    state: State,
    can_go_on: bool,
    /// Of a layer from its first byte on: who gave it.
    doubt: Option<Arc<Doubt>>,
}

/// What did not have to come again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resumed {
    /// How often the download broke off and went on.
    pub times: u64,
    /// Bytes.
    pub saved: u64,
}

enum Stream {
    Network {
        events: mpsc::Receiver<Event>,
        /// What the pump goes on with after an end.
        next: mpsc::Sender<Layer>,
        chunk: Bytes,
        clock: Clock,
        deadline: Instant,
        pump: AbortOnDropHandle<()>,
    },
    /// With the layout that it is of, where it is of one.
    File(io::Take<File>, Option<Arc<Layout>>),
}

/// Interrupts a [`Body`] when it is dropped: its reader, who may be on another thread, is not left to wait
/// for the network.
#[must_use]
pub struct Interrupt(Option<AbortHandle>);

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

#[derive(Clone, Copy)]
enum State {
    Reading,
    /// With the digest of what was read, where it was hashed here.
    Ended {
        hash: Option<[u8; 32]>,
    },
    Failed,
}

impl Body {
    /// A body from the network. `what` names it in errors.
    pub(super) fn network(
        what: String,
        packaging: Packaging,
        promise: Promise,
        download: Download,
        clock: Clock,
    ) -> Self {
        let (sender, events) = mpsc::channel(CHUNKS);
        let (next, layers) = mpsc::channel(1);
        let (seen, resumed, deadline) = (download.at(), download.resumed(), download.deadline());
        let can_go_on = download.can_go_on();
        let pump = AbortOnDropHandle::new(tokio::spawn(pump(download, sender, layers)));
        let stream = Stream::Network { events, next, chunk: Bytes::new(), clock, deadline, pump };
        Body { seen, resumed, can_go_on, ..Self::new(what, packaging, promise, stream) }
    }

    /// A body from a regular file.
    pub(super) fn file(what: String, promise: Promise, file: File) -> Self {
        Self::new(what, Packaging::Sniff, promise, Stream::File(file.take(u64::MAX), None))
    }

    /// A body from a file of a layout.
    pub(super) fn layout(
        what: String,
        packaging: Packaging,
        promise: Promise,
        file: io::Take<File>,
        layout: Arc<Layout>,
    ) -> Self {
        Self::new(what, packaging, promise, Stream::File(file, Some(layout)))
    }

    fn new(what: String, packaging: Packaging, promise: Promise, stream: Stream) -> Self {
        let is_module = packaging == Packaging::Raw && matches!(promise, Promise::Blob { .. });
        let hasher = (!is_module).then(Hasher::default);
        Self {
            what,
            packaging,
            promise,
            stream,
            below: None,
            validators: Validators::default(),
            hasher,
            seen: 0,
            resumed: Resumed::default(),
            state: State::Reading,
            can_go_on: false,
            doubt: None,
        }
    }

    /// Tells who gave the bytes, if they turn out to be others than those that were promised.
    pub(super) fn with_doubt(self, doubt: Arc<Doubt>) -> Self {
        Body { doubt: Some(doubt), ..self }
    }

    /// The same as the topmost layer of an image.
    pub(super) fn above(self, below: Below) -> Self {
        Body { below: Some(below), ..self }
    }

    /// The same with what its server gave along with it.
    pub(super) fn validated_by(self, validators: Validators) -> Self {
        Body { validators, ..self }
    }

    /// By what its server can be asked whether it still serves this.
    pub fn validators(&self) -> &Validators {
        &self.validators
    }

    /// Goes on to the layer below, once this one was read to its end. False where there is none.
    fn descend(&mut self) -> Result<bool, FetchError> {
        let State::Ended { .. } = self.state else { return Err(FetchError::Interrupted) };
        let Some(next) = self.below.as_mut().and_then(Below::next) else { return Ok(false) };
        // Whatever stands in the way, this is no longer the body that ended well.
        self.state = State::Failed;
        let (layer, what) = next?;
        let Promise::Blob { manifest, .. } = self.promise else { return Err(FetchError::Interrupted) };
        match &mut self.stream {
            Stream::Network { next, .. } => {
                next.blocking_send(layer).map_err(|_| FetchError::Interrupted)?;
            }
            Stream::File(file, Some(layout)) => *file = layout.blob(&layer.digest)?,
            Stream::File(_, None) => return Err(FetchError::Interrupted),
        }
        self.promise = Promise::Blob { digest: layer.digest, size: layer.size, manifest };
        (self.what, self.packaging, self.seen) = (what, layer.packaging, 0);
        (self.hasher, self.state) = (Some(Hasher::default()), State::Reading);
        Ok(true)
    }

    /// Whether these are the bytes of what an image has topmost.
    pub fn is_topmost(&self) -> bool {
        !self.below.as_ref().is_some_and(Below::has_begun)
    }

    /// How the module is packed in these bytes.
    pub fn packaging(&self) -> Packaging {
        self.packaging
    }

    /// Ends the download before the body is dropped, for whoever gives the body away. A file's bytes come
    /// without waiting: they are read to their end.
    pub fn interrupt_on_drop(&self) -> Interrupt {
        Interrupt(match &self.stream {
            Stream::Network { pump, .. } => Some(pump.abort_handle()),
            Stream::File(..) => None,
        })
    }

    /// Whether it goes on by itself where it breaks off. Otherwise all of it has to come again.
    pub fn can_go_on(&self) -> bool {
        self.can_go_on
    }

    /// What of it did not have to come again, so far.
    pub fn resumed(&self) -> Resumed {
        self.resumed
    }

    /// How many bytes will come, where that is known.
    pub fn size(&self) -> Option<u64> {
        match self.promise {
            Promise::Blob { size, .. } => Some(size),
            Promise::AtMost { size, .. } => size,
        }
    }

    /// The digest of the source: of the manifest for OCI; otherwise of these bytes. `payload` is the
    /// digest of the module that came out of them.
    ///
    /// # Errors
    /// The bytes are not what was promised, or were not read to their end.
    pub fn finish(self, payload: &PayloadDigest) -> Result<SourceDigest, FetchError> {
        let State::Ended { hash } = self.state else { return Err(FetchError::Interrupted) };
        let hash = hash.unwrap_or(*payload.as_bytes());
        self.check_digest(hash)?;
        Ok(match self.promise {
            Promise::Blob { manifest, .. } => manifest,
            Promise::AtMost { .. } => SourceDigest::from_bytes(hash),
        })
    }

    fn advance(&mut self, buffer: &mut [u8]) -> Result<usize, FetchError> {
        match &mut self.stream {
            Stream::File(file, _) => {
                let count = file.read(buffer).map_err(FetchError::Io)?;
                let bytes = buffer.get(..count).unwrap_or_default();
                if bytes.is_empty() {
                    return self.end();
                }
                self.hasher.iter_mut().for_each(|hasher| hasher.update(bytes));
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
                        Some(Event::Resumed { saved }) => {
                            self.resumed.times += 1;
                            self.resumed.saved = self.resumed.saved.saturating_add(saved);
                            return self.advance(buffer);
                        }
                        Some(Event::End) => return self.end(),
                        Some(Event::Failed(error)) => return Err(error),
                        None => return Err(FetchError::Interrupted),
                    }
                    self.hasher.iter_mut().for_each(|hasher| hasher.update(chunk));
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
        if let Promise::Blob { size, .. } = self.promise
            && self.seen != size
        {
            return Err(self.wrong_size(size, false));
        }
        let hash = self.hasher.take().map(Hasher::finish);
        if let Some(hash) = hash {
            self.check_digest(hash)?;
        }
        self.state = State::Ended { hash };
        Ok(0)
    }

    fn check_digest(&self, hash: [u8; 32]) -> Result<(), FetchError> {
        let actual = BlobDigest::from_bytes(hash);
        match self.promise {
            Promise::Blob { digest, .. } if digest != actual => {
                Err(self.doubted(FetchError::DigestMismatch {
                    what: self.what.clone(),
                    expected: digest.to_string(),
                    actual: actual.to_string(),
                }))
            }
            _ => Ok(()),
        }
    }

    fn wrong_size(&self, expected: u64, at_least: bool) -> FetchError {
        self.doubted(FetchError::SizeMismatch {
            what: self.what.clone(),
            expected,
            actual: self.seen,
            at_least,
        })
    }

    /// Where another host may have what was promised, this is only that one's fault who gave this.
    fn doubted(&self, error: FetchError) -> FetchError {
        match self.doubt.as_ref().and_then(|doubt| doubt.cast()) {
            Some(mirror) => FetchError::Mirror { mirror, source: Box::new(error) },
            None => error,
        }
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

impl Layers for Body {
    fn packaging(&self) -> Packaging {
        self.packaging
    }

    fn next_layer(&mut self) -> io::Result<bool> {
        Ok(self.descend()?)
    }
}

/// Moves what comes into the channel, one layer after the other, until either end is done.
async fn pump(mut download: Download, events: mpsc::Sender<Event>, mut layers: mpsc::Receiver<Layer>) {
    // Who reads no more needs no error.
    while let Ok(places) = events.reserve_many(AT_A_TIME).await {
        for place in places {
            let event = download.next().await;
            let (ended, failed) = (matches!(event, Event::End), matches!(event, Event::Failed(_)));
            place.send(event);
            if failed {
                return;
            }
            if ended {
                let Some(layer) = layers.recv().await else { return };
                if let Err(error) = download.begin(layer).await {
                    let _ = events.send(Event::Failed(error)).await;
                    return;
                }
            }
        }
    }
}
