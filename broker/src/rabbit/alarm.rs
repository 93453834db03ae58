//! Memory and disk alarms, asked of the management API: an idle AMQP connection is not told of one until its first publish is stuck.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use lapin::uri::AMQPUri;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::TlsConnector;

use super::{config::Credentials, counters::Counters};

/// How often alarms are asked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of the answer that are looked at.
const MAX_ANSWER: u64 = 16 << 10;
/// Answers 200 without and 503 with an alarm in the cluster (RabbitMQ's HTTP API reference).
const PATH: &str = "/api/health/checks/alarms";

/// Address and credentials of the management API.
pub(super) struct Management {
    host: String,
    port: u16,
    prefix: String,
    user: Option<(String, String)>,
    tls: Option<Arc<ClientConfig>>,
}

impl Management {
    pub(super) fn parse(uri: &str, tls: Option<Arc<ClientConfig>>) -> Result<Self, String> {
        let (scheme, rest) = uri.split_once("://").ok_or("not a URI; give http://user:password@host:15672")?;
        let (tls, port) = match scheme {
            "http" => (None, 15672),
            "https" => (Some(tls.ok_or("https needs authorities to trust")?), 15671),
            _ => return Err("the scheme is neither http nor https".to_owned()),
        };
        // The same grammar as AMQP's URI, whose parser decodes user and password.
        let parsed: AMQPUri = format!("amqp://{rest}").parse()?;
        let authority = rest.split('/').next().unwrap_or_default();
        let path = rest.split_once('/').map_or("", |(_, path)| path.trim_end_matches('/'));
        let named_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        let userinfo = parsed.authority.userinfo;
        Ok(Self {
            host: parsed.authority.host,
            port: if named_port { parsed.authority.port } else { port },
            prefix,
            user: authority.contains('@').then_some((userinfo.username, userinfo.password)),
            tls,
        })
    }

    /// The alarm, if there is one. Errors where the API can't be asked: nothing is known then.
    async fn alarm(&self, user: &(String, String)) -> Result<Option<String>, String> {
        let ask = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| e.to_string())?;
            match &self.tls {
                None => self.ask(stream, user).await,
                Some(config) => {
                    let name = ServerName::try_from(self.host.clone()).map_err(|e| e.to_string())?;
                    let stream = TlsConnector::from(config.clone()).connect(name, stream).await;
                    self.ask(stream.map_err(|e| e.to_string())?, user).await
                }
            }
        };
        timeout(TIMEOUT, ask).await.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
    }

    async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        (user, password): &(String, String),
    ) -> Result<Option<String>, String> {
        let authorization = STANDARD.encode(format!("{user}:{password}"));
        let request = format!(
            "GET {}{PATH} HTTP/1.0\r\nHost: {}\r\nAuthorization: Basic {authorization}\r\n\r\n",
            self.prefix, self.host
        );
        stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(|e| e.to_string())?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some("200") => Ok(None),
            // A proxy in front says 503 too, with a page of its own.
            Some("503") if let Some(reason) = reason(body) => Ok(Some(reason)),
            _ => Err(format!("unexpected answer {}", head.lines().next().unwrap_or_default())),
        }
    }
}

/// `{"status":"failed","reason":"…","alarms":[{"node":"…","resource":"memory"}]}`; `None`: something else.
fn reason(body: &str) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_str(body).ok()?;
    let alarms = answer["alarms"].as_array().map(Vec::as_slice).unwrap_or_default();
    if alarms.is_empty() && answer["status"] != "failed" {
        return None;
    }
    let resources: Vec<_> = alarms.iter().filter_map(|alarm| alarm["resource"].as_str()).collect();
    Some(if resources.is_empty() { "resource alarm".to_owned() } else { format!("alarm: {}", resources.join(", ")) })
}

/// Polls for ever; what is known goes into `alarm`.
pub(super) async fn poll(
    management: Management,
    credentials: Credentials,
    uri: AMQPUri,
    alarm: watch::Sender<Option<String>>,
    counters: Arc<Counters>,
) {
    // Before the first answer nothing is known either.
    counters.alarms_unknown.set(1);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        let user = match &management.user {
            Some(user) => Ok(user.clone()),
            None => {
                credentials.apply(&uri).map(|uri| (uri.authority.userinfo.username, uri.authority.userinfo.password))
            }
        };
        let answer = match user {
            Ok(user) => management.alarm(&user).await,
            Err(reason) => Err(reason),
        };
        match answer {
            Ok(found) => {
                failing = false;
                counters.alarms_unknown.set(0);
                alarm.send_if_modified(|known| {
                    let changed = *known != found;
                    *known = found;
                    changed
                });
            }
            Err(reason) => {
                counters.alarms_unknown.set(1);
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        reason,
                        "the management API can't be asked for alarms; they are learned from publishes"
                    );
                }
                alarm.send_if_modified(|known| known.take().is_some());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood() {
        let parse = |uri| Management::parse(uri, None);
        let full = parse("http://u%40x:p@host:1234/prefix/").unwrap();
        assert_eq!((full.host.as_str(), full.port, full.prefix.as_str()), ("host", 1234, "/prefix"));
        assert_eq!(full.user, Some(("u@x".into(), "p".into())));
        let bare = parse("http://host").unwrap();
        assert_eq!((bare.port, bare.prefix.as_str(), bare.user), (15672, "", None));
        assert!(parse("https://host").is_err(), "no authority to check it by");
        assert!(parse("host:1").is_err());
    }

    #[test]
    fn an_alarm_names_its_resource() {
        let reason = |body| reason(body).unwrap_or_default();
        assert_eq!(reason(r#"{"alarms":[{"node":"a","resource":"memory"}]}"#), "alarm: memory");
        assert_eq!(reason(r#"{"status":"failed"}"#), "resource alarm");
        assert_eq!(reason("<h1>503 Service Unavailable</h1>"), "", "a proxy's page is no alarm");
    }
}
