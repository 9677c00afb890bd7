//! What a resource means before and after, by prost and Envoy's own messages, for random resources
//! with unknown fields, messages in pieces, and fields in any order.

use std::path::Path;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::async_data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::{
    AsyncDataSource, DataSource, TypedExtensionConfig, data_source,
};
use envoy_types::pb::envoy::extensions::filters::http::{rbac::v3 as http_rbac, wasm::v3 as http_wasm};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use envoy_types::pb::envoy::extensions::wasm::v3::{VmConfig, plugin_config};
use envoy_types::pb::google::protobuf::Struct;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::super::{FilterKind, Plan, RewriteError};
use super::support::{MODULE, Plugin, planned, remote_of};
use crate::protobuf::type_url;
use crate::protobuf::wire::{Fields, put_entry, put_len, put_string, put_varint};

/// `udpa.type.v1.TypedStruct` and `xds.type.v3.TypedStruct`.
#[derive(Clone, PartialEq, Message)]
pub struct TypedStruct {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

/// The HTTP and the network filter have the same fields.
type Wasm = http_wasm::Wasm;

#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    Wasm(Box<Wasm>),
    Struct(TypedStruct),
}

/// Name, type and filter.
pub fn decoded(resource: &[u8]) -> (String, String, Filter) {
    let config = TypedExtensionConfig::decode(resource).unwrap();
    let any = config.typed_config.unwrap();
    let filter = if type_url::full_name(&any.type_url).ends_with("TypedStruct") {
        Filter::Struct(TypedStruct::decode(&any.value[..]).unwrap())
    } else {
        Filter::Wasm(Box::new(Wasm::decode(&any.value[..]).unwrap()))
    };
    (config.name, any.type_url, filter)
}

fn vm_config(wasm: &mut Wasm) -> &mut VmConfig {
    let plugin_config::Vm::VmConfig(vm) = wasm.config.as_mut().unwrap().vm.as_mut().unwrap();
    vm
}

/// What the rewritten filter must mean.
fn expected(mut wasm: Wasm, path: Option<&str>) -> Wasm {
    let vm = vm_config(&mut wasm);
    if let Some(environment) = &mut vm.environment_variables {
        environment.key_values.retain(|key, _| !key.starts_with("ISTIO_META_"));
    }
    if let Some(path) = path {
        let filename = data_source::Specifier::Filename(path.to_owned());
        let local = DataSource { specifier: Some(filename), ..Default::default() };
        vm.code = Some(AsyncDataSource { specifier: Some(Specifier::Local(local)) });
    }
    normal(wasm)
}

/// An empty environment and none are the same.
fn normal(mut wasm: Wasm) -> Wasm {
    let environment = &mut vm_config(&mut wasm).environment_variables;
    if environment.as_ref().is_some_and(|environment| environment.encoded_len() == 0) {
        *environment = None;
    }
    wasm
}

#[test]
fn every_fallback_is_the_filter_that_it_should_be() {
    let fallback = |kind, failure_policy| {
        let plugin = Plugin { kind, failure_policy, ..Plugin::remote() };
        let bytes = remote_of(&plugin.message()).fallback();
        let config = TypedExtensionConfig::decode(&bytes[..]).unwrap();
        assert_eq!(config.name, "team.filter");
        config.typed_config.unwrap()
    };
    for (failure_policy, prefix, denies) in [(3, "wasm-default-allow", false), (2, "wasm-default-deny", true)]
    {
        let rules = denies.then(Default::default);
        let any = fallback(FilterKind::Http, failure_policy);
        assert_eq!(any.type_url, type_url::HTTP_RBAC);
        assert_eq!(
            http_rbac::Rbac::decode(&any.value[..]).unwrap(),
            http_rbac::Rbac {
                rules: rules.clone(),
                rules_stat_prefix: prefix.to_owned(),
                ..Default::default()
            }
        );
        let any = fallback(FilterKind::Network, failure_policy);
        assert_eq!(any.type_url, type_url::NETWORK_RBAC);
        assert_eq!(
            network_rbac::Rbac::decode(&any.value[..]).unwrap(),
            network_rbac::Rbac { rules, stat_prefix: prefix.to_owned(), ..Default::default() }
        );
    }
}

/// An unknown field that must survive; it can be counted.
fn kept() -> BoxedStrategy<Vec<u8>> {
    (500..600u32, vec(any::<u8>(), 0..4))
        .prop_map(|(number, tail)| len_field(number, &[b"keep", &tail[..]].concat()))
        .boxed()
}

fn len_field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_len(&mut out, number, bytes);
    out
}

/// Runs of fields in any order, with unknown ones among them.
fn message(known: Vec<BoxedStrategy<Vec<u8>>>) -> BoxedStrategy<Vec<u8>> {
    (known, vec(kept(), 0..3))
        .prop_map(|(known, unknown)| [known, unknown].concat())
        .prop_shuffle()
        .prop_map(|fields| fields.concat())
        .boxed()
}

/// A sub-message, perhaps in two pieces.
fn sub(number: u32, inner: BoxedStrategy<Vec<u8>>) -> BoxedStrategy<Vec<u8>> {
    (inner, proptest::option::of(any::<prop::sample::Index>()))
        .prop_map(move |(inner, split)| {
            let mut ends = vec![0];
            ends.extend(Fields::of("test", &inner).map(|field| field.unwrap().range.end));
            match split {
                None => len_field(number, &inner),
                Some(at) => {
                    let (first, second) = inner.split_at(ends[at.index(ends.len())]);
                    [len_field(number, first), len_field(number, second)].concat()
                }
            }
        })
        .boxed()
}

fn string(number: u32, pattern: &'static str) -> BoxedStrategy<Vec<u8>> {
    pattern.prop_map(move |text| len_field(number, text.as_bytes())).boxed()
}

fn remote() -> BoxedStrategy<Vec<u8>> {
    let http_uri = (string(1, "(oci://)?r[.]example/[a-z]{1,3}:[a-z]"), string(2, "_"))
        .prop_map(|(uri, cluster)| [uri, cluster].concat())
        .boxed();
    (sub(1, http_uri), string(2, "[0-9a-f]{64}")).prop_map(|(uri, sha256)| [uri, sha256].concat()).boxed()
}

fn environment() -> BoxedStrategy<Vec<u8>> {
    let entry = ("(ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION|ISTIO_META_[A-Z]|[A-Z]{1,2})", "[a-z]{0,3}")
        .prop_map(|(key, value)| {
            let mut out = Vec::new();
            put_entry(&mut out, 2, &key, &value);
            out
        });
    let entries = vec(entry, 0..5).prop_map(|entries| entries.concat()).boxed();
    message(vec![entries, vec(string(1, "[A-Z]{3}"), 0..2).prop_map(|keys| keys.concat()).boxed()])
}

/// A whole resource, and what it means.
fn resource() -> BoxedStrategy<Bytes> {
    let one_of = prop_oneof![3 => sub(2, remote()), 1 => sub(1, string(1, "/[a-z]{1,3}"))];
    let code = message(vec![vec(one_of, 0..4).prop_map(|all| all.concat()).boxed()]);
    let policy = (0..5u64).prop_map(|policy| {
        let mut out = Vec::new();
        put_varint(&mut out, 7, policy);
        out
    });
    let vm = message(vec![
        string(1, "[a-z]{0,3}"),
        sub(3, code),
        prop_oneof![Just(Vec::new()), sub(7, environment())].boxed(),
    ]);
    let plugin = message(vec![string(1, "[a-z]{1,3}"), sub(3, vm), policy.boxed()]);
    let wasm = message(vec![sub(1, plugin)]);
    let kind = prop_oneof![Just(type_url::HTTP_WASM), Just(type_url::NETWORK_WASM)];
    let any = (kind, wasm)
        .prop_map(|(kind, wasm)| {
            let mut out = Vec::new();
            put_string(&mut out, 1, kind);
            put_len(&mut out, 2, &wasm);
            out
        })
        .boxed();
    message(vec![string(1, "[a-z]{1,5}"), sub(2, any)]).prop_map(Bytes::from).boxed()
}

fn count_kept(bytes: &[u8]) -> usize {
    bytes.windows(4).filter(|window| *window == b"keep").count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn a_random_resource_changes_only_where_it_may(resource in resource()) {
        let (name, filter_type, Filter::Wasm(wasm)) = decoded(&resource) else { panic!("a message") };
        let code = vm_config(&mut wasm.clone()).code.clone().and_then(|code| code.specifier);
        let ours = vm_config(&mut wasm.clone()).environment_variables.as_ref()
            .is_some_and(|variables| variables.key_values.keys().any(|key| key.starts_with("ISTIO_META_")));
        let (rewritten, path) = match (planned(&resource), code) {
            (Err(error), code) => {
                prop_assert_eq!(error, RewriteError::NoCode);
                prop_assert_eq!(code, None);
                return Ok(());
            }
            (Ok(Plan::Untouched), Some(Specifier::Local(_))) => {
                prop_assert!(!ours);
                return Ok(());
            }
            (Ok(Plan::Stripped(stripped)), Some(Specifier::Local(_))) => {
                prop_assert!(ours);
                (stripped, None)
            }
            (Ok(Plan::Remote(plan)), Some(Specifier::Remote(source))) => {
                let request = plan.request.clone().unwrap();
                let uri = source.http_uri.unwrap().uri;
                prop_assert_eq!(request.url, uri.parse().unwrap());
                prop_assert_eq!(request.expected.unwrap().hex(), source.sha256);
                (plan.with_local(Path::new(MODULE)).unwrap(), Some(MODULE))
            }
            (plan, code) => panic!("{plan:?} for {code:?}"),
        };
        let (new_name, new_type, Filter::Wasm(new)) = decoded(&rewritten) else { panic!("a message") };
        prop_assert_eq!((new_name, new_type), (name, filter_type));
        prop_assert_eq!(normal(*new), expected(*wasm, path));
        prop_assert_eq!(count_kept(&rewritten), count_kept(&resource));
    }
}
