//! One question to one other edge, signed both ways, bounded in bytes. Whoever awaits it bounds its time.

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::{Asked, PATH};
use crate::{
    clock,
    identity::{
        keys::KeyRing,
        peer_seal::{self, Sealed},
    },
};

/// Header of a question and of its answer with the seal.
pub const SEAL: &str = "x-wirepost-seal";
/// Largest answer: a page of a list with all its JSON.
const MAX_ANSWER: usize = 4 << 20;
/// Idle connections are closed by then.
const IDLE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// Nothing listens there.
    #[error("it refuses connections")]
    Refused,
    /// It is slow, or frozen, or cut off.
    #[error("it did not answer in time")]
    Timeout,
    /// The way to it.
    #[error("it can't be asked")]
    Unreachable,
    /// It does not answer such questions: another program, or an older version.
    #[error("it answered with status {0}")]
    Status(u16),
    /// Too much.
    #[error("its answer is larger than {MAX_ANSWER} bytes")]
    TooLarge,
    /// It has other keys, another clock, or is none of our edges.
    #[error("its answer is not signed by the keys of this installation")]
    Stranger,
    /// A newer version.
    #[error("its answer can't be read")]
    Unreadable,
}

pub(super) struct Asker {
    keys: Arc<KeyRing>,
    /// `None`: no TLS backend, which it needs for nothing.
    http: Option<reqwest::Client>,
}

impl Asker {
    pub(super) fn new(keys: Arc<KeyRing>) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .build();
        Self { keys, http: http.ok() }
    }

    pub(super) async fn ask<T: DeserializeOwned>(&self, address: SocketAddr, asked: &Asked) -> Result<T, Silence> {
        let body = serde_json::to_vec(asked).map_err(|_| Silence::Unreadable)?;
        match self.once(address, body.clone()).await {
            // A connection of before, which the other edge has closed.
            Err(Silence::Unreachable) => self.once(address, body).await,
            answer => answer,
        }
    }

    async fn once<T: DeserializeOwned>(&self, address: SocketAddr, body: Vec<u8>) -> Result<T, Silence> {
        let http = self.http.as_ref().ok_or(Silence::Unreachable)?;
        let seal = peer_seal::seal(&self.keys, Sealed::Question(&body), clock::now_ms());
        let request = http.post(format!("http://{address}{PATH}")).header(SEAL, &seal).body(body);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let mut answer = request.send().await.map_err(|error| silence(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(Silence::Status(answer.status().as_u16()));
        }
        let sealed = answer.headers().get(SEAL).and_then(|seal| seal.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| silence(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(Silence::TooLarge);
            }
        }
        let is_good =
            |text: String| peer_seal::is_good(&self.keys, Sealed::Answer(&seal, &body), &text, clock::now_ms());
        if !sealed.is_some_and(is_good) {
            return Err(Silence::Stranger);
        }
        serde_json::from_slice(&body).map_err(|_| Silence::Unreadable)
    }
}

fn silence(error: &reqwest::Error) -> Silence {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused) {
            return Silence::Refused;
        }
        cause = error.source();
    }
    Silence::Unreachable
}
