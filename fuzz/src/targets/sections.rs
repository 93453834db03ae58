//! Any bytes as a message of AMQP 1.0: its parts are parts of it, and reading takes time and memory in proportion.

use bytes::Bytes;
use wirepost_stream::{BodyKind, Sections, Value, described, elements};

use crate::memory::{Bound, bounded};

pub(crate) fn run(input: &[u8]) {
    let message = Bytes::copy_from_slice(input);
    // A body of several sections is joined: it may be copied a few times, not once for each section.
    let parsed = bounded(Bound { peak: 4, sum: 8, base: 4 << 10 }, input, || Sections::parse(&message));
    let _ = Value::decode(input);
    assert!(elements(input).count() <= input.len());
    if let Some((_, value, rest)) = described(input) {
        assert!(value.len() + rest.len() <= input.len());
    }
    let Ok(sections) = parsed else { return };
    assert!(sections.body().len() <= input.len());
    assert!(sections.body_kind() != BodyKind::None || sections.body().is_empty());
    let _ = (sections.message_id(), sections.correlation_id(), sections.content_type(), sections.creation_time());
    for (name, value) in sections.application_properties() {
        if let Some(name) = name.as_str() {
            let found = sections.application_property(name);
            assert!(found.is_some(), "{name}: {value:?} is listed");
        }
    }
    assert!(sections.annotations().count() <= input.len());
}
