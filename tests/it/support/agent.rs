//! The built wasmferry: as the agent that Envoy talks to, and as a command.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use http::StatusCode;

use super::client::{self, Answer};
use super::envoy::Xds;
use super::process::{Process, Program};
use super::world::{User, World, envoy_group};
use super::{eventually, soon};

/// What the agent is configured with, apart from its own folders and addresses.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of its configuration and its logs. Agents of one world share socket, cache and all else that is
    /// not a port.
    pub name: String,
    /// The lines below `upstream:`.
    pub upstream: String,
    /// More keys of `cache`, beside its folder.
    pub cache: String,
    /// More top-level YAML.
    pub more: String,
    /// Besides HOME and RUST_LOG.
    pub env: Vec<(String, String)>,
}

impl Options {
    /// Relays to a control plane.
    pub fn upstream(control_plane: &Xds) -> Options {
        Options::new(match control_plane {
            Xds::Tcp(address) => format!("address: http://{address}"),
            Xds::Unix(path) => format!("address: unix:{}", path.display()),
        })
    }

    /// Serves a directory of plugins.
    pub fn directory(plugins: &Path) -> Options {
        Options::new(format!("directory: {}", plugins.display()))
    }

    fn new(upstream: String) -> Options {
        Options {
            name: "wasmferry".into(),
            upstream,
            cache: String::new(),
            more: String::new(),
            env: Vec::new(),
        }
    }

    /// With more keys of `cache`.
    pub fn with_cache(mut self, keys: &str) -> Options {
        self.cache = format!(", {keys}");
        self
    }

    pub fn with(mut self, yaml: &str) -> Options {
        self.more = format!("{}{yaml}\n", self.more);
        self
    }
}

/// An agent's folders and addresses, and the process while it runs.
pub struct Agent {
    program: Program,
    process: Option<Process>,
    /// For Envoy on this machine, by mode and group.
    pub socket: PathBuf,
    pub tcp: SocketAddr,
    pub health: SocketAddr,
    pub admin: PathBuf,
    pub cache: PathBuf,
    pub config: PathBuf,
}

impl Agent {
    /// Starts it and waits until it is ready.
    pub async fn start(world: &World, options: &Options) -> Agent {
        let mut agent = Agent::prepare(world, options);
        agent.resume(world).await;
        agent
    }

    /// Makes its folders and its configuration, and starts nothing.
    pub fn prepare(world: &World, options: &Options) -> Agent {
        let Options { name, upstream, cache: limits, more, env } = options;
        let mut agent = Agent::configured(world, name, |agent| {
            let Agent { socket, tcp, health, admin, cache, .. } = agent;
            format!(
                "version: 1\n\
             listeners:\n\
             \x20 - {{address: \"unix:{socket}\", mode: \"0660\", group: \"{group}\"}}\n\
             \x20 - {{address: \"{tcp}\"}}\n\
             upstream:\n\
             \x20 {upstream}\n\
             cache: {{directory: \"{cache}\"{limits}}}\n\
             health: {{listen: \"{health}\"}}\n\
             admin: {{listen: \"unix:{admin}\"}}\n\
             {more}",
                socket = socket.display(),
                group = envoy_group(),
                cache = cache.display(),
                admin = admin.display(),
            )
        });
        agent.program.env.extend(env.iter().cloned());
        agent
    }

    /// The same with a configuration that the test writes, given the agent's paths and addresses.
    pub fn configured(world: &World, name: &str, yaml: impl FnOnce(&Agent) -> String) -> Agent {
        let run = world.folder("run", User::Agent, 0o755);
        let config = world.path().join(format!("{name}.yaml"));
        let mut program = program(world, name, ["run".into(), "--config".into(), config.clone().into()]);
        program.env.push(("RUST_LOG".into(), "wasmferry=debug".into()));
        let agent = Agent {
            program,
            process: None,
            socket: run.join("xds.sock"),
            tcp: world.address(),
            health: world.address(),
            admin: run.join("admin.sock"),
            cache: world.folder("cache", User::Agent, 0o711),
            config,
        };
        world.write(&format!("{name}.yaml"), yaml(&agent), User::Agent, 0o600);
        agent
    }

    /// Has this command start it from now on, by what follows its own arguments.
    pub fn through(&mut self, command: &[&str]) {
        let mut words = command.iter().map(OsString::from);
        let path = words.next().expect("a command");
        let own = std::mem::replace(&mut self.program.path, path.into());
        let own = [own.into_os_string()].into_iter().chain(std::mem::take(&mut self.program.args));
        self.program.args = words.chain(own).collect();
    }

    /// Waits until it has written down what works for a node.
    pub async fn noted(&self) {
        let notes = self.cache.join("v1/content/notes");
        eventually("a note in the store", async || {
            let files = fs::read_dir(&notes).ok()?;
            (files.count() > 0).then_some(())
        })
        .await;
    }

    /// Starts it, the same as before, and waits until it is ready.
    pub async fn resume(&mut self, world: &World) {
        let mut process = self.program.start(world);
        let health = self.health;
        eventually("a ready agent", async || {
            process.assert_running();
            let answer = client::get(health, "/readyz").await.ok()?;
            (answer.status == StatusCode::OK).then_some(())
        })
        .await;
        self.process = Some(process);
    }

    /// Starts it and waits for it to give up: its exit code, and what it wrote to stderr.
    pub async fn refuses(&self, world: &World) -> (Option<i32>, String) {
        let output = soon("an agent that gives up", self.program.run(world)).await;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// # Panics
    /// Where it was killed or stopped.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a running agent")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process().kill();
        self.process = None;
    }

    /// SIGTERM; gives the exit code.
    pub async fn stop(&mut self) -> Option<i32> {
        let status = self.process().terminate().await;
        self.process = None;
        status.code()
    }

    /// All that it logged, before a restart too.
    pub fn log(&self) -> String {
        let process = self.process.as_ref().expect("a running agent");
        format!("{}{}", process.stdout(), process.stderr())
    }

    /// A page of the health listener.
    pub async fn health(&self, path: &str) -> Answer {
        client::get(self.health, path).await.expect("the health listener")
    }

    /// A page of the admin socket. Run as root, the tests may open it whatever its mode is.
    pub async fn admin(&self, path: &str) -> Answer {
        client::get(client::Peer::Unix(self.admin.clone()), path).await.expect("the admin socket")
    }

    /// What `/state` says.
    pub async fn state(&self) -> serde_json::Value {
        serde_json::from_slice(&self.admin("/state").await.body).expect("JSON from /state")
    }

    /// A sample of the metrics, named as it stands there, labels included; 0 where there is none yet.
    pub async fn metric(&self, sample: &str) -> u64 {
        let text = self.health("/metrics").await.text();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a whole number"))
    }

    /// Both ways by which an Envoy may connect.
    pub fn xds(&self) -> [Xds; 2] {
        [Xds::Unix(self.socket.clone()), Xds::Tcp(self.tcp)]
    }
}

/// Runs `wasmferry ARGS` as the agent's user, to its end.
pub async fn wasmferry(world: &World, args: impl IntoIterator<Item = impl Into<OsString>>) -> Output {
    command(world, args, &[]).await
}

/// The same with more in its environment.
pub async fn command(
    world: &World,
    args: impl IntoIterator<Item = impl Into<OsString>>,
    env: &[(&str, &str)],
) -> Output {
    let mut program = program(world, "command", args.into_iter().map(Into::into));
    program.env.extend(env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    program.run(world).await
}

/// The program under test: what cargo has built beside the tests, or what `WASMFERRY` names, such as the
/// static binary.
pub fn binary() -> PathBuf {
    std::env::var_os("WASMFERRY").unwrap_or_else(|| env!("CARGO_BIN_EXE_wasmferry").into()).into()
}

/// `wasmferry ARGS`, to be run as the agent's user.
pub fn program(world: &World, name: &str, args: impl IntoIterator<Item = OsString>) -> Program {
    let home = world.folder("home", User::Agent, 0o700);
    Program {
        name: name.into(),
        path: binary(),
        user: User::Agent,
        args: args.into_iter().collect(),
        env: vec![("HOME".into(), home.display().to_string())],
    }
}
