//! The layers of an image, one after the other, as [`Body`](super::Body) reads them: what each is called
//! in errors, and how much all of them may be.

use super::Shared;
use super::error::FetchError;
use super::manifest::{Layer, Layers, Refusal};
use crate::wasm::Packaging;

/// What a tar and its compression may add to a module of the largest allowed size.
pub(super) const FRAMING: u64 = 1024 * 1024;

/// The layers that are still to be read.
pub(super) struct Below {
    image: String,
    layers: std::vec::IntoIter<Result<Layer, Refusal>>,
    /// Bytes that all together may have, and how many of those are left.
    limit: u64,
    left: u64,
    has_begun: bool,
}

impl Below {
    /// The layers below the top one of an image, whose name is for errors.
    pub(super) fn new(shared: &Shared, image: String, layers: Layers) -> Self {
        let limit = shared.config.max_module_bytes.saturating_add(FRAMING);
        let left = limit.saturating_sub(layers.top.size);
        Self { image, layers: layers.below.into_iter(), limit, left, has_begun: false }
    }

    /// Whether one of them was asked for.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The next one and its name.
    pub(super) fn next(&mut self) -> Option<Result<(Layer, String), FetchError>> {
        let layer = self.layers.next()?;
        self.has_begun = true;
        let layer = match layer {
            Ok(layer) => layer,
            Err(refusal) => return Some(Err(refused(&self.image, refusal))),
        };
        Some(match self.left.checked_sub(layer.size) {
            Some(left) => {
                self.left = left;
                Ok((layer, name(&self.image, &layer)))
            }
            None => {
                let what = format!("what is to be read of {}", self.image);
                Err(FetchError::TooLarge { what, limit: self.limit })
            }
        })
    }
}

/// Refuses a layer of an image that is larger than any module may be.
pub(super) fn check_size(shared: &Shared, layer: &Layer, image: &str) -> Result<(), FetchError> {
    let limit = match layer.packaging {
        Packaging::Raw => shared.config.max_module_bytes,
        Packaging::Layer | Packaging::Sniff => shared.config.max_module_bytes.saturating_add(FRAMING),
    };
    match layer.size > limit {
        true => Err(FetchError::TooLarge { what: name(image, layer), limit }),
        false => Ok(()),
    }
}

/// A layer of an image, for errors.
pub(super) fn name(image: &str, layer: &Layer) -> String {
    format!("the layer {} of {image}", layer.digest)
}

/// Why an image cannot be used.
pub(super) fn refused(image: &str, refusal: Refusal) -> FetchError {
    let what = image.to_owned();
    match refusal {
        Refusal::Invalid(reason) => FetchError::Manifest { what, reason },
        Refusal::Unsupported(reason) => FetchError::Unsupported { what, reason },
    }
}
