//! Notices that the configuration was changed, or that SIGHUP asks for it again, and reads it.
//!
//! It polls the file's content: that needs no events of the file system, which a network mount or an
//! exhausted inotify does not give, and sees a ConfigMap's swapped link like any other change.

use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::load::{self, Loader};
use super::{Config, ConfigError};
use crate::clock::Clock;

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// A watched configuration file.
#[derive(Debug)]
pub struct Watch {
    loader: Loader,
    clock: Clock,
    hangup: Signal,
    seen: Seen,
    due: Instant,
    /// SIGHUP came and is not answered yet.
    asked: bool,
}

/// What was in the file when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Content([u8; 32]),
    Unreadable,
}

impl Watch {
    pub(super) fn start(loader: Loader, clock: Clock) -> Result<(Config, Self), ConfigError> {
        // First, so that no SIGHUP is missed or deadly once the file was read.
        let hangup = signal(SignalKind::hangup())
            .map_err(|e| ConfigError::Setting { name: "SIGHUP", why: format!("cannot be handled: {e}") })?;
        let (seen, config) = look(&loader);
        let due = clock.now() + PERIOD;
        Ok((config?, Self { loader, clock, hangup, seen, due, asked: false }))
    }

    /// Waits until the file has other content than last time, or SIGHUP comes, and gives what is in
    /// it now: always an agent's configuration. An error is given once, not again while the file stays
    /// as it is. Nothing is lost when this is dropped before it ends.
    pub async fn next(&mut self) -> Result<Config, ConfigError> {
        loop {
            if !self.asked {
                tokio::select! {
                    // `None`: no more signals can come, so the clock alone decides.
                    Some(()) = self.hangup.recv() => self.asked = true,
                    () = self.clock.sleep_until(self.due) => {}
                }
            }
            let loader = self.loader.clone();
            let looked = tokio::task::spawn_blocking(move || look(&loader)).await;
            self.due = self.clock.now() + PERIOD;
            // Only a runtime that is shutting down leaves blocking work undone.
            let Ok((seen, config)) = looked else {
                self.asked = false;
                continue;
            };
            let changed = std::mem::replace(&mut self.seen, seen) != seen;
            if std::mem::take(&mut self.asked) || changed {
                return config;
            }
        }
    }
}

/// Reads the file, and tells its content apart from any other.
fn look(loader: &Loader) -> (Seen, Result<Config, ConfigError>) {
    let text = match loader.required_file() {
        Ok(file) => load::read(file).map(|text| (file, text)),
        Err(error) => Err(error),
    };
    match text {
        Ok((file, text)) => (Seen::Content(Sha256::digest(&text).into()), loader.parse_agent(file, &text)),
        Err(error) => (Seen::Unreadable, Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::SystemTime;

    use tokio::sync::Mutex;

    use super::*;
    use crate::clock::ManualClock;
    use crate::config::{Environment, Overrides};

    /// Waits for the next configuration while the clock runs, without waiting in real time.
    async fn next(watch: &mut Watch, clock: &ManualClock) -> Result<Config, ConfigError> {
        let ticking = async {
            loop {
                clock.advance(Duration::from_secs(1));
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            config = watch.next() => config,
            () = ticking => unreachable!(),
        }
    }

    /// A signal goes to the whole process: one test of the watch at a time.
    static ALONE: Mutex<()> = Mutex::const_new(());

    fn manual() -> ManualClock {
        ManualClock::new(SystemTime::UNIX_EPOCH)
    }

    fn with_queue(mebibytes: u32) -> String {
        format!(
            "version: 1\nlisteners: [{{address: unix:/a}}]\nupstream: {{directory: /p}}\n\
             relay: {{queue_bytes: {mebibytes}MiB}}\n"
        )
    }

    fn queue(config: &Config) -> u64 {
        config.relay.queue_bytes >> 20
    }

    /// A watch of a file in which `queue_bytes` is one mebibyte, and that configuration.
    fn watch(file: PathBuf, clock: &ManualClock) -> (Config, Watch) {
        std::fs::write(&file, with_queue(1)).unwrap();
        let environment = Environment { cache_directory: Some("/c".into()), ..Environment::default() };
        let loader = Loader::new(Some(file), &environment, Overrides::default());
        loader.watch(Clock::Manual(clock.clone())).unwrap()
    }

    #[tokio::test]
    async fn a_changed_file_is_given_and_a_broken_one_once() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        let clock = manual();
        let (config, mut watch) = watch(file.clone(), &clock);
        assert_eq!(queue(&config), 1);

        std::fs::write(&file, with_queue(2)).unwrap();
        assert_eq!(queue(&next(&mut watch, &clock).await.unwrap()), 2);
        std::fs::write(&file, "version: 1\n").unwrap();
        assert_eq!(next(&mut watch, &clock).await.unwrap_err().label(), "not_an_agent");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(next(&mut watch, &clock).await.unwrap_err().label(), "unreadable");
        // Neither error comes again: what comes next is the new file.
        let writer = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            // At once: the file is being read at the same time.
            std::fs::write(folder.path().join("new"), with_queue(3)).unwrap();
            std::fs::rename(folder.path().join("new"), &file).unwrap();
        };
        let (config, ()) = tokio::join!(next(&mut watch, &clock), writer);
        assert_eq!(queue(&config.unwrap()), 3);
    }

    #[tokio::test]
    async fn the_swapped_link_of_a_config_map_is_a_change() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, size) in [("one", 1), ("two", 2)] {
            std::fs::create_dir(path(name)).unwrap();
            std::fs::write(path(name).join("c.yaml"), with_queue(size)).unwrap();
        }
        std::os::unix::fs::symlink("one", path("..data")).unwrap();
        std::os::unix::fs::symlink("..data/c.yaml", path("c.yaml")).unwrap();
        let clock = manual();
        let (config, mut watch) = watch(path("c.yaml"), &clock);
        assert_eq!(queue(&config), 1);
        std::os::unix::fs::symlink("two", path("..data_tmp")).unwrap();
        std::fs::rename(path("..data_tmp"), path("..data")).unwrap();
        assert_eq!(queue(&next(&mut watch, &clock).await.unwrap()), 2);
    }

    #[tokio::test]
    async fn sighup_gives_the_file_again_though_it_is_the_same_and_no_time_passes() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        let (config, mut watch) = watch(file, &manual());
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
        assert_eq!(watch.next().await.unwrap(), config);
    }
}
