//! Follows a folder of plugin files and publishes what it holds as a [`Snapshot`].
//!
//! Whatever tells of a change, inotify or polling, only leads to the folder being read: nothing is
//! concluded from an event. Knows nothing of who is served.

mod reader;
mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as publish;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use super::error::Problem;
use super::snapshot::Snapshot;
use crate::clock::Clock;
use reader::Reader;
use watch::Watch;

/// How long to wait after a first sign of change, so that what belongs together is read together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How often to look for changes that nobody told of: network file systems, exhausted inotify
/// limits, secrets in sub-folders, the folder itself replaced.
const POLL: Duration = Duration::from_secs(2);

/// A folder of plugin files.
pub struct Folder {
    reader: Reader,
    snapshots: publish::Sender<Arc<Snapshot>>,
    clock: Clock,
    pace: Pace,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    debounce: Duration,
    poll: Duration,
    /// Whether to listen to the kernel at all.
    events: bool,
}

impl Folder {
    /// Reads the folder for the first time. One that cannot be read is a problem in the snapshot
    /// and no error: it may appear later.
    ///
    /// # Errors
    /// The system has no randomness to give, or no thread.
    pub async fn open(directory: PathBuf, clock: Clock) -> io::Result<Folder> {
        Self::open_paced(directory, clock, Pace { debounce: DEBOUNCE, poll: POLL, events: true }).await
    }

    async fn open_paced(directory: PathBuf, clock: Clock, pace: Pace) -> io::Result<Folder> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        let (reader, first) = blocking(Reader::new(directory, salt), |reader| {
            reader.read();
            reader.snapshot()
        })
        .await?;
        report(&[], &first);
        Ok(Folder { reader, snapshots: publish::Sender::new(Arc::new(first)), clock, pace })
    }

    /// The newest snapshot, and those to come while [`Folder::run`] runs.
    pub fn snapshots(&self) -> publish::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    /// Follows the folder until `stop`.
    ///
    /// # Errors
    /// Reading it panicked. The last snapshot stays, and no new one will come.
    pub async fn run(self, stop: CancellationToken) -> Result<(), JoinError> {
        stop.run_until_cancelled(self.follow()).await.unwrap_or(Ok(()))
    }

    async fn follow(self) -> Result<(), JoinError> {
        let Folder { mut reader, snapshots, clock, pace } = self;
        let mut watch = Watch::none();
        let mut unsettled = false;
        loop {
            let renewed;
            (reader, (watch, renewed)) =
                blocking(reader, move |reader| watch.renew(reader, pace.events)).await?;
            // What happened before a watch was set has no event.
            let told = renewed
                || tokio::select! {
                    () = watch.changed() => true,
                    () = clock.sleep(pace.poll) => false,
                };
            let changed;
            (reader, changed) = blocking(reader, |reader| reader.has_changed()).await?;
            if !(told || unsettled || changed) {
                continue;
            }
            clock.sleep(pace.debounce).await;
            watch.forget();
            let read;
            (reader, read) = blocking(reader, |reader| reader.read().then(|| reader.snapshot())).await?;
            // Two writes within one tick of the file system's clock look like one, so after a
            // change the files are read again at the next poll.
            unsettled = read.is_some();
            if let Some(snapshot) = read {
                report(snapshots.borrow().problems(), &snapshot);
                snapshots.send_replace(Arc::new(snapshot));
            }
        }
    }
}

/// Reads the folder where that may block.
async fn blocking<T: Send + 'static>(
    mut reader: Reader,
    work: impl FnOnce(&mut Reader) -> T + Send + 'static,
) -> Result<(Reader, T), JoinError> {
    tokio::task::spawn_blocking(move || {
        let result = work(&mut reader);
        (reader, result)
    })
    .await
}

fn report(known: &[Problem], snapshot: &Snapshot) {
    for problem in snapshot.problems().iter().filter(|problem| !known.contains(problem)) {
        tracing::warn!("{problem}");
    }
    let (plugins, problems) = (snapshot.plugins().count(), snapshot.problems().len());
    tracing::info!(plugins, problems, generation = snapshot.generation(), "plugin files were read");
}

#[cfg(test)]
mod tests;
