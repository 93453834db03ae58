//! The management API of one vhost: four verbs, bounded in time, with the broker's reason in every error.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::{Certificate, Client, Method, RequestBuilder, StatusCode, Url, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::actual::{Actual, Permission, Policy, User};
use crate::report::Error;
use crate::snapshot::Snapshot;

/// A management node of the same cluster answers a handshake in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The export of 200 businesses takes 40 ms; a broker that is busy electing leaders takes seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Setting or deleting a policy takes the broker a microsecond for each pair of an object and a policy that it has, and giving up does not
/// stop it.
const POLICY_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the management API is and who we are there.
pub struct Settings {
    /// `http://host:15672` or `https://…`, with or without `/api`, with or without `user:password@`.
    pub url: String,
    /// The vhost, not escaped.
    pub vhost: String,
    /// Needed where the URL names nobody; else they take precedence over it.
    pub credentials: Option<Credentials>,
    /// PEM file of the only authority that is trusted for `https`. Default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Longest time for one call, except that one which sets or deletes a policy has 30 s at least. Default: 15 s.
    pub timeout: Option<Duration>,
}

/// Who we are.
#[derive(Clone)]
pub enum Credentials {
    /// These, always.
    Fixed {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// What these files hold, read again for every call, so that a rotated Secret needs no restart. Line ends are cut off.
    Files {
        /// File with the user name.
        user: PathBuf,
        /// File with the password.
        password: PathBuf,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { user, .. } => write!(f, "Fixed({user})"),
            Self::Files { user, password } => write!(f, "Files({}, {})", user.display(), password.display()),
        }
    }
}

/// The management API of one vhost. Follows no redirects: they would carry the password elsewhere.
pub struct Management {
    http: Client,
    api: Url,
    vhost: String,
    credentials: Credentials,
    timeout: Duration,
    /// Held while a policy is set or deleted. The broker then matches every object against every policy, which takes a core a second with
    /// 10,000 objects and 200 policies: several at once would only run out of their time limits.
    pub(crate) policies: Mutex<()>,
    calls: AtomicU64,
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Management({}, vhost {}, {:?})", self.api, self.vhost, self.credentials)
    }
}

/// How a single call failed.
#[derive(Debug)]
pub(crate) enum CallError {
    /// All further calls will fail as well.
    Fatal(Error),
    /// This object was refused, others may be taken. The broker's reason.
    Object(String),
    /// This object, or its vhost, does not exist. The broker's reason.
    NotFound(String),
}

impl CallError {
    /// For a call whose object must be there.
    fn into_error(self, doing: &str, remedy: &str) -> Error {
        match self {
            Self::Fatal(e) => e,
            Self::Object(reason) | Self::NotFound(reason) => {
                Error::Refused { doing: doing.to_owned(), reason, remedy: remedy.to_owned() }
            }
        }
    }
}

#[derive(Deserialize)]
struct Overview {
    rabbitmq_version: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: Option<String>,
    reason: Option<Value>,
}

impl Management {
    /// Checks the settings; connects nowhere yet.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let doing = "setting up the management API".to_owned();
        let refused =
            |reason: String, remedy: &str| Error::Refused { doing: doing.clone(), reason, remedy: remedy.to_owned() };
        let form = "give a URL of the form http://user:password@host:15672";
        // The URL may hold a password: never in the message.
        let mut api = Url::parse(&settings.url).map_err(|e| refused(format!("not a URL: {e}"), form))?;
        if !matches!(api.scheme(), "http" | "https") || api.host_str().is_none() {
            return Err(refused(format!("'{}' is not the scheme of a management API", api.scheme()), form));
        }
        let credentials = match settings.credentials {
            Some(credentials) => credentials,
            None if api.username().is_empty() => return Err(refused("no user is named".to_owned(), form)),
            None => Credentials::Fixed {
                user: percent_decoded(api.username()),
                password: percent_decoded(api.password().unwrap_or_default()),
            },
        };
        // Neither fails for a URL with a host.
        let _ = (api.set_username(""), api.set_password(None));
        api.set_query(None);
        let path = api.path().trim_end_matches('/').trim_end_matches("/api").to_owned();
        api.set_path(&format!("{path}/api"));
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            // A broker is inside; a proxy of the environment is for the outside.
            .no_proxy();
        if let Some(file) = &settings.ca_file {
            let remedy = "give a PEM file with the authority's certificate";
            let pem = std::fs::read(file).map_err(|e| refused(format!("reading {}: {e}", file.display()), remedy))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|e| refused(format!("{} holds no certificate: {e}", file.display()), remedy))?;
            builder = builder.tls_certs_only(certificates);
        }
        let http = builder.build().map_err(|e| refused(chain(&e), "check the certificates of this machine"))?;
        let timeout = settings.timeout.unwrap_or(REQUEST_TIMEOUT);
        Ok(Self {
            http,
            api,
            vhost: settings.vhost,
            credentials,
            timeout,
            policies: Mutex::new(()),
            calls: AtomicU64::new(0),
        })
    }

    /// Calls made so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The vhost that this is for.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Everything that the vhost has, without statistics. 430 kB and 40 ms for 200 businesses.
    ///
    /// Errors with [`Error::NoVhost`] where the vhost is missing.
    pub async fn export(&self) -> Result<Actual, Error> {
        self.of_vhost("reading vhost", &["definitions", &self.vhost]).await
    }

    /// Everything that the vhost has, and the broker's users. Four calls at once; the user needs the tag `administrator`.
    ///
    /// Errors with [`Error::NoVhost`] where the vhost is missing.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let (operator_policies, permissions) =
            (["operator-policies", &self.vhost], ["vhosts", &self.vhost, "permissions"]);
        let (actual, operator_policies, users, permissions) = tokio::try_join!(
            self.export(),
            self.of_vhost::<Vec<Policy>>("reading the operator policies of vhost", &operator_policies),
            self.users(),
            self.of_vhost::<Vec<Permission>>("reading the permissions of vhost", &permissions),
        )?;
        Ok(Snapshot::new(&self.vhost, actual, operator_policies, users, permissions))
    }

    async fn users(&self) -> Result<Vec<User>, Error> {
        let doing = "reading the broker's users";
        self.get(doing, &["users"], "").await.map_err(|e| e.into_error(doing, "is this a RabbitMQ 4?"))
    }

    async fn of_vhost<T: DeserializeOwned>(&self, doing: &str, path: &[&str]) -> Result<T, Error> {
        let doing = format!("{doing} {}", self.vhost);
        self.get(&doing, path, "").await.map_err(|e| match e {
            CallError::NotFound(_) => Error::NoVhost { doing, vhost: self.vhost.clone() },
            e => e.into_error(&doing, "is this a RabbitMQ 4?"),
        })
    }

    /// The broker's version, such as `4.3.6`: the cheapest call that tells whether it answers and knows us.
    pub async fn version(&self) -> Result<String, Error> {
        let doing = "asking for the broker's version";
        let overview = self.get(doing, &["overview"], "disable_stats=true&columns=rabbitmq_version").await;
        let Overview { rabbitmq_version } = overview.map_err(|e| e.into_error(doing, "is this a RabbitMQ 4?"))?;
        Ok(rabbitmq_version)
    }

    /// Makes the vhost, where it is missing; the user that we are gets all permissions in it. Needs the tag `administrator`.
    pub async fn create_vhost(&self) -> Result<(), Error> {
        let doing = format!("creating vhost {}", self.vhost);
        let made = self.put(&doing, &["vhosts", &self.vhost], &json!({})).await;
        made.map_err(|e| e.into_error(&doing, &format!("make it by hand: `rabbitmqctl add_vhost {}`", self.vhost)))
    }

    /// `path` after `/api/`, one element a segment, not escaped.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        doing: &str,
        path: &[&str],
        query: &str,
    ) -> Result<T, CallError> {
        let body = self.call(doing, Method::GET, path, query, None).await?;
        serde_json::from_slice(&body).map_err(|e| {
            CallError::Fatal(Error::Refused {
                doing: doing.to_owned(),
                reason: format!("the answer is not understood: {e}"),
                remedy: "is this the management API of a RabbitMQ 4?".to_owned(),
            })
        })
    }

    pub(crate) async fn put(&self, doing: &str, path: &[&str], body: &Value) -> Result<(), CallError> {
        self.call(doing, Method::PUT, path, "", Some(body)).await.map(drop)
    }

    pub(crate) async fn post(&self, doing: &str, path: &[&str], body: &Value) -> Result<(), CallError> {
        self.call(doing, Method::POST, path, "", Some(body)).await.map(drop)
    }

    /// Gone already is as good as deleted.
    pub(crate) async fn delete(&self, doing: &str, path: &[&str]) -> Result<(), CallError> {
        self.call(doing, Method::DELETE, path, "", None).await.map(drop)
    }

    async fn call(
        &self,
        doing: &str,
        method: Method,
        path: &[&str],
        query: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, CallError> {
        let unreachable = |cause: String| CallError::Fatal(Error::Unreachable { doing: doing.to_owned(), cause });
        let (user, password) = self.credentials.read(doing).await.map_err(CallError::Fatal)?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut url = self.api.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        url.set_query((!query.is_empty()).then_some(query));
        let deleting = method == Method::DELETE;
        let mut request = self.http.request(method, url).basic_auth(user, Some(password));
        if let Some(body) = body {
            request = request.json(body);
        }
        let sets_a_policy = path.first() == Some(&"policies");
        let limit = if sets_a_policy { self.timeout.max(POLICY_TIMEOUT) } else { self.timeout };
        let (status, body) = match timeout(limit, Box::pin(send(request))).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => return Err(unreachable(chain(&e.without_url()))),
            Err(_) => return Err(unreachable(format!("no answer within {limit:?}"))),
        };
        let reason = || match serde_json::from_slice::<Refusal>(&body) {
            Ok(Refusal { reason: Some(Value::String(reason)), .. }) => reason.trim().to_owned(),
            Ok(Refusal { error: Some(error), .. }) => error,
            _ => status.to_string(),
        };
        let refused = |remedy: &str| {
            CallError::Fatal(Error::Refused { doing: doing.to_owned(), reason: reason(), remedy: remedy.to_owned() })
        };
        match status {
            _ if status.is_success() => Ok(body),
            StatusCode::NOT_FOUND if deleting => Ok(Vec::new()),
            // 400 for an export, 404 for a write (measured on 4.3).
            _ if reason() == "vhost_not_found" => {
                Err(CallError::Fatal(Error::NoVhost { doing: doing.to_owned(), vhost: self.vhost.clone() }))
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

/// The whole answer.
async fn send(request: RequestBuilder) -> reqwest::Result<(StatusCode, Vec<u8>)> {
    // The broker may close an idle connection at the moment in which it is used again (seen once in some ten thousand calls). Each of our
    // calls may be made twice.
    let again = request.try_clone();
    let answer = match (request.send().await, again) {
        (Err(e), Some(again)) if e.is_request() && !e.is_connect() => again.send().await?,
        (answer, _) => answer?,
    };
    Ok((answer.status(), answer.bytes().await?.to_vec()))
}

impl Credentials {
    /// User and password as they are now. `doing` is for the message of an error, which a repeat may mend.
    pub async fn read(&self, doing: &str) -> Result<(String, String), Error> {
        match self {
            Self::Fixed { user, password } => Ok((user.clone(), password.clone())),
            Self::Files { user, password } => {
                let mut both = Vec::with_capacity(2);
                for file in [user, password] {
                    // Retryable: a mounted Secret is away for a moment while it is exchanged.
                    let text = tokio::fs::read_to_string(file).await.map_err(|e| Error::Unreachable {
                        doing: doing.to_owned(),
                        cause: format!("reading credentials from {}: {e}", file.display()),
                    })?;
                    both.push(text.trim_end_matches(['\r', '\n']).to_owned());
                }
                let password = both.pop().unwrap_or_default();
                Ok((both.pop().unwrap_or_default(), password))
            }
        }
    }
}

/// The error and its causes: reqwest's own text is only "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escaped = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        if let Some(byte) = escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        Settings { url: url.to_owned(), vhost: "/".to_owned(), credentials: None, ca_file: None, timeout: None }
    }

    #[test]
    fn credentials_of_the_url_are_used_and_never_shown() {
        let management = Management::new(settings("http://me:s%40cret@broker:15672/rabbit/api/")).unwrap();
        assert_eq!(management.api.as_str(), "http://broker:15672/rabbit/api");
        let Credentials::Fixed { user, password } = &management.credentials else { panic!("not those of the URL") };
        assert_eq!((user.as_str(), password.as_str()), ("me", "s@cret"));
        assert!(!format!("{management:?}").contains("cret"));
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_its_password() {
        for url in ["me:s@cret", "amqp://me:s@cret", "http://broker:15672"] {
            let error = Management::new(settings(url)).unwrap_err();
            assert!(!error.is_retryable());
            assert!(!error.to_string().contains("cret"), "{error}");
        }
    }
}
