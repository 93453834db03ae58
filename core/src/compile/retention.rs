//! How long pushes are kept, and in segments of which size.

use crate::{
    business::{DEFAULT_RETENTION_BYTES, DEFAULT_RETENTION_SECONDS, Retention as Declared},
    contract::edge_config::Retention,
};

/// The broker reclaims whole segments, so a retention needs several.
const SEGMENTS: u64 = 4;
/// The broker's own default, and a size that it handles well.
const MAX_SEGMENT_BYTES: u64 = 500_000_000;

/// The declared retention, with defaults. A malformed size (which validation rejects) means the default.
pub(crate) fn retention(declared: Option<&Declared>) -> Retention {
    let seconds = declared.and_then(|d| d.seconds).unwrap_or(DEFAULT_RETENTION_SECONDS);
    let bytes =
        declared.and_then(|d| d.bytes.as_deref()).and_then(quantity).or_else(|| quantity(DEFAULT_RETENTION_BYTES));
    Retention { seconds: seconds.unsigned_abs(), bytes: bytes.unwrap_or(1 << 30) }
}

/// Size of one segment of a stream with this retention.
pub(crate) fn segment_bytes(retention: Retention) -> u64 {
    (retention.bytes / SEGMENTS).clamp(1, MAX_SEGMENT_BYTES)
}

/// The part of Kubernetes quantities that a declaration may use: a whole number with a unit, such as `200k` or `1Gi`.
pub(crate) fn quantity(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// As [`quantity`] reads it, in the largest unit that is exact.
pub(crate) fn quantity_text(bytes: u64) -> String {
    const UNITS: [(&str, u64); 8] = [
        ("Ti", 1 << 40),
        ("T", 1_000_000_000_000),
        ("Gi", 1 << 30),
        ("G", 1_000_000_000),
        ("Mi", 1 << 20),
        ("M", 1_000_000),
        ("Ki", 1 << 10),
        ("k", 1_000),
    ];
    let exact = UNITS.iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    exact.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("100k", Some(100_000)),
            ("1Gi", Some(1 << 30)),
            ("12345", Some(12_345)),
            ("1.5Gi", None),
            ("100m", None),
            ("-1", None),
            ("Gi", None),
            ("", None),
            ("99999999999999999999Ti", None),
            ("99999999999Ti", None),
        ] {
            assert_eq!(quantity(text), expected, "{text}");
        }
    }

    #[test]
    fn a_quantity_is_written_in_the_largest_exact_unit() {
        for text in ["1Gi", "200M", "1536Mi", "3T", "12345", "0", "100k"] {
            assert_eq!(quantity(text).map(quantity_text).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_retention_has_several_segments() {
        let small = Retention { seconds: 1, bytes: 200_000 };
        assert_eq!(segment_bytes(small), 50_000);
        let large = Retention { seconds: 1, bytes: 1 << 40 };
        assert_eq!(segment_bytes(large), 500_000_000);
    }
}
