//! When an edge lets clients go, and how many: without I/O, so that a test can run hours of it.
//!
//! It begins above a limit and ends well below it, and lets few go at a time. After each batch it waits until those have
//! arrived somewhere, and looks whether that has helped: a load balancer that sends each client back to the same edge
//! would make it go on forever. Whatever is wrong, or only new, makes it wait.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{config::settings::Balance, peers::Load};

/// Connections above the mean at least.
const SMALLEST: f64 = 10.0;
/// Seconds of a batch.
const BATCH_SECONDS: u32 = 10;
/// Clients of a batch at least.
const SMALLEST_BATCH: usize = 20;
/// After the last one of a batch has left, until it has arrived elsewhere.
const SETTLES: Duration = Duration::from_secs(3);
/// A batch that makes the edge smaller by less than this part of it was in vain.
const HELPS: usize = 8;
/// How long nobody is let go after that: at first, and at most.
const IN_VAIN: (Duration, Duration) = (Duration::from_mins(10), Duration::from_hours(2));
/// While the number of all clients changes by more than this part within [`WATCHED`], they come or go on their own.
const MOVES: u64 = 10;
/// Such a change is larger than this in any case.
const SMALLEST_MOVE: u64 = 20;
const WATCHED: Duration = Duration::from_secs(5);

/// Why nobody is let go, though this edge holds more than its share, or can't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Another edge does not answer, or has not begun.
    Peers,
    /// The broker of an edge is away or takes no messages.
    Broker,
    /// An edge shuts down: its clients are on their way.
    Draining,
    /// An edge is new, or one has gone.
    Young,
    /// Many clients come or go.
    Moving,
    /// The other edges have no room.
    Full,
    /// It did not help.
    InVain,
}

impl Hold {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Peers, Self::Broker, Self::Draining, Self::Young, Self::Moving, Self::Full, Self::InVain];

    /// In metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Broker => "broker",
            Self::Draining => "draining",
            Self::Young => "young",
            Self::Moving => "moving",
            Self::Full => "full",
            Self::InVain => "in_vain",
        }
    }
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: this edge has no more than its share.
    Even,
    /// Nothing, for this reason.
    Hold(Hold),
    /// Nothing until those that were let go have arrived.
    Wait,
    /// Let so many go.
    LetGo(usize),
}

/// See the module.
#[derive(Debug)]
pub struct Balancer {
    settings: Balance,
    /// The processes of all edges, and since when they are these.
    edges: (BTreeSet<String>, Option<Instant>),
    /// The number of all clients.
    totals: VecDeque<(Instant, u64)>,
    batch: Option<Batch>,
    /// Nobody is let go until then.
    in_vain: Option<Instant>,
    /// Batches in vain, one after the other.
    vain: u32,
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    /// What the edge held when it began.
    held: u64,
    gone: usize,
    /// Since when all of them have left.
    left: Option<Instant>,
}

impl Balancer {
    /// Nothing was let go yet.
    pub fn new(settings: Balance) -> Self {
        Self { settings, edges: (BTreeSet::new(), None), totals: VecDeque::new(), batch: None, in_vain: None, vain: 0 }
    }

    /// What to do, once a second. `others`: how all other edges are; `None`: not all are known to be well.
    pub fn step(&mut self, now: Instant, me: &Load, others: Option<&[Load]>) -> Step {
        let Some(others) = others else {
            // Once all answer again it shows whether they are the same ones.
            self.totals.clear();
            return Step::Hold(Hold::Peers);
        };
        let all: Vec<&Load> = others.iter().chain([me]).collect();
        let edges: BTreeSet<String> = all.iter().map(|load| load.instance.clone()).collect();
        if self.edges.1.is_none() || self.edges.0 != edges {
            self.edges = (edges, Some(now));
            self.totals.clear();
        }
        let moves = self.moves(now, all.iter().map(|load| load.connections).sum());
        let own = held(me);
        let mean = all.iter().map(|load| held(load)).sum::<u64>() as f64 / all.len() as f64;
        let above = f64::from(self.settings.above_percent) / 100.0;
        let (begin, end) = (mean * (1.0 + above), mean * (1.0 + above / 4.0));
        let excess = own as f64 - end;
        let more = match self.batch {
            Some(_) => excess > 0.0,
            None => own as f64 > begin && own as f64 - mean >= SMALLEST,
        };
        if others.is_empty() || !more {
            self.batch = None;
            return Step::Even;
        }
        let since = self.edges.1.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let hold = if all.iter().any(|load| load.draining) {
            Some(Hold::Draining)
        } else if !all.iter().all(|load| load.broker) {
            Some(Hold::Broker)
        } else if since < self.settings.after || all.iter().any(|load| load.seconds < self.settings.after.as_secs()) {
            Some(Hold::Young)
        } else if moves {
            Some(Hold::Moving)
        } else if others.iter().any(|load| (load.max_connections as f64) * 0.9 < mean) {
            Some(Hold::Full)
        } else if self.in_vain.is_some_and(|until| now < until) {
            Some(Hold::InVain)
        } else {
            None
        };
        match hold {
            Some(hold) => Step::Hold(hold),
            None => self.let_go(now, me, excess),
        }
    }

    fn let_go(&mut self, now: Instant, me: &Load, excess: f64) -> Step {
        let own = held(me);
        let most = (self.settings.per_second * BATCH_SECONDS) as usize;
        let most = most.max(SMALLEST_BATCH);
        let mut batch = self.batch.unwrap_or(Batch { held: own, gone: 0, left: None });
        if batch.gone >= most {
            if me.leaving > 0 {
                self.batch = Some(Batch { left: None, ..batch });
                return Step::Wait;
            }
            let left = *batch.left.get_or_insert(now);
            self.batch = Some(batch);
            if now.saturating_duration_since(left) < SETTLES {
                return Step::Wait;
            }
            if own + (batch.gone / HELPS) as u64 > batch.held {
                let pause = IN_VAIN.0.saturating_mul(1 << self.vain.min(8)).min(IN_VAIN.1);
                self.vain = self.vain.saturating_add(1);
                self.in_vain = Some(now + pause);
                self.batch = None;
                tracing::warn!(
                    gone = batch.gone,
                    ?pause,
                    "clients that were asked to connect elsewhere came back to this edge: what balances connections keeps each client at its edge"
                );
                return Step::Hold(Hold::InVain);
            }
            self.vain = 0;
            batch = Batch { held: own, gone: 0, left: None };
        }
        // Fewer and fewer, since some of them come back.
        let count = ((excess / 4.0).ceil() as usize).clamp(1, self.settings.per_second.max(1) as usize);
        batch.gone += count;
        self.batch = Some(batch);
        Step::LetGo(count)
    }

    /// Whether many clients come or go on their own.
    fn moves(&mut self, now: Instant, total: u64) -> bool {
        self.totals.push_back((now, total));
        while self.totals.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WATCHED) {
            self.totals.pop_front();
        }
        let before = self.totals.front().map_or(total, |(_, total)| *total);
        total.abs_diff(before) > (before.max(total) / MOVES).max(SMALLEST_MOVE)
    }
}

/// What an edge holds, without those that leave.
fn held(load: &Load) -> u64 {
    load.connections.saturating_sub(load.leaving)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const SETTINGS: Balance = Balance { per_second: 10, above_percent: 20, after: Duration::from_mins(1) };

    fn load(number: usize, connections: u64) -> Load {
        Load {
            edge: format!("e{number}"),
            instance: number.to_string(),
            connections,
            leaving: 0,
            max_connections: 20_000,
            seconds: 3600,
            draining: false,
            broker: true,
            peers: Vec::new(),
        }
    }

    /// Edges with their clients, who leave five seconds after they were asked, and are back a second later.
    struct World {
        edges: Vec<(Load, Balancer)>,
        /// When who leaves which edge.
        leaving: VecDeque<(u64, usize)>,
        away: VecDeque<(u64, usize)>,
        time: u64,
        begun: Instant,
        asked: usize,
        random: SmallRng,
        sticky: bool,
    }

    impl World {
        fn new(clients: &[u64]) -> Self {
            let edge = |(number, count): (usize, &u64)| (load(number, *count), Balancer::new(SETTINGS));
            Self {
                edges: clients.iter().enumerate().map(edge).collect(),
                leaving: VecDeque::new(),
                away: VecDeque::new(),
                time: 0,
                begun: Instant::now(),
                asked: 0,
                random: SmallRng::seed_from_u64(17),
                sticky: false,
            }
        }

        fn second(&mut self) {
            self.time += 1;
            while let Some((_, edge)) = self.leaving.pop_front_if(|(at, _)| *at <= self.time) {
                self.edges[edge].0.connections -= 1;
                self.edges[edge].0.leaving -= 1;
                self.away.push_back((self.time + 1, edge));
            }
            while let Some((_, edge)) = self.away.pop_front_if(|(at, _)| *at <= self.time) {
                let to = if self.sticky { edge } else { self.random.random_range(0..self.edges.len()) };
                self.edges[to].0.connections += 1;
            }
            let loads: Vec<Load> = self.edges.iter().map(|(load, _)| load.clone()).collect();
            for (number, (load, balancer)) in self.edges.iter_mut().enumerate() {
                let others: Vec<_> = loads.iter().filter(|other| other.instance != load.instance).cloned().collect();
                let now = self.begun + Duration::from_secs(self.time);
                if let Step::LetGo(count) = balancer.step(now, load, Some(&others)) {
                    load.leaving += count as u64;
                    self.asked += count;
                    self.leaving.extend(std::iter::repeat_n((self.time + 5, number), count));
                }
            }
        }

        fn run(&mut self, seconds: u64) -> usize {
            let before = self.asked;
            for _ in 0..seconds {
                self.second();
            }
            self.asked - before
        }

        /// The largest share, as a part of the mean.
        fn largest(&self) -> f64 {
            let all: Vec<_> = self.edges.iter().map(|(load, _)| load.connections as f64).collect();
            all.iter().copied().fold(0.0, f64::max) * all.len() as f64 / all.iter().sum::<f64>()
        }
    }

    #[test]
    fn two_full_edges_beside_two_new_ones_are_even_within_five_minutes_and_stay_so() {
        let mut world = World::new(&[1000, 1000, 0, 0]);
        assert_eq!(world.run(59), 0, "too soon");
        let asked = world.run(241);
        assert!(world.largest() <= 1.2, "{}", world.largest());
        assert!((1000..2300).contains(&asked), "{asked} clients were moved");
        world.run(60);
        assert_eq!(world.run(7200), 0, "it goes on");
    }

    #[test]
    fn from_any_start_it_comes_to_rest() {
        for clients in
            [&[300, 0][..], &[40, 40, 40, 0], &[5000, 4000, 3000, 100], &[100, 100, 100, 100, 100, 100, 700], &[9, 0]]
        {
            let mut world = World::new(clients);
            world.run(3600);
            assert!(world.largest() <= 1.25 || clients.iter().sum::<u64>() < 100, "{clients:?}: {}", world.largest());
            assert_eq!(world.run(3600), 0, "{clients:?}");
        }
    }

    #[test]
    fn where_clients_always_come_back_it_gives_up() {
        let mut world = World::new(&[1000, 0]);
        world.sticky = true;
        let asked = world.run(3600);
        assert!((100..=400).contains(&asked), "{asked}");
        assert!(world.run(3600) <= 100);
    }

    #[test]
    fn nobody_is_let_go_while_anything_is_wrong_or_new() {
        let step = |me: &Load, others: Option<&[Load]>| {
            let mut balancer = Balancer::new(SETTINGS);
            let now = Instant::now();
            balancer.step(now, me, others);
            balancer.step(now + SETTINGS.after, me, others)
        };
        let me = load(0, 300);
        assert_eq!(step(&me, Some(&[load(1, 100)])), Step::LetGo(10));
        assert_eq!(step(&me, Some(&[])), Step::Even);
        assert_eq!(step(&me, Some(&[load(1, 280)])), Step::Even);
        assert_eq!(step(&load(0, 15), Some(&[load(1, 0)])), Step::Even, "too few to matter");
        assert_eq!(step(&me, None), Step::Hold(Hold::Peers));
        for (other, hold) in [
            (Load { broker: false, ..load(1, 0) }, Hold::Broker),
            (Load { draining: true, ..load(1, 0) }, Hold::Draining),
            (Load { seconds: 10, ..load(1, 0) }, Hold::Young),
            (Load { max_connections: 100, ..load(1, 0) }, Hold::Full),
        ] {
            assert_eq!(step(&me, Some(&[other])), Step::Hold(hold));
        }
        assert_eq!(step(&Load { broker: false, ..me.clone() }, Some(&[load(1, 0)])), Step::Hold(Hold::Broker));
        assert_eq!(step(&Load { leaving: 195, ..me }, Some(&[load(1, 100)])), Step::Even, "they are leaving");

        let mut balancer = Balancer::new(SETTINGS);
        let now = Instant::now();
        balancer.step(now, &load(0, 300), Some(&[load(1, 100)]));
        let later = now + SETTINGS.after;
        balancer.step(later, &load(0, 300), Some(&[load(1, 100)]));
        let step = balancer.step(later + Duration::from_secs(1), &load(0, 400), Some(&[load(1, 100)]));
        assert_eq!(step, Step::Hold(Hold::Moving), "clients of a dead edge arrive");
    }
}
