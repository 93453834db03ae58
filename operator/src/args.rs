//! Flags and environment of `wirepost-operator`, taken apart in full.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Parser;
use wirepost_core::{PublicUrl, issuer_address::is_trusted_entry};
use wirepost_rabbitmq::{Address, ClientFiles, Credentials, TlsFiles};
use wirepost_runtime::logs::LogArgs;
use wirepost_topology::{OpenQueues, UserLimits, ownership::UNMARKED};

use crate::{access::ServiceEndpoints, app::Settings, broker, conditions::Share, leader, reconcile::Options};

/// The operator of wirepost: makes RabbitMQ, the edges and credentials match what WsBusiness resources declare.
#[derive(Clone, Parser)]
#[command(name = "wirepost-operator", version)]
pub struct Args {
    /// Where wirepost itself runs: edge configurations, the edges' Service, the lease. The chart sets it to the release's namespace.
    #[arg(long, env = "WIREPOST_NAMESPACE")]
    pub namespace: String,
    /// This replica, in the lease and in events; in a cluster the pod's name.
    #[arg(long, env = "WIREPOST_OPERATOR_NAME", default_value = "operator")]
    pub name: String,
    /// amqp:// or amqps:// URI of the broker, with the vhost. Of several, separated by commas, the first.
    #[arg(long, env = "WIREPOST_AMQP", hide_env_values = true)]
    pub amqp: String,
    /// The broker's management API, http(s)://host:port. Its user needs the tag administrator.
    #[arg(long, env = "WIREPOST_MANAGEMENT", hide_env_values = true)]
    pub management: String,
    /// File whose content replaces the user name in the addresses; read at each use.
    #[arg(long, env = "WIREPOST_AMQP_USERNAME_FILE", requires = "amqp_password_file")]
    pub amqp_username_file: Option<PathBuf>,
    /// File whose content replaces the password in the addresses; read at each use.
    #[arg(long, env = "WIREPOST_AMQP_PASSWORD_FILE", requires = "amqp_username_file")]
    pub amqp_password_file: Option<PathBuf>,
    /// CA certificates (PEM) that the broker's certificates are checked against; without it the operating system's.
    #[arg(long, env = "WIREPOST_AMQP_CA_FILE")]
    pub amqp_ca_file: Option<PathBuf>,
    /// Certificate (PEM, chain) that is shown to a broker which asks for one; read at each connect, like its key.
    #[arg(long, env = "WIREPOST_AMQP_CERTIFICATE_FILE", requires = "amqp_key_file")]
    pub amqp_certificate_file: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "WIREPOST_AMQP_KEY_FILE", requires = "amqp_certificate_file")]
    pub amqp_key_file: Option<PathBuf>,
    /// Nodes of the RabbitMQ cluster. Queues and streams get copies on three of them, or as many as there are if it has fewer than three;
    /// what has fewer is reported and repaired, and nothing is created while nodes are missing, for 5 min at most. 0 = as many as it has.
    #[arg(long, env = "WIREPOST_BROKER_NODES", default_value = "0")]
    pub broker_nodes: u16,
    /// host:port at which the businesses' own services reach the broker. Default: the one in --amqp.
    #[arg(long, env = "WIREPOST_ADVERTISED_AMQP", value_parser = host_and_port)]
    pub advertised_amqp: Option<(String, u16)>,
    /// What services and clients reach the edges' HTTP interface by, such as https://ws.example.com.
    #[arg(long, env = "WIREPOST_PUBLIC_URL")]
    pub public_url: Option<String>,
    /// Takes the vhost over from the installation with this id, which the condition VhostNotOurs names; `unmarked`: a vhost with objects of
    /// wirepost that names no installation.
    #[arg(long, env = "WIREPOST_ADOPT_VHOST")]
    pub adopt_vhost: Option<String>,
    /// Lets most businesses end at the same time without asking an administrator, such as in an installation for tests.
    #[arg(long, env = "WIREPOST_ALLOW_MASS_DELETION", default_value = "false", action = clap::ArgAction::Set)]
    pub allow_mass_deletion: bool,
    /// Accept no new declaration to which no class applies, such as after the default class was deleted.
    #[arg(long, env = "WIREPOST_REQUIRE_CLASS", default_value = "false", action = clap::ArgAction::Set)]
    pub require_class: bool,
    /// Label selector of the WsBusiness resources that are this installation's, such as wirepost.dev/installation=blue, where several share
    /// a cluster. Default: all.
    #[arg(long, env = "WIREPOST_SELECTOR", default_value = "")]
    pub selector: String,
    /// The edges' Service, whose EndpointSlices name their admin port `admin`.
    #[arg(long, env = "WIREPOST_EDGE_SERVICE", default_value = "wirepost-edge")]
    pub edge_service: String,
    /// Queues that routes with `existing: true` may name though their owners have not opened them: NAMESPACE=PREFIX, separated by commas,
    /// such as shop=shop-,*=public. An empty PREFIX opens every queue.
    #[arg(long, env = "WIREPOST_EXISTING_QUEUES", default_value = "")]
    pub existing_queues: OpenQueues,
    /// Hosts whose key sets edges may fetch over http or from addresses that are not public, though declarations name them: name or
    /// name:port, separated by commas, such as keycloak.idp.svc:8080.
    #[arg(long, env = "WIREPOST_TRUSTED_ISSUERS", value_delimiter = ',', value_parser = trusted_issuer)]
    pub trusted_issuers: Vec<String>,
    /// Admin address: /livez, /readyz, /metrics.
    #[arg(long, env = "WIREPOST_ADMIN_LISTEN", default_value = "0.0.0.0:9090")]
    pub admin_listen: SocketAddr,
    /// The lease by which one replica leads.
    #[arg(long, env = "WIREPOST_LEASE", default_value = "wirepost-operator")]
    pub lease: String,
    /// Seconds after which a leader that does not renew is replaced.
    #[arg(long, env = "WIREPOST_LEASE_SECONDS", default_value = "15", value_parser = clap::value_parser!(u64).range(3..=300))]
    pub lease_seconds: u64,
    /// Seconds between two comparisons of everything on the broker.
    #[arg(long, env = "WIREPOST_SWEEP_SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub sweep_seconds: u64,
    /// Seconds that broker objects of ours which no resource claims are left alone before they are removed.
    #[arg(long, env = "WIREPOST_ORPHAN_GRACE_SECONDS", default_value = "600")]
    pub orphan_grace_seconds: u64,
    /// Seconds that a deleted resource waits for its queues to be emptied and for a broker that is away.
    #[arg(long, env = "WIREPOST_DELETION_DEADLINE_SECONDS", default_value = "600")]
    pub deletion_deadline_seconds: u64,
    /// Seconds within which each access Secret is checked, if nothing of its business changes before. One that was deleted or edited by hand
    /// is restored then.
    #[arg(long, env = "WIREPOST_SECRET_CHECK_SECONDS", default_value = "300", value_parser = clap::value_parser!(u64).range(2..=86400))]
    pub secret_check_seconds: u64,
    /// Seconds that a business's status waits before it reports that the broker or an edge does not answer, or how many edges there are:
    /// what is over by then is not written. Half of that more at random, so that a thousand businesses are not written together.
    #[arg(long, env = "WIREPOST_STATUS_DELAY_SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(0..=600))]
    pub status_delay_seconds: u64,
    /// Seconds between two reports of how many clients a business has, in its status.
    #[arg(long, env = "WIREPOST_CLIENT_COUNT_SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub client_count_seconds: u64,
    /// Percent of the ready edges, rounded up to whole edges, that must run a generation before it counts as programmed.
    #[arg(long, env = "WIREPOST_READY_EDGES_PERCENT", default_value = "80", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub ready_edges_percent: u8,
    /// Seconds that a queue or stream which is no longer declared waits, at the most, for edges that do not report the new configuration, are
    /// not ready, or have left: they may still serve clients with the former one.
    #[arg(long, env = "WIREPOST_EDGES_TIMEOUT_SECONDS", default_value = "120", value_parser = clap::value_parser!(u64).range(5..=3600))]
    pub edges_timeout_seconds: u64,
    /// Connections that the broker user of a business may have open at the same time; 0 = any number.
    #[arg(long, env = "WIREPOST_USER_MAX_CONNECTIONS", default_value = "1000")]
    pub user_max_connections: u32,
    /// Channels that the broker user of a business may have open at the same time; 0 = any number.
    #[arg(long, env = "WIREPOST_USER_MAX_CHANNELS", default_value = "10000")]
    pub user_max_channels: u32,
    /// Namespaces in which the operator may watch Secrets, separated by commas: access Secrets there are restored immediately.
    #[arg(long, env = "WIREPOST_WATCH_SECRETS_IN", value_delimiter = ',')]
    pub watch_secrets_in: Vec<String>,
    /// Businesses that are reconciled at the same time.
    #[arg(long, env = "WIREPOST_CONCURRENCY", default_value = "32", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or("write host:port")?;
    let port = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
    if host.is_empty() { Err("write host:port".to_owned()) } else { Ok((host.to_owned(), port)) }
}

fn trusted_issuer(text: &str) -> Result<String, String> {
    if is_trusted_entry(text) { Ok(text.to_owned()) } else { Err("write a host or host:port".to_owned()) }
}

impl Args {
    /// What the flags say.
    ///
    /// # Errors
    /// An address can't be used.
    pub fn into_settings(self) -> anyhow::Result<Settings> {
        let Self {
            namespace,
            name,
            amqp,
            management,
            amqp_username_file,
            amqp_password_file,
            amqp_ca_file,
            amqp_certificate_file,
            amqp_key_file,
            broker_nodes,
            advertised_amqp,
            public_url,
            adopt_vhost,
            allow_mass_deletion,
            require_class,
            selector,
            edge_service,
            existing_queues,
            trusted_issuers,
            admin_listen,
            lease,
            lease_seconds,
            sweep_seconds,
            orphan_grace_seconds,
            deletion_deadline_seconds,
            secret_check_seconds,
            status_delay_seconds,
            client_count_seconds,
            ready_edges_percent,
            edges_timeout_seconds,
            user_max_connections,
            user_max_channels,
            watch_secrets_in,
            concurrency,
            log: _,
        } = self;
        let amqp: Address = amqp.split(',').next().unwrap_or_default().parse()?;
        let files = amqp_username_file.zip(amqp_password_file);
        let client = amqp_certificate_file.zip(amqp_key_file);
        let client = client.map(|(certificate, key)| ClientFiles { certificate, key });
        let adopt = adopt_vhost.filter(|id| !id.is_empty());
        // Also where the management address names no user.
        let fixed = || Credentials { login: amqp.login(), ..Credentials::default() };
        let credentials = files
            .map(|(user, password)| Credentials::from_files(user, password))
            .or_else(|| (!management.contains('@')).then(fixed));
        let (host, port) = advertised_amqp.unwrap_or_else(|| (amqp.host().to_owned(), amqp.port()));
        let endpoints = ServiceEndpoints {
            scheme: amqp.scheme(),
            host,
            port,
            vhost: amqp.vhost().to_owned(),
            endpoint: public_url
                .map(|url| url.parse::<PublicUrl>())
                .transpose()
                .context("--public-url (WIREPOST_PUBLIC_URL)")?
                .map(|url| url.http()),
        };
        Ok(Settings {
            admin: admin_listen,
            selector: selector.clone(),
            edge_service,
            edge_share: Share::new(ready_edges_percent),
            concurrency,
            secret_namespaces: watch_secrets_in.into_iter().filter(|name| !name.is_empty()).collect(),
            lease: leader::Settings {
                namespace: namespace.clone(),
                name: lease.clone(),
                // A pod that is replaced under its old name is another holder.
                identity: format!("{name}_{:08x}", rand::random::<u32>()),
                duration: Duration::from_secs(lease_seconds),
            },
            broker: broker::Settings {
                amqp,
                management,
                credentials,
                tls: TlsFiles { ca: amqp_ca_file, client },
                nodes: Some(usize::from(broker_nodes)).filter(|nodes| *nodes > 0),
                sweep: Duration::from_secs(sweep_seconds),
                orphan_grace: Duration::from_secs(orphan_grace_seconds),
                adopt: adopt.clone(),
            },
            options: Options {
                namespace,
                lease,
                brake: !allow_mass_deletion,
                adopts: adopt.is_some(),
                former: adopt.filter(|id| id != UNMARKED),
                endpoints,
                open_queues: existing_queues,
                trusted_issuers,
                deletion_deadline: Duration::from_secs(deletion_deadline_seconds),
                selects: !selector.is_empty(),
                sweep: Duration::from_secs(sweep_seconds),
                orphan_grace: Duration::from_secs(orphan_grace_seconds),
                secret_check: Duration::from_secs(secret_check_seconds),
                status_delay: Duration::from_secs(status_delay_seconds),
                count_clients: Duration::from_secs(client_count_seconds),
                edges_timeout: Duration::from_secs(edges_timeout_seconds),
                require_class,
                user_limits: UserLimits {
                    connections: Some(user_max_connections).filter(|limit| *limit > 0),
                    channels: Some(user_max_channels).filter(|limit| *limit > 0),
                },
            },
            name,
        })
    }
}
