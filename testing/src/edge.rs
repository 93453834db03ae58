//! `wirepost-edge` as a process: the binary that cargo built beside the tests, on ports of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::broker::{PATIENCE, eventually};
use crate::client::ClientBuilder;
use crate::process::{Process, binary};
use crate::setup::Setup;

const PROGRAM: &str = "wirepost-edge";

/// An edge that is yet to be started, see [`Setup::edge`].
#[derive(Debug)]
pub struct EdgeBuilder {
    setup: Setup,
    name: String,
    flags: BTreeMap<String, String>,
    kubeconfig: Option<PathBuf>,
    log: String,
    open_files: Option<u32>,
    core: Option<String>,
    quiet: bool,
    panics: Option<(String, PathBuf)>,
}

impl EdgeBuilder {
    pub(crate) fn new(setup: Setup, name: &str) -> Self {
        let vhost = setup.vhost();
        let flags = [
            ("name", name.to_owned()),
            ("listen", "127.0.0.1:0".to_owned()),
            ("admin-listen", "127.0.0.1:0".to_owned()),
            ("config-dir", setup.config_dir().display().to_string()),
            ("keys-file", setup.keys_file().display().to_string()),
            ("stream", vhost.broker.stream.clone()),
            // With the user of --amqp.
            ("management", vhost.broker.management_of_anybody()),
            // Nobody waits in a test.
            ("endpoint-lag-seconds", "0.1".to_owned()),
            ("drain-window-seconds", "1".to_owned()),
            ("drain-deadline-seconds", "10".to_owned()),
            // An event that nobody in a test has caused.
            ("census-seconds", "3600".to_owned()),
        ];
        let flags = flags.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let log = "info,wirepost_edge=debug,wirepost_stream=debug".to_owned();
        Self {
            setup,
            name: name.to_owned(),
            flags,
            kubeconfig: None,
            log,
            open_files: None,
            core: None,
            quiet: false,
            panics: None,
        }
    }

    /// Sets a flag of `wirepost-edge`, named without its dashes: `flag("amqp", proxied)`.
    #[expect(clippy::needless_pass_by_value, reason = "numbers read better without a &")]
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl ToString) -> Self {
        self.flags.insert(name.to_owned(), value.to_string());
        self
    }

    /// Leaves a flag out that every edge of a test has.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.flags.remove(name);
        self
    }

    /// Lets it take its configurations from the ConfigMaps of a namespace, as the account of this kubeconfig, instead of the setup's files.
    #[must_use]
    pub fn config_namespace(mut self, namespace: &str, kubeconfig: &Path) -> Self {
        self.flags.remove("config-dir");
        self.flags.insert("config-namespace".to_owned(), namespace.to_owned());
        self.kubeconfig = Some(kubeconfig.to_owned());
        self
    }

    /// Sets its log filter.
    #[must_use]
    pub fn log_filter(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log);
        self
    }

    /// Limits the number of files that the process may open.
    #[must_use]
    pub fn open_files(mut self, files: u32) -> Self {
        self.open_files = Some(files);
        self
    }

    /// As in operation, for benchmarks: no line for each request, and its log is not shown at its end.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        "info".clone_into(&mut self.log);
        self.quiet = true;
        self
    }

    /// Runs it on this core of the machine alone.
    #[must_use]
    pub fn core(mut self, core: &str) -> Self {
        self.core = Some(core.to_owned());
        self
    }

    /// Makes the task of this name panic once [`Edge::panic`] is called, see `runtime/src/tasks/test_panic.rs`.
    #[must_use]
    pub fn panics(mut self, task: &str) -> Self {
        let file = self.setup.dir().join(format!("panic-{}", rand::random::<u32>()));
        self.panics = Some((task.to_owned(), file));
        self
    }

    /// Starts it and waits until it is ready, which does not need the broker.
    pub async fn start(self) -> Result<Edge> {
        let edge = self.start_unready().await?;
        eventually("the edge is ready", PATIENCE, || async { Ok(edge.readyz().await?.0 == 200) }).await?;
        Ok(edge)
    }

    /// Starts it and waits until it listens, ready or not.
    pub async fn start_unready(mut self) -> Result<Edge> {
        if !self.flags.contains_key("amqp") {
            // A user can't be made on a broker that is away: then the edge has the administrator's.
            let amqp = self.setup.edge_amqp().await.unwrap_or_else(|_| self.setup.vhost().amqp());
            self.flags.insert("amqp".to_owned(), amqp);
        }
        let mut edge = self.spawn()?;
        edge.await_addresses().await?;
        Ok(edge)
    }

    fn spawn(self) -> Result<Edge> {
        let set_up = |command: &mut Command| {
            command
                .args(self.flags.iter().map(|(name, value)| format!("--{name}={value}")))
                .envs(self.kubeconfig.iter().map(|path| ("KUBECONFIG", path)))
                .env("WIREPOST_LOG", &self.log);
            if let Some((task, file)) = &self.panics {
                command.env("WIREPOST_TEST_PANIC", format!("{task}@{}", file.display()));
            }
        };
        let folder = self.setup.dir();
        let process = match self.open_files {
            Some(files) => Process::spawn_limited(PROGRAM, files, &self.name, folder, set_up)?,
            None => Process::spawn_other(&binary(PROGRAM)?, self.core.as_deref(), &self.name, folder, set_up)?,
        };
        if self.quiet {
            process.be_quiet();
        }
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        Ok(Edge {
            process,
            setup: self.setup,
            http,
            public: nowhere,
            admin: nowhere,
            panics: self.panics.map(|(_, file)| file),
        })
    }
}

/// A running edge.
#[derive(Debug)]
pub struct Edge {
    process: Process,
    /// What it shares with others.
    pub setup: Setup,
    /// Where clients connect.
    pub public: SocketAddr,
    /// Where the probes are.
    pub admin: SocketAddr,
    http: reqwest::Client,
    panics: Option<PathBuf>,
}

impl Deref for Edge {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Edge {
    async fn await_addresses(&mut self) -> Result<()> {
        let mut found = None;
        eventually("the edge listens", PATIENCE, || {
            let log = self.log();
            found = address(&log, "public").zip(address(&log, "admin"));
            let (listens, ended) = (found.is_some(), self.exit_status());
            async move {
                match ended {
                    Ok(None) => Ok(listens),
                    // An error ends the wait only at its end; a dead process will not change.
                    Ok(Some(status)) => panic!("the edge ended with {status}: {log}"),
                    Err(error) => Err(error),
                }
            }
        })
        .await?;
        if let Some((public, admin)) = found {
            (self.public, self.admin) = (public, admin);
        }
        Ok(())
    }

    /// A client of the first declared business, yet to be connected.
    pub fn client(&self, unique_id: &str, client_type: &str) -> ClientBuilder<'_> {
        ClientBuilder::new(self, unique_id, client_type)
    }

    /// A call of the HTTP interface with the API key: status and body.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<(u16, Value)> {
        let mut url = reqwest::Url::parse(&format!("http://{}{path}", self.public))?;
        url.query_pairs_mut().extend_pairs(query);
        answer(self.http.get(url).header("x-api-key", self.setup.api_key())).await
    }

    /// Pushes an envelope or an array of them by HTTP, as the first declared business's service: status and body.
    pub async fn post(&self, envelopes: &Value) -> Result<(u16, Value)> {
        self.post_bytes(serde_json::to_vec(envelopes)?).await
    }

    /// The same with any body.
    pub async fn post_bytes(&self, body: Vec<u8>) -> Result<(u16, Value)> {
        let url = format!("http://{}/{}/websocket/messages", self.public, self.setup.business());
        answer(self.http.post(url).header("x-api-key", self.setup.api_key()).body(body)).await
    }

    /// The token call, as a service makes it: the URL to connect to.
    pub async fn token(&self, business: &str, unique_id: &str, client_type: &str, tags: &[&str]) -> Result<String> {
        let mut query = vec![("uniqueId", unique_id), ("clientType", client_type)];
        query.extend(tags.iter().map(|&tag| ("tags", tag)));
        let (status, body) = self.get(&format!("/{business}/websocket/token"), &query).await?;
        ensure!(status == 200, "token call: {status}: {body}");
        Ok(body["data"].as_str().context("a token call without data")?.to_owned())
    }

    /// Ends sessions of a business, as its service: status and body.
    pub async fn revoke(&self, business: &str, query: &[(&str, &str)]) -> Result<(u16, Value)> {
        let mut url = reqwest::Url::parse(&format!("http://{}/{business}/websocket/sessions", self.public))?;
        url.query_pairs_mut().extend_pairs(query);
        answer(self.http.delete(url).header("x-api-key", self.setup.api_key())).await
    }

    /// A path of the admin port: status and text.
    pub async fn admin(&self, path: &str) -> Result<(u16, String)> {
        let answer = self.http.get(format!("http://{}{path}", self.admin)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Status and text of `/readyz`.
    pub async fn readyz(&self) -> Result<(u16, String)> {
        self.admin("/readyz").await
    }

    /// The value of one series, written as in `/metrics`: `wirepost_edge_nacks_total{kind="timeout"}`. Absent counts as 0.
    pub async fn metric(&self, series: &str) -> Result<f64> {
        let (_, text) = self.admin("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(Ok(0.0), |value| value.parse().with_context(|| format!("{series} {value}")))
    }

    /// The value of a series that counts.
    pub async fn count(&self, series: &str) -> Result<u64> {
        Ok(self.metric(series).await? as u64)
    }

    /// Waits until a series has at least this value.
    pub async fn await_metric(&self, series: &str, least: f64) -> Result<()> {
        eventually(&format!("{series} >= {least}"), PATIENCE, || async { Ok(self.metric(series).await? >= least) })
            .await
    }

    /// Makes the task of [`EdgeBuilder::panics`] panic.
    pub fn panic(&self) -> Result<()> {
        File::create(self.panics.as_ref().context("no task is to panic")?)?;
        Ok(())
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Result<(u16, Value)> {
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    let body = answer.bytes().await?;
    let value = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
    Ok((status, value))
}

fn address(log: &str, field: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains("listening"))?;
    if let Ok(line) = serde_json::from_str::<Value>(line) {
        return line["fields"][field].as_str()?.parse().ok();
    }
    line.split_whitespace().find_map(|word| word.strip_prefix(field)?.strip_prefix('=')?.parse().ok())
}
