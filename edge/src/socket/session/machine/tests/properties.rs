//! Invariants under any input in any order.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Order,
    Nonsense,
    Heavy,
    Ping,
    Frame,
    /// The broker answers the oldest message; false: it refused it.
    Confirm(bool),
    /// The check ends; false: the content does not match.
    Checked(bool),
    /// So many ms.
    Pass(u32),
    Stall(u32),
    Drain,
    Broken,
    /// The queue is closed from elsewhere.
    Closed,
    PeerClosed,
    Gone,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => Just(Step::Order),
        3 => Just(Step::Nonsense),
        2 => Just(Step::Heavy),
        4 => Just(Step::Ping),
        2 => Just(Step::Frame),
        10 => any::<bool>().prop_map(Step::Confirm),
        4 => any::<bool>().prop_map(Step::Checked),
        6 => (0..40_000_u32).prop_map(Step::Pass),
        1 => (0..60_000_u32).prop_map(Step::Stall),
        1 => Just(Step::Drain),
        1 => Just(Step::Broken),
        1 => Just(Step::Closed),
        1 => Just(Step::PeerClosed),
        1 => Just(Step::Gone),
    ]
}

/// The environment of a session.
#[derive(Default)]
struct World {
    sent: u32,
    /// Messages that were read, in order, and how many answers each got.
    answers: BTreeMap<u32, u32>,
    published: VecDeque<String>,
    checking: Option<String>,
    pings: u32,
    pongs: u32,
    acks: Vec<u32>,
    confirmed: Vec<u32>,
    closed: Option<CloseCode>,
    end: Option<End>,
}

impl World {
    fn see(&mut self, action: Action) {
        assert_eq!(self.end, None, "an action after the end: {action:?}");
        let queues = matches!(action, Action::Reply(_) | Action::Ping | Action::Publish(_) | Action::Check(..));
        assert!(self.closed.is_none() || !queues, "after the close: {action:?}");
        match action {
            Action::Publish(prepared) => self.published.push_back(prepared.id),
            Action::Reply(Reply::Ack(id)) => {
                self.acks.push(id.parse().unwrap());
                self.answer(&id);
            }
            Action::Reply(Reply::Nack(nack)) => self.answer(&nack.id.expect("each message here has an id")),
            Action::Reply(Reply::Pong) => self.pongs += 1,
            Action::Close(code) => {
                assert_eq!(self.closed, None, "closed twice");
                self.closed = Some(code);
            }
            Action::End(end) => self.end = Some(end),
            _ => {}
        }
    }

    fn answer(&mut self, id: &str) {
        let answers = self.answers.get_mut(&id.parse().unwrap()).expect("an answer to nothing");
        *answers += 1;
        assert_eq!(*answers, 1, "{id} is answered twice");
    }
}

fn run(steps: Vec<Step>) {
    let mut session = Fixture::new();
    let mut world = World::default();
    let mut stalled_since = None;
    for step in steps {
        let may_read = session.machine.may_read();
        let open = world.closed.is_none() && world.end.is_none();
        let message = |world: &mut World| {
            world.sent += 1;
            if open {
                world.answers.insert(world.sent, 0);
            }
            world.sent
        };
        match step {
            Step::Order if may_read => {
                let id = message(&mut world);
                session.order(&id.to_string());
            }
            Step::Nonsense if may_read => {
                let id = message(&mut world);
                session.text(&format!(r#"{{"id":"{id}","messageType":"unknown"}}"#));
            }
            Step::Heavy if may_read => {
                let id = message(&mut world);
                session.text(&heavy(&id.to_string()));
                if session.actions.iter().any(|action| matches!(action, Action::Check(..))) {
                    world.checking = Some(id.to_string());
                }
            }
            Step::Ping if may_read => {
                world.pings += u32::from(open);
                session.text(r#"{"op":"ping"}"#);
            }
            Step::Frame if may_read => session.give(Input::Frame),
            Step::Order | Step::Nonsense | Step::Heavy | Step::Ping | Step::Frame => {}
            Step::Confirm(good) => {
                if let Some(id) = world.published.pop_front() {
                    if good && open {
                        world.confirmed.push(id.parse().unwrap());
                    }
                    let outcome = if good { Ok(()) } else { Err(PublishError::Refused("no queue".into())) };
                    session.give(Input::Confirmed(id, outcome));
                }
            }
            Step::Checked(good) => {
                if let Some(id) = world.checking.take() {
                    let checked = if good {
                        Ok(Prepared { id, publications: vec![], copies: 0 })
                    } else {
                        Err(Nack::new(Some(&id), NackCode::SchemaMismatch, ""))
                    };
                    session.give(Input::Checked(checked, 100));
                }
            }
            Step::Pass(ms) => {
                stalled_since = None;
                session.live(Duration::from_millis(ms.into()));
            }
            Step::Stall(ms) => {
                let since = *stalled_since.get_or_insert(session.now.instant);
                session.pass(Duration::from_millis(ms.into()));
                session.time_with(SocketState { stalled_since: Some(since), ..SocketState::default() });
            }
            Step::Drain => session.drain(),
            Step::Broken => session.give(Input::Broken(CloseCode::Protocol)),
            Step::Closed => session.give(Input::Flushed(world.closed.unwrap_or(CloseCode::Replaced))),
            Step::PeerClosed => session.give(Input::PeerClosed(1000)),
            Step::Gone => session.give(Input::Gone),
        }
        for action in std::mem::take(&mut session.actions) {
            world.see(action);
        }
        assert!(world.published.len() <= RULES.window, "more than the window holds");
    }
    assert_eq!(world.pongs, world.pings);
    assert_eq!(world.acks, world.confirmed, "acks come in the order of confirms");
    if let (Some(closed), Some(End::Close(code))) = (world.closed, world.end) {
        assert_eq!(closed, code, "the first cause counts");
    }
    if world.closed.is_none() && world.end.is_none() {
        for (id, answers) in &world.answers {
            let id = id.to_string();
            let waits = world.published.contains(&id) || world.checking.as_ref() == Some(&id);
            assert_eq!(*answers, u32::from(!waits), "{id}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn each_message_has_one_answer_and_each_connection_one_end(steps in prop::collection::vec(step(), 1..120)) {
        run(steps);
    }
}
