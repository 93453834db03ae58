//! Opens a WebSocket from the bytes of its request, without the HTTP library.
//!
//! This is the way of every client that connects properly, and only that: the request is whole, it is the first one of
//! its connection, and the answer is 101. What this module does not accept it leaves untouched, and the HTTP library
//! gets the same bytes: refusals, unusual requests and malformed ones are answered in one place. So it may be stricter
//! than HTTP asks, and must not be laxer: the same functions judge here and there.

use std::{fmt, net::IpAddr, sync::Arc};

use axum::{
    extract::Query,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
        header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING},
    },
};
use bytes::Bytes;
use futures_util::FutureExt;
use httparse::{EMPTY_HEADER, Status};
use tokio::time::Instant;
use wirepost_core::frames::SUBPROTOCOL;

use super::{Admitted, BARE_PATHS, PATH, PREFIX, Params, Permits, handshake::Offer, offered_token};
use crate::{
    compression::Compression,
    http::{log, state::State},
    socket::{
        session::Session,
        wire::{Io, Wire},
        write_progress::WriteProgress,
    },
};

/// Header fields of a request at most; one with more is left to the HTTP library.
const FIELDS: usize = 64;
/// Fields that a proper upgrade does not have, and that change what follows the header.
const OF_A_BODY: [HeaderName; 3] = [CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT];

/// The bytes of a connection so far.
#[derive(Debug)]
pub enum Head {
    /// The request's header is not complete.
    Partial,
    /// Nothing for this module.
    Other,
    /// A request for a socket.
    Socket(Request),
}

/// A request for a socket, as far as its form goes.
pub struct Request {
    token: String,
    params: Params,
    headers: HeaderMap,
    /// Of the header, in bytes.
    length: usize,
}

impl Head {
    /// Reads a request's header.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut fields = [EMPTY_HEADER; FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(Status::Complete(length)) => Request::of(&request, length).map_or(Self::Other, Self::Socket),
            Ok(Status::Partial) => Self::Partial,
            Err(_) => Self::Other,
        }
    }
}

impl Request {
    /// The ticket.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The cursor of the query.
    pub fn cursor(&self) -> Option<&str> {
        self.params.cursor.as_deref()
    }

    /// The fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Bytes of the header; what is behind it is not part of the request.
    pub fn length(&self) -> usize {
        self.length
    }

    fn of(request: &httparse::Request<'_, '_>, length: usize) -> Option<Self> {
        let (Some("GET"), Some(1), Some(target)) = (request.method, request.version, request.path) else { return None };
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let token = if BARE_PATHS.contains(&path) { None } else { Some(path.strip_prefix(PREFIX)?) };
        // As in every ticket; a path with other characters may have to be decoded.
        if token.is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))) {
            return None;
        }
        let params = if path.len() == target.len() {
            Params::default()
        } else {
            Query::try_from_uri(&target.parse::<Uri>().ok()?).ok()?.0
        };
        let mut headers = HeaderMap::with_capacity(request.headers.len());
        for field in &*request.headers {
            let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
        }
        if OF_A_BODY.iter().any(|name| headers.contains_key(name)) {
            return None;
        }
        let token = token.map(str::to_owned).or_else(|| offered_token(&headers))?;
        Some(Self { token, params, headers, length })
    }
}

/// Without its ticket, which is a secret.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Opens sockets; cheap to clone.
#[derive(Clone)]
pub struct Direct(Arc<State>);

impl Direct {
    /// For the businesses of this state.
    pub fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// Opens a socket on a connection of `peer`. `None`: the answer is not 101, or not to be given here; nothing has changed.
    pub fn open(&self, request: &Request, peer: IpAddr, written: WriteProgress) -> Option<Opening> {
        let (Self(state), started) = (self, Instant::now());
        let mut offer = Offer::of(&Method::GET, Version::HTTP_11, &request.headers, SUBPROTOCOL).ok()?;
        let admitted = Admitted::by(state, &request.token, &request.headers).ok()?;
        let permits = admitted.permits(state, state.addresses.client(peer, &request.headers)).ok()?;
        // Last what is charged: it is not charged for an attempt that is left to the HTTP library.
        admitted.charge(state).ok()?;
        admitted.spend(state).ok()?;
        let compression =
            if admitted.may_compress(state) { offer.compress(&request.headers) } else { Compression::default() };
        let (limit, control) = (admitted.largest_message(), offer.protocol().is_some());
        let session = admitted.session(state, &permits, &request.params, control, compression, written);
        log::line(&Method::GET, PATH, StatusCode::SWITCHING_PROTOCOLS, None, started);
        let state = Arc::clone(state);
        Some(Opening { state, session, permits, limit, answer: offer.into_bytes(), request: request.length })
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").finish_non_exhaustive()
    }
}

/// A socket that opens: everything but its connection.
pub struct Opening {
    state: Arc<State>,
    session: Session,
    permits: Permits,
    /// Of a message, in bytes.
    limit: usize,
    answer: Bytes,
    /// Bytes of the request.
    request: usize,
}

impl Opening {
    /// Opens it on its connection, of which `read` has been read: the request and what came behind it. The answer and
    /// the first frames go into one write.
    pub fn begin(self, io: impl Io + 'static, read: &[u8]) {
        let Self { state, session, permits, limit, answer, request } = self;
        let wire = Wire::new(io, limit, session.compression).answering(answer, &read[request..]);
        // A combinator: an `async` block would store the session twice.
        state.connections.contained("connection", session.run(wire).map(move |()| drop(permits)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const GOOD: &str =
        "GET /socket/abc-_9?cursor=pay.0.1.2 HTTP/1.1\r\nhost: edge\r\nConnection: keep-alive, Upgrade\r\n\r\n";

    fn socket(head: &str) -> Option<Request> {
        match Head::parse(head.as_bytes()) {
            Head::Socket(request) => Some(request),
            Head::Partial | Head::Other => None,
        }
    }

    #[test]
    fn a_request_for_a_socket_is_read_with_its_token_cursor_and_fields() {
        let behind = format!("{GOOD}\u{1}frame");
        let request = socket(&behind).unwrap();
        assert_eq!((request.token.as_str(), request.length), ("abc-_9", GOOD.len()));
        assert!(!format!("{request:?}").contains("abc-_9"), "it is a secret");
        assert_eq!(request.params.cursor.as_deref(), Some("pay.0.1.2"));
        assert_eq!(request.headers["connection"], "keep-alive, Upgrade");
        assert_eq!(socket(&GOOD.replace("?cursor=pay.0.1.2", "")).unwrap().params.cursor, None);
        assert_eq!(socket(&GOOD.replace("pay.0.1.2", "a%2Fb+c")).unwrap().params.cursor.as_deref(), Some("a/b c"));
    }

    #[test]
    fn a_token_may_be_offered_as_a_subprotocol_instead() {
        for path in ["/socket", "/socket/"] {
            let head = GOOD.replace("/socket/abc-_9", path).replace(
                "host: edge",
                "host: edge\r\nsec-websocket-protocol: wirepost.v1\r\nSec-WebSocket-Protocol: a, wirepost.token.abc-_9",
            );
            let request = socket(&head).unwrap();
            assert_eq!((request.token.as_str(), request.params.cursor.as_deref()), ("abc-_9", Some("pay.0.1.2")));
        }
    }

    #[rstest]
    #[case::another_method("GET", "POST")]
    #[case::an_older_version("HTTP/1.1", "HTTP/1.0")]
    #[case::another_path("/socket/", "/sockets/")]
    #[case::no_token("abc-_9", "")]
    #[case::a_longer_path("abc-_9", "abc/more")]
    #[case::an_encoded_token("abc-_9", "abc%2d")]
    #[case::the_whole_address("/socket", "http://edge/socket")]
    #[case::two_cursors("cursor=pay.0.1.2", "cursor=a&cursor=b")]
    #[case::a_body("host: edge", "content-length: 5")]
    #[case::a_body_of_chunks("host: edge", "Transfer-Encoding: chunked")]
    #[case::an_expectation("host: edge", "expect: 100-continue")]
    #[case::no_field("host: edge", "host edge")]
    #[case::a_folded_field("host: edge", "host:\r\n edge")]
    #[case::a_space_before_the_colon("host: edge", "host : edge")]
    fn anything_else_is_left_to_the_http_library(#[case] part: &str, #[case] instead: &str) {
        assert!(matches!(Head::parse(GOOD.replacen(part, instead, 1).as_bytes()), Head::Other));
    }

    #[test]
    fn more_fields_than_any_client_sends_are_left_to_the_http_library() {
        let with = |fields: usize| GOOD.replace("host: edge\r\n", &"a: b\r\n".repeat(fields));
        assert!(socket(&with(FIELDS - 1)).is_some());
        assert!(matches!(Head::parse(with(FIELDS).as_bytes()), Head::Other));
    }

    proptest! {
        #[test]
        fn a_part_of_a_request_is_partial(length in 0..GOOD.len()) {
            prop_assert!(matches!(Head::parse(&GOOD.as_bytes()[..length]), Head::Partial));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, at in 0..GOOD.len()) {
            let _ = Head::parse(&bytes);
            let mut changed = GOOD.as_bytes().to_vec();
            changed.splice(at..(at + bytes.len()).min(GOOD.len()), bytes);
            let _ = Head::parse(&changed);
        }
    }
}
