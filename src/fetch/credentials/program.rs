//! Runs a program that gives a credential: in a process group of its own that does not outlive the run, with
//! nothing in its environment but what is named, and for so long and so many bytes. What it writes is a
//! secret; what it complains of, nobody hears.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::secret::Secret;

/// What a program may write, in bytes.
const MAX_OUTPUT: usize = 64 * 1024;
/// How often it is looked whether a program that has closed its output has ended too, at first and at most.
const GLANCE: Duration = Duration::from_millis(1);
const MAX_GLANCE: Duration = Duration::from_millis(64);

/// What is to be run.
pub(super) struct Run {
    pub(super) file: PathBuf,
    pub(super) args: Vec<String>,
    /// All of it.
    pub(super) env: Vec<(String, Secret)>,
    pub(super) input: Zeroizing<Vec<u8>>,
}

/// How it ended.
pub(super) struct Ended {
    pub(super) output: Zeroizing<Vec<u8>>,
    /// None where a signal ended it.
    pub(super) code: Option<i32>,
}

/// Why there is no output to read.
#[derive(Debug)]
pub(super) enum Fault {
    Start(std::io::Error),
    Timeout,
    Output,
}

/// Runs it to its end, until `deadline` at most. Nothing of its group is left afterwards, nor where this
/// future is dropped.
pub(super) async fn run(run: Run, deadline: Instant, clock: &Clock) -> Result<Ended, Fault> {
    let mut command = Command::new(&run.file);
    command.args(&run.args).env_clear().current_dir("/").process_group(0).kill_on_drop(true);
    command.envs(run.env.iter().map(|(name, value)| (name, value.expose())));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(Fault::Start)?;
    // After the child, so that it goes first.
    let mut group = Group::of(&child);
    let output = clock.timeout_at(deadline, converse(&mut child, &run.input, clock)).await;
    // The leader runs, or has ended and was not waited for: its number is nobody else's yet.
    group.kill();
    let status = child.wait().await.map_err(Fault::Start)?;
    let output = output.map_err(|_| Fault::Timeout)??;
    Ok(Ended { output, code: status.code() })
}

/// Writes the input and reads the output, until the program has ended.
async fn converse(child: &mut Child, input: &[u8], clock: &Clock) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let (stdin, stdout, pid) = (child.stdin.take(), child.stdout.take(), pid(child));
    let write = async move {
        if let Some(mut stdin) = stdin {
            // A program that does not want to know closes its end.
            let _ = stdin.write_all(input).await;
        }
    };
    let read = async move {
        // Of one size from the start: a buffer that grows leaves copies behind.
        let mut output = Zeroizing::new(Vec::with_capacity(MAX_OUTPUT + 1024));
        if let Some(stdout) = stdout {
            let read = stdout.take(MAX_OUTPUT as u64 + 1).read_to_end(&mut output).await;
            read.map_err(Fault::Start)?;
        }
        match output.len() > MAX_OUTPUT {
            true => Err(Fault::Output),
            false => Ok(output),
        }
    };
    let (_, output) = tokio::join!(write, read);
    let output = output?;
    let mut glance = GLANCE;
    while let Some(pid) = pid {
        // Without taking note of it, so that its number stays its own until its group is gone.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(pid), options) {
            Ok(None) => clock.sleep(glance).await,
            Ok(Some(_)) | Err(_) => break,
        }
        glance = (glance * 2).min(MAX_GLANCE);
    }
    Ok(output)
}

fn pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| Pid::from_raw(id.cast_signed()))
}

/// The process group of a child that was not waited for.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(pid(child))
    }

    fn kill(&mut self) {
        if let Some(leader) = self.0.take() {
            // Where nothing of it is left, there is nothing to do.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
