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
        Manifest::Image(image) => image.layers().map(|layers| layers.top.packaging),
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
        let (spec, doc) =
            ("application/vnd.module.wasm.spec.v1+yaml", "application/vnd.module.wasm.doc.v1.zh+markdown");
        assert_eq!(
            chosen(&[spec, doc, "application/vnd.module.wasm.icon.v1+png", tar]),
            Ok(Packaging::Layer)
        );
    }
}

/// The manifest as a tool wrote it: which digest is the top layer's, and which are those below.
fn golden(manifest: &str) -> (String, Vec<Result<String, Refusal>>) {
    let Ok(Manifest::Image(image)) = read(manifest.as_bytes(), None) else { panic!("no image: {manifest}") };
    let hex = |layer: Layer| layer.digest.hex().chars().skip(62).collect::<String>();
    let layers = image.layers().unwrap();
    (hex(layers.top), layers.below.into_iter().map(|layer| layer.map(hex)).collect())
}

/// A manifest with these layers, each with its number as its digest.
fn written(media_type: &str, config: &str, layers: &[&str]) -> String {
    let numbered = |(number, media_type): (usize, &&str)| {
        let mut layer = layer(media_type);
        layer["digest"] = format!("sha256:{:064}", number + 1).into();
        layer
    };
    let layers: Vec<Value> = layers.iter().enumerate().map(numbered).collect();
    json!({"schemaVersion": 2, "mediaType": media_type, "config": layer(config), "layers": layers})
        .to_string()
}

#[test]
fn the_manifests_of_the_tools_in_use_are_read() {
    let docker = "application/vnd.docker.container.image.v1+json";
    let gzip = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let (top, below) = golden(&written(DOCKER_MANIFEST, docker, &[gzip, gzip, gzip]));
    assert_eq!((top.as_str(), below), ("03", vec![Ok("02".to_owned()), Ok("01".to_owned())]), "docker build");

    let oci = "application/vnd.oci.image.config.v1+json";
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let (top, below) = golden(&written(OCI_MANIFEST, oci, &[plain, zstd]));
    assert_eq!((top.as_str(), below), ("02", vec![Ok("01".to_owned())]), "buildah");

    for (config, layers, top) in [
        ("application/vnd.wasm.config.v1+json", &["application/vnd.wasm.content.layer.v1+wasm"][..], "01"),
        ("application/vnd.wasm.config.v0+json", &["application/wasm"], "01"),
        ("application/vnd.oci.empty.v1+json", &["application/wasm"], "01"),
        (oci, &[RAW_COMPANION, "application/vnd.module.wasm.content.layer.v1+wasm"], "02"),
        ("application/vnd.unknown.config.v1+json", &[DOCUMENTS[0], DOCUMENTS[1], TAR_LAYERS[0]], "03"),
        ("application/vnd.unknown.config.v1+json", &[TAR_LAYERS[0], DOCUMENTS[0]], "01"),
    ] {
        let expected = (top.to_owned(), Vec::new());
        assert_eq!(golden(&written(OCI_MANIFEST, config, layers)), expected, "{config}");
    }
}

#[test]
fn a_layer_that_cannot_be_read_counts_only_where_it_is_reached() {
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let (top, below) = golden(&written(DOCKER_MANIFEST, "x/y", &[TAR_LAYERS[0], foreign, TAR_LAYERS[0]]));
    assert_eq!((top.as_str(), below.len()), ("03", 2));
    let Err(Refusal::Unsupported(reason)) = &below[0] else { panic!("{below:?}") };
    assert!(reason.contains(foreign), "{reason}");
    assert_eq!(below[1], Ok("01".to_owned()));
}

#[test]
fn an_image_of_ten_thousand_layers_is_refused() {
    let most = vec![TAR_LAYERS[0]; MAX_LAYERS];
    assert_eq!(chosen(&most), Ok(Packaging::Layer));
    let Err(Refusal::Unsupported(reason)) = chosen(&vec![TAR_LAYERS[0]; 10_000]) else { panic!() };
    assert!(reason.contains("10000 layers"), "{reason}");
}

#[test]
fn layers_that_are_no_module_are_refused_by_name() {
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    for (layers, named) in [
        (&[encrypted][..], encrypted),
        (&[TAR_LAYERS[0], encrypted], encrypted),
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
        assert!(matches!(image.layers(), Err(Refusal::Invalid(_))), "{digest}");
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

#[test]
fn a_tag_in_a_layout_names_images_or_one_index() {
    let entry = |media_type: &str, digit: char, tag: &str| {
        let mut entry = layer(media_type);
        entry["digest"] = format!("{}{digit}", &DIGEST[..DIGEST.len() - 1]).into();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        entry
    };
    let entries = [
        entry(OCI_INDEX, '1', "multi"),
        entry(OCI_MANIFEST, '2', "v1"),
        entry(OCI_MANIFEST, '3', "twice"),
        entry(OCI_MANIFEST, '4', "twice"),
    ];
    let document = json!({ "schemaVersion": 2, "manifests": entries }).to_string();
    let tagged = |tag: &str| match read(document.as_bytes(), None) {
        Ok(Manifest::Index(index)) => index.tagged(tag),
        other => panic!("{other:?}"),
    };
    let only =
        |tag: &str| tagged(tag).unwrap().only().unwrap().map(|child| child.digest.hex().pop().unwrap());
    assert_eq!([only("multi"), only("v1"), only("twice")], [Some('1'), Some('2'), None]);
    assert!(tagged("twice").unwrap().choose("amd64").is_err());
    let Err(Refusal::Unsupported(reason)) = tagged("v2") else { panic!() };
    assert!(reason.contains("multi, v1, twice"), "{reason}");
}
