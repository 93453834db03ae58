//! The keys that sign tickets. Every edge of an installation has the same file; a new key is added to all before it
//! becomes the current one, and an old one stays until the longest session that it signed has ended.

use std::{collections::HashMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use tokio_util::sync::CancellationToken;
use wirepost_core::contract::key_file::{Key, KeyFile, MAX_ID, MAX_KEYS, MIN_SECRET};

use crate::config::reload;

/// Length of a signature.
pub(super) const TAG: usize = 32;

/// The current key and older ones. Cheap to read; replaced as a whole when the file changes.
pub struct KeyRing {
    keys: ArcSwap<Keys>,
    file: Option<(PathBuf, reload::Seen)>,
}

struct Keys {
    current: String,
    keys: HashMap<String, hmac::Key>,
}

/// Why a key file is refused. Never contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Not readable.
    #[error("cannot read key file {path}: {reason}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Not of the form `{"current": id, "keys": [{"id", "secret"}]}`.
    #[error("key file: {0}")]
    Form(String),
}

impl KeyRing {
    /// One key that no other process knows: for `wirepost dev` and tests.
    pub fn random() -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; MIN_SECRET]>());
        let keys = Keys { current: "random".into(), keys: HashMap::from([("random".into(), key)]) };
        Self { keys: ArcSwap::from_pointee(keys), file: None }
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// See [`KeyFileError`]: without a valid file at the start nothing can be signed.
    pub async fn load(path: PathBuf) -> Result<Self, KeyFileError> {
        let content = reload::read(&path)
            .await
            .map_err(|error| KeyFileError::Read { path: path.display().to_string(), reason: error.to_string() })?;
        let keys = Keys::parse(&content)?;
        Ok(Self { keys: ArcSwap::from_pointee(keys), file: Some((path, reload::digest(&[content]))) })
    }

    /// Reloads the file when it changes, until cancelled; an invalid one is reported and the last valid one kept.
    /// Without a file it only waits.
    pub async fn watch(self: Arc<Self>, cancel: CancellationToken) {
        self.watch_every(reload::INTERVAL, cancel).await;
    }

    async fn watch_every(&self, interval: Duration, cancel: CancellationToken) {
        let Some((path, seen)) = &self.file else {
            return cancel.cancelled().await;
        };
        reload::watch([path.clone()], *seen, interval, cancel, |[content]| match Keys::parse(&content) {
            Ok(keys) => {
                tracing::info!(current = keys.current, keys = keys.keys.len(), "key file taken into use");
                self.keys.store(Arc::new(keys));
            }
            Err(error) => tracing::error!(%error, "key file refused, the last good one stays in use"),
        })
        .await;
    }

    /// Ids of the keys, sorted.
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.keys.load().keys.keys().cloned().collect();
        ids.sort();
        ids
    }

    /// Signs the message that `message` builds from the id of the current key.
    pub(super) fn sign(&self, message: impl FnOnce(&str) -> Vec<u8>) -> Vec<u8> {
        let keys = self.keys.load();
        let mut message = message(&keys.current);
        #[expect(clippy::expect_used)]
        let key =
            keys.keys.get(&keys.current).expect("`Keys::parse` and `random` take only a current key that is there");
        let tag = hmac::sign(key, &message);
        message.extend_from_slice(tag.as_ref());
        message
    }

    /// Whether `tag` is the signature of `message` by that key; `None` = no such key. Takes the same time for every
    /// wrong tag.
    pub(super) fn verify(&self, key_id: &str, message: &[u8], tag: &[u8]) -> Option<bool> {
        let keys = self.keys.load();
        Some(hmac::verify(keys.keys.get(key_id)?, message, tag).is_ok())
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys.load();
        f.debug_struct("KeyRing")
            .field("current", &keys.current)
            .field("keys", &keys.keys.len())
            .finish_non_exhaustive()
    }
}

impl Keys {
    fn parse(content: &[u8]) -> Result<Self, KeyFileError> {
        let form = |problem: String| KeyFileError::Form(problem);
        // serde_json's own message could quote a value, and values are secrets here.
        let file: KeyFile = serde_json::from_slice(content).map_err(|error| {
            form(format!(
                "line {}, column {}: not of the form {{\"current\": \"id\", \"keys\": [{{\"id\": …, \"secret\": base64}}]}}",
                error.line(),
                error.column()
            ))
        })?;
        if file.keys.len() > MAX_KEYS {
            return Err(form(format!("has {} keys, at most {MAX_KEYS} are taken; remove the oldest", file.keys.len())));
        }
        let mut keys = HashMap::with_capacity(file.keys.len());
        for Key { id, secret } in file.keys {
            if id.is_empty() || id.len() > MAX_ID {
                return Err(form(format!("a key id has {} bytes, 1 to {MAX_ID} are allowed", id.len())));
            }
            let secret =
                STANDARD.decode(secret.trim()).map_err(|_| form(format!("secret of key {id} is not base64")))?;
            if secret.len() < MIN_SECRET {
                return Err(form(format!(
                    "secret of key {id} has {} bytes, at least {MIN_SECRET} are needed",
                    secret.len()
                )));
            }
            if keys.insert(id.clone(), hmac::Key::new(hmac::HMAC_SHA256, &secret)).is_some() {
                return Err(form(format!("key {id} occurs twice")));
            }
        }
        if !keys.contains_key(&file.current) {
            return Err(form(format!("current names key {}, which is not among the keys", file.current)));
        }
        Ok(Self { current: file.current, keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ticket::{Ticket, TicketError, open, seal, tests::sample};

    fn file(current: &str, ids: &[&str]) -> String {
        let keys: Vec<_> = ids
            .iter()
            .map(|id| format!(r#"{{"id":"{id}","secret":"{}"}}"#, STANDARD.encode(Sha(id).bytes())))
            .collect();
        format!(r#"{{"current":"{current}","keys":[{}]}}"#, keys.join(","))
    }

    /// A secret that only depends on the key's id.
    struct Sha<'a>(&'a str);
    impl Sha<'_> {
        fn bytes(&self) -> [u8; 32] {
            reload::digest(&[self.0.as_bytes().to_vec()])
        }
    }

    #[test]
    fn an_invalid_file_is_refused_with_the_reason_and_without_the_secret() {
        let short = STANDARD.encode([7; 31]);
        for (name, text, expected) in [
            ("no json", "{".to_owned(), "line 1"),
            ("unknown field", r#"{"current":"a","keys":[],"x":1}"#.to_owned(), "not of the form"),
            ("no key", r#"{"current":"a","keys":[]}"#.to_owned(), "not among the keys"),
            ("other current", file("c", &["a", "b"]), "not among the keys"),
            ("twice", file("a", &["a", "a"]), "occurs twice"),
            ("short", format!(r#"{{"current":"a","keys":[{{"id":"a","secret":"{short}"}}]}}"#), "has 31 bytes"),
            ("not base64", r#"{"current":"a","keys":[{"id":"a","secret":"!"}]}"#.to_owned(), "is not base64"),
            (
                "secret as id",
                format!(r#"{{"current":"a","keys":[{{"id":"a","secret":{{"{short}":1}}}}]}}"#),
                "not of the form",
            ),
        ] {
            let error = Keys::parse(text.as_bytes()).err().unwrap().to_string();
            assert!(error.contains(expected), "{name}: {error}");
            assert!(!error.contains(&short), "{name}: {error}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", KeyRing::random()), r#"KeyRing { current: "random", keys: 1, .. }"#);
    }

    #[tokio::test]
    async fn a_swapped_symlink_brings_new_keys_and_an_invalid_file_keeps_the_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |version: &str, text: &str| {
            let data = dir.path().join(version);
            std::fs::create_dir(&data).unwrap();
            std::fs::write(data.join("keys.json"), text).unwrap();
            // As the kubelet does: a new link beside the old one, renamed over it.
            std::os::unix::fs::symlink(&data, dir.path().join("..data_tmp")).unwrap();
            std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        };
        mount("v1", &file("a", &["a"]));
        let ring = Arc::new(KeyRing::load(dir.path().join("..data/keys.json")).await.unwrap());
        let old = seal(&ring, &sample());
        let cancel = CancellationToken::new();
        let task = tokio::spawn({
            let (ring, cancel) = (Arc::clone(&ring), cancel.clone());
            async move { ring.watch_every(Duration::from_millis(5), cancel).await }
        });
        let until = async |wanted: &dyn Fn() -> bool| {
            tokio::time::timeout(Duration::from_secs(20), async {
                while !wanted() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .unwrap();
        };
        let current = || ring.keys.load().current.clone();

        mount("v2", &file("b", &["a", "b"]));
        until(&|| current() == "b").await;
        let new = seal(&ring, &sample());
        assert!(open(&ring, &old, 0).is_ok(), "an older key still verifies");

        mount("v3", "not json");
        mount("v4", &file("b", &["b"]));
        until(&|| ring.keys.load().keys.len() == 1).await;
        assert_eq!(open(&ring, &old, 0), Err::<Ticket, _>(TicketError::UnknownKey));
        assert!(open(&ring, &new, 0).is_ok());
        cancel.cancel();
        task.await.unwrap();
    }
}
