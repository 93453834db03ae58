//! A TCP proxy between client and broker that makes the trouble networks make.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// What happens to bytes. Those that are held come through after the trouble, as TCP sends them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Fine,
    /// Nothing passes in either direction, nobody is told; new connections hang as well.
    Stalled,
    /// What the broker sends does not arrive.
    DownStalled,
    /// What the client sends does not arrive.
    UpStalled,
}

pub struct Proxy {
    pub address: (String, u16),
    network: watch::Sender<Network>,
    cuts: watch::Sender<usize>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target: (String, u16)) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let port = listener.local_addr()?.port();
        let (network, seen) = watch::channel(Network::Fine);
        let (cuts, cut) = watch::channel(0);
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let mut cut = cut.clone();
                cut.mark_unchanged();
                tokio::spawn(carry(socket, target.clone(), seen.clone(), cut));
            }
        });
        Ok(Self { address: ("127.0.0.1".into(), port), network, cuts, accepted, task })
    }

    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Resets all connections.
    pub fn cut(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }

    /// Connections that clients have made so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn carry(
    client: TcpStream,
    target: (String, u16),
    mut network: watch::Receiver<Network>,
    mut cut: watch::Receiver<usize>,
) {
    let _ = network.wait_for(|n| *n != Network::Stalled).await;
    let Ok(broker) = TcpStream::connect(target).await else { return };
    for socket in [&client, &broker] {
        let _ = socket.set_nodelay(true);
        // Closing sends a reset, not a polite end.
        let _ = socket.set_zero_linger();
    }
    let ((from_client, to_client), (from_broker, to_broker)) = (client.into_split(), broker.into_split());
    tokio::select! {
        () = pump(from_client, to_broker, network.clone(), Network::UpStalled) => {}
        () = pump(from_broker, to_client, network, Network::DownStalled) => {}
        _ = cut.changed() => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut network: watch::Receiver<Network>, mine: Network) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // The end of one side is a packet as well: it waits with the rest.
        if network.wait_for(|n| *n != Network::Stalled && *n != mine).await.is_err() {
            return;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
