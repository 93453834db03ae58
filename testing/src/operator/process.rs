//! `wirepost-operator` as a process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::World;
use crate::process::Process;
use crate::wait::{PATIENCE, eventually};

impl World {
    /// An operator of this name, yet to be started.
    pub fn operator(&self, name: &str) -> OperatorBuilder<'_> {
        let vhost = self.setup.vhost();
        let flags = [
            ("namespace", self.system.name.clone()),
            ("name", name.to_owned()),
            ("amqp", vhost.amqp()),
            ("management", vhost.broker.management.clone()),
            ("selector", self.selector()),
            ("admin-listen", "127.0.0.1:0".to_owned()),
            ("public-url", "https://ws.example.com".to_owned()),
            // Nobody waits in a test; but on a machine with many tests an API server may take seconds for an answer.
            ("lease-seconds", "8".to_owned()),
            ("sweep-seconds", "1".to_owned()),
            ("status-delay-seconds", "1".to_owned()),
            // Many tests make objects before an operator runs. The vhost is the test's own.
            ("adopt-vhost", "unmarked".to_owned()),
        ];
        let flags = flags.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        OperatorBuilder {
            world: self,
            name: name.to_owned(),
            flags,
            env: Vec::new(),
            kubeconfig: self.account.kubeconfig.clone(),
            log: "info,wirepost_operator=debug,wirepost_topology=debug",
        }
    }
}

/// See [`World::operator`].
pub struct OperatorBuilder<'a> {
    world: &'a World,
    name: String,
    flags: BTreeMap<String, String>,
    env: Vec<(&'static str, String)>,
    kubeconfig: PathBuf,
    log: &'static str,
}

impl OperatorBuilder<'_> {
    /// Sets a flag of `wirepost-operator`, named without its dashes.
    #[expect(clippy::needless_pass_by_value, reason = "numbers read better without a &")]
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl ToString) -> Self {
        self.flags.insert(name.to_owned(), value.to_string());
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: String) -> Self {
        self.env.push((name, value));
        self
    }

    /// Logs as in a cluster, for measurements.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.log = "info";
        self
    }

    /// Sets its log filter.
    #[must_use]
    pub fn log_filter(mut self, filter: &'static str) -> Self {
        self.log = filter;
        self
    }

    /// How it reaches the API server: such as [`kubeconfig_through`](crate::cluster::ServiceAccount::kubeconfig_through) a proxy.
    #[must_use]
    pub fn kubeconfig(mut self, kubeconfig: PathBuf) -> Self {
        self.kubeconfig = kubeconfig;
        self
    }

    /// Starts it and waits until it is ready; it may or may not lead.
    pub async fn start(self) -> Result<Operator> {
        let operator = self.start_unready().await?;
        eventually("the operator is ready", PATIENCE, || async { Ok(operator.readyz().await?.0 == 200) }).await?;
        Ok(operator)
    }

    /// Starts it and waits until it listens.
    pub async fn start_unready(self) -> Result<Operator> {
        let process = Process::spawn("wirepost-operator", &self.name, self.world.setup.dir(), |command| {
            command
                .args(self.flags.iter().map(|(name, value)| format!("--{name}={value}")))
                .envs(self.env.iter().map(|(name, value)| (name, value)))
                .env("KUBECONFIG", &self.kubeconfig)
                .env("WIREPOST_LOG", self.log);
        })?;
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut operator = Operator { admin: nowhere, process, http };
        let mut found = None;
        eventually("the operator listens", PATIENCE, || {
            found = operator.log().lines().find_map(|line| line.split("admin=").nth(1)?.trim().parse().ok());
            let (listens, ended) = (found.is_some(), operator.exit_status());
            // A dead process will not change.
            async move { ended?.map_or(Ok(listens), |status| panic!("the operator ended with {status}")) }
        })
        .await?;
        operator.admin = found.unwrap_or(nowhere);
        Ok(operator)
    }
}

/// A running operator; killed when dropped. A failing test shows the end of its log.
#[derive(Debug)]
pub struct Operator {
    /// Where the probes are.
    pub admin: SocketAddr,
    process: Process,
    http: reqwest::Client,
}

impl Deref for Operator {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Operator {
    /// The admin port: status and body.
    pub async fn admin(&self, path: &str) -> Result<(u16, String)> {
        let answer = self.http.get(format!("http://{}{path}", self.admin)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// `/readyz`.
    pub async fn readyz(&self) -> Result<(u16, String)> {
        self.admin("/readyz").await
    }

    /// The value of a series, as `/metrics` writes it (`wirepost_operator_leader`, or with labels); 0 while it is not there.
    pub async fn metric(&self, series: &str) -> Result<f64> {
        let (_, text) = self.admin("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(line.map(str::parse).transpose()?.unwrap_or_default())
    }

    /// Whether it says that it leads. What has ended does not.
    pub async fn leading(&self) -> bool {
        self.metric("wirepost_operator_leader").await.is_ok_and(|leads| leads > 0.0)
    }

    /// Writes to the API server and changes on the broker so far.
    pub async fn writes(&self) -> Result<f64> {
        let (_, text) = self.admin("/metrics").await?;
        let written = |line: &&str| {
            ["wirepost_operator_api_writes_total", "wirepost_operator_broker_changes_total"]
                .iter()
                .any(|name| line.starts_with(name))
        };
        let values = text.lines().filter(written).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// Errors if the API server has ever refused it something for want of a right.
    pub fn had_every_right(&self) -> Result<()> {
        let log = self.log();
        let refused: Vec<&str> = log.lines().filter(|line| line.to_lowercase().contains("forbidden")).collect();
        ensure!(refused.is_empty(), "{} lacked a right:\n{}", self.name, refused.join("\n"));
        Ok(())
    }

    /// Waits until it has read the whole broker this many more times.
    pub async fn looks(&self, times: u32) -> Result<()> {
        const LOOKS: &str = "wirepost_operator_broker_look_seconds_count";
        let before = self.metric(LOOKS).await?;
        let looked = || async { Ok(self.metric(LOOKS).await? >= before + f64::from(times)) };
        eventually("the operator has looked at the broker again", PATIENCE, looked).await
    }

    /// Waits until it leads.
    pub async fn leads(&self) -> Result<()> {
        let leads = || async { Ok(self.metric("wirepost_operator_leader").await? > 0.0) };
        eventually("the operator leads", PATIENCE, leads).await
    }
}
