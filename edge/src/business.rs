//! A business as this edge runs it: its configuration, prepared for the hot path. Immutable; a change creates a new
//! one.

pub mod census;
pub mod check_pool;
pub mod events;
pub mod peers;
pub mod share;

use std::sync::Arc;

use wirepost_core::{
    SendType,
    content::{ContentError, DECLARED_PATTERN_BYTES, MAX_STEPS, Schema},
    edge_config::{AuthConfig, BusinessConfig, Delivery, FORMAT, RouteConfig},
    names, origin, pattern,
};

use wirepost_runtime::tasks;

use peers::Peers;

use crate::identity::{
    api_key,
    grant::{self, Grant},
    jwt::JwtVerifier,
};

/// Routes whose schemas a message is checked against at once, where each check is light.
const LIGHT_ROUTES: usize = 4;

/// Abilities that this edge has and a configuration may require (`requires`).
pub const ABILITIES: &[&str] = &[];

/// One business, ready to run.
#[derive(Debug)]
pub struct Business {
    /// The configuration as it was loaded.
    pub config: BusinessConfig,
    /// [`BusinessConfig::hash`], reported by `/configz`.
    pub hash: String,
    /// Routes in the order of the declaration.
    pub routes: Vec<Route>,
    /// Checks tokens of clients; `None` where only services hand out sessions.
    pub jwt: Option<JwtVerifier>,
    /// What lets sessions in, as [grants](Grant::credential) name it: keys of services, also expired ones, and the issuer.
    credentials: Vec<u64>,
    /// Topic exchange for client → server.
    pub receive_exchange: Arc<str>,
    /// Fanout exchange for pushes.
    pub push_exchange: Arc<str>,
    /// Headers exchange for pushes to the clients of several businesses; exists only if one accepts any.
    pub share_exchange: Arc<str>,
    /// Topic exchange for events.
    pub events_exchange: Arc<str>,
    /// Fanout exchange for what the edge that judges receipts writes; exists only if a route waits for them.
    pub judge_exchange: Arc<str>,
    /// The other businesses of this edge.
    pub peers: Arc<Peers>,
}

/// A route with its schema compiled.
#[derive(Debug)]
pub struct Route {
    /// As declared.
    pub config: RouteConfig,
    /// Of `content`.
    pub schema: Option<Schema>,
    /// Full name of its queue.
    pub queue: Option<Arc<str>>,
}

/// Why a configuration can't be used; the last accepted one stays in use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Written by a newer operator that relies on something this edge lacks.
    #[error("business {business} requires {abilities:?}, which this edge does not know; upgrade the edge")]
    Requires {
        /// Which business.
        business: String,
        /// What is lacking.
        abilities: Vec<String>,
    },
    /// A schema does not compile.
    #[error("business {business}, route {message_type}: schema does not compile: {reason}")]
    Schema {
        /// Which business.
        business: String,
        /// Which route.
        message_type: String,
        /// Why.
        reason: String,
    },
    /// Preparing it panicked: a bug of this edge.
    #[error(
        "business {business} makes this edge panic: {cause}; this is a bug of wirepost, please report it with the declaration"
    )]
    Panicked {
        /// Which business.
        business: String,
        /// The panic's message.
        cause: String,
    },
    /// The key set or claims of `auth.jwt`.
    #[error("business {business}, auth.jwt: {reason}")]
    Jwt {
        /// Which business.
        business: String,
        /// Why.
        reason: String,
    },
}

impl Business {
    /// Prepares a configuration. A panic is an error too: one business's schema must not end the edge for all.
    ///
    /// # Errors
    /// See [`ConfigError`]: a retry does not help, another configuration does.
    pub fn try_new(config: BusinessConfig) -> Result<Self, ConfigError> {
        let business = config.business_type.clone();
        tasks::catch(|| Self::prepare(config)).unwrap_or_else(|cause| {
            tracing::error!(business, %cause, "a configuration makes this edge panic");
            Err(ConfigError::Panicked { business, cause: cause.to_string() })
        })
    }

    fn prepare(config: BusinessConfig) -> Result<Self, ConfigError> {
        let lacking: Vec<_> =
            config.requires.iter().filter(|ability| !ABILITIES.contains(&ability.as_str())).cloned().collect();
        if !lacking.is_empty() {
            return Err(ConfigError::Requires { business: config.business_type, abilities: lacking });
        }
        if config.format > FORMAT {
            tracing::warn!(
                business = config.business_type,
                format = config.format,
                "configuration has a newer format; unknown fields are ignored"
            );
        }
        let name = config.business_type.as_str();
        let mut pattern_bytes = 0;
        let routes = config
            .routes
            .iter()
            .map(|route| {
                let schema =
                    route.schema.as_ref().map(Schema::try_new).transpose().map_err(|error| ConfigError::Schema {
                        business: name.to_owned(),
                        message_type: route.message_type.clone(),
                        reason: error,
                    })?;
                // The operator has refused that; an older one has not.
                pattern_bytes += schema.as_ref().map_or(0, Schema::pattern_bytes);
                if pattern_bytes > DECLARED_PATTERN_BYTES {
                    return Err(ConfigError::Schema {
                        business: name.to_owned(),
                        message_type: route.message_type.clone(),
                        reason: "the patterns of this and the former routes are too large together".to_owned(),
                    });
                }
                let queue = route.queue.as_deref().map(Arc::from);
                Ok(Route { config: route.clone(), schema, queue })
            })
            .collect::<Result<_, _>>()?;
        let jwt = config
            .auth
            .jwt
            .as_ref()
            .map(JwtVerifier::try_new)
            .transpose()
            .map_err(|error| ConfigError::Jwt { business: name.to_owned(), reason: error.to_string() })?;
        Ok(Self {
            hash: config.hash(),
            receive_exchange: names::receive_exchange(name).into(),
            push_exchange: names::push_exchange(name).into(),
            share_exchange: names::share_exchange(name).into(),
            events_exchange: names::events_exchange(name).into(),
            judge_exchange: names::judge_exchange(name).into(),
            peers: Arc::default(),
            credentials: credentials(&config.auth),
            routes,
            jwt,
            config,
        })
    }

    /// The same among these businesses.
    #[must_use]
    pub fn among(self, peers: &Arc<Peers>) -> Self {
        Self { peers: Arc::clone(peers), ..self }
    }

    /// Whether its clients may get such a message of another business.
    pub fn accepts(&self, from: &str, message_type: &str) -> bool {
        let accepts = self.config.accepts.iter().filter(|accepts| accepts.business_type == from);
        accepts.flat_map(|accepts| &accepts.message_types).any(|accepted| pattern::matches(accepted, message_type))
    }

    /// Whether another business accepts any message of this one, and the broker copies it there.
    pub fn is_accepted_by(&self, other: &str) -> bool {
        self.config.accepted_by.iter().any(|accepting| accepting == other)
    }

    /// The business type.
    pub fn name(&self) -> &str {
        &self.config.business_type
    }

    /// Whether what let a session in is still declared. A key that has expired is: it was rotated, and nothing is wrong
    /// with what it let in. One that was removed is not.
    pub fn admits(&self, grant: &Grant) -> bool {
        grant.credential == 0 || self.credentials.contains(&grant.credential)
    }

    /// When a session ends that was to end at `ends_at`: `session.maxSeconds` may be lower than it was when it began.
    pub fn session_end(&self, grant: &Grant, ends_at: i64) -> i64 {
        if grant.issued_at == 0 {
            return ends_at;
        }
        let longest = i64::try_from(self.config.session_max_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        ends_at.min(grant.issued_at.saturating_add(longest))
    }

    /// Whether the same sessions are good under the one as under the other.
    pub fn lets_in_as(&self, other: &Self) -> bool {
        let (one, other) = (&self.config, &other.config);
        one.auth == other.auth
            && one.client_types == other.client_types
            && one.session_max_seconds == other.session_max_seconds
    }

    /// Whether pages of this origin may connect.
    pub fn allows_origin(&self, page: &str) -> bool {
        self.config.auth.allowed_origins.iter().any(|one| origin::allows(one, page))
    }

    /// Whether a push is read, addressed and written under the one as under the other.
    pub fn judges_as(&self, other: &Self) -> bool {
        let (one, other) = (&self.config, &other.config);
        one.business_type == other.business_type
            && one.delivery == other.delivery
            && one.limits.push_bytes == other.limits.push_bytes
            && one.routes == other.routes
            && one.accepts == other.accepts
    }

    /// The number of one of its routes, if the content of a push that is read must fit its schema. There are at most 100.
    pub fn judge(&self, route: &Route) -> Option<u8> {
        let judges = route.config.judges_pushes();
        let number = judges.then(|| self.routes.iter().position(|one| std::ptr::eq(one, route)))??;
        u8::try_from(number).ok()
    }

    /// Whether any route asks for receipts.
    pub fn wants_receipts(&self) -> bool {
        self.routes.iter().any(|route| route.config.receipts)
    }

    /// Whether any route waits for them, and reports who gave none.
    pub fn follows_receipts(&self) -> bool {
        let waits = |route: &Route| route.config.receipts && route.config.receipts_within_seconds.is_some();
        self.config.delivery == Delivery::Durable && self.routes.iter().any(waits)
    }

    /// Whether checking `content` against the schemas of a message's routes, of either direction, may take long: then
    /// it belongs in the [`CheckPool`](crate::business::check_pool::CheckPool).
    pub fn is_heavy(&self, message_type: Option<&str>, content: Option<&str>) -> bool {
        let (Some(message_type), Some(content)) = (message_type, content) else { return false };
        let checks =
            |route: &&Route| route.schema.is_some() && pattern::matches(&route.config.message_type, message_type);
        let mut count = 0;
        // Many light checks take as long as a heavy one.
        self.routes.iter().filter(checks).any(|route| {
            count += 1;
            count > LIGHT_ROUTES || route.is_heavy(Some(content))
        })
    }

    /// The first route that takes `message_type` in that direction.
    pub fn route(&self, send_type: SendType, message_type: &str) -> Option<&Route> {
        self.routes.iter().find(|route| {
            route.config.send_type == send_type && pattern::matches(&route.config.message_type, message_type)
        })
    }

    /// Every route by which a message from a client may reach a queue.
    pub fn intake(&self, message_type: &str) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(move |route| {
            route.config.send_type == SendType::ClientToServer
                && pattern::matches(&route.config.message_type, message_type)
        })
    }

    /// The first route that lets any client send `message_type`, of the direction named or of any where none is.
    pub fn client_route(&self, send_type: Option<SendType>, message_type: &str) -> Option<&Route> {
        self.routes.iter().find(|route| {
            route.config.send_type != SendType::ServerToClient
                && send_type.is_none_or(|wanted| wanted == route.config.send_type)
                && pattern::matches(&route.config.message_type, message_type)
        })
    }
}

fn credentials(auth: &AuthConfig) -> Vec<u64> {
    let keys = auth.api_keys.iter().filter_map(|key| api_key::parse_hex(&key.sha256)).map(grant::credential);
    keys.chain(auth.jwt.as_ref().map(|jwt| grant::issuer(&jwt.issuer))).collect()
}

impl Route {
    /// Whether checking `content` may take long.
    pub fn is_heavy(&self, content: Option<&str>) -> bool {
        self.schema.as_ref().zip(content).is_some_and(|(schema, content)| !schema.is_light(content))
    }

    /// Whether `content` matches the route's schema; absent content counts as null. Takes up to about a fifth of a
    /// second, three times that at worst, see [`Business::is_heavy`].
    ///
    /// # Errors
    /// Where it does not match and why, or that it can't be checked.
    pub fn check_content(&self, content: Option<&str>) -> Result<(), ContentError> {
        self.check_share(content, 1)
    }

    /// The same for one of several routes, or businesses, that a message is checked for: all of its checks together take no
    /// longer than one.
    ///
    /// # Errors
    /// See [`Self::check_content`].
    pub fn check_share(&self, content: Option<&str>, checks: usize) -> Result<(), ContentError> {
        let budget = MAX_STEPS / checks.max(1) as u64;
        self.schema.as_ref().map_or(Ok(()), |schema| schema.check_within(content.unwrap_or("null"), budget))
    }
}
