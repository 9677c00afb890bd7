//! A module from an http or https URL: one GET, anonymous; how it is packed is told by its bytes. Of one
//! that is in the store the server is asked whether it still is what it serves (RFC 9110, 13).

use std::sync::Arc;
use std::time::Instant;

use http::header::{self, HeaderMap, HeaderName};
use url::Url;

use super::Shared;
use super::body::{Body, Promise};
use super::download::{Download, Origin, Part, strong_etag};
use super::error::FetchError;
use super::layers::FRAMING;
use crate::module::{ModuleUrl, Validators};
use crate::wasm::Packaging;

/// The longest validator that is kept, in bytes.
const MAX_VALIDATOR: usize = 256;

/// A URL, and what it has answered where it was asked already.
pub(super) struct Found {
    url: Url,
    answer: Option<(Origin, Part)>,
}

impl Found {
    pub(super) fn new(url: Url) -> Self {
        Found { url, answer: None }
    }

    /// Asks for what is not what `known` stands for; none where that is still there.
    pub(super) async fn changed(
        shared: &Arc<Shared>,
        url: Url,
        known: &Validators,
        deadline: Instant,
    ) -> Result<Option<Self>, FetchError> {
        let mut origin = origin(shared, &url);
        let part = origin.all_unless(known, deadline).await?;
        Ok(part.map(|part| Found { url, answer: Some((origin, part)) }))
    }

    /// Begins to fetch the URL, or goes on with its answer.
    pub(super) async fn open(self, shared: &Arc<Shared>, deadline: Instant) -> Result<Body, FetchError> {
        let (mut origin, part) = match self.answer {
            Some(answer) => answer,
            None => {
                let mut origin = origin(shared, &self.url);
                let part = origin.part(0, None, deadline).await?;
                (origin, part)
            }
        };
        let what = ModuleUrl::Http(self.url).to_string();
        let limit = shared.config.max_module_bytes.saturating_add(FRAMING);
        let size = part.response.length();
        if size.is_some_and(|size| size > limit) {
            return Err(FetchError::TooLarge { what, limit });
        }
        if let Origin::Url { etag, .. } = &mut origin {
            *etag = strong_etag(&part.response.headers);
        }
        let validators = validators(&part.response.headers);
        let promise = Promise::AtMost { limit, size };
        let download = Download::new(origin, part, 0, size, deadline);
        let body = Body::network(what, Packaging::Sniff, promise, download, shared.clock.clone());
        Ok(body.validated_by(validators))
    }

    /// The same URL, to be asked once more.
    pub(super) fn again(&self) -> Self {
        Found::new(self.url.clone())
    }
}

fn origin(shared: &Arc<Shared>, url: &Url) -> Origin {
    let what = ModuleUrl::Http(url.clone()).to_string();
    Origin::Url { shared: shared.clone(), url: url.clone(), what, etag: None }
}

/// What the answer gives to ask by later.
fn validators(headers: &HeaderMap) -> Validators {
    let text = |name: HeaderName| {
        let value = headers.get(name)?.to_str().ok()?;
        (!value.is_empty() && value.len() <= MAX_VALIDATOR).then(|| value.to_owned())
    };
    Validators { etag: text(header::ETAG), last_modified: text(header::LAST_MODIFIED) }
}
