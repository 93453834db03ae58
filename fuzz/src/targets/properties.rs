//! The properties of AMQP 0-9-1 messages, of anybody's client: what is set is found, and nothing else changes.

use bytes::Bytes;
use wirepost_amqp::v091::{Properties, Property};

use crate::input::Input;
use crate::memory::{Bound, bounded};

const TEXTS: [Property; 4] = [Property::ContentType, Property::MessageId, Property::Type, Property::AppId];

pub(crate) fn run(input: &[u8]) {
    bounded(Bound { peak: 20, sum: 100, base: 64 << 10 }, input, || changed(input));
}

fn changed(input: &[u8]) {
    let mut input = Input(input);
    let (property, name) = (TEXTS[usize::from(input.byte()) % TEXTS.len()], input.text());
    let text = input.text();
    let before = Properties::from_bytes(Bytes::copy_from_slice(input.0));
    let set = before.with_text(property, text);
    assert_eq!(set.text(property).as_deref(), Some(&text[..text.len().min(255)]));
    let gone = set.without(property);
    assert_eq!(gone.text(property), None);
    for other in TEXTS.into_iter().filter(|other| *other != property) {
        assert_eq!((set.text(other), gone.text(other)), (before.text(other), before.text(other)));
    }
    let Ok(name) = std::str::from_utf8(name) else { return };
    if name.len() > 255 {
        return;
    }
    let more = before.with_more_headers([(name, text)]);
    assert_eq!(more.header(name).as_deref(), Some(text), "the first header of its name");
    assert_eq!(more.text(property), before.text(property));
    assert_eq!(more.without_header(name).header(name), before.header(name));
}
