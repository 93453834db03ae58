//! The ConfigMaps of the namespace, and what they mean for the businesses. No I/O: the caller reports what it sees and
//! performs the [`Actions`].
//!
//! | what is kept | what it guards against |
//! |---|---|
//! | a digest of each text | a list that is read again, or a changed annotation, that looks like a change |
//! | the business of each ConfigMap | an unreadable text, or one that names another business, that removes the old one |
//! | the ConfigMap in use, and its duplicates | a copy of a ConfigMap that takes the business over |
//! | ConfigMaps with other names until the end of a list | that copy, listed before the operator's own, for a moment |
//! | [`State::Missing`] | a deletion by hand, or a lost label, that disconnects clients before the operator repairs it |
//! | [`State::Verifying`] | an API server that is unreachable or restored from a backup, whose list lacks what exists |
//!
//! The text itself is not kept: the catalog has the parsed configuration. Both maps have an entry for each ConfigMap
//! that exists or existed recently; the cluster bounds their number.

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::api::core::v1::ConfigMap;
use sha2::{Digest as _, Sha256};
use tokio::time::{Duration, Instant};
use wirepost_core::contract::{
    config_map::{self, CONFIG_KEY as KEY},
    edge_config::BusinessConfig,
};

use crate::catalog::Change;

/// Delay until the API server is asked again about a missing ConfigMap, if it did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct ConfigMapIndex {
    grace: Duration,
    config_maps: HashMap<String, Seen>,
    businesses: HashMap<String, Entry>,
    /// The names that the current list has shown so far, and what waits for its end.
    listing: Option<Listing>,
}

#[derive(Debug, Default)]
struct Listing {
    names: HashSet<String>,
    /// ConfigMaps with other names come last, so that they are never used for a moment.
    later: Vec<ConfigMap>,
}

/// A ConfigMap as last seen.
#[derive(Debug)]
struct Seen {
    /// `None`: to be read again, whatever its content.
    digest: Option<[u8; 32]>,
    removed: bool,
    /// The business that it last declared; it stays if the text can no longer be read.
    business: Option<String>,
}

/// The ConfigMap that is used for a business.
#[derive(Debug)]
struct Entry {
    by: String,
    state: State,
    /// Other ConfigMaps of the business.
    duplicates: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is served.
    Live,
    /// Its ConfigMap is marked as removed.
    Removed,
    /// Its ConfigMap is missing; the business is kept until this time.
    Missing(Instant),
    /// The API server is asked about its ConfigMap.
    Verifying,
}

/// What the caller must do.
#[derive(Debug, Default)]
pub(super) struct Actions {
    /// For the catalog, in order.
    pub(super) changes: Vec<Change>,
    /// ConfigMaps to read from the API server.
    pub(super) lookups: Vec<Lookup>,
    /// For the log.
    pub(super) ignored: Vec<Ignored>,
}

/// A ConfigMap to read on its own; [`ConfigMapIndex::answered`] takes the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) config_map: String,
    pub(super) business: String,
}

/// A ConfigMap that is ignored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ignored {
    /// It can't be read; the business keeps its last accepted configuration, if there is one.
    Broken { config_map: String, business: Option<String>, reason: String },
    /// Another one is used for its business.
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

    /// A ConfigMap exists, with this content.
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
                    // As if it were deleted: perhaps another ConfigMap declares that business.
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

    /// A ConfigMap that could never be read can be read now, or was deleted: the business in its name is no longer
    /// expected.
    fn not_awaited(&self, name: &str, out: &mut Actions) {
        if let Some(Seen { business: None, .. }) = self.config_maps.get(name)
            && let Some(business) = config_map::business(name)
            && !self.businesses.contains_key(business)
        {
            out.changes.push(Change::Remove(business.to_owned()));
        }
    }

    /// When the grace of the next business ends.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.businesses.values().filter_map(Entry::kept_until).min()
    }

    /// Before a business is removed because its ConfigMap is missing, the API server is asked once more: while it is
    /// unreachable, nothing is known.
    pub(super) fn due(&mut self, now: Instant, out: &mut Actions) {
        for (business, entry) in &mut self.businesses {
            if entry.kept_until().is_some_and(|until| until <= now) {
                entry.state = State::Verifying;
                out.lookups.push(Lookup { config_map: entry.by.clone(), business: business.clone() });
            }
        }
    }

    /// The API server's answer; `Err` = none.
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
        // If the watch was faster, the answer is outdated.
        let Some(entry) = self.businesses.get_mut(business).filter(|entry| entry.state == State::Verifying) else {
            return;
        };
        if answer.is_err() {
            entry.state = State::Missing(now + ASK_AGAIN);
        } else {
            // Missing, or it declares another business now.
            self.gone(business, out);
        }
    }

    fn note(&mut self, name: &str, seen: Seen) {
        self.config_maps.insert(name.to_owned(), seen);
    }

    /// It is there again, or was never missing.
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

    /// The ConfigMap that was used was deleted: another one replaces it, or the business is removed.
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

    /// Until when the business is kept although its ConfigMap is missing.
    fn kept_until(&self) -> Option<Instant> {
        match self.state {
            State::Missing(until) => Some(until),
            State::Live | State::Removed | State::Verifying => None,
        }
    }

    /// Uses the one with the proper name; the other is reported and remembered.
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
