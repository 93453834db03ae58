//! Credentials of a business's own services: derived, never stored. All are derived from one seed, so that a deleted Secret or a broker that
//! was rebuilt empty gets the very same ones again, and so that a new owner of a business type gets others (they depend on the resource's
//! uid).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use wirepost_core::{
    Compiled,
    contract::{
        config_map::{FORMER_ROTATIONS as FORMER, ROTATION as CURRENT},
        edge_config::{ApiKey, BusinessConfig, MAX_SESSION_SECONDS},
    },
    hex, names,
    topology::Topology,
};
use wirepost_runtime::clock::now_ms;
use wirepost_topology::{DesiredUser, business_user, edge_user};

use crate::stored::StoredBusiness;

/// How long credentials stay valid after a rotation.
pub const OVERLAP_MS: i64 = 60 * 60 * 1000;

/// What all credentials are derived from.
#[derive(Clone)]
pub struct Seed(hmac::Key);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

impl Seed {
    /// From these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    fn derive(&self, what: &str, uid: &str, rotation: &str) -> String {
        // With lengths, so that no two inputs are the same text.
        let input = format!("wirepost 1|{what}|{}|{uid}|{}|{rotation}", uid.len(), rotation.len());
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.0, input.as_bytes()))
    }

    /// The key that signs the edges' tickets.
    pub(crate) fn edge_key(&self) -> Vec<u8> {
        hmac::sign(&self.0, b"wirepost 1|edge key").as_ref().to_vec()
    }

    /// The key that signs them after this rotation.
    pub(crate) fn rotated_edge_key(&self, rotation: &str) -> Vec<u8> {
        let input = format!("wirepost 1|edge key|{}|{rotation}", rotation.len());
        hmac::sign(&self.0, input.as_bytes()).as_ref().to_vec()
    }

    /// The user of the edges on the broker.
    pub(crate) fn edge_user(&self, vhost: &str) -> DesiredUser {
        let suffix = hex(Sha256::digest(self.derive("edge user", vhost, "")))[..8].to_owned();
        edge_user(vhost, &suffix, &self.derive("edge password", vhost, ""))
    }

    /// The credentials of a resource in one rotation.
    pub fn credentials(&self, vhost: &str, business: &str, uid: &str, rotation: &str) -> Credentials {
        let suffix = hex(Sha256::digest(self.derive("user", uid, rotation)))[..8].to_owned();
        let user = business_user(vhost, business, &suffix, &self.derive("password", uid, rotation));
        Credentials { user, api_key: self.derive("api key", uid, rotation) }
    }
}

/// The seed of all credentials, and the one before it.
#[derive(Clone, Debug)]
pub struct SeedPair {
    /// What new credentials are derived from.
    pub current: Seed,
    /// What credentials that services may still use were derived from: they are valid as long as it is here.
    pub former: Option<Seed>,
}

/// What a business's services authenticate with.
#[derive(Clone, PartialEq)]
pub struct Credentials {
    /// On RabbitMQ.
    pub user: DesiredUser,
    /// On the edges' HTTP interface.
    pub api_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.user.name)
    }
}

impl Credentials {
    fn digest(&self, expires_at: Option<i64>) -> ApiKey {
        ApiKey { sha256: hex(Sha256::digest(&self.api_key)), expires_at }
    }
}

/// Which credentials are valid. Stored as annotations of the edge configuration's ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// The value of `wirepost.dev/rotate` that the current ones are derived from.
    pub current: String,
    /// Values before it → ms since the epoch until which their credentials are valid; at most [`MAX_FORMER`]. Those that are over are kept
    /// for as long as a session may last that they let in: an edge ends the sessions of a key that it knows no more, and a rotation is no
    /// reason to.
    pub former: BTreeMap<String, i64>,
    /// Only the current ones are valid: the former ones end as soon as there are new ones. Read from the resource each time, not stored.
    pub revoke: bool,
}

/// Former credentials while the Secret does not contain the new ones yet: they have no end.
const UNTIL_DELIVERED: i64 = i64::MAX;
/// Former credentials that are known at the same time; with more rotations than that within the longest session the oldest ends early, and
/// what it let in.
const MAX_FORMER: usize = 8;
/// How long credentials are known after their end.
const KNOWN_MS: i64 = MAX_SESSION_SECONDS as i64 * 1000;

impl Rotation {
    /// As it was written to annotations; `None` where nothing was. What can't be read was never valid.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let former = annotations.get(FORMER).and_then(|json| serde_json::from_str(json).ok());
        Some(Self { current: annotations.get(CURRENT)?.clone(), former: former.unwrap_or_default(), revoke: false })
    }

    /// The rotation that follows when the resource has the value `asked`. `revoke`: the value from which on no former ones are valid.
    #[must_use]
    pub fn next(kept: Option<Self>, asked: &str, revoke: Option<&str>) -> Self {
        let now = now_ms();
        let revoke = revoke == Some(asked);
        let Some(Self { current, mut former, revoke: _ }) = kept else {
            return Self { current: asked.to_owned(), former: BTreeMap::new(), revoke };
        };
        former.retain(|_, until| *until > now - KNOWN_MS);
        if current != asked {
            former.insert(current, UNTIL_DELIVERED);
            former.remove(asked);
        }
        while former.len() > MAX_FORMER
            && let Some(oldest) = former.iter().min_by_key(|(_, until)| **until).map(|(value, _)| value.clone())
        {
            former.remove(&oldest);
        }
        Self { current: asked.to_owned(), former, revoke }
    }

    /// The Secret contains the current ones now, so the hour of the former ones begins. `None` where it has begun.
    pub fn delivered(&self) -> Option<Self> {
        let mut rotation = self.clone();
        let waiting = rotation.former.values_mut().filter(|until| **until == UNTIL_DELIVERED);
        let count = waiting.map(|until| *until = now_ms() + OVERLAP_MS).count();
        (count > 0).then_some(rotation)
    }

    /// The former ones end now. `None`: there are none, or no revocation is requested.
    pub fn revoked(&self) -> Option<Self> {
        let asked = self.revoke && !self.former.is_empty();
        asked.then(|| Self { former: BTreeMap::new(), ..self.clone() })
    }

    /// As annotations.
    pub fn annotations(&self) -> impl Iterator<Item = (String, String)> {
        // A map of strings and numbers always serializes.
        let former = (!self.former.is_empty()).then(|| serde_json::to_string(&self.former).unwrap_or_default());
        let former = former.map(|json| (FORMER.to_owned(), json));
        std::iter::once((CURRENT.to_owned(), self.current.clone())).chain(former)
    }
}

/// All credentials of a resource. Empty where it declares no access.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessCredentials {
    /// Users on the broker.
    pub users: Vec<DesiredUser>,
    /// Keys that the edges accept.
    pub api_keys: Vec<ApiKey>,
    /// What the Secret contains; `None` = no access was declared.
    pub current: Option<Credentials>,
    /// What they are derived from.
    pub rotation: Option<Rotation>,
}

impl AccessCredentials {
    /// The credentials of a resource that declares access.
    pub fn new(seeds: &SeedPair, vhost: &str, business: &str, uid: &str, rotation: Rotation) -> Self {
        let of = |seed: &Seed, value: &str| seed.credentials(vhost, business, uid, value);
        let current = of(&seeds.current, &rotation.current);
        let rotated = |seed| rotation.former.iter().map(move |(value, until)| (of(seed, value), *until));
        let mut former: Vec<_> = rotated(&seeds.current).collect();
        if let Some(seed) = seeds.former.as_ref().filter(|_| !rotation.revoke) {
            former.push((of(seed, &rotation.current), UNTIL_DELIVERED));
            former.extend(rotated(seed));
        }
        let now = now_ms();
        let mut access = Self {
            users: vec![current.user.clone()],
            api_keys: vec![current.digest(None)],
            current: Some(current),
            rotation: Some(rotation),
        };
        for (credentials, until) in former {
            access.api_keys.push(credentials.digest(Some(until).filter(|until| *until != UNTIL_DELIVERED)));
            if until > now {
                access.users.push(credentials.user);
            }
        }
        access
    }

    /// What the edges run for this business: what was compiled, with the keys of its services.
    pub fn edge_config(&self, compiled: &Compiled) -> BusinessConfig {
        let mut config = compiled.config.clone();
        config.auth.api_keys.clone_from(&self.api_keys);
        config
    }

    /// When the next of the former credentials end, in ms since the epoch.
    pub fn changes_at(&self) -> Option<i64> {
        let now = now_ms();
        let ahead = self.rotation.as_ref()?.former.values().copied().filter(|until| *until > now);
        ahead.min().filter(|until| *until != UNTIL_DELIVERED)
    }
}

/// The addresses that a business's services are given.
#[derive(Clone, Debug)]
pub struct ServiceEndpoints {
    /// `amqp` or `amqps`.
    pub scheme: &'static str,
    /// The broker, as the services reach it.
    pub host: String,
    /// Its AMQP port.
    pub port: u16,
    /// The vhost.
    pub vhost: String,
    /// The edges' HTTP address, such as `https://ws.example.com`.
    pub endpoint: Option<String>,
}

/// What the Secret contains, in the form of Service Binding for Kubernetes 1.1 (servicebinding.io/spec/core/1.1.0): one entry a fact. `kept`:
/// queues that are not declared any more and still exist. A service that has to empty one needs its name, also after a restart.
pub fn entries(
    endpoints: &ServiceEndpoints,
    credentials: &Credentials,
    stored: &StoredBusiness,
    topology: &Topology,
    kept: &BTreeSet<String>,
) -> BTreeMap<String, String> {
    let business = stored.business_type();
    let DesiredUser { name, password, .. } = &credentials.user;
    let ServiceEndpoints { scheme, host, port, vhost, endpoint } = endpoints;
    // Neither the name nor a derived password contains a character that is special in a URI; a vhost may.
    let uri = format!("{scheme}://{name}:{password}@{host}:{port}/{}", escaped(vhost));
    let mut entries: BTreeMap<String, String> = [
        ("type", "rabbitmq".to_owned()),
        ("provider", "wirepost".to_owned()),
        ("uri", uri),
        ("host", host.clone()),
        ("port", port.to_string()),
        ("virtual-host", vhost.clone()),
        ("username", name.clone()),
        ("password", password.clone()),
        ("api-key", credentials.api_key.clone()),
        ("business-type", business.to_owned()),
        ("receive-exchange", names::receive_exchange(business)),
        ("push-exchange", names::push_exchange(business)),
        ("events-exchange", names::events_exchange(business)),
        ("dead-queue", names::dead_queue(business)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    if let Some(endpoint) = endpoint {
        entries.insert("endpoint".to_owned(), format!("{endpoint}/{business}/websocket"));
    }
    let prefix = names::route_queue(business, "");
    for queue in topology.queues.iter().map(|queue| &queue.name).chain(kept) {
        if let Some(short) = queue.strip_prefix(&prefix) {
            entries.insert(format!("queue.{short}"), queue.clone());
        }
    }
    entries
}

fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            use fmt::Write;
            // Writing to a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_the_same_again_and_differ_by_resource_and_rotation() {
        let seed = Seed::new(&[7; 32]);
        let of = |uid: &str, rotation: &str| seed.credentials("/", "pay", uid, rotation);
        assert_eq!(of("a", ""), of("a", ""));
        for other in [of("b", ""), of("a", "1")] {
            assert_ne!(of("a", "").user.name, other.user.name);
            assert_ne!(of("a", "").user.password, other.user.password);
            assert_ne!(of("a", "").api_key, other.api_key);
        }
        assert!(!format!("{:?}", of("a", "")).contains(&of("a", "").user.password));
    }

    #[test]
    fn a_rotation_keeps_the_former_one_for_an_hour() {
        let first = Rotation::next(None, "", None);
        assert_eq!(first.former, BTreeMap::new());
        let second = Rotation::next(Some(first), "2026-01", None);
        assert_eq!(second.former[""], UNTIL_DELIVERED, "nobody has the new ones yet");
        let second = second.delivered().unwrap();
        assert!(second.former[""] > now_ms() + OVERLAP_MS - 10_000);
        assert_eq!(second.delivered(), None);
        assert_eq!(Rotation::next(Some(second.clone()), "2026-01", None), second);
        let kept: BTreeMap<_, _> = second.annotations().collect();
        assert_eq!(Rotation::from_annotations(&kept), Some(second.clone()));
        let third = Rotation::next(Some(second), "2026-02", Some("2026-01"));
        assert_eq!(third.former.keys().collect::<Vec<_>>(), ["", "2026-01"], "each has its hour");
        let ended = |at| Rotation { current: "x".into(), former: BTreeMap::from([("w".into(), at)]), revoke: false };
        assert_eq!(Rotation::next(Some(ended(1)), "x", None).former, BTreeMap::new());
        let ended = Rotation::next(Some(ended(now_ms() - 1)), "x", None);
        let seeds = SeedPair { current: Seed::new(&[7; 32]), former: None };
        let access = AccessCredentials::new(&seeds, "/", "pay", "a", ended);
        assert_eq!((access.users.len(), access.api_keys.len()), (1, 2), "what it let in goes on");
        assert_eq!(access.changes_at(), None);
    }

    #[test]
    fn a_revocation_ends_all_former_credentials_and_those_of_the_former_seed() {
        let rotated = Rotation::next(Some(Rotation::next(None, "", None)), "2026-01", Some("2026-01"));
        let seeds = SeedPair { current: Seed::new(&[7; 32]), former: Some(Seed::new(&[8; 32])) };
        let users = |rotation: &Rotation| {
            AccessCredentials::new(&seeds, "/", "pay", "a", rotation.clone()).users.into_iter().map(|user| user.name)
        };
        let of = |seed: u8, rotation: &str| Seed::new(&[seed; 32]).credentials("/", "pay", "a", rotation).user.name;
        assert!(users(&rotated).eq([of(7, "2026-01"), of(7, "")]), "until the Secret has the new ones");
        assert!(users(&rotated.revoked().unwrap()).eq([of(7, "2026-01")]));
        assert_eq!(rotated.revoked().unwrap().revoked(), None);
        let not_asked = Rotation { revoke: false, ..rotated };
        assert_eq!(not_asked.revoked(), None);
        assert!(users(&not_asked).eq([of(7, "2026-01"), of(7, ""), of(8, "2026-01"), of(8, "")]));
    }

    #[test]
    fn former_rotations_are_bounded_and_the_oldest_goes() {
        let start = Rotation { current: "0".into(), ..Rotation::default() };
        let last = (1..20).fold(start, |kept, n| {
            let mut next = Rotation::next(Some(kept), &n.to_string(), None).delivered().unwrap();
            // A clock that moves.
            next.former.values_mut().for_each(|until| *until -= 1000);
            next
        });
        assert_eq!(last.former.len(), MAX_FORMER);
        assert!(last.former.contains_key("18") && !last.former.contains_key("10"), "{:?}", last.former);
    }
}
