//! Wires an operator, and ends it in order.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::{core::v1::ConfigMap, discovery::v1::EndpointSlice};
use kube::{Api, Config as ClientConfig, runtime::reflector};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_core::contract::config_map::SELECTOR;
use wirepost_runtime::{
    admin::{self, AdminPort},
    program::Program,
    readiness::Readiness,
    tasks::{Failure, Supervisor, Tasks},
};

use crate::{
    api_client,
    brake::Brake,
    broker::{self, Broker, Replica},
    census,
    classes::{self, Classes, StoredClass},
    conditions::Share,
    config_watch,
    crd_check::{self, CrdGuard},
    edge_user::EdgeUser,
    edges::{self, Edges},
    events::Events,
    fresh::{Fresh, Listed},
    installation,
    keys::KeySecret,
    leader::{self, Elector, Leadership},
    metrics::Metrics,
    reconcile::{Context, Options, ResourceStates, controller::Controller, leftover},
    secret_watch,
    seed::Seeds,
    triggers::Triggers,
    writer::Writer,
};

/// What `/readyz` waits for, beside the parts that other modules name.
const RESOURCES: &str = "resources";
const CONFIG_MAPS: &str = "edge configurations";
/// Longest time for what runs to end, and then for the lease to be given up.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);
/// Reads of the seed before a new leader writes: the first one may use a dead connection.
const SEED_TRIES: u32 = 2;
const SEED_TIMEOUT: Duration = Duration::from_secs(5);
/// The task that competes for the lease.
const ELECTION: &str = "leader election";

/// Settings of the process.
#[derive(Debug)]
pub struct Settings {
    /// This replica.
    pub name: String,
    /// Where the admin port is bound.
    pub admin: SocketAddr,
    /// Label selector of our resources; empty = all.
    pub selector: String,
    /// The edges' Service.
    pub edge_service: String,
    /// The share of the edges that must run a generation before it counts as programmed.
    pub edge_share: Share,
    /// Businesses that are reconciled at the same time.
    pub concurrency: u16,
    /// Namespaces in which Secrets are watched.
    pub secret_namespaces: Vec<String>,
    /// How one replica leads.
    pub lease: leader::Settings,
    /// The broker.
    pub broker: broker::Settings,
    /// Of reconciles.
    pub options: Options,
}

/// A running operator.
pub struct App {
    admin: SocketAddr,
    /// Keeps what reconciles need running until [`Stage::Work`] ends.
    context: Arc<Context>,
    /// Reconciles: what begins further work.
    reconciles: Stage,
    /// What reconciles need.
    work: Stage,
    /// The lease and the admin port.
    last: Stage,
}

/// Tasks that end together.
struct Stage {
    tasks: Tasks,
    stop: CancellationToken,
}

impl Stage {
    fn new(supervisor: &Supervisor) -> Self {
        Self { tasks: supervisor.tasks(), stop: CancellationToken::new() }
    }

    /// Whether all ended in time.
    async fn end(self, deadline: Instant) -> bool {
        self.stop.cancel();
        let ended = self.tasks.finished_by(deadline).await;
        if let Err(unfinished) = &ended {
            tracing::warn!(tasks = %unfinished, "these tasks did not end in time");
        }
        ended.is_ok()
    }
}

impl App {
    /// Binds the admin port, then starts everything.
    ///
    /// # Errors
    /// The admin port is taken, or an address can't be used.
    pub async fn start(api: ClientConfig, settings: Settings, supervisor: Supervisor) -> anyhow::Result<Self> {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), ?settings, "starting");
        let Settings {
            name,
            admin: address,
            selector,
            edge_service,
            edge_share,
            concurrency,
            secret_namespaces,
            lease,
            broker,
            options,
        } = settings;
        let listener = AdminPort::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let admin = listener.local_addr();
        tracing::info!(%admin, "listening");
        let (metrics, readiness) = (Arc::new(Metrics::new(&supervisor)), Readiness::default());
        let listed = readiness.wait_for(RESOURCES);
        let reconciles = Stage::new(&supervisor);
        let work = Stage::new(&supervisor);
        let last = Stage::new(&supervisor);

        // The lease has connections of its own: one that died unnoticed would cost each renewal its time limit.
        let (elector, leadership) = Elector::new(api_client::client(api.clone())?, lease);
        let writing = api_client::leaders_client(api.clone(), leadership.clone(), supervisor.tasks())?;
        let client = api_client::client(api.clone())?;
        let fresh = Fresh::new(leadership.clone());
        let (businesses, store) = reflector::store();
        let (config_maps, config_map_store) = reflector::store();
        let triggers = Arc::new(Triggers::new(businesses.clone(), config_maps.clone()));
        let namespace = options.namespace.clone();

        let (known, installation) = watch::channel(None);
        let pending = readiness.wait_for(installation::PART);
        let asked = installation::run(
            client.clone(),
            namespace.clone(),
            known,
            Arc::clone(&triggers),
            pending,
            work.stop.clone(),
        );
        work.tasks.once("installation", asked);
        let events = Events::new(writing.clone(), name);
        let brake = Arc::new(Brake::new(options.brake, Arc::clone(&metrics)));
        let held = Arc::clone(&brake).run(
            client.clone(),
            namespace.clone(),
            options.lease.clone(),
            events.clone(),
            Arc::clone(&triggers),
            work.stop.clone(),
        );
        work.tasks.run("brake", &work.stop, held);
        let replica = Replica {
            fresh: fresh.clone(),
            triggers: Arc::clone(&triggers),
            brake: Arc::clone(&brake),
            installation: installation.clone(),
            namespace: namespace.clone(),
            metrics: Arc::clone(&metrics),
        };
        let (broker, keeper) = Broker::new(broker, replica, work.stop.clone())?;
        work.tasks.run("keeper", &work.stop, keeper);
        let edges = Edges::try_new(
            edge_service,
            edge_share,
            options.edges_timeout,
            options.count_clients,
            fresh.clone(),
            Arc::clone(&triggers),
            Arc::clone(&metrics),
        )?;
        let edges = Arc::new(edges);
        let found = readiness.wait_for(edges::PART);
        let slices = fresh.watch(
            client.clone(),
            api.clone(),
            Listed::Edges,
            Api::<EndpointSlice>::namespaced,
            &namespace,
            api_client::watch(&edges.selector()),
        );
        let followed = Arc::clone(&edges).run(slices, found, work.tasks.clone(), work.stop.clone());
        work.tasks.run("edges", &work.stop, followed);
        let seeds = Arc::new(Seeds::new(client.clone(), &namespace));
        let keys = KeySecret {
            client: client.clone(),
            namespace: namespace.clone(),
            seeds: Arc::clone(&seeds),
            edges: Arc::clone(&edges),
        };
        work.tasks.run("edge keys", &work.stop, keys.run(Arc::clone(&triggers), work.stop.clone()));
        let edge_user = EdgeUser {
            client: client.clone(),
            writing: writing.clone(),
            namespace: namespace.clone(),
            vhost: options.endpoints.vhost.clone(),
            seeds: Arc::clone(&seeds),
            broker: broker.clone(),
            fresh: fresh.clone(),
        };
        work.tasks.run("edge user", &work.stop, edge_user.run(work.stop.clone()));
        let crd = Arc::new(CrdGuard::new(client.clone(), fresh.clone(), Arc::clone(&triggers), Arc::clone(&metrics)));
        let check = Arc::clone(&crd).run(Some(readiness.wait_for(crd_check::PART)), work.stop.clone());
        work.tasks.run("crd check", &work.stop, check);
        let watch = fresh.watch(
            client.clone(),
            api.clone(),
            Listed::EdgeConfigurations,
            Api::<ConfigMap>::namespaced,
            &namespace,
            api_client::watch(SELECTOR),
        );
        let listed_maps = readiness.wait_for(CONFIG_MAPS);
        let followed = config_watch::follow(watch, config_map_store, Arc::clone(&triggers), fresh.clone(), listed_maps);
        work.tasks.until("edge configurations", &work.stop, followed);
        let classes = Arc::new(Classes::default());
        let listed_classes = readiness.wait_for(classes::PART);
        let watch = fresh.watch(
            client.clone(),
            api.clone(),
            Listed::Classes,
            |client, _| Api::<StoredClass>::all(client),
            "",
            api_client::watch(""),
        );
        let watched = Arc::clone(&classes).follow(
            watch,
            Arc::clone(&triggers),
            fresh.clone(),
            events.clone(),
            leadership.clone(),
            listed_classes,
        );
        work.tasks.until("classes", &work.stop, watched);
        let class_crd = CrdGuard::of_classes(
            client.clone(),
            fresh.clone(),
            Arc::clone(&classes),
            Arc::clone(&triggers),
            Arc::clone(&metrics),
        );
        let class_crd = Arc::new(class_crd);
        work.tasks.run("class crd check", &work.stop, Arc::clone(&class_crd).run(None, work.stop.clone()));
        let states = Arc::new(ResourceStates::default());
        for namespace in secret_namespaces {
            let watch = secret_watch::run(client.clone(), namespace, Arc::clone(&states), Arc::clone(&triggers));
            work.tasks.until("secret watch", &work.stop, watch);
        }
        work.tasks.once(
            "trigger on leading",
            trigger_on_leading(
                leadership.clone(),
                Arc::clone(&seeds),
                fresh.clone(),
                triggers.clone(),
                work.stop.clone(),
            ),
        );

        let counted = businesses.clone();
        let context = Arc::new(Context {
            options,
            client,
            seeds,
            writer: Writer::new(writing, namespace, fresh.clone(), Arc::clone(&crd), Arc::clone(&metrics)),
            broker,
            edges,
            brake,
            installation,
            events,
            businesses,
            config_maps,
            classes,
            crd,
            class_crd,
            metrics: Arc::clone(&metrics),
            states,
            triggers: Arc::clone(&triggers),
        });
        let controller = Controller { selector, concurrency, store, triggers, listed, fresh, config: api };
        reconciles.tasks.run(
            "controller",
            &reconciles.stop,
            controller.run(Arc::clone(&context), reconciles.stop.clone()),
        );
        let leftovers = leftover::run(Arc::clone(&context), reconciles.stop.clone());
        reconciles.tasks.run("leftovers", &reconciles.stop, leftovers);
        // Asked at this moment: of all replicas at most one may ever report that it leads.
        let routes = admin::routes(readiness, move || {
            let leads = leadership.is_leader();
            metrics.encode(leads, &if leads { census::conditions(&counted) } else { BTreeMap::new() })
        });
        last.tasks.run("admin port", &last.stop, listener.serve(routes, last.stop.clone(), supervisor));
        last.tasks.run(ELECTION, &last.stop, elector.run(last.stop.clone()));
        Ok(Self { admin, context, reconciles, work, last })
    }

    /// Where the admin port listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }
}

impl Program for App {
    /// Begins nothing new, ends what runs, and at last gives up the lease.
    async fn shutdown(self, failure: Option<&Failure>) {
        let Self { admin: _, context, reconciles, work, last } = self;
        // Leadership is lost: nothing may be written any more, so nothing is ended in order either.
        if failure.is_some_and(|failure| failure.task == ELECTION) {
            return;
        }
        tracing::info!("shutting down");
        let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
        // Reconciles wait for it, and a call of the broker may take longer than this process has left.
        context.broker.close();
        let mut ended = reconciles.end(deadline).await;
        ended &= work.end(deadline).await;
        // Without a handle the keeper would end, and unasked before `work` is.
        drop(context);
        if ended {
            last.end(Instant::now() + SHUTDOWN_TIMEOUT).await;
        } else {
            // What still runs could write.
            tracing::warn!("the lease is not given up, because a task that still runs could write: it expires");
        }
    }
}

/// A standby reads the seed every few seconds. A leader with a former seed would give all businesses credentials derived from it.
async fn read_seed_again(seeds: &Seeds) {
    for _ in 0..SEED_TRIES {
        let error = match timeout(SEED_TIMEOUT, seeds.check()).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer within {SEED_TIMEOUT:?}"),
        };
        tracing::warn!(error, "cannot read the seed again; the one that was read before is used");
    }
}

/// A replica that begins to lead lists everything. Each time that a list of everything is complete all is reconciled: until then nothing could
/// be written, and whoever came in the meantime waits for it.
async fn trigger_on_leading(
    mut leadership: Leadership,
    seeds: Arc<Seeds>,
    fresh: Fresh,
    triggers: Arc<Triggers>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = async {
            leadership.acquired().await;
            read_seed_again(&seeds).await;
            let mut complete = fresh.complete();
            fresh.relist();
            loop {
                triggers.trigger_all();
                if complete.changed().await.is_err() {
                    return;
                }
            }
        } => {}
        () = stop.cancelled() => {}
    }
}
