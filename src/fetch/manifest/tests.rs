use serde_json::{Value, json};

use super::*;

const DIGEST: &str = "sha256:000000000000000000000000000000000000000000000000000000000000000a";

fn layer(media_type: &str) -> Value {
    json!({ "mediaType": media_type, "digest": DIGEST, "size": 7 })
}

fn image(layers: &[&str]) -> Value {
    let layers: Vec<Value> = layers.iter().map(|media_type| layer(media_type)).collect();
    json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layer("x/y"), "layers": layers })
}

fn chosen(layers: &[&str]) -> Result<Packaging, Refusal> {
    match read(image(layers).to_string().as_bytes(), Some(OCI_MANIFEST))? {
        Manifest::Image(image) => image.layer().map(|layer| layer.packaging),
        Manifest::Index(_) => panic!("not an index"),
    }
}

fn refusal(document: &Value, content_type: Option<&str>) -> String {
    match read(document.to_string().as_bytes(), content_type) {
        Err(Refusal::Invalid(reason) | Refusal::Unsupported(reason)) => reason,
        Ok(read) => panic!("was read: {read:?}"),
    }
}

/// `(platform, digest's last digit)` of each entry; a platform of three parts has a variant.
fn choose(entries: &[(&str, char)]) -> Result<char, Refusal> {
    let manifests: Vec<Value> = entries
        .iter()
        .map(|(platform, digit)| {
            let mut entry = layer(OCI_MANIFEST);
            entry["digest"] = format!("{}{digit}", &DIGEST[..DIGEST.len() - 1]).into();
            match platform.split('/').collect::<Vec<_>>().as_slice() {
                ["attestation"] => {
                    entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"})
                }
                ["none"] => {}
                ["index"] => entry["mediaType"] = OCI_INDEX.into(),
                [os, arch] => entry["platform"] = json!({"os": os, "architecture": arch}),
                [os, arch, variant] => {
                    entry["platform"] = json!({"os": os, "architecture": arch, "variant": variant});
                }
                _ => unreachable!(),
            }
            entry
        })
        .collect();
    let document = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    match read(document.to_string().as_bytes(), None)? {
        Manifest::Index(index) => index.choose("amd64").map(|child| child.digest.hex().pop().unwrap()),
        Manifest::Image(_) => panic!("not an image"),
    }
}

#[test]
fn every_layout_in_use_gives_its_layer() {
    for raw in RAW_LAYERS {
        assert_eq!(chosen(&[raw]), Ok(Packaging::Raw));
        assert_eq!(chosen(&[RAW_COMPANION, raw]), Ok(Packaging::Raw));
        assert_eq!(chosen(&[raw, RAW_COMPANION]), Ok(Packaging::Raw));
    }
    for tar in TAR_LAYERS {
        assert_eq!(chosen(&[tar]), Ok(Packaging::Layer));
        assert_eq!(chosen(&["application/vnd.module.wasm.doc.v1+markdown", tar]), Ok(Packaging::Layer));
    }
}

#[test]
fn layers_that_are_no_module_are_refused_by_name() {
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    for (layers, named) in [
        (&[zstd][..], zstd),
        (&[TAR_LAYERS[0], zstd], zstd),
        (&[RAW_LAYERS[0], RAW_LAYERS[1]], RAW_LAYERS[1]),
        (&[RAW_LAYERS[0], TAR_LAYERS[0]], TAR_LAYERS[0]),
        (&[RAW_LAYERS[0], RAW_COMPANION, RAW_COMPANION], RAW_COMPANION),
        (&["text/html"], "text/html"),
        (&[], "no layers"),
    ] {
        match chosen(layers) {
            Err(Refusal::Unsupported(reason)) => assert!(reason.contains(named), "{reason}"),
            other => panic!("{layers:?}: {other:?}"),
        }
    }
}

#[test]
fn documents_that_contradict_themselves_are_refused() {
    let good = image(&[RAW_LAYERS[0]]);
    let with = |key: &str, value: Value| {
        let mut document = good.clone();
        document[key] = value;
        document
    };
    assert!(refusal(&with("manifests", json!([])), None).contains("both layers and manifests"));
    assert!(refusal(&good, Some(DOCKER_MANIFEST)).contains("was sent as"));
    assert!(refusal(&with("mediaType", OCI_INDEX.into()), None).contains("does not have"));
    assert!(refusal(&with("mediaType", "text/html".into()), None).contains("text/html"));
    assert!(refusal(&with("schemaVersion", json!(3)), None).contains("schemaVersion"));
    assert!(refusal(&with("schemaVersion", Value::Null), None).contains("schemaVersion"));
    assert!(
        refusal(&with("layers", json!([{"mediaType": "a", "digest": DIGEST, "size": -1}])), None)
            .contains("JSON")
    );
    assert!(refusal(&json!("x"), None).contains("JSON"));
    let schema1 = json!({ "schemaVersion": 1, "fsLayers": [], "history": [] });
    assert!(refusal(&schema1, None).contains("schema 1"));
    let pretty = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    assert!(refusal(&json!({"schemaVersion": 2}), Some(pretty)).contains("schema 1"));
}

#[test]
fn a_silent_or_generic_content_type_leaves_it_to_the_document() {
    let good = image(&[RAW_LAYERS[0]]).to_string();
    let parameters = format!("{OCI_MANIFEST}; charset=utf-8");
    for content_type in
        [None, Some("application/json"), Some("text/plain; charset=utf-8"), Some(&*parameters)]
    {
        assert!(read(good.as_bytes(), content_type).is_ok(), "{content_type:?}");
    }
    let mut untyped = image(&[RAW_LAYERS[0]]);
    untyped.as_object_mut().unwrap().remove("mediaType");
    assert!(read(untyped.to_string().as_bytes(), Some(DOCKER_MANIFEST)).is_ok());
    assert!(read(untyped.to_string().as_bytes(), None).is_ok());
}

#[test]
fn digests_that_could_be_paths_are_refused() {
    for digest in ["sha256:../../../etc/passwd", "sha512:00", "", &DIGEST.to_uppercase()] {
        let mut document = image(&[RAW_LAYERS[0]]);
        document["layers"][0]["digest"] = digest.into();
        let Ok(Manifest::Image(image)) = read(document.to_string().as_bytes(), None) else {
            panic!("{digest}")
        };
        assert!(matches!(image.layer(), Err(Refusal::Invalid(_))), "{digest}");
    }
}

#[test]
fn wasm_goes_before_linux_and_linux_before_what_is_left() {
    assert_eq!(choose(&[("linux/amd64", '1'), ("wasip1/wasm", '2'), ("linux/arm64", '3')]), Ok('2'));
    assert_eq!(choose(&[("wasip2/wasm", '1'), ("wasip1/wasm", '2')]), Ok('2'));
    assert_eq!(choose(&[("linux/arm64", '1'), ("linux/amd64", '2')]), Ok('2'));
    assert_eq!(choose(&[("linux/s390x", '1')]), Ok('1'));
    assert_eq!(choose(&[("none", '1')]), Ok('1'));
}

#[test]
fn attestations_do_not_count() {
    assert_eq!(choose(&[("linux/arm64", '1'), ("attestation", '2'), ("unknown/unknown", '3')]), Ok('1'));
    assert!(choose(&[("attestation", '2')]).is_err());
    assert!(choose(&[("index", '2')]).is_err());
}

#[test]
fn an_ambiguous_index_is_refused_with_what_was_seen() {
    for entries in [
        &[("linux/arm64", '1'), ("linux/s390x", '2')][..],
        &[("wasi/wasm", '1'), ("js/wasm", '2')],
        &[("linux/amd64/v2", '1'), ("linux/amd64/v3", '2')],
    ] {
        let Err(Refusal::Unsupported(reason)) = choose(entries) else { panic!("{entries:?}") };
        assert!(reason.contains(entries[0].0) && reason.contains(entries[1].0), "{reason}");
    }
    assert_eq!(choose(&[("linux/amd64", '1'), ("linux/amd64/v2", '1')]), Ok('1'), "twice the same");
}

#[test]
fn a_strangers_words_are_short_and_plain_in_errors() {
    assert_eq!(quote("a\u{1b}[31m\n"), "a?[31m?");
    assert_eq!(quote(&"x".repeat(1000)).len(), 100);
    assert!(list(vec!["x".to_owned(); 1000].into_iter()).ends_with("and 992 more"));
}
