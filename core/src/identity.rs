//! Which texts may name a client, a client type or a tag. They are compared byte by byte, so two that look the same must be the same.

use std::sync::LazyLock;

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::{CodePointSetData, CodePointSetDataBorrowed, props::DefaultIgnorableCodePoint};

use crate::envelope::MAX_IDENTITY;

/// Zero-width characters, marks of text direction, soft hyphens, variation selectors and other things that nobody sees.
static INVISIBLE: LazyLock<CodePointSetDataBorrowed<'static>> =
    LazyLock::new(CodePointSetData::new::<DefaultIgnorableCodePoint>);
/// A symbol that is blank.
const BRAILLE_BLANK: char = '\u{2800}';

/// Why a text is no identity, client type or tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityDefect {
    /// No text.
    #[error("is empty")]
    Empty,
    /// Too long.
    #[error("has {0} bytes, at most {MAX_IDENTITY} are allowed")]
    TooLong(usize),
    /// Breaks logs and headers. The replacement character stands for bytes that were not UTF-8: two such identities would become one.
    #[error("has a control character or is not UTF-8")]
    Control,
    /// Looks the same without it.
    #[error("has an invisible character, U+{0:04X}")]
    Invisible(u32),
    /// Looks like another space, or like none.
    #[error("begins or ends with a space, or has another one than U+0020")]
    Space,
    /// The same text has another form in bytes.
    #[error("is not in Unicode's normalization form C; normalize it where identities are made")]
    NotNormalized,
}

/// Checks an identity, a client type or a tag. Everything that can be seen is allowed, also slashes, dots and emoji.
///
/// # Errors
/// See [`IdentityDefect`].
pub fn check(text: &str) -> Result<(), IdentityDefect> {
    if text.is_empty() {
        return Err(IdentityDefect::Empty);
    }
    if text.len() > MAX_IDENTITY {
        return Err(IdentityDefect::TooLong(text.len()));
    }
    // Nearly all identities.
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    for c in text.chars() {
        if c.is_control() || c == char::REPLACEMENT_CHARACTER {
            return Err(IdentityDefect::Control);
        }
        if c == BRAILLE_BLANK || INVISIBLE.contains(c) {
            return Err(IdentityDefect::Invisible(c.into()));
        }
        if c != ' ' && c.is_whitespace() {
            return Err(IdentityDefect::Space);
        }
    }
    if text.starts_with(' ') || text.ends_with(' ') {
        return Err(IdentityDefect::Space);
    }
    if ComposingNormalizerBorrowed::new_nfc().is_normalized(text) { Ok(()) } else { Err(IdentityDefect::NotNormalized) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_seen_is_allowed() {
        for text in
            ["alice", "a", "tenant/42.x", "Jürgen Müller", "王小明", "🦀", "*", "ـa", "x@y.example", "नमस्ते", "€"]
        {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_looks_like_another_text_is_refused() {
        for (text, expected) in [
            ("", IdentityDefect::Empty),
            (&*"x".repeat(257), IdentityDefect::TooLong(257)),
            ("a\nb", IdentityDefect::Control),
            ("a\u{85}", IdentityDefect::Control),
            ("a\u{fffd}", IdentityDefect::Control),
            ("ali\u{200b}ce", IdentityDefect::Invisible(0x200b)),
            ("ali\u{ad}ce", IdentityDefect::Invisible(0xad)),
            ("\u{202e}alice", IdentityDefect::Invisible(0x202e)),
            ("\u{feff}alice", IdentityDefect::Invisible(0xfeff)),
            ("\u{3164}", IdentityDefect::Invisible(0x3164)),
            ("\u{2800}", IdentityDefect::Invisible(0x2800)),
            ("❤\u{fe0f}", IdentityDefect::Invisible(0xfe0f)),
            ("a\u{e0041}", IdentityDefect::Invisible(0xe0041)),
            (" alice", IdentityDefect::Space),
            ("alice ", IdentityDefect::Space),
            ("a\u{a0}b", IdentityDefect::Space),
            ("a\u{2028}b", IdentityDefect::Space),
            ("Ju\u{308}rgen", IdentityDefect::NotNormalized),
            ("\u{212b}", IdentityDefect::NotNormalized),
        ] {
            assert_eq!(check(text), Err(expected), "{text:?}");
        }
    }
}
