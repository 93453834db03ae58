//! What a scalar means to kubectl, whose YAML reader (go-yaml 2) implements most of YAML 1.1: `on` is true, `0777` is
//! 511, `1_000` is 1000. Sexagesimals and dates stay text.

use base64::{Engine, alphabet, engine::GeneralPurpose, engine::general_purpose::PAD};
use serde_json::{Number, Value};

/// Prefix of YAML's own tags, written as `!!` in a file.
const TAG: &str = "tag:yaml.org,2002:";
/// Above this a whole number is not an exact integer to the API server either.
const EXACT: f64 = 9_223_372_036_854_775_808.0;

/// A scalar's meaning. JSON has no other kinds; numbers that it can't represent are refused in the conversion.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    /// Within 64 bits, signed or unsigned.
    Int(i128),
    Float(f64),
    Text(String),
}

impl Scalar {
    /// As JSON, or `None` for infinity and NaN.
    pub(super) fn into_json(self) -> Option<Value> {
        Some(match self {
            Self::Null => Value::Null,
            Self::Bool(value) => value.into(),
            Self::Int(value) => i64::try_from(value)
                .map(Value::from)
                .or_else(|_| u64::try_from(value).map(Value::from))
                .unwrap_or_else(|_| Value::from(value as f64)),
            Self::Float(value) => from_float(value)?,
            Self::Text(value) => value.into(),
        })
    }

    /// As the key of a mapping, or `None` if kubectl does not accept such a key.
    pub(super) fn into_key(self) -> Option<String> {
        match self {
            Self::Bool(value) => Some(value.to_string()),
            Self::Int(value) => i64::try_from(value).ok().map(|value| value.to_string()),
            Self::Float(value) => Some(float_key(value)),
            Self::Text(value) => Some(value),
            Self::Null => None,
        }
    }
}

/// A number as the API server represents it: whole numbers are integers, however they are written.
pub(in crate::declarations) fn from_float(value: f64) -> Option<Value> {
    if value.fract() == 0.0 && value.abs() < EXACT {
        return Some(Value::from(value as i64));
    }
    Number::from_f64(value).map(Value::Number)
}

/// The meaning of a scalar. `plain`: neither quoted nor a block, so its text decides unless a `tag` does.
///
/// # Errors
/// It does not match its tag.
pub(super) fn resolve(text: &str, tag: Option<&str>, plain: bool) -> Result<Scalar, String> {
    let Some(tag) = tag else {
        return Ok(if plain { implicit(text) } else { Scalar::Text(text.to_owned()) });
    };
    let kind = tag.strip_prefix(TAG).unwrap_or_default();
    let resolved = || implicit(text);
    let value = match kind {
        "bool" => Some(resolved()).filter(|value| matches!(value, Scalar::Bool(_))),
        "int" => Some(resolved()).filter(|value| matches!(value, Scalar::Int(_))),
        "float" => match resolved() {
            Scalar::Int(value) => Some(Scalar::Float(value as f64)),
            value => Some(value).filter(|value| matches!(value, Scalar::Float(_))),
        },
        "null" => Some(resolved()).filter(|value| *value == Scalar::Null),
        "timestamp" => looks_like_a_date(text).then(|| Scalar::Text(text.to_owned())),
        "binary" => binary(text).map(Scalar::Text),
        // `!!str`, and tags that kubectl ignores.
        _ => Some(Scalar::Text(text.to_owned())),
    };
    value.ok_or_else(|| format!("{text:?} does not match its tag !!{kind}"))
}

/// Whether YAML 1.2, which people and editors expect, reads a plain scalar differently.
pub(super) fn reads_unexpectedly(text: &str, meaning: &Scalar) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    match meaning {
        Scalar::Bool(_) => !text.eq_ignore_ascii_case("true") && !text.eq_ignore_ascii_case("false"),
        Scalar::Int(_) | Scalar::Float(_) => {
            let mut first = digits.chars();
            digits.contains('_')
                || (first.next() == Some('0')
                    && first.next().is_some_and(|c| c.is_ascii_digit() || c == 'b' || c == 'B'))
        }
        Scalar::Null | Scalar::Text(_) => false,
    }
}

fn implicit(text: &str) -> Scalar {
    let word = match text {
        "" | "~" | "null" | "Null" | "NULL" => Some(Scalar::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(Scalar::Bool(true)),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Some(Scalar::Bool(false))
        }
        ".nan" | ".NaN" | ".NAN" => Some(Scalar::Float(f64::NAN)),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Some(Scalar::Float(f64::INFINITY)),
        "-.inf" | "-.Inf" | "-.INF" => Some(Scalar::Float(f64::NEG_INFINITY)),
        _ => None,
    };
    let number = || match text.bytes().next()? {
        b'.' => float(text),
        b'+' | b'-' | b'0'..=b'9' if !looks_like_a_date(text) => {
            let plain = text.replace('_', "");
            integer(&plain).or_else(|| float(&plain))
        }
        _ => None,
    };
    word.or_else(number).unwrap_or_else(|| Scalar::Text(text.to_owned()))
}

/// A 64-bit integer with a prefix for its base: 0x, 0o, 0b, or a leading 0 for octal.
fn integer(text: &str) -> Option<Scalar> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (digits, radix) = if let Some(hex) = lower.strip_prefix("0x") {
        (hex, 16)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        (binary, 2)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        (octal, 8)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (&lower[1..], 8)
    } else {
        (lower.as_str(), 10)
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    let value = if negative { -value } else { value };
    // Above the signed range only without a sign.
    let signed = i64::try_from(value).is_ok();
    (signed || (!text.starts_with(['+', '-']) && u64::try_from(value).is_ok())).then_some(Scalar::Int(value))
}

/// `12`, `1.5`, `.5`, `1.`, with or without an exponent. What a double can't represent stays text.
fn float(text: &str) -> Option<Scalar> {
    let allowed = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    if !text.chars().all(allowed) {
        return None;
    }
    text.parse().ok().filter(|value: &f64| value.is_finite()).map(Scalar::Float)
}

/// `2026-11-27` and text that begins like it, which stays text.
fn looks_like_a_date(text: &str) -> bool {
    let year = text.bytes().take_while(u8::is_ascii_digit).count();
    year == 4 && text.as_bytes().get(4) == Some(&b'-')
}

/// Go's decoder skips line ends.
fn binary(text: &str) -> Option<String> {
    let engine = GeneralPurpose::new(&alphabet::STANDARD, PAD);
    let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    engine.decode(text).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The shortest text for the number in 32 bits, with an exponent below 1e-4 and from 1e+06.
fn float_key(value: f64) -> String {
    if value.is_nan() {
        return ".nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let text = format!("{:e}", value as f32);
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return format!("{}", value as f32);
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_have_kubectls_meaning() {
        for (text, value) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("NULL", json!(null)),
            ("nULL", json!("nULL")),
            ("y", json!(true)),
            ("No", json!(false)),
            ("oN", json!("oN")),
            ("off", json!(false)),
            ("TRUE", json!(true)),
            ("007", json!(7)),
            ("0777", json!(511)),
            ("0912", json!(912)),
            ("08", json!(8)),
            ("0o17", json!(15)),
            ("0O17", json!(15)),
            ("0x1F", json!(31)),
            ("-0x1f", json!(-31)),
            ("0b101", json!(5)),
            ("-0b101", json!(-5)),
            ("0b102", json!("0b102")),
            ("0x", json!("0x")),
            ("1_000", json!(1000)),
            ("1__0_", json!(10)),
            ("_1", json!("_1")),
            ("+12", json!(12)),
            ("-", json!("-")),
            ("+", json!("+")),
            ("1.048576e+06", json!(1_048_576)),
            ("65536.0", json!(65536)),
            ("1.", json!(1)),
            (".5", json!(0.5)),
            (".", json!(".")),
            ("._5", json!("._5")),
            ("1e3", json!(1000)),
            ("1e", json!("1e")),
            ("1e400", json!("1e400")),
            ("12.50", json!(12.5)),
            ("1_0.5_0", json!(10.5)),
            ("9223372036854775807", json!(9_223_372_036_854_775_807_i64)),
            ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
            ("-9223372036854775809", json!(-9_223_372_036_854_775_809_f64)),
            ("190:20:30", json!("190:20:30")),
            ("2026-11-27", json!("2026-11-27")),
            ("2026-11-27T10:00:00Z", json!("2026-11-27T10:00:00Z")),
            ("10.0.0.1", json!("10.0.0.1")),
            ("1.2.3", json!("1.2.3")),
            ("infinity", json!("infinity")),
            ("12e", json!("12e")),
        ] {
            assert_eq!(resolve(text, None, true).unwrap().into_json(), Some(value), "{text}");
            assert_eq!(resolve(text, None, false).unwrap(), Scalar::Text(text.into()), "{text}, quoted");
        }
        for number in [".inf", "-.INF", ".nan"] {
            assert_eq!(resolve(number, None, true).unwrap().into_json(), None, "{number}");
        }
    }

    #[test]
    fn a_tag_decides_the_type_of_a_scalar() {
        let tagged = |kind: &str, text: &str| resolve(text, Some(&format!("{TAG}{kind}")), false);
        for (kind, text, value) in [
            ("str", "5", json!("5")),
            ("int", "5", json!(5)),
            ("float", "5", json!(5)),
            ("bool", "yes", json!(true)),
            ("null", "", json!(null)),
            ("binary", "aGk=", json!("hi")),
            ("timestamp", "2026-11-27", json!("2026-11-27")),
            ("unheard-of", "5", json!("5")),
        ] {
            assert_eq!(tagged(kind, text).unwrap().into_json(), Some(value), "{kind} {text}");
        }
        for (kind, text) in [("int", "1.5"), ("int", "a"), ("bool", "1"), ("bool", ""), ("binary", "%"), ("null", "a")]
        {
            assert!(tagged(kind, text).unwrap_err().contains(kind), "{kind} {text}");
        }
        assert_eq!(resolve("5", Some("!mine"), true), Ok(Scalar::Text("5".into())));
    }

    #[test]
    fn keys_are_text_in_json() {
        for (text, key) in [
            ("on", Some("true")),
            ("007", Some("7")),
            ("1.50", Some("1.5")),
            ("1e22", Some("1e+22")),
            ("1000000.0", Some("1e+06")),
            ("1000000", Some("1000000")),
            ("a", Some("a")),
            ("~", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(resolve(text, None, true).unwrap().into_key().as_deref(), key, "{text}");
        }
    }

    #[test]
    fn what_yaml_1_2_reads_differently_is_unexpected() {
        for (text, unexpected) in [
            ("on", true),
            ("n", true),
            ("True", false),
            ("007", true),
            ("-012", true),
            ("0912", true),
            ("1_000", true),
            ("0b1", true),
            ("0x1f", false),
            ("0", false),
            ("0.5", false),
            ("65536.0", false),
            ("~", false),
        ] {
            assert_eq!(reads_unexpectedly(text, &resolve(text, None, true).unwrap()), unexpected, "{text}");
        }
    }
}
