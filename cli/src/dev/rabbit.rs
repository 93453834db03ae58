//! A real RabbitMQ behind `wirepost dev`. The operator's code creates the topology there and repairs it.

mod events;
mod health;
mod keeper;
mod show;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use reqwest::Url;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use wirepost_core::Compiled;
use wirepost_edge::broker::{
    Broker,
    rabbit::{Config, RabbitBroker},
};
use wirepost_rabbitmq::{Connection, Endpoint, ManagementClient, ManagementSettings, TlsFiles};
use wirepost_runtime::tasks::{Supervisor, Tasks};
use wirepost_topology::{
    OpenQueues,
    keeper::{Keeper, LazyConnection, Mode, Settings as KeeperSettings},
};

use super::playground::Desk;
use crate::output::Console;

/// RabbitMQ's default ports.
const STREAM_PORT: u16 = 5552;
const MANAGEMENT_PORT: (u16, u16) = (15672, 15671);
/// A broker that sends nothing for two of these is away.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a command waits for the first round on the broker.
const FIRST_ROUND: Duration = Duration::from_secs(3);

/// A real RabbitMQ instead of the broker in this process.
#[derive(clap::Args)]
#[group(skip)]
#[command(next_help_heading = "On a real RabbitMQ 4")]
pub(super) struct Args {
    /// amqp://user:password@host:5672/vhost. dev creates the topology there, repairs it, and leaves it there at the
    /// end.
    #[arg(long, env = "WIREPOST_AMQP", hide_env_values = true, value_name = "URI")]
    amqp: Option<String>,
    /// The broker's stream listener. Default: port 5552 of the AMQP host.
    #[arg(long, env = "WIREPOST_STREAM", hide_env_values = true, requires = "amqp", value_name = "HOST:PORT")]
    stream: Option<String>,
    /// The broker's management API. Default: port 15672 of the AMQP host, with the AMQP user.
    #[arg(long, env = "WIREPOST_MANAGEMENT", hide_env_values = true, requires = "amqp", value_name = "URL")]
    management: Option<String>,
    /// Consume and show the messages in queues, in place of your services.
    #[arg(long, requires = "amqp")]
    show_queues: bool,
    /// Queues that routes with `existing: true` may name although their owners have not opened them. Default as in the
    /// operator: none.
    #[arg(
        long,
        env = "WIREPOST_EXISTING_QUEUES",
        requires = "amqp",
        default_value = "",
        value_name = "NAMESPACE=PREFIX,…"
    )]
    existing_queues: OpenQueues,
}

/// The addresses of a RabbitMQ.
pub(super) struct Address {
    amqp: String,
    uri: wirepost_rabbitmq::Address,
    stream: String,
    /// With user and password.
    management: String,
    show_queues: bool,
    open_queues: OpenQueues,
}

impl Args {
    /// `None`: the broker in this process.
    ///
    /// # Errors
    /// An address can't be read. The message holds no password.
    pub(super) fn address(self) -> anyhow::Result<Option<Address>> {
        let Self { amqp, stream, management, show_queues, existing_queues } = self;
        let Some(amqp) = amqp else {
            return Ok(None);
        };
        let uri: wirepost_rabbitmq::Address = amqp.parse().context("--amqp")?;
        let host = uri.host();
        let stream = stream.unwrap_or_else(|| format!("{host}:{STREAM_PORT}"));
        let management = management.unwrap_or_else(|| {
            if uri.is_tls() {
                format!("https://{host}:{}", MANAGEMENT_PORT.1)
            } else {
                format!("http://{host}:{}", MANAGEMENT_PORT.0)
            }
        });
        let mut management: Url =
            management.parse().context("--management is not a URL; write http://user:password@host:15672")?;
        if management.username().is_empty() {
            let login = uri.login();
            // Fails only without a host, which the management client's own check names.
            let _ = management.set_username(&login.user);
            let _ = management.set_password(Some(login.password.expose()));
        }
        Ok(Some(Address {
            amqp,
            stream,
            management: management.into(),
            show_queues,
            open_queues: existing_queues,
            uri,
        }))
    }
}

/// What the tasks keep on the broker.
#[derive(Clone, Debug, Default, PartialEq)]
struct Desired {
    /// Counts what was desired.
    number: u64,
    businesses: Vec<Compiled>,
}

/// Keeps the topology on a broker as declared until it is stopped. The topology stays.
pub(super) struct Rabbit {
    place: String,
    show_queues: bool,
    open_queues: OpenQueues,
    desired: watch::Sender<Desired>,
    /// The number of what the last finished round was for.
    rounds: watch::Receiver<u64>,
    stop: CancellationToken,
    tasks: Tasks,
}

impl Rabbit {
    /// Starts an edge's broker client and the topology keeper. The broker may be unreachable.
    ///
    /// # Errors
    /// An address can't be used.
    pub(super) fn start(
        edge: &str,
        address: Address,
        console: Console,
        desk: Desk,
        supervisor: &Supervisor,
    ) -> anyhow::Result<(RabbitBroker, Self)> {
        let Address { amqp, uri, stream, management, show_queues, open_queues } = address;
        let config = Config::parse(edge, &amqp, Some(&stream), Some(&management))?;
        let place = uri.to_string();
        let vhost = uri.vhost().to_owned();
        let settings =
            ManagementSettings { url: management, vhost, credentials: None, tls: TlsFiles::default(), timeout: None };
        let management = ManagementClient::new(settings)?;
        let (desired, desired_changes) = watch::channel(Desired::default());
        let (done, rounds) = watch::channel(0);
        let (stop, tasks) = (CancellationToken::new(), supervisor.tasks());
        tasks.until(
            "event consumer",
            &stop,
            events::run(uri.clone(), edge.to_owned(), desired_changes.clone(), desk.clone()),
        );
        if show_queues {
            let show = show::Show { console: console.clone(), desk };
            tasks.until("queue consumer", &stop, show.run(uri.clone(), desired_changes.clone()));
        }
        let broker = RabbitBroker::start(config, supervisor)?;
        // It ends with the edge's broker client, which is closed before these tasks.
        let health = health::run(broker.health(), console.clone());
        tasks.once("broker health", stop.clone().run_until_cancelled_owned(health));
        let amqp = LazyConnection::new(uri, None, TlsFiles::default(), "wirepost dev: topology");
        let settings = KeeperSettings {
            management,
            amqp,
            mode: Mode::Development,
            nodes: None,
            sweep: keeper::INTERVAL,
            // No business counts as an orphan here.
            orphan_grace: Duration::MAX,
        };
        let dev = Arc::new(keeper::Dev::default());
        let (keeper, keep) = Keeper::new(settings, Arc::clone(&dev) as _, stop.clone());
        tasks.run("topology keeper", &stop, keep);
        tasks.until("topology rounds", &stop, keeper::run(keeper, dev, desired_changes, done, console));
        Ok((broker, Self { place, show_queues, open_queues, desired, rounds, stop, tasks }))
    }

    /// Stops the tasks.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.tasks.finished().await;
    }

    /// Whether messages in queues are consumed and printed.
    pub(super) fn shows_queues(&self) -> bool {
        self.show_queues
    }

    /// The address, without the password.
    pub(super) fn describe(&self) -> String {
        format!("RabbitMQ at {}; its topology stays there when dev ends", self.place)
    }

    /// Applies the topology of these businesses. Returns after the first attempt, so that clients connect after it
    /// exists. A round for former ones may end meanwhile.
    pub(super) async fn apply(&mut self, businesses: &[Compiled]) {
        let mut businesses = businesses.to_vec();
        for Compiled { owner, topology, .. } in &mut businesses {
            self.open_queues.mark(owner, topology);
        }
        let number = self.desired.borrow().number + 1;
        self.desired.send_replace(Desired { number, businesses });
        let _ = timeout(FIRST_ROUND, self.rounds.wait_for(|done| *done >= number)).await;
    }
}

/// Opens an AMQP connection for dev itself.
async fn connect(address: &wirepost_rabbitmq::Address, name: &str) -> anyhow::Result<Connection> {
    let endpoint = Endpoint::new(address.clone(), None, format!("wirepost dev: {name}"))?;
    Ok(Connection::open(&endpoint, HEARTBEAT).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(amqp: &str, management: Option<&str>) -> Args {
        Args {
            amqp: Some(amqp.into()),
            stream: None,
            management: management.map(Into::into),
            show_queues: false,
            existing_queues: OpenQueues::default(),
        }
    }

    #[test]
    fn what_is_left_out_follows_from_the_amqp_address() {
        let address = args("amqp://me:p%40ss@rabbit:5673/%2Fdev", None).address().unwrap().unwrap();
        assert_eq!(address.uri.vhost(), "/dev");
        assert_eq!(address.stream, "rabbit:5552");
        assert_eq!(address.management, "http://me:p%40ss@rabbit:15672/");
        let named = args("amqp://me:secret@rabbit", Some("http://admin:a@other:1")).address().unwrap().unwrap();
        assert_eq!(named.management, "http://admin:a@other:1/");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_for_its_own_round() {
        let (desired, _changes) = watch::channel(Desired::default());
        let (done, rounds) = watch::channel(0);
        let mut rabbit = Rabbit {
            place: String::new(),
            show_queues: false,
            open_queues: OpenQueues::default(),
            desired,
            rounds,
            stop: CancellationToken::new(),
            tasks: Supervisor::default().tasks(),
        };
        for number in 1..4 {
            let mut applied = Box::pin(rabbit.apply(&[]));
            // A sweep of what was desired before.
            done.send_replace(number - 1);
            assert!(timeout(FIRST_ROUND / 2, &mut applied).await.is_err(), "{number}");
            done.send_replace(number);
            assert!(timeout(Duration::ZERO, applied).await.is_ok(), "{number}");
        }
    }

    #[test]
    fn a_bad_address_is_named_without_its_password() {
        let error = format!("{:#}", args("amqp//me:secret@rabbit", None).address().err().unwrap());
        assert!(error.contains("--amqp") && !error.contains("secret"), "{error}");
    }
}
