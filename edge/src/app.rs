//! Wires an edge, runs it, and ends it in order. `main`, `wirepost dev` and tests call the same two functions.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wirepost_core::names;
use wirepost_runtime::{
    admin::AdminPort,
    backoff::Backoff,
    readiness::{DRAINING, Readiness},
    tasks::{Supervisor, Tasks},
};

use crate::{
    admin, balance,
    broker::{Broker, Start},
    census,
    config::settings::Settings,
    http::{self, socket::direct::Direct, state::State},
    identity::{jwks, keys::KeyRing},
    metrics::Metrics,
    net::listener::{self, Doors, Listener},
    peers,
    revocation::{
        follow::{self, Follower},
        restore,
    },
};

/// First and longest pause before a task that failed begins again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A running edge.
pub struct App {
    /// What its handlers share; configurations go into `state.catalog`.
    pub state: Arc<State>,
    /// Where it listens.
    pub public: SocketAddr,
    /// Where its admin port listens.
    pub admin: SocketAddr,
    /// Ends the public port.
    accepting: CancellationToken,
    /// Ends the admin port and the tasks that follow files or an API server.
    serving: CancellationToken,
    /// The public port: ends when every request is answered.
    port: Tasks,
    tasks: Tasks,
}

impl App {
    /// Binds both ports, then starts. Nothing is served before the caller fills the catalog; the broker may be
    /// unreachable.
    ///
    /// # Errors
    /// A port is taken, or a certificate can't be read.
    pub async fn start(
        settings: Settings,
        keys: Arc<KeyRing>,
        broker: Arc<dyn Broker>,
        readiness: Readiness,
        supervisor: Supervisor,
    ) -> Result<Self, listener::StartError> {
        Self::start_with(settings, keys, broker, readiness, supervisor, |_, _| Router::new()).await
    }

    /// [`Self::start`] with more routes on the admin port. `more` gets the app, and the token at whose end answers that
    /// last must end, too.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub async fn start_with(
        settings: Settings,
        keys: Arc<KeyRing>,
        broker: Arc<dyn Broker>,
        readiness: Readiness,
        supervisor: Supervisor,
        more: impl FnOnce(&Self, CancellationToken) -> Router,
    ) -> Result<Self, listener::StartError> {
        let mut metrics = Metrics::with_broker(&*broker);
        metrics.include(&supervisor);
        jwks::supervise(&supervisor);
        let metrics = Arc::new(metrics);
        metrics.max_connections.set(i64::try_from(settings.max_connections).unwrap_or(i64::MAX));
        let doors = Doors::new(&settings, &metrics);
        let addresses = Arc::clone(&doors.addresses);
        let public = Listener::bind(&settings, doors, Arc::clone(&metrics)).await?;
        let address = settings.admin;
        let private =
            AdminPort::bind(address).await.map_err(|source| listener::StartError::Bind { address, source })?;
        let state = Arc::new(State::new(settings, keys, broker, metrics, readiness, addresses, &supervisor));
        let app = Self {
            public: public.local_addr(),
            admin: private.local_addr(),
            accepting: CancellationToken::new(),
            serving: CancellationToken::new(),
            port: supervisor.tasks(),
            tasks: supervisor.tasks(),
            state,
        };
        let public = public.opening(Direct::new(Arc::clone(&app.state)));
        let read = app.follow_revocations();
        let serving = public.serve(http::router(Arc::clone(&app.state)), app.accepting.clone(), supervisor.clone());
        let accepting = app.accepting.clone();
        app.port.run("public port", &app.accepting, async move {
            // Those who connect before wait: nobody is admitted whose session was ended.
            accepting.run_until_cancelled(read.cancelled()).await;
            serving.await
        });
        let admin_router = admin::router(&app.state, app.serving.clone()).merge(more(&app, app.serving.clone()));
        app.spawn("admin port", |stop| private.serve(admin_router, stop, supervisor));
        app.spawn("audit", |stop| Arc::clone(&app.state.sockets.audit).run(stop));
        app.spawn("key file", |stop| Arc::clone(&app.state.keys).watch(stop));
        app.follow_edges();
        Ok(app)
    }

    /// Follows the control stream. The token is cancelled once it was read.
    fn follow_revocations(&self) -> CancellationToken {
        let state = &self.state;
        let follower = Follower {
            gate: Arc::clone(&state.sockets.gate),
            catalog: Arc::clone(&state.catalog),
            metrics: Arc::clone(&state.metrics),
        };
        let (gate, of_outbox) = (Arc::clone(&state.sockets.gate), Arc::clone(&state.broker));
        self.tasks.until("revocations to send", &self.serving, async move { gate.outbox.run(of_outbox).await });
        let (gate, broker, metrics) =
            (Arc::clone(&state.sockets.gate), Arc::clone(&state.broker), Arc::clone(&state.metrics));
        self.tasks.until("revocations to restore", &self.serving, restore::run(gate, broker, metrics));
        let read = CancellationToken::new();
        let unread = (state.readiness.wait_for(follow::PART), read.clone().drop_guard());
        if let Some(feed) = state.broker.follow(names::CONTROL, Start::First) {
            self.tasks.until("revocations", &self.serving, follower.run(feed, unread));
        } else {
            state.sockets.gate.is_told_nothing();
            tracing::warn!("without a stream address this edge hears of no revocation, and refuses to revoke");
        }
        read
    }

    /// Follows the other edges, and tells businesses how many clients they have here. What fails of it begins again: one
    /// edge's word must not end all others.
    fn follow_edges(&self) {
        let (state, stop) = (&self.state, &self.serving);
        let backoff = || Backoff::new(BACKOFF.0, BACKOFF.1);
        if state.peers.are_expected() {
            let (peers, at, serving) = (Arc::clone(&state.peers), self.admin, stop.clone());
            // Whoever is ready can say who is on the other edges.
            let mut pending = Some(state.readiness.wait_for(peers::PART));
            self.tasks.restarted("peers", stop, backoff(), move || {
                let (peers, pending, serving) = (Arc::clone(&peers), pending.take(), serving.clone());
                async move { peers.run(at, pending, serving).await }
            });
        }
        let (of_census, serving) = (Arc::clone(state), stop.clone());
        self.tasks.restarted("census", stop, backoff(), move || {
            let State { catalog, peers, settings, .. } = &*of_census;
            let work = census::run(Arc::clone(catalog), Arc::clone(peers), settings.census_interval);
            serving.clone().run_until_cancelled_owned(work)
        });
        if balance::is_on(&state.settings) {
            let (of_balance, serving) = (Arc::clone(state), stop.clone());
            self.tasks.restarted("balance", stop, backoff(), move || {
                serving.clone().run_until_cancelled_owned(balance::run(Arc::clone(&of_balance)))
            });
        }
    }

    /// Spawns a task that runs until the end of the shutdown.
    pub fn spawn<F>(&self, name: &'static str, work: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.run(name, &self.serving, work(self.serving.clone()));
    }

    /// Shuts down in order: not ready immediately, but still accepting until load balancers have noticed; then clients
    /// leave, spread over the window; readers stop; the broker's connections close last. Returns at the deadline at the
    /// latest, plus the time to close the broker.
    pub async fn shutdown(self) {
        let state = &self.state;
        let settings = &state.settings;
        let deadline = Instant::now() + settings.drain_deadline;
        let _draining = state.readiness.wait_for(DRAINING);
        tracing::info!(connections = state.metrics.connections.get(), lag = ?settings.endpoint_lag, "shutdown: not ready any more, still accepting");
        tokio::time::sleep_until(deadline.min(Instant::now() + settings.endpoint_lag)).await;
        self.accepting.cancel();
        let window = settings.drain_window.min(deadline.saturating_duration_since(Instant::now()));
        tracing::info!(
            connections = state.metrics.connections.get(),
            ?window,
            "shutdown: clients are asked to reconnect elsewhere"
        );
        state.sockets.drain.begin(window, deadline);
        // Sockets that are being opened join the others, which then leave; calls need the broker for their answers.
        let requests = self.port.finished_by(deadline).await;
        if requests.is_err() || state.connections.finished_by(deadline).await.is_err() {
            tracing::warn!(
                connections = state.metrics.connections.get(),
                "shutdown: deadline reached, the rest is cut"
            );
        }
        state.catalog.stop().await;
        state.broker.close().await;
        self.serving.cancel();
        // Requests without an end must not keep the process: their sockets end with it.
        if let Err(unfinished) = self.tasks.finished_by(Instant::now() + settings.header_timeout).await {
            tracing::warn!(%unfinished, "shutdown: tasks are left");
        }
        tracing::info!("shutdown: done");
    }
}
