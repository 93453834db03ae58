//! The network: connections between hosts that delay, cut, freeze and swallow what they carry.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use rand::random_range;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::{Instant, Sleep, sleep, sleep_until},
};
use wirepost_runtime::network::{Network, Stream};

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

/// One end of a connection.
pub(crate) struct End {
    link: Arc<Mutex<Link>>,
    /// The way that it writes to.
    out: usize,
    timer: Option<Pin<Box<Sleep>>>,
    written: Option<Box<dyn Fn(usize) + Send + Sync>>,
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
        let end = |out| End { link: Arc::clone(&link), out, timer: None, written: None };
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

impl End {
    /// Reports the bytes that the other end has room for.
    pub(crate) fn counting(mut self, written: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.written = Some(Box::new(written));
        self
    }

    pub(crate) fn cut(&self) {
        lock(&self.link).suffer(Fault::Cut);
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let due = {
            let mut link = lock(&this.link);
            if link.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let frozen = link.frozen;
            let way = &mut link.ways[1 - this.out];
            way.reader = Some(cx.waker().clone());
            match way.pieces.front_mut() {
                _ if frozen => return Poll::Pending,
                None if way.ended => return Poll::Ready(Ok(())),
                None => return Poll::Pending,
                Some((due, piece)) if *due <= Instant::now() => {
                    let most = piece.len().min(buffer.remaining());
                    buffer.put_slice(&piece[..most]);
                    piece.advance(most);
                    if piece.is_empty() {
                        way.pieces.pop_front();
                    }
                    way.held -= most;
                    if let Some(writer) = way.writer.take() {
                        writer.wake();
                    }
                    return Poll::Ready(Ok(()));
                }
                Some((due, _)) => *due,
            }
        };
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        timer.as_mut().reset(due);
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut link = lock(&this.link);
        if link.reset || link.ways[this.out].ended || (link.ways[1 - this.out].ended && link.ways[this.out].swallows) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let (room, delay) = (link.room, link.delay.as_millis() as u64);
        let way = &mut link.ways[this.out];
        let most = bytes.len().min(room.saturating_sub(way.held));
        if most == 0 {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !way.swallows {
            let due = Instant::now() + Duration::from_millis(random_range(0..=delay));
            let due = way.latest.map_or(due, |latest| latest.max(due));
            way.latest = Some(due);
            way.held += most;
            way.pieces.push_back((due, Bytes::copy_from_slice(&bytes[..most])));
            if let Some(reader) = way.reader.take() {
                reader.wake();
            }
        }
        if let Some(written) = &this.written {
            written(most);
        }
        Poll::Ready(Ok(most))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut link = lock(&self.link);
        link.ways[self.out].ended = true;
        link.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut link = lock(&self.link);
        link.ways[self.out].ended = true;
        // Nobody reads any more: the other end's next write fails, once it has read what came before.
        link.ways[1 - self.out].swallows = true;
        link.ways[1 - self.out].pieces.clear();
        link.ways[1 - self.out].held = 0;
        link.wake();
    }
}
