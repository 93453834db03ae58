//! TLS between client and edge: a CA of the test, and clients that trust only it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};
use wirepost_core::frames::SUBPROTOCOL;

use crate::broker::PATIENCE;

/// A socket over TLS, yet to be read.
pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Signs certificates of `localhost`.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// One that nobody knows yet.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// A new certificate and its key, in PEM.
    pub fn sign(&self) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A new certificate of a client and its key, in PEM.
    pub fn sign_client(&self) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["client".to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// Its own certificate, in PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The status of a request by a client that shows this certificate and offers these protocols, and the protocol that was chosen. `None`:
    /// it was not let in.
    pub async fn request(
        &self,
        to: SocketAddr,
        client: Option<&(String, String)>,
        protocols: &[&str],
    ) -> Result<Option<(u16, Option<String>)>> {
        let connector = TlsConnector::from(Arc::new(self.config(client, protocols)?));
        let exchange = async {
            let mut stream =
                connector.connect(ServerName::try_from("localhost")?, TcpStream::connect(to).await?).await?;
            stream.write_all(b"GET /nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no answer")?;
            let chosen = stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
            anyhow::Ok((status, chosen))
        };
        Ok(timeout(PATIENCE, exchange).await?.ok())
    }

    fn connector(&self) -> Result<TlsConnector> {
        Ok(TlsConnector::from(Arc::new(self.config(None, &[])?)))
    }

    fn config(&self, client: Option<&(String, String)>, protocols: &[&str]) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.issuer.der().to_vec()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match client {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
            }
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
    }

    /// A connection of a client that trusts only this CA.
    pub async fn connect(&self, to: SocketAddr) -> Result<TlsStream<TcpStream>> {
        let handshake = self.connector()?.connect(ServerName::try_from("localhost")?, TcpStream::connect(to).await?);
        Ok(timeout(PATIENCE, handshake).await??)
    }

    /// Whether such a one connects.
    pub async fn trusts(&self, to: SocketAddr) -> bool {
        self.connect(to).await.is_ok()
    }

    /// The token call as alice's `app`: the URL to connect to.
    pub async fn token(&self, to: SocketAddr, business: &str, api_key: &str) -> Result<String> {
        let mut stream = self.connect(to).await?;
        let request = format!(
            "GET /{business}/websocket/token?uniqueId=alice&clientType=app HTTP/1.1\r\nhost: localhost:{}\r\n\
             x-api-key: {api_key}\r\nconnection: close\r\n\r\n",
            to.port(),
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        let body: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
        Ok(body["data"].as_str().with_context(|| format!("{body}"))?.to_owned())
    }

    /// A socket under the subprotocol.
    pub async fn wss(&self, to: SocketAddr, url: &str) -> Result<Socket> {
        let mut request = url.into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse()?);
        let (socket, _) = timeout(PATIENCE, client_async(request, self.connect(to).await?)).await??;
        Ok(socket)
    }
}

/// The next frame that `wanted` takes; others are skipped.
pub async fn frame(socket: &mut Socket, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let reading = async {
        loop {
            match socket.next().await.context("the end")?? {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text)?;
                    if wanted(&frame) {
                        return Ok(frame);
                    }
                }
                Message::Close(frame) => bail!("closed: {frame:?}"),
                _ => {}
            }
        }
    };
    timeout(PATIENCE, reading).await.context("no such frame came")?
}

/// Sends an order and waits for its `ack`.
pub async fn send_acked(socket: &mut Socket, id: &str) -> Result<()> {
    socket.send(Message::text(json!({"id": id, "messageType": "order.placed"}).to_string())).await?;
    let answer = frame(socket, |frame| frame["id"] == id).await?;
    ensure!(answer["op"] == "ack", "{answer}");
    Ok(())
}
