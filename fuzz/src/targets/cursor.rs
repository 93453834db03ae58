//! Any text as a cursor: one that is accepted is written the same, so there is one text for each position.

use wirepost_core::Cursor;

pub(crate) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string(), text);
    }
}
