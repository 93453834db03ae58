//! Wires an edge, runs it, and ends it in order. `main`, `wirepost dev` and tests call the same two functions.

use std::{net::SocketAddr, sync::Arc};

use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wirepost_runtime::{admin::AdminPort, tasks::Supervisor};

use crate::{
    admin,
    broker::Broker,
    catalog::Catalog,
    drain::Drain,
    http,
    identity::keys::KeyRing,
    judge::Judge,
    listener::{self, Listener},
    metrics::Metrics,
    places::Places,
    push::{catch_up::CatchUp, hub::Context, log::LogBudget},
    readiness::{DRAINING, Readiness},
    seldom::Seldom,
    settings::Settings,
    socket::{backlog::Backlog, inbound::Inbound},
    state::State,
};

/// A running edge.
pub struct App {
    /// What its handlers share; configurations go into `state.catalog`.
    pub state: Arc<State>,
    /// Where it listens.
    pub public: SocketAddr,
    /// Where its admin port listens.
    pub admin: SocketAddr,
    accepting: CancellationToken,
    administering: CancellationToken,
    tasks: TaskTracker,
}

impl App {
    /// Binds both ports, then starts. Nothing is served before the caller fills the catalog; the broker may be away.
    ///
    /// # Errors
    /// A port is taken, or a certificate can't be read.
    pub async fn start(
        settings: Settings,
        keys: Arc<KeyRing>,
        broker: Arc<dyn Broker>,
        readiness: Arc<Readiness>,
    ) -> Result<Self, listener::StartError> {
        let metrics = Arc::new(Metrics::default());
        metrics.max_connections.set(i64::try_from(settings.max_connections).unwrap_or(i64::MAX));
        let public = Listener::bind(&settings, Arc::clone(&metrics)).await?;
        let address = settings.admin;
        let private =
            AdminPort::bind(address).await.map_err(|source| listener::StartError::Bind { address, source })?;
        let context = Arc::new(Context {
            broker: Arc::clone(&broker),
            metrics: Arc::clone(&metrics),
            budget: Arc::new(LogBudget::new(settings.log_bytes, metrics.log_bytes.clone())),
            backlog: Backlog::new(settings.backlog_bytes, &metrics),
            catch_up: CatchUp::new(settings.catch_up_readers),
            settings: settings.clone(),
        });
        let state = Arc::new(State {
            catalog: Arc::new(Catalog::new(context)),
            places: Places::new(settings.max_connections),
            charges: Arc::default(),
            judge: Judge::new(metrics.checks_waiting.clone()),
            inbound: Inbound::new(settings.inbound_bytes, metrics.inbound_bytes.clone()),
            keys,
            broker,
            metrics,
            drain: Drain::default(),
            readiness,
            seldom: Seldom::new(settings.log_pause),
            connections: TaskTracker::new(),
            settings,
        });
        let (accepting, administering, tasks) =
            (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let (public_address, admin_address) = (public.local_addr(), private.local_addr());
        tasks.spawn(public.serve(http::router(Arc::clone(&state)), accepting.clone()));
        let admin_router = admin::router(Arc::clone(&state), administering.clone());
        tasks.spawn(private.serve(admin_router, administering.clone(), Supervisor::default()));
        Ok(Self { state, public: public_address, admin: admin_address, accepting, administering, tasks })
    }

    /// Ends in order: not ready at once; accept on until load balancers have heard of it; then clients go, spread over the window; readers
    /// stop; the broker's connections close last. Returns at the deadline at the latest, plus what closing the broker takes.
    pub async fn shutdown(self) {
        let state = &self.state;
        let settings = &state.settings;
        let deadline = Instant::now() + settings.drain_deadline;
        state.readiness.add(DRAINING);
        tracing::info!(connections = state.metrics.connections.get(), lag = ?settings.endpoint_lag, "shutdown: not ready any more, still accepting");
        tokio::time::sleep_until(deadline.min(Instant::now() + settings.endpoint_lag)).await;
        self.accepting.cancel();
        let window = settings.drain_window.min(deadline.saturating_duration_since(Instant::now()));
        tracing::info!(connections = state.metrics.connections.get(), ?window, "shutdown: clients are told to go");
        state.drain.begin(window, deadline);
        state.connections.close();
        if timeout_at(deadline, state.connections.wait()).await.is_err() {
            tracing::warn!(
                connections = state.metrics.connections.get(),
                "shutdown: deadline reached, the rest is cut"
            );
        }
        state.catalog.stop().await;
        state.broker.close().await;
        self.administering.cancel();
        self.tasks.close();
        // Requests without an end must not hold the process: their sockets go with it.
        let _ = timeout_at(Instant::now() + settings.header_timeout, self.tasks.wait()).await;
        tracing::info!("shutdown: done");
    }
}
