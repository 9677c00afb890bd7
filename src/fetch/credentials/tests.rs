//! Files and programs that really are there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::fetch::FetchConfig;
use crate::fetch::credential::{Credential, Login};
use crate::metrics::{Metrics, result};

/// A folder with files, and the credentials that a configuration makes of them.
struct Node {
    folder: TempDir,
    credentials: Vec<NodeCredential>,
    timeout: Duration,
    clock: Clock,
    metrics: Metrics,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        let (credentials, timeout, clock) = (Vec::new(), Duration::from_secs(20), Clock::System);
        Self { folder, credentials, timeout, clock, metrics: Metrics::new().0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// A shell script, written by another process: one that is open for writing here, and inherited by what
    /// another test starts, cannot be run.
    fn script(&self, name: &str, text: &str) {
        let file = self.path("bin").join(name);
        let source = self.write("source", format!("#!/bin/sh\n{text}\n"));
        assert!(Command::new("cp").args([&source, &file]).status().unwrap().success());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn with(mut self, patterns: &[&str], listeners: Listeners, source: CredentialSource) -> Self {
        let patterns: Vec<_> = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
        let repositories =
            if patterns.is_empty() { Repositories::All } else { Repositories::These(patterns) };
        self.credentials.push(NodeCredential { repositories, listeners, source });
        self
    }

    /// With one provider, whose answers are kept for so long where it does not say.
    fn with_provider(self, script: &str, keep: &str) -> Self {
        self.script("provider", script);
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
            "providers": [{
                "name": "provider", "matchImages": ["*.r.io"], "defaultCacheDuration": keep,
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "args": ["an arg"], "env": [{"name": "OWN", "value": "of its own"}],
            }],
        });
        let config = self.write("providers.json", config.to_string());
        let bin_directory = self.path("bin");
        self.with(&[], Listeners::All, CredentialSource::Providers { config, bin_directory })
    }

    fn with_docker_config(self, config: serde_json::Value) -> Self {
        let file = self.write("config.json", config.to_string());
        self.with(&[], Listeners::All, CredentialSource::DockerConfig(file))
    }

    fn sources(&self) -> Arc<Sources> {
        let config = FetchConfig {
            credentials: self.credentials.clone(),
            programs: ProgramEnvironment {
                path: Some(format!("{}:/usr/bin:/bin", self.path("bin").display())),
                home: Some("/the/home".into()),
            },
            program_timeout: self.timeout,
            metrics: Some(self.metrics.clone()),
            ..FetchConfig::default()
        };
        Arc::new(Sources::of(&config, &self.clock))
    }

    fn counted(&self, label: &'static str) -> u64 {
        self.metrics.credentials.get_or_create(&result(label)).get()
    }

    /// How often a script that appends to it has run.
    fn runs(&self) -> usize {
        std::fs::read_to_string(self.path("runs")).unwrap_or_default().lines().count()
    }
}

fn listener(address: &str) -> Caller {
    Caller::Listener(address.into())
}

fn image(text: &str) -> Reference {
    text.parse().unwrap()
}

async fn ask(sources: &Arc<Sources>, caller: &Caller, text: &str) -> Credential {
    sources.clone().credential(caller, &image(text)).await
}

/// The logins of a credential as text, or why there are none.
fn shown(credential: &Credential) -> Result<Vec<String>, String> {
    let show = |login: &Login| match login {
        Login::Password { user, password } => format!("{}:{}", user.expose(), password.expose()),
        Login::Identity(token) => format!("identity {}", token.expose()),
        Login::Registry(token) => format!("registry {}", token.expose()),
    };
    let logins = credential.logins().map_err(|error| error.to_string())?;
    Ok(logins.iter().map(show).collect())
}

async fn operator(sources: &Arc<Sources>, text: &str) -> Result<Vec<String>, String> {
    shown(&ask(sources, &Caller::Operator, text).await)
}

/// What a provider prints, in shell.
fn response(key: &str, more: &str) -> String {
    format!(
        r#"echo '{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"{key}"{more}}}'"#
    )
}

const AUTH: &str = r#","auth":{"*.r.io":{"username":"u","password":"hunter2"}}"#;

#[tokio::test]
async fn each_kind_of_file_is_a_source_and_all_that_apply_are_tried_in_their_order() {
    let node = Node::new();
    let (password, token) = (node.write("password", "p\n"), node.write("token", "t"));
    std::fs::create_dir_all(node.path("secrets/team")).unwrap();
    let secret = |user: &str| json!({"a.r.io": {"username": user, "password": "k"}});
    node.write("secrets/team/.dockerconfigjson", json!({ "auths": secret("json") }).to_string());
    node.write("secrets/z.dockercfg", secret("cfg").to_string());
    let secrets = node.path("secrets");
    let user = "u".to_owned();
    let node = node
        .with(&["a.r.io"], Listeners::All, CredentialSource::Password { user, file: password })
        .with(&["a.r.io/team"], Listeners::All, CredentialSource::RegistryToken(token.clone()))
        .with(&["b.r.io"], Listeners::All, CredentialSource::IdentityToken(token))
        .with(&[], Listeners::All, CredentialSource::KubernetesSecrets(secrets))
        .with_docker_config(json!({"auths": {"c.r.io": {"username": "c", "password": "d"}}}));
    let sources = node.sources();
    let all = ["u:p", "registry t", "json:k", "cfg:k"];
    assert_eq!(operator(&sources, "a.r.io/team/x:v1").await.unwrap(), all);
    assert_eq!(operator(&sources, "a.r.io/x:v1").await.unwrap(), ["u:p", "json:k", "cfg:k"]);
    assert_eq!(operator(&sources, "b.r.io/x:v1").await.unwrap(), ["identity t"]);
    assert_eq!(operator(&sources, "c.r.io/x:v1").await.unwrap(), ["c:d"]);
    let nobody = ask(&sources, &Caller::Operator, "d.r.io/x:v1").await;
    assert_eq!((shown(&nobody), nobody.identity()), (Ok(Vec::new()), None));
}

#[tokio::test]
async fn a_listener_has_what_names_it_and_nothing_else() {
    let node = Node::new();
    let file = |name: &str| CredentialSource::RegistryToken(node.write(name, name));
    let (none, one, all) = (file("none"), file("one"), file("all"));
    let named = Listeners::These(vec![ListenAddress::Unix("/one".into())]);
    let node = node.with(&["r.io"], Listeners::These(Vec::new()), none).with(&["r.io"], named, one).with(
        &["r.io"],
        Listeners::All,
        all,
    );
    let sources = node.sources();
    for (caller, expected) in [
        (Caller::Nobody, &[][..]),
        (listener("unix:/other"), &["registry all"]),
        (listener("unix:/one"), &["registry one", "registry all"]),
        (Caller::Operator, &["registry none", "registry one", "registry all"]),
    ] {
        let credential = ask(&sources, &caller, "r.io/x:v1").await;
        assert_eq!(shown(&credential).unwrap(), expected, "{caller:?}");
        assert_eq!(credential.identity().is_none(), expected.is_empty());
    }
}

#[tokio::test]
async fn a_file_that_changes_counts_at_once_and_one_that_cannot_be_read_is_named() {
    let node = Node::new();
    let file = node.write("token", "hunter2");
    let node = node.with(&["r.io"], Listeners::All, CredentialSource::RegistryToken(file.clone()));
    let sources = node.sources();
    let old = ask(&sources, &Caller::Operator, "r.io/x:v1").await;
    std::fs::write(&file, "hunter2\n").unwrap();
    let same = ask(&sources, &Caller::Operator, "r.io/x:v1").await;
    assert_eq!(old.identity(), same.identity(), "only what it says tells who asks");
    std::fs::write(&file, "hunter3").unwrap();
    let new = ask(&sources, &Caller::Operator, "r.io/x:v1").await;
    assert_eq!(shown(&new).unwrap(), ["registry hunter3"]);
    assert_ne!(old.identity(), new.identity());
    std::fs::write(&file, b"hunter\xff").unwrap();
    let error = operator(&sources, "r.io/x:v1").await.unwrap_err();
    assert!(error.contains(&file.display().to_string()) && !error.contains("hunter"), "{error}");
    std::fs::remove_file(&file).unwrap();
    assert!(operator(&sources, "r.io/x:v1").await.unwrap_err().contains("No such file"));
    assert_eq!(node.counted("file"), 2);
}

#[tokio::test]
async fn a_docker_config_of_the_users_need_not_be_there() {
    let mut node = Node::new();
    node.credentials.push(NodeCredential::of_user(node.path("config.json")));
    let sources = node.sources();
    assert_eq!(operator(&sources, "r.io/x:v1").await, Ok(Vec::new()));
    node.write("config.json", "hunter2");
    assert!(operator(&sources, "r.io/x:v1").await.is_err_and(|error| !error.contains("hunter2")));
}

#[tokio::test]
async fn a_provider_is_asked_as_the_kubelet_asks_it_with_a_clean_environment() {
    let script = format!(
        "cat > \"$(dirname \"$0\")/../asked\"; env > \"$(dirname \"$0\")/../env\"; echo \"$1\" > \"$(dirname \"$0\")/../arg\"; {}",
        response("Registry", AUTH)
    );
    let node = Node::new().with_provider(&script, "1h");
    let sources = node.sources();
    assert_eq!(operator(&sources, "a.r.io/team/x:v1").await.unwrap(), ["u:hunter2"]);
    assert_eq!(operator(&sources, "r.io/x:v1").await, Ok(Vec::new()), "it is not for that one");
    let asked = std::fs::read_to_string(node.path("asked")).unwrap();
    let asked: serde_json::Value = serde_json::from_str(&asked).unwrap();
    let expected = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest",
        "image": "a.r.io/team/x",
    });
    assert_eq!(asked, expected);
    assert_eq!(std::fs::read_to_string(node.path("arg")).unwrap(), "an arg\n");
    let env = std::fs::read_to_string(node.path("env")).unwrap();
    let mut names: Vec<_> =
        env.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    // The shell's own.
    names.retain(|name| !matches!(*name, "PWD" | "SHLVL" | "_" | "OLDPWD"));
    names.sort_unstable();
    assert_eq!(names, ["HOME", "OWN", "PATH"], "{env}");
    assert!(env.contains("HOME=/the/home\n") && env.contains("OWN=of its own\n"));
}

#[tokio::test]
async fn a_providers_answer_is_kept_for_what_and_as_long_as_it_says() {
    let count = "echo run >> \"$(dirname \"$0\")/../runs\"; ";
    let (same, other_image, other_registry) = ("a.r.io/x:v2", "a.r.io/y:v1", "b.r.io/x:v1");
    for (key, more, expected) in [
        ("Image", "", [1, 2, 3]),
        ("Registry", "", [1, 1, 2]),
        ("Global", "", [1, 1, 1]),
        ("Global", r#","cacheDuration":"0s""#, [2, 3, 4]),
    ] {
        let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
        let mut node =
            Node::new().with_provider(&format!("{count}{}", response(key, &format!("{more}{AUTH}"))), "1h");
        // What a run waits for is the program, which has ended by then or ends without the clock.
        node.clock = Clock::Manual(manual.clone());
        let sources = node.sources();
        let ask = async |text: &str| {
            let asking = operator(&sources, text);
            let ticking = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    manual.advance(Duration::from_millis(1));
                }
            };
            tokio::select! {
                logins = asking => assert_eq!(logins.unwrap(), ["u:hunter2"]),
                () = ticking => unreachable!(),
            }
        };
        ask("a.r.io/x:v1").await;
        let mut runs = Vec::new();
        for text in [same, other_image, other_registry] {
            ask(text).await;
            runs.push(node.runs());
        }
        assert_eq!(runs, expected, "{key} {more}");
        let at_hand = sources.at_hand(&Caller::Operator, &image(same));
        assert_eq!(at_hand.is_some(), more.is_empty(), "what is kept is there without a run");
        manual.advance(Duration::from_secs(3600));
        assert!(sources.at_hand(&Caller::Operator, &image(same)).is_none());
        ask(same).await;
        assert_eq!(node.runs(), expected[2] + 1, "its time is over");
    }
}

#[tokio::test]
async fn all_who_ask_at_once_share_one_run() {
    let script = format!("echo run >> \"$(dirname \"$0\")/../runs\"; sleep 0.3; {}", response("Image", AUTH));
    let node = Node::new().with_provider(&script, "0s");
    let sources = node.sources();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let sources = sources.clone();
        asking.spawn(async move { operator(&sources, "a.r.io/x:v1").await });
    }
    assert!(asking.join_all().await.into_iter().all(|logins| logins.is_ok_and(|logins| logins.len() == 1)));
    assert_eq!(node.runs(), 1);
}

/// Whether a process is there, and no zombie.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.starts_with(" Z"))
}

#[tokio::test]
async fn a_program_that_hangs_is_ended_with_all_that_it_started() {
    let mut node =
        Node::new().with_provider("sleep 600 & echo $! > \"$(dirname \"$0\")/../pid\"; wait", "1h");
    node.timeout = Duration::from_secs(1);
    let begun = Instant::now();
    let error = operator(&node.sources(), "a.r.io/x:v1").await.unwrap_err();
    assert!(error.contains("provider") && error.contains("a.r.io") && error.contains("too long"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    let pid = std::fs::read_to_string(node.path("pid")).unwrap();
    for _ in 0..100 {
        if !lives(&pid) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!lives(&pid), "{pid}");
    assert_eq!(node.counted("timeout"), 1);
}

#[tokio::test]
async fn a_program_that_nobody_waits_for_any_more_is_ended() {
    let node = Node::new().with_provider("echo $$ > \"$(dirname \"$0\")/../pid\"; sleep 600", "1h");
    let sources = node.sources();
    let asking = tokio::spawn(async move { operator(&sources, "a.r.io/x:v1").await });
    let pid = loop {
        match std::fs::read_to_string(node.path("pid")) {
            Ok(pid) if pid.ends_with('\n') => break pid,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert!(lives(&pid));
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    for _ in 0..250 {
        if !lives(&pid) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!lives(&pid));
}

#[tokio::test]
async fn a_program_that_fails_is_an_error_that_repeats_nothing_and_keeps_its_right() {
    let identity = async |node: &Node| {
        let credential = ask(&node.sources(), &Caller::Operator, "a.r.io/x:v1").await;
        credential.identity().map(<[u8]>::to_vec)
    };
    for (script, label, why) in [
        ("echo hunter2; echo hunter2 >&2; exit 3", "exit", "it exited with 3"),
        ("echo hunter2; kill -9 $$", "exit", "a signal ended it"),
        ("head -c 1000000 /dev/zero", "output", "it wrote too much"),
        ("echo hunter2", "answer", "CredentialProviderResponse"),
    ] {
        let node = Node::new().with_provider(script, "1h");
        let sources = node.sources();
        let error = operator(&sources, "a.r.io/x:v1").await.unwrap_err();
        assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        assert!(operator(&sources, "a.r.io/x:v1").await.is_err(), "not asked as nobody");
        assert_eq!(node.counted(label), 1, "for a moment it is not run again");
        let failed = identity(&node).await;
        node.script("provider", &response("Image", AUTH));
        assert!(failed.is_some());
        assert_eq!(identity(&node).await, failed, "what it gave before is still for the same");
    }
    let node = Node::new().with_provider("exit 0", "1h");
    std::fs::remove_file(node.path("bin/provider")).unwrap();
    let error = operator(&node.sources(), "a.r.io/x:v1").await.unwrap_err();
    assert!(error.contains("no such program in"), "{error}");
    let problems = provider_problems(&node.path("providers.json"), &node.path("bin"));
    assert_eq!(problems.len(), 1);
}

#[tokio::test]
async fn docker_helpers_are_asked_by_name_and_for_their_registry() {
    let node = Node::new();
    let helper = r#"[ "$1" = get ] || exit 9
read -r server
case "$server" in
  a.r.io) echo '{"ServerURL":"a.r.io","Username":"u","Secret":"hunter2"}' ;;
  b.r.io) echo '{"ServerURL":"b.r.io","Username":"<token>","Secret":"t"}' ;;
  https://index.docker.io/v1/) echo '{"Username":"hub","Secret":"s"}' ;;
  broken.io) echo hunter2; exit 1 ;;
  *) echo 'credentials not found in native keychain'; exit 1 ;;
esac"#;
    node.script("docker-credential-some", helper);
    let node = node.with_docker_config(json!({
        "credsStore": "some", "credHelpers": {"c.r.io": "../../evil", "d.r.io": "missing"},
        "auths": {"a.r.io": {"username": "not", "password": "this"}, "e.r.io": {}},
    }));
    let sources = node.sources();
    assert_eq!(operator(&sources, "a.r.io/x:v1").await.unwrap(), ["u:hunter2"]);
    assert_eq!(operator(&sources, "b.r.io/x:v1").await.unwrap(), ["identity t"]);
    assert_eq!(operator(&sources, "busybox:1").await.unwrap(), ["hub:s"]);
    let nothing = ask(&sources, &Caller::Operator, "e.r.io/x:v1").await;
    assert_eq!((shown(&nothing), nothing.identity()), (Ok(Vec::new()), None), "as if it were not there");
    for (text, why) in [
        ("c.r.io/x:v1", "not that of a program"),
        ("d.r.io/x:v1", "in PATH"),
        ("broken.io/x:v1", "exited with 1"),
    ] {
        let error = operator(&sources, text).await.unwrap_err();
        assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn patterns_name_repositories_and_nothing_vague() {
    for text in
        ["r.io", "r.io:5000/team", "*.dkr.ecr.*.amazonaws.com", "https://r.io/v2/", "[::1]:5000", "localhost"]
    {
        assert_eq!(text.parse::<ImagePattern>().map(|pattern| pattern.to_string()).as_deref(), Ok(text));
    }
    for text in ["", "*", "**", "?", ".io", "r.io:", "u@r.io", "r .io", "r.io/*", "/team", "r..io"] {
        assert_eq!(text.parse::<ImagePattern>(), Err(InvalidPattern), "{text}");
    }
}
