//! What a broker sends by the stream protocol: frames are the same in any pieces, chunks tell nothing that is not in them.

use bytes::Bytes;
use wirepost_stream::fuzzing::{chunk, frames};

use crate::{
    input::Input,
    memory::{Bound, bounded},
};

pub(crate) fn run(input: &[u8]) {
    let mut rest = Input(input);
    let (version, piece, most) = (u16::from(rest.byte() % 3), usize::from(rest.byte()) + 1, usize::from(rest.number()));
    let bytes = rest.0;
    bounded(Bound { peak: 40, sum: 200, base: 64 << 10 }, input, || {
        assert_eq!(frames(std::iter::once(bytes), most), frames(bytes.chunks(piece), most), "in any pieces");
        let Ok((first, end, entries)) = chunk(version, Bytes::copy_from_slice(bytes)) else { return };
        let mut next = first;
        for (offset, messages, message) in entries {
            assert_eq!(offset, next, "offsets have no holes");
            assert!(message.is_none_or(|message| message.len() <= bytes.len()));
            next = next.saturating_add(messages);
        }
        let _ = end;
    });
}
