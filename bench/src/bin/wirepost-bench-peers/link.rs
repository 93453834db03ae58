//! One client: its socket, until it is ready, and what it reads afterwards.

use std::{net::SocketAddr, rc::Rc};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt, stream};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use crate::protocol::{Protocol, Seen};

/// Connecting at the same time.
const CONNECTING: usize = 128;
/// Connections from one source address: with more, the kernel searches long for a free port.
const EACH_ADDRESS: usize = 1_000;

pub(crate) struct Link {
    pub(crate) client: usize,
    protocol: Rc<dyn Protocol>,
    socket: WebSocketStream<TcpStream>,
}

/// Connects the clients from number `from` to `to`; all are ready then.
pub(crate) async fn connect(protocol: &Rc<dyn Protocol>, from: usize, to: usize) -> Result<Vec<Link>> {
    let mut opening =
        stream::iter(from..to).map(|client| Link::open(protocol.clone(), client)).buffer_unordered(CONNECTING);
    let mut links = Vec::with_capacity(to - from);
    while let Some(link) = opening.next().await {
        links.push(link?);
    }
    Ok(links)
}

impl Link {
    async fn open(protocol: Rc<dyn Protocol>, client: usize) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        // Addresses of its own for each server: for a minute the ports of the clients of the one before are not free, and looking for others
        // took so long that servers gave up.
        let [high, low] = protocol.address().port().to_be_bytes();
        let source = [127, high, low, u8::try_from(1 + client / EACH_ADDRESS)?];
        socket.bind(SocketAddr::from((source, 0)))?;
        let stream = socket.connect(protocol.address()).await?;
        stream.set_nodelay(true)?;
        let config = WebSocketConfig::default().read_buffer_size(4096);
        let (socket, _) = client_async_with_config(protocol.upgrade(client)?, stream, Some(config)).await?;
        let mut link = Self { client, protocol, socket };
        if let Some(hello) = link.protocol.hello(client)? {
            link.send(hello).await?;
        }
        let mut ready = false;
        while !ready {
            link.read(|seen| ready |= matches!(seen, Seen::Ready), |_| ()).await?;
        }
        Ok(link)
    }

    pub(crate) async fn send(&mut self, text: String) -> Result<()> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// Sends several with as few writes as possible.
    pub(crate) async fn send_all(&mut self, texts: impl Iterator<Item = String>) -> Result<()> {
        for text in texts {
            self.socket.feed(Message::text(text)).await?;
        }
        Ok(self.socket.flush().await?)
    }

    /// Reads one frame: calls `seen` for what it means, `text` with itself.
    pub(crate) async fn read(&mut self, mut seen: impl FnMut(Seen), text: impl FnOnce(&str)) -> Result<()> {
        let message = self.socket.next().await.context("the server closed the connection")??;
        let frame = match &message {
            Message::Text(frame) => frame.as_str(),
            Message::Close(reason) => bail!("the server closed the connection: {reason:?}"),
            _ => return Ok(()),
        };
        text(frame);
        let (mut answer, mut refused) = (None, None);
        self.protocol.read(frame, &mut |what| match what {
            Seen::Answer(text) => answer = Some(text),
            Seen::Refused(why) => refused = Some(why),
            other => seen(other),
        });
        if let Some(why) = refused {
            bail!("the server refuses: {why}");
        }
        if let Some(answer) = answer {
            self.send(answer.to_owned()).await?;
        }
        Ok(())
    }

    pub(crate) fn protocol(&self) -> Rc<dyn Protocol> {
        self.protocol.clone()
    }
}
