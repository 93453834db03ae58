//! The management API of one vhost: four verbs, each with a time limit, and the broker's reason in every error.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

use crate::{BrokerTls, Credentials, TlsFiles};

mod answer;
mod error;
mod http;

use answer::{alarm_in, broker_reason};
pub use error::{CallError, ManagementError};
use http::{Http, chain, exchange, http_client};

/// The export of 200 businesses takes 40 ms; a broker that is busy electing leaders takes seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Setting or deleting a policy takes the broker a microsecond for each pair of an object and a policy that it has, and giving up does not
/// stop it.
const POLICY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of one answer. The export of 200 businesses has 430 kB.
const MAX_ANSWER: usize = 256 << 20;
/// Bytes of the answer about alarms: one entry for each node and resource.
const MAX_ALARM_ANSWER: usize = 16 << 10;

/// Where the management API is and which user to be there.
pub struct ManagementSettings {
    /// `http://host:15672` or `https://…`, with or without `/api`, with or without `user:password@`.
    pub url: String,
    /// The vhost, not escaped.
    pub vhost: String,
    /// Needed where the URL names no user; else they take precedence over it.
    pub credentials: Option<Credentials>,
    /// Certificates for `https`; read again when they change.
    pub tls: TlsFiles,
    /// Longest time for one call, except that one which sets or deletes a policy has at least 30 s. Default: 15 s.
    pub timeout: Option<Duration>,
}

/// The management API of one vhost. Follows no redirects: they would carry the password elsewhere.
pub struct ManagementClient {
    http: Http,
    api: Url,
    vhost: String,
    credentials: Credentials,
    timeout: Duration,
    policies: Mutex<()>,
    calls: AtomicU64,
}

impl fmt::Debug for ManagementClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManagementClient({}, vhost {}, {:?})", self.api, self.vhost, self.credentials)
    }
}

/// Something that is not a RabbitMQ answers in place of one.
const NOT_RABBITMQ: &str = "is this the management API of a RabbitMQ 4?";

impl ManagementClient {
    /// Checks the settings; does not connect yet.
    ///
    /// # Errors
    /// A setting can't be used. The text contains no password.
    pub fn new(settings: ManagementSettings) -> Result<Self, ManagementError> {
        let ManagementSettings { url, vhost, credentials, tls, timeout } = settings;
        let refused = |reason: String, remedy: &str| ManagementError::Refused {
            doing: "setting up the management API".to_owned(),
            reason,
            remedy: remedy.to_owned(),
        };
        let form = "give a URL of the form http://user:password@host:15672";
        // The URL may contain a password: never in the message.
        let mut api = Url::parse(&url).map_err(|e| refused(format!("not a URL: {e}"), form))?;
        if !matches!(api.scheme(), "http" | "https") || api.host_str().is_none() {
            return Err(refused(format!("'{}' is not the scheme of a management API", api.scheme()), form));
        }
        let credentials = match credentials {
            Some(credentials) => credentials,
            None if api.username().is_empty() => return Err(refused("no user is named".to_owned(), form)),
            None => {
                Credentials::fixed(percent_decoded(api.username()), percent_decoded(api.password().unwrap_or_default()))
            }
        };
        // Neither fails for a URL with a host.
        let _ = (api.set_username(""), api.set_password(None));
        api.set_query(None);
        let path = api.path().trim_end_matches('/').trim_end_matches("/api").to_owned();
        api.set_path(&format!("{path}/api"));
        let files = (tls != TlsFiles::default() || api.scheme() == "https").then(|| BrokerTls::new(tls));
        let tls = files.as_ref().map(BrokerTls::client_tls).transpose();
        let tls = tls.map_err(|e| refused(e.to_string(), "give PEM files with certificates that can be used"))?;
        let client =
            http_client(tls.as_ref()).map_err(|e| refused(chain(&e), "check the certificates of this machine"))?;
        let http = Http { tls: files, current: std::sync::Mutex::new((tls, client)) };
        let timeout = timeout.unwrap_or(REQUEST_TIMEOUT);
        Ok(Self { http, api, vhost, credentials, timeout, policies: Mutex::new(()), calls: AtomicU64::new(0) })
    }

    /// Calls made so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The vhost that this is for.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Hold it while a policy is set or deleted. The broker then matches every object against every policy, which takes a core a second with
    /// 10,000 objects and 200 policies: several at the same time would only exceed their time limits.
    pub async fn one_policy_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.policies.lock().await
    }

    /// The broker's version, such as `4.3.6`: the cheapest call that tells whether the broker answers and knows our user.
    ///
    /// # Errors
    /// See [`ManagementError`].
    pub async fn version(&self) -> Result<String, ManagementError> {
        #[derive(Deserialize)]
        struct Overview {
            rabbitmq_version: String,
        }
        let doing = "asking for the broker's version";
        let overview = self.get(doing, &["overview"], "disable_stats=true&columns=rabbitmq_version").await;
        let Overview { rabbitmq_version } = overview.map_err(|e| e.into_error(doing, NOT_RABBITMQ))?;
        Ok(rabbitmq_version)
    }

    /// Creates the vhost where it is missing; our user gets all permissions in it. Needs the tag `administrator`.
    ///
    /// # Errors
    /// See [`ManagementError`].
    pub async fn create_vhost(&self) -> Result<(), ManagementError> {
        let doing = format!("creating vhost {}", self.vhost);
        let made = self.put(&doing, &["vhosts", &self.vhost], &json!({})).await;
        made.map_err(|e| e.into_error(&doing, &format!("make it by hand: `rabbitmqctl add_vhost {}`", self.vhost)))
    }

    /// The memory or disk alarm of the cluster, such as `alarm: memory`; `None` = there is none.
    ///
    /// # Errors
    /// See [`ManagementError`].
    pub async fn alarm(&self) -> Result<Option<String>, ManagementError> {
        let doing = "asking for alarms";
        let request = self.request(doing, Method::GET, &["health", "checks", "alarms"], "")?;
        let sent = self.send(doing, request, self.timeout, MAX_ALARM_ANSWER).await;
        let (status, body) = sent.map_err(|error| error.into_error(doing, NOT_RABBITMQ))?;
        // 200 without and 503 with an alarm in the cluster (RabbitMQ's HTTP API reference). A proxy says 503 too, with a page of its own.
        match status {
            StatusCode::OK => Ok(None),
            StatusCode::SERVICE_UNAVAILABLE if let Some(alarm) = alarm_in(&body) => Ok(Some(alarm)),
            status => match self.check(doing, false, status, body) {
                Ok(_) => Err(ManagementError::Unreachable { doing: doing.to_owned(), cause: status.to_string() }),
                Err(error) => Err(error.into_error(doing, NOT_RABBITMQ)),
            },
        }
    }

    /// Reads an object. `path` follows `/api/`, one element a segment, not escaped.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get<T: DeserializeOwned>(&self, doing: &str, path: &[&str], query: &str) -> Result<T, CallError> {
        let body = self.call(doing, Method::GET, path, query, None).await?;
        serde_json::from_slice(&body).map_err(|e| {
            CallError::Fatal(ManagementError::Refused {
                doing: doing.to_owned(),
                reason: format!("the answer is not understood: {e}"),
                remedy: NOT_RABBITMQ.to_owned(),
            })
        })
    }

    /// Creates or replaces an object.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn put(&self, doing: &str, path: &[&str], body: &Value) -> Result<(), CallError> {
        self.call(doing, Method::PUT, path, "", Some(body)).await.map(drop)
    }

    /// Creates an object whose name the broker gives.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post(&self, doing: &str, path: &[&str], body: &Value) -> Result<(), CallError> {
        self.call(doing, Method::POST, path, "", Some(body)).await.map(drop)
    }

    /// Deletes an object. An object that does not exist counts as deleted.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn delete(&self, doing: &str, path: &[&str]) -> Result<(), CallError> {
        self.call(doing, Method::DELETE, path, "", None).await.map(drop)
    }

    /// Deletes an object under conditions, such as `if-empty=true` for a queue. An object that does not exist counts as deleted.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::Object`] if a condition is not met.
    pub async fn delete_if(&self, doing: &str, path: &[&str], conditions: &str) -> Result<(), CallError> {
        self.call(doing, Method::DELETE, path, conditions, None).await.map(drop)
    }

    async fn call(
        &self,
        doing: &str,
        method: Method,
        path: &[&str],
        query: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, CallError> {
        let deletes = method == Method::DELETE;
        let mut request = self.request(doing, method, path, query).map_err(CallError::Fatal)?;
        if let Some(body) = body {
            request = request.json(body);
        }
        let sets_a_policy = path.first() == Some(&"policies");
        let limit = if sets_a_policy { self.timeout.max(POLICY_TIMEOUT) } else { self.timeout };
        let (status, answer) = self.send(doing, request, limit, MAX_ANSWER).await?;
        self.check(doing, deletes, status, answer)
    }

    /// A request with the credentials that are valid now.
    fn request(
        &self,
        doing: &str,
        method: Method,
        path: &[&str],
        query: &str,
    ) -> Result<RequestBuilder, ManagementError> {
        let login = self
            .credentials
            .read()
            .map_err(|e| ManagementError::Unreachable { doing: doing.to_owned(), cause: e.to_string() })?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut url = self.api.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        url.set_query((!query.is_empty()).then_some(query));
        let http =
            self.http.client().map_err(|cause| ManagementError::Unreachable { doing: doing.to_owned(), cause })?;
        Ok(http.request(method, url).basic_auth(login.user, Some(login.password.expose())))
    }

    /// Status and body of the answer, whatever they are.
    async fn send(
        &self,
        doing: &str,
        request: RequestBuilder,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<(StatusCode, Vec<u8>), CallError> {
        let unreachable = |cause: String| ManagementError::Unreachable { doing: doing.to_owned(), cause };
        match timeout(limit, Box::pin(exchange(request, max_bytes))).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(CallError::Fatal(unreachable(e))),
            Err(_) => Err(CallError::Failed(unreachable(format!("no answer within {limit:?}")))),
        }
    }

    /// What an answer means.
    fn check(&self, doing: &str, deletes: bool, status: StatusCode, body: Vec<u8>) -> Result<Vec<u8>, CallError> {
        let reason = || broker_reason(&body).unwrap_or_else(|| status.to_string());
        let unreachable =
            |cause: String| CallError::Failed(ManagementError::Unreachable { doing: doing.to_owned(), cause });
        let refused = |remedy: &str| {
            let (doing, remedy) = (doing.to_owned(), remedy.to_owned());
            CallError::Fatal(ManagementError::Refused { doing, reason: reason(), remedy })
        };
        match status {
            _ if status.is_success() => Ok(body),
            StatusCode::NOT_FOUND if deletes => Ok(Vec::new()),
            // 400 for an export, 404 for a write (measured on 4.3).
            _ if reason() == "vhost_not_found" => {
                Err(CallError::Fatal(ManagementError::NoVhost { doing: doing.to_owned(), vhost: self.vhost.clone() }))
            }
            StatusCode::UNAUTHORIZED => Err(refused(
                "check user and password; the user needs the tag `administrator`, or `policymaker` and all permissions in the vhost",
            )),
            StatusCode::FORBIDDEN => Err(refused("give the user all permissions in the vhost")),
            StatusCode::NOT_FOUND => Err(CallError::NotFound(reason())),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(unreachable(reason())),
            _ if status.is_client_error() => Err(CallError::Object(reason())),
            _ if status.is_redirection() => Err(refused("give the address of the management API itself")),
            _ => Err(unreachable(format!("{status}: {}", reason()))),
        }
    }
}

fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> ManagementSettings {
        ManagementSettings {
            url: url.to_owned(),
            vhost: "/".to_owned(),
            credentials: None,
            tls: TlsFiles::default(),
            timeout: None,
        }
    }

    #[test]
    fn credentials_of_the_url_are_used_and_never_shown() {
        let management = ManagementClient::new(settings("http://me:s%40cret@broker:15672/rabbit/api/")).unwrap();
        assert_eq!(management.api.as_str(), "http://broker:15672/rabbit/api");
        let login = management.credentials.read().unwrap();
        assert_eq!((login.user.as_str(), login.password.expose()), ("me", "s@cret"));
        let shown = format!("{management:?}");
        assert!(!shown.contains("s@cret") && !shown.contains("s%40cret"), "{shown}");
    }

    #[test]
    fn an_invalid_url_is_refused_without_its_password() {
        for url in ["me:s@cret", "amqp://me:s@cret", "http://broker:15672"] {
            let error = ManagementClient::new(settings(url)).unwrap_err();
            assert!(!error.is_retryable());
            assert!(!error.to_string().contains("cret"), "{error}");
        }
    }

    #[test]
    fn an_alarm_names_its_resource() {
        let alarm = |body: &str| alarm_in(body.as_bytes()).unwrap_or_default();
        assert_eq!(alarm(r#"{"alarms":[{"node":"a","resource":"memory"}]}"#), "alarm: memory");
        assert_eq!(alarm(r#"{"status":"failed"}"#), "resource alarm");
        assert_eq!(alarm("<h1>503 Service Unavailable</h1>"), "", "a proxy's page is no alarm");
    }
}
