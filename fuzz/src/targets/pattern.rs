//! Topic patterns, against the definition: `*` is one word, `#` any number of words.

use wirepost_core::pattern::matches;

use crate::input::Input;

/// The definition takes time that grows with a power of the words.
const WORDS: usize = 9;

pub(crate) fn run(input: &[u8]) {
    let mut input = Input(input);
    let (Ok(pattern), Ok(key)) = (std::str::from_utf8(input.text()), std::str::from_utf8(input.0)) else { return };
    let found = matches(pattern, key);
    let (pattern, key): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), key.split('.').collect());
    if pattern.len() <= WORDS && key.len() <= WORDS {
        assert_eq!(found, defined(&pattern, &key), "{pattern:?} {key:?}");
    }
}

fn defined(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern, key) {
        ([], []) => true,
        (["#", rest @ ..], _) => (0..=key.len()).any(|taken| defined(rest, &key[taken..])),
        ([word, pattern @ ..], [first, key @ ..]) => (*word == "*" || word == first) && defined(pattern, key),
        _ => false,
    }
}
