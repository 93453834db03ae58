//! Wires an operator, runs it, and ends it in order.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt, TryStreamExt, pin_mut, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config as ClientConfig,
    runtime::{
        WatchStreamExt, applier,
        controller::{self, Config, ReconcileRequest, trigger_self},
        reflector, watcher,
    },
};
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wirepost_core::contract::config_map::SELECTOR;
use wirepost_runtime::{admin::AdminPort, tasks::Supervisor};

use crate::{
    admin::{self, Readiness},
    api,
    broker::{self, Broker},
    config_map, definition,
    edges::{self, Edges},
    keys,
    leader::{self, Elector},
    metrics::Metrics,
    notices::Notices,
    reconcile::{self, Context, Memories, Options},
    seed::Seeds,
    stored::Stored,
    triggers::{Listed, Triggers},
    writer::Writer,
};

/// What `/readyz` waits for.
const RESOURCES: &str = "resources";
const CONFIG_MAPS: &str = "edge configurations";
/// Changes that come within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Longest time for what runs to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);

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
    /// Businesses that are reconciled at once.
    pub concurrency: u16,
    /// How one replica leads.
    pub lease: leader::Settings,
    /// The broker.
    pub broker: broker::Settings,
    /// Of reconciles.
    pub options: Options,
}

/// Runs until `cancel`, then ends what runs and gives up the lease.
///
/// # Errors
/// The admin port is taken, an address can't be used, or leadership was lost: the process has to end.
pub async fn run(api: ClientConfig, settings: Settings, cancel: CancellationToken) -> anyhow::Result<()> {
    let Settings { name, admin: address, selector, edge_service, concurrency, lease, broker, options } = settings;
    let (metrics, readiness) = (Arc::new(Metrics::default()), Arc::new(Readiness::default()));
    for part in [RESOURCES, CONFIG_MAPS, edges::PART, definition::PART] {
        readiness.add(part);
    }
    let listener = AdminPort::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    tracing::info!(admin = %listener.local_addr(), "listening");

    // The lease has connections of its own: one that died without a word would cost each renewal its time limit.
    let (elector, leadership) = Elector::new(api::client(api.clone())?, lease);
    let writing = api::leaders_client(api.clone(), leadership.clone())?;
    let client = api::client(api)?;
    let (businesses, business_writer) = reflector::store();
    let (config_maps, writer) = reflector::store();
    let triggers = Arc::new(Triggers::new(businesses.clone(), config_maps.clone()));
    // Three ends: nothing is begun any more; what runs has ended, and with it what it needs; then the lease and the admin port.
    let (begin, work, last) = (cancel.child_token(), CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();

    let (broker, keeper) =
        Broker::start(broker, leadership.clone(), Arc::clone(&triggers), Arc::clone(&metrics), work.clone())?;
    tasks.spawn(keeper);
    let edges = Arc::new(Edges::try_new(edge_service, Arc::clone(&triggers), Arc::clone(&metrics))?);
    let namespace = options.namespace.clone();
    tasks.spawn(Arc::clone(&edges).run(client.clone(), namespace.clone(), Arc::clone(&readiness), work.clone()));
    let seeds = Arc::new(Seeds::new(client.clone(), &namespace));
    let keys = keys::run(client.clone(), namespace.clone(), Arc::clone(&seeds), Arc::clone(&triggers), work.clone());
    tasks.spawn(keys);
    let (looks, definition) = watch::channel(None);
    tasks.spawn(definition::run(client.clone(), looks, Arc::clone(&readiness), Arc::clone(&triggers), work.clone()));
    tasks.spawn(follow_config_maps(
        client.clone(),
        namespace.clone(),
        writer,
        Arc::clone(&triggers),
        Arc::clone(&readiness),
        work.clone(),
    ));
    let context = Arc::new(Context {
        options,
        client: client.clone(),
        seeds,
        writer: Writer::new(writing.clone(), namespace, leadership.clone(), Arc::clone(&metrics)),
        broker,
        edges,
        notices: Notices::new(writing, name),
        businesses: businesses.clone(),
        config_maps,
        definition,
        metrics: Arc::clone(&metrics),
        memories: Memories::default(),
    });
    let routes = admin::router(Arc::clone(&readiness), Arc::clone(&metrics), leadership.clone());
    let serve = listener.serve(routes, last.clone(), Supervisor::default());
    let (ended, mut defeat) = watch::channel(None);
    let election = {
        let last = last.clone();
        async move {
            let result = elector.run(last).await;
            ended.send_replace(result.err());
        }
    };
    let services = TaskTracker::new();
    services.spawn(serve);
    services.spawn(election);
    tasks.spawn(on_leading(leadership, triggers.clone(), work.clone()));
    tasks.spawn(reconcile::look_for_leftovers(Arc::clone(&context), begin.clone()));
    let queue = queue(context.client.clone(), &selector, business_writer, triggers, metrics, readiness, begin.clone());
    let controlling = control(queue, concurrency, context);
    let mut controlling = tokio::spawn(controlling);
    let result = tokio::select! {
        () = begin.cancelled() => Ok(()),
        ended = &mut controlling => Err(anyhow::anyhow!("the controller ended: {ended:?}")),
        // Nothing may be written any more, so nothing is ended in order either.
        Ok(defeat) = defeat.wait_for(Option::is_some) => {
            return Err(anyhow::anyhow!("{}", defeat.as_ref().map(ToString::to_string).unwrap_or_default()));
        }
    };
    tracing::info!("shutting down");
    begin.cancel();
    let ending = async {
        if !controlling.is_finished() {
            let _ = controlling.await;
        }
        work.cancel();
        tasks.close();
        tasks.wait().await;
    };
    if timeout(SHUTDOWN_TIMEOUT, ending).await.is_err() {
        // It could still write.
        tracing::warn!("not everything ended in time; the lease is left to expire");
        return result;
    }
    last.cancel();
    services.close();
    let _ = timeout(SHUTDOWN_TIMEOUT, services.wait()).await;
    result
}

/// What is to be reconciled: resources that changed, and those that something else asks to look at. Ends with `cancel`.
fn queue(
    client: Client,
    selector: &str,
    writer: reflector::store::Writer<Stored>,
    triggers: Arc<Triggers>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    cancel: CancellationToken,
) -> impl Stream<Item = Result<ReconcileRequest<Stored>, watcher::Error>> + Send + use<> {
    let changes = watcher(Api::<Stored>::all(client), api::watch(selector))
        .backoff(api::after_failures())
        .reflect(writer)
        .inspect_ok({
            let triggers = Arc::clone(&triggers);
            move |event| {
                match event {
                    // Whoever waited for its business type has it now.
                    watcher::Event::Delete(gone) => triggers.business(gone.business_type()),
                    // What went while the watch was interrupted is missing only now.
                    watcher::Event::InitDone => {
                        triggers.listed(Listed::Resources);
                        triggers.all();
                        readiness.done(RESOURCES);
                    }
                    _ => {}
                }
                metrics.businesses.set(triggers.known());
            }
        })
        .applied_objects();
    stream::select(trigger_self(changes, ()), triggers.stream().map(|object| Ok(ReconcileRequest::from(object))))
        .take_until(cancel.cancelled_owned())
}

async fn control(
    queue: impl Stream<Item = Result<ReconcileRequest<Stored>, watcher::Error>> + Send,
    concurrency: u16,
    context: Arc<Context>,
) {
    let config = Config::default().concurrency(concurrency).debounce(DEBOUNCE);
    let store = context.businesses.clone();
    let run = |stored, context| Box::pin(reconcile::reconcile(stored, context));
    let results = applier(run, reconcile::error_policy, context, store, queue, config);
    pin_mut!(results);
    while let Some(result) = results.next().await {
        match result {
            // A failure is said by the error policy; a trigger may come for a resource that is gone.
            Ok(_) | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
            Err(error) => tracing::warn!(%error, "the watch of resources is interrupted; trying again"),
        }
    }
}

async fn follow_config_maps(
    client: Client,
    namespace: String,
    writer: reflector::store::Writer<ConfigMap>,
    triggers: Arc<Triggers>,
    readiness: Arc<Readiness>,
    cancel: CancellationToken,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let events = watcher(api, api::watch(SELECTOR))
        .backoff(api::after_failures())
        .modify(|config_map| config_map.metadata.managed_fields = None)
        .reflect(writer);
    pin_mut!(events);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = cancel.cancelled() => return,
        };
        match event {
            Some(Ok(watcher::Event::Apply(changed) | watcher::Event::Delete(changed))) => {
                if let Some(business) = config_map::business(&changed) {
                    triggers.business(business);
                }
            }
            Some(Ok(watcher::Event::InitDone)) => {
                triggers.listed(Listed::EdgeConfigurations);
                readiness.done(CONFIG_MAPS);
                triggers.all();
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => tracing::warn!(%error, "the watch of edge configurations is interrupted; trying again"),
            None => return,
        }
    }
}

/// Whoever begins to lead looks at everything.
async fn on_leading(mut leadership: leader::Leadership, triggers: Arc<Triggers>, cancel: CancellationToken) {
    tokio::select! {
        () = leadership.acquired() => triggers.all(),
        () = cancel.cancelled() => {}
    }
}
