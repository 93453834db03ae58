//! When files may have changed.

use std::{path::PathBuf, time::Duration};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout, timeout_at},
};

/// An editor writes a file in several steps: looked at when nothing has happened for this long,
const QUIET: Duration = Duration::from_millis(100);
/// or at the latest after this long.
const LATEST: Duration = Duration::from_secs(1);
/// Network and container file systems tell nothing: looked at anyway.
const LOOK: Duration = Duration::from_secs(2);

/// Tells when to look. Whether anything has changed is decided by the content.
pub(super) struct Watch {
    events: mpsc::Receiver<()>,
    look: Interval,
    /// Ends the watch when dropped; `None` where the system has no watch to give.
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Watches folders, not files: editors put a new file in the place of the old one.
    pub(super) fn start(folders: &[PathBuf]) -> Self {
        // One waiting event says it all.
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
            tracing::warn!(%error, "cannot watch the files, they are looked at every {LOOK:?}");
        }
        let mut look = interval_at(Instant::now() + LOOK, LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { events, look, _watcher: watcher.ok() }
    }

    /// Waits for the next time to look. Cancel safe: what was cut short comes with the next tick.
    pub(super) async fn changed(&mut self) {
        let event = tokio::select! {
            event = self.events.recv() => event,
            _ = self.look.tick() => return,
        };
        if event.is_none() {
            // Without a watcher the channel is closed.
            self.look.tick().await;
            return;
        }
        let latest = Instant::now() + LATEST;
        let _ = timeout_at(latest, async { while timeout(QUIET, self.events.recv()).await.is_ok() {} }).await;
    }
}
