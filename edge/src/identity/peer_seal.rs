//! Edges of one installation know each other by the keys that sign tickets: what they ask each other and answer is
//! signed, with the time, and not encrypted. Whoever records a question can repeat it to any edge for a while, and
//! reads what that edge answers. It changes nothing there but that an address is heard of, and an answer is signed for
//! that very question.
//!
//! *Form*: URL-safe base64 without padding of: time (i64 ms, big-endian), length of the key id (1), key id, HMAC-SHA256 of
//! the context, what it is for (1), all before, and the SHA-256 of what is sealed.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use wirepost_core::contract::key_file;

use super::keys::{KeyRing, TAG};

/// Separates this from anything else that is signed with the same keys.
const CONTEXT: &[u8] = b"wirepost peer";
/// How long a seal is good: clocks of edges may differ by it.
const GOOD_FOR_MS: u64 = 30_000;
/// Longest text.
const MAX_TEXT: usize = (8 + 1 + key_file::MAX_ID + TAG).div_ceil(3) * 4;

/// What is sealed.
#[derive(Clone, Copy, Debug)]
pub enum Sealed<'a> {
    /// A question: its body.
    Question(&'a [u8]),
    /// An answer: the seal of its question, and its body.
    Answer(&'a str, &'a [u8]),
}

impl Sealed<'_> {
    fn message(self, stamp: &[u8]) -> Vec<u8> {
        let (kind, digest) = match self {
            Self::Question(body) => (0, Sha256::digest(body)),
            Self::Answer(question, body) => {
                let mut hash = Sha256::new();
                hash.update((question.len() as u64).to_be_bytes());
                hash.update(question);
                hash.update(body);
                (1, hash.finalize())
            }
        };
        [CONTEXT, &[kind], stamp, digest.as_slice()].concat()
    }
}

/// Seals it with the current key.
pub fn seal(keys: &KeyRing, sealed: Sealed<'_>, now: i64) -> String {
    let mut stamp = now.to_be_bytes().to_vec();
    let signed = keys.sign(|key_id| {
        stamp.push(u8::try_from(key_id.len()).unwrap_or(u8::MAX));
        stamp.extend_from_slice(key_id.as_bytes());
        sealed.message(&stamp)
    });
    stamp.extend_from_slice(&signed[signed.len() - TAG..]);
    URL_SAFE_NO_PAD.encode(stamp)
}

/// Whether an edge of this installation has sealed it a moment ago. Takes the same time for every wrong signature.
pub fn is_good(keys: &KeyRing, sealed: Sealed<'_>, text: &str, now: i64) -> bool {
    judge(keys, sealed, text, now).unwrap_or(false)
}

fn judge(keys: &KeyRing, sealed: Sealed<'_>, text: &str, now: i64) -> Option<bool> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (stamp, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG)?)?;
    let (time, rest) = stamp.split_first_chunk()?;
    let (length, key_id) = rest.split_first()?;
    if key_id.len() != usize::from(*length) || i64::from_be_bytes(*time).abs_diff(now) > GOOD_FOR_MS {
        return None;
    }
    keys.verify(std::str::from_utf8(key_id).ok()?, &sealed.message(stamp), tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_edges_with_the_same_keys_are_believed_for_a_while_and_about_what_they_sealed() {
        let (keys, others, now) = (KeyRing::random(), KeyRing::random(), 1_795_580_691_435);
        let question = seal(&keys, Sealed::Question(b"who"), now);
        let good = |keys: &KeyRing, body: &[u8], text: &str, at| is_good(keys, Sealed::Question(body), text, at);
        assert!(good(&keys, b"who", &question, now + 29_000) && good(&keys, b"who", &question, now - 29_000));
        assert!(!good(&keys, b"who", &question, now + 31_000) && !good(&keys, b"who", &question, i64::MIN));
        assert!(!good(&others, b"who", &question, now) && !good(&keys, b"whom", &question, now));
        assert!(!is_good(&keys, Sealed::Answer("", b"who"), &question, now), "a question is no answer");

        let answer = seal(&keys, Sealed::Answer(&question, b"alice"), now);
        assert!(is_good(&keys, Sealed::Answer(&question, b"alice"), &answer, now));
        assert!(!is_good(&keys, Sealed::Answer("another", b"alice"), &answer, now), "of another question");
        for cut in 0..question.len() {
            assert!(!good(&keys, b"who", &question[..cut], now), "cut at {cut}");
        }
        assert!(!good(&keys, b"who", &"A".repeat(MAX_TEXT + 1), now));
    }
}
