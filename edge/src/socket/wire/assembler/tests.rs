use proptest::prelude::*;
use rstest::rstest;

use super::*;

const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CONTINUE: u8 = 0x0;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const LAST: u8 = 0x80;

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0xa1, 0x02, 0xf3, 0x44];
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..126 => bytes.push(0x80 | len as u8),
        len @ 126..0x1_0000 => {
            bytes.push(0x80 | 0x7e);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 0x7f);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Feeds pieces of these sizes in turn; everything is admitted.
fn events(assembler: &mut Assembler, bytes: &[u8], pieces: &[usize]) -> Result<Vec<Event>, ProtocolError> {
    let mut events = Vec::new();
    let mut left = bytes;
    let mut sizes = pieces.iter().cycle();
    while !left.is_empty() {
        let size = (*sizes.next().unwrap()).clamp(1, left.len());
        let (mut piece, rest) = left.split_at(size);
        left = rest;
        loop {
            match assembler.feed(&mut piece)? {
                Some(Event::Large(_)) => assembler.admit(),
                Some(event) => events.push(event),
                None => break,
            }
        }
        assert!(piece.is_empty());
    }
    Ok(events)
}

fn all(bytes: &[u8]) -> Result<Vec<Event>, ProtocolError> {
    events(&mut Assembler::new(1 << 20, false), bytes, &[usize::MAX])
}

proptest! {
    #[test]
    fn messages_are_assembled_however_the_bytes_are_split(
        messages in prop::collection::vec(("\\PC{0,200}", prop::collection::vec(0_usize..100, 0..4), any::<bool>()), 1..6),
        pieces in prop::collection::vec(1_usize..300, 1..8),
    ) {
        let mut bytes = Vec::new();
        for (text, cuts, ping) in &messages {
            let mut rest = text.as_bytes();
            for (n, cut) in cuts.iter().enumerate() {
                let (part, more) = rest.split_at((*cut).min(rest.len()));
                bytes.extend(frame(if n == 0 { TEXT } else { CONTINUE }, part));
                if *ping {
                    bytes.extend(frame(LAST | PING, b"alive"));
                }
                rest = more;
            }
            bytes.extend(frame(LAST | if cuts.is_empty() { TEXT } else { CONTINUE }, rest));
        }
        let mut assembler = Assembler::new(1 << 20, false);
        let events = events(&mut assembler, &bytes, &pieces).unwrap();
        let texts: Vec<&str> = events.iter().filter_map(|event| match event {
            Event::Text(text) => Some(text.as_str()),
            _ => None,
        }).collect();
        prop_assert_eq!(texts, messages.iter().map(|(text, ..)| text.as_str()).collect::<Vec<_>>());
        let fragments = events.iter().filter(|event| **event == Event::Fragment).count();
        prop_assert_eq!(fragments, messages.iter().map(|(_, cuts, _)| cuts.len()).sum::<usize>());
        prop_assert!(!assembler.is_unfinished());
    }

    #[test]
    fn no_input_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..2000), pieces in prop::collection::vec(1_usize..100, 1..4)) {
        let mut assembler = Assembler::new(500, false);
        let _ = events(&mut assembler, &bytes, &pieces);
        assert!(assembler.message.as_ref().is_none_or(|message| message.payload.capacity() <= 500));
    }
}

#[rstest]
#[case::reserved_bit(frame(LAST | 0x40 | TEXT, b"x"), ProtocolError::Protocol)]
#[case::reserved_data(frame(LAST | 0x3, b"x"), ProtocolError::Protocol)]
#[case::reserved_control(frame(LAST | 0xb, b"x"), ProtocolError::Protocol)]
#[case::not_masked(vec![LAST | TEXT, 1, b'x'], ProtocolError::Protocol)]
#[case::continues_nothing(frame(LAST | CONTINUE, b"x"), ProtocolError::Protocol)]
#[case::begins_within([frame(TEXT, b"x"), frame(LAST | TEXT, b"x")].concat(), ProtocolError::Protocol)]
#[case::ping_in_fragments(frame(PING, b""), ProtocolError::Protocol)]
#[case::long_ping(frame(LAST | PING, &[0; 126]), ProtocolError::Protocol)]
#[case::close_of_one_byte(frame(LAST | CLOSE, &[3]), ProtocolError::Protocol)]
#[case::close_code_of_nobody(frame(LAST | CLOSE, &1005_u16.to_be_bytes()), ProtocolError::Protocol)]
#[case::close_reason(frame(LAST | CLOSE, &[3, 0xe8, 0xff]), ProtocolError::Utf8)]
#[case::bad_text(frame(LAST | TEXT, b"\xff"), ProtocolError::Utf8)]
#[case::bad_text_that_goes_on([frame(TEXT, b"a\xff")].concat(), ProtocolError::Utf8)]
#[case::ends_within_a_character([frame(TEXT, b"\xe2\x82"), frame(LAST | CONTINUE, b"")].concat(), ProtocolError::Utf8)]
#[case::too_big(frame(LAST | BINARY, &[0; 1001]), ProtocolError::TooBig)]
#[case::too_big_together([frame(BINARY, &[0; 600]), frame(LAST | CONTINUE, &[0; 401])].concat(), ProtocolError::TooBig)]
fn a_broken_rule_is_an_error_and_nothing_more_is_read(#[case] mut bytes: Vec<u8>, #[case] error: ProtocolError) {
    bytes.extend(frame(LAST | TEXT, b"more"));
    let mut assembler = Assembler::new(1000, false);
    assert_eq!(events(&mut assembler, &bytes, &[usize::MAX]), Err(error));
    assert!(assembler.has_ended() && assembler.message.is_none());
    assert_eq!(assembler.feed(&mut &bytes[..]), Ok(None));
}

#[test]
fn an_announced_length_takes_no_memory() {
    let mut bytes = vec![LAST | BINARY, 0x80 | 127];
    bytes.extend(1_000_000_u64.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([1; 100]);
    let mut assembler = Assembler::new(1 << 20, false);
    assert_eq!(events(&mut assembler, &bytes, &[usize::MAX]), Ok(vec![]));
    assert!(assembler.is_unfinished() && assembler.message.unwrap().payload.capacity() < 200);
}

#[test]
fn a_large_message_waits_for_one_permit() {
    let limit = 100_000;
    let whole = frame(LAST | BINARY, &vec![7; 50_000]);
    let mut assembler = Assembler::new(limit, false);
    let mut input = &whole[..];
    assert_eq!(assembler.feed(&mut input), Ok(Some(Event::Large(50_000))));
    assert_eq!((assembler.feed(&mut input), input.len()), (Ok(None), 50_000), "it waits");
    assembler.admit();
    assert!(matches!(assembler.feed(&mut input), Ok(Some(Event::Binary(payload))) if payload.len() == 50_000));
    // The size of a fragmented message is not known: it gets one permit for the largest size.
    let mut asked = Vec::new();
    for (first, last) in [(BINARY, 0), (CONTINUE, 0), (CONTINUE, LAST)] {
        let part = frame(first | last, &[7; 3000]);
        let mut input = &part[..];
        while let Some(event) = assembler.feed(&mut input).unwrap() {
            if let Event::Large(bytes) = event {
                asked.push(bytes);
                assembler.admit();
            }
        }
    }
    assert_eq!(asked, [limit]);
    // Small ones need no permit.
    assert!(matches!(all(&frame(LAST | BINARY, &[7; UNCHARGED])).unwrap()[..], [Event::Binary(_)]));
}

#[test]
fn while_closing_only_the_close_frame_counts() {
    let mut assembler = Assembler::new(1000, false);
    let unfinished = [frame(TEXT, b"begun"), frame(BINARY, &[0; 5000]), frame(LAST | PING, b"x")].concat();
    let (begun, rest) = unfinished.split_at(13);
    assert_eq!(events(&mut assembler, begun, &[usize::MAX]).unwrap().len(), 1);
    assembler.discard();
    assert_eq!(events(&mut assembler, rest, &[100]), Ok(vec![]));
    assert!(!assembler.has_ended());
    let goodbye = frame(LAST | CLOSE, &[3, 0xe8]);
    assert_eq!(events(&mut assembler, &goodbye, &[1]), Ok(vec![Event::Close(1000, vec![3, 0xe8].into())]));
    assert!(assembler.has_ended());
}

#[test]
fn a_close_frame_without_a_code_is_valid() {
    assert_eq!(all(&frame(LAST | CLOSE, b"")), Ok(vec![Event::Close(1005, Bytes::new())]));
}

mod compressed {
    use super::*;
    use crate::compression::deflate;

    const COMPRESSED: u8 = 0x40;

    fn assembler(limit: usize) -> Assembler {
        Assembler::new(limit, true)
    }

    /// A text, and its compressed payload.
    fn text() -> (String, Box<[u8]>) {
        let text = r#"{"messageType":"orders","content":"größer"}"#.repeat(20);
        let compressed = deflate(text.as_bytes()).unwrap();
        (text, compressed)
    }

    #[rstest]
    fn a_message_is_read_however_it_is_split(
        #[values(1, 2, 7, usize::MAX)] piece: usize,
        #[values(0, 1, 10)] cut: usize,
    ) {
        let (text, compressed) = text();
        let (begin, rest) = compressed.split_at(cut);
        let bytes = [
            frame(LAST | TEXT, b"before"),
            frame(COMPRESSED | TEXT, begin),
            frame(LAST | PING, b"alive"),
            frame(CONTINUE, b""),
            frame(LAST | CONTINUE, rest),
            frame(LAST | COMPRESSED | BINARY, &compressed),
        ];
        let expected = vec![
            Event::Text("before".into()),
            Event::Fragment,
            Event::Ping(Bytes::from_static(b"alive")),
            Event::Fragment,
            Event::Text(text.clone().into()),
            Event::Binary(text.into()),
        ];
        assert_eq!(events(&mut assembler(1000), &bytes.concat(), &[piece]), Ok(expected));
    }

    #[rstest]
    #[case::ping(frame(LAST | COMPRESSED | PING, b""), ProtocolError::Protocol)]
    #[case::close(frame(LAST | COMPRESSED | CLOSE, b""), ProtocolError::Protocol)]
    #[case::continuation(
        [frame(COMPRESSED | TEXT, b""), frame(LAST | COMPRESSED | CONTINUE, b"")].concat(),
        ProtocolError::Protocol
    )]
    #[case::another_reserved_bit(frame(LAST | COMPRESSED | 0x20 | TEXT, b""), ProtocolError::Protocol)]
    #[case::not_compressed(frame(LAST | COMPRESSED | TEXT, &[0xff; 20]), ProtocolError::Protocol)]
    #[case::bad_text(frame(LAST | COMPRESSED | TEXT, &deflate(&[0xff; 500]).unwrap()), ProtocolError::Utf8)]
    #[case::bomb(frame(LAST | COMPRESSED | TEXT, &deflate(&vec![b' '; 100_000]).unwrap()), ProtocolError::TooBig)]
    #[case::bomb_in_fragments(
        [
            frame(COMPRESSED | TEXT, &deflate(&vec![b' '; 100_000]).unwrap()[..50]),
            frame(LAST | CONTINUE, &deflate(&vec![b' '; 100_000]).unwrap()[50..]),
        ].concat(),
        ProtocolError::TooBig
    )]
    #[case::already_large(frame(LAST | COMPRESSED | TEXT, &[0; 1001]), ProtocolError::TooBig)]
    fn a_broken_rule_is_an_error(#[case] bytes: Vec<u8>, #[case] error: ProtocolError) {
        assert_eq!(events(&mut assembler(1000), &bytes, &[usize::MAX]), Err(error));
    }

    #[test]
    fn one_that_is_large_on_the_wire_waits_for_a_permit() {
        let bytes = frame(LAST | COMPRESSED | BINARY, &[0; 5000]);
        assert_eq!(assembler(10_000).feed(&mut &bytes[..]), Ok(Some(Event::Large(5000))));
    }
}
