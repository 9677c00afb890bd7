//! `wasmferry prefetch`: every kind of source ends as a verified module in the store, and what is there
//! is not fetched again.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::agent::command;
use crate::support::bad_server::{BadServer, Fault, Reply};
use crate::support::fixtures::{module, padded};
use crate::support::gate::Gate;
use crate::support::process::Program;
use crate::support::pulls::{cache, digests, payloads, prefetch, wasm_plugin};
use crate::support::registry::{Access, Layout, OCI_MANIFEST, Registry, digest, tar, tar_gz};
use crate::support::world::{User, World};
use crate::support::{eventually, soon};

/// A module unlike those of other numbers.
fn distinct(number: usize) -> Vec<u8> {
    padded(&module("add-header-v1"), 1000 + number)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).and_then(|()| gzip.finish()).unwrap()
}

#[tokio::test]
async fn every_kind_of_source_ends_as_a_module_under_the_digest_of_its_own_bytes() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let server = BadServer::start(&world).await;
    // The URL, the module, the digest of what its source serves.
    let mut sources: Vec<(String, Vec<u8>, String)> = Vec::new();

    for layout in Layout::ALL {
        let module = distinct(sources.len());
        let tag = format!("{layout:?}");
        let manifest = registry.publish("layouts", &tag, layout, &module).await;
        sources.push((registry.url("layouts", &tag), module, manifest));
    }
    let pinned = distinct(sources.len());
    let manifest = registry.publish("pinned", "v1", Layout::OciImage, &pinned).await;
    sources.push((registry.url("pinned", &manifest), pinned, manifest));
    for (number, media_type) in [
        "application/wasm",
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.module.wasm.content.layer.v1+wasm",
    ]
    .into_iter()
    .enumerate()
    {
        let module = distinct(sources.len());
        let config = registry.publish_blob("artifacts", "application/vnd.wasm.config.v0+json", b"{}").await;
        let layer = registry.publish_blob("artifacts", media_type, &module).await;
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
        let (tag, manifest) = (format!("v{number}"), manifest.to_string());
        let digest = registry.publish_manifest("artifacts", &tag, OCI_MANIFEST, manifest.as_bytes()).await;
        sources.push((registry.url("artifacts", &tag), module, digest));
    }
    // Solo's: the module beside its own description, in either order.
    for module_first in [true, false] {
        let module = distinct(sources.len());
        let about = b"{\"type\": \"envoy_proxy\"}";
        let config = registry.publish_blob("solo", "application/vnd.module.wasm.config.v1+json", b"{}").await;
        let about = registry.publish_blob("solo", "application/vnd.module.wasm.config.v1+json", about).await;
        let layer =
            registry.publish_blob("solo", "application/vnd.module.wasm.content.layer.v1+wasm", &module).await;
        let layers = if module_first { [layer, about] } else { [about, layer] };
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        let (tag, manifest) = (format!("v{module_first}"), manifest.to_string());
        let digest = registry.publish_manifest("solo", &tag, OCI_MANIFEST, manifest.as_bytes()).await;
        sources.push((registry.url("solo", &tag), module, digest));
    }
    type Pack = fn(&[u8]) -> Vec<u8>;
    let packs: [(&str, Pack); 4] = [
        ("/module.wasm", |module| module.to_vec()),
        ("/module.wasm.gz", gzip),
        ("/module.tar", |module| tar(&[("a/filter.wasm", module)])),
        ("/module.tgz", |module| tar_gz(&[("readme", b"one of ours"), ("plugin.wasm", module)])),
    ];
    for (path, pack) in packs {
        let module = distinct(sources.len());
        let body = pack(&module);
        sources.push((server.put(path, Reply::ok(body.clone())), module, digest(&body)));
        let module = distinct(sources.len());
        let body = pack(&module);
        let file = world.write(&format!("file-{}", &path[1..]), &body, User::Tests, 0o644);
        sources.push((format!("file://{}", file.display()), module, digest(&body)));
    }

    let run = prefetch(&world, sources.iter().map(|(url, ..)| url), &[]).await;
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert_eq!(run.lines.len(), sources.len());
    for (url, module, source) in &sources {
        let line = run.module(url, module);
        assert_eq!(line["source_digest"], *source, "{url}");
        assert_eq!(line["cached"], false, "{url}");
        let keys: BTreeSet<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["url", "payload_digest", "source_digest", "path", "size", "cached"].into());
    }
    assert_eq!(payloads(&cache(&world)), digests(sources.iter().map(|(_, module, _)| module.as_slice())));

    // Nobody is asked again: not the registry, not the server, and the files may be gone.
    let (pulls, seen) = (registry.pulls().await.len(), server.seen().len());
    sources
        .iter()
        .filter_map(|(url, ..)| url.strip_prefix("file://"))
        .for_each(|file| std::fs::remove_file(file).unwrap());
    let again = prefetch(&world, sources.iter().map(|(url, ..)| url), &[]).await;
    assert_eq!(again.code, Some(0), "{again:#?}");
    for (url, module, source) in &sources {
        let line = again.module(url, module);
        assert_eq!((&line["source_digest"], &line["cached"]), (&json!(source), &json!(true)), "{url}");
        assert_eq!(line["path"], run.of(url)["path"]);
    }
    assert_eq!((registry.pulls().await.len(), server.seen().len()), (pulls, seen));
}

#[tokio::test]
async fn files_of_wasm_plugins_are_sources_with_what_they_expect() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let modules: Vec<Vec<u8>> = (0..4).map(distinct).collect();
    let mut manifests = Vec::new();
    for (number, module) in modules.iter().enumerate() {
        manifests.push(registry.publish("filter", &format!("v{number}"), Layout::OciImage, module).await);
    }
    let url = |number: usize| registry.url("filter", &format!("v{number}"));
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();

    // Two documents in YAML: one expects the manifest's digest, one the module's; both are right.
    let first = wasm_plugin("a", &url(0), json!({"sha256": hex(&manifests[0])}));
    let second = wasm_plugin("b", &url(1), json!({"sha256": hex(&digest(&modules[1]))}));
    let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let yaml =
        world.write("plugins.yaml", format!("{first}\n---\n{other}\n---\n{second}\n"), User::Tests, 0o644);
    // A list in JSON; without a scheme a URL is OCI.
    let plain = url(2).trim_start_matches("oci://").to_owned();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [wasm_plugin("d", &plain, json!({}))]});
    let list = world.write("plugins.json", list.to_string(), User::Tests, 0o644);

    let sources = [yaml.display().to_string(), list.display().to_string(), url(3)];
    let run = prefetch(&world, sources, &[]).await;
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    for (number, module) in modules.iter().enumerate() {
        assert_eq!(run.module(&url(number), module)["source_digest"], manifests[number]);
    }

    // A file that is none names itself, the line and the field, and nothing is fetched.
    let before = registry.pulls().await.len();
    let broken = wasm_plugin("a", &url(0), json!({"sha265": "typo"}));
    let broken = world.write("broken.yaml", format!("# a comment\n{broken}\n"), User::Tests, 0o644);
    let run = prefetch(&world, [broken.display().to_string(), url(3)], &[]).await;
    assert_eq!((run.code, run.lines.len()), (Some(2), 0));
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(run.stderr.starts_with(&format!("{}:2: ", broken.display())) && run.stderr.contains("sha265"));
    assert_eq!(registry.pulls().await.len(), before);
}

#[tokio::test]
async fn credentials_come_from_docker_config_or_else_from_the_home_folder() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Htpasswd).await;
    let module = module("add-header-v1");
    registry.publish("filter", "v1", Layout::Artifact, &module).await;
    let url = registry.url("filter", "v1");

    // The agent's user may read neither file by accident: they are its own.
    let folder = world.folder("docker", User::Agent, 0o700);
    world.write("docker/config.json", registry.docker_config(), User::Agent, 0o600);
    let docker = folder.to_str().unwrap();
    let nobody = world.folder("empty", User::Agent, 0o700);

    let run = prefetch(&world, [&url], &[("DOCKER_CONFIG", nobody.to_str().unwrap())]).await;
    assert_eq!((run.code, run.error(&url).0), (Some(1), "unauthorized"));
    let run = prefetch(&world, [&url], &[("DOCKER_CONFIG", docker)]).await;
    assert_eq!((run.code, &run.module(&url, &module)["cached"]), (Some(0), &json!(false)), "{run:#?}");

    // The same credential from another file is the same one who asks.
    world.folder("home/.docker", User::Agent, 0o700);
    world.write("home/.docker/config.json", registry.docker_config(), User::Agent, 0o600);
    let run = prefetch(&world, [&url], &[]).await;
    assert_eq!((run.code, &run.module(&url, &module)["cached"]), (Some(0), &json!(true)), "{run:#?}");

    // One that cannot be read is not taken for none.
    world.write("docker/config.json", "{not json", User::Agent, 0o600);
    let run = prefetch(&world, [&url], &[("DOCKER_CONFIG", docker)]).await;
    assert_eq!((run.code, run.error(&url).0), (Some(1), "credential"));
}

#[tokio::test]
async fn one_that_fails_ends_with_1_and_the_others_are_there() {
    let world = World::new();
    let server = BadServer::start(&world).await;
    let module = module("add-header-v1");
    let good = server.put("/good.wasm", Reply::ok(module.clone()));
    let missing = server.url("/missing.wasm");

    let run = prefetch(&world, [&good, &missing], &[]).await;
    run.module(&good, &module);
    assert_eq!((run.code, run.error(&missing).0), (Some(1), "not_found"));
    assert_eq!(run.stderr, "1 of the modules could not be had\n");

    // As text: what there is on standard output, what went wrong on standard error, a line each.
    let cache = cache(&world);
    let args = ["prefetch", "--cache-dir", cache.to_str().unwrap(), &good, &missing];
    let output = command(&world, args, &[]).await;
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(stdout.starts_with(&format!("{good}: in the store already, {} bytes", module.len())), "{stdout}");
    let stderr: Vec<&str> = stderr.lines().collect();
    assert_eq!(stderr, [format!("{missing} was not found").as_str(), "1 of the modules could not be had"]);
}

#[tokio::test]
async fn wrong_usage_ends_with_2_before_anything_is_fetched_and_repeats_no_password() {
    let world = World::new();
    let server = BadServer::start(&world).await;
    let good = server.put("/good.wasm", Reply::ok(module("add-header-v1")));
    for (wrong, told) in [
        (vec!["ftp://h/x"], "ftp://h/x: "),
        (vec!["https://user:hunter2@h/x"], "source 2: "),
        (vec!["user:hunter2@h/x:v1"], "source 2: "),
        (vec!["https://h:port/x?signature=hunter2"], "source 2: "),
        (vec!["/nowhere/plugins.yaml"], "/nowhere/plugins.yaml"),
        (vec!["--concurrency", "0"], "error: invalid value '0'"),
        (vec!["--config", "/nowhere/config.yaml"], "/nowhere/config.yaml: "),
    ] {
        let run = prefetch(&world, [good.as_str()].into_iter().chain(wrong.clone()), &[]).await;
        assert_eq!((run.code, run.lines.len()), (Some(2), 0), "{wrong:?}");
        assert!(run.stderr.starts_with(told) && !run.stderr.contains("hunter2"), "{wrong:?}: {}", run.stderr);
    }
    assert_eq!(server.seen(), []);
}

#[tokio::test]
async fn downloads_run_side_by_side_up_to_the_limit() {
    let world = World::new();
    let server = BadServer::start(&world).await;
    let permits = Arc::new(Semaphore::new(0));
    let sources: Vec<(String, Vec<u8>)> = (0..7)
        .map(|number| {
            let module = distinct(number);
            let reply = Reply::ok(module.clone()).fault(Fault::Held(permits.clone()));
            (server.put(&format!("/{number}.wasm"), reply), module)
        })
        .collect();
    let args = ["--concurrency", "3"].map(str::to_owned).into_iter();
    let run = prefetch(&world, args.chain(sources.iter().map(|(url, _)| url.clone())), &[]);
    // Each answer is let go only when as many as may be are held: more would be seen.
    let release = async {
        for left in (1..=sources.len()).rev() {
            eventually("downloads side by side", async || (server.answering() >= left.min(3)).then_some(()))
                .await;
            permits.add_permits(1);
        }
    };
    let (run, ()) = tokio::join!(run, release);
    assert_eq!(run.code, Some(0));
    sources.iter().for_each(|(url, module)| _ = run.module(url, module));
    assert_eq!(server.most_at_once(), 3);
}

#[tokio::test]
async fn the_same_module_named_twenty_times_is_downloaded_once() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let module = padded(&module("add-header-v1"), 300_000);
    registry.publish("filter", "v1", Layout::OciImage, &module).await;
    let url = registry.url("filter", "v1");
    let run = prefetch(&world, std::iter::repeat_n(&url, 20), &[]).await;
    assert_eq!((run.code, run.lines.len()), (Some(0), 20));
    assert!(run.lines.iter().all(|line| line["payload_digest"] == digest(&module)));
    let pulls = registry.pulls().await;
    let of = |kind: &str| pulls.iter().filter(|pull| pull.path.contains(kind)).count();
    assert_eq!((of("/manifests/"), of("/blobs/")), (1, 1), "{pulls:#?}");
}

#[tokio::test]
async fn a_terminal_shows_how_far_each_download_is() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let gate = Gate::in_front_of(registry.address(), &world).await;
    let module = padded(&module("add-header-v1"), 1 << 20);
    registry.publish("filter", "v1", Layout::Artifact, &module).await;
    gate.hold_after(700_000);

    // `script` gives it a terminal; wasmferry's own arguments hold nothing that a shell would change.
    let cache = cache(&world);
    let line = format!(
        "{} prefetch --cache-dir {} oci://{}/filter:v1",
        world.executable(env!("CARGO_BIN_EXE_wasmferry").as_ref()).display(),
        cache.display(),
        gate.address()
    );
    let mut terminal = Program {
        name: "terminal".into(),
        path: "/usr/bin/script".into(),
        user: User::Agent,
        args: ["--quiet", "--return", "--flush", "--command", &line, "/dev/null"].map(Into::into).into(),
        env: vec![
            ("HOME".into(), world.folder("home", User::Agent, 0o700).display().to_string()),
            ("TERM".into(), "xterm".into()),
            ("COLUMNS".into(), "200".into()),
        ],
    }
    .start(&world);
    eventually("a bar that stands still where the download does", async || {
        terminal.assert_running();
        let shown = terminal.stdout();
        (shown.contains("filter:v1") && shown.contains("KiB / 1.00 MiB")).then_some(())
    })
    .await;
    gate.open();
    let status = soon("the end", terminal.end()).await;
    assert_eq!(status.code(), Some(0));
    assert!(terminal.stdout().contains(&format!("fetched, {} bytes", module.len())), "{}", terminal.stdout());
}
