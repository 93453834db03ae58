//! The playground: a page on the admin address on which a business is tried in a browser, as its clients and as its
//! service. The page is in `cli/playground/`; here is what it can't do itself.

mod api;
mod business;
mod desk;
mod guard;
mod page;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, middleware, response::Response, routing::any};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wirepost_core::{Compiled, edge_config::BusinessConfig};
use wirepost_edge::{app::App, http::state::State};

use self::business::BusinessView;
pub(super) use self::desk::{Desk, Verdict};
use super::{card::Cards, project::Project};
use crate::edge::{self, Credential, Edge};

/// The broker, as the page describes it.
#[derive(Debug)]
pub(super) struct BrokerView {
    /// In words.
    pub description: String,
    /// Whether it is inside this process: then its dead letters are shown, too.
    pub local: bool,
    /// Whether messages on queues are consumed and shown.
    pub shows_queues: bool,
}

/// What its calls share.
pub(super) struct Playground {
    admin: SocketAddr,
    edge: Edge,
    state: Arc<State>,
    api_key: Option<String>,
    broker: BrokerView,
    businesses: Mutex<Vec<BusinessView>>,
    desk: Desk,
}

impl Playground {
    /// # Errors
    /// The edge's address is none.
    pub(super) fn new(app: &App, cards: &Cards, broker: BrokerView, desk: Desk) -> anyhow::Result<Arc<Self>> {
        let certificate = cards.certificate.as_ref().map(std::fs::read).transpose()?;
        Ok(Arc::new(Self {
            admin: app.admin,
            edge: Edge::trusting(&cards.url(), certificate.as_deref())?,
            state: Arc::clone(&app.state),
            api_key: cards.api_key.clone(),
            broker,
            businesses: Mutex::default(),
            desk,
        }))
    }

    /// Where it is, if it is served: only where no other machine gets.
    pub(super) fn url(&self) -> Option<String> {
        self.admin.ip().is_loopback().then(|| format!("http://{}/playground", self.admin))
    }

    /// Its routes. At `closing` answers that last end.
    pub(super) fn router(self: &Arc<Self>, closing: CancellationToken) -> Router {
        if self.url().is_none() {
            return Router::new().route("/playground", any(async || not_here()));
        }
        let socket = self.edge.url().replacen("http", "ws", 1);
        let headers = page::headers(&socket);
        page::router().merge(api::router(Arc::clone(self), closing)).layer(middleware::from_fn(guard::layer)).layer(
            middleware::map_response(move |mut response: Response| {
                for (name, value) in &headers {
                    response.headers_mut().insert(name, value.clone());
                }
                std::future::ready(response)
            }),
        )
    }

    /// Lets the page connect to a business, and everybody read its description: the keys are no secret here.
    pub(super) fn admit(&self, mut config: BusinessConfig) -> BusinessConfig {
        if self.url().is_some() {
            let port = self.admin.port();
            config.auth.allowed_origins.extend([format!("http://{}", self.admin), format!("http://localhost:{port}")]);
        }
        config.auth.public_description = true;
        config
    }

    /// These businesses run now.
    pub(super) fn show(&self, businesses: &[Compiled], project: &Project) {
        let view = |compiled: &Compiled| {
            let key = self.api_key.is_none().then(|| edge::dev_key(&compiled.business));
            BusinessView::of(compiled, project.file_of(compiled), key)
        };
        let views = businesses.iter().map(view).collect();
        *self.businesses.lock().unwrap_or_else(PoisonError::into_inner) = views;
        self.desk.businesses_changed();
    }

    fn describe(&self) -> Value {
        let businesses = self.businesses.lock().unwrap_or_else(PoisonError::into_inner);
        let BrokerView { description, local, shows_queues } = &self.broker;
        json!({
            "edge": self.edge.url(),
            "broker": {"description": description, "local": local, "showsQueues": shows_queues},
            "businesses": *businesses,
        })
    }

    fn key(&self, business: &str) -> String {
        self.api_key.clone().unwrap_or_else(|| edge::dev_key(business))
    }

    fn credential(&self, business: &str) -> Credential {
        Credential::ApiKey(self.key(business))
    }
}

fn not_here() -> Response {
    page::notice(
        "The playground can push and read as every business, so it is served only on an address that no other machine \
         reaches. Start wirepost dev with --admin 127.0.0.1:9090, and use a tunnel from elsewhere.",
    )
}
