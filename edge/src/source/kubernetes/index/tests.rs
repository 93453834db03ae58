//! The actions that follow from ConfigMaps, without a cluster.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::*;

const GRACE: Duration = Duration::from_mins(1);

fn json(business: &str, generation: i64) -> String {
    json!({
        "format": 1, "businessType": business, "owner": "shop/x", "generation": generation, "clientTypes": ["app"], "routes": [],
        "delivery": "Durable", "retention": {"seconds": 60, "bytes": 1 << 20}, "auth": {"allowedOrigins": []}, "limits": {},
        "sessionMaxSeconds": 60,
    })
    .to_string()
}

fn map(name: &str, text: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([(KEY.to_owned(), text.to_owned())])),
        ..ConfigMap::default()
    }
}

fn of(business: &str, generation: i64) -> ConfigMap {
    map(&config_map::name(business), &json(business, generation))
}

fn tombstone(mut config_map: ConfigMap) -> ConfigMap {
    config_map.metadata.labels = Some(BTreeMap::from([(config_map::REMOVED_LABEL.0.to_owned(), "true".to_owned())]));
    config_map
}

/// An index and its actions since the last call, in short words.
struct World {
    index: ConfigMapIndex,
    now: Instant,
    out: Actions,
}

impl World {
    fn new() -> Self {
        Self { index: ConfigMapIndex::new(GRACE), now: Instant::now(), out: Actions::default() }
    }

    fn listing(config_maps: impl IntoIterator<Item = ConfigMap>) -> Self {
        let mut world = Self::new();
        world.list(config_maps);
        world
    }

    fn list(&mut self, config_maps: impl IntoIterator<Item = ConfigMap>) -> &mut Self {
        self.index.list_begins();
        for config_map in config_maps {
            self.index.listed(config_map, self.now, &mut self.out);
        }
        self.index.list_ends(self.now, &mut self.out);
        self
    }

    fn apply(&mut self, config_map: &ConfigMap) -> &mut Self {
        self.index.apply(config_map, self.now, &mut self.out);
        self
    }

    fn delete(&mut self, name: &str) -> &mut Self {
        self.index.delete(name, self.now, &mut self.out);
        self
    }

    fn pass(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self.index.due(self.now, &mut self.out);
        self
    }

    fn answer(&mut self, business: &str, answer: Result<Option<&ConfigMap>, ()>) -> &mut Self {
        self.index.answered(business, answer, self.now, &mut self.out);
        self
    }

    fn said(&mut self) -> Vec<String> {
        let Actions { changes, lookups, ignored } = std::mem::take(&mut self.out);
        let changes = changes.into_iter().map(|change| match change {
            Change::Set(config) => format!("set {} {}", config.business_type, config.generation),
            Change::Remove(business) => format!("remove {business}"),
            Change::Unreadable(business) => format!("unreadable {business}"),
        });
        let lookups = lookups.into_iter().map(|Lookup { config_map, .. }| format!("ask {config_map}"));
        let ignored = ignored.into_iter().map(|one| match one {
            Ignored::Broken { config_map, business, .. } => format!("broken {config_map} {business:?}"),
            Ignored::Duplicate { config_map, decides, .. } => format!("rival {config_map} of {decides}"),
        });
        changes.chain(lookups).chain(ignored).collect()
    }
}

#[test]
fn a_change_is_one_change_and_the_same_text_is_none() {
    let mut world = World::listing([of("a", 1), of("b", 1)]);
    assert_eq!(world.said(), ["set a 1", "set b 1"]);
    assert_eq!(world.apply(&of("a", 2)).apply(&of("b", 1)).said(), ["set a 2"]);
    assert!(world.list([of("a", 2), of("b", 1)]).said().is_empty());
}

#[test]
fn a_broken_one_is_reported_once_and_keeps_its_business() {
    let mut world = World::listing([of("a", 1), map("wirepost-business-n", "{")]);
    assert_eq!(world.said(), ["set a 1", "unreadable n", "broken wirepost-business-n None"]);
    let broken = map("wirepost-business-a", "{");
    assert_eq!(world.apply(&broken).said(), [r#"broken wirepost-business-a Some("a")"#]);
    assert!(world.apply(&broken).pass(GRACE * 2).said().is_empty());
    let without = ConfigMap { data: None, ..broken };
    assert_eq!(world.apply(&without).said().len(), 1);
    assert_eq!(world.apply(&of("a", 3)).said(), ["set a 3"]);
    // A ConfigMap that was never valid leaves nothing behind.
    assert_eq!(world.delete("wirepost-business-n").said(), ["remove n"]);
    assert_eq!(world.index.config_maps.len(), 1);
}

#[test]
fn a_tombstone_removes_immediately_and_its_deletion_ends_it() {
    let mut world = World::listing([of("a", 1)]);
    world.said();
    assert_eq!(world.apply(&tombstone(of("a", 1))).said(), ["remove a"]);
    assert!(world.apply(&tombstone(of("a", 1))).pass(GRACE * 2).said().is_empty());
    world.delete("wirepost-business-a");
    assert!(world.index.businesses.is_empty() && world.index.config_maps.is_empty());
    world.said();
    // Another one with that name and the same text is a new business; so is one whose label is removed.
    assert_eq!(world.apply(&of("a", 1)).said(), ["set a 1"]);
    assert_eq!(world.apply(&tombstone(of("a", 1))).apply(&of("a", 1)).said(), ["remove a", "set a 1"]);
    // The label with another value does not count.
    let mut other = tombstone(of("a", 1));
    other.metadata.labels.as_mut().unwrap().insert(config_map::REMOVED_LABEL.0.into(), "no".into());
    assert!(world.apply(&other).said().is_empty());
}

#[test]
fn a_missing_one_is_kept_for_the_grace_and_asked_about() {
    let mut world = World::listing([of("a", 1), of("b", 1)]);
    world.said();
    assert!(world.delete("wirepost-business-a").list([of("b", 1)]).pass(GRACE / 2).said().is_empty());
    assert_eq!(world.apply(&of("a", 1)).pass(GRACE).said(), [""; 0], "it is back with the same text");
    assert_eq!(world.list([of("b", 1)]).pass(GRACE).said(), ["ask wirepost-business-a"]);
    assert!(world.answer("a", Err(())).said().is_empty(), "nothing is known while the API server is away");
    assert_eq!(world.pass(ASK_AGAIN).said(), ["ask wirepost-business-a"]);
    assert_eq!(world.answer("a", Ok(None)).said(), ["remove a"]);
    assert_eq!((world.index.config_maps.len(), world.index.businesses.len(), world.index.next_due()), (1, 1, None));
}

#[test]
fn one_that_the_lookup_finds_stays_and_an_outdated_answer_is_ignored() {
    let mut world = World::listing([of("a", 1)]);
    world.delete("wirepost-business-a").pass(GRACE).said();
    assert_eq!(world.answer("a", Ok(Some(&of("a", 2)))).said(), ["set a 2"]);
    assert!(world.pass(GRACE * 2).said().is_empty());
    world.delete("wirepost-business-a").pass(GRACE).said();
    assert!(world.apply(&of("a", 2)).answer("a", Ok(None)).said().is_empty(), "the watch was faster");
}

#[test]
fn of_two_the_one_with_the_proper_name_is_used() {
    let mut world = World::listing([map("a-copy", &json("a", 7)), of("a", 1)]);
    assert_eq!(world.said(), ["set a 1", "rival a-copy of wirepost-business-a"]);
    assert_eq!(world.apply(&map("a-copy", &json("a", 8))).said(), ["rival a-copy of wirepost-business-a"]);
    // It replaces one that was first.
    let mut world = World::listing([map("a-copy", &json("a", 7))]);
    assert_eq!(world.said(), ["set a 7"]);
    assert_eq!(world.apply(&of("a", 1)).said(), ["set a 1", "rival a-copy of wirepost-business-a"]);
    // When it is deleted for good, the other one replaces it; no client is disconnected.
    assert_eq!(world.delete("wirepost-business-a").pass(GRACE).said(), ["ask wirepost-business-a"]);
    assert_eq!(world.answer("a", Ok(None)).said(), ["ask a-copy"]);
    assert_eq!(world.answer("a", Ok(Some(&map("a-copy", &json("a", 7))))).said(), ["set a 7"]);
    assert_eq!(world.delete("a-copy").pass(GRACE).answer("a", Ok(None)).said(), ["remove a", "ask a-copy"]);
    assert!(world.index.businesses.is_empty() && world.index.config_maps.is_empty());
}

#[test]
fn a_duplicate_that_is_deleted_or_marked_changes_nothing() {
    let mut world = World::listing([of("a", 1), map("a-copy", &json("a", 7))]);
    world.said();
    assert!(world.apply(&tombstone(map("a-copy", &json("a", 7)))).delete("a-copy").said().is_empty());
    assert_eq!(
        world.delete("wirepost-business-a").pass(GRACE).answer("a", Ok(None)).said(),
        ["remove a", "ask wirepost-business-a"]
    );
}

#[test]
fn one_that_now_declares_another_business_leaves_the_old_one_to_the_grace() {
    let mut world = World::listing([map("x", &json("a", 1))]);
    world.said();
    let other = map("x", &json("b", 1));
    assert_eq!(world.apply(&other).said(), ["set b 1"]);
    assert_eq!(world.pass(GRACE).said(), ["ask x"]);
    assert_eq!(world.answer("a", Ok(Some(&other))).said(), ["remove a"]);
    assert_eq!(world.index.businesses.keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn an_interrupted_list_shows_nothing_as_missing() {
    let mut world = World::listing([of("a", 1), of("b", 1)]);
    world.said();
    world.index.list_begins();
    world.index.listed(of("a", 1), world.now, &mut world.out);
    assert!(world.list([of("a", 1), of("b", 1)]).pass(GRACE * 2).said().is_empty());
}
