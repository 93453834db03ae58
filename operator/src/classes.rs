//! The classes that businesses may have: the platform team's policy, watched.
//!
//! An installation without the CustomResourceDefinition of classes has none: every business is treated as if there were no policy, unless it
//! had a class. While the classes can't be listed for any other reason (a missing right, an API server that does not answer), this process is
//! not ready: nothing new is accepted under an unknown policy. What was accepted before does not need it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ObjectReference;
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
use wirepost_topology::UserLimits;

use crate::{
    api_client,
    conditions::summarize,
    events::Events,
    fresh::Fresh,
    leader::Leadership,
    stored::StoredBusiness,
    triggers::{Listed, Triggers},
};

/// What `/readyz` waits for.
pub const PART: &str = "classes";
/// Lists that must fail before the classes count as unknown; one that is refused for a missing right counts immediately.
const ATTEMPTS: u32 = 3;

/// A class as it is stored: a malformed one must not end the watch of the others.
#[derive(Clone, Debug, Deserialize, Serialize, Resource)]
#[resource(inherit = WsBusinessClass)]
pub struct StoredClass {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// As stored, valid or not.
    #[serde(default)]
    pub spec: Value,
}

/// A class that can be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// As declared.
    pub resource: WsBusinessClass,
    /// Its name, and what [`validate::class::fill`] needs of it, as JSON. Stored with an accepted declaration, so that its meaning does not
    /// change later.
    pub terms: Arc<str>,
}

/// Which class [`Class::terms`] are of.
#[derive(Serialize, Deserialize)]
struct Name {
    class: String,
}

/// The class that these terms are of.
pub fn class_of_terms(terms: &str) -> Option<String> {
    serde_json::from_str(terms).ok().map(|Name { class }| class)
}

/// The terms of a class that fills in nothing: its name, and its limits of the broker user, which no declaration states.
pub fn without_fillings(terms: &str) -> Option<Arc<str>> {
    let mut kept = json!({"class": class_of_terms(terms)?});
    let given: Value = serde_json::from_str(terms).ok()?;
    if let Some(user) = given.pointer("/limits/user").filter(|user| !user.is_null()) {
        kept["limits"] = json!({"user": user});
    }
    Some(kept.to_string().into())
}

impl Class {
    /// The class as it is applied.
    pub fn new(resource: WsBusinessClass) -> Self {
        #[derive(Serialize)]
        struct Terms {
            #[serde(flatten)]
            name: Name,
            #[serde(flatten)]
            given: WsBusinessClassSpec,
        }
        let WsBusinessClassSpec { default: _, owners: _, defaults, limits } = resource.spec.clone();
        let name = Name { class: resource.metadata.name.clone().unwrap_or_default() };
        let terms = Terms { name, given: WsBusinessClassSpec { defaults, limits, ..WsBusinessClassSpec::default() } };
        // Plain data with string keys: it always serializes.
        let terms = serde_json::to_string(&terms).unwrap_or_default().into();
        Self { resource, terms }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.resource.metadata.name.as_deref().unwrap_or_default()
    }
}

/// What a business's broker user may have open by the terms of its class, else by those of the installation.
pub fn user_limits(terms: Option<&str>, installation: UserLimits) -> UserLimits {
    let given = terms.and_then(|terms| serde_json::from_str::<WsBusinessClassSpec>(terms).ok()?.limits?.user);
    let number = |limit: Option<i64>| limit.and_then(|limit| u32::try_from(limit).ok());
    let (connections, channels) =
        given.map_or((None, None), |given| (number(given.connections), number(given.channels)));
    UserLimits { connections: connections.or(installation.connections), channels: channels.or(installation.channels) }
}

/// See the module.
#[derive(Debug)]
pub struct Classes {
    known: Mutex<Known>,
    listing: watch::Sender<Listing>,
}

/// Whether the classes are known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Listing {
    /// The first list is not complete.
    Pending,
    /// They can't be listed.
    Failed(String),
    Listed,
}

impl Default for Classes {
    fn default() -> Self {
        Self { known: Mutex::default(), listing: watch::channel(Listing::Pending).0 }
    }
}

#[derive(Debug, Default)]
struct Known {
    classes: BTreeMap<String, Entry>,
    /// From a list that is not complete yet.
    incoming: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    metadata: ObjectMeta,
    /// The object of events.
    reference: ObjectReference,
    default: bool,
    class: Result<Arc<Class>, String>,
}

impl Entry {
    fn new(stored: &StoredClass) -> Self {
        // Only the name: other metadata of a class does not affect businesses.
        let metadata = json!({"name": stored.metadata.name});
        let value = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": stored.spec});
        let class = validate::class::parse(&value).map(|class| Arc::new(Class::new(class)));
        let class = class.map_err(|problems| summarize(&problems.iter().map(ToString::to_string).collect::<Vec<_>>()));
        if let Err(problems) = &class {
            tracing::error!(
                class = stored.metadata.name,
                problems,
                "a class can't be read; nothing new is accepted under it"
            );
        }
        let default = stored.spec.get("default") == Some(&Value::Bool(true));
        Self { metadata: stored.metadata.clone(), reference: stored.object_ref(&()), default, class }
    }
}

impl Classes {
    /// The class that a business with this `className` has. `None`: it has none.
    ///
    /// # Errors
    /// There is no such class, it can't be read, or the classes can't be listed.
    pub fn of(&self, named: Option<&str>) -> Result<Option<Arc<Class>>, Box<Problem>> {
        if let Listing::Failed(why) = &*self.listing.borrow() {
            let remedy = "nothing new is accepted until the operator can list wsbusinessclasses.wirepost.dev: ask its administrator";
            return Err(Box::new(validate::class::unknown(why, remedy)));
        }
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

    /// Whether the class of this resource lets its namespace own its business type. Yes while the class is not known.
    pub fn may_own(&self, stored: &StoredBusiness) -> bool {
        let namespace = stored.metadata.namespace.as_deref().unwrap_or("default");
        match self.of(stored.class_name()) {
            Ok(Some(class)) => validate::class::may_own(&class.resource.spec.owners, namespace, stored.business_type()),
            Ok(None) => true,
            Err(problem) => problem.reason == Reason::ClassesUnknown,
        }
    }

    /// Returns once all classes are listed, or can't be; `false` if that will never happen.
    pub async fn looked_for(&self) -> bool {
        self.listing.subscribe().wait_for(|listing| *listing != Listing::Pending).await.is_ok()
    }

    /// All classes are being listed again; until then nothing new is accepted.
    pub fn relists(&self) {
        self.listing.send_replace(Listing::Failed("the classes are being listed again".to_owned()));
    }

    /// They could not be listed, this many times in a row. Whether that is news; `None`: another attempt comes before it counts.
    fn failed(&self, error: &watcher::Error, attempts: u32) -> Option<bool> {
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
    fn several_defaults(&self) -> Option<(String, Vec<String>)> {
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
            "{} classes are the default: {}. The oldest counts, {counts}: set default of the others to false",
            all.len(),
            summarize(&all)
        );
        tracing::warn!("{note}");
        let reference = self.lock().classes.get(&counts).map(|entry| entry.reference.clone());
        if let Some(reference) = reference {
            events.several_defaults(&reference, &note).await;
        }
    }

    /// Takes an event of the watch. Whether the class of any business may have changed.
    fn take(&self, event: watcher::Event<StoredClass>) -> bool {
        let name = |stored: &StoredClass| stored.metadata.name.clone().unwrap_or_default();
        let mut known = self.lock();
        match event {
            watcher::Event::Init => known.incoming.clear(),
            watcher::Event::InitApply(stored) => drop(known.incoming.insert(name(&stored), Entry::new(&stored))),
            watcher::Event::InitDone => {
                known.classes = std::mem::take(&mut known.incoming);
                drop(known);
                self.listing.send_replace(Listing::Listed);
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
        let (mut failures, mut told) = (0, None);
        loop {
            let leads = leadership.is_leader();
            if leads {
                self.tell_several(&mut told, &events).await;
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
    code(error) == Some(404)
}

/// The API server's error for a list, or for the start of a watch.
fn code(error: &watcher::Error) -> Option<u16> {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) = error else {
        return None;
    };
    if let kube::Error::Api(status) = cause { Some(status.code) } else { None }
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

    /// What runs is maintained meanwhile.
    #[tokio::test]
    async fn classes_that_may_not_be_listed_allow_nothing_new_and_stop_nothing() {
        let classes = Classes::default();
        let refused = |code| {
            let status = json!({"status": "Failure", "message": "no", "reason": "Forbidden", "code": code});
            watcher::Error::InitialListFailed(kube::Error::Api(serde_json::from_value(status).unwrap()))
        };
        assert_eq!(classes.failed(&refused(500), 1), None);
        assert_eq!((classes.failed(&refused(403), 2), classes.looked_for().await), (Some(true), true));
        let problem = classes.of(None).unwrap_err();
        assert!(problem.reason == Reason::ClassesUnknown && problem.to_string().contains("ClusterRole"), "{problem}");
        classes.take(Init);
        classes.take(InitDone);
        assert_eq!(classes.of(None), Ok(None));
        // As when a new leader lists them.
        assert_eq!(classes.failed(&refused(403), 1), Some(true));
        assert!(classes.failed(&refused(403), 2) == Some(false) && classes.of(None).is_err());
    }

    #[test]
    fn a_class_limits_the_broker_user_and_what_it_leaves_out_is_the_installations() {
        let given = json!({"limits": {"user": {"connections": 5}}});
        let class = Class::new(
            serde_json::from_value(json!({
                "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "small"}, "spec": given,
            }))
            .unwrap(),
        );
        let installation = UserLimits { connections: Some(1000), channels: Some(10_000) };
        let of_class = UserLimits { connections: Some(5), channels: Some(10_000) };
        assert_eq!(user_limits(Some(&*class.terms), installation), of_class);
        assert_eq!(user_limits(None, installation), installation);
        assert_eq!(user_limits(Some(&*without_fillings(&class.terms).unwrap()), installation), of_class);
    }

    #[test]
    fn several_defaults_are_noticed() {
        let classes = Classes::default();
        classes.take(Apply(stored("b", &json!({"default": true}))));
        classes.take(Apply(stored("c", &json!({}))));
        assert_eq!(classes.several_defaults(), None);
        classes.take(Apply(stored("a", &json!({"default": true}))));
        assert_eq!(classes.several_defaults().map(|(_, all)| all), Some(vec!["a".to_owned(), "b".to_owned()]));
    }

    /// It may limit something that this version does not know.
    #[test]
    fn a_class_that_cannot_be_read_allows_nothing() {
        let classes = Classes::default();
        classes.take(Apply(stored("new", &json!({"default": true, "limits": {"colours": 3}}))));
        let problem = classes.of(None).unwrap_err();
        assert!(problem.to_string().contains("colours"), "{problem}");
    }
}
