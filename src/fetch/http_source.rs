//! A module from an http or https URL: one GET, anonymous; how it is packed is told by its bytes.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use url::Url;

use super::Shared;
use super::body::{Body, Promise};
use super::error::{FetchError, RegistryCode};
use super::http::{Request, Session};
use super::oci::FRAMING;
use crate::module::ModuleUrl;
use crate::wasm::Packaging;

/// Begins to fetch the URL.
pub(super) async fn open(shared: &Arc<Shared>, url: Url, deadline: Instant) -> Result<Body, FetchError> {
    let what = ModuleUrl::Http(url.clone()).to_string();
    let mut session = Session::new(shared.client.clone());
    let response = session.send(Request::get(url), deadline).await?;
    if response.status != StatusCode::OK {
        let code = RegistryCode::default();
        return Err(FetchError::from_status(&what, response.status, &response.headers, code));
    }
    let limit = shared.config.max_module_bytes.saturating_add(FRAMING);
    let size = response.length();
    if size.is_some_and(|size| size > limit) {
        return Err(FetchError::TooLarge { what, limit });
    }
    let promise = Promise::AtMost { limit, size };
    Ok(Body::network(what, Packaging::Sniff, promise, response, shared.clock.clone(), deadline))
}
