//! A session driven by hand: each test gives inputs with a time and checks the actions.

mod properties;

use serde_json::json;
use wirepost_core::frames::NackCode;

use super::*;
use crate::{
    business::share::Share, drain::Drain, identity::keys::KeyRing, metrics::Metrics, push::receipts::MessageHash,
    revocation::gate::Spent, socket::flood::FloodLimiter,
};

const RULES: Rules = Rules { window: 4, heartbeat: Duration::from_secs(25), write_timeout: Duration::from_secs(30) };
/// Start of every test, ms since the epoch.
const START: i64 = 1_795_580_691_435;
const SESSION: i64 = 3_600_000;

fn business() -> Arc<Business> {
    let config = json!({
        "format": 1, "businessType": "payments", "owner": "shop/payments", "generation": 1, "clientTypes": ["app"],
        "routes": [
            {"messageType": "order", "sendType": "ClientToServer", "from": ["app"], "to": [], "audience": "Addressed"},
            {"messageType": "heavy", "sendType": "ClientToServer", "from": ["app"], "to": [], "audience": "Addressed",
             "schema": {"items": {"anyOf": (0..20).map(|n| json!({"const": n})).collect::<Vec<_>>()}}},
            {"messageType": "paid", "sendType": "ServerToClient", "from": [], "to": ["app"], "receipts": true,
             "audience": "Addressed"},
        ],
        "delivery": "Durable", "retention": {"seconds": 60, "bytes": 1 << 20}, "auth": {"allowedOrigins": []},
        "limits": {"messageBytes": 65536, "messagesPerSecond": 10, "burst": 20}, "sessionMaxSeconds": 3600,
    });
    Arc::new(Business::try_new(serde_json::from_value(config).unwrap()).unwrap())
}

/// A message of which the check may take long.
fn heavy(id: &str) -> String {
    json!({"id": id, "messageType": "heavy", "content": vec![0; 10_000]}).to_string()
}

fn ticket() -> Ticket {
    Ticket {
        purpose: Purpose::Connect,
        business: "payments".into(),
        unique_id: "alice".into(),
        client_type: "app".into(),
        tags: vec![],
        session_ends_at: START + SESSION,
        expires_at: START + 30_000,
        id: rand::random(),
        grant: Grant::new(START, 0, 0),
    }
}

/// One session and its environment.
struct Fixture {
    machine: Machine,
    business: Arc<Business>,
    gate: Arc<Gate>,
    receipts: Receipts,
    now: Now,
    /// Actions since they were last taken.
    actions: Vec<Action>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(RULES, ticket())
    }

    fn with(rules: Rules, ticket: Ticket) -> Self {
        let now = Now { instant: Instant::now(), ms: START };
        let gate = Arc::new(Gate::new(Arc::new(KeyRing::random()), Duration::from_secs(30), &Metrics::default()));
        let limiter = Arc::new(FloodLimiter::default());
        let flood = ConnectionBucket::open(&limiter, limiter.key("payments", "alice"));
        let share = Arc::new(Share::new(&Metrics::default()));
        let machine = Machine::new(rules, true, ticket, Arc::clone(&gate), (flood, share), now);
        Self { machine, business: business(), gate, receipts: Receipts::default(), now, actions: Vec::new() }
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.ms += time.as_millis() as i64;
    }

    fn give(&mut self, input: Input<'_>) {
        let actions = &mut self.actions;
        self.machine.handle(input, self.now, &mut |action| actions.push(action));
    }

    fn text(&mut self, text: &str) {
        let (text, business, receipts) =
            (Utf8Bytes::from(text), Arc::clone(&self.business), std::mem::take(&mut self.receipts));
        self.give(Input::Text { text: &text, business: &business, receipts: &receipts });
        self.receipts = receipts;
    }

    fn order(&mut self, id: &str) {
        self.text(&format!(r#"{{"id":"{id}","messageType":"order","content":1}}"#));
    }

    fn confirm(&mut self, id: &str) {
        self.give(Input::Confirmed(id.to_owned(), Ok(())));
    }

    fn time(&mut self) {
        self.time_with(SocketState::default());
    }

    fn time_with(&mut self, socket: SocketState) {
        self.give(Input::Time(socket));
    }

    /// Lets time pass to each deadline up to `time`.
    fn live(&mut self, time: Duration) {
        let end = self.now.instant + time;
        while self.machine.phase != Phase::Ended {
            let due = self.machine.deadline(&SocketState::default(), self.now);
            if due > end {
                return self.pass(end - self.now.instant);
            }
            self.pass(due.saturating_duration_since(self.now.instant));
            self.time();
            let spins = self.machine.deadline(&SocketState::default(), self.now) <= self.now.instant;
            assert!(!spins || self.machine.phase == Phase::Ended, "it spins");
        }
    }

    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.actions).iter().map(name).collect()
    }

    fn drain(&mut self) {
        let drain = Drain::default();
        let mut draining = drain.subscribe();
        drain.begin(Duration::from_secs(20), self.now.instant + Duration::from_secs(45));
        let share = futures_util::FutureExt::now_or_never(draining.share()).expect("the drain has begun");
        self.give(Input::Drain(share));
    }
}

/// An action in a word.
fn name(action: &Action) -> String {
    match action {
        Action::Reply(Reply::Ack(id)) => format!("ack {id}"),
        Action::Reply(Reply::Nack(nack)) => {
            format!("nack {} {}", nack.id.as_deref().unwrap_or("-"), nack.code.as_str())
        }
        Action::Reply(Reply::Pong) => "pong".into(),
        Action::Reply(Reply::Refreshed { .. }) => "refreshed".into(),
        Action::Reply(Reply::Error { about, .. }) => format!("error {about}"),
        Action::Reply(Reply::Receipt { ids }) => format!("receipt {}", ids.join(",")),
        Action::Reply(Reply::NoReceipt { ids, retryable, .. }) => {
            format!("no receipt {}{}", ids.join(","), if *retryable { ", later" } else { "" })
        }
        Action::Reply(Reply::Expiring { in_seconds }) => format!("expiring {in_seconds}"),
        Action::Reply(Reply::Drain { .. }) => "drain".into(),
        Action::Ping => "ping".into(),
        Action::Publish(prepared) => format!("publish {}", prepared.id),
        Action::Check(..) => "check".into(),
        Action::SetTags(tags) => format!("tags {}", tags.join(",")),
        Action::SetSession(grant, _) => format!("session {}", grant.generation),
        Action::Report(ids) => format!("report {}", ids.join(",")),
        Action::CountRefusedReceipts(count) => format!("refused receipts {count}"),
        Action::RefreshRefused(_) => "refused refresh".to_owned(),
        Action::CountSlowed => "slowed".into(),
        Action::Close(code) => format!("close {}", code.label()),
        Action::End(end) => format!("end {}", end.label()),
    }
}

#[test]
fn a_message_is_published_and_acknowledged_when_the_broker_has_it() {
    let mut session = Fixture::new();
    for id in ["1", "2"] {
        session.order(id);
    }
    assert_eq!(session.take(), ["publish 1", "publish 2"]);
    session.confirm("1");
    session.give(Input::Confirmed("2".into(), Err(PublishError::Unknown("late".into()))));
    assert_eq!(session.take(), ["ack 1", "nack 2 timeout"]);
}

#[test]
fn nothing_is_read_while_the_window_is_full() {
    let mut session = Fixture::new();
    for id in 0..4 {
        assert!(session.machine.may_read());
        session.order(&id.to_string());
    }
    assert!(!session.machine.may_read());
    session.confirm("0");
    assert!(session.machine.may_read());
}

#[test]
fn an_invalid_message_is_refused_with_its_reason() {
    let mut session = Fixture::new();
    for (text, expected) in [
        ("{", "nack - invalid_envelope"),
        (r#"{"id":"a"}"#, "nack a invalid_envelope"),
        (r#"{"id":"b","messageType":"unknown"}"#, "nack b unknown_route"),
        (r#"{"id":"c","messageType":"order","fromUniqueId":"bob"}"#, "nack c identity_mismatch"),
        (r#"{"id":"d","messageType":"wirepost.x"}"#, "nack d not_allowed"),
    ] {
        session.text(text);
        assert_eq!(session.take(), [expected], "{text}");
    }
    session.text(&format!(r#"{{"id":"e","messageType":"order","content":"{}"}}"#, "x".repeat(65_536)));
    assert_eq!(session.take(), ["nack e too_large"]);
}

#[test]
fn beyond_the_rate_messages_are_refused_with_a_time_to_retry() {
    let mut session = Fixture::new();
    for id in 0..20 {
        session.order(&id.to_string());
        session.confirm(&id.to_string());
    }
    session.take();
    session.order("20");
    let [Action::Reply(Reply::Nack(nack))] = &session.actions[..] else { panic!("{:?}", session.actions) };
    assert_eq!((nack.code, nack.retry_after_ms), (NackCode::RateLimited, Some(100)));
    session.take();
    session.pass(Duration::from_millis(100));
    session.order("21");
    assert_eq!(session.take(), ["publish 21"]);
}

#[test]
fn heavy_content_is_checked_off_the_thread_and_nothing_is_read_meanwhile() {
    let mut session = Fixture::new();
    session.text(&heavy("h"));
    assert_eq!(session.take(), ["check"]);
    assert!(!session.machine.may_read());
    session.give(Input::Checked(Ok(Prepared { id: "h".into(), publications: vec![], copies: 0 }), 100));
    assert!(session.machine.may_read());
    session.text(&heavy("i"));
    session.give(Input::Checked(Err(Nack::new(Some("i"), NackCode::SchemaMismatch, "")), 100));
    session.confirm("h");
    assert_eq!(session.take(), ["publish h", "check", "nack i schema_mismatch", "ack h"]);
}

#[test]
fn a_flood_pauses_reading() {
    let mut session = Fixture::new();
    for _ in 0..200 {
        session.give(Input::Frame);
    }
    assert!(session.machine.may_read());
    session.give(Input::Progress(3));
    assert_eq!(session.take(), ["slowed"]);
    assert!(!session.machine.may_read());
    session.live(Duration::from_millis(20));
    assert!(session.machine.may_read());
    session.give(Input::Progress(5000));
    assert!(session.machine.may_read(), "a large part is no flood");
}

#[test]
fn control_frames_are_answered() {
    let mut session = Fixture::new();
    for (text, expected) in [
        (r#"{"op":"ping"}"#, "pong"),
        (r#"{"op":"dance"}"#, "error dance"),
        (r#"{"op":"received","ids":[]}"#, "error received"),
    ] {
        session.text(text);
        assert_eq!(session.take(), [expected], "{text}");
    }
    session.text(r#"{"op":"refresh","token":"x"}"#);
    assert_eq!(session.take(), ["refused refresh", "error refresh"]);
}

#[test]
fn a_client_without_control_frames_sends_messages_only() {
    let mut session = Fixture::new();
    session.machine.control = false;
    session.text(r#"{"op":"ping"}"#);
    assert_eq!(session.take(), ["nack - invalid_envelope"]);
}

#[test]
fn each_receipt_is_reported_once() {
    let mut session = Fixture::new();
    for id in ["a", "b"] {
        session.receipts.sent(MessageHash::of(id));
    }
    session.text(r#"{"op":"received","ids":["a","other"]}"#);
    assert_eq!(session.take(), ["refused receipts 1", "no receipt other", "report a"]);
    session.text(r#"{"op":"received","ids":["a"]}"#);
    assert_eq!(session.take(), ["refused receipts 1", "no receipt a"]);
    session.text(r#"{"op":"received","ids":["b"]}"#);
    assert_eq!(session.take(), ["report b"]);
    session.give(Input::Reported(Reported { ids: vec!["a".into()], outcome: Ok(()) }));
    session.give(Input::Reported(Reported { ids: vec!["b".into()], outcome: Err("away".into()) }));
    assert_eq!(session.take(), ["receipt a", "no receipt b, later"]);
}

fn refresh(session: &mut Fixture, ticket: &Ticket) -> Vec<String> {
    let token = ticket::seal(&session.gate.keys, ticket);
    session.text(&json!({"op": "refresh", "token": token}).to_string());
    session.take()
}

fn resume(session: &Fixture) -> Ticket {
    ticket::open(&session.gate.keys, &session.machine.resume_token(), session.now.ms).unwrap()
}

/// A new ticket with a session that begins and ends later.
fn later(tags: &[&str]) -> Ticket {
    let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
    Ticket { session_ends_at: START + 2 * SESSION, grant: Grant::new(START + SESSION, 0, 0), tags, ..ticket() }
}

#[test]
fn a_refresh_prolongs_the_session_and_replaces_tags_and_tokens() {
    let mut session = Fixture::new();
    let before = resume(&session);
    for other in [
        Ticket { unique_id: "bob".into(), ..later(&["vip"]) },
        Ticket { business: "orders".into(), ..later(&["vip"]) },
        Ticket { purpose: Purpose::Resume, ..later(&["vip"]) },
        Ticket { grant: Grant { origin: 1, ..later(&[]).grant }, ..later(&["vip"]) },
        Ticket { grant: Grant { credential: 1, ..later(&[]).grant }, ..later(&["vip"]) },
    ] {
        assert_eq!(refresh(&mut session, &other), ["refused refresh", "error refresh"]);
    }
    let good = later(&["vip"]);
    assert_eq!(refresh(&mut session, &good), ["tags vip", "session 2", "refreshed"]);
    assert_eq!(refresh(&mut session, &good), ["refused refresh", "error refresh"], "a ticket is good once");
    assert_eq!(session.gate.judge(&before), Err(Spent::Replaced));
    assert_eq!(refresh(&mut session, &later(&["vip"])), ["session 4", "refreshed"], "the tags are the same");
    session.pass(Duration::from_millis(SESSION as u64));
    session.time();
    assert!(!session.take().contains(&"close session_over".to_owned()));
    let resumed = resume(&session);
    assert_eq!(session.gate.judge(&resumed), Ok(()));
    assert_eq!((resumed.tags, resumed.session_ends_at), (vec!["vip".to_owned()], START + 2 * SESSION));
    assert_eq!(resumed.grant.session, before.grant.session, "its connections' ids name it");
}

#[test]
fn a_session_that_becomes_shorter_ends_then_and_its_client_is_told_before() {
    let mut session = Fixture::with(Rules { heartbeat: Duration::from_hours(24), ..RULES }, ticket());
    session.machine.shorten(START + 600_000, session.now);
    session.machine.shorten(START + 700_000, session.now);
    session.live(Duration::from_secs(541));
    assert_eq!(session.take(), ["expiring 60"]);
    session.live(Duration::from_mins(1));
    assert_eq!(session.take(), ["close session_over"]);
}

#[test]
fn a_resume_token_is_good_until_its_connection_lives() {
    let opened_by = resume(&Fixture::new());
    let mut session = Fixture::with(RULES, opened_by.clone());
    assert_eq!(session.gate.judge(&opened_by), Ok(()), "the client may never have got the answer");
    session.give(Input::Frame);
    assert_eq!(session.gate.judge(&opened_by), Err(Spent::Replaced));
    assert_eq!(session.gate.judge(&resume(&session)), Ok(()));
}

#[test]
fn a_client_is_notified_a_minute_before_its_session_ends() {
    let mut session = Fixture::with(Rules { heartbeat: Duration::from_hours(24), ..RULES }, ticket());
    session.live(Duration::from_millis(SESSION as u64 - 60_001));
    assert_eq!(session.take(), [""; 0]);
    session.live(Duration::from_secs(1));
    assert_eq!(session.take(), ["expiring 60"]);
    session.live(Duration::from_mins(2));
    assert_eq!(session.take(), ["close session_over"]);
    session.give(Input::Flushed(CloseCode::SessionOver));
    assert_eq!(session.take(), ["end session_over"]);
}

#[test]
fn an_idle_client_is_pinged_and_an_unresponsive_one_is_dead() {
    let mut session = Fixture::new();
    session.live(Duration::from_secs(25));
    assert_eq!(session.take(), ["ping"]);
    session.give(Input::Frame);
    session.live(Duration::from_secs(26));
    assert_eq!(session.take(), ["ping"], "a pong is a sign of life");
    session.live(Duration::from_secs(25));
    assert_eq!(session.take(), ["end vanished"]);
}

#[test]
fn a_client_whose_socket_is_not_read_is_not_dead() {
    let mut session = Fixture::new();
    let waits = SocketState { awaits_room: true, ..SocketState::default() };
    for _ in 0..10 {
        session.pass(Duration::from_secs(25));
        session.time_with(waits);
    }
    assert_eq!(session.take(), [""; 0]);
}

#[test]
fn a_peer_that_does_not_read_is_too_slow() {
    let mut session = Fixture::new();
    let stalled = SocketState { stalled_since: Some(session.now.instant), ..SocketState::default() };
    assert_eq!(session.machine.deadline(&stalled, session.now), session.now.instant + RULES.heartbeat);
    session.pass(Duration::from_secs(25));
    session.give(Input::Frame);
    assert_eq!(session.machine.deadline(&stalled, session.now), session.now.instant + Duration::from_secs(5));
    session.pass(Duration::from_secs(5));
    session.time_with(stalled);
    assert_eq!(session.take(), ["close too_slow"]);
    assert!(session.machine.deadline(&stalled, session.now) > session.now.instant, "nothing is due again and again");
    session.time_with(SocketState { flushing: true, ..stalled });
    assert_eq!(session.take(), ["end vanished"], "what is flushed gets no more time");
}

#[test]
fn a_message_that_is_never_completed_is_given_up() {
    let mut session = Fixture::new();
    let due = (session.now.instant + Duration::from_secs(3), CloseCode::Overloaded);
    let begun = SocketState { message_due: Some(due), ..SocketState::default() };
    assert_eq!(session.machine.deadline(&begun, session.now), due.0);
    session.pass(Duration::from_secs(3));
    session.time_with(begun);
    assert_eq!(session.take(), ["close overloaded"]);
}

#[test]
fn a_drain_notifies_first_and_waits_for_confirms() {
    let mut session = Fixture::new();
    session.order("1");
    session.drain();
    session.live(Duration::from_secs(15));
    assert_eq!(session.take(), ["publish 1", "drain"]);
    session.live(Duration::from_secs(9));
    assert_eq!(session.take(), [""; 0], "a confirm is missing");
    session.confirm("1");
    session.live(Duration::from_secs(1));
    assert_eq!(session.take(), ["ack 1", "close drain"]);
}

#[test]
fn a_drain_does_not_wait_beyond_its_deadline() {
    let mut session = Fixture::new();
    session.order("1");
    session.drain();
    for _ in 0..5 {
        session.live(Duration::from_secs(9));
        session.give(Input::Frame);
    }
    assert!(session.take().contains(&"close drain".to_owned()));
    session.confirm("1");
    session.order("2");
    assert_eq!(session.take(), [""; 0], "it could not be answered");
}

#[test]
fn the_first_cause_of_an_end_counts() {
    let mut session = Fixture::new();
    session.machine.close(CloseCode::Drain, &mut |action| drop(action));
    session.give(Input::Broken(CloseCode::Binary));
    assert_eq!(session.take(), ["end drain"]);

    for (input, expected) in [
        (Input::Broken(CloseCode::Binary), &["close binary", "end binary"][..]),
        (Input::Broken(CloseCode::BadUtf8), &["close bad_utf8", "end bad_utf8"]),
        (Input::Flushed(CloseCode::Replaced), &["end replaced"]),
        (Input::PeerClosed(1001), &["end client"]),
        (Input::Gone, &["end vanished"]),
    ] {
        let mut session = Fixture::new();
        session.give(input);
        assert_eq!(session.take(), expected);
        session.order("1");
        session.give(Input::Gone);
        session.time();
        assert_eq!(session.take(), [""; 0], "nothing follows the end");
    }
}

#[test]
fn an_end_has_the_code_of_its_cause() {
    for (end, code) in
        [(End::Close(CloseCode::Replaced), 4009), (End::Answer(1001), 1001), (End::Vanished("the peer vanished"), 1006)]
    {
        assert_eq!(end.code(), code);
    }
}
