//! Signs of change from the kernel. They may be missed, doubled or late: a reason to look, nothing
//! more.

use std::sync::Arc;

use futures_util::FutureExt as _;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::reader::{Identity, Reader};

/// A watch on a folder. Dropping it ends it.
pub(super) struct Watch {
    signs: Arc<Notify>,
    /// The folder that was at the path when the watch was set; `None` where there was none.
    folder: Option<Identity>,
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// A watch on nothing: no sign ever comes.
    pub fn none() -> Self {
        Self { signs: Arc::default(), folder: None, _watcher: None }
    }

    /// A watch on the folder that is at the reader's path now, and whether it is a new one. Where
    /// watching fails, or `events` is false, no sign ever comes.
    pub fn renew(self, reader: &Reader, events: bool) -> (Self, bool) {
        // Looked at first: a folder that is replaced right after this is noticed the next time.
        let folder = reader.identity();
        if folder == self.folder {
            return (self, false);
        }
        let signs = Arc::default();
        let watcher = (events && folder.is_some()).then(|| set(reader, &signs)).and_then(|watcher| {
            let warn = |error: &notify::Error| {
                let directory = reader.directory().display();
                tracing::warn!(%directory, %error, "cannot watch the folder, so it is polled");
            };
            watcher.inspect_err(warn).ok()
        });
        (Self { signs, folder, _watcher: watcher }, true)
    }

    /// Waits for a sign.
    pub async fn changed(&self) {
        self.signs.notified().await;
    }

    /// Forgets the signs so far.
    pub fn forget(&self) {
        let _ = self.signs.notified().now_or_never();
    }
}

fn set(reader: &Reader, signs: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let signs = Arc::clone(signs);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error may be a full queue: something happened.
        if event.map_or(true, |event| is_sign(event.kind)) {
            signs.notify_one();
        }
    })?;
    watcher.watch(reader.directory(), RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Our own reading is an event too and must not lead to more of it. Of a file that is being
/// written only the end counts.
pub(super) fn is_sign(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_)) => false,
        _ => true,
    }
}
