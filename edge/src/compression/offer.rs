//! What a client offers in `Sec-WebSocket-Extensions`, and what is accepted (RFC 7692, sections 5.1 and 7.1).

use axum::http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};

/// The extension.
const NAME: &str = "permessage-deflate";
/// The largest window, as a power of two; also the one that applies without a parameter.
const LARGEST_WINDOW: u8 = 15;

/// Whether and how a connection compresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compression {
    /// The client's window as a power of two; 0: it does not compress.
    window_bits: u8,
}

impl Compression {
    /// Whether it was negotiated.
    pub fn is_on(self) -> bool {
        self.window_bits > 0
    }

    /// Whether a message of this size may be sent compressed. A message that is not larger than the client's window
    /// never refers to anything outside of it, so all receivers can share one that was compressed with the largest window.
    pub fn takes(self, bytes: usize) -> bool {
        match self.window_bits {
            0 => false,
            LARGEST_WINDOW => true,
            bits => bytes <= 1 << bits,
        }
    }
}

/// The first offer that can be accepted, and the answer to it.
///
/// An offer that is malformed or has an unknown parameter is declined, and the connection goes on without compression.
/// Where compression is off the header is ignored as well, so no client depends on what an edge can do.
pub fn accept(headers: &HeaderMap) -> Option<(Compression, HeaderValue)> {
    let lines = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().filter_map(|line| line.to_str().ok());
    // A quoted value must be a token (section 5.1), so quotes contain no separator.
    let Offer { window } = lines.flat_map(|line| line.split(',')).find_map(Offer::read)?;
    let answer = format!("{NAME}; server_no_context_takeover; client_no_context_takeover");
    // A window that the client asked for must be in the answer, and only then may it be.
    let answer = window.map_or(answer.clone(), |bits| format!("{answer}; server_max_window_bits={bits}"));
    let answer = HeaderValue::try_from(answer).ok()?;
    Some((Compression { window_bits: window.unwrap_or(LARGEST_WINDOW) }, answer))
}

/// An offer that can be accepted.
struct Offer {
    /// The window that it asks the server to use, if any.
    window: Option<u8>,
}

impl Offer {
    /// `None`: another extension, or it can't be accepted.
    fn read(offer: &str) -> Option<Self> {
        let mut parts = offer.split(';').map(|part| part.trim_matches([' ', '\t']));
        if !parts.next()?.eq_ignore_ascii_case(NAME) {
            return None;
        }
        let mut window = None;
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim_end(), Some(value.trim_start())),
                None => (part, None),
            };
            let name = name.to_ascii_lowercase();
            if seen.contains(&name) {
                return None;
            }
            match (name.as_str(), value) {
                ("server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits", None) => {}
                // Any value is fine: we read with a window of 15.
                ("client_max_window_bits", Some(value)) => _ = bits(value)?,
                ("server_max_window_bits", Some(value)) => window = Some(bits(value)?),
                _ => return None,
            }
            seen.push(name);
        }
        Some(Self { window })
    }
}

/// 8 to 15, without leading zeros.
fn bits(value: &str) -> Option<u8> {
    let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    (8..=LARGEST_WINDOW).find(|bits| bits.to_string() == value)
}
