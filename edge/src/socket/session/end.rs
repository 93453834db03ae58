//! How a connection ends.

use wirepost_core::frames::CloseCode;

/// Of a connection that ended without a close frame (RFC 6455, section 7.1.5).
const ABNORMAL: u16 = 1006;

/// The cause of an end. It decides the close code, the log line and the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With a close frame of ours.
    Close(CloseCode),
    /// The peer sent a close frame with this code; it is answered.
    Answer(u16),
    /// Without a close frame, for this reason.
    Vanished(&'static str),
}

impl End {
    /// The close code.
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Close(code) => code.code(),
            Self::Answer(code) => code,
            Self::Vanished(_) => ABNORMAL,
        }
    }

    /// An explanation.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Close(code) => code.reason(),
            Self::Answer(_) => CloseCode::Normal.reason(),
            Self::Vanished(reason) => reason,
        }
    }

    /// The label in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Close(code) => code.label(),
            Self::Answer(_) => CloseCode::Normal.label(),
            Self::Vanished(_) => "vanished",
        }
    }
}
