//! Broker users of businesses and edges. Users are global on a broker, and another wirepost may use another vhost of it; so each of our users has a
//! tag that identifies the vhost. A user without our tag is never touched.

mod edge_rights;

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use wirepost_core::{hex, names};

use crate::actual::{self, Permission, User};
use edge_rights::pattern;

pub use edge_rights::{Access, EDGE_RIGHTS, EdgeRight};

/// What the broker calls `base64(salt ++ sha256(salt ++ password))` with four bytes of salt (rabbitmq.com/docs/passwords).
pub(crate) const HASHING: &str = "rabbit_password_hashing_sha256";
const SALT_BYTES: usize = 4;
/// RabbitMQ's tag of users that may log in to the management API. What they see there is what their permissions cover.
const MANAGEMENT: &str = "management";

/// A user as it should be.
#[derive(Clone, PartialEq, Eq)]
pub struct DesiredUser {
    /// `wirepost.B.…` or `wirepost-edge-…`.
    pub name: String,
    /// Never shown, and sent to the broker as a salted hash only.
    pub password: String,
    /// Its tags, and no others: [`user_tag`] of the vhost, and what RabbitMQ gives a meaning to.
    pub tags: Vec<String>,
    /// Regular expression of what it may declare and delete.
    pub configure: String,
    /// Regular expression of what it may publish to, and of the queues that it may bind.
    pub write: String,
    /// Regular expression of what it may consume, and of the exchanges that it may bind to.
    pub read: String,
    /// Limits of its connections and channels.
    pub limits: UserLimits,
}

/// Limits of one user, on all nodes together; `None` = any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserLimits {
    /// Open connections; further ones are refused.
    pub connections: Option<u32>,
    /// Open channels of all its connections; further ones are refused.
    pub channels: Option<u32>,
}

impl UserLimits {
    /// Each limit with its name in RabbitMQ.
    pub(crate) fn named(self) -> [(&'static str, Option<u32>); 2] {
        [("max-connections", self.connections), ("max-channels", self.channels)]
    }
}

impl fmt::Debug for DesiredUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DesiredUser({}, {})", self.name, self.tags.join(","))
    }
}

/// The tag of our users in this vhost: `wirepost-` and 8 hex digits.
pub fn user_tag(vhost: &str) -> String {
    format!("wirepost-{}", &hex(Sha256::digest(vhost))[..8])
}

/// The user of a business's own services, `wirepost.{business}.{suffix}`: publishes to `push` and `share`, consumes the
/// queues of routes, `dead`, and queues `wirepost.B.events.…` that it declares and binds to `events` itself. Through
/// `replay` it sends dead letters back to the queues of routes: that exchange leads to these alone. No object of
/// another business, whatever its name begins with.
pub fn business_user(vhost: &str, business: &str, suffix: &str, password: &str) -> DesiredUser {
    // `wirepost\.B\.`: escaped, so that the patterns are right for any name.
    let own = names::escape(&format!("{}{business}.", names::PREFIX));
    DesiredUser {
        name: names::user(business, suffix),
        password: password.to_owned(),
        tags: vec![user_tag(vhost)],
        configure: format!(r"^{own}events\..+$"),
        write: format!(r"^{own}(push|share|replay|events\..+)$"),
        read: format!(r"^{own}(q\..+|dead|events|events\..+)$"),
        limits: UserLimits::default(),
    }
}

/// The user of the edges, `wirepost-edge-{suffix}`, with [`EDGE_RIGHTS`] and nothing else. With the tag `management` it may ask the
/// management API for alarms.
pub fn edge_user(vhost: &str, suffix: &str, password: &str) -> DesiredUser {
    edge_user_with(vhost, suffix, password, &EDGE_RIGHTS)
}

/// The same with other rights, for tests of what each one is for.
pub fn edge_user_with(vhost: &str, suffix: &str, password: &str, rights: &[EdgeRight]) -> DesiredUser {
    DesiredUser {
        name: names::edge_user(suffix),
        password: password.to_owned(),
        tags: vec![user_tag(vhost), MANAGEMENT.to_owned()],
        configure: pattern(rights, Access::Configure),
        write: pattern(rights, Access::Write),
        read: pattern(rights, Access::Read),
        limits: UserLimits::default(),
    }
}

impl DesiredUser {
    /// The same user with these limits.
    #[must_use]
    pub fn with_limits(self, limits: UserLimits) -> Self {
        Self { limits, ..self }
    }

    /// Whether these are its limits; `None`: it has none.
    pub(crate) fn has_limits(&self, is: Option<&actual::UserLimits>) -> bool {
        let is = |name: &str| is.and_then(|is| is.value.get(name)).copied();
        self.limits.named().into_iter().all(|(name, limit)| is(name) == limit.map(i64::from))
    }

    /// Whether the broker's user matches, apart from its permissions.
    pub(crate) fn matches(&self, user: &User) -> bool {
        user.name == self.name
            && user.tags.len() == self.tags.len()
            && self.tags.iter().all(|tag| user.tags.contains(tag))
            && user.hashing_algorithm == HASHING
            && verifies(&user.password_hash, &self.password)
    }

    /// Whether these are its permissions.
    pub(crate) fn has_permissions(&self, permission: &Permission) -> bool {
        let Permission { user, vhost: _, configure, write, read } = permission;
        *user == self.name && *configure == self.configure && *write == self.write && *read == self.read
    }

    /// For the broker, with a new salt each time.
    pub(crate) fn password_hash(&self) -> String {
        let salt: [u8; SALT_BYTES] = rand::random();
        BASE64_STANDARD.encode([&salt[..], &digest(&salt, &self.password)].concat())
    }
}

fn verifies(hash: &str, password: &str) -> bool {
    BASE64_STANDARD.decode(hash).is_ok_and(|bytes| {
        let Some((salt, hashed)) = bytes.split_at_checked(SALT_BYTES) else { return false };
        digest(salt, password).ct_eq(hashed).into()
    })
}

fn digest(salt: &[u8], password: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(password).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_one_that_the_manual_computes() {
        // rabbitmq.com/docs/passwords: password "test12", salt 908DC60A.
        assert!(verifies("kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR", "test12"));
        assert!(!verifies("kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR", "test13"));
        for broken in ["", "kI3G", "not base64!"] {
            assert!(!verifies(broken, ""), "{broken}");
        }
    }

    #[test]
    fn a_user_recognizes_itself_and_shows_no_password() {
        let user = business_user("/", "pay", "0a1b", "s3cret");
        let hash = user.password_hash();
        assert!(verifies(&hash, "s3cret") && hash != user.password_hash());
        let is = User {
            name: "wirepost.pay.0a1b".into(),
            tags: vec![user_tag("/")],
            password_hash: hash,
            hashing_algorithm: HASHING.into(),
        };
        assert!(user.matches(&is));
        assert!(!user.matches(&User { tags: vec![user_tag("/"), "administrator".into()], ..is.clone() }));
        assert!(!user.matches(&User { tags: vec![user_tag("other")], ..is.clone() }));
        assert!(!format!("{user:?}{is:?}").contains("cret"));
        assert!(!format!("{is:?}").contains(&is.password_hash));
    }

    #[test]
    fn patterns_are_anchored_and_escaped() {
        let user = business_user("/", "pay", "0a1b", "x");
        assert_eq!(user.configure, r"^wirepost\.pay\.events\..+$");
        assert_eq!(user.write, r"^wirepost\.pay\.(push|share|replay|events\..+)$");
        assert_eq!(user.read, r"^wirepost\.pay\.(q\..+|dead|events|events\..+)$");
    }
}
