//! What registries, servers and files may send that is not a module: each ends in one clear error, with
//! nothing of it in the store and the other modules of the same run there.

use std::io::Write as _;
use std::os::unix::fs::symlink;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::support::agent::{Agent, Options, command};
use crate::support::bad_server::{BadServer, Fault, Reply};
use crate::support::control_plane::Protocol;
use crate::support::ecds::Ecds;
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::pulls::{cache, digests, payloads, prefetch, wasm_plugin};
use crate::support::registry::{Access, Layout, Registry, digest, tar, tar_gz};
use crate::support::world::{User, World};

const RAW: &str = "application/wasm";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZ: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A gzip file named `self` that unpacks to itself: copies and literals that print each other, with a
/// checksum that was solved for.
const QUINE: &str = "1f8b08080000000000ff73656c6600001400ebff1f8b08080000000000ff73656c6600001400ebff\
    428821c400000500faff428821c400000500faff000500faff001400ebff428821c400000500faff000500faff001400ebff\
    428821c400001400ebff428821c400001400ebff428821c400001400ebff428821c400001400ebff428821c400000000ffff\
    000000ffff001200edff428821c400000000ffff000000ffff001200edff828bc04500010000ffffacfb10f4ce000000\
    828bc04500010000ffffacfb10f4ce000000";

/// With this limit a bomb need not be large to be one.
const LIMIT: &str = "version: 1\ncache: {max_module_bytes: 1MiB}\n";

/// One that must fail.
struct Bad {
    url: String,
    /// What is given on the command line, where that is not the URL.
    file: Option<String>,
    reason: &'static str,
    /// Parts of the error's text, besides the URL.
    says: Vec<String>,
}

impl Bad {
    fn new(url: String, reason: &'static str, says: &[&str]) -> Bad {
        Bad { url, file: None, reason, says: says.iter().map(|part| (*part).to_owned()).collect() }
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1;
    flipped
}

/// A tar whose plugin.wasm says that it is so large.
fn tar_that_declares(size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("plugin.wasm").unwrap();
    header.set_size(size);
    header.set_cksum();
    [header.as_bytes().as_slice(), &[0; 1024]].concat()
}

/// A gzip file of a module's first bytes and then zeros, a thousand times smaller than what is in it.
fn bomb() -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(b"\0asm\x01\0\0\0").unwrap();
    gzip.write_all(&vec![0; 16 << 20]).unwrap();
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() * 1000 < 16 << 20);
    bomb
}

/// All of them, with a good neighbour's URL and module.
async fn sources(world: &World, open: &Registry, closed: &Registry, server: &BadServer) -> Vec<Bad> {
    let whole = padded(&module("add-header-v1"), 50_000);
    let mut bad = Vec::new();

    bad.push(Bad::new(
        "oci://registry.invalid/filter:v1".into(),
        "dns",
        &["registry.invalid: failed to lookup"],
    ));
    let nobody = format!("http://{}/module.wasm", world.address());
    bad.push(Bad::new(nobody, "connect", &["cannot connect to", "Connection refused"]));
    bad.push(Bad::new("http://169.254.169.254/latest".into(), "blocked", &["link-local"]));
    bad.push(Bad::new(open.url("absent", "v1"), "not_found", &["(MANIFEST_UNKNOWN)"]));
    bad.push(Bad::new(open.url("filter", "absent"), "not_found", &["(MANIFEST_UNKNOWN)"]));
    bad.push(Bad::new(closed.url("filter", "v1"), "unauthorized", &["not authorised"]));
    bad.push(Bad::new(server.url("/absent.wasm"), "not_found", &["was not found"]));
    bad.push(Bad::new(server.put("/broken.wasm", Reply::status(500)), "unavailable", &["status 500"]));

    let manifest = open.publish("filter", "other", Layout::Artifact, &whole).await;
    let url = open.url("filter", "other");
    let expected = "0123456789abcdef".repeat(4);
    let plugin = wasm_plugin("p", &url, json!({"sha256": expected}));
    let file = world.write("unexpected.yaml", plugin.to_string(), User::Tests, 0o644);
    let says = [format!("expected sha256:{expected}"), digest(&whole), manifest];
    bad.push(Bad {
        url,
        file: Some(file.display().to_string()),
        reason: "digest_mismatch",
        says: says.into(),
    });

    let promised = digest(&whole);
    for (place, at) in [("first", 0), ("middle", whole.len() / 2), ("last", whole.len() - 1)] {
        let sent = flipped(&whole, at);
        let url = server.image(&format!("{place}-byte"), RAW, &whole, Reply::ok(sent.clone()));
        bad.push(Bad::new(url, "digest_mismatch", &["the layer", &promised, &digest(&sent)]));
    }
    // Behind the module, where a reader that stops at what it wants would not look.
    // Without compression a damaged byte stays one damaged byte.
    let layer = tar(&[("plugin.wasm", &whole), ("licence", &[b'x'; 3000])]);
    let behind = layer.windows(100).position(|bytes| bytes == [b'x'; 100]).unwrap() + 2000;
    let sent = flipped(&layer, behind);
    let url = server.image("after-the-module", TAR, &layer, Reply::ok(sent.clone()));
    bad.push(Bad::new(url, "digest_mismatch", &[&digest(&layer), &digest(&sent)]));
    let more = [&layer[..], &[0; 512]].concat();
    let url = server.image("more-than-promised", TAR, &layer, Reply::ok(more));
    bad.push(Bad::new(url, "size_mismatch", &[&layer.len().to_string()]));

    let cut = |bytes: &[u8]| Reply::ok(bytes).fault(Fault::Cut(bytes.len() / 2));
    bad.push(Bad::new(
        server.image("cut", RAW, &whole, cut(&whole)),
        "transport",
        &["connection to", "end of file before"],
    ));
    bad.push(Bad::new(
        server.put("/cut.wasm", cut(&whole)),
        "transport",
        &["connection to", "end of file before"],
    ));
    let less = Reply::ok(&whole[..whole.len() - 1]);
    let url = server.image("one-byte-short", RAW, &whole, less);
    bad.push(Bad::new(url, "size_mismatch", &[&whole.len().to_string(), &(whole.len() - 1).to_string()]));
    let half = tar_gz(&[("plugin.wasm", &whole)]);
    let half = &half[..half.len() / 2];
    bad.push(Bad::new(server.image("half", TAR_GZ, half, Reply::ok(half)), "gzip", &["gzip"]));

    for (name, size) in [("8-gib", (8 << 30) - 1), ("absurd", u64::MAX / 2)] {
        let layer = tar_that_declares(size);
        let url = server.image(name, TAR, &layer, Reply::ok(layer.clone()));
        bad.push(Bad::new(url, "too_large", &["larger than the limit of 1048576 bytes"]));
        let url = server.put(&format!("/{name}.tar"), Reply::ok(layer));
        bad.push(Bad::new(url, "too_large", &["larger than the limit of 1048576 bytes"]));
    }
    let bomb = bomb();
    bad.push(Bad::new(server.put("/bomb.wasm.gz", Reply::ok(bomb.clone())), "too_large", &["1048576 bytes"]));
    bad.push(Bad::new(
        server.image("bomb", TAR_GZ, &bomb, Reply::ok(bomb.clone())),
        "too_large",
        &["1048576"],
    ));
    let quine = hex::decode(QUINE).unwrap();
    bad.push(Bad::new(
        server.put("/self.gz", Reply::ok(quine.clone())),
        "nested_too_deep",
        &["compression within"],
    ));
    let url = server.image("self", TAR_GZ, &quine, Reply::ok(quine.clone()));
    bad.push(Bad::new(url, "nested_too_deep", &["compression within compression"]));

    let large = format!("{{\"schemaVersion\": 2, \"padding\": \"{}\"}}", "x".repeat(8 << 20));
    let url = server.manifest("large-manifest", large.into_bytes());
    bad.push(Bad::new(url, "too_large", &["the manifest of", "8388608 bytes"]));
    bad.push(Bad::new(
        server.manifest("no-manifest", b"<html>".into()),
        "manifest",
        &["not a manifest in JSON"],
    ));
    let layer = tar(&[("readme.md", b"hello")]);
    let url = server.image("no-module", TAR, &layer, Reply::ok(layer.clone()));
    bad.push(Bad::new(url, "no_module", &["no plugin.wasm in the archive, only readme.md"]));

    for (name, reason, says) in [
        ("html", "not_wasm", "an HTML page"),
        ("empty", "empty", "the module is empty"),
        ("truncated", "truncated", "cut off"),
        ("component", "component", "a WebAssembly component"),
        ("no-abi", "no_abi_version", "exports no proxy_abi_version_0_1_0"),
        ("unknown-import", "unknown_import", "no Envoy provides"),
        ("precompiled", "precompiled", "native code"),
    ] {
        open.publish("fixtures", name, Layout::Artifact, &module(name)).await;
        bad.push(Bad::new(open.url("fixtures", name), reason, &["Envoy would not take the module", says]));
    }
    let url = server.put("/sign-in", Reply::ok(module("html")));
    bad.push(Bad::new(url, "not_a_module", &["neither a Wasm module nor an archive", "an HTML page"]));
    let file = world.write("image.png", b"\x89PNG\r\n\x1a\n", User::Tests, 0o644);
    bad.push(Bad::new(format!("file://{}", file.display()), "not_a_module", &["neither a Wasm module"]));
    bad.push(Bad::new(format!("file://{}", world.path().join("none").display()), "not_found", &["the file"]));
    bad.push(Bad::new("file:///dev/zero".into(), "file_not_allowed", &["not a regular file"]));
    bad
}

/// Whether the text names the URL, once, and not one that only begins like it.
fn names(text: &str, url: &str) -> bool {
    let mut parts = text.split(url);
    let (_before, after) = (parts.next(), parts.next());
    after.is_some_and(|after| after.is_empty() || after.starts_with([' ', ':'])) && parts.next().is_none()
}

#[tokio::test]
async fn each_bad_source_ends_in_one_clear_error_with_nothing_in_the_store_and_its_neighbours_served() {
    let world = World::new();
    let open = Registry::start(&world, Access::Anonymous).await;
    let closed = Registry::start(&world, Access::Htpasswd).await;
    let server = BadServer::start(&world).await;
    let good = padded(&module("add-header-v2"), 40_000);
    open.publish("good", "v1", Layout::OciImage, &good).await;
    let neighbour = open.url("good", "v1");
    let bad = sources(&world, &open, &closed, &server).await;
    let config = world.write("limit.yaml", LIMIT, User::Tests, 0o644);
    let config = config.to_str().unwrap();

    let arguments = bad.iter().map(|bad| bad.file.as_ref().unwrap_or(&bad.url).as_str());
    let arguments: Vec<&str> =
        ["--config", config].into_iter().chain(arguments).chain([neighbour.as_str()]).collect();
    let run = prefetch(&world, arguments.clone(), &[]).await;
    assert_eq!((run.code, run.lines.len()), (Some(1), bad.len() + 1));
    run.module(&neighbour, &good);
    let mut wrong = Vec::new();
    for Bad { url, reason, says, .. } in &bad {
        let (found, text) = run.error(url);
        let clear = names(text, url) && !text.contains('\n');
        if found != *reason || !clear || !says.iter().all(|part| text.contains(part)) {
            wrong.push(format!("{found}: {text}\n  expected {reason}: {says:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(run.stderr, format!("{} of the modules could not be had\n", bad.len()));
    assert_eq!(payloads(&cache(&world)), digests([good.as_slice()]));

    // For people: the same line for each, on standard error, once.
    let cache_dir = cache(&world);
    let fixed = ["prefetch", "--cache-dir", cache_dir.to_str().unwrap()];
    let output = command(&world, fixed.into_iter().chain(arguments), &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), bad.len() + 1, "{stderr}");
    for Bad { url, .. } in &bad {
        let lines: Vec<&str> = stderr.lines().filter(|line| names(line, url)).collect();
        assert_eq!(lines.len(), 1, "{url}: {stderr}");
    }
    assert_eq!(payloads(&cache(&world)), digests([good.as_slice()]));
}

#[tokio::test]
async fn a_resource_reads_no_file_that_is_not_allowed_and_through_no_link_that_leads_out() {
    let world = World::new();
    let allowed = world.folder("allowed", User::Agent, 0o755);
    let inside = module("add-header-v1");
    world.write("allowed/inside.wasm", &inside, User::Agent, 0o644);
    // A module, so that nothing but the rule keeps it out.
    let outside = world.write("outside.wasm", module("add-header-v2"), User::Agent, 0o644);
    symlink("inside.wasm", allowed.join("link-inside.wasm")).unwrap();
    symlink("../outside.wasm", allowed.join("link-outside.wasm")).unwrap();
    symlink("..", allowed.join("folder")).unwrap();
    let allowed_url = |name: &str| format!("file://{}/{name}", allowed.display());
    let urls = [
        ("inside", allowed_url("inside.wasm"), None),
        ("link-inside", allowed_url("link-inside.wasm"), None),
        ("passwd", "file:///etc/passwd".to_owned(), Some("it is in no allowed folder")),
        ("outside", format!("file://{}", outside.display()), Some("it is in no allowed folder")),
        ("link-outside", allowed_url("link-outside.wasm"), Some("a link in it leads out")),
        ("folder", allowed_url("folder/outside.wasm"), Some("a link in it leads out")),
    ];
    let plugins = world.folder("plugins", User::Agent, 0o755);
    for (name, url, _) in &urls {
        let plugin = wasm_plugin(name, url, json!({}));
        world.write(&format!("plugins/{name}.yaml"), plugin.to_string(), User::Agent, 0o644);
    }
    let options = Options::directory(&plugins).with(&format!("sources: {{file: [{}]}}", allowed.display()));
    let agent = Agent::start(&world, &options).await;
    let names: Vec<String> = urls.iter().map(|(name, ..)| format!("default.{name}")).collect();
    let mut envoy = Ecds::subscribe(agent.tcp, Protocol::Sotw, &names).await;
    for (name, url, refused) in &urls {
        let name = format!("default.{name}");
        match refused {
            None => assert_eq!(std::fs::read(envoy.module(&name).await).unwrap(), inside),
            Some(reason) => {
                envoy.denied(&name).await;
                let error = eventually("an error in the state", async || {
                    let state = agent.admin("/state").await.text();
                    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
                    let resources = state["streams"][0]["resources"].as_array()?.clone();
                    let resource = resources.into_iter().find(|resource| resource["name"] == name)?;
                    resource["last_error"].as_str().map(str::to_owned)
                })
                .await;
                assert!(error.contains(url.as_str()) && error.contains(reason), "{error}");
            }
        }
    }
    assert_eq!(payloads(&agent.cache), digests([inside.as_slice()]));
}
