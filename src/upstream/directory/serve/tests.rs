use std::path::Path;

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::service::discovery::v3 as xds;
use envoy_types::pb::google::rpc::Status as RpcStatus;
use prost::Message as _;

use super::*;
use crate::upstream::directory::plugin;

const ECDS: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const A: &str = "extensions.istio.io/wasmplugin/default.a";
const B: &str = "default.b";

/// A folder with these plugins in namespace `default`: name and tag.
fn folder(plugins: &[(&str, &str)]) -> Snapshot {
    Snapshot::of(plugins.iter().flat_map(|(name, tag)| {
        let text = format!(
            "{{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {{name: {name}}}, \
             spec: {{url: 'r.io/{name}:{tag}'}}}}"
        );
        plugin::parse(Path::new("p.yaml"), &text).unwrap()
    }))
}

/// A state-of-the-world client: acknowledges as Envoy does.
struct SotwClient {
    session: Session,
    names: Vec<String>,
    version: String,
    nonce: String,
}

impl SotwClient {
    fn new() -> Self {
        let session = Session::new(Variant::StateOfTheWorld);
        Self { session, names: Vec::new(), version: String::new(), nonce: String::new() }
    }

    fn request(&self, error: Option<&str>) -> Vec<u8> {
        let error_detail =
            error.map(|message| RpcStatus { code: 13, message: message.to_owned(), ..RpcStatus::default() });
        xds::DiscoveryRequest {
            version_info: self.version.clone(),
            resource_names: self.names.clone(),
            type_url: ECDS.to_owned(),
            response_nonce: self.nonce.clone(),
            error_detail,
            ..xds::DiscoveryRequest::default()
        }
        .encode_to_vec()
    }

    fn send(&mut self, error: Option<&str>, folder: &Snapshot) -> Option<xds::DiscoveryResponse> {
        let request = self.request(error);
        let response = self.session.on_request(&request, folder).unwrap();
        response.map(|bytes| xds::DiscoveryResponse::decode(bytes).unwrap())
    }

    fn subscribe(&mut self, names: &[&str], folder: &Snapshot) -> Option<xds::DiscoveryResponse> {
        self.names = names.iter().map(|name| (*name).to_owned()).collect();
        self.send(None, folder)
    }

    /// An acknowledgement must not be answered.
    fn accept(&mut self, response: &xds::DiscoveryResponse, folder: &Snapshot) {
        self.version.clone_from(&response.version_info);
        self.nonce.clone_from(&response.nonce);
        assert_eq!(self.send(None, folder), None);
    }

    fn reject(&mut self, response: &xds::DiscoveryResponse, folder: &Snapshot) {
        self.nonce.clone_from(&response.nonce);
        assert_eq!(self.send(Some("Invalid path: /none.wasm"), folder), None);
    }

    fn changed(&mut self, folder: &Snapshot) -> Option<xds::DiscoveryResponse> {
        self.session.on_snapshot(folder).map(|bytes| xds::DiscoveryResponse::decode(bytes).unwrap())
    }
}

fn sotw_names(response: &xds::DiscoveryResponse) -> Vec<String> {
    assert_eq!(response.type_url, ECDS);
    response
        .resources
        .iter()
        .map(|any| {
            assert_eq!(any.type_url, ECDS);
            TypedExtensionConfig::decode(any.value.as_slice()).unwrap().name
        })
        .collect()
}

#[test]
fn state_of_the_world_sends_what_is_asked_for_and_exists() {
    let folder = folder(&[("a", "v1"), ("b", "v1"), ("c", "v1")]);
    let mut client = SotwClient::new();
    let response = client.subscribe(&[A, B, "default.none"], &folder).unwrap();
    assert_eq!(sotw_names(&response), [B, A]);
    assert!(!response.version_info.is_empty());
    client.accept(&response, &folder);
    assert_eq!(client.changed(&folder), None, "nothing has changed");
}

#[test]
fn state_of_the_world_sends_all_again_when_one_changes() {
    let first = folder(&[("a", "v1"), ("b", "v1")]);
    let mut client = SotwClient::new();
    let response = client.subscribe(&[A, B], &first).unwrap();
    client.accept(&response, &first);

    let second = folder(&[("a", "v1"), ("b", "v2")]);
    let update = client.changed(&second).unwrap();
    assert_eq!(sotw_names(&update), [B, A]);
    assert_ne!(update.version_info, response.version_info);
    assert_ne!(update.nonce, response.nonce);
    assert_eq!(update.resources[1], response.resources[1], "what did not change has the same bytes");
    assert_eq!(client.changed(&second), None, "it is on its way already");
    client.accept(&update, &second);

    let other = folder(&[("a", "v1"), ("b", "v2"), ("c", "v9")]);
    assert_eq!(client.changed(&other), None, "nobody asked for c");
}

#[test]
fn a_name_that_does_not_exist_yet_is_answered_when_it_appears() {
    let empty = folder(&[]);
    let mut client = SotwClient::new();
    assert_eq!(client.subscribe(&[A], &empty), None);
    assert_eq!(client.changed(&empty), None);
    let response = client.changed(&folder(&[("a", "v1")])).unwrap();
    assert_eq!(sotw_names(&response), [A]);
}

#[test]
fn a_plugin_that_goes_and_comes_back_is_sent_again_in_state_of_the_world() {
    let with = folder(&[("a", "v1")]);
    let mut client = SotwClient::new();
    let response = client.subscribe(&[A], &with).unwrap();
    client.accept(&response, &with);
    assert_eq!(client.changed(&folder(&[])), None, "what is missing would count as unchanged");
    assert_eq!(sotw_names(&client.changed(&with).unwrap()), [A]);
}

#[test]
fn names_can_be_added_and_removed() {
    let folder = folder(&[("a", "v1"), ("b", "v1")]);
    let mut client = SotwClient::new();
    let response = client.subscribe(&[A], &folder).unwrap();
    client.accept(&response, &folder);
    let response = client.subscribe(&[A, B], &folder).unwrap();
    assert_eq!(sotw_names(&response), [B, A]);
    client.accept(&response, &folder);
    assert_eq!(client.subscribe(&[B], &folder), None);
    assert_eq!(client.subscribe(&[], &folder), None, "a full unsubscribe is no wildcard");
    assert_eq!(client.changed(&super::tests::folder(&[("a", "v2"), ("b", "v2")])), None);
    assert_eq!(sotw_names(&client.subscribe(&[A], &folder).unwrap()), [A], "it has forgotten it meanwhile");
}

#[test]
fn what_was_rejected_is_not_sent_again_until_it_changes() {
    let bad = folder(&[("a", "bad")]);
    let mut client = SotwClient::new();
    let response = client.subscribe(&[A], &bad).unwrap();
    client.reject(&response, &bad);
    assert_eq!(client.changed(&bad), None);
    assert_eq!(client.send(None, &bad), None, "nor is a plain repeat of the request an occasion");
    assert_eq!(sotw_names(&client.changed(&folder(&[("a", "good")])).unwrap()), [A]);
}

#[test]
fn an_answer_to_an_older_response_is_ignored() {
    let first = folder(&[("a", "v1")]);
    let mut client = SotwClient::new();
    let old = client.subscribe(&[A], &first).unwrap();
    let second = folder(&[("a", "v2"), ("b", "v2")]);
    let new = client.changed(&second).unwrap();

    client.nonce.clone_from(&old.nonce);
    assert_eq!(client.subscribe(&[A, B], &second), None, "stale");
    client.nonce.clone_from(&new.nonce);
    assert_eq!(sotw_names(&client.subscribe(&[A, B], &second).unwrap()), [B, A]);
}

#[test]
fn a_new_stream_is_answered_though_the_client_names_a_current_version() {
    let folder = folder(&[("a", "v1")]);
    let mut client = SotwClient::new();
    let response = client.subscribe(&[A], &folder).unwrap();
    client.accept(&response, &folder);
    // The legacy mux keeps version and nonce from the stream before.
    client.session = Session::new(Variant::StateOfTheWorld);
    let again = client.send(None, &folder).unwrap();
    assert_eq!(again.resources, response.resources);
    assert_eq!(again.version_info, response.version_info);
}

#[test]
fn a_second_subscription_that_looks_like_an_acknowledgement_is_answered() {
    let folder = folder(&[("a", "v1")]);
    let mut client = SotwClient::new();
    let response = client.subscribe(&[A], &folder).unwrap();
    client.accept(&response, &folder);
    let again = client.send(None, &folder).unwrap();
    assert_eq!(again.resources, response.resources);
    client.accept(&again, &folder);
}

#[test]
fn a_wildcard_and_other_types_are_not_answered() {
    let folder = folder(&[("a", "v1")]);
    let mut client = SotwClient::new();
    assert_eq!(client.subscribe(&["*"], &folder), None);
    assert_eq!(client.changed(&super::tests::folder(&[("a", "v2")])), None);

    let request = xds::DiscoveryRequest {
        resource_names: vec!["default.a".to_owned()],
        type_url: "type.googleapis.com/envoy.config.listener.v3.Listener".to_owned(),
        ..xds::DiscoveryRequest::default()
    };
    assert_eq!(client.session.on_request(&request.encode_to_vec(), &folder), Ok(None));
    assert_eq!(client.changed(&super::tests::folder(&[("a", "v3")])), None);
}

#[test]
fn a_malformed_request_is_an_error() {
    let folder = folder(&[]);
    for variant in [Variant::StateOfTheWorld, Variant::Delta] {
        let mut session = Session::new(variant);
        assert!(session.on_request(b"\x1a\x7fshort", &folder).is_err());
    }
}

/// A Delta client.
struct DeltaClient(Session);

impl DeltaClient {
    fn new() -> Self {
        Self(Session::new(Variant::Delta))
    }

    fn send(
        &mut self,
        request: xds::DeltaDiscoveryRequest,
        folder: &Snapshot,
    ) -> Option<xds::DeltaDiscoveryResponse> {
        let request = xds::DeltaDiscoveryRequest { type_url: ECDS.to_owned(), ..request }.encode_to_vec();
        let response = self.0.on_request(&request, folder).unwrap();
        response.map(|bytes| xds::DeltaDiscoveryResponse::decode(bytes).unwrap())
    }

    fn subscribe(&mut self, names: &[&str], folder: &Snapshot) -> Option<xds::DeltaDiscoveryResponse> {
        self.resume(names, &[], folder)
    }

    fn resume(
        &mut self,
        names: &[&str],
        held: &[(&str, &str)],
        folder: &Snapshot,
    ) -> Option<xds::DeltaDiscoveryResponse> {
        let request = xds::DeltaDiscoveryRequest {
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            initial_resource_versions: held.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            ..xds::DeltaDiscoveryRequest::default()
        };
        self.send(request, folder)
    }

    fn answer(&mut self, response: &xds::DeltaDiscoveryResponse, error: Option<&str>, folder: &Snapshot) {
        let error_detail =
            error.map(|message| RpcStatus { code: 13, message: message.to_owned(), ..RpcStatus::default() });
        let request = xds::DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail,
            ..xds::DeltaDiscoveryRequest::default()
        };
        assert_eq!(self.send(request, folder), None);
    }

    fn changed(&mut self, folder: &Snapshot) -> Option<xds::DeltaDiscoveryResponse> {
        self.0.on_snapshot(folder).map(|bytes| xds::DeltaDiscoveryResponse::decode(bytes).unwrap())
    }
}

fn delta_names(response: &xds::DeltaDiscoveryResponse) -> Vec<&str> {
    assert_eq!(response.type_url, ECDS);
    for resource in &response.resources {
        let any = resource.resource.as_ref().unwrap();
        assert_eq!(any.type_url, ECDS);
        assert_eq!(TypedExtensionConfig::decode(any.value.as_slice()).unwrap().name, resource.name);
        assert!(!resource.version.is_empty());
    }
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

#[test]
fn delta_sends_each_resource_once_and_then_only_what_changes() {
    let first = folder(&[("a", "v1"), ("b", "v1")]);
    let mut client = DeltaClient::new();
    let response = client.subscribe(&[A, B, "default.none"], &first).unwrap();
    assert_eq!(delta_names(&response), [B, A]);
    assert!(response.removed_resources.is_empty(), "what never existed is not removed");
    client.answer(&response, None, &first);
    assert_eq!(client.changed(&first), None);

    let second = folder(&[("a", "v2"), ("b", "v1"), ("none", "v1")]);
    let update = client.changed(&second).unwrap();
    assert_eq!(delta_names(&update), ["default.none", A]);
    assert_ne!(update.nonce, response.nonce);
    assert_ne!(update.resources[1].version, response.resources[1].version);
    assert_eq!(client.changed(&second), None);
}

#[test]
fn delta_tells_of_a_removal_once_and_of_the_return() {
    let with = folder(&[("a", "v1"), ("b", "v1")]);
    let mut client = DeltaClient::new();
    client.subscribe(&[A, B], &with).unwrap();
    let without = folder(&[("b", "v1")]);
    let removal = client.changed(&without).unwrap();
    assert!(removal.resources.is_empty());
    assert_eq!(removal.removed_resources, [A]);
    assert_eq!(client.changed(&without), None);
    assert_eq!(delta_names(&client.changed(&with).unwrap()), [A]);
}

#[test]
fn delta_removes_nothing_while_a_file_is_unread() {
    let with = folder(&[("a", "v1")]);
    let mut client = DeltaClient::new();
    client.subscribe(&[A], &with).unwrap();
    let mut unread = folder(&[]);
    unread.complete = false;
    assert_eq!(client.changed(&unread), None);
    assert_eq!(client.changed(&folder(&[])).unwrap().removed_resources, [A]);
}

#[test]
fn delta_forgets_what_is_unsubscribed_and_sends_again_what_is_subscribed_again() {
    let first = folder(&[("a", "v1"), ("b", "v1")]);
    let mut client = DeltaClient::new();
    client.subscribe(&[A, B], &first).unwrap();
    assert_eq!(delta_names(&client.subscribe(&[A], &first).unwrap()), [A], "subscribed again");
    let unsubscribe = xds::DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec![A.to_owned()],
        ..xds::DeltaDiscoveryRequest::default()
    };
    assert_eq!(client.send(unsubscribe, &first), None);
    assert_eq!(client.changed(&folder(&[("b", "v1")])), None, "its removal is no news either");
    assert_eq!(delta_names(&client.subscribe(&[A], &first).unwrap()), [A]);
}

#[test]
fn delta_resumes_from_the_versions_that_the_client_holds() {
    let first = folder(&[("a", "v1"), ("b", "v1"), ("c", "v1")]);
    let mut client = DeltaClient::new();
    let response = client.subscribe(&[A, B, "default.c"], &first).unwrap();
    let version = |name: &str| {
        let resource = response.resources.iter().find(|resource| resource.name == name);
        resource.unwrap().version.clone()
    };

    let now = folder(&[("a", "v1"), ("b", "v2")]);
    let held =
        [(A, &*version(A)), (B, &*version(B)), ("default.c", &*version("default.c")), ("default.x", "1")];
    let resumed = DeltaClient::new().resume(&[A, B, "default.c", "default.d"], &held, &now).unwrap();
    assert_eq!(delta_names(&resumed), [B], "a is current");
    assert_eq!(
        resumed.removed_resources,
        ["default.c"],
        "gone meanwhile; x is not subscribed, d never existed"
    );

    // A client that hides which versions it holds gets all, and learns what is gone.
    let hidden = DeltaClient::new().resume(&[A, "default.c"], &[(A, ""), ("default.c", "")], &now).unwrap();
    assert_eq!((delta_names(&hidden), &*hidden.removed_resources), (vec![A], &["default.c".to_owned()][..]));
}

#[test]
fn delta_does_not_repeat_what_was_rejected() {
    let bad = folder(&[("a", "bad")]);
    let mut client = DeltaClient::new();
    let response = client.subscribe(&[A], &bad).unwrap();
    client.answer(&response, Some("Unable to create Wasm plugin"), &bad);
    assert_eq!(client.changed(&bad), None);
    assert_eq!(delta_names(&client.changed(&folder(&[("a", "good")])).unwrap()), [A]);
}

#[test]
fn a_version_does_not_give_away_what_it_is_of() {
    let (mut one, mut other) = (folder(&[("a", "v1")]), folder(&[("a", "v1")]));
    let version = |folder: &Snapshot| {
        let response = DeltaClient::new().subscribe(&[A], folder).unwrap();
        response.resources[0].version.clone()
    };
    assert_eq!(version(&one), version(&other));
    (one.salt, other.salt) = ([1; 16], [2; 16]);
    assert_ne!(version(&one), version(&other), "another process has another salt");
}
