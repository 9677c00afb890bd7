//! Every layout that Wasm modules are published in, from the real registry into the store.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::support::agent::command;
use crate::support::fixtures::module;
use crate::support::pulls::prefetch;
use crate::support::registry::{
    Access, DOCKER_MANIFEST, OCI_MANIFEST, Registry, digest, tar, tar_gz, tar_zstd,
};
use crate::support::world::{User, World};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const OCI_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Publishes an image of these layers, the lowest one first; gives its manifest.
async fn publish(
    registry: &Registry,
    tag: &str,
    (manifest_type, config_type): (&str, &str),
    layers: &[(&str, Vec<u8>)],
) -> Vec<u8> {
    let config = registry.publish_blob("filter", config_type, b"{}").await;
    let mut described = Vec::new();
    for (media_type, layer) in layers {
        described.push(registry.publish_blob("filter", media_type, layer).await);
    }
    let manifest =
        json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": described});
    let manifest = manifest.to_string().into_bytes();
    registry.publish_manifest("filter", tag, manifest_type, &manifest).await;
    manifest
}

#[tokio::test]
async fn every_layout_brings_its_module() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let filter = module("add-header-v1");
    let plugin: &[(&str, &[u8])] = &[("plugin.wasm", &filter)];
    let deep: &[(&str, &[u8])] = &[("etc/x", b"y"), ("opt/filters/plugin.wasm", &filter)];
    let old: &[(&str, &[u8])] = &[("plugin.wasm", b"\0asm an older one")];
    let (docker, oci) = ((DOCKER_MANIFEST, DOCKER_CONFIG), (OCI_MANIFEST, OCI_CONFIG));
    let of = |config| (OCI_MANIFEST, config);
    let raw = |media_type| (media_type, filter.clone());
    let other = tar_gz(&[("etc/passwd", b"root")]);
    let higress = |name, text: &[u8]| (name, text.to_vec());
    let layouts = [
        ("docker", docker, vec![(DOCKER_GZIP, tar_gz(plugin))]),
        ("docker-layers", docker, vec![(DOCKER_GZIP, tar_gz(old)), (DOCKER_GZIP, tar_gz(plugin))]),
        ("gzip", oci, vec![(OCI_GZIP, tar_gz(deep))]),
        ("zstd", oci, vec![(OCI_ZSTD, tar_zstd(deep))]),
        ("plain", oci, vec![(OCI_TAR, tar(plugin))]),
        ("below", oci, vec![(OCI_GZIP, tar_gz(old)), (OCI_ZSTD, tar_zstd(deep)), (OCI_GZIP, other.clone())]),
        (
            "whiteout",
            oci,
            vec![
                (OCI_GZIP, tar_gz(plugin)),
                (OCI_GZIP, tar_gz(&[("opt/plugin.wasm", b"\0asm")])),
                (OCI_ZSTD, tar_zstd(&[("opt/.wh..wh..opq", b"")])),
            ],
        ),
        (
            "solo",
            oci,
            vec![
                ("application/vnd.module.wasm.config.v1+json", b"{}".to_vec()),
                raw("application/vnd.module.wasm.content.layer.v1+wasm"),
            ],
        ),
        (
            "wasm-to-oci",
            of("application/vnd.wasm.config.v1+json"),
            vec![raw("application/vnd.wasm.content.layer.v1+wasm")],
        ),
        ("cncf", of("application/vnd.wasm.config.v0+json"), vec![raw("application/wasm")]),
        ("oras", of("application/vnd.oci.empty.v1+json"), vec![raw(OCI_TAR)]),
        (
            "higress",
            of("application/vnd.oci.empty.v1+json"),
            vec![
                higress("application/vnd.module.wasm.spec.v1+yaml", b"apiVersion: 1.0.0"),
                higress("application/vnd.module.wasm.doc.v1+markdown", b"# A filter"),
                higress("application/vnd.module.wasm.doc.v1.zh+markdown", b"# ?"),
                higress("application/vnd.module.wasm.icon.v1+png", b"png"),
                (OCI_GZIP, tar_gz(plugin)),
            ],
        ),
    ];
    for (name, types, layers) in layouts {
        let manifest = publish(&registry, name, types, &layers).await;
        let url = registry.url("filter", name);
        let run = prefetch(&world, [&url], &[]).await;
        assert_eq!(run.module(&url, &filter)["source_digest"], digest(&manifest), "{name}");
    }
    let blobs = registry.pulls().await.into_iter().filter(|pull| pull.path.ends_with(&digest(&tar_gz(old))));
    assert_eq!(blobs.count(), 0, "no layer is asked for below the one that holds the module");
}

#[tokio::test]
async fn what_no_module_can_be_taken_from_is_refused_by_what_is_wrong() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let filter = module("add-header-v1");
    let plugin: &[(&str, &[u8])] = &[("a/plugin.wasm", &filter)];
    let oci = (OCI_MANIFEST, OCI_CONFIG);
    let bomb = vec![0; 400 << 20];
    let bomb = ::zstd::encode_all(&*[&tar(&[("x", b"")])[..512], &bomb].concat(), 1).unwrap();
    let window = [b"\x28\xb5\x2f\xfd\x00", &[21 << 3][..], &[1, 0, 0]].concat();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(b"<html>").unwrap();
    for (name, layers, label, says) in [
        (
            "whited-out",
            vec![tar_gz(plugin), tar_gz(&[("a/.wh.plugin.wasm", b"")])],
            "removed",
            "a/plugin.wasm",
        ),
        ("without", vec![tar_gz(&[("x", b"")]), tar_gz(&[("y", b"")])], "no_module", "only y, x"),
        (
            "twice",
            vec![tar_gz(&[("plugin.wasm", &filter), plugin[0]])],
            "ambiguous",
            "plugin.wasm and a/plugin.wasm",
        ),
        ("outside", vec![tar_gz(plugin), tar_gz(&[("b/.wh...", b"")])], "tar", "whiteout"),
        ("bomb", vec![bomb], "expands_too_far", "unpacks to more"),
        ("window", vec![window], "zstd", "memory"),
        ("html", vec![gzip.finish().unwrap()], "not_a_module", "HTML"),
    ] {
        let layers: Vec<_> = layers.into_iter().map(|layer| (OCI_GZIP, layer)).collect();
        publish(&registry, name, oci, &layers).await;
        let url = registry.url("filter", name);
        let run = prefetch(&world, [&url], &[]).await;
        let (kind, message) = run.error(&url);
        assert_eq!(kind, label, "{name}: {message}");
        assert!(message.contains(says), "{name}: {message}");
    }
}

#[tokio::test]
async fn an_index_leads_to_its_one_image_for_wasm_and_by_any_of_its_digests() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let (filter, other) = (module("add-header-v1"), module("add-header-v2"));
    let image = async |name: &str, module: &[u8]| {
        let layers = [(OCI_ZSTD, tar_zstd(&[("plugin.wasm", module)]))];
        publish(&registry, name, (OCI_MANIFEST, OCI_CONFIG), &layers).await
    };
    let (good, bad) = (image("good", &filter).await, image("bad", &other).await);
    let entry = |manifest: &[u8], os: &str, architecture: &str| {
        json!({"mediaType": OCI_MANIFEST, "digest": digest(manifest), "size": manifest.len(),
            "platform": {"os": os, "architecture": architecture}})
    };
    let mut attestation = entry(&bad, "unknown", "unknown");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let index = async |tag: &str, media_type: &str, entries: &[Value]| {
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).to_string();
        registry.publish_manifest("filter", tag, media_type, index.as_bytes()).await
    };
    let wasm = entry(&good, "wasip1", "wasm");
    let only = [entry(&good, "linux", "s390x"), attestation.clone()];
    index("wasm", OCI_INDEX, &[entry(&bad, "linux", "amd64"), wasm, attestation.clone()]).await;
    let only = index("only", OCI_INDEX, &only).await;
    index("list", DOCKER_LIST, &[entry(&good, "linux", "s390x")]).await;
    for tag in ["wasm", "only", "list"] {
        let url = registry.url("filter", tag);
        let run = prefetch(&world, [&url], &[]).await;
        assert_eq!(run.module(&url, &filter)["source_digest"], digest(&good), "{tag}");
    }
    let by_digest = registry.url("filter", &only);
    prefetch(&world, [&by_digest], &[]).await.module(&by_digest, &filter);
    // What a resource expects may be the index, the image or the module.
    for expected in [&only, &digest(&good), &digest(&filter)] {
        let url = registry.url("filter", "only");
        let plugin = json!({
            "apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin", "metadata": {"name": "filter"},
            "spec": {"url": url, "sha256": expected.trim_start_matches("sha256:")},
        });
        let file = world.write("plugin.yaml", plugin.to_string(), User::Agent, 0o644);
        let run = prefetch(&world, [file.to_str().unwrap()], &[]).await;
        run.module(&url, &filter);
    }

    index("many", OCI_INDEX, &[entry(&good, "linux", "s390x"), entry(&bad, "linux", "riscv64")]).await;
    index("attested", OCI_INDEX, &[attestation]).await;
    for (tag, says) in [("many", "linux/s390x, linux/riscv64"), ("attested", "unknown/unknown")] {
        let url = registry.url("filter", tag);
        let run = prefetch(&world, [&url], &[]).await;
        let (kind, message) = run.error(&url);
        assert!(kind == "unsupported" && message.contains(says), "{kind}: {message}");
    }
}

#[tokio::test]
async fn what_was_pushed_as_a_docker_image_comes_back() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let filter = module("add-header-v1");
    let file = world.write("filter.wasm", &filter, User::Agent, 0o644);
    let url = registry.url("filter", "docker");
    let pushed = command(&world, ["push", "--layout", "docker", file.to_str().unwrap(), &url], &[]).await;
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let printed = String::from_utf8(pushed.stdout).unwrap();
    let run = prefetch(&world, [&url], &[]).await;
    assert_eq!(run.module(&url, &filter)["source_digest"], printed.trim_end());
}

/// An image layout of one image in two layers, whose `index.json` calls it `v1`.
fn layout(filter: &[u8]) -> (Vec<(String, Vec<u8>)>, String) {
    let layers = [tar_gz(&[("plugin.wasm", filter)]), tar_zstd(&[("etc/x", b"y")])];
    let described = [OCI_GZIP, OCI_ZSTD].iter().zip(&layers).map(
        |(media_type, layer)| json!({"mediaType": media_type, "digest": digest(layer), "size": layer.len()}),
    );
    let described: Vec<Value> = described.collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": described}).to_string();
    let entry = json!({
        "mediaType": OCI_MANIFEST, "digest": digest(manifest.as_bytes()), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    });
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let source = digest(manifest.as_bytes());
    let blobs = layers.into_iter().chain([manifest.into_bytes()]);
    let name = |blob: &[u8]| format!("blobs/sha256/{}", digest(blob).trim_start_matches("sha256:"));
    let mut files: Vec<_> = blobs.map(|blob| (name(&blob), blob)).collect();
    files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    files.push(("index.json".to_owned(), index.into_bytes()));
    (files, source)
}

#[tokio::test]
async fn a_layout_on_this_machine_is_a_source_as_a_folder_and_as_a_tar() {
    let world = World::new();
    let filter = module("add-header-v1");
    let (files, source) = layout(&filter);
    for name in ["folder", "folder/blobs", "folder/blobs/sha256"] {
        world.folder(name, User::Agent, 0o755);
    }
    for (name, content) in &files {
        world.write(&format!("folder/{name}"), content, User::Agent, 0o644);
    }
    let entries: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    world.write("image.tar", tar(&entries), User::Agent, 0o644);
    for place in ["folder", "image.tar"] {
        let path = world.path().join(place);
        for named in [String::new(), ":v1".to_owned(), format!("@{source}")] {
            let url = format!("oci-layout://{}{named}", path.display());
            let run = prefetch(&world, [&url], &[]).await;
            assert_eq!(run.module(&url, &filter)["source_digest"], source.as_str(), "{url}");
        }
        let absent = format!("oci-layout://{}@sha256:{}", path.display(), "0".repeat(64));
        for (url, label) in
            [(format!("oci-layout://{}:v2", path.display()), "unsupported"), (absent, "not_found")]
        {
            assert_eq!(prefetch(&world, [&url], &[]).await.error(&url).0, label, "{url}");
        }
    }
}

#[tokio::test]
async fn nothing_leads_out_of_a_layout_and_nothing_in_it_is_believed() {
    let world = World::new();
    let filter = module("add-header-v1");
    let (files, source) = layout(&filter);
    for name in ["linked", "linked/blobs", "linked/blobs/sha256", "other"] {
        world.folder(name, User::Agent, 0o755);
    }
    for (number, (name, content)) in files.iter().enumerate() {
        // The lower layer is a link to a file with the right bytes, beside the layout.
        if number == 0 {
            let outside = world.write("other/layer", content, User::Agent, 0o644);
            std::os::unix::fs::symlink(outside, world.path().join("linked").join(name)).unwrap();
        } else {
            world.write(&format!("linked/{name}"), content, User::Agent, 0o644);
        }
    }
    let url = format!("oci-layout://{}:v1", world.path().join("linked").display());
    assert_eq!(prefetch(&world, [&url], &[]).await.error(&url).0, "file_not_allowed");

    for (number, label) in [(0, "digest_mismatch"), (1, "digest_mismatch"), (2, "digest_mismatch")] {
        let mut entries: Vec<_> =
            files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
        let last = entries[number].1.len() - 1;
        entries[number].1[last] ^= 0x20;
        let entries: Vec<_> = entries.iter().map(|(name, content)| (*name, content.as_slice())).collect();
        let name = format!("wrong-{number}.tar");
        let path = world.write(&name, tar(&entries), User::Agent, 0o644);
        let url = format!("oci-layout://{}@{source}", path.display());
        let run = prefetch(&world, [&url], &[]).await;
        let (kind, message) = run.error(&url);
        // A compressed layer may be found damaged before its digest is.
        assert!(kind == label || kind == "gzip" || kind == "zstd", "{number}: {kind}: {message}");
    }
    let path = world.write("no.tar", b"no tar", User::Agent, 0o644);
    let url = format!("oci-layout://{}", path.display());
    assert_eq!(prefetch(&world, [&url], &[]).await.error(&url).0, "manifest");
}
