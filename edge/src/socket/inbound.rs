//! The budget for unfinished messages of clients, of all sockets together.
//!
//! *Flow*: a small message needs no permit. A larger one gets a permit for its largest possible size before its payload
//! is read; until then its socket is not read, and TCP makes the sender wait. One permit for the whole message: two
//! messages can't each keep a part and wait for the other's. *Fairness*: a business has at most half of the budget, or
//! what it declares; first come, first served. *At the limit*: while a message waits, messages that after [`GRACE`] are slower than
//! [`FAIR`], or have not grown for that long, are dropped, the slowest first: 1013, and their clients send them again.
//! A message that keeps up is never dropped; otherwise clients could interrupt each other forever, each shortly before
//! its end. A message that waits longer than [`LONGEST_WAIT`] gets 1013 too.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use wirepost_core::frames::CloseCode;

use crate::push::mailbox::Mailbox;

/// Longest wait for a permit.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The time that each message gets, whatever waits.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes a second, counted from the end of [`GRACE`], at which a message is never dropped: a quarter of a line of 1
/// Mbit/s.
const FAIR: u64 = 32 << 10;
/// How long a message waits before slow ones are dropped, and again before the next one is.
const PATIENCE: Duration = Duration::from_secs(1);
/// Unit of the budget, in bytes.
const UNIT: usize = 1 << 10;

/// The budget of a process.
#[derive(Debug)]
pub struct Inbound {
    room: Arc<Semaphore>,
    units: usize,
    gauge: Gauge,
    shares: Mutex<HashMap<Arc<str>, Weak<BusinessShare>>>,
}

/// The part of one business.
#[derive(Debug)]
pub struct BusinessShare {
    inbound: Arc<Inbound>,
    room: Arc<Semaphore>,
    size: Mutex<Size>,
    /// Messages with a permit, by their connection's number.
    admitted: Mutex<BTreeMap<u64, Arc<InFlight>>>,
}

/// How much room a business has.
#[derive(Clone, Copy, Debug)]
struct Size {
    units: usize,
    /// Units that are in use and too many: they are not returned.
    owed: usize,
}

/// A message with a permit.
#[derive(Debug)]
struct InFlight {
    since: Instant,
    progress: Mutex<Progress>,
    mailbox: Arc<Mailbox>,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    /// Bytes of it that have arrived.
    gathered: u64,
    /// When it last grew.
    grown: Instant,
}

impl InFlight {
    /// From when on it may be dropped for others.
    fn gives_way_at(&self) -> Instant {
        let Progress { gathered, grown } = *lock(&self.progress);
        let at_pace = self.since + Duration::from_millis(gathered * 1000 / FAIR);
        at_pace.min(grown) + GRACE
    }
}

/// The permit of one message; returned when dropped.
#[derive(Debug)]
pub struct InboundPermit {
    share: Arc<BusinessShare>,
    message: Arc<InFlight>,
    bytes: usize,
    of_business: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Inbound {
    /// A budget of `max` bytes; `gauge` shows what is in use.
    pub fn new(max: usize, gauge: Gauge) -> Arc<Self> {
        let units = (max / UNIT).clamp(2, Semaphore::MAX_PERMITS >> 1);
        Arc::new(Self { room: Arc::new(Semaphore::new(units)), units, gauge, shares: Mutex::default() })
    }

    /// The part of a business; one for all its connections.
    pub fn share(self: &Arc<Self>, business: &Arc<str>) -> Arc<BusinessShare> {
        let mut shares = lock(&self.shares);
        if let Some(share) = shares.get(business).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let units = self.units / 2;
        let share = Arc::new(BusinessShare {
            inbound: Arc::clone(self),
            room: Arc::new(Semaphore::new(units)),
            size: Mutex::new(Size { units, owed: 0 }),
            admitted: Mutex::default(),
        });
        shares.insert(Arc::clone(business), Arc::downgrade(&share));
        share
    }

    /// The business that uses most drops a message.
    fn make_room(&self) {
        let shares: Vec<_> = lock(&self.shares).values().filter_map(Weak::upgrade).collect();
        if let Some(share) = shares.iter().max_by_key(|share| share.in_use()) {
            share.make_room();
        }
    }
}

impl BusinessShare {
    /// Limits it to so many bytes. What is in use beyond that may end.
    pub fn limit(&self, bytes: Option<usize>) {
        let most = self.inbound.units / 2;
        let units = bytes.map_or(most, |bytes| (bytes / UNIT).clamp(1, most));
        let mut size = lock(&self.size);
        if units >= size.units {
            let more = units - size.units;
            let paid = more.min(size.owed);
            size.owed -= paid;
            self.room.add_permits(more - paid);
        } else {
            let less = size.units - units;
            size.owed += less - self.room.forget_permits(less);
        }
        size.units = units;
    }

    fn in_use(&self) -> usize {
        let Size { units, owed } = *lock(&self.size);
        (units + owed).saturating_sub(self.room.available_permits())
    }

    /// Waits for a permit for a message of `mailbox` of up to `bytes`. One that is larger than the whole budget gets
    /// all of it. Cancel safe.
    pub async fn admit(self: Arc<Self>, mailbox: Arc<Mailbox>, bytes: usize) -> InboundPermit {
        let units = bytes.div_ceil(UNIT).clamp(1, lock(&self.size).units) as u32;
        let of_business = acquire(&self.room, units, || self.make_room()).await;
        let of_all = acquire(&self.inbound.room, units, || self.inbound.make_room()).await;
        let since = Instant::now();
        let progress = Mutex::new(Progress { gathered: 0, grown: since });
        let message = Arc::new(InFlight { since, progress, mailbox });
        lock(&self.admitted).insert(message.mailbox.number, Arc::clone(&message));
        self.inbound.gauge.inc_by(bytes as i64);
        InboundPermit { share: self, message, bytes, of_business, _of_all: of_all }
    }

    /// Drops the slowest message, unless it keeps up.
    fn make_room(&self) {
        let mut admitted = lock(&self.admitted);
        let last = admitted.values().map(|message| (message.gives_way_at(), message.mailbox.number)).min();
        let Some((_, number)) = last.filter(|(at, _)| *at <= Instant::now()) else { return };
        if let Some(message) = admitted.remove(&number) {
            drop(admitted);
            message.mailbox.outbound.close(CloseCode::Overloaded);
        }
    }
}

impl InboundPermit {
    /// The message has grown to this size.
    pub fn note(&self, gathered: usize) {
        *lock(&self.message.progress) = Progress { gathered: gathered as u64, grown: Instant::now() };
    }
}

impl Drop for InboundPermit {
    fn drop(&mut self) {
        lock(&self.share.admitted).remove(&self.message.mailbox.number);
        let mut size = lock(&self.share.size);
        if let Some(owed) = self.of_business.split(size.owed.min(self.of_business.num_permits())) {
            size.owed -= owed.num_permits();
            owed.forget();
        }
        drop(size);
        self.share.inbound.gauge.dec_by(self.bytes as i64);
    }
}

/// Takes permits in turn; `make_room` is called periodically while it waits.
async fn acquire(room: &Arc<Semaphore>, units: u32, make_room: impl Fn()) -> OwnedSemaphorePermit {
    let mut permit = std::pin::pin!(Arc::clone(room).acquire_many_owned(units));
    loop {
        tokio::select! {
            permit = &mut permit => {
                #[expect(clippy::expect_used)]
                return permit.expect("this semaphore is never closed");
            }
            () = sleep(PATIENCE) => make_room(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn mailbox(number: u64) -> Arc<Mailbox> {
        Arc::new(Mailbox::new(number, "alice", "app", true, crate::push::mailbox::outbound::tests::outbound()))
    }

    fn inbound() -> (Arc<Inbound>, Arc<BusinessShare>, Arc<BusinessShare>) {
        let inbound = Inbound::new(16 << 10, Gauge::default());
        let (shop, other) = (inbound.share(&"shop".into()), inbound.share(&"other".into()));
        (inbound, shop, other)
    }

    fn admit(
        share: &Arc<BusinessShare>,
        number: u64,
        bytes: usize,
    ) -> (Arc<Mailbox>, impl Future<Output = InboundPermit> + use<>) {
        let mailbox = mailbox(number);
        (Arc::clone(&mailbox), Box::pin(Arc::clone(share).admit(mailbox, bytes)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_business_gets_half_of_the_budget() {
        let (inbound, shop, other) = inbound();
        let first = admit(&shop, 1, 8 << 10).1.await;
        let (_, second) = admit(&shop, 2, 1 << 10);
        let mut second = second;
        assert!((&mut second).now_or_never().is_none());
        let neighbour = admit(&other, 3, 8 << 10).1.await;
        assert_eq!(inbound.gauge.get(), 16 << 10);
        drop(first);
        drop(second.await);
        drop(neighbour);
        assert_eq!(inbound.gauge.get(), 0);
        assert_eq!(inbound.room.available_permits(), 16);
        assert!(lock(&shop.admitted).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_business_gets_what_it_declares_also_when_that_changes() {
        let (_inbound, shop, _) = inbound();
        let first = admit(&shop, 1, 6 << 10).1.await;
        shop.limit(Some(3 << 10));
        let (_, second) = admit(&shop, 2, 3 << 10);
        let mut second = second;
        assert!((&mut second).now_or_never().is_none(), "more than that is in use");
        drop(first);
        let second = second.await;
        assert_eq!((shop.room.available_permits(), shop.in_use()), (0, 3));
        shop.limit(None);
        assert_eq!((shop.room.available_permits(), shop.in_use()), (5, 3));
        drop(second);
        assert_eq!((shop.room.available_permits(), shop.in_use()), (8, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_message_waits_slow_ones_are_dropped_after_their_grace() {
        let (_inbound, shop, _) = inbound();
        let (old, admission) = admit(&shop, 1, 4 << 10);
        let old_admission = admission.await;
        sleep(GRACE / 2).await;
        let (young, admission) = admit(&shop, 2, 4 << 10);
        let _young_admission = admission.await;
        let (_, third) = admit(&shop, 3, 4 << 10);
        let third = tokio::spawn(third);
        sleep((GRACE / 2).saturating_sub(PATIENCE)).await;
        assert_eq!(old.outbound.closing(), None, "its grace is not over");
        sleep(PATIENCE * 2).await;
        assert_eq!(old.outbound.closing(), Some(CloseCode::Overloaded));
        assert_eq!(young.outbound.closing(), None);
        drop(old_admission);
        drop(third.await.unwrap());
    }

    /// Sends a message at `pace` bytes a second. True: it was completed.
    async fn upload(share: Arc<BusinessShare>, number: u64, pace: usize) -> bool {
        const BYTES: usize = 1 << 20;
        let mailbox = mailbox(number);
        let Ok(admission) = tokio::time::timeout(LONGEST_WAIT, share.admit(Arc::clone(&mailbox), BYTES)).await else {
            return false;
        };
        for gathered in (0..BYTES).step_by(pace) {
            admission.note(gathered);
            sleep(Duration::from_secs(1)).await;
            if mailbox.outbound.closing().is_some() {
                return false;
            }
        }
        true
    }

    #[tokio::test(start_paused = true)]
    async fn twice_as_many_honest_uploads_as_fit_all_complete() {
        let shop = Inbound::new(16 << 20, Gauge::default()).share(&"shop".into());
        let uploads: Vec<_> = (0..16).map(|number| tokio::spawn(upload(Arc::clone(&shop), number, 125_000))).collect();
        for upload in uploads {
            assert!(upload.await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn trickling_uploads_are_dropped_for_honest_ones() {
        let shop = Inbound::new(16 << 20, Gauge::default()).share(&"shop".into());
        let trickles: Vec<_> = (0..8).map(|number| tokio::spawn(upload(Arc::clone(&shop), number, 2000))).collect();
        sleep(PATIENCE).await;
        let honest: Vec<_> = (8..12).map(|number| tokio::spawn(upload(Arc::clone(&shop), number, 125_000))).collect();
        for upload in honest {
            assert!(upload.await.unwrap());
        }
        trickles.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_waits_for_the_whole_budget_makes_the_largest_business_drop_one() {
        let inbound = Inbound::new(16 << 10, Gauge::default());
        let shares: Vec<_> = ["a", "b", "c"].iter().map(|&name| inbound.share(&name.into())).collect();
        let (most, admission) = admit(&shares[0], 1, 8 << 10);
        let _most = admission.await;
        let (less, admission) = admit(&shares[1], 2, 7 << 10);
        let _less = admission.await;
        sleep(GRACE).await;
        let (_, waits) = admit(&shares[2], 3, 2 << 10);
        let waits = tokio::spawn(waits);
        sleep(PATIENCE * 2).await;
        assert_eq!((most.outbound.closing(), less.outbound.closing()), (Some(CloseCode::Overloaded), None));
        waits.abort();
    }

    #[tokio::test]
    async fn a_message_larger_than_the_budget_is_admitted_alone() {
        let (_inbound, shop, _) = inbound();
        drop(admit(&shop, 1, 1 << 20).1.await);
    }
}
