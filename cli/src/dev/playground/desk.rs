//! What the services of the businesses would see: messages on queues, events, dead letters. Open pages get each as it
//! comes; a page may decide on messages in place of a service.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, oneshot};
use wirepost_edge::business::events;
use wirepost_runtime::clock;

/// Notices that a page still gets which opens later.
const RECENT: usize = 200;
/// Notices that a page may be behind; then it is told how many it missed.
const BEHIND: usize = 256;
/// Open pages at most.
pub(super) const VIEWERS: usize = 8;
/// Bytes of a message that are shown.
const SHOWN: usize = 16 << 10;

/// Passes on what happens. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub(in crate::dev) struct Desk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Tells one run of `dev` from the next: numbers begin again.
    run: u32,
    state: Mutex<State>,
    news: broadcast::Sender<Arc<Numbered>>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the next notice.
    next: u64,
    recent: VecDeque<Arc<Numbered>>,
    viewers: usize,
    /// Whether messages wait for a page's decision.
    deciding: bool,
    /// The messages that do, by the number of their notice: one for each queue.
    held: BTreeMap<u64, oneshot::Sender<Verdict>>,
}

/// What becomes of a message on a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::dev) enum Verdict {
    /// Done.
    Ack,
    /// The service failed: it comes again.
    Requeue,
    /// The service refuses it: it goes to the dead letters.
    Reject,
}

/// A notice with its number.
#[derive(Debug, Serialize)]
pub(super) struct Numbered {
    pub number: u64,
    /// Ms since the epoch.
    pub at: i64,
    #[serde(flatten)]
    pub notice: Notice,
}

/// Something that happened.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Notice {
    /// A message on a queue. `held`: it waits for a page's decision; else it is acknowledged.
    Message { business: String, queue: String, body: Body, redelivered: bool, held: bool },
    /// What became of a message that was held.
    Decided { message: u64, verdict: Verdict },
    /// An event of a business.
    Event { business: String, body: Body },
    /// A message that came to a business's dead letters.
    DeadLetter { business: String, body: Body },
    /// The businesses have changed: ask for them again.
    Businesses,
    /// Whether messages wait for a page's decision.
    Deciding { deciding: bool },
}

/// A message's body.
#[derive(Debug, Serialize)]
pub(super) struct Body {
    text: String,
    /// Whether it goes on.
    cut: bool,
}

impl From<&[u8]> for Body {
    fn from(bytes: &[u8]) -> Self {
        let shown = &bytes[..bytes.len().min(SHOWN)];
        Self { text: String::from_utf8_lossy(shown).into_owned(), cut: shown.len() < bytes.len() }
    }
}

impl Desk {
    pub(in crate::dev) fn new() -> Self {
        let news = broadcast::Sender::new(BEHIND);
        Self { inner: Arc::new(Inner { run: rand::random(), state: Mutex::default(), news }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock, so that a page which opens in between gets it once.
    fn publish(&self, state: &mut State, notice: Notice) -> u64 {
        let number = state.next;
        state.next += 1;
        let numbered = Arc::new(Numbered { number, at: clock::now_ms(), notice });
        if state.recent.len() == RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back(Arc::clone(&numbered));
        // Fails without pages.
        let _ = self.inner.news.send(numbered);
        number
    }

    /// Shows a message of a queue, and returns what to do with it. Waits only while a page decides. Cancel safe.
    pub(in crate::dev) async fn decide(&self, business: &str, queue: &str, body: &[u8], redelivered: bool) -> Verdict {
        let (number, decision) = {
            let mut state = self.lock();
            let held = state.deciding;
            let (business, queue) = (business.to_owned(), queue.to_owned());
            let notice = Notice::Message { business, queue, body: body.into(), redelivered, held };
            let number = self.publish(&mut state, notice);
            if !held {
                return Verdict::Ack;
            }
            let (sender, decision) = oneshot::channel();
            state.held.retain(|_, sender| !sender.is_closed());
            state.held.insert(number, sender);
            (number, decision)
        };
        // Dropped: no page decides any more.
        let verdict = decision.await.unwrap_or(Verdict::Ack);
        self.publish(&mut self.lock(), Notice::Decided { message: number, verdict });
        verdict
    }

    /// Shows an event; not one that comes though nothing has happened.
    pub(in crate::dev) fn event(&self, business: &str, body: &[u8]) {
        if events::is_census(body) {
            return;
        }
        self.publish(&mut self.lock(), Notice::Event { business: business.to_owned(), body: body.into() });
    }

    /// Shows a dead letter.
    pub(in crate::dev) fn dead_letter(&self, business: &str, body: &[u8]) {
        self.publish(&mut self.lock(), Notice::DeadLetter { business: business.to_owned(), body: body.into() });
    }

    /// The businesses have changed.
    pub(super) fn businesses_changed(&self) {
        self.publish(&mut self.lock(), Notice::Businesses);
    }

    /// Whether pages decide on messages from now on. What waits for a decision when they don't is acknowledged.
    pub(super) fn set_deciding(&self, deciding: bool) {
        let mut state = self.lock();
        state.deciding = deciding && state.viewers > 0;
        let deciding = state.deciding;
        if !deciding {
            state.held.clear();
        }
        self.publish(&mut state, Notice::Deciding { deciding });
    }

    /// Decides on a message. False: it does not wait any more.
    pub(super) fn give(&self, message: u64, verdict: Verdict) -> bool {
        let sender = self.lock().held.remove(&message);
        sender.is_some_and(|sender| sender.send(verdict).is_ok())
    }

    /// Opens a page. `after`: the last notice that it has, if it is of this run. `None`: too many pages are open.
    pub(super) fn view(&self, after: Option<u64>) -> Option<Viewer> {
        let mut state = self.lock();
        if state.viewers == VIEWERS {
            return None;
        }
        state.viewers += 1;
        let unseen = |numbered: &&Arc<Numbered>| after.is_none_or(|after| numbered.number > after);
        let recent = state.recent.iter().filter(unseen).cloned().collect();
        let news = self.inner.news.subscribe();
        Some(Viewer { desk: self.clone(), deciding: state.deciding, recent, news })
    }

    /// See [`Inner::run`].
    pub(super) fn run(&self) -> u32 {
        self.inner.run
    }
}

/// An open page. When the last one is dropped, messages are acknowledged as without a page.
#[derive(Debug)]
pub(super) struct Viewer {
    desk: Desk,
    /// Whether pages decided on messages when it was opened.
    pub deciding: bool,
    recent: VecDeque<Arc<Numbered>>,
    news: broadcast::Receiver<Arc<Numbered>>,
}

/// What a page is told.
#[derive(Debug)]
pub(super) enum Update {
    Notice(Arc<Numbered>),
    /// It was too slow for so many.
    Missed(u64),
}

impl Viewer {
    /// The next one. Cancel safe. `None` never comes as long as `dev` runs.
    pub(super) async fn next(&mut self) -> Option<Update> {
        if let Some(notice) = self.recent.pop_front() {
            return Some(Update::Notice(notice));
        }
        match self.news.recv().await {
            Ok(notice) => Some(Update::Notice(notice)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Update::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        state.viewers -= 1;
        if state.viewers == 0 {
            state.deciding = false;
            state.held.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_page_messages_are_acknowledged_and_the_newest_are_kept() {
        let desk = Desk::new();
        desk.set_deciding(true);
        for n in 0..RECENT + 5 {
            let body = format!("{n}{}", "x".repeat(SHOWN));
            assert_eq!(desk.decide("b", "q", body.as_bytes(), false).await, Verdict::Ack);
        }
        let mut page = desk.view(None).unwrap();
        assert_eq!(page.recent.len(), RECENT);
        let Some(Update::Notice(first)) = page.next().await else { panic!("no notice") };
        let Notice::Message { body, held, .. } = &first.notice else { panic!("{first:?}") };
        assert!(body.cut && body.text.len() == SHOWN && !held);
        let again = desk.view(Some(first.number)).unwrap();
        assert_eq!(again.recent.len(), RECENT - 1);
    }

    #[tokio::test]
    async fn a_page_decides_until_it_is_closed() {
        let desk = Desk::new();
        let mut page = desk.view(None).unwrap();
        desk.set_deciding(true);
        let held = async |page: &mut Viewer| loop {
            if let Some(Update::Notice(numbered)) = page.next().await
                && matches!(numbered.notice, Notice::Message { held: true, .. })
            {
                return numbered.number;
            }
        };
        for verdict in [Verdict::Requeue, Verdict::Reject, Verdict::Ack] {
            let (decided, ()) = tokio::join!(desk.decide("b", "q", b"{}", false), async {
                let number = held(&mut page).await;
                assert!(desk.give(number, verdict));
                assert!(!desk.give(number, verdict), "only once");
            });
            assert_eq!(decided, verdict);
        }
        let (decided, ()) = tokio::join!(desk.decide("b", "q", b"{}", false), async {
            held(&mut page).await;
            drop(page);
        });
        assert_eq!(decided, Verdict::Ack);
        assert_eq!(desk.decide("b", "q", b"{}", false).await, Verdict::Ack);
    }

    #[tokio::test]
    async fn pages_are_few_and_a_slow_one_is_told_what_it_missed() {
        let desk = Desk::new();
        let mut pages: Vec<_> = (0..VIEWERS).map(|_| desk.view(None).unwrap()).collect();
        assert!(desk.view(None).is_none());
        pages.pop();
        pages.push(desk.view(None).unwrap());
        for _ in 0..BEHIND + 10 {
            desk.event("b", b"{}");
        }
        assert!(matches!(pages[0].next().await, Some(Update::Missed(10))));
        assert!(matches!(pages[0].next().await, Some(Update::Notice(_))));
    }
}
