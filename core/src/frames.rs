//! Control frames of the subprotocol `wirepost.v1`, nack codes and close codes.

use serde::{Deserialize, Serialize};

/// The WebSocket subprotocol that switches control frames on.
pub const SUBPROTOCOL: &str = "wirepost.v1";

/// What a token is offered as that does not stand in the URL: a subprotocol of this name, beside [`SUBPROTOCOL`].
pub const TOKEN_PROTOCOL: &str = "wirepost.token.";

/// A control frame to a client.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum ServerFrame<'a> {
    /// The first frame.
    Welcome {
        /// Identifies this connection in events and logs.
        connection_id: &'a str,
        /// The client's position now; absent while the edge can't know it (broker away): a `position` follows.
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<&'a str>,
        /// Whether nothing is missing since the client's cursor; absent while the edge can't know. Without a cursor it is false, and no gap
        /// follows.
        #[serde(skip_serializing_if = "Option::is_none")]
        resumed: Option<bool>,
        /// Reconnects the client within the session without its backend.
        resume_token: &'a str,
        /// Ms since the epoch.
        session_ends_at: i64,
        /// The limits of this client.
        limits: ClientLimits,
    },
    /// The client's position, for quiet clients.
    Position {
        /// The newest cursor.
        cursor: &'a str,
        /// A new one where the old one would end before the session.
        #[serde(skip_serializing_if = "Option::is_none")]
        resume_token: Option<&'a str>,
    },
    /// The broker confirmed the message.
    Ack {
        /// Id of the message.
        id: &'a str,
    },
    /// The message was not accepted, or its fate is not known.
    Nack {
        /// Id of the message; absent where it could not be read.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        /// Why.
        code: NackCode,
        /// The same for people.
        reason: &'a str,
        /// Whether the same message may pass later.
        retryable: bool,
        /// Whether it may have arrived nevertheless; a repeat must carry the same id.
        may_have_arrived: bool,
        /// How long to wait before a repeat, where known.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// Messages may be missing: refetch state.
    Gap {
        /// Whose messages.
        business: &'a str,
        /// Why.
        reason: GapReason,
    },
    /// The session ends soon.
    Expiring {
        /// Seconds left.
        in_seconds: u64,
    },
    /// The session is extended.
    Refreshed {
        /// Ms since the epoch.
        session_ends_at: i64,
        /// For the new session.
        resume_token: &'a str,
    },
    /// A control frame of the client was rejected; nothing changed.
    Error {
        /// Which operation.
        about: &'a str,
        /// Why.
        reason: &'a str,
        /// Of `received`: the ids that it is about.
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        ids: &'a [String],
        /// Of `received`: whether the same ids may pass later.
        #[serde(skip_serializing_if = "Option::is_none")]
        retryable: Option<bool>,
    },
    /// The business is told, or does not want to be, that the client has these messages.
    Receipt {
        /// Ids of the messages.
        ids: &'a [String],
    },
    /// This edge shuts down.
    Drain {
        /// Reconnect within this time, in ms; it differs for each client.
        reconnect_within_ms: u64,
    },
    /// Answer to `ping`.
    Pong,
}

impl ServerFrame<'_> {
    /// The frame's text.
    pub fn to_text(&self) -> String {
        #[expect(clippy::expect_used)]
        serde_json::to_string(self).expect("strings, numbers and enums always serialize")
    }
}

/// The limits in `welcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientLimits {
    /// Largest message in bytes.
    pub message_bytes: usize,
    /// Sustained rate.
    pub messages_per_second: u32,
    /// Messages at the same moment.
    pub burst: u32,
}

/// A control frame from a client.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum ClientFrame {
    /// Extends the session with a new ticket of the same identity.
    Refresh {
        /// A token from the token call.
        token: String,
    },
    /// Receipt of messages whose route asks for it.
    Received {
        /// 1 to [`MAX_RECEIPTS`] ids, each of 1 to [`crate::envelope::MAX_ID`] bytes.
        ids: Vec<String>,
    },
    /// For browsers, which can't send a ping frame.
    Ping,
}

/// Ids in one `received`.
pub const MAX_RECEIPTS: usize = 256;

/// Why messages may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// The cursor is older than the stream's oldest message.
    Retention,
    /// The cursor belongs to another stream.
    Incarnation,
    /// The client had no cursor, and the edge did not read the pushes yet when it sent `welcome`.
    Unread,
}

impl GapReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Retention, Self::Incarnation, Self::Unread];
}

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NackCode {
    /// Not an envelope.
    InvalidEnvelope,
    /// No declared route has this message type.
    UnknownRoute,
    /// The route is not for this client, or it addresses clients that it may not.
    NotAllowed,
    /// A business that it names does not accept it.
    NotAccepted,
    /// The message had expired before it was sent.
    Expired,
    /// `content` does not match the route's schema.
    SchemaMismatch,
    /// Validating `content` against the route's schema would take too long.
    TooComplex,
    /// The sender claims another identity.
    IdentityMismatch,
    /// Larger than `messageBytes`.
    TooLarge,
    /// More than `messagesPerSecond` and `burst`.
    RateLimited,
    /// The edge is overloaded.
    Overloaded,
    /// The broker is away or blocked.
    BrokerUnavailable,
    /// No confirm came in time.
    Timeout,
}

impl NackCode {
    /// Every code, for closed label sets.
    pub const ALL: [Self; 13] = [
        Self::InvalidEnvelope,
        Self::UnknownRoute,
        Self::NotAllowed,
        Self::NotAccepted,
        Self::Expired,
        Self::SchemaMismatch,
        Self::TooComplex,
        Self::IdentityMismatch,
        Self::TooLarge,
        Self::RateLimited,
        Self::Overloaded,
        Self::BrokerUnavailable,
        Self::Timeout,
    ];

    /// As on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidEnvelope => "invalid_envelope",
            Self::UnknownRoute => "unknown_route",
            Self::NotAllowed => "not_allowed",
            Self::NotAccepted => "not_accepted",
            Self::Expired => "expired",
            Self::SchemaMismatch => "schema_mismatch",
            Self::TooComplex => "too_complex",
            Self::IdentityMismatch => "identity_mismatch",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::BrokerUnavailable => "broker_unavailable",
            Self::Timeout => "timeout",
        }
    }

    /// Whether the same message may pass later.
    pub fn retryable(self) -> bool {
        match self {
            Self::RateLimited | Self::Overloaded | Self::BrokerUnavailable | Self::Timeout => true,
            Self::InvalidEnvelope
            | Self::UnknownRoute
            | Self::NotAllowed
            | Self::Expired
            | Self::SchemaMismatch
            | Self::TooComplex
            | Self::IdentityMismatch
            | Self::TooLarge
            | Self::NotAccepted => false,
        }
    }
}

/// Why the edge ends a connection. The number is the close code (RFC 6455, section 7.4; 3000 and 3003 as registered with IANA, 4xxx ours).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The client closed the connection.
    Normal,
    /// The edge shuts down.
    Drain,
    /// A frame that breaks RFC 6455.
    Protocol,
    /// A binary frame.
    Binary,
    /// Text that is not UTF-8.
    BadUtf8,
    /// A message above the transport's bound.
    TooBig,
    /// The edge is at its connection limit.
    Overloaded,
    /// This edge has no configuration of the business; another edge may have it. Reconnect.
    NotHere,
    /// The session has ended or the token is not valid: get a new token.
    SessionOver,
    /// Refused: the identity was revoked, or pages of this origin may not connect. Reconnect slowly: a declaration can be corrected.
    Revoked,
    /// The client can't keep up: resume by cursor.
    TooSlow,
    /// A newer connection of the same identity replaced this one. Don't reconnect automatically.
    Replaced,
    /// The business was removed. Reconnect slowly: that may have been a mistake.
    BusinessRemoved,
    /// The business changed its delivery (`Durable`, `Transient`), so the source of this connection's pushes is gone. Reconnect.
    DeliveryChanged,
    /// Reading the business's pushes failed at this edge. Reconnect: the cursor shows what is missing.
    Interrupted,
}

impl CloseCode {
    /// Every cause.
    pub const ALL: [Self; 15] = [
        Self::Normal,
        Self::Drain,
        Self::Protocol,
        Self::Binary,
        Self::BadUtf8,
        Self::TooBig,
        Self::Overloaded,
        Self::NotHere,
        Self::SessionOver,
        Self::Revoked,
        Self::TooSlow,
        Self::Replaced,
        Self::BusinessRemoved,
        Self::DeliveryChanged,
        Self::Interrupted,
    ];

    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::Drain | Self::DeliveryChanged | Self::Interrupted => 1012,
            Self::Protocol => 1002,
            Self::Binary => 1003,
            Self::BadUtf8 => 1007,
            Self::TooBig => 1009,
            Self::Overloaded | Self::NotHere => 1013,
            Self::SessionOver => 3000,
            Self::Revoked => 3003,
            Self::TooSlow => 4008,
            Self::Replaced => 4009,
            Self::BusinessRemoved => 4010,
        }
    }

    /// A stable word for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Normal => "client",
            Self::Drain => "drain",
            Self::Protocol => "protocol",
            Self::Binary => "binary",
            Self::BadUtf8 => "bad_utf8",
            Self::TooBig => "too_big",
            Self::Overloaded => "overloaded",
            Self::NotHere => "not_here",
            Self::SessionOver => "session_over",
            Self::Revoked => "refused",
            Self::TooSlow => "too_slow",
            Self::Replaced => "replaced",
            Self::BusinessRemoved => "business_removed",
            Self::DeliveryChanged => "delivery_changed",
            Self::Interrupted => "interrupted",
        }
    }

    /// The reason in the close frame and the log (at most 123 bytes by RFC 6455).
    pub fn reason(self) -> &'static str {
        match self {
            Self::Normal => "closed by the client",
            Self::Drain => "this server goes, reconnect with your cursor",
            Self::Protocol => "protocol error",
            Self::Binary => "binary frames are not accepted, send text",
            Self::BadUtf8 => "text is not valid UTF-8",
            Self::TooBig => "message too big",
            Self::Overloaded => "this server is full, retry later",
            Self::NotHere => "this server does not have this business yet, reconnect",
            Self::SessionOver => "session over, get a new token",
            Self::Revoked => "access refused, come back later",
            Self::TooSlow => "too slow, reconnect with your cursor",
            Self::Replaced => "replaced by a newer connection, do not reconnect",
            Self::BusinessRemoved => "this business is gone, come back later",
            Self::DeliveryChanged => "this business changed how it delivers, reconnect",
            Self::Interrupted => "reading was interrupted, reconnect with your cursor",
        }
    }

    /// Whether what is queued for the client is still written before the close frame: where the client could not get it later.
    pub fn flushes(self) -> bool {
        matches!(self, Self::Drain | Self::DeliveryChanged | Self::Interrupted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_documented_form() {
        let nack = ServerFrame::Nack {
            id: Some("x1"),
            code: NackCode::Timeout,
            reason: "no confirm within 2 s",
            retryable: true,
            may_have_arrived: true,
            retry_after_ms: None,
        };
        assert_eq!(
            nack.to_text(),
            r#"{"op":"nack","id":"x1","code":"timeout","reason":"no confirm within 2 s","retryable":true,"mayHaveArrived":true}"#
        );
        assert_eq!(ServerFrame::Pong.to_text(), r#"{"op":"pong"}"#);
        let error = ServerFrame::Error { about: "refresh", reason: "token expired", ids: &[], retryable: None };
        assert_eq!(error.to_text(), r#"{"op":"error","about":"refresh","reason":"token expired"}"#);
        let receipt = ServerFrame::Receipt { ids: &["p-7".to_owned()] };
        assert_eq!(receipt.to_text(), r#"{"op":"receipt","ids":["p-7"]}"#);
        assert_eq!(serde_json::from_str::<ClientFrame>(r#"{"op":"ping","x":1}"#).unwrap(), ClientFrame::Ping);
    }

    #[test]
    fn every_close_reason_fits_its_frame() {
        for code in CloseCode::ALL {
            assert!(code.reason().len() <= 123);
        }
    }
}
