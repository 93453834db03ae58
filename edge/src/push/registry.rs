//! Local connections of one business by number, identity and tag. Protected by the hub's lock.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use super::{audience::Recipients, entry::Push, mailbox::Mailbox};

/// Members of one tag, ordered by number.
type Members = BTreeMap<u64, Arc<Mailbox>>;

/// Connections with a push's tags from which on they are not looked at one by one.
const MANY: usize = 256;

/// The connections.
#[derive(Debug, Default)]
pub struct Registry {
    all: Members,
    /// Oldest first.
    by_identity: HashMap<Arc<str>, Vec<Arc<Mailbox>>>,
    by_tag: HashMap<String, Members>,
    /// Shared, so that whoever looks at many connections takes them along instead of keeping the lock.
    tags: HashMap<u64, Arc<[String]>>,
    /// Connections that get pushes compressed.
    compressing: usize,
}

impl Registry {
    /// Adds a connection. Returns the connections of its identity beyond `max`, oldest first: they are to be closed.
    pub fn add(&mut self, mailbox: &Arc<Mailbox>, tags: &[String], max: usize) -> Vec<Arc<Mailbox>> {
        self.all.insert(mailbox.number, Arc::clone(mailbox));
        self.compressing += usize::from(mailbox.compression.is_on());
        self.set_tags(mailbox, tags);
        let of_identity = self.by_identity.entry(Arc::clone(&mailbox.unique_id)).or_default();
        of_identity.push(Arc::clone(mailbox));
        let surplus = of_identity.len().saturating_sub(max.max(1));
        let replaced: Vec<_> = of_identity.drain(..surplus).collect();
        for old in &replaced {
            self.forget(old.number);
        }
        replaced
    }

    /// Removes exactly this connection; a newer one of the same identity is not affected.
    pub fn remove(&mut self, mailbox: &Mailbox) {
        if let Some(of_identity) = self.by_identity.get_mut(&mailbox.unique_id) {
            of_identity.retain(|other| other.number != mailbox.number);
            if of_identity.is_empty() {
                self.by_identity.remove(&mailbox.unique_id);
            }
        }
        self.forget(mailbox.number);
    }

    fn forget(&mut self, number: u64) {
        if self.all.remove(&number).is_some_and(|mailbox| mailbox.compression.is_on()) {
            self.compressing -= 1;
        }
        self.forget_tags(number);
    }

    fn forget_tags(&mut self, number: u64) {
        for tag in self.tags.remove(&number).iter().flat_map(|tags| tags.iter()) {
            if let Some(members) = self.by_tag.get_mut(tag) {
                members.remove(&number);
                if members.is_empty() {
                    self.by_tag.remove(tag);
                }
            }
        }
    }

    /// Replaces a connection's tags; a connection that is not registered stays unregistered.
    pub fn set_tags(&mut self, mailbox: &Arc<Mailbox>, tags: &[String]) {
        let number = mailbox.number;
        if !self.all.contains_key(&number) {
            return;
        }
        self.forget_tags(number);
        if tags.is_empty() {
            return;
        }
        for tag in tags {
            self.by_tag.entry(tag.clone()).or_default().insert(number, Arc::clone(mailbox));
        }
        self.tags.insert(number, tags.into());
    }

    /// Whether a push addresses this connection.
    pub fn addresses(&self, push: &Push, mailbox: &Mailbox) -> bool {
        is_for_type(push, mailbox)
            && match &push.audience.recipients {
                Recipients::Everyone => true,
                Recipients::Identity { id, tags } => {
                    **id == *mailbox.unique_id && (tags.is_empty() || self.holds(mailbox, tags))
                }
                Recipients::Tags(tags) => self.holds(mailbox, tags),
            }
    }

    /// `tags`: those of a push, see [`Recipients`].
    fn holds(&self, mailbox: &Mailbox, tags: &[String]) -> bool {
        self.tags.get(&mailbox.number).is_some_and(|held| held.iter().any(|tag| tags.binary_search(tag).is_ok()))
    }

    /// Calls `f` once for each connection that a push addresses.
    pub fn for_each_addressed(&self, push: &Push, mut f: impl FnMut(&Arc<Mailbox>)) {
        let _: ControlFlow<()> = self.visit_addressed(push, |mailbox| {
            f(mailbox);
            ControlFlow::Continue(())
        });
    }

    /// Whether any connection gets pushes compressed.
    pub fn compresses(&self) -> bool {
        self.compressing > 0
    }

    /// Whether a connection that a push addresses is to get it compressed.
    pub fn wants_compressed(&self, push: &Push) -> bool {
        // The hub is locked: a walk through many costs more than compressing in vain.
        let many = match &push.audience.recipients {
            Recipients::Everyone => true,
            Recipients::Identity { .. } => false,
            Recipients::Tags(tags) => {
                let tagged = tags.iter().filter_map(|tag| self.by_tag.get(tag)).map(BTreeMap::len);
                tagged.sum::<usize>() > MANY
            }
        };
        if many {
            return self.compresses();
        }
        let bytes = push.frame.len();
        let visit = |mailbox: &Arc<Mailbox>| {
            if mailbox.compression.takes(bytes) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.visit_addressed(push, visit).is_break()
    }

    fn visit_addressed<B>(&self, push: &Push, mut f: impl FnMut(&Arc<Mailbox>) -> ControlFlow<B>) -> ControlFlow<B> {
        let check = |mailbox: &Arc<Mailbox>| {
            if self.addresses(push, mailbox) { f(mailbox) } else { ControlFlow::Continue(()) }
        };
        match &push.audience.recipients {
            Recipients::Everyone => self.all.values().try_for_each(check),
            Recipients::Identity { id, .. } => {
                self.by_identity.get(id.as_str()).into_iter().flatten().try_for_each(check)
            }
            // Who is found by a tag has it.
            Recipients::Tags(tags) => match tags.as_slice() {
                [tag] => self.by_tag.get(tag).into_iter().flat_map(BTreeMap::values).try_for_each(|mailbox| {
                    if is_for_type(push, mailbox) { f(mailbox) } else { ControlFlow::Continue(()) }
                }),
                tags => {
                    let mut visited = HashSet::new();
                    let once = |mailbox: &Arc<Mailbox>| {
                        // By its type first: a push may name many that it is not for, and the hub is locked.
                        if is_for_type(push, mailbox) && visited.insert(mailbox.number) {
                            f(mailbox)
                        } else {
                            ControlFlow::Continue(())
                        }
                    };
                    tags.iter().filter_map(|tag| self.by_tag.get(tag)).flat_map(BTreeMap::values).try_for_each(once)
                }
            },
        }
    }

    /// The tags of a connection, if it has any.
    pub fn tags_of(&self, mailbox: &Mailbox) -> Option<Arc<[String]>> {
        self.tags.get(&mailbox.number).map(Arc::clone)
    }

    /// The connections with a higher number, or those of them that have a tag, by number: the oldest first.
    pub fn after(&self, number: Option<u64>, tag: Option<&str>) -> impl Iterator<Item = &Arc<Mailbox>> {
        let members = tag.map_or(Some(&self.all), |tag| self.by_tag.get(tag));
        let from = (number.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        members.into_iter().flat_map(move |members| members.range(from)).map(|(_, mailbox)| mailbox)
    }

    /// The connections of an identity, oldest first.
    pub fn of_identity(&self, unique_id: &str) -> impl Iterator<Item = &Arc<Mailbox>> {
        self.by_identity.get(unique_id).into_iter().flatten()
    }

    /// Every connection.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Mailbox>> {
        self.all.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

fn is_for_type(push: &Push, mailbox: &Mailbox) -> bool {
    push.audience.client_types.iter().any(|allowed| **allowed == *mailbox.client_type)
}
