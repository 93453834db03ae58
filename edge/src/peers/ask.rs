//! One question to one other edge, signed both ways, bounded in bytes. Whoever awaits it bounds its time.

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{Request, Response, StatusCode, header};
use serde::de::DeserializeOwned;

use super::{Asked, PATH};
use crate::{
    clock,
    identity::{
        keys::KeyRing,
        peer_seal::{self, Purpose},
    },
};

/// Header of a question and of its answer with the seal.
pub const SEAL: &str = "x-wirepost-seal";
/// Header of a question with the process that it is for. The seal says so too, and can't be read: it tells an edge that has
/// begun anew what it was.
pub const TO: &str = "x-wirepost-to";
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
    /// The process that was asked is gone, and another one has begun there.
    #[error("it has just begun anew")]
    Restarted,
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

/// A question, ready to be put to any number of edges: they share its bytes.
#[derive(Clone)]
pub(super) struct Question {
    body: Bytes,
    digest: [u8; 32],
}

impl Question {
    pub(super) fn new(asked: &Asked) -> Result<Self, Silence> {
        let body: Bytes = serde_json::to_vec(asked).map_err(|_| Silence::Unreadable)?.into();
        Ok(Self { digest: peer_seal::digest(&body), body })
    }
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

    /// Asks the edge at an address, whichever it is (`None`) or only this process.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        address: SocketAddr,
        process: Option<&str>,
        question: &Question,
    ) -> Result<T, Silence> {
        match self.once(address, process, question).await {
            // A connection of before, which the other edge has closed.
            Err(Silence::Unreachable) => self.once(address, process, question).await,
            answer => answer,
        }
    }

    async fn once<T: DeserializeOwned>(
        &self,
        address: SocketAddr,
        process: Option<&str>,
        question: &Question,
    ) -> Result<T, Silence> {
        let http = self.http.as_ref().ok_or(Silence::Unreachable)?;
        let purpose = process.map_or(Purpose::Anyone, Purpose::Process);
        let seal = peer_seal::seal(&self.keys, purpose, question.digest, clock::now_ms());
        let request = request(http, address, process, &seal, question)?;
        let answer = http.execute(request).await.map_err(|error| silence(&error))?;
        self.read(answer, &seal).await
    }

    /// An answer is judged before it is read.
    async fn read<T: DeserializeOwned>(&self, mut answer: Response, question: &str) -> Result<T, Silence> {
        if answer.status() == StatusCode::MISDIRECTED_REQUEST {
            return Err(Silence::Restarted);
        }
        if answer.status() != StatusCode::OK {
            return Err(Silence::Status(answer.status().as_u16()));
        }
        let seal = answer.headers().get(SEAL).and_then(|seal| seal.to_str().ok());
        let open = |text| peer_seal::open(&self.keys, Purpose::AnswerTo(question), text, clock::now_ms());
        let seal = seal.and_then(open).ok_or(Silence::Stranger)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| silence(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(Silence::TooLarge);
            }
        }
        if !seal.is_for(&body) {
            return Err(Silence::Stranger);
        }
        serde_json::from_slice(&body).map_err(|_| Silence::Unreadable)
    }
}

fn request(
    http: &reqwest::Client,
    address: SocketAddr,
    process: Option<&str>,
    seal: &str,
    question: &Question,
) -> Result<Request, Silence> {
    let request = http.post(format!("http://{address}{PATH}")).header(SEAL, seal).body(question.body.clone());
    let request = process.into_iter().fold(request, |request, process| request.header(TO, process));
    request.header(header::CONTENT_TYPE, "application/json").build().map_err(|_| Silence::Unreachable)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{presence, push::present::Filter};

    #[test]
    fn a_question_to_many_edges_is_in_memory_once() {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let filter = Filter { unique_ids: (0..10_000).map(|n| format!("customer-{n}")).collect(), ..Filter::default() };
        let asked = Asked::Presence(presence::Question { business: "pay".to_owned(), filter, page: None });
        let question = Question::new(&asked).unwrap();
        let to = |last| request(&http, SocketAddr::from(([10, 0, 0, last], 9090)), None, "seal", &question).unwrap();
        let requests: Vec<_> = (0..200).map(to).collect();
        let places = requests.iter().map(|request| request.body().unwrap().as_bytes().unwrap().as_ptr());
        assert!(places.clone().all(|place| place == question.body.as_ptr()), "{:?}", places.collect::<Vec<_>>());
    }
}
