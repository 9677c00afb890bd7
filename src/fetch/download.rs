//! The bytes of a source as they come, and what is done when they stop coming: the same is asked for
//! again from there, as long as that brings it on. The first request's rules for credentials, redirects
//! and addresses hold for the later ones too, since they take the same way from its start.
//!
//! A part is what was asked for only where the server says so in every detail. A layer is named by its
//! digest, so that a server that gives all of it again will do; a URL's bytes are the same ones only under
//! the same strong ETag.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use url::Url;

use super::Shared;
use super::body::Resumed;
use super::error::{FetchError, RegistryCode};
use super::http::{Request, Response, Session};
use super::manifest::Layer;
use super::others::Others;
use super::repository::Repository;
use super::retry::Tries;
use crate::module::Validators;

/// How often one download goes on after it broke off.
const MAX_RESUMES: u32 = 5;
/// Before the first time; doubled for each later one.
const PAUSE: Duration = Duration::from_millis(100);

/// What can be asked for again.
pub(super) enum Origin {
    Layer { repository: Box<Repository>, layer: Layer, others: Others },
    Url { shared: Arc<Shared>, url: Url, what: String, etag: Option<HeaderValue> },
}

/// An answer, and how many of its bytes have been had before.
pub(super) struct Part {
    pub(super) response: Response,
    pub(super) skip: u64,
}

/// One of the things that come of a download.
pub(super) enum Event {
    Chunk(Bytes),
    /// It broke off and goes on; so many bytes need not come again.
    Resumed {
        saved: u64,
    },
    End,
    Failed(FetchError),
}

/// A download under way.
pub(super) struct Download {
    origin: Origin,
    part: Part,
    /// How far it is, in bytes of the whole.
    at: u64,
    /// Of the whole, where that is known.
    size: Option<u64>,
    deadline: Instant,
    /// How far it was when it last went on.
    resumed_at: u64,
    resumes: u32,
    /// Since it last brought something.
    tries: Tries,
}

impl Download {
    /// Goes on with `part`, which brings what follows the first `at` bytes.
    pub(super) fn new(origin: Origin, part: Part, at: u64, size: Option<u64>, deadline: Instant) -> Self {
        let tries = Tries::new(origin.shared(), deadline);
        Download { origin, part, at, size, deadline, resumed_at: at, resumes: 0, tries }
    }

    /// How many bytes of the whole come before those of this download.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// What need not come for a download that is begun like this.
    pub(super) fn resumed(&self) -> Resumed {
        Resumed { times: 0, saved: if self.part.skip == 0 { self.at } else { 0 } }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Goes on with another layer of the same image, from its start.
    pub(super) async fn begin(&mut self, next: Layer) -> Result<(), FetchError> {
        let Origin::Layer { repository, layer, others } = &mut self.origin else {
            return Err(FetchError::Interrupted);
        };
        others.begin(repository, &next);
        *layer = next;
        self.tries = Tries::new(self.origin.shared(), self.deadline);
        self.part = self.origin.part(0, Some(next.size), self.deadline).await?;
        (self.at, self.size, self.resumed_at) = (0, Some(next.size), 0);
        Ok(())
    }

    /// Whether the rest of it can be told from the rest of something else.
    pub(super) fn can_go_on(&self) -> bool {
        matches!(self.origin, Origin::Layer { .. } | Origin::Url { etag: Some(_), .. })
    }

    /// What comes next; nothing more after the end or a failure.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            match self.part.response.chunk().await {
                Ok(Some(mut chunk)) => {
                    let known = self.part.skip.min(chunk.len() as u64);
                    self.part.skip -= known;
                    chunk.advance(known as usize);
                    if !chunk.is_empty() {
                        self.at = self.at.saturating_add(chunk.len() as u64);
                        return Event::Chunk(chunk);
                    }
                }
                Ok(None) => return self.end(),
                Err(error) => match self.resume(error).await {
                    Ok(saved) => return Event::Resumed { saved },
                    Err(error) => return Event::Failed(error),
                },
            }
        }
    }

    /// The size and digest of a layer are the reader's to check.
    fn end(&self) -> Event {
        match &self.origin {
            Origin::Url { what, .. }
                if self.part.skip > 0 || self.size.is_some_and(|size| size != self.at) =>
            {
                Event::Failed(FetchError::Changed { what: what.clone() })
            }
            _ => Event::End,
        }
    }

    /// Asks for the rest of what broke off; says how many bytes that saves. Where it does not go on, the
    /// error is the first one if that tells more.
    async fn resume(&mut self, broken: FetchError) -> Result<u64, FetchError> {
        use FetchError::{Slow, Stalled, Transport};
        if !matches!(broken, Transport { .. } | Stalled { .. } | Slow { .. }) || !self.can_go_on() {
            return Err(broken);
        }
        let in_vain = self.at == self.resumed_at || self.resumes >= MAX_RESUMES;
        if in_vain || matches!(broken, Slow { .. }) {
            if !self.origin.switch(&broken) && !self.origin.again(&mut self.tries, &broken).await {
                return Err(broken);
            }
        } else {
            let clock = self.origin.shared().clock.clone();
            let pause = PAUSE * 2u32.saturating_pow(self.resumes);
            clock.sleep_until((clock.now() + pause).min(self.deadline)).await;
            self.tries = Tries::new(self.origin.shared(), self.deadline);
        }
        self.resumed_at = self.at;
        self.resumes += 1;
        self.part = self.origin.part_within(&mut self.tries, self.at, self.size, self.deadline).await?;
        let saved = if self.part.skip == 0 { self.at } else { 0 };
        tracing::info!(what = self.origin.what(), at = self.at, "a download broke off and goes on: {broken}");
        Ok(saved)
    }
}

impl Origin {
    /// Asks for what follows the first `at` bytes, and where that is not to be had, for all; of a layer
    /// one host after the other.
    pub(super) async fn part(
        &mut self,
        at: u64,
        size: Option<u64>,
        deadline: Instant,
    ) -> Result<Part, FetchError> {
        let mut tries = Tries::new(self.shared(), deadline);
        self.part_within(&mut tries, at, size, deadline).await
    }

    async fn part_within(
        &mut self,
        tries: &mut Tries,
        at: u64,
        size: Option<u64>,
        deadline: Instant,
    ) -> Result<Part, FetchError> {
        loop {
            match self.part_of_one(at, size, deadline).await {
                Err(error) if self.switch(&error) || self.again(tries, &error).await => {}
                outcome => return outcome,
            }
        }
    }

    /// Waits until it may be asked once more; of a layer, the first host that has failed for the moment.
    async fn again(&mut self, tries: &mut Tries, because: &FetchError) -> bool {
        if !tries.again(self.shared(), because).await {
            return false;
        }
        if let Origin::Layer { repository, others, .. } = self
            && let Some(first) = others.anew(because)
        {
            **repository = first;
        }
        true
    }

    /// Goes on with the next host that may have the layer; false where there is none.
    fn switch(&mut self, because: &FetchError) -> bool {
        match self {
            Origin::Layer { repository, others, .. } => match others.next(repository, because) {
                Some(next) => {
                    **repository = next;
                    true
                }
                None => false,
            },
            Origin::Url { .. } => false,
        }
    }

    async fn part_of_one(
        &mut self,
        at: u64,
        size: Option<u64>,
        deadline: Instant,
    ) -> Result<Part, FetchError> {
        if at > 0 {
            match self.ask(Some(at), deadline).await {
                Ok(response) if response.status == StatusCode::OK => {
                    return self.whole(response, at);
                }
                Ok(response) if is_rest(&response, at, size) && self.is_same(&response) => {
                    return Ok(Part { response, skip: 0 });
                }
                // It answered with something else than it was asked for: once more, without that.
                Ok(_) => {}
                Err(FetchError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let response = self.ask(None, deadline).await?;
        self.whole(response, at)
    }

    /// An answer with all the bytes, of which some have been had before.
    fn whole(&self, response: Response, skip: u64) -> Result<Part, FetchError> {
        match self {
            Origin::Layer { repository, layer, .. } => {
                if let Some(actual) = response.length().filter(|length| *length != layer.size) {
                    let what = repository.layer_name(layer);
                    let expected = layer.size;
                    return Err(FetchError::SizeMismatch { what, expected, actual, at_least: false });
                }
            }
            Origin::Url { what, .. } => {
                if skip > 0 && (!self.is_same(&response) || response.headers.get(header::ETAG).is_none()) {
                    return Err(FetchError::Changed { what: what.clone() });
                }
            }
        }
        Ok(Part { response, skip })
    }

    /// Whether nothing says that these are other bytes than the first answer's.
    fn is_same(&self, response: &Response) -> bool {
        match self {
            Origin::Layer { .. } => true,
            Origin::Url { etag, .. } => {
                response.headers.get(header::ETAG).is_none_or(|now| Some(now) == etag.as_ref())
            }
        }
    }

    /// All of it, unless it is still what the server gave these along with; then nothing comes.
    pub(super) async fn all_unless(
        &mut self,
        known: &Validators,
        deadline: Instant,
    ) -> Result<Option<Part>, FetchError> {
        let mut headers = HeaderMap::new();
        let conditions =
            [(header::IF_NONE_MATCH, &known.etag), (header::IF_MODIFIED_SINCE, &known.last_modified)];
        for (name, value) in conditions {
            let value = value.as_deref().and_then(|value| HeaderValue::from_str(value).ok());
            headers.extend(value.map(|value| (name, value)));
        }
        match self.send(headers, deadline).await {
            Ok(response) => self.whole(response, 0).map(Some),
            Err(FetchError::Status { status: StatusCode::NOT_MODIFIED, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A GET that ends with status 200, or with 206 where it asks for what follows the first `from` bytes.
    async fn ask(&mut self, from: Option<u64>, deadline: Instant) -> Result<Response, FetchError> {
        let mut headers = HeaderMap::new();
        if let Some(range) = from.and_then(|from| HeaderValue::from_str(&format!("bytes={from}-")).ok()) {
            headers.insert(header::RANGE, range);
            if let Origin::Url { etag: Some(etag), .. } = self {
                headers.insert(header::IF_RANGE, etag.clone());
            }
        }
        self.send(headers, deadline).await
    }

    /// A GET with these headers.
    async fn send(&mut self, mut headers: HeaderMap, deadline: Instant) -> Result<Response, FetchError> {
        // Ranges and ETags are of the bytes as they are sent, which have to be the source's own.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        match self {
            Origin::Layer { repository, layer, .. } => repository.layer(layer, headers, deadline).await,
            Origin::Url { shared, url, what, .. } => {
                let is_part = headers.contains_key(header::RANGE);
                let mut session = Session::new(shared.client.clone(), shared.web(url));
                let request = Request { headers, ..Request::get(url.clone()) };
                let response = session.send(request, deadline).await?;
                let is_part = is_part && response.status == StatusCode::PARTIAL_CONTENT;
                if response.status == StatusCode::OK || is_part {
                    return Ok(response);
                }
                let code = RegistryCode::default();
                Err(FetchError::from_status(what, response.status, &response.headers, code))
            }
        }
    }

    fn shared(&self) -> &Shared {
        match self {
            Origin::Layer { repository, .. } => &repository.shared,
            Origin::Url { shared, .. } => shared,
        }
    }

    fn what(&self) -> String {
        match self {
            Origin::Layer { repository, layer, .. } => repository.layer_name(layer),
            Origin::Url { what, .. } => what.clone(),
        }
    }
}

/// Whether an answer of status 206 is all that follows the first `at` bytes, unencoded.
fn is_rest(response: &Response, at: u64, size: Option<u64>) -> bool {
    let encoding = response.headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding.as_bytes() != b"identity") {
        return false;
    }
    let range = response.headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let Some((first, last, total)) = range.and_then(content_range) else { return false };
    let ends = last.checked_add(1) == Some(total) && size.is_none_or(|size| size == total);
    let length = total.checked_sub(at);
    first == at && ends && response.length().is_none_or(|declared| Some(declared) == length)
}

/// `bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4).
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((number(first)?, number(last)?, number(total)?))
}

/// The ETag of an answer, if it stands for the very same bytes (RFC 9110, 8.8.1).
pub(super) fn strong_etag(headers: &HeaderMap) -> Option<HeaderValue> {
    let etag = headers.get(header::ETAG)?;
    let is_strong = etag.as_bytes().len() > 1 && etag.as_bytes().starts_with(b"\"");
    (is_strong && etag.as_bytes().ends_with(b"\"")).then(|| etag.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_to_the_letter() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9, 10)));
        for wrong in
            ["bytes 5-9/*", "bytes */10", "bytes=5-9/10", "items 5-9/10", "bytes 5-9", "bytes +5-9/10"]
        {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_weak_etag_stands_for_no_bytes() {
        let etag = |text: &'static str| {
            strong_etag(&HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static(text))])).is_some()
        };
        assert_eq!([etag("\"a\""), etag("W/\"a\""), etag("a"), etag("\"")], [true, false, false, false]);
    }
}
