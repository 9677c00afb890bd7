//! What each command says and how it ends: `check`, `health`, help, logs, and a configuration that is not
//! valid.

use std::process::Output;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::agent::{Agent, Options, command, wasmferry};
use crate::support::process::Program;
use crate::support::world::{User, World};
use crate::support::{eventually, soon};

/// Exit code, standard output and standard error.
fn said(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// An agent that serves an empty folder.
fn prepare(world: &World, yaml: &str) -> Agent {
    let plugins = world.folder("plugins", User::Agent, 0o755);
    Agent::prepare(world, &Options::directory(&plugins).with(yaml))
}

#[tokio::test]
async fn check_says_what_a_configuration_would_do_and_does_none_of_it() {
    let world = World::new();
    let agent = prepare(&world, "sources: {file: [/srv/modules]}");
    let config = agent.config.to_str().unwrap();
    let (code, stdout, stderr) = said(wasmferry(&world, ["check", "--config", config]).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.starts_with(&format!("{config}: valid; `wasmferry run` would\n")), "{stdout}");
    for line in [
        format!("  listen on    unix:{} (mode 0660, group ", agent.socket.display()),
        format!("  listen on    {}\n", agent.tcp),
        "  serve        the plugins in ".into(),
        format!("  answer       its administrator on unix:{} (mode 0600)\n", agent.admin.display()),
        format!("  store        modules of at most 256MiB in {}\n", agent.cache.display()),
        "  read         file:// in resources below /srv/modules\n".into(),
    ] {
        assert!(stdout.contains(&line), "{line} is not in {stdout}");
    }
    assert!(!agent.socket.exists() && !agent.cache.join("v1").exists());
    // The environment names the file as well.
    let by_environment = said(command(&world, ["check"], &[("WASMFERRY_CONFIG", config)]).await);
    assert_eq!(by_environment, (Some(0), stdout, String::new()));
}

#[tokio::test]
async fn a_mistake_in_the_configuration_is_told_with_key_value_and_line_and_starts_nothing() {
    let world = World::new();
    for (yaml, told) in [
        ("shutdwon: {timeout: 1s}", vec![": shutdwon: "]),
        ("cahce: {}\nfetch: {timeout: soon}", vec![": cahce: ", ": fetch.timeout: \"soon\": "]),
        ("upstream: {address: \"http://127.0.0.1:1\"}", vec![": upstream: "]),
        ("sources: {file: [relative]}", vec![": sources.file[0]: \"relative\": "]),
        ("registries: {\"user:hunter2@h\": {plain_http: true}}", vec![": registries"]),
    ] {
        let agent = prepare(&world, yaml);
        let config = agent.config.to_str().unwrap();
        let source = std::fs::read_to_string(config).unwrap();
        let first_line = source.lines().position(|line| line == yaml.lines().next().unwrap()).unwrap() + 1;
        for args in [
            vec!["run", "--config", config],
            vec!["check", "--config", config],
            vec!["health", "--config", config],
            vec!["prefetch", "--config", config, "file:///none"],
        ] {
            let (code, stdout, stderr) = said(wasmferry(&world, args.clone()).await);
            assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
            let lines: Vec<&str> = stderr.lines().collect();
            assert_eq!(lines.len(), told.len(), "{stderr}");
            for (number, (line, told)) in lines.iter().zip(&told).enumerate() {
                let place = format!("{config}:{}{told}", first_line + number);
                assert!(line.starts_with(&place), "`{line}` should begin with `{place}`");
            }
            assert!(!stderr.contains("hunter2"), "{stderr}");
        }
        assert!(!agent.socket.exists() && !agent.cache.join("v1").exists());
    }
}

#[tokio::test]
async fn health_says_whether_an_agent_is_ready_over_tcp_and_over_the_admin_socket() {
    let world = World::new();
    let mut agent = prepare(&world, "");
    let config = agent.config.display().to_string();
    let ask = async |config: &str| said(wasmferry(&world, ["health", "--config", config]).await);

    let (code, stdout, stderr) = ask(&config).await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with(&format!("not ready: cannot connect to {}: ", agent.health)), "{stderr}");

    agent.resume(&world).await;
    assert_eq!(ask(&config).await, (Some(0), format!("ready: {}\n", agent.health), String::new()));
    // Without a health address it is the admin socket that is asked.
    let yaml = std::fs::read_to_string(&config).unwrap();
    let without: Vec<&str> = yaml.lines().filter(|line| !line.starts_with("health:")).collect();
    let without = world.write("without-health.yaml", without.join("\n"), User::Agent, 0o600);
    let ready = format!("ready: unix:{}\n", agent.admin.display());
    assert_eq!(ask(without.to_str().unwrap()).await, (Some(0), ready, String::new()));

    // One that is stopped answers nobody, and is not waited for for ever.
    agent.process().signal(Signal::STOP);
    let (code, _, stderr) = soon("an end of the asking", ask(&config)).await;
    assert_eq!((code, stderr), (Some(1), format!("not ready: no answer from {} within 3 s\n", agent.health)));
    agent.process().signal(Signal::CONT);
    assert_eq!(ask(&config).await.0, Some(0));
    assert_eq!(agent.stop().await, Some(0));
    assert_eq!(ask(&config).await.0, Some(1));
}

#[tokio::test]
async fn every_command_has_a_whole_help_with_an_example() {
    let world = World::new();
    for (name, words) in [
        ("", vec!["run", "prefetch", "push", "check", "health", "Exit codes"]),
        ("run", vec!["--config", "SIGHUP", "shutdown.timeout"]),
        ("prefetch", vec!["--cache-dir", "--output", "payload_digest", "DOCKER_CONFIG", "WasmPlugin"]),
        ("push", vec!["--layout", "artifact", "image", "--plain-http", "docker configuration"]),
        ("check", vec!["--config", "Exits 2"]),
        ("health", vec!["--config", "Exits 0", "readinessProbe"]),
    ] {
        let args = [name, "--help"].into_iter().filter(|arg| !arg.is_empty());
        let (code, stdout, stderr) = said(wasmferry(&world, args).await);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        assert!(stdout.contains("Example") && stdout.contains("--log-format"), "{stdout}");
        words.iter().for_each(|word| assert!(stdout.contains(word), "{name}: {word}: {stdout}"));
        if !name.is_empty() {
            assert!(stdout.contains(&format!("wasmferry {name}")), "{stdout}");
        }
    }
    for wrong in [vec![], vec!["serve"], vec!["run", "--port", "1"], vec!["push", "a.wasm"]] {
        let (code, stdout, stderr) = said(wasmferry(&world, wrong.clone()).await);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{wrong:?}");
        assert!(stderr.contains("Usage: wasmferry"), "{stderr}");
    }
}

#[tokio::test]
async fn logs_are_json_unless_there_is_a_terminal_or_a_flag_and_as_fine_as_was_asked() {
    let world = World::new();
    let agent = prepare(&world, "");
    let config = agent.config.display().to_string();
    // Each runs until it is ready, and is then told to stop.
    let run = async |name: &str, wrap: fn(&str) -> Vec<String>, flags: &str, env: &[(&str, &str)]| {
        let program = world.executable(env!("CARGO_BIN_EXE_wasmferry").as_ref());
        let line = format!("exec {} {flags} run --config {config}", program.display());
        let home = ("HOME".to_owned(), world.folder("home", User::Agent, 0o700).display().to_string());
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let mut process = Program {
            name: name.into(),
            path: "/bin/sh".into(),
            user: User::Agent,
            args: vec!["-c".into(), wrap(&line).join(" ").into()],
            env: env.chain([home]).collect(),
        }
        .start(&world);
        let all = |process: &crate::support::process::Process| process.stdout() + &process.stderr();
        eventually("an agent", async || {
            process.assert_running();
            let answer = crate::support::client::get(agent.health, "/readyz").await.ok()?;
            (answer.status == http::StatusCode::OK).then_some(())
        })
        .await;
        process.terminate().await;
        all(&process)
    };
    let plain = |line: &str| vec![line.to_owned()];
    let terminal = |line: &str| vec![format!("exec script --quiet --flush --command '{line}' /dev/null")];

    let json = run("json", plain, "", &[]).await;
    let records: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let messages: Vec<&str> = records.iter().filter_map(|record| record["message"].as_str()).collect();
    for message in ["listening for Envoys", "ready", "draining", "stopped"] {
        assert!(messages.contains(&message), "{messages:?}");
    }
    assert!(records.iter().all(|record| record["level"] == "INFO" && record["timestamp"].is_string()));

    let debug = run("debug", plain, "--log-level debug", &[("RUST_LOG", "off")]).await;
    assert!(debug.lines().any(|line| line.contains("\"level\":\"DEBUG\"")), "{debug}");
    assert_eq!(run("off", plain, "", &[("RUST_LOG", "off")]).await, "");

    let text = run("text", plain, "--log-format text", &[]).await;
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_err()), "{text}");
    assert!(text.contains(" INFO wasmferry::app: ready version="), "{text}");
    assert!(!text.contains('\x1b'), "{text}");

    let colored = run("terminal", terminal, "", &[("TERM", "xterm")]).await;
    assert!(colored.contains("\x1b[") && colored.contains("ready"), "{colored}");
    let plain_text = run("no-color", terminal, "", &[("TERM", "xterm"), ("NO_COLOR", "1")]).await;
    assert!(
        !plain_text.contains("\x1b[") && plain_text.contains(" INFO wasmferry::app: ready"),
        "{plain_text}"
    );
    let asked_for = run("terminal-json", terminal, "--log-format json", &[]).await;
    assert!(asked_for.lines().any(|line| serde_json::from_str::<Value>(line).is_ok()), "{asked_for}");

    let (code, _, stderr) =
        said(command(&world, ["run", "--config", &config], &[("RUST_LOG", "wasmferry=loud")]).await);
    assert_eq!(code, Some(2));
    assert!(stderr.starts_with("RUST_LOG: ") && stderr.lines().count() == 1, "{stderr}");
}
