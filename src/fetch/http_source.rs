//! A module from an http or https URL: one GET, anonymous; how it is packed is told by its bytes.

use std::sync::Arc;
use std::time::Instant;

use url::Url;

use super::Shared;
use super::body::{Body, Promise};
use super::download::{Download, Origin, strong_etag};
use super::error::FetchError;
use super::oci::FRAMING;
use crate::module::ModuleUrl;
use crate::wasm::Packaging;

/// Begins to fetch the URL.
pub(super) async fn open(shared: &Arc<Shared>, url: Url, deadline: Instant) -> Result<Body, FetchError> {
    let what = ModuleUrl::Http(url.clone()).to_string();
    let (asked, name) = (shared.clone(), what.clone());
    let mut origin = Origin::Url { shared: asked, url, what: name, etag: None };
    let part = origin.part(0, None, deadline).await?;
    let limit = shared.config.max_module_bytes.saturating_add(FRAMING);
    let size = part.response.length();
    if size.is_some_and(|size| size > limit) {
        return Err(FetchError::TooLarge { what, limit });
    }
    if let Origin::Url { etag, .. } = &mut origin {
        *etag = strong_etag(&part.response.headers);
    }
    let promise = Promise::AtMost { limit, size };
    let download = Download::new(origin, part, 0, size, deadline);
    Ok(Body::network(what, Packaging::Sniff, promise, download, shared.clock.clone()))
}
