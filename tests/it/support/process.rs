//! A child process: as its user, with its output in a file, and gone when it is dropped.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::world::{User, World};
use super::{eventually, soon};

/// What to start.
pub struct Program {
    /// For the names of log files and for messages.
    pub name: String,
    pub path: PathBuf,
    pub user: User,
    pub args: Vec<OsString>,
    /// The whole environment, besides PATH.
    pub env: Vec<(String, String)>,
}

impl Program {
    /// The command that becomes the program: setpriv changes user and groups (which std cannot do
    /// without unsafe code), and has the kernel end the program with the tests.
    fn command(&self, world: &World) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some((uid, gid, groups)) = self.user.ids() {
            command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}"));
            command.arg(format!("--groups={groups}")).args(["--inh-caps=-all", "--no-new-privs"]);
        }
        command.arg("--").arg(world.executable(&self.path)).args(&self.args);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.current_dir(world.path()).stdin(Stdio::null());
        command
    }

    /// Runs it to its end and gives what it printed.
    pub async fn run(&self, world: &World) -> Output {
        let mut command = tokio::process::Command::from(self.command(world));
        let output = command.kill_on_drop(true).output();
        soon(&format!("the end of {}", self.name), output).await.expect("setpriv of util-linux")
    }

    /// Starts it. Call this from the test's own thread: the program ends with the thread that started it.
    pub fn start(&self, world: &World) -> Process {
        let folder = world.folder("logs", User::Tests, 0o755);
        // A program that is started again adds to its files.
        let open = |path: &Path| File::options().create(true).append(true).open(path).expect("a log file");
        let stdout = folder.join(format!("{}.out", self.name));
        let stderr = folder.join(format!("{}.err", self.name));
        let child = self
            .command(world)
            .stdout(open(&stdout))
            .stderr(open(&stderr))
            .spawn()
            .expect("setpriv of util-linux");
        Process { name: self.name.clone(), child, stdout, stderr }
    }
}

/// A running program. Killed and reaped on drop; a failing test shows the end of its output.
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that this program, and earlier ones of its name in this world, wrote to stdout.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// The same of stderr.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// How it ended, where it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// # Panics
    /// Where the program has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended ({status}):\n{}", self.name, self.stderr());
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, async || self.ended()).await
    }

    /// SIGTERM, and waits for its end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.end().await
    }

    /// Makes what is resident now the peak, as far as we may: what keeps its memory to itself belongs to
    /// root. Otherwise the peak so far stays.
    pub fn reset_peak(&self) {
        let _ = std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5");
    }

    /// A field of `/proc/PID/status` in bytes, such as VmRSS or VmHWM.
    pub fn memory(&self, field: &str) -> u64 {
        let status = read(Path::new(&format!("/proc/{}/status", self.pid())));
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kibibytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kibibytes.unwrap_or_else(|| panic!("{} has no {field}:\n{status}", self.name)) * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.ended();
        self.kill();
        if std::thread::panicking() {
            match ended {
                Some(status) if status.signal() != Some(9) => {
                    eprintln!("== {} had ended: {status}", self.name)
                }
                _ => {}
            }
            for (stream, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
                let lines: Vec<&str> = text.lines().collect();
                let shown = &lines[lines.len().saturating_sub(60)..];
                eprintln!("== {} {stream}, last {} of {} lines", self.name, shown.len(), lines.len());
                shown.iter().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
