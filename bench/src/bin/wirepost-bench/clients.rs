//! Many light clients: tickets made here with the edge's own keys, small buffers, no token call.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use futures_util::{StreamExt, stream};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue, protocol::WebSocketConfig},
};
use wirepost_bench::tickets;
use wirepost_testing::{
    edge::{Edge, EdgeBuilder},
    setup::Setup,
};

/// Connecting at the same time.
pub(crate) const CONNECTING: usize = 32;

/// A byte stream, with or without TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// An open socket.
pub(crate) type Socket = WebSocketStream<Box<dyn Stream>>;
/// What a client trusts.
pub(crate) type Tls = Option<Arc<ClientConfig>>;

/// An edge that ends TLS itself, and what its clients then trust; or as it is.
pub(crate) fn secured(builder: EdgeBuilder, setup: &Setup, tls: bool) -> Result<(EdgeBuilder, Tls)> {
    if !tls {
        return Ok((builder, None));
    }
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (certificate, key) = (setup.dir().join("tls.crt"), setup.dir().join("tls.key"));
    std::fs::write(&certificate, certified.cert.pem())?;
    std::fs::write(&key, certified.signing_key.serialize_pem())?;
    let builder = builder.flag("tls-certificate", certificate.display()).flag("tls-key", key.display());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certified.cert.der().to_vec()))?;
    Ok((builder, Some(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))))
}

/// Opens `count` sockets of the identities `user-0`, `user-1`, …
pub(crate) async fn connect(setup: &Setup, edge: &Edge, count: usize, tls: Tls) -> Result<Vec<Socket>> {
    let address = edge.public;
    stream::iter(tickets::make(setup, count).await?)
        .map(async |ticket| Ok(open(address, &ticket, tls.clone()).await?.0))
        .buffer_unordered(CONNECTING)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect()
}

/// Opens a socket by a ticket or resume token, which may have a query behind it; also returns the `welcome`.
pub(crate) async fn open(address: SocketAddr, ticket: &str, tls: Tls) -> Result<(Socket, Message)> {
    let mut request = format!("ws://localhost:{}/socket/{ticket}", address.port()).into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("wirepost.v1"));
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(config) => Box::new(TlsConnector::from(config).connect(ServerName::try_from("localhost")?, stream).await?),
    };
    let config = WebSocketConfig::default().read_buffer_size(4096);
    let (mut socket, _) = client_async_with_config(request, stream, Some(config)).await?;
    // The welcome: from here on the connection is what it stays.
    let welcome = socket.next().await.context("the edge closed instead of a welcome")??;
    Ok((socket, welcome))
}
