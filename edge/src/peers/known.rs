//! What is known of each other edge, by its address.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;

use super::{Answer, Load, MAX_PEERS, Silence, names::NameError};

/// Labels of metrics, in the order of [`Known::settle`].
pub(super) const STATES: [&str; 3] = ["answers", "refuses", "silent"];
/// Between two looks at the names.
const NAMES_INTERVAL: Duration = Duration::from_secs(2);
/// How long names may stay unresolved until edges may be missing that nobody has heard of.
const NAMES_HOLD: Duration = Duration::from_secs(10);
/// One that only others have named is forgotten after this time without an answer.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// How old an answer may be to say how an edge is.
const FRESH: Duration = Duration::from_millis(2_500);
/// Questions without an answer, after which an edge is asked for nothing else.
const SILENT_AFTER: u32 = 3;

#[derive(Default)]
pub(super) struct Known {
    edges: HashMap<SocketAddr, Peer>,
    /// When the names were resolved last.
    found_at: Option<Instant>,
    looked_at: Option<Instant>,
    /// The name that can't be resolved, and why.
    trouble: Option<(String, String)>,
    /// When an edge has asked for which there was no room.
    left_out: Option<Instant>,
}

struct Peer {
    /// Whether a name leads to it.
    listed: bool,
    state: State,
    /// The last answer.
    load: Option<Load>,
    /// When it came; at first, when it was heard of.
    heard: Instant,
    /// Its process, by its last answer or question.
    instance: Option<String>,
    /// When it has asked last how this edge is: then it is one of ours, whether it answers or not.
    asked: Option<Instant>,
}

enum State {
    New,
    /// It is this edge itself.
    Me,
    Answers,
    Refuses,
    Silent {
        times: u32,
        why: Silence,
    },
}

/// An edge to ask.
pub(super) struct Place {
    pub(super) address: SocketAddr,
    /// Its name, or its address where that is not known.
    pub(super) name: String,
    /// Its process; empty: not known yet.
    pub(super) instance: String,
    /// Why it is not asked.
    pub(super) silent: Option<String>,
}

impl Known {
    pub(super) fn names_are_due(&self) -> bool {
        self.looked_at.is_none_or(|at| at.elapsed() >= NAMES_INTERVAL)
    }

    /// The names were resolved, or could not be: then what is known stays.
    pub(super) fn found(&mut self, found: Result<Vec<SocketAddr>, NameError>) {
        let now = Instant::now();
        self.looked_at = Some(now);
        match found {
            Ok(found) => {
                self.found_at = Some(now);
                self.trouble = None;
                for (address, peer) in &mut self.edges {
                    peer.listed = found.contains(address);
                }
                for address in found {
                    self.edges.entry(address).or_insert_with(|| Peer::new(true));
                }
            }
            Err(error) => self.trouble = Some((error.name().to_owned(), error.to_string())),
        }
    }

    /// Another edge has named this one. Whether it is new.
    pub(super) fn heard_of(&mut self, address: SocketAddr) -> bool {
        let new = !self.edges.contains_key(&address) && self.edges.len() <= MAX_PEERS;
        if new {
            self.edges.insert(address, Peer::new(false));
        }
        new
    }

    /// An edge has asked how this one is, and is to be asked at this address. Whether it is new.
    pub(super) fn has_asked(&mut self, address: SocketAddr, instance: &str) -> bool {
        let new = self.heard_of(address);
        match self.edges.get_mut(&address) {
            Some(peer) => (peer.instance, peer.asked) = (Some(instance.to_owned()), Some(Instant::now())),
            None => self.left_out = Some(Instant::now()),
        }
        new
    }

    /// What to ask: all but this edge itself.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.others().map(|(address, _)| *address).collect()
    }

    fn others(&self) -> impl Iterator<Item = (&SocketAddr, &Peer)> {
        self.edges.iter().filter(|(_, peer)| !matches!(peer.state, State::Me))
    }

    /// An edge has answered, or has not. `me`: this process.
    pub(super) fn heard(&mut self, address: SocketAddr, me: &str, load: Result<Load, Silence>) {
        let Some(peer) = self.edges.get_mut(&address) else { return };
        match load {
            Ok(load) if load.instance == me => peer.state = State::Me,
            Ok(load) => {
                (peer.state, peer.heard) = (State::Answers, Instant::now());
                peer.instance = Some(load.instance.clone());
                let named = load.peers.iter().take(MAX_PEERS).copied().collect::<Vec<_>>();
                peer.load = Some(load);
                for other in named {
                    self.heard_of(other);
                }
            }
            Err(Silence::Refused) => peer.state = State::Refuses,
            Err(why) => {
                let times = if let State::Silent { times, .. } = peer.state { times.saturating_add(1) } else { 1 };
                peer.state = State::Silent { times, why };
            }
        }
    }

    /// Forgets what no name leads to and what does not answer. How many are in each of the [`STATES`].
    pub(super) fn settle(&mut self) -> [usize; 3] {
        self.edges.retain(|_, peer| {
            let asks = peer.asked.is_some_and(|at| at.elapsed() < FORGOTTEN_AFTER);
            peer.listed
                || asks
                || match peer.state {
                    State::Me => false,
                    State::Refuses => peer.load.is_none() && peer.heard.elapsed() < FORGOTTEN_AFTER,
                    State::New | State::Answers | State::Silent { .. } => peer.heard.elapsed() < FORGOTTEN_AFTER,
                }
        });
        let mut counts = [0; 3];
        for (_, peer) in self.others() {
            match peer.state {
                State::Answers => counts[0] += 1,
                State::Refuses => counts[1] += 1,
                State::Silent { .. } => counts[2] += 1,
                State::New | State::Me => {}
            }
        }
        counts
    }

    /// Whether each that is known has answered or refused at least once.
    pub(super) fn have_spoken(&self) -> bool {
        self.found_at.is_some() && self.others().all(|(_, peer)| matches!(peer.state, State::Answers | State::Refuses))
    }

    /// Those that have answered a moment ago.
    pub(super) fn speaking(&self) -> Vec<SocketAddr> {
        let speaks = |peer: &Peer| matches!(peer.state, State::Answers) && peer.heard.elapsed() < FRESH;
        self.edges.iter().filter(|(_, peer)| speaks(peer)).map(|(address, _)| *address).collect()
    }

    /// The processes of those that do not refuse connections.
    pub(super) fn instances(&self) -> HashSet<String> {
        let lives = |peer: &&Peer| !matches!(peer.state, State::Refuses);
        self.others()
            .map(|(_, peer)| peer)
            .filter(lives)
            .filter_map(|peer| Some(peer.load.as_ref()?.instance.clone()))
            .collect()
    }

    /// The loads of all others; `None`: not all of them are known to be well.
    pub(super) fn loads(&self) -> Option<Vec<Load>> {
        if self.trouble.is_some() || self.found_at.is_none() {
            return None;
        }
        let mut loads: Vec<Load> = Vec::new();
        for (_, peer) in self.edges_of_ours() {
            let load = peer.load.as_ref().filter(|_| peer.heard.elapsed() < FRESH)?;
            if !matches!(peer.state, State::Answers) {
                return None;
            }
            if loads.iter().all(|other| other.instance != load.instance) {
                loads.push(load.clone());
            }
        }
        Some(loads)
    }

    /// The others, without those that others have named and that have never answered or asked: they may be none of our edges.
    fn edges_of_ours(&self) -> impl Iterator<Item = (&SocketAddr, &Peer)> {
        let answering: HashSet<&str> =
            self.others().filter_map(|(_, peer)| Some(peer.load.as_ref()?.instance.as_str())).collect();
        // One that asks from an address where it can't be asked, and answers at another one, is known.
        let asks = move |peer: &Peer| peer.instance.as_deref().is_some_and(|instance| !answering.contains(instance));
        self.others().filter(move |(_, peer)| peer.listed || peer.load.is_some() || asks(peer))
    }

    /// Whom to ask who is here.
    pub(super) fn places(&self) -> Vec<Place> {
        let place = |(address, peer): (&SocketAddr, &Peer)| Place {
            address: *address,
            name: peer.load.as_ref().map_or_else(|| address.to_string(), |load| load.edge.clone()),
            instance: peer.instance.clone().unwrap_or_default(),
            silent: match &peer.state {
                State::Silent { times, why } if *times >= SILENT_AFTER => Some(why.to_string()),
                _ => None,
            },
        };
        self.edges_of_ours().map(place).collect()
    }

    /// Edges may be missing that nobody has heard of.
    pub(super) fn doubts(&self) -> Vec<Answer> {
        let held = self.found_at.is_some_and(|at| at.elapsed() < NAMES_HOLD);
        let lost = self.trouble.clone().filter(|_| !held).map(|(name, why)| Answer::Unknown(name, why));
        let left_out = self.left_out.filter(|at| at.elapsed() < FORGOTTEN_AFTER).map(|_| {
            let why = format!("there are more than {MAX_PEERS} other edges");
            Answer::Unknown("others".to_owned(), why)
        });
        lost.into_iter().chain(left_out).collect()
    }
}

impl Peer {
    fn new(listed: bool) -> Self {
        Self { listed, state: State::New, load: None, heard: Instant::now(), instance: None, asked: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(edge: &str, peers: Vec<SocketAddr>) -> Load {
        Load {
            edge: edge.to_owned(),
            instance: format!("i-{edge}"),
            connections: 1,
            leaving: 0,
            max_connections: 10,
            seconds: 60,
            draining: false,
            broker: true,
            peers,
        }
    }

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 9090))
    }

    fn names(known: &Known) -> Vec<(String, bool)> {
        let mut names: Vec<_> = known.places().into_iter().map(|place| (place.name, place.silent.is_some())).collect();
        names.sort();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn an_edge_that_falls_silent_is_named_and_one_that_refuses_is_asked() {
        let mut known = Known::default();
        known.found(Ok(vec![at(1), at(2), at(3)]));
        known.heard(at(1), "i-me", Ok(load("me", Vec::new())));
        known.heard(at(2), "i-me", Ok(load("two", Vec::new())));
        known.heard(at(3), "i-me", Ok(load("three", Vec::new())));
        assert_eq!(names(&known), [("three".to_owned(), false), ("two".to_owned(), false)]);
        assert_eq!(known.loads().map(|loads| loads.len()), Some(2));
        for _ in 0..SILENT_AFTER {
            known.heard(at(2), "i-me", Err(Silence::Timeout));
        }
        known.heard(at(3), "i-me", Err(Silence::Refused));
        assert_eq!(known.settle(), [0, 1, 1]);
        assert_eq!(names(&known), [("three".to_owned(), false), ("two".to_owned(), true)]);
        assert_eq!(known.loads(), None);
        // As long as a name leads to it.
        tokio::time::advance(FORGOTTEN_AFTER * 2).await;
        known.settle();
        assert_eq!(names(&known).len(), 2);
        known.found(Ok(vec![at(1)]));
        known.settle();
        assert_eq!(names(&known), []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_name_counts_once_it_has_answered_and_is_forgotten_when_it_does_not() {
        let mut known = Known::default();
        known.found(Ok(vec![at(2)]));
        known.heard(at(2), "i-me", Ok(load("two", vec![at(3), at(4)])));
        assert_eq!(names(&known), [("two".to_owned(), false)]);
        known.heard(at(3), "i-me", Ok(load("three", Vec::new())));
        known.heard(at(4), "i-me", Err(Silence::Timeout));
        assert_eq!(names(&known), [("three".to_owned(), false), ("two".to_owned(), false)]);
        assert!(!known.heard_of(at(3)));
        tokio::time::advance(FORGOTTEN_AFTER).await;
        known.heard(at(3), "i-me", Ok(load("three", Vec::new())));
        known.settle();
        assert!(known.heard_of(at(4)), "it was forgotten");
        known.heard(at(3), "i-me", Err(Silence::Refused));
        known.settle();
        assert_eq!(names(&known), [("two".to_owned(), false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_edge_that_asks_counts_though_it_never_answers() {
        let mut known = Known::default();
        known.found(Ok(vec![at(2)]));
        known.heard(at(2), "i-me", Ok(load("two", vec![at(3)])));
        assert_eq!(names(&known).len(), 1, "one that is only named");
        known.has_asked(at(3), "i-three");
        let three = at(3).to_string();
        assert_eq!(names(&known), [(three.clone(), false), ("two".to_owned(), false)]);
        // As long as it asks.
        for _ in 0..20 {
            known.heard(at(3), "i-me", Err(Silence::Timeout));
            tokio::time::advance(FORGOTTEN_AFTER / 10).await;
            known.has_asked(at(3), "i-three");
            known.settle();
            assert!(names(&known).iter().any(|(name, _)| *name == three));
        }
        // It can be asked, at another address.
        known.heard(at(2), "i-me", Ok(load("two", vec![at(4)])));
        assert_eq!(known.loads(), None, "it is not known how the one that asks is");
        known.heard(at(4), "i-me", Ok(load("three", Vec::new())));
        assert_eq!(names(&known), [("three".to_owned(), false), ("two".to_owned(), false)]);
        assert_eq!(known.loads().map(|loads| loads.len()), Some(2), "the address that only asks holds up no balance");
        tokio::time::advance(FORGOTTEN_AFTER).await;
        known.settle();
        assert_eq!(names(&known).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_edge_that_asks_and_finds_no_room_is_a_doubt() {
        let mut known = Known::default();
        known.found(Ok(vec![at(1)]));
        known.heard(at(1), "i-me", Ok(load("me", Vec::new())));
        let address = |n: usize| SocketAddr::from(([10, 0, 1, 0], 1000 + u16::try_from(n).unwrap()));
        for n in 0..MAX_PEERS {
            known.has_asked(address(n), &n.to_string());
        }
        assert_eq!(known.doubts(), []);
        known.has_asked(address(MAX_PEERS), "one more");
        assert_eq!((known.doubts().len(), known.addresses().len()), (1, MAX_PEERS));
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_can_not_be_resolved_for_long_are_a_doubt() {
        let lost = || Err(NameError::Timeout("edges:9090".to_owned()));
        let mut known = Known::default();
        known.found(lost());
        assert_eq!(known.doubts().len(), 1, "never resolved");
        known.found(Ok(vec![at(2)]));
        known.found(lost());
        assert_eq!(known.doubts(), []);
        assert_eq!(names(&known).len(), 1, "what is known stays");
        tokio::time::advance(NAMES_HOLD).await;
        assert_eq!(known.doubts().len(), 1);
    }
}
