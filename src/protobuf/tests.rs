//! The reference for everything here is prost with Envoy's own messages.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use envoy_types::pb::google;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

use super::messages::*;
use super::wire::*;
use super::{Fault, WireError, type_url};

fn fault(bytes: &[u8]) -> Option<Fault> {
    match Fields::of("test", bytes).last()? {
        Err(WireError::Malformed { message: "test", fault }) => Some(fault),
        other => panic!("{other:?}"),
    }
}

#[test]
fn malformed_bytes_are_told_apart_and_end_the_reading() {
    let deep = |depth| [vec![0x0b; depth], vec![0x0c; depth]].concat();
    for (bytes, expected) in [
        (&b"\x08"[..], Fault::Truncated),
        (b"\x08\x80", Fault::Truncated),
        (b"\x0a\x02a", Fault::Truncated),
        (b"\x0a\xff\xff\xff\xff\x0f", Fault::Truncated),
        (b"\x09\0\0\0\0\0\0\0", Fault::Truncated),
        (b"\x0d\0\0\0", Fault::Truncated),
        (b"\x0b\x08\x01", Fault::Truncated),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", Fault::Overlong),
        (b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", Fault::Overlong),
        (b"\x88\x80\x80\x80\x80\x00\x01", Fault::Overlong),
        (b"\x0a\x80\x80\x80\x80\x80\x00", Fault::Overlong),
        (b"\x0a\xff\xff\xff\xff\x1f", Fault::Overlong),
        (b"\x00\x00", Fault::FieldNumber),
        (b"\x0e", Fault::WireType),
        (b"\x0f", Fault::WireType),
        (b"\x0c", Fault::Group),
        (b"\x0b\x14", Fault::Group),
        (&deep(101), Fault::TooDeep),
    ] {
        assert_eq!(fault(bytes), Some(expected), "{bytes:x?}");
        assert_eq!(Fields::of("test", bytes).filter(Result::is_err).count(), 1, "{bytes:x?}");
    }
    assert!(Fields::of("test", &deep(100)).all(|field| field.is_ok()));
}

#[test]
fn every_kind_of_value_is_read() {
    let bytes = b"\x08\xac\x02\x11\x01\0\0\0\0\0\0\x80\x1a\x02hi\x23\x08\x01\x2b\x2c\x24\x35\x01\0\0\x80";
    let values: Vec<_> = Fields::of("test", bytes).map(|field| field.unwrap()).collect();
    let numbers: Vec<_> = values.iter().map(|field| (field.number, field.value)).collect();
    assert_eq!(
        numbers,
        [
            (1, Value::Varint(300)),
            (2, Value::Fixed64([1, 0, 0, 0, 0, 0, 0, 0x80])),
            (3, Value::Len(b"hi")),
            (4, Value::Group(b"\x08\x01\x2b\x2c")),
            (6, Value::Fixed32([1, 0, 0, 0x80])),
        ]
    );
    assert_eq!(values[3].range, 16..22);
}

#[test]
fn the_largest_numbers_are_in_range() {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, (1 << 29) - 1, u64::MAX);
    let field = Fields::of("test", &bytes).next().unwrap().unwrap();
    assert_eq!((field.number, field.value), ((1 << 29) - 1, Value::Varint(u64::MAX)));
}

#[test]
fn scalars_at_their_default_are_left_out_and_messages_are_not() {
    let mut out = Vec::new();
    put_string(&mut out, 1, "");
    put_varint(&mut out, 2, 0);
    assert_eq!(out, b"");
    put_message(&mut out, 3, |_| {});
    put_len(&mut out, 4, b"");
    assert_eq!(out, b"\x1a\x00\x22\x00");
}

fn an_any() -> google::protobuf::Any {
    google::protobuf::Any { type_url: type_url::EXTENSION_CONFIG.to_owned(), value: b"\x0a\x01n".to_vec() }
}

fn status() -> google::rpc::Status {
    google::rpc::Status { code: -13, message: "no".to_owned(), details: vec![] }
}

fn node() -> core::Node {
    core::Node { id: "sidecar~1".to_owned(), cluster: "c".to_owned(), ..Default::default() }
}

fn locator() -> pb::ResourceLocator {
    pb::ResourceLocator { name: "l".to_owned(), ..Default::default() }
}

fn control_plane() -> core::ControlPlane {
    core::ControlPlane { identifier: "istiod".to_owned() }
}

#[test]
fn a_request_reads_and_writes_as_protobuf_does() {
    let message = pb::DiscoveryRequest {
        version_info: "v1".to_owned(),
        node: Some(node()),
        resource_names: vec!["a".to_owned(), String::new(), "b".to_owned()],
        resource_locators: vec![locator()],
        type_url: type_url::EXTENSION_CONFIG.to_owned(),
        response_nonce: "n".to_owned(),
        error_detail: Some(status()),
    };
    let bytes = message.encode_to_vec();
    let view = DiscoveryRequest::decode(&bytes).unwrap();
    assert_eq!(view.version_info, "v1");
    assert_eq!(node_id(view.node.unwrap()).unwrap(), "sidecar~1");
    assert_eq!(view.resource_names, ["a", "", "b"]);
    assert_eq!(view.type_url, type_url::EXTENSION_CONFIG);
    assert_eq!(view.response_nonce, "n");
    assert_eq!(view.error_detail, Some(Status { code: -13, message: "no" }));
    assert_eq!(view.locators.len(), 1);
    assert_eq!(pb::DiscoveryRequest::decode(&view.encode()[..]).unwrap(), message);
}

#[test]
fn a_response_reads_and_writes_as_protobuf_does() {
    let message = pb::DiscoveryResponse {
        version_info: "v1".to_owned(),
        resources: vec![an_any(), google::protobuf::Any::default()],
        type_url: type_url::EXTENSION_CONFIG.to_owned(),
        nonce: "n".to_owned(),
        control_plane: Some(control_plane()),
        ..Default::default()
    };
    let bytes = message.encode_to_vec();
    let view = DiscoveryResponse::decode(&bytes).unwrap();
    assert_eq!((view.version_info, view.nonce, view.type_url), ("v1", "n", type_url::EXTENSION_CONFIG));
    let expected = Any { type_url: type_url::EXTENSION_CONFIG, value: b"\x0a\x01n" };
    assert_eq!(view.resources, [expected, Any::default()]);
    assert_eq!(pb::DiscoveryResponse::decode(&view.encode()[..]).unwrap(), message);
}

#[test]
fn a_delta_request_reads_and_writes_as_protobuf_does() {
    let message = pb::DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: type_url::EXTENSION_CONFIG.to_owned(),
        resource_names_subscribe: vec!["a".to_owned(), "b".to_owned()],
        resource_names_unsubscribe: vec!["c".to_owned()],
        resource_locators_subscribe: vec![locator()],
        resource_locators_unsubscribe: vec![locator(), locator()],
        initial_resource_versions: [("a", "1"), ("b", "")].map(|(k, v)| (k.into(), v.into())).into(),
        response_nonce: "n".to_owned(),
        error_detail: Some(status()),
    };
    let bytes = message.encode_to_vec();
    let view = DeltaDiscoveryRequest::decode(&bytes).unwrap();
    assert_eq!(node_id(view.node.unwrap()).unwrap(), "sidecar~1");
    assert_eq!((view.subscribe.as_slice(), view.unsubscribe.as_slice()), (&["a", "b"][..], &["c"][..]));
    assert_eq!(view.initial_resource_versions, [("a", "1"), ("b", "")].into());
    assert_eq!((view.type_url, view.response_nonce), (type_url::EXTENSION_CONFIG, "n"));
    assert_eq!(view.error_detail, Some(Status { code: -13, message: "no" }));
    assert_eq!((view.locators_subscribe.len(), view.locators_unsubscribe.len()), (1, 2));
    assert_eq!(pb::DeltaDiscoveryRequest::decode(&view.encode()[..]).unwrap(), message);
}

fn resource() -> pb::Resource {
    pb::Resource {
        name: "a".to_owned(),
        version: "1".to_owned(),
        resource: Some(an_any()),
        aliases: vec!["x".to_owned(), "y".to_owned()],
        ttl: Some(google::protobuf::Duration { seconds: 3, nanos: 500_000_000 }),
        cache_control: Some(pb::resource::CacheControl { do_not_cache: true }),
        metadata: Some(core::Metadata::default()),
        ..Default::default()
    }
}

#[test]
fn a_delta_response_reads_and_writes_as_protobuf_does() {
    let heartbeat = pb::Resource { name: "b".to_owned(), ..Default::default() };
    let message = pb::DeltaDiscoveryResponse {
        system_version_info: "v1".to_owned(),
        resources: vec![resource(), heartbeat],
        type_url: type_url::EXTENSION_CONFIG.to_owned(),
        nonce: "n".to_owned(),
        removed_resources: vec!["c".to_owned(), "d".to_owned()],
        control_plane: Some(control_plane()),
        ..Default::default()
    };
    let bytes = message.encode_to_vec();
    let view = DeltaDiscoveryResponse::decode(&bytes).unwrap();
    assert_eq!((view.system_version_info, view.nonce), ("v1", "n"));
    assert_eq!(view.removed_resources, ["c", "d"]);
    let [first, heartbeat] = view.resources.as_slice() else { panic!("two resources") };
    assert_eq!((first.name, first.version), ("a", "1"));
    assert_eq!(first.aliases, ["x", "y"]);
    assert_eq!(duration(first.ttl.unwrap()).unwrap(), Some(std::time::Duration::from_millis(3500)));
    assert!(first.cache_control.is_some());
    assert_eq!((heartbeat.name, heartbeat.resource), ("b", None));
    // What the view does not know (here: metadata) survives, for resources stay as they came.
    assert_eq!(pb::DeltaDiscoveryResponse::decode(&view.encode()[..]).unwrap(), message);
}

#[test]
fn a_replaced_resource_keeps_what_is_not_replaced() {
    let bytes = resource().encode_to_vec();
    let new = Any { type_url: "t", value: b"new" };
    let replaced = Resource::decode(&bytes).unwrap().replaced("2", &new).unwrap();
    let expected = pb::Resource {
        version: "2".to_owned(),
        resource: Some(google::protobuf::Any { type_url: "t".to_owned(), value: b"new".to_vec() }),
        ..resource()
    };
    assert_eq!(pb::Resource::decode(&replaced[..]).unwrap(), expected);
}

#[test]
fn a_resource_of_our_own_is_what_protobuf_reads() {
    let bytes = encode_resource("a", "1", &Any { type_url: type_url::EXTENSION_CONFIG, value: b"\x0a\x01n" });
    let expected = pb::Resource {
        name: "a".to_owned(),
        version: "1".to_owned(),
        resource: Some(an_any()),
        ..Default::default()
    };
    assert_eq!(pb::Resource::decode(&bytes[..]).unwrap(), expected);
}

#[test]
fn the_last_type_url_wins_wherever_it_stands() {
    let mut message = Vec::new();
    put_string(&mut message, TYPE_URL, "first");
    put_len(&mut message, 2, &[0xff; 4096]);
    put_varint(&mut message, TYPE_URL, 7);
    put_string(&mut message, TYPE_URL, "last");
    put_len(&mut message, 99, b"unknown");
    assert_eq!(messages_type_url(&message), Ok("last"));
    assert_eq!(messages_type_url(b""), Ok(""));
    put_len(&mut message, TYPE_URL, b"\xff");
    assert_eq!(messages_type_url(&message), Err(WireError::Utf8 { field: "type_url" }));
    assert!(messages_type_url(b"\x22\x05abc").is_err());
}

fn messages_type_url(message: &[u8]) -> Result<&str, WireError> {
    super::messages::type_url(message, TYPE_URL)
}

#[test]
fn type_urls_are_compared_by_what_follows_the_last_slash() {
    assert!(type_url::same("type.googleapis.com/a.B", "a.B"));
    assert!(type_url::same("x/y/a.B", "type.googleapis.com/a.B"));
    assert!(!type_url::same("type.googleapis.com/a.B", "type.googleapis.com/a.C"));
    assert!(!type_url::same("a.B/", "a.B"));
}

#[test]
fn replaced_fields_leave_node_and_unknown_fields_byte_for_byte() {
    let mut node_field = Vec::new();
    put_len(&mut node_field, 2, b"not even a message");
    let unknown = b"\xa0\x06\x01\xab\x06\x08\x01\xac\x06";
    let mut message = Vec::new();
    put_string(&mut message, 1, "v1");
    message.extend_from_slice(&node_field);
    put_string(&mut message, 3, "a");
    message.extend_from_slice(unknown);
    put_string(&mut message, 3, "b");
    put_string(&mut message, 5, "nonce");

    let mut append = Vec::new();
    put_string(&mut append, 3, "c");
    let replaced = replace_fields(&message, &[1, 3, 5], &append).unwrap();
    assert_eq!(replaced, [&node_field[..], unknown, &append].concat());
    assert!(replace_fields(b"\x0a\x05", &[1], &[]).is_err());
}

#[test]
fn a_string_that_is_none_names_its_field() {
    let mut message = Vec::new();
    put_len(&mut message, 3, b"secret\xff");
    let error = DiscoveryRequest::decode(&message).unwrap_err();
    assert_eq!(error.to_string(), "DiscoveryRequest.resource_names is not valid UTF-8");
    let error = DeltaDiscoveryRequest::decode(&message).unwrap_err();
    assert_eq!(error.to_string(), "DeltaDiscoveryRequest.resource_names_subscribe is not valid UTF-8");
}

#[test]
fn damage_inside_a_resource_names_the_message() {
    let mut message = Vec::new();
    put_len(&mut message, 2, b"\x0a\x09");
    let error = DeltaDiscoveryResponse::decode(&message).unwrap_err();
    assert_eq!(error.to_string(), "Resource is malformed: it ends in the middle of a field");
}

#[test]
fn a_field_of_the_wrong_wire_type_is_an_unknown_field() {
    let mut message = Vec::new();
    put_varint(&mut message, 1, 5);
    put_string(&mut message, 4, "t");
    assert_eq!(DiscoveryRequest::decode(&message).unwrap().type_url, "t");
    assert_eq!(Any::decode(b"\x08\x01\x10\x01").unwrap(), Any::default());
}

#[test]
fn a_message_in_pieces_merges_and_an_opaque_one_is_refused() {
    let mut message = Vec::new();
    put_message(&mut message, 2, |any| put_string(any, 1, "old"));
    put_message(&mut message, 2, |any| put_len(any, 2, b"value"));
    put_message(&mut message, 2, |any| put_string(any, 1, "new"));
    let merged = Resource::decode(&message).unwrap().resource;
    assert_eq!(merged, Some(Any { type_url: "new", value: b"value" }));

    let twice = [b"\x12\x00".as_slice(), b"\x12\x00"].concat();
    assert_eq!(DiscoveryRequest::decode(&twice), Err(WireError::Repeated { field: "DiscoveryRequest.node" }));
}

#[test]
fn durations_are_what_envoy_takes() {
    let read = |seconds, nanos| {
        let message = google::protobuf::Duration { seconds, nanos }.encode_to_vec();
        duration(&message).unwrap()
    };
    assert_eq!(read(0, 0), Some(std::time::Duration::ZERO));
    assert_eq!(read(30, 1), Some(std::time::Duration::new(30, 1)));
    assert_eq!(read(-1, 0), None);
    assert_eq!(read(0, -1), None);
    assert_eq!(read(0, 1_000_000_000), None);
    assert_eq!(read(u32::MAX.into(), 0), Some(std::time::Duration::from_secs(u32::MAX.into())));
    assert_eq!(read(1 << 32, 0), None);
}

#[test]
fn a_part_of_a_view_is_kept_without_a_copy() {
    let mut message = Vec::new();
    put_message(&mut message, 2, |any| put_len(any, 2, &[7; 100]));
    let message = Bytes::from(message);
    let response = DiscoveryResponse::decode(&message).unwrap();
    let value = response.resources[0].value;
    let kept = message.slice_ref(value);
    assert_eq!(kept.as_ptr(), value.as_ptr());
    assert_eq!(kept, [7; 100].as_slice());
}

/// Fields of any kind, groups in groups too.
fn fields() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![1..20u32, 1..(1u32 << 29)];
    let leaf = prop_oneof![
        (number.clone(), any::<u64>()).prop_map(|(number, value)| {
            let mut out = Vec::new();
            put_varint(&mut out, number, value.max(1));
            out
        }),
        (number.clone(), vec(any::<u8>(), 0..200)).prop_map(|(number, value)| {
            let mut out = Vec::new();
            put_len(&mut out, number, &value);
            out
        }),
        any::<[u8; 8]>().prop_map(|value| [&[0x09], &value[..]].concat()),
        any::<[u8; 4]>().prop_map(|value| [&[0x0d], &value[..]].concat()),
    ];
    let message = vec(leaf, 0..8).prop_map(|fields| fields.concat());
    message.prop_recursive(4, 64, 4, |inner| {
        vec(inner, 1..4).prop_map(|groups| {
            groups.iter().flat_map(|group| [&[0x0b], &group[..], &[0x0c]].concat()).collect()
        })
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = DiscoveryRequest::decode(&bytes);
        let _ = DiscoveryResponse::decode(&bytes);
        let _ = DeltaDiscoveryRequest::decode(&bytes);
        let _ = DeltaDiscoveryResponse::decode(&bytes);
        let _ = TypedExtensionConfig::decode(&bytes);
        let _ = messages_type_url(&bytes);
        let _ = node_id(&bytes);
        let _ = duration(&bytes);
    }

    #[test]
    fn what_prost_refuses_to_walk_is_refused(bytes in vec(any::<u8>(), 0..40)) {
        // `()` is the message without fields: prost skips all of them.
        let ours = Fields::of("test", &bytes).all(|field| field.is_ok());
        prop_assert!(!ours || <() as prost::Message>::decode(&bytes[..]).is_ok());
    }

    #[test]
    fn the_ranges_of_the_fields_are_the_message(bytes in fields()) {
        let mut end = 0;
        for field in Fields::of("test", &bytes) {
            let field = field.unwrap();
            prop_assert_eq!(field.range.start, end);
            end = field.range.end;
        }
        prop_assert_eq!(end, bytes.len());
        prop_assert_eq!(replace_fields(&bytes, &[], b"").unwrap(), bytes);
    }

    #[test]
    fn the_size_of_a_field_is_known_before_it_is_written(number in 1..(1u32 << 29), length in 0..70_000usize) {
        let mut out = Vec::new();
        put_len(&mut out, number, &vec![0; length]);
        prop_assert_eq!(out.len(), len_size(number, length));
    }
}
