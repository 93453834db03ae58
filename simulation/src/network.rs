//! The network: connections between hosts that delay, cut, freeze and swallow what they carry.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rand::random_range;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use wirepost_runtime::network::{Network, Stream};

mod end;

pub(crate) use end::End;

/// All hosts and the connections between them. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<Hosts>>);

#[derive(Default)]
struct Hosts {
    listeners: HashMap<(String, u16), mpsc::UnboundedSender<End>>,
    links: Vec<Weak<Mutex<Link>>>,
    /// Hosts that nobody reaches, and that reach nobody.
    isolated: HashSet<String>,
    /// Hosts that take connections and then nothing.
    frozen: HashSet<String>,
}

/// One host's view of the network.
#[derive(Clone)]
pub(crate) struct Host {
    world: World,
    name: String,
    /// Bytes that a connection from here holds in each direction.
    pub(crate) room: usize,
    /// The longest way of a piece.
    pub(crate) delay: Duration,
}

/// A connection.
struct Link {
    hosts: [String; 2],
    ways: [Way; 2],
    reset: bool,
    frozen: bool,
    room: usize,
    delay: Duration,
}

/// One direction of it.
#[derive(Default)]
struct Way {
    pieces: VecDeque<(Instant, Bytes)>,
    held: usize,
    latest: Option<Instant>,
    ended: bool,
    /// What is written vanishes.
    swallows: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Cut,
    Freeze,
    Thaw,
    /// In one direction only, for ever.
    Swallow,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a name is that of a host, or of one of its lives: `name#1`.
fn is_of(name: &str, host: &str) -> bool {
    name == host || name.split_once('#').is_some_and(|(name, _)| name == host)
}

impl World {
    pub(crate) fn host(&self, name: &str) -> Host {
        Host { world: self.clone(), name: name.to_owned(), room: 1 << 20, delay: Duration::from_millis(3) }
    }

    /// Connections to this host and port from now on.
    pub(crate) fn listen(&self, host: &str, port: u16) -> mpsc::UnboundedReceiver<End> {
        let (sender, receiver) = mpsc::unbounded_channel();
        lock(&self.0).listeners.insert((host.to_owned(), port), sender);
        receiver
    }

    fn links(&self) -> Vec<Arc<Mutex<Link>>> {
        let mut hosts = lock(&self.0);
        hosts.links.retain(|link| link.strong_count() > 0);
        hosts.links.iter().filter_map(Weak::upgrade).collect()
    }

    /// Strikes each connection of this host for which `chance` says so.
    pub(crate) fn strike(&self, host: &str, fault: Fault, mut chance: impl FnMut() -> bool) {
        for link in self.links() {
            let mut link = lock(&link);
            if link.hosts.iter().any(|name| is_of(name, host)) && chance() {
                link.suffer(fault);
            }
        }
    }

    /// Cuts a host off, or lets it back.
    pub(crate) fn isolate(&self, host: &str, isolated: bool) {
        let mut hosts = lock(&self.0);
        if isolated {
            hosts.isolated.insert(host.to_owned());
        } else {
            hosts.isolated.remove(host);
        }
        drop(hosts);
        if isolated {
            self.strike(host, Fault::Cut, || true);
        }
    }

    /// Freezes a host, or thaws it. New connections to it hang meanwhile.
    pub(crate) fn freeze(&self, host: &str, frozen: bool) {
        let mut hosts = lock(&self.0);
        if frozen {
            hosts.frozen.insert(host.to_owned());
        } else {
            hosts.frozen.remove(host);
        }
        drop(hosts);
        self.strike(host, if frozen { Fault::Freeze } else { Fault::Thaw }, || true);
    }
}

impl Link {
    fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Cut => self.reset = true,
            Fault::Freeze => self.frozen = true,
            Fault::Thaw => self.frozen = false,
            Fault::Swallow => self.ways[random_range(0..2)].swallows = true,
        }
        self.wake();
    }

    fn wake(&mut self) {
        for way in &mut self.ways {
            for waker in [way.reader.take(), way.writer.take()].into_iter().flatten() {
                waker.wake();
            }
        }
    }
}

impl Host {
    pub(crate) async fn connect_to(&self, host: &str, port: u16) -> io::Result<End> {
        let way = self.delay;
        sleep(Duration::from_millis(random_range(0..=way.as_millis() as u64))).await;
        let (sender, link) = {
            let mut hosts = lock(&self.world.0);
            let unreachable = hosts.isolated.contains(host) || hosts.isolated.contains(&self.name);
            let hangs = |name: &str| hosts.frozen.iter().any(|frozen| is_of(name, frozen));
            let sender = hosts.listeners.get(&(host.to_owned(), port)).cloned();
            let Some(sender) = sender.filter(|sender| !unreachable && !sender.is_closed()) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            let link = Arc::new(Mutex::new(Link {
                hosts: [self.name.clone(), host.to_owned()],
                ways: Default::default(),
                reset: false,
                frozen: hangs(host) || hangs(&self.name),
                room: self.room,
                delay: way,
            }));
            hosts.links.push(Arc::downgrade(&link));
            (sender, link)
        };
        let end = |out| End::of(&link, out);
        let _ = sender.send(end(1));
        Ok(end(0))
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Network for Host {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move { Ok(Box::new(self.connect_to(host, port).await?) as Box<dyn Stream>) })
    }
}
