//! Names of types, each once in a module.

use std::collections::HashSet;

/// The names that are taken.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<String>);

impl Names {
    /// A name of these words, with a number where it is taken: `payments`, `qr.refresh` → `PaymentsQrRefresh`.
    pub(super) fn unique(&mut self, words: &[&str]) -> String {
        let mut name: String =
            words.iter().flat_map(|word| word.split(|c: char| !c.is_alphanumeric())).map(capital).collect();
        if name.chars().next().is_none_or(|first| !first.is_alphabetic()) {
            name.insert(0, 'T');
        }
        let mut free = name.clone();
        for number in 2.. {
            if self.0.insert(free.clone()) {
                break;
            }
            free = format!("{name}{number}");
        }
        free
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
