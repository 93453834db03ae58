//! What the ConfigMaps of the namespace say, and what follows for the businesses. No I/O: the caller tells what it sees and carries out
//! what [`Actions`] asks for.
//!
//! | what is kept | what it guards against |
//! |---|---|
//! | a digest of each text | a list that is read again, or a changed annotation, that looks like a change of the business |
//! | the business of each ConfigMap | a text that can't be read any more, or names another business, that takes the former one away |
//! | who decides, and who else speaks of the business | a copy of a ConfigMap, by hand or by a backup, that takes the business over |
//! | ConfigMaps of other names until the end of a list | that copy, listed before the operator's own, for a moment |
//! | [`State::Missing`] | a deletion by hand, or a lost label, that cuts clients before the operator repairs it |
//! | [`State::Verifying`] | an API server that is away or restored from a backup, whose list lacks what exists |
//!
//! The text itself is not kept: the parsed configuration is in the catalog. Both maps have an entry for each ConfigMap that exists, or did
//! until lately; the cluster bounds them.

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::api::core::v1::ConfigMap;
use sha2::{Digest as _, Sha256};
use tokio::time::{Duration, Instant};
use wirepost_core::contract::{
    config_map::{self, CONFIG_KEY as KEY},
    edge_config::BusinessConfig,
};

use crate::catalog::Change;

/// Until the API server is asked again about a ConfigMap that is missing, where it did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct ConfigMapIndex {
    grace: Duration,
    config_maps: HashMap<String, Seen>,
    businesses: HashMap<String, Entry>,
    /// Names that the list under way has shown so far, and what waits for its end.
    listing: Option<Listing>,
}

#[derive(Debug, Default)]
struct Listing {
    names: HashSet<String>,
    /// ConfigMaps of other names come last, so that they are never taken for a moment.
    later: Vec<ConfigMap>,
}

/// A ConfigMap as seen last.
#[derive(Debug)]
struct Seen {
    /// `None`: to be read anew, whatever it holds.
    digest: Option<[u8; 32]>,
    removed: bool,
    /// The business that it last gave; it stays where the text can't be read any more.
    business: Option<String>,
}

/// Who decides over a business.
#[derive(Debug)]
struct Entry {
    by: String,
    state: State,
    /// Further ConfigMaps of the business.
    duplicates: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It runs.
    Live,
    /// Its ConfigMap says that it goes.
    Removed,
    /// Its ConfigMap is missing. The business is kept until then.
    Missing(Instant),
    /// The API server is asked about its ConfigMap.
    Verifying,
}

/// What to do now.
#[derive(Debug, Default)]
pub(super) struct Actions {
    /// For the catalog, in order.
    pub(super) changes: Vec<Change>,
    /// Questions to the API server.
    pub(super) lookups: Vec<Lookup>,
    /// For the log.
    pub(super) ignored: Vec<Ignored>,
}

/// A ConfigMap to read by itself; [`ConfigMapIndex::answered`] takes the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) config_map: String,
    pub(super) business: String,
}

/// A ConfigMap that is not followed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ignored {
    /// It can't be read; the business keeps its last good configuration, where there is one.
    Broken { config_map: String, business: Option<String>, reason: String },
    /// Another one decides over its business.
    Duplicate { config_map: String, business: String, decides: String },
}

impl ConfigMapIndex {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, config_maps: HashMap::new(), businesses: HashMap::new(), listing: None }
    }

    /// A complete list begins.
    pub(super) fn list_begins(&mut self) {
        self.listing = Some(Listing::default());
    }

    /// A ConfigMap of the list.
    pub(super) fn listed(&mut self, config_map: ConfigMap, now: Instant, out: &mut Actions) {
        let Some(listing) = &mut self.listing else { return self.apply(&config_map, now, out) };
        let name = config_map.metadata.name.clone().unwrap_or_default();
        let ours = config_map::business(&name).is_some();
        listing.names.insert(name);
        if ours {
            self.apply(&config_map, now, out);
        } else {
            listing.later.push(config_map);
        }
    }

    /// The list is complete: what it did not show is missing.
    pub(super) fn list_ends(&mut self, now: Instant, out: &mut Actions) {
        let Some(Listing { names, later }) = self.listing.take() else { return };
        for config_map in later {
            self.apply(&config_map, now, out);
        }
        let missing: Vec<_> = self.config_maps.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in missing {
            self.delete(&name, now, out);
        }
    }

    /// A ConfigMap is there, with this content.
    pub(super) fn apply(&mut self, config_map: &ConfigMap, now: Instant, out: &mut Actions) {
        let Some(name) = config_map.metadata.name.as_deref() else { return };
        let text = config_map.data.as_ref().and_then(|data| data.get(KEY)).map(String::as_str);
        let removed = config_map::is_removed(config_map.metadata.labels.as_ref());
        let digest = Some(Sha256::digest(text.unwrap_or_default()).into());
        let known = self.config_maps.get(name);
        if known.is_some_and(|seen| seen.digest == digest && seen.removed == removed) {
            return self.is_there(name);
        }
        let before = known.and_then(|seen| seen.business.clone());
        let parsed = parse(text);
        if removed {
            let named = || parsed.ok().map(|config| config.business_type);
            let business = before.or_else(named).or_else(|| config_map::business(name).map(str::to_owned));
            self.note(name, Seen { digest, removed, business: business.clone() });
            if let Some(business) = business {
                self.remove(name, &business, out);
            }
            return;
        }
        match parsed {
            Ok(config) => {
                self.not_awaited(name, out);
                let business = config.business_type.clone();
                if let Some(before) = before.filter(|before| *before != business) {
                    // As if it were deleted: perhaps another ConfigMap takes that business over.
                    self.misses(name, &before, now, out);
                }
                self.note(name, Seen { digest, removed, business: Some(business) });
                self.accept(name, config, out);
            }
            Err(reason) => {
                if before.is_none()
                    && let Some(business) = config_map::business(name)
                {
                    out.changes.push(Change::Unreadable(business.to_owned()));
                }
                self.note(name, Seen { digest, removed, business: before.clone() });
                self.is_there(name);
                out.ignored.push(Ignored::Broken { config_map: name.to_owned(), business: before, reason });
            }
        }
    }

    /// A ConfigMap was deleted, or is missing.
    pub(super) fn delete(&mut self, name: &str, now: Instant, out: &mut Actions) {
        match self.config_maps.get(name).map(|seen| seen.business.clone()) {
            Some(Some(business)) => self.misses(name, &business, now, out),
            Some(None) => {
                self.not_awaited(name, out);
                self.config_maps.remove(name);
            }
            None => {}
        }
    }

    /// A ConfigMap that never could be read can be read now, or is no more: the business that it is named after is not waited for any longer.
    fn not_awaited(&self, name: &str, out: &mut Actions) {
        if let Some(Seen { business: None, .. }) = self.config_maps.get(name)
            && let Some(business) = config_map::business(name)
            && !self.businesses.contains_key(business)
        {
            out.changes.push(Change::Remove(business.to_owned()));
        }
    }

    /// When the next business has been without its ConfigMap for long enough.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.businesses.values().filter_map(Entry::kept_until).min()
    }

    /// Before a business goes because its ConfigMap is missing, the API server is asked once more: while it is away, nothing is known.
    pub(super) fn due(&mut self, now: Instant, out: &mut Actions) {
        for (business, entry) in &mut self.businesses {
            if entry.kept_until().is_some_and(|until| until <= now) {
                entry.state = State::Verifying;
                out.lookups.push(Lookup { config_map: entry.by.clone(), business: business.clone() });
            }
        }
    }

    /// What the API server said; `Err` = nothing.
    pub(super) fn answered(
        &mut self,
        business: &str,
        answer: Result<Option<&ConfigMap>, ()>,
        now: Instant,
        out: &mut Actions,
    ) {
        if let Ok(Some(config_map)) = answer {
            self.apply(config_map, now, out);
        }
        // Where the watch was faster, the answer is old.
        let Some(entry) = self.businesses.get_mut(business).filter(|entry| entry.state == State::Verifying) else {
            return;
        };
        if answer.is_err() {
            entry.state = State::Missing(now + ASK_AGAIN);
        } else {
            // Missing, or it speaks of another business now.
            self.gone(business, out);
        }
    }

    fn note(&mut self, name: &str, seen: Seen) {
        self.config_maps.insert(name.to_owned(), seen);
    }

    /// It came back, or never went.
    fn is_there(&mut self, name: &str) {
        let Some(business) = self.config_maps.get(name).and_then(|seen| seen.business.as_ref()) else { return };
        if let Some(entry) = self.businesses.get_mut(business)
            && entry.by == name
            && entry.state != State::Removed
        {
            entry.state = State::Live;
        }
    }

    fn accept(&mut self, name: &str, config: BusinessConfig, out: &mut Actions) {
        let business = config.business_type.clone();
        let entry = self.businesses.entry(business.clone()).or_insert_with(|| Entry::new(name));
        if entry.by != name && !entry.yields_to(name, &business, out) {
            return;
        }
        entry.state = State::Live;
        out.changes.push(Change::Set(Box::new(config)));
    }

    fn remove(&mut self, name: &str, business: &str, out: &mut Actions) {
        let entry = self.businesses.entry(business.to_owned()).or_insert_with(|| Entry::new(name));
        if entry.by != name {
            if config_map::business(name) != Some(business) {
                entry.duplicates.remove(name);
                return;
            }
            entry.yields_to(name, business, out);
        }
        entry.state = State::Removed;
        out.changes.push(Change::Remove(business.to_owned()));
    }

    fn misses(&mut self, name: &str, business: &str, now: Instant, out: &mut Actions) {
        let Some(entry) = self.businesses.get_mut(business) else { return };
        if entry.by != name {
            entry.duplicates.remove(name);
            self.config_maps.remove(name);
            return;
        }
        match entry.state {
            State::Live => entry.state = State::Missing(now + self.grace),
            State::Removed => self.gone(business, out),
            State::Missing(_) | State::Verifying => {}
        }
    }

    /// The ConfigMap that decided is no more: another one takes its place, or the business goes.
    fn gone(&mut self, business: &str, out: &mut Actions) {
        let Some(entry) = self.businesses.get_mut(business) else { return };
        if self.config_maps.get(&entry.by).is_some_and(|seen| seen.business.as_deref() == Some(business)) {
            self.config_maps.remove(&entry.by);
        }
        let Some(next) = entry.duplicates.pop_first() else {
            self.businesses.remove(business);
            out.changes.push(Change::Remove(business.to_owned()));
            return;
        };
        entry.by.clone_from(&next);
        entry.state = State::Verifying;
        if let Some(seen) = self.config_maps.get_mut(&next) {
            seen.digest = None;
        }
        out.lookups.push(Lookup { config_map: next, business: business.to_owned() });
    }
}

impl Entry {
    fn new(by: &str) -> Self {
        Self { by: by.to_owned(), state: State::Live, duplicates: BTreeSet::new() }
    }

    /// Until when the business is kept though its ConfigMap is missing.
    fn kept_until(&self) -> Option<Instant> {
        match self.state {
            State::Missing(until) => Some(until),
            State::Live | State::Removed | State::Verifying => None,
        }
    }

    /// Lets the one with the proper name decide; whoever does not is reported and kept in mind.
    fn yields_to(&mut self, name: &str, business: &str, out: &mut Actions) -> bool {
        let yields = config_map::business(name) == Some(business);
        let loser = if yields { std::mem::replace(&mut self.by, name.to_owned()) } else { name.to_owned() };
        self.duplicates.remove(name);
        let (config_map, decides) = (loser.clone(), self.by.clone());
        self.duplicates.insert(loser);
        out.ignored.push(Ignored::Duplicate { config_map, business: business.to_owned(), decides });
        yields
    }
}

fn parse(text: Option<&str>) -> Result<BusinessConfig, String> {
    let text = text.ok_or_else(|| format!("it has no key {KEY}"))?;
    serde_json::from_str(text).map_err(|error| format!("{KEY}: {error}"))
}

#[cfg(test)]
mod tests;
