//! An edge with a real RabbitMQ behind it.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{
    client::IntoClientRequest,
    http::{HeaderValue, Request},
};
use wirepost_bench::{DECLARATION, tickets};
use wirepost_testing::{service::Service, setup::Setup};

use super::{CORE, Peer, Running};
use crate::protocol::{Post, Protocol, Seen, To, number_after};

struct Envelopes {
    address: SocketAddr,
    api_key: String,
    tickets: Vec<String>,
}

pub(super) async fn start(clients: usize) -> Result<Peer> {
    let setup = Setup::new(&[DECLARATION]).await?;
    let edge = setup.edge("peers").core(CORE).quiet().flag("max-connections", 19_000).start().await?;
    let broker = std::env::var("WIREPOST_TEST_BROKER_PID").context("WIREPOST_TEST_BROKER_PID is not set")?;
    let protocol = Envelopes {
        address: edge.public,
        api_key: setup.api_key().to_owned(),
        tickets: tickets::make(&setup, clients).await?,
    };
    Ok(Peer {
        protocol: Rc::new(protocol),
        service: Some(Service::connect(&setup).await?),
        server: edge.pid,
        behind: Some(broker.parse().context("the broker must not run in Docker")?),
        _running: Running::Wirepost { _edge: edge, _setup: setup },
    })
}

/// The envelope of a push.
pub(crate) fn envelope(to: To, payload: &str) -> Value {
    let to = match to {
        To::Everyone => "*".to_owned(),
        To::One(client) => format!("user-{client}"),
    };
    json!({"messageType": "down", "toUniqueId": to, "content": payload})
}

impl Protocol for Envelopes {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn upgrade(&self, client: usize) -> Result<Request<()>> {
        let ticket = self.tickets.get(client).context("no ticket for this client")?;
        let mut request = format!("ws://localhost/socket/{ticket}").into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("wirepost.v1"));
        Ok(request)
    }

    fn read(&self, frame: &str, seen: &mut dyn FnMut(Seen)) {
        let id = || number_after(frame, "\"id\":\"");
        if frame.contains(r#""op":"ack""#) {
            seen(id().map_or_else(|| Seen::Refused(frame.to_owned()), Seen::Ack));
        } else if frame.contains(r#""op":"nack""#) && frame.contains(r#""retryable":true"#) {
            let wait = Duration::from_millis(number_after(frame, "\"retryAfterMs\":").unwrap_or(0) as u64);
            seen(id().map_or_else(|| Seen::Refused(frame.to_owned()), |id| Seen::Nack(id, wait)));
        } else if frame.contains(r#""op":"welcome""#) {
            seen(Seen::Ready);
        } else if frame.contains(r#""op":"nack""#) || frame.contains(r#""op":"error""#) {
            seen(Seen::Refused(frame.to_owned()));
        }
    }

    fn up(&self, _client: usize, number: usize, payload: &str) -> String {
        format!(r#"{{"id":"{number}","messageType":"up","content":"{payload}"}}"#)
    }

    fn post(&self, pushes: &[(To, String)]) -> Post {
        let body = pushes.iter().map(|(to, payload)| envelope(*to, payload)).collect();
        Post { path: "/bench/websocket/messages", body }
    }

    fn api_key(&self) -> &str {
        &self.api_key
    }
}
