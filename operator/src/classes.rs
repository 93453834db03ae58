//! The classes that businesses may have: the platform team's policy, watched.
//!
//! An installation without the CustomResourceDefinition of classes has none: every business is treated as if there were no policy, unless it
//! had a class. While the classes can't be listed for any other reason (a missing right, an API server that does not answer), this process is
//! not ready: nothing new is accepted under an unknown policy. What was accepted before does not need it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, core::ObjectMeta, runtime::watcher};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use wirepost_core::{
    Problem, Reason,
    business::API_VERSION,
    class::{KIND, WsBusinessClass, class_of},
    validate,
};

use crate::{conditions::summarize, stored::StoredBusiness};

mod follow;
mod terms;

pub use terms::{Class, class_of_terms, user_limits, without_fillings};

/// What `/readyz` waits for.
pub const PART: &str = "classes";

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
        let name = entry.metadata.name.as_deref().unwrap_or_default();
        entry.class.clone().map(Some).map_err(|problems| Box::new(validate::class::unreadable(name, &problems)))
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

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
