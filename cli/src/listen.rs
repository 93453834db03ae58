//! `wirepost listen`: a client of a business that follows the protocol: it gets a token, connects, prints every frame,
//! and reconnects from its position.

mod activity;
mod connection;
mod retry;

use std::{
    io::{self, BufRead},
    process::ExitCode,
};

use clap::ArgAction;
use tokio::sync::mpsc;
use wirepost_runtime::signals::Signals;

use crate::{
    edge::{self, CallError, Credential, Edge},
    output,
};
use connection::{ConnectError, Connection, End, Step};
use retry::{Next, Waits, after_close, after_refusal, after_token_refusal};

/// Lines typed while the edge is away; when it is full, stdin is not read.
const TYPED_AHEAD: usize = 16;

/// Connect as a client and print frames, one per line; typed lines are sent as frames.
///
/// Reconnects with the newest cursor until Ctrl-C, and prints that cursor at the end. Resume tokens are secrets and
/// printed as …. Everything but frames goes to stderr.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The business to connect to.
    #[arg(long, short)]
    business: String,
    /// The client's identity; not with --jwt, which contains it.
    #[arg(long, required_unless_present = "jwt", conflicts_with = "jwt")]
    id: Option<String>,
    /// The client type, one of the business's clientTypes. With --jwt only if the token does not contain it.
    #[arg(long, short = 't', required_unless_present = "jwt")]
    client_type: Option<String>,
    /// The client's tags.
    #[arg(long, value_delimiter = ',', conflicts_with = "jwt")]
    tags: Vec<String>,
    /// Continue after this cursor, as printed by an earlier run.
    #[arg(long)]
    cursor: Option<String>,
    /// Without the subprotocol wirepost.v1: envelopes only, no acks, no welcome.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", action = ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    plain: bool,
    /// Do not reconnect.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", action = ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    once: bool,
    /// The edge.
    #[arg(long, default_value = edge::DEFAULT_URL, env = "WIREPOST_URL")]
    url: String,
    /// Key of the business's services. Default: the key of `wirepost dev`, dev-<business>.
    #[arg(long, env = edge::API_KEY, hide_env_values = true, conflicts_with = "jwt")]
    api_key: Option<String>,
    /// The client's own token, issued by its identity provider, instead of an API key.
    #[arg(long, env = "WIREPOST_JWT", hide_env_values = true)]
    jwt: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { business, id, client_type, tags, cursor, plain, once, url, api_key, jwt } = args;
    let signals = Signals::register()?;
    let credential = match jwt {
        Some(token) => Credential::Jwt(token),
        None => Credential::ApiKey(api_key.unwrap_or_else(|| edge::dev_key(&business))),
    };
    let tags = tags.join(",");
    let query = [("uniqueId", id.as_deref()), ("clientType", client_type.as_deref()), ("tags", Some(tags.as_str()))];
    let query: Vec<(&str, &str)> =
        query.into_iter().filter_map(|(name, value)| value.filter(|v| !v.is_empty()).map(|v| (name, v))).collect();
    let mut client = Client {
        edge: Edge::new(&url)?,
        business: business.clone(),
        credential,
        query: query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        plain,
        once,
        cursor,
        resume_url: None,
        typed: Some(typed()),
        signals,
        last_failure: None,
        retry_after: None,
        was_connected: false,
    };
    let result = client.run().await;
    if let Some(cursor) = client.cursor.as_ref().filter(|_| client.was_connected) {
        output::error_line(&format!("wirepost: to continue from here: --cursor {cursor}"));
    }
    result
}

/// Lines of stdin, read by a thread: waiting for them can't be cancelled.
fn typed() -> mpsc::Receiver<String> {
    let (lines, typed) = mpsc::channel(TYPED_AHEAD);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if !line.trim().is_empty() && lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    typed
}

/// The next line; `None` at the end of stdin, after that it waits forever.
async fn next_line(typed: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
    match typed {
        Some(lines) => lines.recv().await,
        None => std::future::pending().await,
    }
}

struct Client {
    edge: Edge,
    business: String,
    credential: Credential,
    query: Vec<(String, String)>,
    plain: bool,
    once: bool,
    /// The newest position seen.
    cursor: Option<String>,
    /// URL with the resume token: reconnects without a token call.
    resume_url: Option<String>,
    /// Lines of stdin; `None` once it is at its end.
    typed: Option<mpsc::Receiver<String>>,
    signals: Signals,
    /// The last reported reason why there is no connection: a repeat is not reported.
    last_failure: Option<String>,
    /// `Retry-After` of the last refusal.
    retry_after: Option<std::time::Duration>,
    was_connected: bool,
}

impl Client {
    /// Runs until a signal, or until reconnecting is pointless.
    async fn run(&mut self) -> anyhow::Result<ExitCode> {
        let mut waits = Waits::new();
        loop {
            let next = match self.connect().await {
                Ok(connection) => {
                    waits.connected();
                    let Some(end) = self.communicate(connection).await? else {
                        return Ok(ExitCode::SUCCESS);
                    };
                    let next = after_close(&end);
                    let reconnects = match next {
                        Next::Stop => "",
                        _ if self.once => "",
                        Next::Slowly => "; reconnecting later",
                        Next::Resume | Next::NewToken => "; reconnecting",
                    };
                    output::error_line(&format!("wirepost: {end}{reconnects}"));
                    next
                }
                Err(next) => next,
            };
            match next {
                Next::Stop => return Ok(ExitCode::FAILURE),
                _ if self.once => return Ok(ExitCode::FAILURE),
                Next::NewToken => self.resume_url = None,
                Next::Resume | Next::Slowly => {}
            }
            tokio::select! {
                () = tokio::time::sleep(waits.next_wait(next, self.retry_after.take())) => {}
                () = self.signals.recv() => return Ok(ExitCode::SUCCESS),
            }
        }
    }

    /// Connects with the resume token, else with a new token.
    async fn connect(&mut self) -> Result<Connection, Next> {
        let url = match &self.resume_url {
            Some(url) => url.clone(),
            None => self.token().await?,
        };
        match Connection::open(&url, self.cursor.as_deref(), self.plain).await {
            Ok(connection) => {
                output::error_line(&format!("wirepost: connected to {}", connection::without_token(&url)));
                (self.last_failure, self.was_connected) = (None, true);
                Ok(connection)
            }
            Err(error) => {
                let next = match error {
                    ConnectError::Refused { status, retry_after, .. } => {
                        self.retry_after = retry_after;
                        after_refusal(status)
                    }
                    ConnectError::BadUrl(_) => Next::Stop,
                    ConnectError::Unreachable(_) => Next::Resume,
                };
                Err(self.failed(error.to_string(), next))
            }
        }
    }

    async fn token(&mut self) -> Result<String, Next> {
        let query: Vec<(&str, &str)> = self.query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = match self.edge.token(&self.business, &self.credential, &query).await {
            Ok(answer) => answer,
            Err(error) => {
                if let CallError::NotAnEdge { retry_after, .. } = error {
                    self.retry_after = retry_after;
                }
                return Err(self.failed(error.to_string(), Next::Resume));
            }
        };
        match answer.data.as_str() {
            Some(url) if answer.result == 0 => Ok(url.to_owned()),
            _ => {
                let reason = format!("no token: {} (result {})", answer.description, answer.result);
                self.retry_after = answer.retry_after;
                let next = match after_token_refusal(answer.status.as_u16()) {
                    // At the first attempt it is most likely a typing error.
                    Next::Slowly if !self.was_connected => Next::Stop,
                    next => next,
                };
                Err(self.failed(reason, next))
            }
        }
    }

    /// Reports why there is no connection, unless it was reported last time.
    fn failed(&mut self, reason: String, next: Next) -> Next {
        if self.last_failure.as_ref() != Some(&reason) {
            let retrying = if next == Next::Stop || self.once { "" } else { "; retrying" };
            output::error_line(&format!("wirepost: {reason}{retrying}"));
            self.last_failure = Some(reason);
        }
        next
    }

    /// Prints and sends until the connection ends; `None` when a signal ended it.
    async fn communicate(&mut self, mut connection: Connection) -> anyhow::Result<Option<End>> {
        loop {
            tokio::select! {
                step = connection.step() => match step {
                    Ok(Step::Text(text)) => {
                        let frame = connection::FrameInfo::of(&text);
                        output::line(&output::one_line(connection::redacted(&text, &frame).as_bytes()))?;
                        if let Some(token) = frame.resume_token {
                            self.resume_url = Some(connection.resume_url(&token));
                        }
                        if let Some(cursor) = frame.cursor {
                            self.cursor = Some(cursor.into_owned());
                        }
                        if frame.op.as_deref() == Some("drain") {
                            // Each client gets it at a random time, so there is no need to wait longer.
                            connection.close().await;
                            return Ok(Some(End::Drained));
                        }
                    }
                    Ok(Step::Sent) => {}
                    Err(end) => return Ok(Some(end)),
                },
                line = next_line(&mut self.typed), if connection.can_send() => match line {
                    Some(line) => connection.send(line),
                    None => self.typed = None,
                },
                () = self.signals.recv() => {
                    connection.close().await;
                    return Ok(None);
                }
            }
        }
    }
}
