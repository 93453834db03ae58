//! AsyncAPI 3.0 (asyncapi.com/docs/reference/specification/v3.0.0), generated from the running declaration: everything that clients and
//! services of one business exchange with it. The described application is the layer between them, so it `receive`s what clients and
//! services give it, and `send`s what they get. Edges and `wirepost describe` call the same function.
//!
//! [`clients`]: the socket, with [`control`] frames; [`services`]: the broker; [`calls`]: HTTP; all of them put into one [`document`].

mod calls;
mod clients;
mod control;
mod document;
mod envelope;
pub mod markdown;
mod schema;
mod server;
mod services;

pub use services::REJECTED;

use serde_json::{Value, json};

use crate::{
    edge_config::{BusinessConfig, Delivery},
    frames::SUBPROTOCOL,
};

use document::Document;
use envelope::Message;
use server::Base;

/// Whom a description is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Authors of clients, so anybody: without the broker and the calls of services.
    Clients,
    /// The business's own team: everything.
    All,
}

/// The document. `base_url` is how clients reach the edges, such as `https://ws.example`.
pub fn asyncapi(config: &BusinessConfig, base_url: &str, part: Part) -> Value {
    let base = Base::of(base_url);
    let mut document = Document::default();
    let messages = Message::all(config, &mut document);
    clients::add(config, &messages, &base, &mut document);
    calls::add(config, &base, &mut document);
    if part == Part::All {
        calls::add_for_services(config, &messages, &mut document);
        services::add(config, &messages, &mut document);
    }
    let info = json!({
        "title": config.business_type,
        "version": config.generation.to_string(),
        "description": description(config),
    });
    document.finish(&info, &facts(config))
}

fn description(config: &BusinessConfig) -> String {
    let kept = match config.delivery {
        Delivery::Durable => format!(
            "What a client missed is delivered when it returns with its cursor within {} s, as far as it is among the last {} bytes.",
            config.retention.seconds, config.retention.bytes
        ),
        Delivery::Transient => "What a client misses while it is away is gone.".to_owned(),
    };
    format!(
        "The messages of the business {}, described as wirepost serves them: it receives what clients and services send, and sends what \
         they get.\n\nClient types: {}.\n\nDelivery {:?}: {kept}",
        config.business_type,
        config.client_types.join(", "),
        config.delivery
    )
}

/// What AsyncAPI has no field for, for programs.
fn facts(config: &BusinessConfig) -> Value {
    let limits = &config.limits;
    let mut facts = json!({
        "subprotocol": SUBPROTOCOL,
        "clientTypes": config.client_types,
        "delivery": config.delivery,
        "limits": limits,
        "session": {"maxSeconds": config.session_max_seconds},
        "closeCodes": clients::codes()
            .into_iter()
            .map(|(code, reasons)| json!({"code": code, "reasons": reasons}))
            .collect::<Vec<_>>(),
    });
    if config.delivery == Delivery::Durable {
        facts["retention"] = json!(config.retention);
    }
    facts
}

#[cfg(test)]
mod tests;
