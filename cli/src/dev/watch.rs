//! Tells when files may have changed.

use std::{path::PathBuf, time::Duration};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout, timeout_at},
};

/// Editors write files in several steps: they are read when nothing has happened for this long,
const QUIET: Duration = Duration::from_millis(100);
/// or at the latest after this long.
const LATEST: Duration = Duration::from_secs(1);
/// Network and container file systems report nothing: files are read at this interval anyway.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Tells when to read the files; their content decides whether anything has changed.
pub(super) struct Watch {
    events: mpsc::Receiver<()>,
    poll: Interval,
    /// Ends the watch when dropped; `None` if the system can't provide one.
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Watches folders, not files: editors replace files.
    pub(super) fn start(folders: &[PathBuf]) -> Self {
        // One pending event is enough.
        let (sender, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = sender.try_send(());
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            for folder in folders {
                watcher.watch(folder, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, "cannot watch the files; they are read every {POLL_INTERVAL:?} instead");
        }
        let mut poll = interval_at(Instant::now() + POLL_INTERVAL, POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { events, poll, _watcher: watcher.ok() }
    }

    /// Waits until the files should be read. Cancel safe: a lost event is made up for by the next tick.
    pub(super) async fn changed(&mut self) {
        let event = tokio::select! {
            event = self.events.recv() => event,
            _ = self.poll.tick() => return,
        };
        if event.is_none() {
            // Without a watcher the channel is closed.
            self.poll.tick().await;
            return;
        }
        let latest = Instant::now() + LATEST;
        let _ = timeout_at(latest, async { while timeout(QUIET, self.events.recv()).await.is_ok() {} }).await;
    }
}
