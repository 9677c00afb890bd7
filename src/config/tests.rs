//! What a file may say and what it may not. Each refusal is checked as it is printed.

use std::path::Path;

use super::*;
use crate::fetch::Scheme;

const FILE: &str = "f.yaml";

/// The configuration of the README.
const WHOLE: &str = r#"
version: 1
listeners:
  - address: unix:/run/wasmferry/xds.sock
    mode: "0660"
    group: "1337"
  - address: "[::1]:0"
upstream:
  address: http://127.0.0.1:15012
cache:
  directory: /var/lib/wasmferry
  lower: [/lower, /image]
  max_module_bytes: 8MiB
  max_bytes: 1GiB
  min_free: 2GiB
  expiry: 1h
  lease: 2h
  proof: {lasts: 3h, when_registry_is_down: deny}
sources:
  file: [/plugins, /more]
registries:
  Registry.Example:5000: {plain_http: true}
  plain.example:
fetch:
  timeout: 1m
  progress_timeout: 5s
  min_rate: 4KiB
  retries: 0
  concurrency: 8
  downloads: 9
  hold: 2s
  fallback: none
  nack_fetch_failures: true
  tag_refresh: {interval: 10s, registries: [Registry.Example:5000]}
blocked_cidrs: [10.0.0.0/8, "fd00::/8"]
realms: [Auth.Example]
relay: {queue_bytes: 1MiB, in_flight_bytes: 1GiB}
wasm: {types: 1, params: 2, imports: 3, functions: 4, function_body_bytes: 5MiB}
health: {listen: "[::]:15074"}
admin: {listen: "unix:/run/wasmferry/admin.sock"}
shutdown: {timeout: 0s}
log: {level: debug, format: json}
"#;

/// An agent's file that is right but for what a test puts behind it.
const BASE: &str = "version: 1
listeners: [{address: unix:/a}]
upstream: {directory: /p}
";

fn loader() -> Loader {
    let environment = Environment { cache_directory: Some("/home/cache".into()), ..Environment::default() };
    Loader::new(Some(FILE.into()), &environment, Overrides::default())
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    loader().parse(Path::new(FILE), text)
}

/// What stands on standard error for a file with this text.
fn refusal(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[track_caller]
fn refuses(text: &str, message: &str) {
    assert_eq!(refusal(text), message, "for:\n{text}");
}

/// The same for a line, the fourth, behind [`BASE`].
#[track_caller]
fn refuses_line(line: &str, message: &str) {
    refuses(&format!("{BASE}{line}"), &format!("f.yaml:4: {message}"));
}

/// The same for a listener, on the second line.
#[track_caller]
fn refuses_listener(listener: &str, message: &str) {
    let text = format!("version: 1\nlisteners: [{listener}]\nupstream: {{directory: /p}}\n");
    refuses(&text, &format!("f.yaml:2: {message}"));
}

/// The same for an upstream, on the third line.
#[track_caller]
fn refuses_upstream(upstream: &str, message: &str) {
    let text = format!("version: 1\nlisteners: [{{address: unix:/a}}]\nupstream: {upstream}\n");
    refuses(&text, &format!("f.yaml:3: {message}"));
}

#[test]
fn every_key_is_read() {
    let config = parse(WHOLE).unwrap();
    let expected = Config {
        agent: Some(Agent {
            listeners: vec![
                Listener {
                    address: ListenAddress::Unix("/run/wasmferry/xds.sock".into()),
                    mode: 0o660,
                    group: Some(Gid::from_raw(1337)),
                },
                Listener {
                    address: ListenAddress::Tcp("[::1]:0".parse().unwrap()),
                    mode: 0o660,
                    group: None,
                },
            ],
            upstream: Upstream::Grpc("http://127.0.0.1:15012".parse().unwrap()),
        }),
        cache: Cache {
            directory: "/var/lib/wasmferry".into(),
            lower: vec!["/lower".into(), "/image".into()],
            max_module_bytes: 8 << 20,
            max_bytes: 1 << 30,
            min_free: MinFree::Bytes(2 << 30),
            expiry: Duration::from_secs(3600),
            lease: Duration::from_secs(2 * 3600),
            proof: Proof { lasts: Duration::from_secs(3 * 3600), when_registry_is_down: WhenDown::Deny },
        },
        sources: Sources { file: vec!["/plugins".into(), "/more".into()] },
        registries: BTreeMap::from([
            ("registry.example:5000".to_owned(), Registry { scheme: Scheme::Http, ..Registry::default() }),
            ("plain.example".to_owned(), Registry::default()),
        ]),
        fetch: Fetch {
            timeout: Duration::from_secs(60),
            progress_timeout: Duration::from_secs(5),
            min_rate: 4096,
            retries: 0,
            credential_timeout: Duration::from_secs(60),
            concurrency: 8,
            downloads: 9,
            hold: Duration::from_secs(2),
            fallback: Fallback::None,
            nack_fetch_failures: true,
            tag_refresh: Some(TagRefresh {
                interval: Duration::from_secs(10),
                registries: Some(["registry.example:5000".to_owned()].into()),
            }),
        },
        blocked_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        realms: vec!["auth.example".to_owned()],
        credentials: Vec::new(),
        credential_providers: None,
        programs: Default::default(),
        relay: Relay { queue_bytes: 1 << 20, in_flight_bytes: 1 << 30 },
        wasm: WasmBudgets {
            types: Some(1),
            params: Some(2),
            imports: Some(3),
            functions: Some(4),
            function_body_bytes: Some(5 << 20),
        },
        health: Some(Health { listen: "[::]:15074".parse().unwrap() }),
        admin: Some(Admin { listen: ListenAddress::Unix("/run/wasmferry/admin.sock".into()) }),
        shutdown: Shutdown { timeout: Duration::ZERO },
        log: Log { level: Some(LogLevel::Debug), format: Some(LogFormat::Json) },
        containerd_hosts: Vec::new(),
        proxies: Proxies::default(),
        variables: Vec::new(),
    };
    assert_eq!(config, expected);
}

#[test]
fn what_is_unset_or_null_has_its_default() {
    let config = parse(BASE).unwrap();
    assert_eq!(config.agent.as_ref().unwrap().listeners[0].mode, 0o660);
    let day = Duration::from_secs(24 * 3600);
    let cache = Cache {
        directory: "/home/cache".into(),
        lower: Vec::new(),
        max_module_bytes: 256 << 20,
        max_bytes: 10 << 30,
        min_free: MinFree::Percent(5),
        expiry: day,
        lease: day,
        proof: Proof { lasts: day, when_registry_is_down: WhenDown::AllowIfSeen },
    };
    assert_eq!(config.cache, cache);
    assert_eq!(config.sources.file, Vec::<PathBuf>::new());
    assert_eq!(
        (config.fetch.timeout, config.fetch.progress_timeout, config.fetch.concurrency),
        (Duration::from_secs(120), Duration::from_secs(30), 4)
    );
    assert_eq!(config.fetch, Fetch::default());
    assert_eq!((config.fetch.min_rate, config.fetch.retries, config.fetch.downloads), (1024, 2, 32));
    assert_eq!(config.relay, Relay { queue_bytes: 64 << 20, in_flight_bytes: 512 << 20 });
    assert_eq!(config.shutdown.timeout, Duration::from_secs(10));
    assert_eq!((&config.health, &config.admin), (&None, &None));
    let nulls =
        format!("{BASE}cache:\nsources: {{file: }}\nregistries: ~\nfetch:\nhealth:\nlog: {{level: }}\n");
    assert_eq!(parse(&nulls).unwrap(), config);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_never_its_value() {
    let known = "version, listeners, upstream, cache, sources, registries, containerd_hosts, fetch, \
                 blocked_cidrs, realms, credentials, credential_providers, relay, wasm, health, admin, \
                 shutdown, log";
    refuses_line("pasword: hunter2", &format!("pasword: unknown key; known are {known}"));
    refuses_line(
        "cache: {directory: /c, max_module_byte: 1MiB}",
        "cache.max_module_byte: unknown key; known are directory, lower, max_module_bytes, max_bytes, min_free, \
         expiry, lease, proof",
    );
    refuses_listener(
        "{address: unix:/a, Mode: x}",
        "listeners[0].Mode: unknown key; known are address, mode, group",
    );
    refuses_line(
        "registries: {a.io: {insecure: true}}",
        "registries.a.io.insecure: unknown key; known are plain_http, client_certificate, ca_file, skip_verify, \
         headers, mirrors",
    );
}

#[test]
fn a_duplicate_key_is_named_with_its_line() {
    refuses_line("version: 1", "version: this key is set twice");
    refuses_line("cache: {directory: /a, directory: /b}", "directory: this key is set twice");
    refuses_line(
        "registries: {a.io: {}, A.io: {}}",
        "registries.A.io: this registry is set twice, in another spelling",
    );
}

#[test]
fn a_value_of_another_type_is_refused_with_its_line() {
    refuses_line("cache: /var/lib", "cache: \"/var/lib\": expected keys with values (a map)");
    refuses_line("cache: [1]", "cache: expected keys with values (a map)");
    refuses_line("sources: {file: /a}", "sources.file: \"/a\": expected a list");
    refuses_line("sources: {file: [7]}", "sources.file[0]: 7: expected a text (in quotes)");
    refuses_line(
        "registries: {a.io: {plain_http: 1}}",
        "registries.a.io.plain_http: 1: expected true or false",
    );
    refuses_line("fetch: {concurrency: \"4\"}", "fetch.concurrency: \"4\": expected a whole number");
    refuses_line("fetch: {concurrency: 1.5}", "fetch.concurrency: 1.5: expected a whole number");
    refuses_line("health: 15074", "health: 15074: expected keys with values (a map)");
    refuses("- version: 1", "f.yaml:1: expected keys with values (a map)");
    refuses("just text", "f.yaml:1: \"just text\": expected keys with values (a map)");
}

#[test]
fn text_that_is_no_yaml_is_refused_with_its_line() {
    refuses("version: 1\nlisteners: [", "f.yaml:2: unclosed bracket '['");
    refuses(&format!("{BASE}---\nversion: 1"), "f.yaml:5: a second document (`---`) stands here");
}

#[test]
fn both_upstreams_or_neither_are_refused() {
    let why = "upstream.directory: \"/p\": set together with upstream.address: give one of the two";
    refuses_upstream("{address: \"unix:/u\", directory: /p}", why);
    let why = "upstream.address: missing, and so is upstream.directory: give one of the two";
    refuses_upstream("{}", why);
    refuses_upstream("{address: , directory: ~}", why);
    refuses(
        "version: 1\nlisteners: [{address: unix:/a}]\n",
        "f.yaml:1: upstream: missing: an agent needs `address` or `directory` in it",
    );
}

#[test]
fn a_bad_upstream_is_refused_without_its_credentials() {
    refuses_upstream(
        "{address: \"https://istiod:15012\"}",
        "upstream.address: \"https://istiod:15012\": TLS to the control plane is not supported yet: \
         use http://HOST:PORT or unix:/PATH",
    );
    refuses_upstream(
        "{address: \"http://u:hunter2@istiod:15012\"}",
        "upstream.address: (not shown): the address must not hold a user name or password",
    );
    refuses_upstream(
        "{address: \"http://istiod:15012/?token=hunter2\"}",
        "upstream.address: (not shown): the address must end after the port: no path, no query",
    );
    refuses_upstream("{directory: plugins}", "upstream.directory: \"plugins\": the path must be absolute");
}

#[test]
fn an_agent_has_at_least_one_listener() {
    let missing = "f.yaml:1: listeners: missing: an agent needs at least one";
    refuses("version: 1\nupstream: {directory: /p}\n", missing);
    let empty = "version: 1\nlisteners: []\nupstream: {directory: /p}\n";
    refuses(empty, "f.yaml:2: listeners: must hold at least one");
    for key in ["relay: {}", "health: {listen: \"[::]:1\"}", "admin: {listen: \"unix:/a\"}", "shutdown: {}"] {
        let refusal = refusal(&format!("version: 1\n{key}\n"));
        assert!(refusal.starts_with(missing) && refusal.contains("upstream: missing"), "{key}: {refusal}");
    }
}

#[test]
fn a_bad_listen_address_is_refused() {
    let listen = "not an address: unix:/PATH, or an IP address with a port, as in 127.0.0.1:15073 or [::1]:0";
    refuses_listener(
        "{address: localhost:15073}",
        &format!("listeners[0].address: \"localhost:15073\": {listen}"),
    );
    refuses_listener(
        "{address: unix:xds.sock}",
        "listeners[0].address: \"unix:xds.sock\": the path of a unix socket must be absolute, \
         as in unix:/run/wasmferry/xds.sock",
    );
    refuses_listener("{}", "listeners[0].address: missing: unix:/PATH or IP:PORT");
}

#[test]
fn a_mode_is_octal_in_quotes_and_at_most_0777() {
    let octal = "not a mode: octal digits in quotes, as in \"0660\"";
    for mode in ["0888", "rw-rw----", "0o660", "6", "-660", "+660", "00660", ""] {
        let message = format!("listeners[0].mode: \"{mode}\": {octal}");
        refuses_listener(&format!("{{address: unix:/a, mode: \"{mode}\"}}"), &message);
    }
    for mode in ["1777", "4755"] {
        let message = format!("listeners[0].mode: \"{mode}\": must not be more than 0777");
        refuses_listener(&format!("{{address: unix:/a, mode: \"{mode}\"}}"), &message);
    }
    for mode in [("0660", "660"), ("432", "432"), ("0o660", "432")] {
        let message = format!("listeners[0].mode: {}: expected a text (in quotes)", mode.1);
        refuses_listener(&format!("{{address: unix:/a, mode: {}}}", mode.0), &message);
    }
    let text = BASE.replace("unix:/a", "unix:/a, mode: \"640\"");
    assert_eq!(parse(&text).unwrap().agent.unwrap().listeners[0].mode, 0o640);
}

#[test]
fn an_address_of_tcp_takes_neither_mode_nor_group() {
    let why = "only for a unix socket: IP:PORT has no permissions";
    refuses_listener(
        "{address: \"[::1]:0\", mode: \"0600\"}",
        &format!("listeners[0].mode: \"0600\": {why}"),
    );
    refuses_listener("{address: \"[::1]:0\", group: 7}", &format!("listeners[0].group: 7: {why}"));
}

#[test]
fn a_group_is_a_number_or_a_name_that_exists() {
    refuses_listener(
        "{address: unix:/a, group: no-such-group}",
        "listeners[0].group: \"no-such-group\": no such group in /etc/group; \
         use its number where the name is unknown",
    );
    for (group, gid) in [("1337", 1337), ("\"1337\"", 1337), ("root", 0)] {
        let text = BASE.replace("unix:/a", &format!("unix:/a, group: {group}"));
        assert_eq!(parse(&text).unwrap().agent.unwrap().listeners[0].group, Some(Gid::from_raw(gid)));
    }
}

#[test]
fn another_version_or_none_is_refused() {
    for version in ["2", "0", "\"1.0\""] {
        let refusal = refusal(&BASE.replace("version: 1", &format!("version: {version}")));
        assert_eq!(refusal, format!("f.yaml:1: version: {version}: this wasmferry reads version 1 only"));
    }
    let missing = "version: missing: write `version: 1`";
    refuses("cache: {directory: /c}", &format!("f.yaml:1: {missing}"));
    refuses("", &format!("f.yaml:1: {missing}"));
}

#[test]
fn two_that_listen_have_two_addresses() {
    refuses_listener(
        "{address: \"unix:/a\"}, {address: \"127.0.0.1:7\"}, {address: \"unix:///a\"}",
        "listeners[2].address: \"unix:///a\": the same address as listeners[0].address on line 2",
    );
    refuses_line(
        "admin: {listen: \"unix:/a\"}",
        "admin.listen: \"unix:/a\": the same address as listeners[0].address on line 2",
    );
    let both = "health: {listen: \"127.0.0.1:7\"}\nadmin: {listen: \"127.0.0.1:7\"}";
    refuses(
        &format!("{BASE}{both}"),
        "f.yaml:5: admin.listen: \"127.0.0.1:7\": the same address as health.listen on line 4",
    );
    let chosen = "health: {listen: \"127.0.0.1:0\"}\nadmin: {listen: \"127.0.0.1:0\"}";
    assert!(parse(&format!("{BASE}{chosen}")).is_ok(), "the system chooses two ports");
}

#[test]
fn health_is_on_tcp_alone_and_both_need_an_address() {
    let tcp = "not an address: an IP address with a port, as in 127.0.0.1:15074 or [::]:15074";
    refuses_line("health: {listen: \"unix:/h\"}", &format!("health.listen: \"unix:/h\": {tcp}"));
    refuses_line("health: {listen: \"localhost:1\"}", &format!("health.listen: \"localhost:1\": {tcp}"));
    refuses_line("health: {}", "health.listen: missing: IP:PORT");
    refuses_line("admin: {}", "admin.listen: missing: unix:/PATH or IP:PORT");
    let relative = "the path of a unix socket must be absolute, as in unix:/run/wasmferry/xds.sock";
    refuses_line("admin: {listen: unix:a}", &format!("admin.listen: \"unix:a\": {relative}"));
}

#[test]
fn sizes_and_durations_have_units_and_limits() {
    let size = "not a size: a whole number of bytes, or one with KiB, MiB or GiB, as in 256MiB";
    refuses_line("cache: {max_module_bytes: 8MB}", &format!("cache.max_module_bytes: \"8MB\": {size}"));
    refuses_line("cache: {max_module_bytes: -1}", &format!("cache.max_module_bytes: -1: {size}"));
    let limits = "must be from 1KiB to 4GiB";
    refuses_line("cache: {max_module_bytes: 5GiB}", &format!("cache.max_module_bytes: \"5GiB\": {limits}"));
    refuses_line("cache: {max_module_bytes: 0}", &format!("cache.max_module_bytes: 0: {limits}"));
    let time = "not a duration: a whole number with ms, s, m or h, as in 10s";
    refuses_line("shutdown: {timeout: 10}", &format!("shutdown.timeout: 10: {time}"));
    refuses_line("shutdown: {timeout: 2h}", "shutdown.timeout: \"2h\": must be from 0s to 1h");
    refuses_line("fetch: {timeout: 500ms}", "fetch.timeout: \"500ms\": must be from 1s to 1h");
    refuses_line("fetch: {progress_timeout: 0s}", "fetch.progress_timeout: \"0s\": must be from 1s to 1h");
    let refuses_refresh = |refresh: &str, why: &str| {
        refuses_line(&format!("fetch: {{tag_refresh: {refresh}}}"), &format!("fetch.tag_refresh{why}"));
    };
    refuses_refresh("{interval: 9s}", ".interval: \"9s\": must be from 10s to 24h");
    refuses_refresh("{}", ".interval: missing: how often a registry is asked, as in 5m");
    refuses_refresh("{interval: 10s, registries: []}", ".registries: must hold at least one");
    refuses_refresh("10s", ": \"10s\": expected keys with values (a map)");
    refuses_line("fetch: {concurrency: 0}", "fetch.concurrency: 0: must be from 1 to 64");
    refuses_line("fetch: {downloads: 1}", "fetch.downloads: 1: must be from 2 to 512");
    refuses_line("fetch: {retries: 21}", "fetch.retries: 21: must be from 0 to 20");
    refuses_line("fetch: {min_rate: 2GiB}", "fetch.min_rate: \"2GiB\": must be from 0B to 1GiB");
    refuses_line("wasm: {types: 0}", "wasm.types: 0: must be from 1 to 100000000");
}

#[test]
fn the_relay_holds_a_largest_message_and_a_whole_queue() {
    let limits = "must be from 256MiB to 64GiB";
    refuses_line("relay: {in_flight_bytes: 255MiB}", &format!("relay.in_flight_bytes: \"255MiB\": {limits}"));
    refuses_line(
        "relay: {queue_bytes: 513MiB}",
        "relay.queue_bytes: must not be more than relay.in_flight_bytes, which holds all queues",
    );
}

#[test]
fn hosts_and_networks_are_checked() {
    let host = "not a host: HOST or HOST:PORT, without scheme and path";
    refuses_line("registries: {\"https://a.io\": {}}", &format!("registries.https://a.io: {host}"));
    refuses_line("registries: {\"u:hunter2@a.io\": {}}", &format!("registries.(not shown): {host}"));
    refuses_line("realms: [a.io/token]", &format!("realms[0]: \"a.io/token\": {host}"));
    refuses_line(
        "blocked_cidrs: [10.0.0.1/33]",
        "blocked_cidrs[0]: \"10.0.0.1/33\": not a network: an address and a length, as in 10.0.0.0/8 or fd00::/8",
    );
}

#[test]
fn log_level_and_format_are_among_their_names() {
    refuses_line("log: {format: xml}", "log.format: \"xml\": not one of text, json");
    refuses_line(
        "log: {level: loud}",
        "log.level: \"loud\": not one of off, error, warn, info, debug, trace",
    );
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_their_lines() {
    let text = "version: 3\nlisteners:\n- address: x\n  mode: y\nupstream: {}\ncache: {directory: c}\nz: 1\n";
    let refusal = refusal(text);
    let places: Vec<_> = refusal.lines().map(|line| line.split(": ").take(2).collect::<Vec<_>>()).collect();
    assert_eq!(
        places,
        [
            ["f.yaml:1", "version"],
            ["f.yaml:3", "listeners[0].address"],
            ["f.yaml:4", "listeners[0].mode"],
            ["f.yaml:5", "upstream.address"],
            ["f.yaml:6", "cache.directory"],
            ["f.yaml:7", "z"],
        ]
    );
}

#[test]
fn a_value_is_shown_on_one_line_and_cut() {
    let refusal = refusal(&format!("{BASE}cache: {{directory: \"a\\n\\e[31m{}\"}}", "x".repeat(500)));
    assert_eq!(refusal.lines().count(), 1);
    assert!(!refusal.contains('\u{1b}') && refusal.len() < 250, "{refusal}");
}

#[test]
fn without_a_home_the_store_needs_a_folder() {
    let homeless = |overrides| Loader::new(None, &Environment::default(), overrides).load();
    assert_eq!(
        homeless(Overrides::default()).unwrap_err().to_string(),
        "(no file):1: cache.directory: missing, and this user has no home directory to use instead"
    );
    let overrides = Overrides { cache_directory: Some("/c".into()), concurrency: None };
    assert_eq!(homeless(overrides).unwrap().cache.directory, Path::new("/c"));
}

#[test]
fn the_command_line_wins_over_the_file_and_the_file_over_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    std::fs::write(&file, "version: 1\ncache: {directory: /file}\nfetch: {concurrency: 2}\n").unwrap();
    let environment = Environment {
        config_file: Some("/does/not/exist.yaml".into()),
        cache_directory: Some("/home/cache".into()),
        ..Environment::default()
    };
    let load = |file: Option<&Path>, overrides| {
        Loader::new(file.map(Path::to_owned), &environment, overrides).load()
    };
    let config = load(Some(&file), Overrides::default()).unwrap();
    assert_eq!((config.cache.directory.to_str(), config.fetch.concurrency), (Some("/file"), 2));
    let overrides = Overrides { cache_directory: Some("/flag".into()), concurrency: Some(9) };
    let config = load(Some(&file), overrides).unwrap();
    assert_eq!((config.cache.directory.to_str(), config.fetch.concurrency), (Some("/flag"), 9));
    let missing = load(None, Overrides::default()).unwrap_err();
    assert!(missing.to_string().starts_with("/does/not/exist.yaml: cannot be read: "), "{missing}");
}

#[test]
fn an_agent_needs_a_file_that_is_an_agents() {
    let none = Loader::new(None, &Environment::default(), Overrides::default());
    assert!(matches!(none.load_agent(), Err(ConfigError::NoFile)));
    let text = "version: 1\ncache: {directory: /c}\n";
    let error = loader().parse_agent(Path::new(FILE), text).unwrap_err();
    assert_eq!(error.to_string(), "f.yaml: neither `listeners` nor `upstream` is set: an agent needs both");
    assert!(parse(text).unwrap().agent.is_none(), "for prefetch it is enough");
}

#[test]
fn a_file_that_is_too_large_or_no_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    let load = || Loader::new(Some(file.clone()), &Environment::default(), Overrides::default()).load();
    std::fs::write(&file, vec![b'#'; 1 + MAX_FILE_BYTES as usize]).unwrap();
    assert!(load().unwrap_err().to_string().ends_with("cannot be read: larger than 1 MiB"));
    std::fs::write(&file, b"version: \xff").unwrap();
    assert_eq!(load().unwrap_err().label(), "unreadable");
}

#[test]
fn every_key_is_either_taken_over_at_once_or_named_for_a_restart() {
    let old = parse(BASE).unwrap();
    assert_eq!(old.changes_from(&old), Changes::default());
    let changes = parse(WHOLE).unwrap().changes_from(&old);
    assert_eq!(
        changes.now,
        [
            "sources",
            "registries",
            "cache.lower",
            "cache.max_module_bytes",
            "cache.max_bytes",
            "cache.min_free",
            "cache.expiry",
            "cache.lease",
            "cache.proof",
            "fetch.timeout",
            "fetch.progress_timeout",
            "fetch.min_rate",
            "fetch.retries",
            "fetch.hold",
            "fetch.fallback",
            "fetch.nack_fetch_failures",
            "fetch.tag_refresh",
            "blocked_cidrs",
            "realms",
            "relay.queue_bytes",
            "wasm",
            "shutdown.timeout",
            "log.level",
        ]
    );
    assert_eq!(
        changes.restart,
        [
            "listeners",
            "upstream",
            "cache.directory",
            "fetch.concurrency",
            "fetch.downloads",
            "relay.in_flight_bytes",
            "health",
            "admin",
            "log.format"
        ]
    );
    let one = parse(&format!("{BASE}fetch: {{timeout: 9s}}")).unwrap().changes_from(&old);
    assert_eq!((one.now, one.restart), (vec!["fetch.timeout"], vec![]));
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let warnings = |text: &str| -> Vec<String> {
        let warnings = parse(text).unwrap().warnings();
        warnings.iter().map(|warning| warning.split(':').next().unwrap().to_owned()).collect()
    };
    let listener = |listener: &str| warnings(&BASE.replace("address: unix:/a", listener));
    let upstream = |upstream: &str| warnings(&BASE.replace("directory: /p", upstream));
    let line = |line: &str| warnings(&format!("{BASE}{line}"));
    assert!(warnings(BASE).is_empty());
    assert!(warnings(WHOLE).is_empty());
    assert_eq!(listener("address: unix:/a, mode: \"0666\""), ["listeners[0].mode"]);
    assert_eq!(listener("address: unix:/a, mode: \"0060\""), ["listeners[0].mode"]);
    assert_eq!(listener("address: unix:/a, mode: \"0600\", group: 7"), ["listeners[0].group"]);
    assert_eq!(listener("address: \"0.0.0.0:7\""), ["listeners[0].address"]);
    assert_eq!(upstream("address: \"http://istiod:15010\""), ["upstream.address"]);
    assert!(upstream("address: \"http://[::1]:15010\"").is_empty());
    assert_eq!(line("admin: {listen: \"0.0.0.0:7\"}"), ["admin.listen"]);
    assert_eq!(line("admin: {listen: \"127.0.0.1:7\"}"), ["admin.listen"]);
    assert_eq!(line("sources: {file: [/]}"), ["sources.file"]);
}

/// The bootstraps beside them are tested with Envoy itself, among the integration tests.
#[test]
fn every_file_in_agent_config_is_valid_and_warns_of_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("agent-config");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() || name.ends_with(".envoy.yaml") {
            continue;
        }
        // No environment: they have to name all that an agent in a container needs.
        let loader = Loader::new(Some(path), &Environment::default(), Overrides::default());
        let is_agent = name != "prefetch.yaml";
        let config = if is_agent { loader.load_agent() } else { loader.load() };
        let config = config.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.agent.is_some(), is_agent, "{name}");
        assert_eq!(config.warnings(), Vec::<String>::new(), "{name}");
        let bootstrap = folder.join(name.replace(".yaml", ".envoy.yaml"));
        assert_eq!(bootstrap.exists(), is_agent, "{name}: an agent's file has its bootstrap");
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["node.yaml", "prefetch.yaml", "sidecar.yaml", "standalone.yaml"]);
}

/// What Envoy and wasmferry have to agree on, and what Envoy needs to be served well.
#[test]
fn every_bootstrap_in_agent_config_fits_its_agent() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("agent-config");
    for name in ["node", "sidecar", "standalone"] {
        let bootstrap = std::fs::read_to_string(folder.join(format!("{name}.envoy.yaml"))).unwrap();
        // In a listener of its own, or in a comment for whoever writes the control plane's.
        for kind in ["wasm.v3.Wasm", "rbac.v3.RBAC"] {
            let type_url = format!("- type.googleapis.com/envoy.extensions.filters.http.{kind}");
            assert!(bootstrap.contains(&type_url), "{name}: type_urls lacks {kind}");
        }
        let bootstrap: serde_json::Value = serde_saphyr::from_str(&bootstrap).unwrap();
        let ads = &bootstrap["dynamic_resources"]["ads_config"];
        assert_eq!(ads["set_node_on_first_message_only"], true, "{name}");
        let grpc = &ads["grpc_services"][0]["envoy_grpc"];
        assert_eq!(grpc["authority"], "wasmferry", "{name}");
        let clusters = bootstrap["static_resources"]["clusters"].as_array().unwrap();
        let cluster = clusters.iter().find(|cluster| cluster["name"] == grpc["cluster_name"]).unwrap();
        let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        let socket = endpoint["address"]["pipe"]["path"].as_str().unwrap();
        let file = folder.join(format!("{name}.yaml"));
        let agent = Loader::new(Some(file), &Environment::default(), Overrides::default()).load().unwrap();
        assert_eq!(agent.agent.unwrap().listeners[0].address, ListenAddress::Unix(socket.into()), "{name}");
    }
}

#[test]
fn credentials_name_repositories_listeners_and_one_source() {
    use crate::fetch::{CredentialSource, Listeners, Repositories};

    let text = format!(
        "{BASE}credentials:\n\
         - {{for: [r.io/team, '*.dkr.ecr.*.amazonaws.com'], listeners: [unix:/a], user: u, password_file: /p}}\n\
         - {{for: [r.io], token_file: /t}}\n\
         - {{for: [r.io], listeners: [], identity_token_file: /i}}\n\
         - {{for: all, listeners: all, docker_config: /d}}\n\
         - {{for: all, kubernetes_secrets: /k}}\n\
         credential_providers: {{config: /c.yaml, bin_directory: /bin, listeners: all}}\n"
    );
    let config = parse(&text).unwrap();
    let sources: Vec<_> = config.credentials.iter().map(|credential| credential.source.clone()).collect();
    let expected = [
        CredentialSource::Password { user: "u".into(), file: "/p".into() },
        CredentialSource::RegistryToken("/t".into()),
        CredentialSource::IdentityToken("/i".into()),
        CredentialSource::DockerConfig("/d".into()),
        CredentialSource::KubernetesSecrets("/k".into()),
    ];
    assert_eq!(sources, expected);
    let named = Listeners::These(vec!["unix:/a".parse().unwrap()]);
    assert_eq!(config.credentials[0].listeners, named);
    assert_eq!(config.credentials[1].listeners, Listeners::These(Vec::new()), "none where nothing is said");
    assert_eq!(config.credentials[3].listeners, Listeners::All);
    assert_eq!(config.credentials[3].repositories, Repositories::All);
    assert!(matches!(&config.credentials[0].repositories, Repositories::These(two) if two.len() == 2));
    let providers = config.credential_providers.unwrap();
    assert!(matches!(providers.source, CredentialSource::Providers { .. }));
}

#[test]
fn a_credential_that_says_too_little_or_too_much_is_refused() {
    for (entry, why) in [
        ("{token_file: /t}", "for: missing"),
        ("{for: all, token_file: /t}", "name repositories"),
        ("{for: all, user: u, password_file: /p}", "name repositories"),
        ("{for: ['*'], token_file: /t}", "not repositories"),
        ("{for: [], token_file: /t}", "at least one"),
        ("{for: [r.io]}", "give one of"),
        ("{for: [r.io], token_file: /t, docker_config: /d}", "give one of"),
        ("{for: [r.io], password_file: /p}", "user: missing"),
        ("{for: [r.io], user: u, token_file: /t}", "only together with password_file"),
        ("{for: [r.io], listeners: [unix:/b], token_file: /t}", "not the address of one of"),
        ("{for: [r.io], listeners: ['127.0.0.1:0'], token_file: /t}", "cannot be named"),
        ("{for: [r.io], password: hunter2}", "unknown key"),
    ] {
        let refusal = refusal(&format!("{BASE}credentials: [{entry}]\n"));
        assert!(refusal.contains("credentials[0]") && refusal.contains(why), "{entry}: {refusal}");
        assert!(!refusal.contains("hunter2"));
    }
}

#[test]
fn a_registry_has_mirrors_and_certificates() {
    let text = format!(
        "{BASE}containerd_hosts: [/etc/containerd/certs.d]\nregistries:\n  \"*\":\n    mirrors:\n      - \
         {{url: \"https://m.io/p\", credentials: true, ca_file: /m.pem}}\n      - {{url: \"http://n.io:5000\"}}\n    \
         ca_file: /ca.pem\n    client_certificate: {{certificate: /c.pem, key: /k.pem}}\n    skip_verify: true\n    \
         headers: {{x-own: hunter2}}\n"
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.containerd_hosts, [PathBuf::from("/etc/containerd/certs.d")]);
    let registry = &config.registries["*"];
    let mirrors: Vec<_> =
        registry.mirrors.iter().map(|mirror| (mirror.url.as_str(), mirror.credentials)).collect();
    assert_eq!(mirrors, [("https://m.io/p", true), ("http://n.io:5000/", false)]);
    assert_eq!(registry.mirrors[0].access.ca_files, [PathBuf::from("/m.pem")]);
    assert!(registry.access.skip_verify && registry.access.ca_files == [PathBuf::from("/ca.pem")]);
    assert_eq!(registry.access.headers["x-own"], "hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_bad_mirror_or_header_is_refused_without_what_may_be_secret() {
    let mirror = |mirror: &str, why: &str| {
        let line = format!("registries: {{a.io: {{mirrors: [{mirror}]}}}}");
        refuses_line(&line, &format!("registries.a.io.mirrors[0]{why}"));
    };
    mirror("{}", ".url: missing: https://HOST[:PORT][/PATH]");
    let not = "not a mirror: https://HOST[:PORT][/PATH], or http:// for one without TLS";
    mirror("{url: m.io}", &format!(".url: \"m.io\": {not}"));
    mirror("{url: \"https://m.io/?a=hunter2\"}", &format!(".url: (not shown): {not}"));
    let user = ".url: (not shown): a mirror's URL must not hold a user name or password";
    mirror("{url: \"https://u:hunter2@m.io\"}", user);
    mirror("{url: \"http://m.io\", skip_verify: true}", ".url: http together with what is for https");
    refuses_line(
        "registries: {a.io: {plain_http: true, ca_file: /a}}",
        "registries.a.io.plain_http: set together with what is for https",
    );
    refuses_line(
        "registries: {a.io: {headers: {host: hunter2}}}",
        "registries.a.io.headers.host: this header is wasmferry's own",
    );
    refuses_line(
        "registries: {a.io: {headers: {x-own: \"hunter2\\n\"}}}",
        "registries.a.io.headers.x-own: holds what a header cannot carry",
    );
}

/// A configuration of this text and these variables.
fn with_variables(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    std::fs::write(&file, text).unwrap();
    let get =
        |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let environment = Environment::read(get, Some("/cache".into()));
    Loader::new(Some(file), &environment, Overrides::default()).load()
}

#[test]
fn the_variables_of_istios_agent_stand_in_for_what_the_file_leaves_open() {
    let variables = [
        ("WASM_INSECURE_REGISTRIES", "a.io, B.io:5000,*"),
        ("WASM_HTTP_REQUEST_TIMEOUT", "15s"),
        ("WASM_HTTP_REQUEST_MAX_RETRIES", "5"),
        ("WASM_MODULE_EXPIRY", "2h"),
        ("ISTIO_WASM_MAX_BINARY_SIZE_BYTES", "1048576"),
        ("BLOCKED_CIDRS_IN_WASM_FETCH", "10.0.0.0/8,fd00::/8"),
    ];
    let config = with_variables("version: 1", &variables).unwrap();
    assert_eq!(config.fetch.timeout, Duration::from_secs(15));
    assert_eq!(config.fetch.retries, 4, "the first try counts there, too");
    assert_eq!((config.cache.expiry, config.cache.max_module_bytes), (Duration::from_secs(7200), 1 << 20));
    assert_eq!(config.blocked_cidrs.len(), 2);
    let insecure =
        |registry: &Registry| registry.scheme == Scheme::HttpsThenHttp && registry.access.skip_verify;
    assert_eq!(config.registries.keys().map(String::as_str).collect::<Vec<_>>(), ["*", "a.io", "b.io:5000"]);
    assert!(config.registries.values().all(insecure));
    assert_eq!(config.variables.len(), 8);

    let file = "version: 1\nregistries: {a.io: {}}\nfetch: {timeout: 7s, retries: 1}\nblocked_cidrs: [10.0.0.0/8]\n\
                cache: {expiry: 3h, max_module_bytes: }\n";
    let config = with_variables(file, &variables).unwrap();
    assert_eq!(
        (config.fetch.timeout, config.cache.expiry),
        (Duration::from_secs(7), Duration::from_secs(3 * 3600))
    );
    assert_eq!((config.cache.max_module_bytes, config.blocked_cidrs.len()), (1 << 20, 2));
    assert_eq!(config.fetch.retries, 1);
    assert_eq!(config.registries["a.io"], Registry::default());
}

#[test]
fn a_variable_that_cannot_be_read_is_named_without_its_value() {
    for (name, value) in [
        ("WASM_INSECURE_REGISTRIES", "https://hunter2"),
        ("WASM_HTTP_REQUEST_TIMEOUT", "hunter2"),
        ("WASM_HTTP_REQUEST_MAX_RETRIES", "22"),
        ("WASM_MODULE_EXPIRY", "1s"),
        ("ISTIO_WASM_MAX_BINARY_SIZE_BYTES", "-1"),
        ("BLOCKED_CIDRS_IN_WASM_FETCH", "hunter2"),
        ("HTTPS_PROXY", "socks5://u:hunter2@p:1"),
        ("HTTP_PROXY", "http://u:hunter2@p/path"),
    ] {
        let error = with_variables("version: 1", &[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}: ")) && !error.contains("hunter2"), "{error}");
    }
    let config = with_variables("version: 1", &[("https_proxy", "u:hunter2@p.io:3128")]).unwrap();
    assert!(!config.proxies.is_empty() && !format!("{config:?}").contains("hunter2"));
}

#[test]
fn one_server_never_has_all_downloads() {
    let downloads = |text: &str| parse(&format!("{BASE}fetch: {text}")).unwrap().fetch.downloads;
    assert_eq!(downloads("{concurrency: 16}"), 128, "eight times as many, where nothing is said");
    assert_eq!(downloads("{concurrency: 4, downloads: 5}"), 5);
    refuses_line(
        "fetch: {concurrency: 4, downloads: 4}",
        "fetch.downloads: must be more than fetch.concurrency, or one server that hangs takes all",
    );
}
