use std::fmt::Write as _;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

/// "Hello wirepost!" as a copy of what came before it.
const TAKEN_OVER: [u8; 5] = [0xf2, 0x40, 0xe5, 0x02, 0x00];

/// A push with `count` orders in its content.
fn push(count: usize) -> String {
    let mut text = r#"{"id":"01a210f3-03eb-7039-8d46-5a5957e3407b","messageType":"orders","content":["#.to_owned();
    for n in 0..count {
        let _ = write!(text, r#"{{"orderId":"o-{}","amount":"{}.00","currency":"EUR"}},"#, n * 7919 % 100_000, n % 97);
    }
    text + "null]}"
}

/// Compressed by the library's strongest level, as a client may.
fn by_a_client(plain: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::with_capacity(plain.len() + 1024);
    let mut compress = flate2::Compress::new(flate2::Compression::best(), false);
    compress.compress_vec(plain, &mut compressed, flate2::FlushCompress::Sync).unwrap();
    compressed.strip_suffix(&TAIL).unwrap().to_vec()
}

proptest! {
    #[test]
    fn what_is_compressed_is_decompressed_whatever_came_before(counts in prop::collection::vec(0_usize..300, 1..6)) {
        let mut first = None;
        for count in counts {
            let plain = push(count);
            let Some(compressed) = deflate(plain.as_bytes()) else { continue };
            prop_assert!(compressed.len() <= plain.len() - plain.len() / 8);
            prop_assert_eq!(inflate(&compressed, plain.len()).unwrap(), plain.as_bytes());
            first.get_or_insert((plain, compressed));
        }
        if let Some((plain, compressed)) = first {
            prop_assert_eq!(deflate(plain.as_bytes()), Some(compressed), "nothing of others is in it");
        }
    }

    #[test]
    fn no_input_breaks_it(payload in prop::collection::vec(any::<u8>(), 0..2000), limit in 0_usize..3000) {
        if let Ok(plain) = inflate(&payload, limit) {
            prop_assert!(plain.len() <= limit && plain.capacity() <= limit);
        }
    }
}

#[rstest]
#[case::one_block(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00])]
#[case::stored(&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00])]
#[case::a_final_block(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00])]
#[case::two_blocks(&[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00])]
fn the_rfcs_examples_are_read(#[case] payload: &[u8]) {
    assert_eq!(inflate(payload, 5).as_deref(), Ok(&b"Hello"[..]));
    assert_eq!(inflate(payload, 4), Err(InflateError::TooBig));
}

#[test]
fn an_empty_message_is_one_byte() {
    assert_eq!(inflate(&[0x00], 0), Ok(vec![]));
}

#[test]
fn what_follows_a_final_block_is_read() {
    let once = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    assert_eq!(inflate(&[&once[..], &once[..], &[0x00]].concat(), 10).as_deref(), Ok(&b"HelloHello"[..]));
}

#[test]
fn a_bomb_ends_at_the_limit() {
    let bomb = by_a_client(&vec![0; 8 << 20]);
    assert!(bomb.len() < 10_000, "{}", bomb.len());
    for limit in [0, 1, 100, 100_000] {
        assert_eq!(inflate(&bomb, limit), Err(InflateError::TooBig));
    }
    // The next message is not concerned.
    assert_eq!(inflate(&by_a_client(b"next"), 4).as_deref(), Ok(&b"next"[..]));
}

#[test]
fn no_more_memory_is_taken_than_the_limit() {
    let plain = push(1000);
    let compressed = by_a_client(plain.as_bytes());
    let all = inflate(&compressed, plain.len()).unwrap();
    assert_eq!((all.len(), all.capacity()), (plain.len(), plain.len()));
    assert!(inflate(&compressed, usize::MAX).unwrap().capacity() <= plain.len() * 2);
}

#[test]
fn what_is_no_compressed_data_is_malformed() {
    assert_eq!(inflate(&[0xff; 20], 1000), Err(InflateError::Malformed));
    // Takes over the former message, "Hello wirepost!", and copies it.
    inflate(&by_a_client(b"Hello wirepost!"), 100).unwrap();
    assert_eq!(inflate(&TAKEN_OVER, 100), Err(InflateError::Malformed));
}

#[test]
fn what_saves_too_little_is_not_compressed() {
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let random: Vec<u8> = (0..2000).map(|_| random()).collect();
    assert_eq!(deflate(&random), None);
    assert!(!is_worth_it(255) && is_worth_it(256) && is_worth_it(1 << 20) && !is_worth_it((1 << 20) + 1));
}

mod offers {
    use axum::http::{HeaderMap, HeaderValue};

    use super::*;

    const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    fn answer(lines: &[&str]) -> Option<(Compression, String)> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("sec-websocket-extensions", HeaderValue::from_str(line).unwrap());
        }
        let (compression, answer) = accept(&headers)?;
        Some((compression, answer.to_str().unwrap().to_owned()))
    }

    #[rstest]
    #[case::a_browser(&["permessage-deflate; client_max_window_bits"])]
    #[case::alone(&["permessage-deflate"])]
    #[case::all(&["Permessage-Deflate;server_no_context_takeover ;\tclient_no_context_takeover; client_max_window_bits=9"])]
    #[case::quoted(&["permessage-deflate; client_max_window_bits=\"10\""])]
    #[case::behind_others(&["x-webkit-deflate-frame, foo; bar=1", "permessage-deflate"])]
    #[case::behind_one_that_is_declined(&["permessage-deflate; unknown, permessage-deflate; client_max_window_bits"])]
    fn an_offer_is_answered_without_context_takeover(#[case] lines: &[&str]) {
        let (compression, answer) = answer(lines).unwrap();
        assert_eq!(answer, ANSWER);
        assert!(compression.is_on() && compression.takes(10_000_000));
    }

    #[test]
    fn a_small_window_is_agreed_to_and_gets_what_fits() {
        for bits in 8..=15 {
            let (compression, answer) =
                answer(&[format!("permessage-deflate; server_max_window_bits={bits}").as_str()]).unwrap();
            assert_eq!(answer, format!("{ANSWER}; server_max_window_bits={bits}"));
            assert!(compression.takes(1 << bits));
            assert_eq!(compression.takes((1 << bits) + 1), bits == 15);
        }
    }

    #[rstest]
    #[case::nothing(&[])]
    #[case::other(&["permessage-bzip2"])]
    #[case::unknown_parameter(&["permessage-deflate; mystery"])]
    #[case::value_of_a_flag(&["permessage-deflate; server_no_context_takeover=1"])]
    #[case::no_value(&["permessage-deflate; server_max_window_bits"])]
    #[case::small(&["permessage-deflate; server_max_window_bits=7"])]
    #[case::large(&["permessage-deflate; client_max_window_bits=16"])]
    #[case::leading_zero(&["permessage-deflate; server_max_window_bits=09"])]
    #[case::twice(&["permessage-deflate; client_max_window_bits; client_max_window_bits=10"])]
    #[case::empty_parameter(&["permessage-deflate;"])]
    fn another_offer_is_declined(#[case] lines: &[&str]) {
        assert_eq!(answer(lines), None);
        assert!(!Compression::default().is_on() && !Compression::default().takes(1000));
    }
}
