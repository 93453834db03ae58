//! The classes that businesses may have: the platform team's policy, watched.
//!
//! An installation without the CustomResourceDefinition of classes has none: every business is treated as if there were no policy. Whatever
//! else keeps the classes from being listed (a missing right, an API server that is away) keeps this process from being ready: nothing is
//! accepted by a policy that is not known.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, StreamExt, pin_mut};
use kube::{
    Resource,
    core::ObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use wirepost_core::{
    Problem, Reason,
    business::API_VERSION,
    class::{KIND, WsBusinessClass, WsBusinessClassSpec, class_of},
    validate,
};
use wirepost_runtime::readiness::Pending;

use crate::{
    api_client,
    conditions::summarize,
    fresh::Fresh,
    triggers::{Listed, Triggers},
};

/// What `/readyz` waits for.
pub const PART: &str = "classes";

/// A class as it is stored: one that can't be read must not end the watch of the others.
#[derive(Clone, Debug, Deserialize, Serialize, Resource)]
#[resource(inherit = WsBusinessClass)]
pub struct StoredClass {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Whatever is stored.
    #[serde(default)]
    pub spec: Value,
}

/// A class that can be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// As declared.
    pub resource: WsBusinessClass,
    /// What [`validate::class::fill`] needs of it, as JSON. Kept with a declaration that was accepted, so that it means the same later.
    pub terms: Arc<str>,
}

impl Class {
    fn new(resource: WsBusinessClass) -> Self {
        let WsBusinessClassSpec { default: _, owners: _, defaults, limits } = resource.spec.clone();
        let terms = WsBusinessClassSpec { defaults, limits, ..WsBusinessClassSpec::default() };
        // Plain data with string keys: it always serializes.
        let terms = serde_json::to_string(&terms).unwrap_or_default().into();
        Self { resource, terms }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.resource.metadata.name.as_deref().unwrap_or_default()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Classes {
    known: Mutex<Known>,
    listed: watch::Sender<bool>,
}

impl Default for Classes {
    fn default() -> Self {
        Self { known: Mutex::default(), listed: watch::channel(false).0 }
    }
}

#[derive(Debug, Default)]
struct Known {
    classes: BTreeMap<String, Entry>,
    /// Of a list that is not complete yet.
    incoming: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    metadata: ObjectMeta,
    default: bool,
    class: Result<Arc<Class>, String>,
}

impl Entry {
    fn new(stored: &StoredClass) -> Self {
        // No more of it: what else changes in a class's metadata changes nothing for businesses.
        let metadata = json!({"name": stored.metadata.name});
        let value = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": stored.spec});
        let class = validate::class::parse(&value).map(|class| Arc::new(Class::new(class)));
        let class = class.map_err(|problems| summarize(&problems.iter().map(ToString::to_string).collect::<Vec<_>>()));
        if let Err(problems) = &class {
            tracing::error!(
                class = stored.metadata.name,
                problems,
                "a class can't be read; nothing new of it is accepted"
            );
        }
        let default = stored.spec.get("default") == Some(&Value::Bool(true));
        Self { metadata: stored.metadata.clone(), default, class }
    }
}

impl Classes {
    /// The class that a business with this `className` has. `None`: it has none.
    ///
    /// # Errors
    /// There is no such class, or it can't be read.
    pub fn of(&self, named: Option<&str>) -> Result<Option<Arc<Class>>, Box<Problem>> {
        let known = self.lock();
        let found = class_of(named, known.classes.values(), |entry| (&entry.metadata, entry.default));
        let Some(entry) = found.map_err(|name| Box::new(validate::class::not_found(name)))? else { return Ok(None) };
        entry.class.clone().map(Some).map_err(|problems| {
            Box::new(Problem::new(
                "spec.className",
                Reason::ClassNotFound,
                format!("class {} can't be read: {problems}", entry.metadata.name.as_deref().unwrap_or_default()),
                "ask the platform team to correct it",
            ))
        })
    }

    /// Returns when all classes were listed once; `false` when that will not happen any more.
    pub async fn listed(&self) -> bool {
        self.listed.subscribe().wait_for(|listed| *listed).await.is_ok()
    }

    /// Takes an event of the watch. Whether what businesses have may have changed.
    fn take(&self, event: watcher::Event<StoredClass>) -> bool {
        let name = |stored: &StoredClass| stored.metadata.name.clone().unwrap_or_default();
        let mut known = self.lock();
        match event {
            watcher::Event::Init => known.incoming.clear(),
            watcher::Event::InitApply(stored) => drop(known.incoming.insert(name(&stored), Entry::new(&stored))),
            watcher::Event::InitDone => {
                known.classes = std::mem::take(&mut known.incoming);
                drop(known);
                self.listed.send_replace(true);
                return true;
            }
            watcher::Event::Apply(stored) => {
                known.classes.insert(name(&stored), Entry::new(&stored));
                return true;
            }
            watcher::Event::Delete(stored) => return known.classes.remove(&name(&stored)).is_some(),
        }
        false
    }

    /// Follows the classes by this watch; it has no end of its own. `pending`: dropped when all were listed once.
    pub async fn follow(
        self: Arc<Self>,
        watch: impl Stream<Item = watcher::Result<watcher::Event<StoredClass>>>,
        triggers: Arc<Triggers>,
        fresh: Fresh,
        pending: Pending,
    ) {
        let mut pending = Some(pending);
        let events = watch.backoff(api_client::watch_backoff());
        pin_mut!(events);
        let mut failing = false;
        while let Some(event) = events.next().await {
            let events = match event {
                Ok(event) => {
                    failing = false;
                    vec![event]
                }
                // There is no such kind here, so there are no classes.
                Err(error) if is_unknown_kind(&error) => vec![watcher::Event::Init, watcher::Event::InitDone],
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "the watch of classes is interrupted; trying again");
                    }
                    continue;
                }
            };
            for event in events {
                let (first, complete) = (pending.is_some(), matches!(event, watcher::Event::InitDone));
                // A list that brings nothing new comes every few minutes, and while there is no such kind all the time.
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

    /// Which versions of which classes are known.
    fn summary(&self) -> Vec<(String, Option<String>)> {
        let known = self.lock();
        known.classes.iter().map(|(name, entry)| (name.clone(), entry.metadata.resource_version.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 404 for a list: the API server does not know the kind.
fn is_unknown_kind(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) = error else {
        return false;
    };
    matches!(cause, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    use super::*;

    fn stored(name: &str, spec: &Value) -> StoredClass {
        let value = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_business_has_the_class_that_is_known_now() {
        let classes = Classes::default();
        let name = |named| classes.of(named).map(|found| found.map(|class| class.name().to_owned()));
        assert!(!classes.take(Init));
        assert!(!classes.take(InitApply(stored("standard", &json!({"default": true})))));
        assert_eq!(name(None), Ok(None), "the list is not complete");
        assert!(classes.take(InitDone));
        assert_eq!(name(None), Ok(Some("standard".to_owned())));
        assert_eq!(name(Some("large")).unwrap_err().reason, Reason::ClassNotFound);
        assert!(classes.take(Apply(stored("large", &json!({"limits": {"queues": 3}})))));
        assert_eq!(name(Some("large")), Ok(Some("large".to_owned())));
        assert!(classes.take(Delete(stored("standard", &json!({})))));
        assert_eq!(name(None), Ok(None));
    }

    /// It may limit what this version does not know.
    #[test]
    fn a_class_that_cannot_be_read_allows_nothing() {
        let classes = Classes::default();
        classes.take(Apply(stored("new", &json!({"default": true, "limits": {"colours": 3}}))));
        let problem = classes.of(None).unwrap_err();
        assert!(problem.to_string().contains("colours"), "{problem}");
    }
}
