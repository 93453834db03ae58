//! Any bytes as an envelope: what is read is what is written, and once written it is read the same for ever.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use wirepost_core::Envelope;

use crate::memory::{Bound, bounded};

/// Fields with the edge's word, see `docs/protocol.md`.
const STAMPED: [&str; 6] = ["sendType", "businessType", "fromUniqueId", "fromClientType", "timestamp", "cursor"];
const CURSOR: &str = "AQAAAAAAAAAAAAAAAQ";

pub(crate) fn run(input: &[u8]) {
    let Ok(envelope) = bounded(Bound { peak: 40, sum: 120, base: 64 << 10 }, input, || Envelope::parse(input)) else {
        if let Some(id) = Envelope::readable_id(input) {
            assert!(!id.is_empty() && id.len() <= wirepost_core::envelope::MAX_ID);
        }
        return;
    };
    let written = envelope.to_vec();
    let again = Envelope::parse(&written).expect("what is written can be read");
    let expected = Envelope { cursor: None, op: None, ..envelope.clone() };
    assert_eq!(again, expected, "{}", String::from_utf8_lossy(&written));
    assert_eq!(again.to_vec(), written, "the second time it is written the same");
    let mut delivered = Vec::new();
    envelope.write_with_cursor(CURSOR, &mut delivered);
    assert_eq!(Fields::of(&delivered).text("cursor").as_deref(), Some(CURSOR));
}

/// The top level of what was written, as it stands there.
pub(crate) struct Fields(Vec<(String, Box<RawValue>)>);

impl Fields {
    /// Reads it. No field has the name of one of ours twice, for any parser.
    pub(crate) fn of(written: &[u8]) -> Self {
        let fields: Self = serde_json::from_slice(written).expect("JSON");
        for stamped in STAMPED {
            let taken = fields.0.iter().filter(|(name, _)| is_taken_for(name, stamped)).count();
            assert!(taken <= 1, "{stamped} twice: {}", String::from_utf8_lossy(written));
        }
        fields
    }

    /// A field that is a text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        Some(serde_json::from_str(value.get()).expect("a text"))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Top;
        impl<'de> Visitor<'de> for Top {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Top)
    }
}

/// Whether a parser that ignores case may take a name for another, by any folding of single characters in use.
fn is_taken_for(name: &str, other: &str) -> bool {
    let single = |c: char, mut cases: Vec<char>| if cases.len() == 1 { cases.remove(0) } else { c };
    let upper = |text: &str| text.chars().map(|c| single(c, c.to_uppercase().collect())).collect::<String>();
    // The other case of the dotted I is two characters for Rust, and one for Java.
    let lower = |text: &str| {
        text.replace('\u{130}', "i").chars().map(|c| single(c, c.to_lowercase().collect())).collect::<String>()
    };
    lower(name) == lower(other) || upper(name) == upper(other) || lower(&upper(name)) == lower(&upper(other))
}
