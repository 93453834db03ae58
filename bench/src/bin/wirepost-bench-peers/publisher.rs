//! How a service publishes: by HTTP, or by wirepost's AMQP with a confirm each.

use std::rc::Rc;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use wirepost_testing::service::Service;

use crate::{
    peer::{Peer, envelope},
    protocol::{Protocol, To},
};

pub(crate) enum Publisher<'a> {
    Http { client: reqwest::Client, protocol: Rc<dyn Protocol> },
    Amqp(&'a Service),
}

impl<'a> Publisher<'a> {
    /// By the server's own way, or by HTTP.
    pub(crate) fn of(peer: &'a Peer, http: bool) -> Result<Self> {
        Ok(match &peer.service {
            Some(service) if !http => Self::Amqp(service),
            _ => {
                let client = reqwest::Client::builder().no_proxy().build()?;
                Self::Http { client, protocol: peer.protocol.clone() }
            }
        })
    }

    /// Calls at the same time that use the server well: HTTP answers a call at a time on each connection.
    pub(crate) fn at_once(&self) -> usize {
        match self {
            Self::Http { .. } => 8,
            Self::Amqp(_) => 40,
        }
    }

    /// Returns when the server has taken all of them.
    pub(crate) async fn publish(&self, pushes: &[(To, String)]) -> Result<()> {
        match self {
            Self::Http { client, protocol } => {
                let post = protocol.post(pushes);
                let url = format!("http://{}{}", protocol.address(), post.path);
                let answer = client.post(url).header("x-api-key", protocol.api_key()).json(&post.body).send().await?;
                let (status, text) = (answer.status(), answer.text().await?);
                ensure!(status.is_success() && !text.contains("\"error\":{"), "{status}: {text}");
            }
            Self::Amqp(service) => {
                let bodies: Vec<_> = pushes.iter().map(|(to, payload)| envelope(*to, payload).to_string()).collect();
                try_join_all(bodies.iter().map(|body| service.push_bytes(body.as_bytes()))).await?;
            }
        }
        Ok(())
    }
}
