//! Strangers: connections whose callers have shown no valid token or key yet. They have places and bytes of their own,
//! so they can take nothing from sockets.
//!
//! *At the bound* a stranger gives way whom the edge has waited for longest in all, once that is [`PATIENCE`]; first one
//! of the address that takes most. What the edge needs for itself does not count: when thousands of honest clients come
//! at once, those whose handshake has begun end it before others begin. Without pressure nobody gives way.
//!
//! *At the limit of an address* the same holds among its own: a new connection takes over the handshake of the stranger
//! of that address whom the edge has waited for longest. So whoever keeps connections silent behind an address that many
//! share can't keep the others there out.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use crate::{
    address::{
        ClientAddress, Site,
        limits::{AddressLimits, AddressPermit, TooMany},
    },
    metrics::{Metrics, label},
};

/// How long a stranger may make the edge wait while others need its place.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How soon one is looked for again where nobody had to give way: a look walks through all strangers.
const LOOK: Duration = Duration::from_millis(20);
/// What a place costs beside the bytes that are held: the task and its connection.
const PLACE_BYTES: usize = 2 << 10;

/// Places and bytes of all strangers.
#[derive(Debug)]
pub struct Strangers {
    places: usize,
    max_bytes: usize,
    metrics: Arc<Metrics>,
    table: Mutex<Table>,
    bytes: AtomicUsize,
    left: Notify,
}

#[derive(Debug)]
struct Table {
    next: u64,
    by_number: HashMap<u64, Entry>,
    /// Those of addresses that are limited: their numbers.
    by_site: HashMap<Site, BTreeSet<u64>>,
    /// Has been told to go, and has not left yet.
    leaving: Option<u64>,
    /// Nobody has to give way before.
    next_look: Instant,
}

#[derive(Debug)]
struct Entry {
    site: Site,
    patience: Arc<Patience>,
    /// Of its address, if that is limited. Boxed: where no address is known, none has one.
    permit: Option<Box<AddressPermit>>,
}

/// How long the edge has waited for one stranger, and what it holds.
#[derive(Debug)]
struct Patience {
    begun: Instant,
    /// Ms after `begun`, and one more, since when it is the peer's turn; 0 = it is not.
    since: AtomicU64,
    /// Ms that the edge has waited in its former turns.
    waited: AtomicU64,
    /// Its request is being handled: it has to wait, not the edge.
    busy: AtomicBool,
    bytes: AtomicUsize,
    gives_way: Notify,
}

/// The place of one stranger; free when dropped.
#[derive(Debug)]
pub struct Place {
    of: Arc<Strangers>,
    number: u64,
    patience: Arc<Patience>,
}

impl Strangers {
    /// So many places, and so many bytes for all of them.
    pub fn new(places: usize, max_bytes: usize, metrics: Arc<Metrics>) -> Self {
        let table = Table {
            next: 0,
            by_number: HashMap::new(),
            by_site: HashMap::new(),
            leaving: None,
            next_look: Instant::now(),
        };
        let (table, bytes) = (Mutex::new(table), AtomicUsize::new(0));
        Self { places: places.max(1), max_bytes, metrics, table, bytes, left: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a place is free. Cancel safe; for one caller at a time.
    pub async fn room(&self) {
        loop {
            let left = self.left.notified();
            {
                let mut table = self.lock();
                if table.by_number.len() < self.places {
                    return;
                }
                self.one_gives_way(&mut table, |_| PLACE_BYTES, "places");
            }
            // Nobody may have to give way yet.
            let _ = timeout(LOOK, left).await;
        }
    }

    /// Takes a place, which [`Self::room`] has found.
    pub fn enter(self: &Arc<Self>, site: Site, permit: Option<AddressPermit>) -> Arc<Place> {
        let patience = Arc::new(Patience {
            begun: Instant::now(),
            since: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
            gives_way: Notify::new(),
        });
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.by_number.insert(number, Entry { site, patience: Arc::clone(&patience), permit: None });
        drop(table.permit(number, permit));
        drop(table);
        self.metrics.strangers.inc();
        Arc::new(Place { of: Arc::clone(self), number, patience })
    }

    /// Counts a handshake of this address. Where it has as many as it may, one of its strangers that has used up its
    /// patience gives way.
    ///
    /// # Errors
    /// The address has as many as it may, and none of them has to give way.
    pub fn handshake(
        &self,
        limits: &Arc<AddressLimits>,
        address: ClientAddress,
    ) -> Result<Option<AddressPermit>, TooMany> {
        limits.handshake(address).or_else(|many| self.succeed(address.site()).map(Some).ok_or(many))
    }

    /// Takes the handshake from the stranger of an address that was waited for longest.
    fn succeed(&self, site: Site) -> Option<AddressPermit> {
        let mut table = self.lock();
        let waited = |number: &u64| {
            let waited = table.by_number.get(number)?.patience.waited().filter(|waited| *waited >= PATIENCE)?;
            Some((waited, *number))
        };
        let (_, number) = table.by_site.get(&site)?.iter().filter_map(waited).max()?;
        let permit = table.permit(number, None)?;
        table.by_number.get(&number)?.patience.gives_way.notify_one();
        drop(table);
        self.metrics.strangers_gone.get_or_create(&label("address")).inc();
        Some(permit)
    }

    /// One that has used up its patience gives way: of the site that takes most by `cost`, the one that was waited for
    /// longest.
    fn one_gives_way(&self, table: &mut Table, cost: impl Fn(&Patience) -> usize, kind: &'static str) {
        let now = Instant::now();
        if table.leaving.is_some() || now < table.next_look {
            return;
        }
        let mut costs: HashMap<Site, usize> = HashMap::new();
        for Entry { site, patience, .. } in table.by_number.values() {
            *costs.entry(*site).or_default() += cost(patience);
        }
        let worn = table.by_number.iter().filter_map(|(number, entry)| {
            let waited = entry.patience.waited().filter(|waited| *waited >= PATIENCE)?;
            (cost(&entry.patience) > 0).then_some((costs.get(&entry.site), waited, number, entry))
        });
        let Some((.., number, entry)) = worn.max_by_key(|(costs, waited, ..)| (*costs, *waited)) else {
            table.next_look = now + LOOK;
            return;
        };
        self.metrics.strangers_gone.get_or_create(&label(kind)).inc();
        entry.patience.gives_way.notify_one();
        table.leaving = Some(*number);
    }

    fn leave(&self, number: u64) {
        let mut table = self.lock();
        let permit = table.permit(number, None);
        let Some(entry) = table.by_number.remove(&number) else { return };
        table.leaving = table.leaving.filter(|leaving| *leaving != number);
        drop(table);
        drop(permit);
        self.hold(&entry.patience, 0);
        self.metrics.strangers.dec();
        self.left.notify_one();
        self.keep_to_bytes();
    }

    /// When all hold too many bytes, somebody gives way; and when that one has left, the next one.
    fn keep_to_bytes(&self) {
        if self.bytes.load(Ordering::Relaxed) > self.max_bytes {
            let held = |patience: &Patience| patience.bytes.load(Ordering::Relaxed);
            self.one_gives_way(&mut self.lock(), held, "bytes");
        }
    }

    fn hold(&self, patience: &Patience, bytes: usize) {
        let before = patience.bytes.swap(bytes, Ordering::Relaxed);
        let all = if bytes >= before {
            self.bytes.fetch_add(bytes - before, Ordering::Relaxed) + (bytes - before)
        } else {
            self.bytes.fetch_sub(before - bytes, Ordering::Relaxed) - (before - bytes)
        };
        self.metrics.stranger_bytes.set(i64::try_from(all).unwrap_or(i64::MAX));
    }
}

impl Table {
    /// Gives a stranger another permit of its address. Returns its former one, to be dropped without the lock.
    fn permit(&mut self, number: u64, permit: Option<AddressPermit>) -> Option<AddressPermit> {
        let entry = self.by_number.get_mut(&number)?;
        let (site, limited) = (entry.site, permit.is_some());
        let former = std::mem::replace(&mut entry.permit, permit.map(Box::new));
        if limited {
            self.by_site.entry(site).or_default().insert(number);
        } else if let Some(numbers) = self.by_site.get_mut(&site) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_site.remove(&site);
            }
        }
        former.map(|permit| *permit)
    }
}

impl Patience {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// In all. `None`: the edge does not wait for it.
    fn waited(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed);
        if since == 0 {
            return None;
        }
        let turn = (self.now() + 1).saturating_sub(since);
        Some(Duration::from_millis(self.waited.load(Ordering::Relaxed) + turn))
    }
}

impl Place {
    /// Waits until this stranger has to give way. Cancel safe.
    pub async fn gives_way(&self) {
        self.patience.gives_way.notified().await;
    }

    /// It is the peer's turn: to send, or to take what is sent.
    pub fn waits(&self, to_send: bool) {
        let Patience { since, busy, .. } = &*self.patience;
        if since.load(Ordering::Relaxed) == 0 && (to_send || !busy.load(Ordering::Relaxed)) {
            since.store(self.patience.now() + 1, Ordering::Relaxed);
        }
    }

    /// The peer has done something.
    pub fn goes_on(&self) {
        let Patience { since, waited, .. } = &*self.patience;
        let begun = since.swap(0, Ordering::Relaxed);
        if begun > 0 {
            waited.fetch_add((self.patience.now() + 1).saturating_sub(begun), Ordering::Relaxed);
        }
    }

    /// Its request is being handled, or was answered.
    pub fn is_served(&self, busy: bool) {
        self.goes_on();
        self.patience.busy.store(busy, Ordering::Relaxed);
    }

    /// It was let in: what it made the edge wait before does not count any more, nor is it one of its address's handshakes.
    pub fn is_known(&self) {
        self.goes_on();
        self.patience.waited.store(0, Ordering::Relaxed);
        let permit = self.of.lock().permit(self.number, None);
        drop(permit);
    }

    /// It holds so many bytes now.
    pub fn holds(&self, bytes: usize) {
        self.of.hold(&self.patience, bytes);
        self.of.keep_to_bytes();
    }

    /// See [`Strangers::handshake`].
    ///
    /// # Errors
    /// As there.
    pub fn handshake(
        &self,
        limits: &Arc<AddressLimits>,
        address: ClientAddress,
    ) -> Result<Option<AddressPermit>, TooMany> {
        self.of.handshake(limits, address)
    }

    /// Its true address is another one.
    pub fn is_of(&self, site: Site, permit: Option<AddressPermit>) {
        let mut table = self.of.lock();
        let former = table.permit(self.number, None);
        if let Some(entry) = table.by_number.get_mut(&self.number) {
            entry.site = site;
        }
        // If it has left meanwhile, the new one is returned as well.
        let unused = table.permit(self.number, permit);
        drop(table);
        drop((former, unused));
    }

    /// It is no stranger any more: its place is free, and what it is now is counted elsewhere.
    pub fn leave(&self) {
        self.of.leave(self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;
    use crate::address::{ForwardedHeader, Proxies, limits::Limits};

    fn address(n: u32) -> ClientAddress {
        ClientAddress(IpAddr::V4(n.into()))
    }

    fn site(n: u32) -> Site {
        address(n).site()
    }

    fn strangers(places: usize, bytes: usize) -> Arc<Strangers> {
        Arc::new(Strangers::new(places, bytes, Arc::default()))
    }

    fn has_given_way(place: &Place) -> bool {
        place.gives_way().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_places_are_taken_the_address_with_most_of_them_gives_one_back() {
        let strangers = strangers(4, 1 << 20);
        let single = strangers.enter(site(1), None);
        single.waits(false);
        let many: Vec<_> = (0..3).map(|_| strangers.enter(site(2), None)).collect();
        for place in &many {
            place.waits(false);
        }
        assert!(timeout(PATIENCE / 2, strangers.room()).await.is_err(), "nobody's patience is used up");
        assert!(timeout(PATIENCE, strangers.room()).await.is_err(), "its task has not ended yet");
        assert!(!has_given_way(&single), "it has one place only");
        let (gone, stay): (Vec<_>, Vec<_>) = many.into_iter().partition(|place| has_given_way(place));
        assert_eq!((gone.len(), stay.len()), (1, 2));
        drop(gone);
        strangers.room().now_or_never().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_gives_way_for_what_the_edge_itself_needs() {
        let strangers = strangers(1, 1 << 20);
        let place = strangers.enter(site(1), None);
        // Its bytes are there, but its turn has not come.
        assert!(timeout(PATIENCE * 5, strangers.room()).await.is_err());
        assert!(!has_given_way(&place));
        place.is_served(true);
        place.waits(false);
        assert!(timeout(PATIENCE * 5, strangers.room()).await.is_err());
        assert!(!has_given_way(&place), "its request is being handled");
        // An answer that it does not take is another matter.
        place.waits(true);
        assert!(timeout(PATIENCE * 2, strangers.room()).await.is_err());
        assert!(has_given_way(&place));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_uses_up_patience_like_silence() {
        let strangers = strangers(1, 1 << 20);
        let place = strangers.enter(site(1), None);
        for _ in 0..20 {
            place.waits(false);
            advance(PATIENCE / 10).await;
            place.goes_on();
        }
        place.waits(false);
        assert!(timeout(LOOK, strangers.room()).await.is_err());
        assert!(has_given_way(&place));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_given_back_by_the_address_that_holds_most() {
        let strangers = strangers(100, 10_000);
        let [small, large] = [1, 2].map(|n| strangers.enter(site(n), None));
        for place in [&small, &large] {
            place.waits(false);
        }
        advance(PATIENCE).await;
        small.holds(2000);
        large.holds(8000);
        assert!(!has_given_way(&large));
        let third = strangers.enter(site(3), None);
        third.holds(100);
        assert!(has_given_way(&large) && !has_given_way(&small));
        drop(large);
        assert!(!has_given_way(&small), "it is enough");
        assert_eq!(strangers.bytes.load(Ordering::Relaxed), 2100);
        third.leave();
        drop((small, third));
        assert_eq!(strangers.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(strangers.metrics.strangers.get(), 0);
    }

    /// Three handshakes for each address.
    fn limits() -> Arc<AddressLimits> {
        let proxies = Proxies::new(&["none".to_owned()], ForwardedHeader::default(), false).unwrap();
        let limits = Limits { connections: 0, handshakes: 3, failures: 0 };
        Arc::new(AddressLimits::new(proxies, limits, Arc::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_limit_of_an_address_the_one_that_was_waited_for_longest_gives_way_to_a_new_one() {
        let (strangers, limits) = (strangers(100, 1 << 20), limits());
        let enter = |n| {
            let permit = strangers.handshake(&limits, address(n))?;
            Ok::<_, TooMany>(strangers.enter(site(n), permit))
        };
        let mut silent = Vec::new();
        for _ in 0..3 {
            let place = enter(1).unwrap();
            place.waits(false);
            advance(PATIENCE / 4).await;
            silent.push(place);
        }
        assert_eq!(enter(1).unwrap_err(), TooMany::Handshakes, "nobody's patience is used up");
        enter(2).unwrap();
        advance(PATIENCE).await;
        // It is being served: it has to wait, not the edge.
        silent[0].is_served(true);
        let honest = enter(1).unwrap();
        let gone: Vec<bool> = silent.iter().map(|place| has_given_way(place)).collect();
        assert_eq!(gone, [false, true, false]);
        let second = enter(1).unwrap();
        assert!(has_given_way(&silent[2]));
        assert_eq!(enter(1).unwrap_err(), TooMany::Handshakes, "the new ones have their patience");
        // Whoever gave way has nothing left to return.
        silent.truncate(1);
        assert_eq!(enter(1).unwrap_err(), TooMany::Handshakes);
        drop((silent, honest, second));
        let three = [enter(1), enter(1), enter(1)];
        assert!(three.iter().all(Result::is_ok) && enter(1).is_err());
        drop(three);
        assert!(strangers.lock().by_site.is_empty() && strangers.lock().by_number.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_let_in_does_not_give_way_for_its_address() {
        let (strangers, limits) = (strangers(100, 1 << 20), limits());
        let enter = || strangers.enter(site(1), strangers.handshake(&limits, address(1)).unwrap());
        let known = enter();
        known.is_known();
        known.waits(false);
        let _others = [enter(), enter(), enter()];
        advance(PATIENCE * 2).await;
        assert_eq!(strangers.handshake(&limits, address(1)).unwrap_err(), TooMany::Handshakes);
        assert!(!has_given_way(&known));
    }
}
