//! The filter that stands in for a Wasm filter whose module cannot be had: Envoy's RBAC, which
//! without rules lets everything through, and with empty rules nothing. It must be listed in the
//! listener's `config_discovery.type_urls`, as Istio does.

use bytes::Bytes;

use super::{FailureMode, FilterKind};
use crate::protobuf::messages::{Any, TypedExtensionConfig};
use crate::protobuf::type_url;
use crate::protobuf::wire::{put_len, put_string};

/// `RBAC.rules`, the same number in both filters.
const RULES: u32 = 1;

pub(super) fn filter(name: &str, kind: FilterKind, failure: FailureMode) -> Bytes {
    let (type_url, stat_prefix) = match kind {
        FilterKind::Http => (type_url::HTTP_RBAC, 6),
        FilterKind::Network => (type_url::NETWORK_RBAC, 3),
    };
    let mut rbac = Vec::new();
    // The prefixes are Istio's; they tell an operator whose filter this is.
    match failure {
        FailureMode::Allow => put_string(&mut rbac, stat_prefix, "wasm-default-allow"),
        FailureMode::Deny => {
            put_len(&mut rbac, RULES, &[]);
            put_string(&mut rbac, stat_prefix, "wasm-default-deny");
        }
    }
    TypedExtensionConfig { name, typed_config: Some(Any { type_url, value: &rbac }) }.encode().into()
}
