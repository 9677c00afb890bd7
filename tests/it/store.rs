//! The store on disk after real pulls: what lies where, with which modes, and who is let at it.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};

use serde_json::json;

use crate::support::agent::{Agent, Options, command, program};
use crate::support::bad_server::{BadServer, Reply};
use crate::support::control_plane::Protocol;
use crate::support::ecds::Ecds;
use crate::support::fixtures::module;
use crate::support::process::Program;
use crate::support::pulls::{Entry, cache, digests, payloads, prefetch, tree, wasm_plugin};
use crate::support::registry::{Access, Layout, PASSWORD, Registry, USER, digest, docker_config};
use crate::support::world::{User, World, is_root};

fn hex(bytes: &[u8]) -> String {
    digest(bytes).trim_start_matches("sha256:").to_owned()
}

/// Writes a docker config for the agent's user; gives what DOCKER_CONFIG has to be.
fn docker(world: &World, name: &str, config: String) -> String {
    let folder = world.folder(name, User::Agent, 0o700);
    world.write(&format!("{name}/config.json"), config, User::Agent, 0o600);
    folder.display().to_string()
}

#[tokio::test]
async fn a_module_lies_once_in_the_content_and_its_views_are_links_that_nobody_can_list() {
    let world = World::new();
    let open = Registry::start(&world, Access::Anonymous).await;
    let closed = Registry::start(&world, Access::Htpasswd).await;
    let module = module("add-header-v1");
    open.publish("filter", "v1", Layout::OciImage, &module).await;
    closed.publish("filter", "v1", Layout::Artifact, &module).await;
    let docker = docker(&world, "docker", closed.docker_config());
    let sources = [open.url("filter", "v1"), closed.url("filter", "v1")];
    let run = prefetch(&world, &sources, &[("DOCKER_CONFIG", &docker)]).await;
    assert_eq!(run.code, Some(0), "{run:#?}");

    let cache = cache(&world);
    let tree = tree(&cache);
    let hex = hex(&module);
    let blob = &tree[&format!("v1/content/blobs/{}/{hex}", &hex[..2])];
    assert_eq!((blob.mode, blob.links), (0o444, 3));
    let public = format!("v1/public/{}/{hex}.wasm", &hex[..2]);
    let private: Vec<&String> = tree
        .iter()
        .filter(|(path, entry)| path.starts_with("v1/private/") && !entry.folder)
        .map(|(path, _)| path)
        .collect();
    let [private] = private.as_slice() else { panic!("{private:?}") };
    let [_, _, tag, name] = private.split('/').collect::<Vec<_>>()[..] else { panic!("{private}") };
    assert_eq!(name, format!("{hex}.wasm"));
    assert!(tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit()), "{tag}");
    for (url, view) in [(&sources[0], &public), (&sources[1], private)] {
        assert_eq!(tree[view], *blob, "{view}");
        assert_eq!(run.of(url)["path"], cache.join(view).to_str().unwrap());
    }

    let owner = std::os::unix::fs::MetadataExt::uid(&cache.metadata().unwrap());
    for (path, Entry { folder, mode, owner: its, .. }) in &tree {
        let inside = path == "v1/content" || path.starts_with("v1/content/");
        let expected = match (folder, inside) {
            (true, true) => 0o700,
            (true, false) => 0o711,
            (false, _) if path.contains("/blobs/") || path.ends_with(".wasm") => 0o444,
            (false, _) => 0o600,
        };
        assert_eq!((*mode, *its), (expected, owner), "{path}: {mode:o}");
    }

    // What modes say, by one who is not the agent: a path that is known opens, and no more.
    if is_root() {
        let ask = async |script: &str| {
            let args = ["-c", script].map(Into::into).into();
            let shell =
                Program { name: "sh".into(), path: "/bin/sh".into(), user: User::Envoy, args, env: vec![] };
            shell.run(&world).await.status.success()
        };
        let cache = cache.display();
        assert!(ask(&format!("cmp {cache}/{public} {cache}/{private}")).await);
        for refused in ["v1", "v1/public", "v1/private", &format!("v1/private/{tag}")] {
            assert!(!ask(&format!("ls {cache}/{refused}")).await, "{refused}");
        }
        assert!(!ask(&format!("cat {cache}/v1/content/blobs/{}/{hex}", &hex[..2])).await);
        assert!(!ask(&format!("echo x >> {cache}/{public}")).await);
    }
}

#[tokio::test]
async fn a_third_user_lists_reads_guesses_and_replaces_nothing() {
    if !is_root() {
        eprintln!("NOT SHOWN: only root can be three users");
        return;
    }
    let world = World::new();
    let closed = Registry::start(&world, Access::Htpasswd).await;
    let module = module("add-header-v1");
    closed.publish("filter", "v1", Layout::Artifact, &module).await;
    let url = closed.url("filter", "v1");
    let docker = docker(&world, "docker", closed.docker_config());
    let run = prefetch(&world, ["--pin", &url], &[("DOCKER_CONFIG", &docker)]).await;
    let view = run.module(&url, &module)["path"].as_str().unwrap().to_owned();
    let cache = cache(&world);
    // A store of the stranger's own, with the same secret: it has another key.
    let name = format!("{}.wasm", hex(&module));
    let own = world.folder("own", User::Stranger, 0o711);
    let config = world.folder("own/docker", User::Stranger, 0o700);
    world.write("own/docker/config.json", closed.docker_config(), User::Stranger, 0o600);
    let store = own.join("store").display().to_string();
    let run_own = Program {
        name: "stranger".into(),
        path: env!("CARGO_BIN_EXE_wasmferry").into(),
        user: User::Stranger,
        args: ["prefetch", "--cache-dir", &store, &url].map(Into::into).into(),
        env: vec![
            ("DOCKER_CONFIG".into(), config.display().to_string()),
            ("HOME".into(), own.display().to_string()),
        ],
    };
    assert!(run_own.run(&world).await.status.success());
    let guess = std::fs::read_dir(own.join("store/v1/private")).unwrap().next().unwrap().unwrap().file_name();

    let before = tree(&cache);
    let ask = async |script: &str| {
        let args = ["-c", script].map(Into::into).into();
        let shell =
            Program { name: "sh".into(), path: "/bin/sh".into(), user: User::Stranger, args, env: vec![] };
        shell.run(&world).await.status.success()
    };
    let script = |line: &str| {
        let line = line.replace("GUESS", &format!("{}/v1/private/{}", cache.display(), guess.display()));
        line.replace("NAME", &name).replace("VIEW", &view).replace("OWN", &own.display().to_string())
    };
    // That it could, where it may.
    assert!(ask(&script("cat OWN/store/v1/private/*/NAME >OWN/evil")).await);
    assert!(!ask(&script("cat GUESS/NAME")).await, "the name of a view cannot be made elsewhere");
    for (path, entry) in &before {
        let path = cache.join(path).display().to_string();
        let tries: &[&str] = match (entry.folder, path == view) {
            (true, _) => &[
                "ls PATH",
                "echo PATH/* | grep -v '[*]'",
                "touch PATH/new",
                "mkdir PATH/new",
                "ln -s OWN/evil PATH/new",
                "ln OWN/evil PATH/new",
                "rmdir PATH",
                "mv -f PATH OWN/taken",
                "chmod 777 PATH",
            ],
            // This one its owner has told nobody but Envoy.
            (false, true) => &["echo >PATH", "rm -f PATH", "mv -f OWN/evil PATH", "chmod 666 PATH"],
            (false, false) => &[
                "cat PATH",
                "echo >PATH",
                "rm -f PATH",
                "cp OWN/evil PATH",
                "mv -f OWN/evil PATH",
                "chmod 666 PATH",
            ],
        };
        for line in tries {
            assert!(!ask(&script(&line.replace("PATH", &path))).await, "{line}: {path}");
        }
    }
    assert_eq!(tree(&cache), before);
    assert_eq!(std::fs::read(&view).unwrap(), module);
}

#[tokio::test]
async fn another_credential_is_a_miss_and_the_registry_is_asked_with_it() {
    let world = World::new();
    let server = BadServer::start(&world).await;
    let module = module("add-header-v1");
    let url = server.image("filter", "application/wasm", &module, Reply::ok(module.clone()));
    server.handle(|seen| {
        let anonymous = Reply::status(401).header("www-authenticate", "Basic realm=\"test\"");
        seen.authorization.is_none().then_some(anonymous)
    });
    let host = server.address().to_string();
    let alice = docker(&world, "alice", docker_config(&host, "alice", "one"));
    let bob = docker(&world, "bob", docker_config(&host, "bob", "two"));
    // The same user and the same password by another road are the same one who asks.
    let also = json!({"auths": {&host: {"username": "alice", "password": "one"}}}).to_string();
    let alice_again = docker(&world, "alice-again", also);

    let mut paths = BTreeMap::new();
    let mut before = 0;
    for (who, docker, cached) in
        [("alice", &alice, false), ("bob", &bob, true), ("alice", &alice_again, true), ("bob", &bob, true)]
    {
        let is_first = !paths.contains_key(who);
        let run = prefetch(&world, [&url], &[("DOCKER_CONFIG", docker)]).await;
        let line = run.module(&url, &module);
        assert_eq!(line["cached"], cached, "{who}");
        let path = line["path"].as_str().unwrap().to_owned();
        assert_eq!(paths.entry(who).or_insert(path.clone()), &path, "{who}");
        let seen = server.seen();
        let with: Vec<String> = seen[before..].iter().filter_map(|seen| seen.authorization.clone()).collect();
        let basic = match who {
            "alice" => "Basic YWxpY2U6b25l",
            _ => "Basic Ym9iOnR3bw==",
        };
        // Manifest and layer, be it that it is there.
        assert_eq!(with, if is_first { vec![basic; 2] } else { vec![] }, "{who}");
        before = seen.len();
    }
    assert_ne!(paths["alice"], paths["bob"]);
    // Nobody's own module is given to one without any credential.
    let nobody = docker(&world, "nobody", "{\"auths\": {}}".into());
    let run = prefetch(&world, [&url], &[("DOCKER_CONFIG", &nobody)]).await;
    assert_eq!(run.error(&url).0, "unauthorized");
    assert_eq!(payloads(&cache(&world)), digests([module.as_slice()]));
}

#[tokio::test]
async fn an_agent_serves_what_was_prefetched_without_asking_the_registry() {
    let world = World::new();
    let mut registry = Registry::start(&world, Access::Anonymous).await;
    let module = module("add-header-v1");
    registry.publish("filter", "v1", Layout::OciImage, &module).await;
    let url = registry.url("filter", "v1");
    let run = prefetch(&world, [&url], &[]).await;
    let path = run.module(&url, &module)["path"].clone();
    registry.stop();

    let plugins = world.folder("plugins", User::Agent, 0o755);
    world.write("plugins/a.yaml", wasm_plugin("a", &url, json!({})).to_string(), User::Agent, 0o644);
    let mut agent = Agent::start(&world, &Options::directory(&plugins)).await;
    let names = ["default.a".to_owned()];
    let mut envoy = Ecds::subscribe(agent.tcp, Protocol::Delta, &names).await;
    assert_eq!(envoy.module("default.a").await.to_str(), path.as_str());
    drop(envoy);
    // And what it has it has after a restart.
    agent.kill();
    agent.resume(&world).await;
    let mut envoy = Ecds::subscribe(agent.tcp, Protocol::Sotw, &names).await;
    assert_eq!(envoy.module("default.a").await.to_str(), path.as_str());
}

#[tokio::test]
async fn a_lost_index_costs_a_fetch_and_nothing_else() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let module = module("add-header-v1");
    registry.publish("filter", "v1", Layout::OciImage, &module).await;
    let url = registry.url("filter", "v1");
    let first = prefetch(&world, [&url], &[]).await;
    let cache = cache(&world);
    for loss in ["removed", "damaged"] {
        for (path, entry) in tree(&cache.join("v1/content/index")) {
            let path = cache.join("v1/content/index").join(path);
            match (entry.folder, loss) {
                (true, _) => {}
                (false, "removed") => std::fs::remove_file(path).unwrap(),
                (false, _) => std::fs::write(path, "{").unwrap(),
            }
        }
        let before = registry.pulls().await.len();
        let again = prefetch(&world, [&url], &[]).await;
        assert_eq!(again.module(&url, &module)["path"], first.of(&url)["path"]);
        assert_eq!(
            (&again.of(&url)["cached"], registry.pulls().await.len() - before),
            (&json!(true), 1),
            "{loss}: the manifest, since what the layer holds is known"
        );
        assert_eq!(payloads(&cache), digests([module.as_slice()]));
    }
}

/// Both commands that open a store, each with what it says and the exit code it ends with.
async fn refusals(world: &World, wrap: Option<&str>) -> [(Option<i32>, String); 2] {
    let cache = world.path().join("cache");
    let plugins = world.folder("plugins", User::Agent, 0o755);
    let agent = Agent::prepare(world, &Options::directory(&plugins));
    let prefetch = ["prefetch", "--cache-dir", cache.to_str().unwrap(), "file:///none"].map(str::to_owned);
    let run = ["run", "--config", agent.config.to_str().unwrap()].map(str::to_owned);
    let mut refusals = Vec::new();
    for args in [prefetch.to_vec(), run.to_vec()] {
        let output = match wrap {
            None => command(world, args, &[]).await,
            Some(script) => {
                let program = world.executable(env!("CARGO_BIN_EXE_wasmferry").as_ref());
                let mut all = vec!["-c".into(), script.into(), program.into()];
                all.extend(args.into_iter().map(Into::into));
                let env = vec![("HOME".into(), world.path().display().to_string())];
                Program { name: "sh".into(), path: "/bin/sh".into(), user: User::Tests, args: all, env }
                    .run(world)
                    .await
            }
        };
        refusals.push((output.status.code(), String::from_utf8(output.stderr).unwrap()));
    }
    assert!(!agent.socket.exists() && !agent.admin.exists(), "nothing is started");
    refusals.try_into().unwrap()
}

#[tokio::test]
async fn a_store_that_others_may_write_is_refused_by_name() {
    let world = World::new();
    let cache = cache(&world);
    for mode in [0o777, 0o731] {
        std::fs::set_permissions(&cache, PermissionsExt::from_mode(mode)).unwrap();
        let [prefetch, agent] = refusals_after_prepare(&world, mode).await;
        for (code, (found, stderr)) in [(1, prefetch), (2, agent)] {
            assert_eq!(found, Some(code), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            let wanted = format!("cannot use the store: {} can be written by", cache.display());
            assert!(
                stderr.starts_with(&wanted) && stderr.contains(&format!("(mode {mode:04o})")),
                "{stderr}"
            );
        }
        assert_eq!(tree(&cache), BTreeMap::new());
    }
}

/// As [`refusals`], with the store's mode, which preparing the agent sets right, set wrong again.
async fn refusals_after_prepare(world: &World, mode: u32) -> [(Option<i32>, String); 2] {
    let cache = world.path().join("cache");
    let script = format!("chmod {mode:o} {}; exec {} \"$0\" \"$@\"", cache.display(), as_agent());
    refusals(world, Some(&script)).await
}

/// The words before a program by which it runs as the agent's user.
fn as_agent() -> String {
    match User::Agent.ids() {
        None => String::new(),
        Some((uid, gid, groups)) => {
            format!("setpriv --reuid={uid} --regid={gid} --groups={groups} --inh-caps=-all")
        }
    }
}

#[tokio::test]
async fn a_store_of_another_user_is_refused_by_name() {
    if !is_root() {
        eprintln!("not shown: only root can make another user's folder");
        return;
    }
    let world = World::new();
    let cache = cache(&world);
    let script =
        format!("chown 1337 {0}; chmod 755 {0}; exec {1} \"$0\" \"$@\"", cache.display(), as_agent());
    for (code, (found, stderr)) in [Some(1), Some(2)].into_iter().zip(refusals(&world, Some(&script)).await) {
        assert_eq!(found, code, "{stderr}");
        let wanted = format!(
            "cannot use the store: {} belongs to user 1337 and this process runs as user 1338",
            cache.display()
        );
        assert!(stderr.starts_with(&wanted) && stderr.lines().count() == 1, "{stderr}");
    }
    chown(&cache, Some(1338), None).unwrap();
    assert_eq!(tree(&cache), BTreeMap::new());
}

#[tokio::test]
async fn a_store_on_a_read_only_mount_is_refused_by_name() {
    let world = World::new();
    let cache = cache(&world);
    let namespace = if is_root() { "--mount" } else { "--mount --map-root-user" };
    let possible = format!("unshare {namespace} true");
    let shell = Program {
        name: "sh".into(),
        path: "/bin/sh".into(),
        user: User::Tests,
        args: ["-c", &possible].map(Into::into).into(),
        env: vec![],
    };
    if !shell.run(&world).await.status.success() {
        eprintln!("not shown: this machine lets nobody mount");
        return;
    }
    let inner = format!(
        "mount --bind {0} {0} && mount -o remount,bind,ro {0} && exec {1} \"$0\" \"$@\"",
        cache.display(),
        as_agent()
    );
    let script = format!("exec unshare {namespace} /bin/sh -c '{inner}' \"$0\" \"$@\"");
    for (code, (found, stderr)) in [Some(1), Some(2)].into_iter().zip(refusals(&world, Some(&script)).await) {
        assert_eq!(found, code, "{stderr}");
        let wanted = format!("cannot use the store: {} is on a read-only file system", cache.display());
        assert!(stderr.starts_with(&wanted) && stderr.lines().count() == 1, "{stderr}");
    }
    assert_eq!(tree(&cache), BTreeMap::new());
}

#[tokio::test]
async fn a_folder_of_a_newer_format_is_left_alone_and_said_so_once() {
    let world = World::new();
    let file = world.write("filter.wasm", module("add-header-v1"), User::Agent, 0o644);
    let newer = world.folder("cache/v2", User::Agent, 0o711);
    world.write("cache/v2/anything", "of tomorrow", User::Agent, 0o600);
    let cache = cache(&world);
    let url = format!("file://{}", file.display());
    let run = prefetch(&world, [url], &[("RUST_LOG", "wasmferry=info")]).await;
    assert_eq!(run.code, Some(0), "{run:#?}");
    let said = run.stderr.lines().filter(|line| line.contains("folder of a newer format")).count();
    assert_eq!(said, 1, "{}", run.stderr);
    assert!(run.stderr.contains(newer.to_str().unwrap()), "{}", run.stderr);
    assert_eq!(std::fs::read(cache.join("v2/anything")).unwrap(), b"of tomorrow");
}

#[tokio::test]
async fn a_store_is_made_and_shared_under_an_umask_that_takes_every_right_away() {
    let world = World::new();
    let server = BadServer::start(&world).await;
    let urls = ["/a.wasm", "/b.wasm"].map(|path| server.put(path, Reply::ok(module("add-header-v1"))));
    let cache = world.folder("home", User::Agent, 0o700).join("made/by/it");
    for url in &urls {
        let prefetch = ["prefetch", "--cache-dir", cache.to_str().unwrap(), url];
        let mut program = program(&world, "masked", prefetch.map(Into::into));
        let wasmferry = world.executable(&program.path);
        program.args.splice(0..0, ["-c", "umask 0777; exec \"$0\" \"$@\""].map(Into::into));
        program.args.insert(2, wasmferry.into());
        program.path = "/bin/sh".into();
        let output = program.run(&world).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(payloads(&cache), digests([module("add-header-v1").as_slice()]));
    for (path, entry) in tree(&cache) {
        let inside = path == "v1/content" || path.starts_with("v1/content/");
        let expected = match (entry.folder, inside) {
            (true, true) => 0o700,
            (true, false) => 0o711,
            (false, true) if !path.starts_with("v1/content/blobs/") => 0o600,
            (false, _) => 0o444,
        };
        assert_eq!(entry.mode, expected, "{path}: {:o}", entry.mode);
    }
}

/// With everything that can be logged being logged, by every command that has a credential in its hands.
#[tokio::test]
async fn no_credential_is_in_anything_that_is_written() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Htpasswd).await;
    let server = BadServer::start(&world).await;
    let module = module("add-header-v1");
    let signed = server.put("/filter.wasm?signature=hunter2", Reply::ok(module.clone()));
    let absent = server.url("/absent.wasm?signature=hunter2");
    let file = world.write("filter.wasm", &module, User::Agent, 0o644);
    let right = docker(&world, "right", registry.docker_config());
    let wrong = docker(&world, "wrong", docker_config(&registry.address().to_string(), USER, "open barley"));
    let url = registry.url("filter", "v1");

    let mut written = Vec::new();
    let cache_dir = cache(&world).display().to_string();
    let file = file.display().to_string();
    let push = vec!["push", &file, &url];
    let prefetch = vec!["prefetch", "--cache-dir", &cache_dir, &url, &signed, &absent];
    for (args, docker, code) in
        [(&push, &wrong, 1), (&push, &right, 0), (&prefetch, &wrong, 1), (&prefetch, &right, 1)]
    {
        for format in ["text", "json"] {
            let args = ["--log-format", format].into_iter().chain(args.iter().copied());
            let output = command(&world, args, &[("DOCKER_CONFIG", docker), ("RUST_LOG", "trace")]).await;
            assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
            written.extend([output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()));
        }
    }

    let plugins = world.folder("plugins", User::Agent, 0o755);
    for (name, url, secret) in [
        ("good", &url, Some(registry.docker_config())),
        ("bad", &url, Some(docker_config(&registry.address().to_string(), USER, "open barley"))),
        ("signed", &absent, None),
    ] {
        let spec = match &secret {
            Some(_) => {
                json!({"imagePullSecret": format!("{name}-secret"), "vmConfig": {"env": [{"name": "TOKEN", "value": "hunter2"}]}})
            }
            None => json!({"pluginConfig": {"token": "hunter2"}}),
        };
        world.write(
            &format!("plugins/{name}.yaml"),
            wasm_plugin(name, url, spec).to_string(),
            User::Agent,
            0o644,
        );
        if let Some(secret) = secret {
            world.write(&format!("plugins/{name}-secret.dockerconfigjson"), secret, User::Agent, 0o600);
        }
    }
    let mut options = Options::directory(&plugins);
    options.env.push(("RUST_LOG".into(), "trace".into()));
    let mut agent = Agent::start(&world, &options).await;
    let names = ["good", "bad", "signed"].map(|name| format!("default.{name}"));
    let mut envoy = Ecds::subscribe(agent.tcp, Protocol::Sotw, &names).await;
    envoy.module(&names[0]).await;
    envoy.denied(&names[1]).await;
    envoy.denied(&names[2]).await;
    for page in ["/state", "/metrics"] {
        written.push(agent.admin(page).await.text());
    }
    drop(envoy);
    assert_eq!(agent.stop().await, Some(0));
    for log in ["wasmferry.out", "wasmferry.err"] {
        written.push(std::fs::read_to_string(world.path().join("logs").join(log)).unwrap());
    }
    // All of it was looked at: what is no secret is there.
    let all = written.join("\n");
    for seen in [&url, "fetched, ", "not authorised", "(query not shown)", "last_error", "wasmferry_"] {
        assert!(all.contains(seen), "{seen}");
    }
    // The index names sources for people, and is a place to look too.
    let index = cache(&world).join("v1/content/index");
    let records: Vec<String> = tree(&index)
        .iter()
        .filter(|(_, entry)| !entry.folder)
        .map(|(path, _)| std::fs::read_to_string(index.join(path)).unwrap())
        .collect();
    assert!(records.len() > 2);
    let all = [all, records.join("\n")].join("\n");
    let encoded = |config: &str| {
        let config: serde_json::Value = serde_json::from_str(config).unwrap();
        config["auths"][registry.address().to_string()]["auth"].as_str().unwrap().to_owned()
    };
    let wrong = docker_config(&registry.address().to_string(), USER, "open barley");
    for secret in [PASSWORD, "open barley", "hunter2", &encoded(&registry.docker_config()), &encoded(&wrong)]
    {
        let found = all.lines().find(|line| line.contains(secret));
        assert_eq!(found, None, "{secret}");
    }
}
