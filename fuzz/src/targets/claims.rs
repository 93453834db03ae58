//! Names of claims: an exact name first, a pointer as RFC 6901 says, nothing found twice.

use serde_json::{Map, Value};
use wirepost_edge::identity::claims;

use crate::input::Input;

pub(crate) fn run(input: &[u8]) {
    let mut input = Input(input);
    let Ok(name) = std::str::from_utf8(input.text()) else { return };
    let Ok(token) = serde_json::from_slice::<Map<String, Value>>(input.0) else { return };
    let found = claims::find(&token, name);
    assert!(found.is_none_or(|found| !found.is_null()));
    match token.get(name) {
        Some(exact) => assert_eq!(found, Some(exact).filter(|exact| !exact.is_null())),
        None if name.starts_with('/') => {
            let pointed = Value::Object(token.clone());
            assert_eq!(found, pointed.pointer(name).filter(|pointed| !pointed.is_null()));
        }
        None => {}
    }
    if let Some(texts) = found.and_then(claims::texts) {
        assert_eq!(found.and_then(claims::text).map(|text| vec![text]).unwrap_or(texts.clone()), texts);
    }
}
