//! Keys of a business's services.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use wirepost_core::edge_config::ApiKey;

/// Longest key that is checked, in bytes.
const MAX_KEY: usize = 512;

/// Whether `key` is one of `keys` that has not expired. Every digest is compared, in constant time, so that the time of
/// the answer reveals neither how close a key was nor its position.
pub fn is_known(keys: &[ApiKey], key: &str, now: i64) -> bool {
    if key.is_empty() || key.len() > MAX_KEY {
        return false;
    }
    let digest = digest(key);
    keys.iter().fold(false, |known, candidate| {
        let same = parse_hex(&candidate.sha256).is_some_and(|expected| expected.ct_eq(&digest).into());
        known | (same && candidate.expires_at.is_none_or(|end| now < end))
    })
}

/// What configurations know of a key.
pub fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// The digest in a configuration; `None`: it is none.
pub fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api_key(key: &str, expires_at: Option<i64>) -> ApiKey {
        ApiKey { sha256: wirepost_core::hex(Sha256::digest(key)), expires_at }
    }

    #[test]
    fn a_key_is_known_until_it_expires() {
        let keys = [api_key("new", None), api_key("old", Some(1_000))];
        for (key, now, expected) in [
            ("new", i64::MAX, true),
            ("old", 999, true),
            ("old", 1_000, false),
            ("other", 0, false),
            ("", 0, false),
            ("ne", 0, false),
        ] {
            assert_eq!(is_known(&keys, key, now), expected, "{key} at {now}");
        }
        assert!(!is_known(&[], "new", 0), "without keys nobody is admitted");
    }

    #[test]
    fn a_broken_digest_matches_nothing() {
        for sha256 in ["", "zz", &"g".repeat(64), &"é".repeat(32)] {
            assert!(!is_known(&[ApiKey { sha256: sha256.into(), expires_at: None }], "", 0));
            assert!(!is_known(&[ApiKey { sha256: sha256.into(), expires_at: None }], "x", 0));
        }
    }
}
