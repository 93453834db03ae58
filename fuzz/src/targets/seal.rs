//! Any text as the seal of a question or an answer of another edge: only what an edge with these keys has written, for that very body, is
//! good. The input is a body, and a change of its seal.

use std::sync::LazyLock;

use wirepost_edge::identity::{
    keys::KeyRing,
    peer_seal::{Sealed, is_good, seal},
};

use crate::input::Input;

const NOW: i64 = 1_790_000_000_000;
static KEYS: LazyLock<KeyRing> = LazyLock::new(KeyRing::random);

pub(crate) fn run(input: &[u8]) {
    let mut rest = Input(input);
    let (at, change, late) = (usize::from(rest.number()), rest.byte(), i64::from(rest.number()));
    let (question, body) = (String::from_utf8_lossy(rest.text()).into_owned(), rest.text());
    for sealed in [Sealed::Question(body), Sealed::Answer(&question, body)] {
        if let Ok(text) = std::str::from_utf8(input) {
            assert!(!is_good(&KEYS, sealed, text, NOW), "good, and not ours");
        }
        let text = seal(&KEYS, sealed, NOW);
        assert_eq!(is_good(&KEYS, sealed, &text, NOW + late), late <= 30_000);
        let other = [body, b"x"].concat();
        assert!(!is_good(&KEYS, Sealed::Question(&other), &text, NOW));
        let mut changed = text.clone().into_bytes();
        let byte = at % changed.len();
        changed[byte] = changed[byte].wrapping_add(change);
        if let Ok(changed) = String::from_utf8(changed) {
            assert!(!is_good(&KEYS, sealed, &changed, NOW) || changed == text, "good, and altered");
        }
    }
}
