//! Records written by hand: each promise once kept and once broken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::record::{Business, Client, Entry, Message, Outcome, Tags, To};

const DURABLE: usize = 0;
const TRANSIENT: usize = 1;

/// A record that grows by a second with each entry.
struct Draft(Record);

impl Draft {
    fn new() -> Self {
        let business = |name: &str, durable| Business {
            name: name.to_owned(),
            durable,
            short_retention: false,
            to: BTreeMap::from([("note".to_owned(), vec!["app".to_owned()])]),
            accepts: BTreeSet::new(),
        };
        let mut record = Record::new(vec![business("durable", true), business("transient", false)]);
        for business in [DURABLE, TRANSIENT] {
            record.clients.push(Client {
                name: format!("alice-{business}"),
                business,
                unique_id: "alice".to_owned(),
                client_type: "app".to_owned(),
                plain: false,
            });
        }
        Self(record)
    }

    fn note(&mut self, what: What) {
        let at = Duration::from_secs(self.0.entries.len() as u64);
        self.0.entries.push(Entry { at, what });
    }

    fn message(&mut self, business: usize, to: To) -> usize {
        let number = self.0.messages.len();
        let id = format!("m{number}");
        let (sender, seq, kind) = ("service".to_owned(), number as u64, "note".to_owned());
        let (shared, in_order, expires_at) = (Vec::new(), true, None);
        self.0.messages.push(Message { id, business, shared, sender, seq, in_order, kind, to, expires_at });
        number
    }

    /// Offered and confirmed; in the stream, if an offset is given.
    fn published(&mut self, to: &str, offset: Option<u64>) -> usize {
        let business = if offset.is_some() { DURABLE } else { TRANSIENT };
        let message = self.message(business, To::Identity(to.to_owned()));
        self.note(What::Offered { message });
        self.note(What::Answered { message, outcome: Outcome::Confirmed });
        if let Some(offset) = offset {
            self.note(What::Stored { business, offset, message: Some(message) });
        }
        message
    }

    /// A connection of alice, welcomed at a cursor.
    fn welcomed(&mut self, business: usize, given: Option<u64>, cursor: Option<u64>) -> usize {
        let connection = self.0.connections.len();
        self.0.connections.push(business);
        self.note(What::Asked { connection, cursor: given, tags: Tags::new() });
        self.note(What::Opened { connection });
        self.note(What::Welcome { connection, resumed: Some(given.is_some()), cursor });
        connection
    }

    fn got(&mut self, connection: usize, message: usize, cursor: Option<u64>) {
        self.note(What::Got { connection, message: Some(message), cursor });
    }

    fn kinds(&self) -> Vec<Kind> {
        audit(&self.0, Extent::Complete).iter().map(|violation| violation.kind).collect()
    }
}

/// alice at the end of a stream whose newest message is 9, and three messages behind it.
fn three() -> (Draft, usize, [usize; 3]) {
    let mut draft = Draft::new();
    draft.note(What::Stored { business: DURABLE, offset: 9, message: None });
    let connection = draft.welcomed(DURABLE, None, Some(9));
    let messages = [10, 11, 12].map(|offset| draft.published("alice", Some(offset)));
    (draft, connection, messages)
}

#[test]
fn what_came_in_order_is_no_violation() {
    let (mut draft, connection, messages) = three();
    for (message, offset) in messages.into_iter().zip(10..) {
        draft.got(connection, message, Some(offset));
    }
    assert_eq!(draft.kinds(), []);
}

#[test]
fn what_never_came_is_lost() {
    let (mut draft, connection, messages) = three();
    draft.got(connection, messages[0], Some(10));
    assert_eq!(draft.kinds(), [Kind::Lost, Kind::Lost]);
    assert!(audit(&draft.0, Extent::Running).is_empty(), "it may still be on its way");
}

#[test]
fn a_plain_client_that_retention_may_have_passed_is_owed_nothing() {
    for (short_retention, expected) in [(false, vec![Kind::Lost]), (true, vec![])] {
        let (mut draft, connection, messages) = three();
        draft.0.clients[DURABLE].plain = true;
        draft.0.businesses[DURABLE].short_retention = short_retention;
        draft.got(connection, messages[0], Some(10));
        draft.got(connection, messages[1], Some(11));
        assert_eq!(draft.kinds(), expected);
    }
}

#[test]
fn a_cursor_that_passes_a_message_is_a_silent_gap() {
    let (mut draft, connection, messages) = three();
    draft.got(connection, messages[0], Some(10));
    draft.got(connection, messages[2], Some(12));
    assert_eq!(draft.kinds(), [Kind::SilentGap]);
    let (mut draft, connection, _) = three();
    draft.note(What::Position { connection, cursor: 12 });
    assert_eq!(draft.kinds(), [Kind::SilentGap; 3]);
}

#[test]
fn an_announced_gap_is_not_silent_but_needs_a_cause() {
    let (mut draft, connection, messages) = three();
    draft.note(What::Gap { connection, reason: "retention".to_owned() });
    draft.got(connection, messages[2], Some(12));
    assert_eq!(draft.kinds(), [Kind::FalseGap]);
    draft.0.businesses[DURABLE].short_retention = true;
    assert_eq!(draft.kinds(), []);
}

#[test]
fn a_cursor_of_an_earlier_connection_owes_all_behind_it() {
    let (mut draft, connection, messages) = three();
    draft.got(connection, messages[0], Some(10));
    draft.note(What::Ended { connection, how: String::new() });
    let connection = draft.welcomed(DURABLE, Some(10), Some(10));
    draft.got(connection, messages[2], Some(12));
    assert_eq!(draft.kinds(), [Kind::SilentGap]);
    let (mut draft, ..) = three();
    draft.welcomed(DURABLE, Some(9), Some(11));
    assert_eq!(draft.kinds(), [Kind::SilentGap, Kind::SilentGap, Kind::Lost], "welcome has passed two");
}

#[test]
fn what_comes_twice_is_doubled_and_what_comes_late_is_swapped() {
    let (mut draft, connection, messages) = three();
    for (message, offset) in [(0, 10), (0, 10), (2, 12), (1, 11)] {
        draft.got(connection, messages[message], Some(offset));
    }
    assert_eq!(draft.kinds(), [Kind::Doubled, Kind::Swapped]);
}

#[test]
fn a_push_for_somebody_else_is_leaked() {
    let (mut draft, connection, _) = three();
    let other = draft.published("bob", Some(13));
    draft.note(What::Position { connection, cursor: 9 });
    draft.got(connection, other, Some(13));
    assert_eq!(draft.kinds()[0], Kind::Leaked);
}

#[test]
fn a_push_for_a_tag_is_owed_while_the_tag_is_held_and_leaked_when_it_is_not() {
    let mut draft = Draft::new();
    draft.note(What::Stored { business: DURABLE, offset: 9, message: None });
    let connection = draft.welcomed(DURABLE, None, Some(9));
    let tagged = |draft: &mut Draft, offset| {
        let message = draft.message(DURABLE, To::Tag("vip".to_owned()));
        draft.note(What::Offered { message });
        draft.note(What::Answered { message, outcome: Outcome::Confirmed });
        draft.note(What::Stored { business: DURABLE, offset, message: Some(message) });
        message
    };
    let before = tagged(&mut draft, 10);
    draft.note(What::Refreshing { connection, tags: Tags::from(["vip".to_owned()]) });
    let meanwhile = tagged(&mut draft, 11);
    draft.note(What::Refreshed { connection, done: true });
    draft.note(What::Position { connection, cursor: 9 });
    tagged(&mut draft, 12);
    draft.note(What::Position { connection, cursor: 12 });
    assert_eq!(draft.kinds(), [Kind::SilentGap], "only the last was owed");
    draft.got(connection, meanwhile, Some(11));
    draft.note(What::Refreshing { connection, tags: Tags::new() });
    draft.note(What::Refreshed { connection, done: true });
    draft.got(connection, before, Some(10));
    assert!(draft.kinds().contains(&Kind::Leaked), "{:?}", draft.kinds());
}

#[test]
fn a_confirmed_push_is_in_the_stream_once_for_each_attempt_and_in_order() {
    let (mut draft, ..) = three();
    let message = draft.message(DURABLE, To::Identity("bob".to_owned()));
    draft.note(What::Offered { message });
    draft.note(What::Answered { message, outcome: Outcome::NotArrived });
    draft.note(What::Offered { message });
    draft.note(What::Answered { message, outcome: Outcome::Confirmed });
    assert!(draft.kinds().contains(&Kind::Lost));
    for (offset, kind) in [(13, None), (14, Some(Kind::Doubled))] {
        draft.note(What::Stored { business: DURABLE, offset, message: Some(message) });
        assert_eq!(draft.kinds().iter().find(|kind| **kind != Kind::Lost), kind.as_ref(), "{offset}");
    }
    let mut draft = Draft::new();
    draft.published("bob", Some(8));
    draft.published("bob", Some(7));
    assert_eq!(draft.kinds(), [Kind::Swapped]);
}

#[test]
fn what_was_refused_as_not_arrived_never_appears() {
    let mut draft = Draft::new();
    let message = draft.message(DURABLE, To::Identity("bob".to_owned()));
    draft.note(What::Offered { message });
    draft.note(What::Answered { message, outcome: Outcome::NotArrived });
    assert_eq!(draft.kinds(), []);
    draft.note(What::Stored { business: DURABLE, offset: 3, message: Some(message) });
    assert_eq!(draft.kinds(), [Kind::Refused]);
}

#[test]
fn what_was_acknowledged_is_consumed_and_no_more_often_than_it_was_sent() {
    let mut draft = Draft::new();
    let message = draft.message(DURABLE, To::Queues(vec!["orders".to_owned()]));
    draft.note(What::Offered { message });
    draft.note(What::Answered { message, outcome: Outcome::Confirmed });
    assert_eq!(draft.kinds(), [Kind::Lost]);
    let consumed = |queue: &str, redelivered| What::Consumed { queue: queue.to_owned(), message, redelivered };
    draft.note(consumed("orders", false));
    draft.note(consumed("orders", true));
    assert_eq!(draft.kinds(), [], "a crash of the consumer brings it again");
    draft.note(consumed("orders", false));
    assert_eq!(draft.kinds(), [Kind::Doubled]);
    draft.note(consumed("visits", false));
    assert!(draft.kinds().contains(&Kind::Leaked));
}

#[test]
fn without_cursors_the_numbers_of_a_sender_tell() {
    let live = || {
        let mut draft = Draft::new();
        draft.published("alice", None);
        let connection = draft.welcomed(TRANSIENT, None, None);
        let messages = [(); 3].map(|()| draft.published("alice", None));
        (draft, connection, messages)
    };
    let (mut draft, connection, messages) = live();
    assert_eq!(draft.kinds(), [Kind::Lost; 3], "what was before the welcome is not owed");
    draft.got(connection, messages[0], None);
    draft.got(connection, messages[2], None);
    assert_eq!(draft.kinds(), [Kind::SilentGap]);
    draft.got(connection, messages[1], None);
    assert_eq!(draft.kinds(), [Kind::Swapped]);
    draft.got(connection, messages[1], None);
    assert_eq!(draft.kinds(), [Kind::Swapped, Kind::Doubled]);
    let (mut draft, connection, messages) = live();
    draft.note(What::Gap { connection, reason: "incarnation".to_owned() });
    draft.got(connection, messages[2], None);
    assert_eq!(draft.kinds(), []);
    let (mut draft, connection, _) = live();
    draft.note(What::Ended { connection, how: String::new() });
    assert_eq!(draft.kinds(), [], "what is pushed while nobody is there is nobody's");
}

/// Of the business with cursors, which accepts what the other one sends to both; alice's connection there, and the message.
fn shared(accepts: bool) -> (Draft, usize, usize) {
    let mut draft = Draft::new();
    draft.0.businesses[DURABLE].accepts.extend(accepts.then_some(TRANSIENT));
    draft.note(What::Stored { business: DURABLE, offset: 9, message: None });
    let connection = draft.welcomed(DURABLE, None, Some(9));
    let message = draft.message(TRANSIENT, To::Identity("alice".to_owned()));
    draft.0.messages[message].shared = vec![DURABLE, TRANSIENT];
    draft.note(What::Offered { message });
    (draft, connection, message)
}

#[test]
fn a_message_to_several_businesses_is_in_the_stream_of_each_that_accepts_it_and_comes_to_its_clients() {
    let confirmed = |accepts| {
        let (mut draft, connection, message) = shared(accepts);
        draft.note(What::Answered { message, outcome: Outcome::Confirmed });
        (draft, connection, message)
    };
    let (mut draft, connection, message) = confirmed(true);
    assert_eq!(draft.kinds(), [Kind::Lost], "no copy");
    draft.note(What::Stored { business: DURABLE, offset: 10, message: Some(message) });
    assert_eq!(draft.kinds(), [Kind::Lost], "it never came to alice");
    draft.got(connection, message, Some(10));
    assert_eq!(draft.kinds(), []);
    draft.note(What::Stored { business: DURABLE, offset: 11, message: Some(message) });
    assert!(draft.kinds().contains(&Kind::Doubled), "{:?}", draft.kinds());
    let (mut draft, connection, message) = confirmed(false);
    assert_eq!(draft.kinds(), [], "nobody accepts it");
    draft.note(What::Stored { business: DURABLE, offset: 10, message: Some(message) });
    assert_eq!(draft.kinds(), [Kind::Leaked], "nobody has bound that");
    draft.got(connection, message, Some(10));
    assert_eq!(draft.kinds(), [Kind::Leaked; 2]);
}

#[test]
fn only_the_attempt_that_was_confirmed_may_have_brought_a_business_nothing() {
    for (again, expected) in [(false, vec![Kind::Lost]), (true, vec![])] {
        let (mut draft, _, message) = shared(true);
        let declined = What::Declined { message, business: DURABLE, refused: false, alone: true };
        draft.note(declined.clone());
        draft.note(What::Answered { message, outcome: Outcome::Unknown });
        draft.note(What::Offered { message });
        if again {
            draft.note(declined);
        }
        draft.note(What::Answered { message, outcome: Outcome::Confirmed });
        assert_eq!(draft.kinds(), expected, "again: {again}");
    }
}

#[test]
fn an_attempt_that_did_not_arrive_counts_once_whoever_refused_it() {
    let (mut draft, connection, message) = shared(false);
    draft.note(What::Declined { message, business: DURABLE, refused: true, alone: false });
    draft.note(What::Answered { message, outcome: Outcome::NotArrived });
    draft.note(What::AcceptChanging { business: DURABLE, from: TRANSIENT, accepts: true });
    draft.note(What::Offered { message });
    draft.note(What::Answered { message, outcome: Outcome::Confirmed });
    draft.note(What::Stored { business: DURABLE, offset: 10, message: Some(message) });
    draft.got(connection, message, Some(10));
    assert_eq!(draft.kinds(), []);
    draft.note(What::Stored { business: DURABLE, offset: 11, message: Some(message) });
    assert!(draft.kinds().contains(&Kind::Doubled), "{:?}", draft.kinds());
}

#[test]
fn while_acceptance_changes_either_may_hold_and_a_refusal_is_true() {
    let (mut draft, connection, message) = shared(true);
    draft.note(What::Declined { message, business: DURABLE, refused: true, alone: true });
    assert_eq!(draft.kinds(), [Kind::Broken], "it accepts it");
    let (business, from, accepts) = (DURABLE, TRANSIENT, false);
    draft.0.entries.insert(2, Entry { at: Duration::ZERO, what: What::AcceptChanging { business, from, accepts } });
    draft.note(What::Answered { message, outcome: Outcome::Confirmed });
    assert_eq!(draft.kinds(), []);
    draft.note(What::Stored { business: DURABLE, offset: 10, message: Some(message) });
    assert_eq!(draft.kinds(), [Kind::Refused], "it was refused");
    let (mut draft, again, message) = shared(true);
    assert_eq!(again, connection);
    draft.note(What::AcceptChanging { business, from, accepts });
    draft.note(What::AcceptSettled { business, from, accepts });
    draft.note(What::Answered { message, outcome: Outcome::Confirmed });
    draft.note(What::Stored { business: DURABLE, offset: 10, message: Some(message) });
    assert_eq!(draft.kinds(), [], "taken back meanwhile");
    draft.got(connection, message, Some(10));
    assert_eq!(draft.kinds(), [], "it may have been on its way");
}
