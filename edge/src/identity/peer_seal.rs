//! Edges of one installation know each other by the keys that sign tickets: what they ask each other and answer is
//! signed, with the time, and not encrypted. A seal says which bytes it is for, so it is judged before they are read. It
//! is good once (`peers/spent.rs`), for a while, and for whom it names.
//!
//! *Form*: URL-safe base64 without padding of: purpose (1), time (i64 ms, big-endian), a random number (16), length of the
//! key id (1), key id, SHA-256 of what is sealed, HMAC-SHA256 of the context, whom it is for, and all before.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use wirepost_core::contract::key_file;

use super::keys::{KeyRing, TAG};

/// Separates this from anything else that is signed with the same keys.
const CONTEXT: &[u8] = b"wirepost peer";
/// How long a seal is good: clocks of edges may differ by it.
pub const GOOD_FOR_MS: u64 = 30_000;
/// A SHA-256.
const DIGEST: usize = 32;
/// Longest text.
const MAX_TEXT: usize = (1 + 8 + 16 + 1 + key_file::MAX_ID + DIGEST + TAG).div_ceil(3) * 4;

/// What a seal is good for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose<'a> {
    /// A question that any edge may answer: how it is.
    Anyone,
    /// A question to this process.
    Process(&'a str),
    /// The answer to the question with this seal.
    AnswerTo(&'a str),
}

impl Purpose<'_> {
    fn kind(self) -> u8 {
        match self {
            Self::Anyone => 0,
            Self::Process(_) => 1,
            Self::AnswerTo(_) => 2,
        }
    }

    /// What is signed.
    fn message(self, text: &[u8]) -> Vec<u8> {
        let whom = match self {
            Self::Anyone => "",
            Self::Process(whom) | Self::AnswerTo(whom) => whom,
        };
        [CONTEXT, &(whom.len() as u64).to_be_bytes(), whom.as_bytes(), text].concat()
    }
}

/// What a good seal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// When it was made, ms since the epoch.
    pub made_at: i64,
    /// No other one made then has it.
    pub number: u128,
    digest: [u8; DIGEST],
}

impl Seal {
    /// Whether it was made for these bytes.
    pub fn is_for(&self, body: &[u8]) -> bool {
        self.digest == digest(body)
    }
}

/// The digest of what is to be sealed.
pub fn digest(body: &[u8]) -> [u8; DIGEST] {
    Sha256::digest(body).into()
}

/// Seals something with this digest, with the current key.
pub fn seal(keys: &KeyRing, purpose: Purpose<'_>, digest: [u8; DIGEST], now: i64) -> String {
    let mut text = vec![purpose.kind()];
    text.extend_from_slice(&now.to_be_bytes());
    text.extend_from_slice(&rand::random::<[u8; 16]>());
    let signed = keys.sign(|key_id| {
        text.push(u8::try_from(key_id.len()).unwrap_or(u8::MAX));
        text.extend_from_slice(key_id.as_bytes());
        text.extend_from_slice(&digest);
        purpose.message(&text)
    });
    text.extend_from_slice(&signed[signed.len() - TAG..]);
    URL_SAFE_NO_PAD.encode(text)
}

/// The seal, if an edge of this installation has made it for this purpose a moment ago. Takes the same time for every
/// wrong signature.
pub fn open(keys: &KeyRing, purpose: Purpose<'_>, text: &str, now: i64) -> Option<Seal> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (signed, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG)?)?;
    let (kind, rest) = signed.split_first()?;
    let (time, rest) = rest.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first()?;
    let (key_id, digest) = rest.split_last_chunk()?;
    let made_at = i64::from_be_bytes(*time);
    let fits = *kind == purpose.kind() && key_id.len() == usize::from(*length);
    if !fits || made_at.abs_diff(now) > GOOD_FOR_MS {
        return None;
    }
    let is_ours = keys.verify(std::str::from_utf8(key_id).ok()?, &purpose.message(signed), tag)?;
    is_ours.then_some(Seal { made_at, number: u128::from_be_bytes(*number), digest: *digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_580_691_435;

    fn sealed(keys: &KeyRing, purpose: Purpose<'_>, body: &[u8]) -> String {
        seal(keys, purpose, digest(body), NOW)
    }

    fn is_good(keys: &KeyRing, purpose: Purpose<'_>, body: &[u8], text: &str, now: i64) -> bool {
        open(keys, purpose, text, now).is_some_and(|seal| seal.is_for(body))
    }

    #[test]
    fn only_edges_with_the_same_keys_are_believed_for_a_while_and_about_what_they_sealed() {
        let (keys, others) = (KeyRing::random(), KeyRing::random());
        let question = sealed(&keys, Purpose::Anyone, b"who");
        let good = |keys: &KeyRing, body: &[u8], text: &str, at| is_good(keys, Purpose::Anyone, body, text, at);
        assert!(good(&keys, b"who", &question, NOW + 29_000) && good(&keys, b"who", &question, NOW - 29_000));
        assert!(!good(&keys, b"who", &question, NOW + 31_000) && !good(&keys, b"who", &question, i64::MIN));
        assert!(!good(&others, b"who", &question, NOW) && !good(&keys, b"whom", &question, NOW));
        for cut in 0..question.len() {
            assert!(!good(&keys, b"who", &question[..cut], NOW), "cut at {cut}");
        }
        assert!(!good(&keys, b"who", &"A".repeat(MAX_TEXT + 1), NOW));
    }

    #[test]
    fn a_seal_is_good_for_one_purpose_and_no_two_are_equal() {
        let keys = KeyRing::random();
        let to_one = sealed(&keys, Purpose::Process("one"), b"who");
        let answer = sealed(&keys, Purpose::AnswerTo(&to_one), b"who");
        let purposes = [Purpose::Anyone, Purpose::Process("one"), Purpose::Process("two"), Purpose::AnswerTo(&to_one)];
        let good_for = |text: &str| purposes.map(|purpose| is_good(&keys, purpose, b"who", text, NOW));
        assert_eq!(good_for(&sealed(&keys, Purpose::Anyone, b"who")), [true, false, false, false]);
        assert_eq!(good_for(&to_one), [false, true, false, false]);
        assert_eq!(good_for(&answer), [false, false, false, true]);
        let number = |text: &str| open(&keys, Purpose::Process("one"), text, NOW).unwrap().number;
        assert_ne!(number(&to_one), number(&sealed(&keys, Purpose::Process("one"), b"who")), "made at the same time");
    }
}
