//! Type URLs, in one place.

macro_rules! type_urls {
    ($($(#[$doc:meta])* $name:ident = $full_name:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = concat!("type.googleapis.com/", $full_name);)*
    };
}

type_urls! {
    /// A resource of ECDS.
    EXTENSION_CONFIG = "envoy.config.core.v3.TypedExtensionConfig";
    /// A resource of LDS.
    LISTENER = "envoy.config.listener.v3.Listener";
    /// A resource of CDS.
    CLUSTER = "envoy.config.cluster.v3.Cluster";
    /// A resource of EDS.
    ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// A resource of RDS.
    ROUTES = "envoy.config.route.v3.RouteConfiguration";
    /// A resource of SDS.
    SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret";
    /// The wrapper that a state-of-the-world response may put around a resource.
    RESOURCE = "envoy.service.discovery.v3.Resource";

    /// The Wasm HTTP filter.
    HTTP_WASM = "envoy.extensions.filters.http.wasm.v3.Wasm";
    /// The Wasm network filter.
    NETWORK_WASM = "envoy.extensions.filters.network.wasm.v3.Wasm";
    /// The HTTP filter that stands in for a module that cannot be had.
    HTTP_RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC";
    /// The network filter that stands in for a module that cannot be had.
    NETWORK_RBAC = "envoy.extensions.filters.network.rbac.v3.RBAC";

    /// The network filter that holds HTTP filters.
    HTTP_CONNECTION_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    /// The HTTP filter that holds those of its upstream side.
    ROUTER = "envoy.extensions.filters.http.router.v3.Router";
    /// What a cluster says of HTTP, its filters included.
    HTTP_PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    /// The HTTP filter that runs those that a matcher chooses.
    COMPOSITE = "envoy.extensions.filters.http.composite.v3.Composite";
    /// A filter with a matcher around it, as for [`COMPOSITE`].
    EXTENSION_WITH_MATCHER = "envoy.extensions.common.matching.v3.ExtensionWithMatcher";
    /// What a matcher of [`COMPOSITE`] chooses.
    EXECUTE_FILTER_ACTION = "envoy.extensions.filters.http.composite.v3.ExecuteFilterAction";

    /// A message written as a `google.protobuf.Struct`, older name.
    UDPA_TYPED_STRUCT = "udpa.type.v1.TypedStruct";
    /// A message written as a `google.protobuf.Struct`.
    XDS_TYPED_STRUCT = "xds.type.v3.TypedStruct";
    /// `google.protobuf.StringValue`, in which Istio wraps a plugin's configuration.
    STRING_VALUE = "google.protobuf.StringValue";
}

/// Whether both name the same message. As Envoy does, only what follows the last slash counts, so
/// that a bare full name is a type URL too.
pub fn same(a: &str, b: &str) -> bool {
    full_name(a) == full_name(b)
}

/// The full name of the message that a type URL names.
pub fn full_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}
