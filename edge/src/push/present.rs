//! Who is here: the connections of one business on this edge. A few at a time are taken under the hub's lock, and looked
//! at without it.

use std::{collections::HashSet, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::task::yield_now;

use super::{hub::Hub, mailbox::Mailbox};

/// Identities, or connections, that are taken under one lock; those of the last identity come in addition.
const STEP: usize = 512;

/// Which connections are meant: those that fit all three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    /// Of one of these identities; empty: of any.
    pub unique_ids: Vec<String>,
    /// With one of these tags; empty: with any or none.
    pub tags: Vec<String>,
    /// Of one of these types; empty: of any.
    pub client_types: Vec<String>,
}

impl Filter {
    /// Whether it takes every connection.
    pub fn is_everyone(&self) -> bool {
        self.unique_ids.is_empty() && self.tags.is_empty() && self.client_types.is_empty()
    }

    fn takes_type(&self, mailbox: &Mailbox) -> bool {
        self.client_types.is_empty() || self.client_types.iter().any(|one| **one == *mailbox.client_type)
    }
}

/// A connection that fits.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    /// The connection.
    pub mailbox: &'a Mailbox,
    /// Its tags.
    pub tags: &'a [String],
    /// Which of [`Filter::unique_ids`] it belongs to; 0 where none is named.
    pub identity: usize,
}

/// A connection with the tags that it had when it was taken.
struct Taken {
    mailbox: Arc<Mailbox>,
    tags: Option<Arc<[String]>>,
    identity: usize,
}

impl Taken {
    fn tags(&self) -> &[String] {
        self.tags.as_deref().unwrap_or_default()
    }

    fn has_one_of(&self, tags: &HashSet<&str>) -> bool {
        self.tags().iter().any(|tag| tags.contains(tag.as_str()))
    }

    fn present(&self) -> Present<'_> {
        Present { mailbox: &self.mailbox, tags: self.tags(), identity: self.identity }
    }
}

impl Hub {
    /// Calls `visit` once for each connection that fits. One that comes or goes meanwhile is seen or not.
    pub async fn visit_present(&self, filter: &Filter, mut visit: impl FnMut(Present<'_>) + Send) {
        let wanted: HashSet<&str> = filter.tags.iter().map(String::as_str).collect();
        if !filter.unique_ids.is_empty() {
            let mut next = 0;
            while next < filter.unique_ids.len() {
                let (taken, after) = self.take_identities(&filter.unique_ids, next);
                let fits =
                    |one: &&Taken| (wanted.is_empty() || one.has_one_of(&wanted)) && filter.takes_type(&one.mailbox);
                taken.iter().filter(fits).for_each(|one| visit(one.present()));
                next = after;
                yield_now().await;
            }
            return;
        }
        // Without a tag: everyone, in one walk.
        let tags = filter.tags.iter().map(|tag| Some(tag.as_str()));
        // A connection may have several of the tags, and change them between two walks.
        let (several, mut visited) = (filter.tags.len() > 1, HashSet::new());
        for tag in tags.chain(filter.tags.is_empty().then_some(None)) {
            let mut after = None;
            loop {
                let taken = self.take_after(after, tag);
                let mut fits =
                    |one: &&Taken| filter.takes_type(&one.mailbox) && (!several || visited.insert(one.mailbox.number));
                taken.iter().filter(|one| fits(one)).for_each(|one| visit(one.present()));
                after = taken.last().filter(|_| taken.len() == STEP).map(|last| last.mailbox.number);
                if after.is_none() {
                    break;
                }
                yield_now().await;
            }
        }
    }

    /// The connections of some identities, from one on; and which identity is the next.
    fn take_identities(&self, ids: &[String], from: usize) -> (Vec<Taken>, usize) {
        let (state, mut taken, mut next) = (self.lock(), Vec::new(), from);
        for id in ids[from..].iter().take(STEP) {
            if taken.len() >= STEP {
                break;
            }
            taken.extend(state.registry.of_identity(id).map(|mailbox| Taken {
                mailbox: Arc::clone(mailbox),
                tags: state.registry.tags_of(mailbox),
                identity: next,
            }));
            next += 1;
        }
        (taken, next)
    }

    /// The next connections, of those with this tag if one is given.
    fn take_after(&self, after: Option<u64>, tag: Option<&str>) -> Vec<Taken> {
        let state = self.lock();
        let take = |mailbox: &Arc<Mailbox>| Taken {
            mailbox: Arc::clone(mailbox),
            tags: state.registry.tags_of(mailbox),
            identity: 0,
        };
        state.registry.after(after, tag).take(STEP).map(take).collect()
    }

    /// The oldest connections that are not leaving yet are asked to leave, at most so many. How many there were.
    pub fn let_go(&self, count: usize) -> usize {
        let leaving = &self.context.metrics.leaving;
        // Under the lock: what is still registered has not looked yet whether it was asked.
        let state = self.lock();
        let staying = state.registry.iter().filter(|mailbox| !mailbox.outbound.is_leaving());
        let asked = staying.take(count).filter(|mailbox| mailbox.outbound.let_go()).count();
        leaving.inc_by(asked as i64);
        asked
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use prometheus_client::metrics::gauge::Gauge;
    use serde_json::json;
    use wirepost_core::compile::compile_one;

    use super::*;
    use crate::{
        broker::memory::MemoryBroker,
        business::Business,
        config::settings::Settings,
        metrics::Metrics,
        push::{
            context::HubContext,
            mailbox::outbound::{Bounds, Outbound},
        },
    };

    const CONNECTIONS: usize = 3 * STEP + 7;

    fn hub() -> Arc<Hub> {
        let route = json!({"messageType": "n", "sendType": "ServerToClient", "to": ["app"]});
        let declared = json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
            "metadata": {"name": "payments", "namespace": "shop"},
            "spec": {"clientTypes": ["app", "h5"], "routes": [route], "limits": {"connectionsPerId": 10}},
        });
        let config = compile_one(&serde_json::from_value(declared).unwrap()).unwrap().config;
        let metrics = Arc::new(Metrics::default());
        let context = HubContext::new(Arc::new(MemoryBroker::new()), metrics, Settings::default());
        Arc::new(Hub::new(Arc::new(Business::try_new(config).unwrap()), Arc::new(context)))
    }

    /// Every identity has two connections; every third one has the tag `third`.
    fn enter_all(hub: &Hub) {
        for n in 0..CONNECTIONS {
            let bounds = Bounds { messages: 8, bytes: 1 << 20 };
            let outbound = Outbound::new(bounds, Gauge::default(), Arc::clone(&hub.backlog));
            let kind = if n % 2 == 0 { "app" } else { "h5" };
            let mailbox = Mailbox::new(n as u64, &format!("customer-{}", n / 2), kind, true, outbound);
            let tags = [Some("all"), (n % 3 == 0).then_some("third")].into_iter().flatten().map(str::to_owned);
            hub.enter(&Arc::new(mailbox), &tags.collect::<Vec<_>>());
        }
    }

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|text| (*text).to_owned()).collect()
    }

    #[tokio::test]
    async fn each_connection_that_fits_is_seen_once_without_the_lock() {
        let hub = hub();
        enter_all(&hub);
        let everyone: Vec<_> = (0..CONNECTIONS).map(|n| format!("customer-{n}")).collect();
        let third = CONNECTIONS.div_ceil(3);
        for (unique_ids, tags, client_types, expected) in [
            (&[][..], &[][..], &[][..], CONNECTIONS),
            (&[], &["third"], &[], third),
            (&[], &["third", "all"], &[], CONNECTIONS),
            (&[], &["all", "third", "none"], &["app"], CONNECTIONS.div_ceil(2)),
            (&everyone, &[], &[], CONNECTIONS),
            (&everyone, &["third", "none"], &[], third),
            (&everyone[..1], &[], &["h5"], 1),
        ] {
            let (tags, client_types) = (texts(tags), texts(client_types));
            let filter = Filter { unique_ids: unique_ids.to_vec(), tags, client_types };
            let (mut seen, mut tried) = (HashSet::new(), false);
            hub.visit_present(&filter, |present| {
                assert!(seen.insert(present.mailbox.number), "twice");
                if !filter.unique_ids.is_empty() {
                    assert_eq!(*present.mailbox.unique_id, *filter.unique_ids[present.identity]);
                }
                if !std::mem::replace(&mut tried, true) {
                    let (hub, (free, is_free)) = (Arc::clone(&hub), mpsc::channel());
                    std::thread::spawn(move || free.send(hub.lock().registry.len()));
                    let locked = is_free.recv_timeout(Duration::from_secs(10));
                    assert_eq!(locked, Ok(CONNECTIONS), "the hub is locked while connections are looked at");
                }
            })
            .await;
            assert_eq!(seen.len(), expected, "{:?} {:?}", filter.tags, filter.client_types);
        }
    }
}
