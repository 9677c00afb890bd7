//! `wasmferry push` against the real registry.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::agent::command;
use crate::support::client;
use crate::support::fixtures::module;
use crate::support::process::Program;
use crate::support::pulls::prefetch;
use crate::support::registry::{Access, OCI_MANIFEST, PASSWORD, Registry, USER, digest};
use crate::support::world::{User, World};

/// What `push` printed, which must have gone well and said nothing else.
async fn pushed(world: &World, args: &[&str], env: &[(&str, &str)]) -> String {
    let output = command(world, ["push"].iter().chain(args).copied(), env).await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A manifest as the registry has it.
async fn manifest(registry: &Registry, method: Method, tag: &str) -> client::Answer {
    let mut request = client::request(method, &format!("/v2/filter/manifests/{tag}"), "");
    request.headers_mut().insert("accept", OCI_MANIFEST.parse().unwrap());
    client::send(registry.address(), request).await.unwrap()
}

#[tokio::test]
async fn a_pushed_module_has_the_printed_digest_and_comes_back_as_it_was_in_both_layouts() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let module = module("add-header-v1");
    let file = world.write("filter.wasm", &module, User::Agent, 0o644);
    let file = file.to_str().unwrap();
    for (layout, layer, flags) in [
        ("default", "application/wasm", vec![]),
        ("artifact", "application/wasm", vec!["--layout", "artifact"]),
        ("image", "application/vnd.oci.image.layer.v1.tar+gzip", vec!["--layout", "image"]),
    ] {
        let url = registry.url("filter", layout);
        let args: Vec<&str> = flags.into_iter().chain([file, &url]).collect();
        let printed = pushed(&world, &args, &[]).await;
        let head = manifest(&registry, Method::HEAD, layout).await;
        assert_eq!(printed, format!("{}\n", head.header("docker-content-digest")), "{layout}");
        let body = manifest(&registry, Method::GET, layout).await.body;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["layers"][0]["mediaType"], layer, "{body}");
        assert_eq!(body["layers"].as_array().unwrap().len(), 1);
        // The same file is the same image.
        assert_eq!(pushed(&world, &args, &[]).await, printed);
        let pull = prefetch(&world, [&url], &[]).await;
        assert_eq!(pull.module(&url, &module)["source_digest"], printed.trim_end());
    }
}

#[tokio::test]
async fn a_registry_with_a_password_takes_it_from_the_docker_config_and_refuses_others_in_one_line() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Htpasswd).await;
    let file = world.write("filter.wasm", module("add-header-v1"), User::Agent, 0o644);
    let file = file.to_str().unwrap();
    let url = registry.url("filter", "v1");
    let host = registry.address().to_string();
    let wrong = json!({"auths": {&host: {"username": USER, "password": "open barley"}}}).to_string();
    let mut configs = Vec::new();
    for (name, config) in [("none", "{}".to_owned()), ("wrong", wrong), ("right", registry.docker_config())] {
        configs.push(world.folder(name, User::Agent, 0o700).display().to_string());
        world.write(&format!("{name}/config.json"), config, User::Agent, 0o600);
    }
    for (docker, why) in [(&configs[0], "an anonymous push"), (&configs[1], "this user")] {
        let output = command(&world, ["push", file, &url], &[("DOCKER_CONFIG", docker)]).await;
        assert_eq!((output.status.code(), output.stdout), (Some(1), vec![]), "{why}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("{url}: the registry refuses {why}\n"));
    }
    let env = [("DOCKER_CONFIG", configs[2].as_str())];
    let printed = pushed(&world, &[file, &url], &env).await;
    let run = prefetch(&world, [&url], &env).await;
    assert_eq!(run.of(&url)["source_digest"], printed.trim_end());
    assert_eq!(manifest(&registry, Method::HEAD, "v1").await.status, StatusCode::UNAUTHORIZED);
    assert!(!PASSWORD.is_empty());
}

#[tokio::test]
async fn a_machine_without_any_ca_certificate_is_told_so() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let file = world.write("filter.wasm", module("add-header-v1"), User::Agent, 0o644);
    let nowhere = world.folder("no-certificates", User::Agent, 0o755).display().to_string();
    let none = [("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", nowhere.as_str())];
    let url = registry.url("filter", "v1");
    let output = command(&world, ["push", file.to_str().unwrap(), &url], &none).await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.starts_with("no root certificates were found"), "{stderr}");
    // A pull over plain HTTP needs none.
    let url = registry.url("absent", "v1");
    assert_eq!(prefetch(&world, [&url], &none).await.error(&url).0, "not_found");
}

#[tokio::test]
async fn what_cannot_be_pushed_is_told_with_1_and_wrong_usage_with_2() {
    let world = World::new();
    let file = world.write("filter.wasm", module("add-header-v1"), User::Agent, 0o644);
    let file = file.to_str().unwrap();
    let pinned = format!("oci://127.0.0.1:1/filter@sha256:{}", "0".repeat(64));
    for (args, code, says) in [
        (["/nowhere.wasm", "oci://127.0.0.1:1/filter:v1"], 1, "cannot read /nowhere.wasm: No such file"),
        ([file, "oci://127.0.0.1:1/filter:v1"], 1, "oci://127.0.0.1:1/filter:v1: "),
        ([file, "https://127.0.0.1/filter.wasm"], 2, "https://127.0.0.1/filter.wasm is not an OCI reference"),
        ([file, &pinned], 2, "has a digest; modules are pushed to a tag"),
        ([file, "oci://user:hunter2@127.0.0.1/filter:v1"], 2, "must not hold a user name or password"),
    ] {
        let output = command(&world, ["push"].into_iter().chain(args), &[]).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(code), 1), "{stderr}");
        assert!(stderr.contains(says) && !stderr.contains("hunter2"), "{stderr}");
    }
}

#[tokio::test]
async fn skopeo_reads_what_was_pushed_as_an_image() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let skopeo = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let Some(skopeo) = skopeo.map(|folder| folder.join("skopeo")).find(|program| program.is_file()) else {
        eprintln!("not shown: there is no skopeo on this machine; `scripts/tools.sh skopeo` gets it");
        return;
    };
    let module = module("add-header-v1");
    let file = world.write("filter.wasm", &module, User::Agent, 0o644);
    let printed =
        pushed(&world, &["--layout", "image", file.to_str().unwrap(), &registry.url("filter", "v1")], &[])
            .await;
    let run = async |args: &[&str]| {
        let program = Program {
            name: "skopeo".into(),
            path: skopeo.clone(),
            user: User::Tests,
            args: args.iter().map(Into::into).collect(),
            env: vec![("HOME".into(), world.path().display().to_string())],
        };
        let output = program.run(&world).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let image = format!("docker://{}/filter:v1", registry.address());
    let inspected =
        run(&["inspect", "--tls-verify=false", "--override-os", "wasip1", "--override-arch", "wasm", &image])
            .await;
    let inspected: Value = serde_json::from_slice(&inspected).unwrap();
    assert_eq!(inspected["Digest"], printed.trim_end());
    let [layer] = &inspected["Layers"].as_array().unwrap()[..] else { panic!("{inspected}") };

    let copy = world.path().join("copy");
    run(&["copy", "--src-tls-verify=false", "--insecure-policy", &image, &format!("dir:{}", copy.display())])
        .await;
    let blob = copy.join(layer.as_str().unwrap().trim_start_matches("sha256:"));
    let blob = std::fs::read(blob).unwrap();
    assert_eq!(digest(&blob), layer.as_str().unwrap());
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(blob.as_slice()));
    let files: Vec<(String, Vec<u8>)> = tar
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        })
        .collect();
    assert_eq!(files, [("plugin.wasm".to_owned(), module)]);
}
