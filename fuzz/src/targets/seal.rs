//! Any text as the seal of a question or an answer of another edge: only what an edge with these keys has written, for that very body and
//! purpose, is good. The input is a body, and a change of its seal.

use std::sync::LazyLock;

use wirepost_edge::identity::{
    keys::KeyRing,
    peer_seal::{Purpose, digest, open, seal},
};

use crate::input::Input;

const NOW: i64 = 1_790_000_000_000;
static KEYS: LazyLock<KeyRing> = LazyLock::new(KeyRing::random);

pub(crate) fn run(input: &[u8]) {
    let mut rest = Input(input);
    let (at, change, late) = (usize::from(rest.number()), rest.byte(), i64::from(rest.number()));
    let (question, body) = (String::from_utf8_lossy(rest.text()).into_owned(), rest.text());
    let good = |purpose: Purpose<'_>, body: &[u8], text: &str, now| {
        open(&KEYS, purpose, text, now).is_some_and(|seal| seal.is_for(body))
    };
    for purpose in [Purpose::Anyone, Purpose::Process(&question), Purpose::AnswerTo(&question)] {
        if let Ok(text) = std::str::from_utf8(input) {
            assert!(!good(purpose, body, text, NOW), "good, and not ours");
        }
        let text = seal(&KEYS, purpose, digest(body), NOW);
        assert_eq!(good(purpose, body, &text, NOW + late), late <= 30_000);
        let other = [body, b"x"].concat();
        assert!(!good(purpose, &other, &text, NOW), "good for another body");
        let whom = format!("{question}x");
        for another in [Purpose::Process(&whom), Purpose::AnswerTo(&whom)] {
            assert!(open(&KEYS, another, &text, NOW).is_none(), "good for another purpose");
        }
        let mut changed = text.clone().into_bytes();
        let byte = at % changed.len();
        changed[byte] = changed[byte].wrapping_add(change);
        if let Ok(changed) = String::from_utf8(changed) {
            assert!(!good(purpose, body, &changed, NOW) || changed == text, "good, and altered");
        }
    }
}
