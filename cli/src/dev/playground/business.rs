//! A business as the page gets it: what its clients and services may do, with content that its schemas accept.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use wirepost_core::{
    Compiled, SendType,
    content::example,
    edge_config::{Audience, Delivery, RouteConfig},
    names, pattern,
};

use crate::dev::card::shown_queues;

/// One business.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BusinessView {
    name: String,
    file: Option<String>,
    client_types: Vec<String>,
    delivery: Delivery,
    routes: Vec<RouteView>,
    queues: Vec<String>,
    push_exchange: String,
    dead_queue: String,
    /// Of its declaration: without the playground's own.
    allowed_origins: Vec<String>,
    /// `None`: it was chosen by the user, and is not shown.
    api_key: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteView {
    /// The declared pattern.
    message_type: String,
    /// A message type that it matches.
    example_type: String,
    send_type: SendType,
    from: Vec<String>,
    to: Vec<String>,
    everyone: bool,
    queue: Option<String>,
    schema: Option<Value>,
    /// Content that the schema accepts; `None` if none was found.
    content: Option<Value>,
}

impl BusinessView {
    pub(super) fn of(compiled: &Compiled, file: Option<&Path>, api_key: Option<String>) -> Self {
        let config = &compiled.config;
        Self {
            name: compiled.business.clone(),
            file: file.map(|file| file.display().to_string()),
            client_types: config.client_types.clone(),
            delivery: config.delivery,
            routes: config.routes.iter().map(RouteView::of).collect(),
            queues: shown_queues(compiled).map(str::to_owned).collect(),
            push_exchange: names::push_exchange(&compiled.business),
            dead_queue: names::dead_queue(&compiled.business),
            allowed_origins: config.auth.allowed_origins.clone(),
            api_key,
        }
    }
}

impl RouteView {
    fn of(route: &RouteConfig) -> Self {
        Self {
            message_type: route.message_type.clone(),
            example_type: pattern::example(&route.message_type),
            send_type: route.send_type,
            from: route.from.clone(),
            to: route.to.clone(),
            everyone: route.audience == Audience::Everyone,
            queue: route.queue.clone(),
            content: route.schema.as_ref().map_or_else(|| Some(json!({})), example::of),
            schema: route.schema.clone(),
        }
    }
}
