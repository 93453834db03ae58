use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Envelope<'_>, EnvelopeError> {
    Envelope::parse(text.as_bytes())
}

#[test]
fn content_passes_byte_for_byte() {
    let content = r#"{ "price": 1.10, "big": 12345678901234567890123, "a":1, "a":2, "u":"\u00e9" }"#;
    let text = format!(r#"{{"messageType":"cart.share","content":{content},"x":[1, 2]}}"#);
    let envelope = parse(&text).unwrap();
    assert_eq!(envelope.content, Some(content));
    let written = String::from_utf8(envelope.to_vec()).unwrap();
    assert_eq!(written, format!(r#"{{"messageType":"cart.share","x":[1, 2],"content":{content}}}"#));
}

#[test]
fn a_name_of_ours_that_occurs_twice_is_refused_also_escaped() {
    for text in [
        r#"{"fromUniqueId":"alice","fromUniqueId":"ceo"}"#,
        r#"{"fromUniqueId":"alice","from\u0055niqueId":"ceo"}"#,
        r#"{"id":"1","id":"2"}"#,
        r#"{"cursor":"1","cursor":"2"}"#,
        r#"{"toUniqueId":null,"toUniqueId":"2"}"#,
        r#"{"content":1,"content":2}"#,
    ] {
        assert!(matches!(parse(text), Err(EnvelopeError::Duplicate(_))), "{text}");
    }
    assert!(parse(r#"{"x":1,"x":2}"#).is_ok(), "fields that are not the envelope's are not checked");
}

#[test]
fn an_empty_audience_is_nobody() {
    for text in [
        r#"{"toUniqueId":""}"#,
        r#"{"toUniqueId":null}"#,
        r#"{"tags":[]}"#,
        r#"{"tags":null}"#,
        r#"{"tags":[""]}"#,
        "{}",
    ] {
        assert!(!parse(text).unwrap().has_audience(), "{text}");
    }
    assert!(parse(r#"{"toUniqueId":"*"}"#).unwrap().for_everyone());
    assert!(parse(r#"{"tags":["vip"]}"#).unwrap().has_audience());
}

#[test]
fn wrong_values_name_their_field() {
    for (text, field) in [
        (r#"{"id":1}"#, "id"),
        (r#"{"timestamp":"now"}"#, "timestamp"),
        (r#"{"timestamp":-1}"#, "timestamp"),
        (r#"{"tags":"vip"}"#, "tags"),
        (r#"{"sendType":"Up"}"#, "sendType"),
        (r#"{"messageType":"a.*"}"#, "messageType"),
        (r#"{"messageType":"a b"}"#, "messageType"),
    ] {
        match parse(text) {
            Err(EnvelopeError::Field { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn deep_json_is_refused_without_recursion() {
    let deep = format!(r#"{{"content":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(parse(&deep), Err(EnvelopeError::Depth));
    let brackets_in_text = format!(r#"{{"content":"{}"}}"#, "[".repeat(1000));
    assert!(parse(&brackets_in_text).is_ok());
}

#[test]
fn what_is_not_an_object_is_refused() {
    for text in ["", "{", "[1]", "1", "null", "{\"a\":1}x", "   "] {
        assert!(matches!(parse(text), Err(EnvelopeError::Json(_))), "{text}");
    }
    assert_eq!(Envelope::parse(b"{\"id\":\"\xff\"}"), Err(EnvelopeError::Utf8));
}

#[test]
fn the_id_of_what_is_refused_is_read_where_it_can_be() {
    let deep = format!(r#"{{"content":{}1{},"id":"m"}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for text in [
        r#"{"id":"m","messageType":"a b"}"#,
        r#"{"tags":"vip","i\u0064":"\u006d"}"#,
        r#"{"id":"m","content":1,"content":2}"#,
        &deep,
    ] {
        assert!(parse(text).is_err(), "{text}");
        assert_eq!(Envelope::readable_id(text.as_bytes()).as_deref(), Some("m"), "{text}");
    }
    let long = format!(r#"{{"id":"{}"}}"#, "m".repeat(MAX_ID + 1));
    for text in [r#"{"id":1}"#, r#"{"id":"m","id":"n"}"#, r#"{"id":"m""#, r#"["id","m"]"#, &long] {
        assert!(parse(text).is_err(), "{text}");
        assert_eq!(Envelope::readable_id(text.as_bytes()), None, "{text}");
    }
    assert_eq!(Envelope::readable_id(b"{\"id\":\"m\",\"x\":\"\xff\"}"), None, "not UTF-8");
}

#[test]
fn an_empty_envelope_is_an_object() {
    assert_eq!(Envelope::default().to_vec(), b"{}");
}

proptest! {
    #[test]
    fn any_bytes_are_an_envelope_or_an_error(bytes: Vec<u8>) {
        let _ = Envelope::parse(&bytes);
        let _ = Envelope::readable_id(&bytes);
    }

    #[test]
    fn what_is_written_reads_back(id in "[a-z]{0,10}", to in "\\PC{0,20}", tags in prop::collection::vec("\\PC{1,8}", 0..4), key in "\\PC{1,8}") {
        prop_assume!(!key.eq("id"));
        let envelope = Envelope {
            id: (!id.is_empty()).then(|| id.into()),
            to_unique_id: (!to.is_empty()).then(|| to.into()),
            tags: tags.into_iter().map(Into::into).collect(),
            content: Some("[1, 2]"),
            unknown: vec![(serde_json::Value::from(format!("x-{key}")).to_string(), "{ }")],
            timestamp: Some(5),
            ..Envelope::default()
        };
        let bytes = envelope.to_vec();
        prop_assert_eq!(Envelope::parse(&bytes).unwrap(), envelope.clone());
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
    }
}

#[test]
fn another_case_of_a_stamped_field_is_dropped() {
    for key in [
        "FromUniqueId",
        "fromuniqueid",
        "FROMUNIQUEID",
        "bu\u{17f}ine\u{17f}\u{17f}Type",
        "t\u{131}mestamp",
        "bus\u{130}nessType",
        "\\u0046romClientType",
        "Cursor",
    ] {
        let text = format!(r#"{{"{key}":"ceo","Content":1,"fromUniqueId ":2,"from":3}}"#);
        let envelope = Envelope::parse(text.as_bytes()).unwrap();
        let keys: Vec<_> = envelope.unknown.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, [r#""Content""#, r#""fromUniqueId ""#, r#""from""#], "{key}");
    }
}
