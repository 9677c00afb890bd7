//! `wasmferry cache`, and what it is for: looking, cleaning up, and carrying modules to where no registry is.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::agent::{Agent, Options, command};
use crate::support::envoy::{self, Variant};
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::pulls::{Prefetched, cache, digests, payloads, prefetch};
use crate::support::registry::{Access, Layout, Registry, digest};
use crate::support::standalone::{Standalone, header, plugin};
use crate::support::world::{User, World};

/// `wasmferry cache ARGS --output json` on a store: exit code, lines, standard error.
async fn run(world: &World, store: &Path, args: &[&str], env: &[(&str, &str)]) -> Prefetched {
    let fixed = ["--output", "json", "--cache-dir", store.to_str().unwrap()];
    let args: Vec<&str> = ["cache"].into_iter().chain(args.iter().copied()).chain(fixed).collect();
    let output = command(world, args, env).await;
    let lines = String::from_utf8(output.stdout).unwrap();
    Prefetched {
        code: output.status.code(),
        lines: lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn fill(world: &World, store: &Path, urls: &[&str], env: &[(&str, &str)]) {
    let args = ["prefetch", "--cache-dir", store.to_str().unwrap()].into_iter().chain(urls.iter().copied());
    let output = command(world, args, env).await;
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn what_one_store_exports_a_real_envoy_gets_from_another_without_a_registry() {
    let world = World::new();
    let mut registry = Registry::start(&world, Access::Anonymous).await;
    registry.publish("configured", "v1", Layout::OciImage, &module("configured-header")).await;
    let url = registry.url("configured", "v1");
    let one = world.folder("one", User::Agent, 0o711);
    fill(&world, &one, &[&url], &[]).await;
    let carried = world.folder("carried", User::Agent, 0o755).join("modules.tar");
    let exported = run(&world, &one, &["export", carried.to_str().unwrap()], &[]).await;
    assert_eq!(exported.code, Some(0), "{exported:#?}");
    let payload = digest(&module("configured-header"));
    assert_eq!(exported.lines[0]["payload_digest"], payload);
    registry.stop();

    // Beside a running agent.
    let plugins = world.folder("plugins", User::Tests, 0o755);
    let agent = Agent::start(&world, &Options::directory(&plugins)).await;
    let imported = run(&world, &agent.cache, &["import", carried.to_str().unwrap()], &[]).await;
    assert_eq!((imported.code, imported.stderr.as_str()), (Some(0), ""), "{imported:#?}");
    assert_eq!(imported.lines[0]["payload_digest"], payload);
    let standalone = Standalone { agent, registry, world };
    standalone.write("plugins/a.yaml", &plugin("default", "a", &url, "x-here"));
    let envoy = standalone.envoy(Variant::Delta, &["default.a"]).await;
    let answer = envoy::request(envoy.listener("web").await).await.unwrap();
    assert_eq!(answer.status.as_u16(), 200);
    let text = format!("{answer:?}");
    assert!(text.contains("x-here"), "{text}, not {}", header("x-here"));
    assert_eq!(payloads(&standalone.agent.cache), [payload].into());
}

#[tokio::test]
async fn an_export_is_an_oci_layout_that_other_tools_read() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let module = padded(&module("add-header-v1"), 100_000);
    registry.publish("filters/auth", "v1", Layout::OciImage, &module).await;
    fill(&world, &cache(&world), &[&registry.url("filters/auth", "v1")], &[]).await;
    let folder = world.folder("carried", User::Agent, 0o755);
    let tar = folder.join("modules.tar");
    assert_eq!(run(&world, &cache(&world), &["export", tar.to_str().unwrap()], &[]).await.code, Some(0));

    // By another reader of tars than our own, and the specification's required fields.
    let unpacked = folder.join("unpacked");
    tar::Archive::new(std::fs::File::open(&tar).unwrap()).unpack(&unpacked).unwrap();
    let read = |name: &str| std::fs::read(unpacked.join(name)).unwrap();
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    assert_eq!(json(&read("oci-layout")), json!({"imageLayoutVersion": "1.0.0"}));
    let index = json(&read("index.json"));
    assert_eq!(index["schemaVersion"], 2);
    let name = format!("{}/filters/auth:v1", registry.address());
    let manifests = index["manifests"].as_array().unwrap();
    let of_tag = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"] == name;
    let descriptor = manifests.iter().find(of_tag).unwrap_or_else(|| panic!("{index:#}"));
    let blob = |descriptor: &Value| {
        let named = descriptor["digest"].as_str().unwrap();
        let bytes = read(&format!("blobs/{}", named.replace(':', "/")));
        assert_eq!((digest(&bytes).as_str(), json!(bytes.len())), (named, descriptor["size"].clone()));
        bytes
    };
    let manifest = json(&blob(descriptor));
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    assert_eq!(blob(&manifest["layers"][0]), module);
    json(&blob(&manifest["config"]));

    let to = folder.join("copied");
    let from = format!("oci-archive:{}:{name}", tar.display());
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", &from, &format!("dir:{}", to.display())]);
    match skopeo.output() {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            let hex = digest(&module).trim_start_matches("sha256:").to_owned();
            assert_eq!(std::fs::read(to.join(hex)).unwrap(), module);
        }
        Err(error) => eprintln!("not tried with skopeo: {error}"),
    }
}

#[tokio::test]
async fn a_damaged_archive_gives_nothing_that_is_damaged() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let module = padded(&module("add-header-v1"), 100_000);
    registry.publish("filter", "v1", Layout::Artifact, &module).await;
    fill(&world, &cache(&world), &[&registry.url("filter", "v1")], &[]).await;
    let folder = world.folder("carried", User::Agent, 0o755);
    let tar = folder.join("modules.tar");
    assert_eq!(run(&world, &cache(&world), &["export", tar.to_str().unwrap()], &[]).await.code, Some(0));
    let good = std::fs::read(&tar).unwrap();

    type Entry = (String, Vec<u8>);
    let entries = |bytes: &[u8]| -> Vec<Entry> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), content)
        });
        entries.collect()
    };
    let pack = |entries: &[Entry]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            // Names that the builder itself would refuse.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, content.as_slice()).unwrap();
        }
        tar.into_inner().unwrap()
    };
    let is_module = |entry: &Entry| entry.1.len() == module.len();
    let flip = |mut entries: Vec<Entry>| {
        entries.iter_mut().filter(|entry| is_module(entry)).for_each(|entry| entry.1[50_000] ^= 1);
        entries
    };
    let twice = |mut entries: Vec<Entry>| {
        let again = entries.iter().find(|entry| is_module(entry)).unwrap().clone();
        entries.push(again);
        entries
    };
    let without = |mut entries: Vec<Entry>| {
        entries.retain(|entry| !is_module(entry));
        entries
    };
    let renamed = |name: &'static str, to: &'static str| {
        move |mut entries: Vec<Entry>| {
            entries.iter_mut().filter(|entry| entry.0 == name).for_each(|entry| entry.0 = to.into());
            entries
        }
    };
    let all = entries(&good);
    let store = world.folder("other", User::Agent, 0o711);
    for (what, bytes) in [
        ("a wrong byte", pack(&flip(all.clone()))),
        ("the module twice", pack(&twice(all.clone()))),
        ("no module", pack(&without(all.clone()))),
        ("no index", pack(&renamed("index.json", "../index.json")(all.clone()))),
        ("no layout", pack(&renamed("oci-layout", "/oci-layout")(all.clone()))),
        ("cut off", good[..good.len() / 2].to_vec()),
        ("no tar", b"neither this nor that".to_vec()),
    ] {
        let file = world.write("carried/bad.tar", bytes, User::Agent, 0o644);
        let run = run(&world, &store, &["import", file.to_str().unwrap()], &[]).await;
        assert_eq!(run.code, Some(1), "{what}: {run:#?}");
        assert_eq!(payloads(&store), [].into(), "{what}");
    }
    assert!(!world.path().join("index.json").exists());
    // As it was, by another writer, and with more in it.
    let mut more = all.clone();
    more.insert(0, ("../../outside".to_owned(), b"x".to_vec()));
    more.reverse();
    let file = world.write("carried/good.tar", pack(&more), User::Agent, 0o644);
    let run = run(&world, &store, &["import", file.to_str().unwrap()], &[]).await;
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_eq!(payloads(&store), digests([module.as_slice()]));
}

#[tokio::test]
async fn private_modules_travel_only_where_that_is_said_and_stay_private() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Htpasswd).await;
    let module = module("add-header-v1");
    registry.publish("filter", "v1", Layout::Artifact, &module).await;
    let url = registry.url("filter", "v1");
    let docker = world.folder("docker", User::Agent, 0o700);
    world.write("docker/config.json", registry.docker_config(), User::Agent, 0o600);
    let env = [("DOCKER_CONFIG", docker.to_str().unwrap())];
    let one = world.folder("one", User::Agent, 0o711);
    fill(&world, &one, &[&url], &env).await;
    let tar = world.folder("carried", User::Agent, 0o755).join("modules.tar");
    let tar = tar.to_str().unwrap();

    let refused = run(&world, &one, &["export", tar, &url], &env).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("--private"), "{refused:#?}");
    let nothing = run(&world, &one, &["export", tar], &env).await;
    assert_eq!((nothing.code, nothing.lines.len()), (Some(0), 0), "{nothing:#?}");
    assert_eq!(run(&world, &one, &["export", "--private", tar], &env).await.code, Some(0));

    let left_out = run(&world, &cache(&world), &["import", tar], &env).await;
    assert_eq!((left_out.code, left_out.lines.len()), (Some(0), 0), "{left_out:#?}");
    let nobody = run(&world, &cache(&world), &["import", "--private", tar], &[]).await;
    assert_eq!(nobody.code, Some(1), "{nobody:#?}");
    assert_eq!(payloads(&cache(&world)), [].into());
    let imported = run(&world, &cache(&world), &["import", "--private", tar], &env).await;
    assert_eq!(imported.code, Some(0), "{imported:#?}");

    let before = registry.pulls().await.len();
    let run = prefetch(&world, [&url], &env).await;
    assert_eq!(run.module(&url, &module)["cached"], true);
    assert_eq!(registry.pulls().await.len(), before);
    let without = prefetch(&world, [&url], &[]).await;
    assert_eq!(without.error(&url).0, "unauthorized");
}

#[tokio::test]
async fn another_store_saves_the_download_and_a_damaged_file_in_it_does_not() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let (raw, packed) =
        (padded(&module("add-header-v1"), 100_000), padded(&module("add-header-v1"), 100_001));
    registry.publish("raw", "v1", Layout::Artifact, &raw).await;
    registry.publish("packed", "v1", Layout::OciImage, &packed).await;
    let urls = [registry.url("raw", "v1"), registry.url("packed", "v1")];
    let lower = world.folder("lower", User::Agent, 0o711);
    fill(&world, &lower, &[&urls[0], &urls[1]], &[]).await;
    let config = format!("version: 1\ncache: {{lower: [{}]}}\n", lower.display());
    let config = world.write("lower.yaml", config, User::Agent, 0o644);
    let expecting = json!({"sha256": digest(&packed).trim_start_matches("sha256:")});
    let expecting = crate::support::pulls::wasm_plugin("a", &urls[1], expecting);
    let plugin = world.write("plugin.json", expecting.to_string(), User::Agent, 0o644);
    let args = ["--config", config.to_str().unwrap(), &urls[0], plugin.to_str().unwrap()];

    let blobs = async || registry.pulls().await.iter().filter(|pull| pull.path.contains("/blobs/")).count();
    let before = blobs().await;
    let run = prefetch(&world, args, &[]).await;
    run.module(&urls[0], &raw);
    run.module(&urls[1], &packed);
    assert_eq!((run.code, blobs().await), (Some(0), before), "manifests alone");

    // As a disk, or another owner, may leave it.
    let cache = cache(&world);
    std::fs::remove_dir_all(cache.join("v1")).unwrap();
    let hex = digest(&raw).trim_start_matches("sha256:").to_owned();
    let view = lower.join(format!("v1/public/{}/{hex}.wasm", &hex[..2]));
    let mut damaged = raw.clone();
    damaged[50_000] ^= 1;
    std::fs::remove_file(&view).unwrap();
    std::fs::write(&view, &damaged).unwrap();
    let run = prefetch(&world, args, &[]).await;
    run.module(&urls[0], &raw);
    assert_eq!((run.code, blobs().await), (Some(0), before + 1));
    assert_eq!(std::fs::read(&view).unwrap(), damaged, "and nothing is written there");
}

#[tokio::test]
async fn the_commands_say_what_is_there_and_remove_what_nobody_needs() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let modules = [0, 1, 2].map(|number| padded(&module("add-header-v1"), 1000 + number));
    let mut urls = Vec::new();
    for (number, module) in modules.iter().enumerate() {
        registry.publish("filter", &format!("v{number}"), Layout::OciImage, module).await;
        urls.push(registry.url("filter", &format!("v{number}")));
    }
    let cache = cache(&world);
    let nowhere = run(&world, &world.path().join("nowhere"), &["ls"], &[]).await;
    assert_eq!((nowhere.code, world.path().join("nowhere").exists()), (Some(1), false), "{nowhere:#?}");
    fill(&world, &cache, &[&urls[0], &urls[1], &urls[2]], &[]).await;

    let of = async |number: usize| {
        let list = run(&world, &cache, &["ls"], &[]).await;
        list.lines.iter().find(|line| line["payload_digest"] == digest(&modules[number])).cloned()
    };
    let line = of(0).await.unwrap();
    assert_eq!(line["sources"], json!([{"url": urls[0], "audience": "public"}]));
    assert_eq!((&line["size"], &line["leased_by"]), (&json!(modules[0].len()), &json!(0)));
    assert!(line["verified_at"].as_u64().is_some() && line["unused_seconds"] == 0, "{line}");

    // Pinned by URL, unpinned by digest.
    assert_eq!(run(&world, &cache, &["pin", &urls[0]], &[]).await.code, Some(0));
    assert_eq!(of(0).await.unwrap()["pinned"], true);
    let refused = run(&world, &cache, &["rm", &urls[0]], &[]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("pinned"), "{refused:#?}");
    assert_eq!(run(&world, &cache, &["unpin", &digest(&modules[0])], &[]).await.code, Some(0));
    assert_eq!(run(&world, &cache, &["unpin", &digest(&modules[0])], &[]).await.code, Some(1));
    assert_eq!(run(&world, &cache, &["rm", &urls[0]], &[]).await.code, Some(0));
    assert_eq!(of(0).await, None);
    assert_eq!(run(&world, &cache, &["rm", &urls[0]], &[]).await.code, Some(1));
    for wrong in ["sha256:00", "ftp://h/x"] {
        assert_eq!(run(&world, &cache, &["rm", wrong], &[]).await.code, Some(2), "{wrong}");
    }

    // By what is past its time.
    std::fs::write(cache.join("v1/content/age"), "100000").unwrap();
    let dry = run(&world, &cache, &["gc", "--dry-run"], &[]).await;
    assert_eq!(dry.lines.iter().filter(|line| line["reason"] == "expiry").count(), 2, "{dry:#?}");
    assert_eq!(payloads(&cache).len(), 2);
    let gone = run(&world, &cache, &["gc"], &[]).await;
    assert_eq!((gone.code, gone.lines.last().unwrap()["removed"].as_u64()), (Some(0), Some(2)), "{gone:#?}");
    assert_eq!(payloads(&cache), [].into());
}

#[tokio::test]
async fn a_damaged_module_is_found_and_fetched_again_by_command_and_by_agent() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let module = padded(&module("add-header-v1"), 1000);
    registry.publish("filter", "v1", Layout::OciImage, &module).await;
    let url = registry.url("filter", "v1");
    let first = prefetch(&world, [&url], &[]).await;
    let path = first.module(&url, &module)["path"].as_str().unwrap().to_owned();
    let damage = || {
        let mut bytes = module.clone();
        bytes[500] ^= 1;
        let mode = std::os::unix::fs::PermissionsExt::from_mode;
        std::fs::set_permissions(&path, mode(0o644)).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, mode(0o444)).unwrap();
    };
    let cache = cache(&world);
    let whole = run(&world, &cache, &["verify"], &[]).await;
    assert_eq!((whole.code, whole.lines[0]["whole"].as_u64()), (Some(0), Some(1)), "{whole:#?}");
    damage();
    let found = run(&world, &cache, &["verify"], &[]).await;
    assert_eq!(found.code, Some(1));
    assert_eq!(found.lines[0]["damaged"], digest(&module), "{found:#?}");
    assert!(!Path::new(&path).exists());
    assert_eq!(prefetch(&world, [&url], &[]).await.module(&url, &module)["cached"], false);

    // An agent finds it though nobody asks for the module, and brings it again.
    damage();
    let plugins = world.folder("plugins", User::Agent, 0o755);
    let agent = Agent::start(&world, &Options::directory(&plugins)).await;
    eventually("the module as it was", async || (std::fs::read(&path).ok()? == module).then_some(())).await;
    assert_eq!(agent.metric("wasmferry_store_damaged_modules_total").await, 1);
    assert!(agent.log().contains("a module in the store is damaged"), "{}", agent.log());
}
