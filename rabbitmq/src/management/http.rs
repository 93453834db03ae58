//! HTTP: trusted certificates, bounded answers, errors with their causes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode, redirect};
use rustls::ClientConfig;

use crate::BrokerTls;

/// A management node of the same cluster answers a handshake in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An HTTP client with the certificates of now.
pub(super) struct Http {
    /// `None`: no TLS.
    pub(super) tls: Option<BrokerTls>,
    /// The certificates of the present client, and the client.
    pub(super) current: Mutex<(Option<Arc<ClientConfig>>, Client)>,
}

impl Http {
    /// A new one after a change of the certificates, so that no connection of the former one is used again.
    pub(super) fn client(&self) -> Result<Client, String> {
        let tls = self.tls.as_ref().map(BrokerTls::client_tls).transpose().map_err(|error| error.to_string())?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let same = match (&current.0, &tls) {
            (Some(current), Some(tls)) => Arc::ptr_eq(current, tls),
            (None, None) => true,
            _ => false,
        };
        if !same {
            let client = http_client(tls.as_ref()).map_err(|error| chain(&error))?;
            *current = (tls, client);
        }
        Ok(current.1.clone())
    }
}

pub(super) fn http_client(tls: Option<&Arc<ClientConfig>>) -> reqwest::Result<Client> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(redirect::Policy::none())
        // A broker is inside the network; a proxy from the environment is for the outside.
        .no_proxy();
    if let Some(tls) = tls {
        builder = builder.tls_backend_preconfigured(ClientConfig::clone(tls));
    }
    builder.build()
}

/// The whole answer, or why there is none.
pub(super) async fn exchange(request: RequestBuilder, max_bytes: usize) -> Result<(StatusCode, Vec<u8>), String> {
    let failed = |e: reqwest::Error| chain(&e.without_url());
    // The broker may close an idle connection just when it is used again (seen about once in ten thousand calls). Each of our calls may be
    // repeated.
    let again = request.try_clone();
    let mut answer: Response = match (request.send().await, again) {
        (Err(e), Some(again)) if e.is_request() && !e.is_connect() => again.send().await.map_err(failed)?,
        (answer, _) => answer.map_err(failed)?,
    };
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > max_bytes {
            return Err(format!("the answer is longer than {max_bytes} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((answer.status(), body))
}

/// The error and its causes: reqwest's own text is only "error sending request".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
