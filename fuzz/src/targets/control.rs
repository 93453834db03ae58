//! What a client sends as a control frame: the envelope's reader, which decides that it is one, and the frame's reader see the same
//! operation.

use wirepost_core::{
    Envelope,
    frames::{ClientFrame, MAX_RECEIPTS},
};
use wirepost_edge::socket::receive;

pub(crate) fn run(input: &[u8]) {
    let Ok(envelope) = Envelope::parse(input) else { return };
    let text = std::str::from_utf8(wirepost_core::envelope::unmarked(input)).expect("an envelope is UTF-8");
    let Ok(frame) = serde_json::from_str::<ClientFrame>(text) else { return };
    let op = match &frame {
        ClientFrame::Refresh { .. } => "refresh",
        ClientFrame::Received { ids } => {
            assert!(receive::receipt(ids).is_err() || (1..=MAX_RECEIPTS).contains(&ids.len()));
            "received"
        }
        ClientFrame::Ping => "ping",
    };
    assert_eq!(envelope.op.as_deref(), Some(op), "two readers of one frame");
}
