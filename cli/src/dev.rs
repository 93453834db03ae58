//! `wirepost dev`: the whole layer on one machine: an edge, the built-in broker or a real RabbitMQ, and declarations
//! from files, which are watched for changes.

mod card;
mod local;
mod playground;
mod project;
mod rabbit;
mod tls;
mod watch;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use wirepost_broker::Broker;
use wirepost_core::Compiled;
use wirepost_edge::{app::App, config::settings::Settings, identity::keys::KeyRing, source};
use wirepost_runtime::{readiness::Readiness, signals::Signals, tasks::Supervisor};

use crate::{edge, output, output::Console};
use playground::{BrokerView, Desk, Playground};
use project::{Change, Project};

/// The folder of examples, relative to the repository.
const EXAMPLES: &str = "examples/";
/// Exit status if the declarations can't be read.
const UNREADABLE: u8 = 2;
/// At shutdown clients get `drain` quickly: there is no load to balance.
const DRAIN_WINDOW: Duration = Duration::from_secs(1);
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Run the whole layer on this machine, with declarations from files.
///
/// Without --amqp the broker runs inside the process: nothing else is needed, and nothing outlives it. Files are
/// watched: a valid change is applied immediately, an invalid one is explained while the last good configuration keeps
/// running, and a removed file removes its business.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// YAML or JSON files, or folders with *.yaml, *.yml or *.json.
    #[arg(default_value = EXAMPLES, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Public address (HTTP and WebSocket); port 0 = any free port.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Admin address (/livez, /readyz, /metrics, /configz, and on a loopback address /playground).
    #[arg(long, default_value = "127.0.0.1:9090")]
    admin: SocketAddr,
    /// API key of every business's services. Default: dev-<business>, which is easy to guess.
    #[arg(long, env = edge::API_KEY, hide_env_values = true)]
    api_key: Option<String>,
    /// Serve https and wss, with a certificate that is generated for this machine and kept in ~/.cache/wirepost/dev-tls.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    rabbit: rabbit::Args,
}

/// The broker behind the edge.
enum Backend {
    Local(local::LocalBackend),
    Rabbit(rabbit::Rabbit),
}

impl Backend {
    /// Whether messages on queues are printed.
    fn shows_queues(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Rabbit(rabbit) => rabbit.shows_queues(),
        }
    }

    /// In words.
    fn describe(&self) -> String {
        match self {
            Self::Local(_) => "inside this process; its messages are lost when it ends".to_owned(),
            Self::Rabbit(rabbit) => rabbit.describe(),
        }
    }

    /// Gives the broker what the businesses need.
    async fn apply(&mut self, businesses: &[Compiled]) {
        match self {
            Self::Local(local) => local.apply(businesses),
            Self::Rabbit(rabbit) => rabbit.apply(businesses).await,
        }
    }

    /// Stops its tasks.
    async fn stop(self) {
        match self {
            Self::Local(local) => local.stop().await,
            Self::Rabbit(rabbit) => rabbit.stop().await,
        }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { paths, listen, admin, api_key, tls, rabbit } = args;
    let mut signals = Signals::register()?;
    let supervisor = Supervisor::default();
    let console = Console::start();
    let mut project = Project::new(paths, api_key.clone());
    let first = match project.refresh(true) {
        Ok(change) => change,
        Err(error) => {
            output::error_line(&format!("wirepost: {error}"));
            return Ok(ExitCode::from(UNREADABLE));
        }
    };
    let mut watch = watch::Watch::start(&project.folders());
    let name = format!("dev-{:08x}", rand::random::<u32>());
    let desk = Desk::new();
    let (broker, mut backend): (Arc<dyn Broker>, Backend) = match rabbit.address()? {
        None => {
            let local = local::LocalBackend::new(console.clone(), desk.clone(), &supervisor);
            (Arc::new(local.broker()), Backend::Local(local))
        }
        Some(address) => {
            let (broker, rabbit) = rabbit::Rabbit::start(&name, address, console.clone(), desk.clone(), &supervisor)?;
            (Arc::new(broker), Backend::Rabbit(rabbit))
        }
    };
    let tls = tls.then(|| tls::certificate(listen.ip())).transpose()?;
    let certificate = tls.as_ref().map(|files| files.certificate.clone());
    let settings = Settings {
        tls,
        edge: name,
        listen,
        admin,
        endpoint_lag: Duration::ZERO,
        drain_window: DRAIN_WINDOW,
        drain_deadline: DRAIN_DEADLINE,
        // The keys are easy to guess: a page of a stranger, whose name points here, must not get in with one.
        trust_host_names: false,
        // For development every line matters.
        log_pause: Duration::ZERO,
        ..Settings::default()
    };
    let readiness = Readiness::default();
    let pending = readiness.wait_for(source::PART);
    let view = BrokerView {
        description: backend.describe(),
        local: matches!(backend, Backend::Local(_)),
        shows_queues: backend.shows_queues(),
    };
    let mut parts = None;
    let started = App::start_with(
        settings,
        Arc::new(KeyRing::random()),
        broker,
        readiness,
        supervisor.clone(),
        |app, closing| {
            let cards = card::Cards { public: app.public, api_key, certificate };
            let playground = Playground::new(app, &cards, view, desk);
            let router = playground.as_ref().map(|playground| playground.router(closing)).unwrap_or_default();
            parts = Some(playground.map(|playground| (cards, playground)));
            router
        },
    );
    let app = started
        .await
        .context("cannot start; --listen and --admin set other addresses (port 0: any free port; with make: ARGS=\"--listen …\")")?;
    let (cards, playground) = parts.context("the admin port has no routes")??;
    console.say(greeting(&app, &backend, &cards, &playground)).await;
    apply_change(&app, &mut backend, &project, &first, &cards, &playground, &console).await;
    drop(pending);
    loop {
        tokio::select! {
            () = signals.recv() => break,
            failure = supervisor.failed() => {
                console.say(format!("{failure}; ending")).await;
                break;
            }
            () = watch.changed() => {}
        }
        match tokio::task::block_in_place(|| project.refresh(false)) {
            Ok(change) if change.is_empty() => {}
            Ok(change) => apply_change(&app, &mut backend, &project, &change, &cards, &playground, &console).await,
            Err(error) => console.say(format!("{error}; what runs keeps running")).await,
        }
    }
    console
        .say("shutting down: clients are asked to reconnect elsewhere (press Ctrl-C again to end immediately)")
        .await;
    tokio::select! {
        () = app.shutdown() => {}
        () = signals.recv() => {}
    }
    backend.stop().await;
    console.flush().await;
    Ok(if supervisor.failure().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Applies what the files declare now, and reports what has changed.
async fn apply_change(
    app: &App,
    backend: &mut Backend,
    project: &Project,
    change: &Change,
    cards: &card::Cards,
    playground: &Playground,
    console: &Console,
) {
    let businesses: Vec<Compiled> = project.running().cloned().collect();
    let configs = || businesses.iter().map(|compiled| playground.admit(compiled.config.clone()));
    if !change.removed.is_empty() {
        // First their clients, then their broker objects.
        let stay = configs().filter(|config| !change.added.contains(&config.business_type)).collect();
        app.state.catalog.replace(stay, &[]);
        for name in &change.removed {
            console.say(format!("{name}: removed, its clients are closed with 4010")).await;
        }
    }
    backend.apply(&businesses).await;
    for bad in app.state.catalog.replace(configs().collect(), &[]) {
        console.say(format!("{bad}; the last good configuration keeps running")).await;
    }
    playground.show(&businesses, project);
    for finding in &change.findings {
        console.say(finding.to_string()).await;
    }
    for note in &change.notes {
        console.say(format!("note: {note}")).await;
    }
    if change.all_valid_again {
        console.say("all files are valid again").await;
    }
    for name in &change.kept {
        console.say(format!("{name}: keeps running with its last good configuration")).await;
    }
    for name in &change.changed {
        console.say(format!("{name}: changed, the new configuration runs")).await;
    }
    for compiled in businesses.iter().filter(|compiled| change.added.contains(&compiled.business)) {
        console.say(cards.card(compiled, project.file_of(compiled), backend.shows_queues())).await;
    }
    if businesses.is_empty() {
        console.say("no business runs yet: correct a file or add one, it is loaded automatically").await;
    }
}

fn greeting(app: &App, backend: &Backend, cards: &card::Cards, playground: &Playground) -> String {
    let mut lines = vec![format!("wirepost dev listens on {} (admin: http://{})", cards.url(), app.admin)];
    lines.extend(playground.url().map(|url| format!("playground: {url}   (open it in a browser)")));
    if let Some(file) = &cards.certificate {
        let file = file.display();
        lines.push(format!(
            "certificate: {file}   (for other terminals: export SSL_CERT_FILE={file}; for Node.js: NODE_EXTRA_CA_CERTS; in a browser open {} once and accept it)",
            cards.url()
        ));
    }
    lines.push(format!("broker: {}", backend.describe()));
    if !app.public.ip().is_loopback() && cards.api_key.is_none() {
        lines.push(format!(
            "warning: other machines can reach {}, and the API keys dev-<business> are easy to guess; set --api-key",
            app.public
        ));
    }
    if let Some(alias) = card::alias() {
        lines.push(format!("for other terminals: {alias}"));
    }
    lines.join("\n")
}
