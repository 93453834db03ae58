//! Which businesses accept messages of which others, as the edges know it: by the annotation of every edge
//! configuration. A change of one business concerns others: what leads to it stands in their topologies.

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::api::core::v1::ConfigMap;

use crate::config_map;

/// What the watch of edge configurations has shown so far, to find whom a change concerns.
#[derive(Debug, Default)]
pub struct Acceptances(HashMap<String, BTreeSet<String>>);

impl Acceptances {
    /// A new list begins; until it ends everything is only noted.
    pub fn begin(&mut self) {
        self.0.clear();
    }

    /// Notes an edge configuration; the other businesses that the change concerns: those whose messages it accepts now
    /// or did before, and, if it is new, those that wait for it.
    pub fn applied(&mut self, map: &ConfigMap) -> HashSet<String> {
        let Some(business) = config_map::business(map) else { return HashSet::new() };
        if config_map::is_tombstone(map) {
            return self.gone(business);
        }
        let now: BTreeSet<String> = config_map::accepts_from(map).map(str::to_owned).collect();
        match self.0.insert(business.to_owned(), now.clone()) {
            Some(before) => before.symmetric_difference(&now).cloned().collect(),
            None => now.into_iter().chain(self.waiting_for(business)).collect(),
        }
    }

    /// Forgets a business; the others that this concerns.
    pub fn gone(&mut self, business: &str) -> HashSet<String> {
        let before = self.0.remove(business);
        before.into_iter().flatten().chain(self.waiting_for(business)).collect()
    }

    fn waiting_for(&self, business: &str) -> Vec<String> {
        let accepting = self.0.iter().filter(|(_, accepts)| accepts.contains(business));
        accepting.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn map(business: &str, accepts: &str, labels: &serde_json::Value) -> ConfigMap {
        from_value(json!({"metadata": {
            "name": config_map::name(business), "labels": labels,
            "annotations": {"wirepost.dev/accepts-from": accepts},
        }}))
        .unwrap()
    }

    #[test]
    fn a_change_concerns_those_whose_messages_are_accepted_and_those_that_waited_for_the_business() {
        let live = |business: &str, accepts: &str| map(business, accepts, &json!({}));
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<HashSet<_>>();
        let mut known = Acceptances::default();
        assert_eq!(known.applied(&live("chat", "pay,shop")), set(&["pay", "shop"]));
        assert_eq!(known.applied(&live("chat", "pay,shop")), set(&[]), "nothing has changed");
        assert_eq!(known.applied(&live("chat", "pay,crm")), set(&["shop", "crm"]));
        assert_eq!(
            known.applied(&live("pay", "chat")),
            set(&["chat"]),
            "it waited for pay, and pay accepts its messages"
        );
        let removed = json!({"wirepost.dev/removed": "true"});
        assert_eq!(known.applied(&map("pay", "chat", &removed)), set(&["chat"]));
        assert_eq!(known.applied(&map("pay", "chat", &removed)), set(&["chat"]), "it waits again");
        assert_eq!(known.gone("chat"), set(&["pay", "crm"]));
        assert_eq!(known.applied(&live("pay", "")), set(&[]));
    }
}
