//! A TCP proxy, between client and edge or between edge and broker, that causes network failures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Kernel buffers and pieces of a slow line: small, so that the sender feels it soon.
const SLOW_BUFFER: u32 = 8 << 10;

/// What happens to bytes. Bytes that are held back arrive afterwards, as TCP would retransmit them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Everything passes.
    Fine,
    /// Nothing passes in either direction, without an error; new connections hang as well.
    Stalled,
    /// What the server sends does not arrive.
    DownStalled,
    /// What the client sends does not arrive.
    UpStalled,
}

/// A proxy; ends with its connections when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where to connect in the server's place.
    pub address: SocketAddr,
    network: watch::Sender<Network>,
    cuts: watch::Sender<usize>,
    tears: watch::Sender<usize>,
    forgets: watch::Sender<usize>,
    accepted: Arc<AtomicUsize>,
    rate: Arc<AtomicU64>,
    hold: watch::Sender<&'static str>,
    held_pieces: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// State that all connections share.
struct Shared {
    network: watch::Receiver<Network>,
    cut: watch::Receiver<usize>,
    tear: watch::Receiver<usize>,
    forget: watch::Receiver<usize>,
    rate: Arc<AtomicU64>,
    hold: watch::Receiver<&'static str>,
    held_pieces: Arc<AtomicUsize>,
}

impl Proxy {
    /// In front of `target`, as `host:port`.
    pub async fn start(target: impl ToString) -> Result<Self> {
        let target = lookup_host(target.to_string()).await?.next().context("no address to proxy to")?;
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = listener.local_addr()?;
        let (network, seen) = watch::channel(Network::Fine);
        let (cuts, cut) = watch::channel(0);
        let (tears, tear) = watch::channel(0);
        let (forgets, forget) = watch::channel(0);
        let (accepted, rate) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let (hold, hold_changes) = watch::channel("");
        let held_pieces = Arc::new(AtomicUsize::new(0));
        let counter_of_held = Arc::clone(&held_pieces);
        let (counter, limit) = (Arc::clone(&accepted), Arc::clone(&rate));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let (mut cut, mut tear, mut forget) = (cut.clone(), tear.clone(), forget.clone());
                cut.mark_unchanged();
                tear.mark_unchanged();
                forget.mark_unchanged();
                let (network, rate, hold) = (seen.clone(), Arc::clone(&limit), hold_changes.clone());
                let held_pieces = Arc::clone(&counter_of_held);
                tokio::spawn(carry(socket, target, Shared { network, cut, tear, forget, rate, hold, held_pieces }));
            }
        });
        Ok(Self { address, network, cuts, tears, forgets, accepted, rate, hold, held_pieces, task })
    }

    /// In front of the server that a URI names, and the URI with the proxy in its place.
    pub async fn of_uri(uri: &str) -> Result<(Self, String)> {
        let (start, rest) = uri.split_once("://").context("not a URI")?;
        let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
        let (host, path) =
            rest.split_once('/').map_or((rest, String::new()), |(host, path)| (host, format!("/{path}")));
        let proxy = Self::start(host).await?;
        let at = if user.is_empty() { "" } else { "@" };
        let uri = format!("{start}://{user}{at}{}{path}", proxy.address);
        Ok((proxy, uri))
    }

    /// Changes the network, for open connections and new ones.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Resets all connections.
    pub fn cut(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }

    /// Ends each open connection amid what its server sends next: half of a piece passes.
    pub fn tear(&self) {
        self.tears.send_modify(|n| *n += 1);
    }

    /// Stops passing bytes on the open connections, without an error; new ones work. A router that loses its state does this.
    pub fn forget(&self) {
        self.forgets.send_modify(|n| *n += 1);
    }

    /// Connections that clients have made so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Holds each piece that clients send and that contains this text, such as the head of a request, and everything after it on its
    /// connection, until called with another text. Empty: holds nothing.
    pub fn hold(&self, text: &'static str) {
        self.hold.send_replace(text);
    }

    /// Pieces that are being held.
    pub fn held(&self) -> usize {
        self.held_pieces.load(Ordering::Relaxed)
    }

    /// Limits what the server sends, for connections made from now on; 0 = no limit.
    pub fn limit(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn carry(client: TcpStream, target: SocketAddr, shared: Shared) {
    let Shared { mut network, mut cut, tear, mut forget, rate, hold, held_pieces } = shared;
    let _ = network.wait_for(|n| *n != Network::Stalled).await;
    let rate = rate.load(Ordering::Relaxed);
    let Ok(server) = connect(target, rate > 0).await else { return };
    for socket in [&client, &server] {
        let _ = socket.set_nodelay(true);
        // Closing sends a reset, not a polite end.
        let _ = socket.set_zero_linger();
    }
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    tokio::select! {
        () = pump(&mut from_client, &mut to_server, network.clone(), Network::UpStalled, 0, Some((hold, held_pieces)), None) => {}
        () = pump(&mut from_server, &mut to_client, network, Network::DownStalled, rate, None, Some(tear)) => {}
        _ = cut.changed() => {}
        // An error: the proxy was dropped.
        Ok(()) = forget.changed() => drop(cut.changed().await),
    }
}

async fn connect(target: SocketAddr, slow: bool) -> std::io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if slow {
        socket.set_recv_buffer_size(SLOW_BUFFER)?;
    }
    socket.connect(target).await
}

async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
    mine: Network,
    rate: u64,
    mut hold: Option<(watch::Receiver<&'static str>, Arc<AtomicUsize>)>,
    tear: Option<watch::Receiver<usize>>,
) {
    let mut buffer = vec![0; if rate > 0 { SLOW_BUFFER as usize } else { 64 << 10 }];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // The end of one side is a packet as well: it waits with the rest.
        if network.wait_for(|n| *n != Network::Stalled && *n != mine).await.is_err() {
            return;
        }
        if let Some((text, pieces)) = &mut hold {
            let piece = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let passes = |text: &&str| text.is_empty() || !piece.contains(*text);
            let now = *text.borrow();
            if !passes(&now) {
                pieces.fetch_add(1, Ordering::Relaxed);
                let ended = text.wait_for(passes).await.is_err();
                pieces.fetch_sub(1, Ordering::Relaxed);
                if ended {
                    return;
                }
            }
        }
        if tear.as_ref().is_some_and(|tear| tear.has_changed().unwrap_or(true)) {
            let _ = to.write_all(&buffer[..read / 2]).await;
            return;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        if rate > 0 {
            tokio::time::sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await;
        }
    }
}
