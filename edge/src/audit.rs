//! Who was refused, and what was done with a key that may end sessions: a line for each, with the address, the business
//! and the reason, and never a credential. The lines have the target [`TARGET`], so that they can be routed elsewhere.
//!
//! *Bound*: strangers can cause any number of refusals. Each business may have [`PER_BUSINESS`] lines for each action,
//! and all together [`IN_ALL`]; what exceeds that is summed by action, business and reason, and each sum is a line of
//! its own, every [`SUM_INTERVAL`]. So nothing is left out: a refusal has a line, or is counted in one.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    bucket::{Bucket, Rate},
    metrics::{Metrics, label},
};

/// Of all audit lines.
pub const TARGET: &str = "wirepost_edge::audit";
/// Lines for one action of one business: in a burst, and in a second after it.
const PER_BUSINESS: Rate = Rate { per_unit: Duration::from_millis(100), burst: 100 };
/// Lines of all.
const IN_ALL: Rate = Rate { per_unit: Duration::from_millis(20), burst: 500 };
/// Between two lines of sums.
const SUM_INTERVAL: Duration = Duration::from_secs(10);
/// Buckets and sums that are remembered; beyond it they share one.
const SUBJECTS: usize = 1024;
/// Addresses that a sum names.
const ADDRESSES: usize = 8;
/// Characters of a description.
const DETAIL: usize = 300;

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The token call.
    Token,
    /// Opening a socket.
    Connect,
    /// Prolonging a session.
    Refresh,
    /// The messages call.
    Push,
    /// Ending sessions.
    Revoke,
    /// Reading the description.
    Describe,
    /// Asking which clients are connected.
    Presence,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Connect => "connect",
            Self::Refresh => "refresh",
            Self::Push => "push",
            Self::Revoke => "revoke",
            Self::Describe => "describe",
            Self::Presence => "presence",
        }
    }
}

/// One refusal.
#[derive(Clone, Copy, Debug)]
pub struct Refused<'a> {
    /// What was tried.
    pub action: Action,
    /// Of which business, if it is one of this edge. Never a name that a caller has made up.
    pub business: Option<&'a str>,
    /// By whom; `None` = not known.
    pub address: Option<IpAddr>,
    /// A stable word.
    pub reason: &'static str,
    /// In words; contains no credential, and nothing that a caller has made up.
    pub detail: Option<&'a str>,
}

/// See the module.
#[derive(Debug)]
pub struct Audit {
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    in_all: Bucket,
    buckets: HashMap<Subject, Bucket>,
    sums: HashMap<(Subject, &'static str), Sum>,
}

/// An action, and a business; empty for none.
type Subject = (Option<Action>, String);

#[derive(Debug, Default)]
struct Sum {
    count: u64,
    addresses: Vec<IpAddr>,
    more: bool,
}

impl Audit {
    /// Nothing was refused yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { state: Mutex::default(), metrics }
    }

    /// Writes it down, or adds it to a sum.
    pub fn refused(&self, refused: &Refused<'_>) {
        let Refused { action, business, address, reason, detail } = *refused;
        self.metrics.audited.get_or_create(&label(reason)).inc();
        let subject = (Some(action), business.unwrap_or_default().to_owned());
        if !self.state.lock().unwrap_or_else(PoisonError::into_inner).takes(subject, reason, address) {
            self.metrics.audit_summed.inc();
            return;
        }
        let detail = detail.map(|detail| detail.chars().take(DETAIL).collect::<String>());
        let (action, address) = (action.word(), address.map(|address| address.to_canonical().to_string()));
        tracing::info!(target: TARGET, action, outcome = "refused", business, address, reason, detail, "audit");
    }

    /// Writes the sums down until `stop`, and once more then.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(SUM_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.write_sums(),
                () = stop.cancelled() => return self.write_sums(),
            }
        }
    }

    fn write_sums(&self) {
        let sums = self.state.lock().unwrap_or_else(PoisonError::into_inner).close_sums();
        for (((action, business), reason), Sum { count, addresses, more }) in sums {
            let action = action.map_or("several", Action::word);
            let business = Some(business).filter(|business| !business.is_empty());
            let addresses: Vec<String> = addresses.iter().map(|address| address.to_canonical().to_string()).collect();
            let addresses = addresses.join(",") + if more { ",…" } else { "" };
            tracing::info!(target: TARGET, action, outcome = "refused", business, reason, count, addresses, "audit: more of them");
        }
    }
}

impl State {
    /// Whether it gets a line; else it is in a sum.
    fn takes(&mut self, subject: Subject, reason: &'static str, address: Option<IpAddr>) -> bool {
        let now = Instant::now();
        let known = self.buckets.contains_key(&subject) || self.buckets.len() < SUBJECTS;
        let key = if known { subject.clone() } else { Subject::default() };
        let bucket = self.buckets.entry(key).or_default();
        // Charged only where both have room.
        let mut in_all = self.in_all;
        if in_all.try_add(IN_ALL, now).is_ok() && bucket.try_add(PER_BUSINESS, now).is_ok() {
            self.in_all = in_all;
            return true;
        }
        let key = (subject, reason);
        let known = self.sums.contains_key(&key) || self.sums.len() < SUBJECTS;
        let sum = self.sums.entry(if known { key } else { (Subject::default(), "several") }).or_default();
        sum.count += 1;
        if let Some(address) = address.filter(|address| !sum.addresses.contains(address)) {
            if sum.addresses.len() < ADDRESSES {
                sum.addresses.push(address);
            } else {
                sum.more = true;
            }
        }
        false
    }

    /// The sums so far, sorted.
    fn close_sums(&mut self) -> Vec<((Subject, &'static str), Sum)> {
        let now = Instant::now();
        self.buckets.retain(|_, bucket| !bucket.is_empty(now));
        let mut sums: Vec<_> = std::mem::take(&mut self.sums).into_iter().collect();
        sums.sort_by(|(((_, a), reason_a), _), (((_, b), reason_b), _)| (a, reason_a).cmp(&(b, reason_b)));
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(business: &str) -> Subject {
        (Some(Action::Token), business.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn what_exceeds_the_rate_of_its_business_is_counted_and_others_keep_their_lines() {
        let mut state = State::default();
        let address = |last: u32| Some(IpAddr::from((0x0a00_0000 + last).to_be_bytes()));
        let lines = (0..1_000).filter(|n| state.takes(subject("pay"), "invalid_token", address(*n))).count();
        assert_eq!(lines, 100);
        assert!(state.takes(subject("chat"), "origin", address(1)), "another business is not told");
        let sums = state.close_sums();
        let [(_, Sum { count, addresses, more })] = &sums[..] else { panic!("{sums:?}") };
        assert_eq!((*count, addresses.len(), *more), (900, ADDRESSES, true));
        assert!(state.close_sums().is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        let lines = (0..100).filter(|_| state.takes(subject("pay"), "invalid_token", None)).count();
        assert_eq!(lines, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_nothing_is_left_out() {
        let mut state = State::default();
        let all = 5_000_u64;
        let lines = (0..all).filter(|n| state.takes(subject(&n.to_string()), "origin", None)).count() as u64;
        assert!(state.buckets.len() <= SUBJECTS + 1 && state.sums.len() <= SUBJECTS + 1);
        assert_eq!(lines, 500, "as many as all may have");
        assert_eq!(state.close_sums().iter().map(|(_, sum)| sum.count).sum::<u64>(), all - lines);
        tokio::time::advance(Duration::from_mins(1)).await;
        state.close_sums();
        assert!(state.buckets.is_empty(), "empty buckets are forgotten");
    }
}
