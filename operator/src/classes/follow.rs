//! The watch of classes.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{Stream, StreamExt, pin_mut};
use kube::runtime::{WatchStreamExt, watcher};
use wirepost_core::class::class_of;
use wirepost_runtime::readiness::Pending;

use super::{Classes, Entry, Listing, StoredClass};
use crate::{
    api_client,
    conditions::summarize,
    events::Events,
    fresh::{Fresh, Listed},
    leader::Leadership,
    triggers::Triggers,
};

/// Lists that must fail before the classes count as unknown; one that is refused for a missing right counts immediately.
const ATTEMPTS: u32 = 3;

impl Classes {
    /// Follows the classes by this watch, without an end. `pending`: dropped once all are listed.
    pub async fn follow(
        self: Arc<Self>,
        watch: impl Stream<Item = watcher::Result<watcher::Event<StoredClass>>>,
        triggers: Arc<Triggers>,
        fresh: Fresh,
        events: Events,
        mut leadership: Leadership,
        pending: Pending,
    ) {
        let mut pending = Some(pending);
        let watched = watch.backoff(api_client::watch_backoff());
        pin_mut!(watched);
        let (mut failures, mut told, mut unreadable) = (0, None, BTreeMap::new());
        loop {
            let leads = leadership.is_leader();
            if leads {
                self.tell_several(&mut told, &events).await;
                self.tell_unreadable(&mut unreadable, &events).await;
            }
            let event = tokio::select! {
                event = watched.next() => event,
                () = leadership.acquired(), if !leads => continue,
            };
            let Some(event) = event else { return };
            let found = match event {
                Ok(event) => {
                    failures = 0;
                    vec![event]
                }
                // The API server does not know the kind, so there are no classes.
                Err(error) if is_unknown_kind(&error) => vec![watcher::Event::Init, watcher::Event::InitDone],
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!(%error, "the watch of classes is interrupted; trying again");
                    }
                    if let Some(changed) = self.failed(&error, failures) {
                        // What runs is maintained; nothing new is accepted.
                        fresh.listed(Listed::Classes);
                        if changed {
                            triggers.trigger_all();
                        }
                    }
                    continue;
                }
            };
            for event in found {
                let known = *self.listing.borrow() == Listing::Listed;
                let (first, complete) = (pending.is_some() || !known, matches!(event, watcher::Event::InitDone));
                // Lists without changes come every few minutes, and constantly while the kind is missing.
                let before = (complete && !first).then(|| self.summary());
                let changed = self.take(event) && before.is_none_or(|before| before != self.summary());
                if complete {
                    fresh.listed(Listed::Classes);
                    pending.take();
                }
                if changed {
                    triggers.trigger_all();
                }
            }
        }
    }

    /// They could not be listed, this many times in a row. Whether that is news; `None`: another attempt comes before it counts.
    pub(super) fn failed(&self, error: &watcher::Error, attempts: u32) -> Option<bool> {
        let missing = code(error) == Some(403);
        // Only a failed list is followed by a new list; a watch may continue where it was.
        if !matches!(error, watcher::Error::InitialListFailed(_)) || !missing && attempts < ATTEMPTS {
            return None;
        }
        let right = if missing { "; its ClusterRole lacks the right to list and watch them" } else { "" };
        let why = format!("the operator can't list the classes{right}: {error}");
        let failed = Listing::Failed(why);
        Some(self.listing.send_replace(failed.clone()) != failed)
    }

    /// Default classes, if there are several: the one that counts, and all of them.
    pub(super) fn several_defaults(&self) -> Option<(String, Vec<String>)> {
        let known = self.lock();
        let all: Vec<String> =
            known.classes.iter().filter(|(_, entry)| entry.default).map(|(name, _)| name.clone()).collect();
        let counts = class_of(None, known.classes.values(), |entry| (&entry.metadata, entry.default)).ok()??;
        (all.len() > 1).then(|| (counts.metadata.name.clone().unwrap_or_default(), all))
    }

    /// Reports once that several classes are the default.
    async fn tell_several(&self, told: &mut Option<(String, Vec<String>)>, events: &Events) {
        let several = self.several_defaults();
        if *told == several {
            return;
        }
        told.clone_from(&several);
        let Some((counts, all)) = several else { return };
        let note = format!(
            "{} classes are the default: {}. The oldest one, {counts}, is used: set `default: false` in the others",
            all.len(),
            summarize(&all)
        );
        tracing::warn!("{note}");
        let reference = self.lock().classes.get(&counts).map(|entry| entry.reference.clone());
        if let Some(reference) = reference {
            events.several_defaults(&reference, &note).await;
        }
    }

    /// Reports each class that can't be read, once for each reason.
    async fn tell_unreadable(&self, told: &mut BTreeMap<String, String>, events: &Events) {
        let unreadable: Vec<_> = {
            let known = self.lock();
            let reason = |(name, entry): (&String, &Entry)| {
                Some((name.clone(), entry.class.as_ref().err()?.clone(), entry.reference.clone()))
            };
            known.classes.iter().filter_map(reason).collect()
        };
        for (name, problems, reference) in &unreadable {
            if told.get(name) != Some(problems) {
                let note = format!(
                    "class {name} can't be read, so nothing new is accepted under it; what was accepted continues: {problems}"
                );
                events.unreadable_class(reference, &note).await;
            }
        }
        *told = unreadable.into_iter().map(|(name, problems, _)| (name, problems)).collect();
    }

    /// Which versions of which classes are known.
    fn summary(&self) -> Vec<(String, Option<String>)> {
        let known = self.lock();
        known.classes.iter().map(|(name, entry)| (name.clone(), entry.metadata.resource_version.clone())).collect()
    }
}

/// 404 for a list: the API server does not know the kind.
fn is_unknown_kind(error: &watcher::Error) -> bool {
    code(error) == Some(404)
}

/// The API server's error for a list, or for the start of a watch.
fn code(error: &watcher::Error) -> Option<u16> {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) = error else {
        return None;
    };
    if let kube::Error::Api(status) = cause { Some(status.code) } else { None }
}
