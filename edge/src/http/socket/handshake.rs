//! The opening handshake of a WebSocket (RFC 6455, section 4.2). Header fields are read by RFC 9110: a list may be in
//! one line or in several, in any order and in any case.

use std::future::Future;

use axum::{
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
        header::{
            CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
            SEC_WEBSOCKET_VERSION, UPGRADE,
        },
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use hyper::upgrade::{OnUpgrade, Upgraded};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use wirepost_runtime::tasks::Tasks;

use crate::{
    compression::{self, Compression},
    http::answer::{Code, Refusal},
};

/// The supported version.
const VERSION: &str = "13";

/// What is offered in the header of a valid request for a WebSocket, and the answer to it.
#[derive(Debug)]
pub struct Offer {
    accept: HeaderValue,
    protocol: Option<&'static str>,
    extensions: Option<HeaderValue>,
}

impl Offer {
    /// Checks a request. `protocol` is the subprotocol that is selected if it is offered.
    ///
    /// # Errors
    /// The answer if no WebSocket is requested, or one that is not supported.
    pub fn of(method: &Method, version: Version, headers: &HeaderMap, protocol: &'static str) -> Result<Self, Refusal> {
        if method != Method::GET
            || version != Version::HTTP_11
            || !lists(headers, CONNECTION, "upgrade")
            || !lists(headers, UPGRADE, "websocket")
        {
            let description = "connect here with a WebSocket client: a GET by HTTP/1.1 with Connection: Upgrade and Upgrade: websocket";
            return Err(Refusal::new(Code::UpgradeRequired, description));
        }
        if headers.get_all(SEC_WEBSOCKET_VERSION).iter().all(|version| version != VERSION) {
            let description = "this edge speaks version 13 of the WebSocket protocol; say so in Sec-WebSocket-Version";
            return Err(Refusal::new(Code::UpgradeRequired, description));
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty());
        let accept = key.and_then(|key| HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok());
        let Some(accept) = accept else {
            return Err(Refusal::new(Code::BadRequest, "Sec-WebSocket-Key is missing"));
        };
        let protocol = lists(headers, SEC_WEBSOCKET_PROTOCOL, protocol).then_some(protocol);
        Ok(Self { accept, protocol, extensions: None })
    }

    /// The subprotocol, if it was offered.
    pub fn protocol(&self) -> Option<&'static str> {
        self.protocol
    }

    /// Accepts compression, if the request (its headers) offers it in a way that can be accepted.
    pub fn compress(&mut self, headers: &HeaderMap) -> Compression {
        let Some((compression, answer)) = compression::accept(headers) else { return Compression::default() };
        self.extensions = Some(answer);
        compression
    }

    /// The header fields of the answer 101.
    fn fields(self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let Self { accept, protocol, extensions } = self;
        [
            Some((CONNECTION, HeaderValue::from_static("upgrade"))),
            Some((UPGRADE, HeaderValue::from_static("websocket"))),
            Some((SEC_WEBSOCKET_ACCEPT, accept)),
            protocol.map(|protocol| (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol))),
            extensions.map(|extensions| (SEC_WEBSOCKET_EXTENSIONS, extensions)),
        ]
        .into_iter()
        .flatten()
    }

    /// The answer 101, as it is written.
    pub fn into_bytes(self) -> Bytes {
        let mut answer = BytesMut::with_capacity(256);
        answer.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
        for (name, value) in self.fields() {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                answer.extend_from_slice(part);
            }
        }
        answer.extend_from_slice(b"\r\n");
        answer.freeze()
    }
}

/// A valid request for a WebSocket, with the connection that it came on.
#[derive(Debug)]
pub struct Handshake {
    offer: Offer,
    upgrade: OnUpgrade,
}

impl Handshake {
    /// Checks a request. `protocol` is the subprotocol that is selected if it is offered.
    ///
    /// # Errors
    /// The answer if no WebSocket is requested, or one that is not supported.
    pub fn of(request: &mut Parts, protocol: &'static str) -> Result<Self, Refusal> {
        let offer = Offer::of(&request.method, request.version, &request.headers, protocol)?;
        let Some(upgrade) = request.extensions.remove::<OnUpgrade>() else {
            return Err(Refusal::new(Code::UpgradeRequired, "this connection can't become a WebSocket"));
        };
        Ok(Self { offer, upgrade })
    }

    /// The subprotocol, if it was offered.
    pub fn protocol(&self) -> Option<&'static str> {
        self.offer.protocol()
    }

    /// Accepts compression, if the request (its headers) offers it in a way that can be accepted.
    pub fn compress(&mut self, headers: &HeaderMap) -> Compression {
        self.offer.compress(headers)
    }

    /// The answer; once it is sent, `run` gets the connection, as a task of `tasks`.
    pub fn complete<F>(self, tasks: &Tasks, run: impl FnOnce(Upgraded) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let Self { offer, upgrade } = self;
        tasks.contained("connection", async move {
            match upgrade.await {
                Ok(upgraded) => run(upgraded).await,
                Err(error) => tracing::debug!(%error, "the connection ended during its upgrade"),
            }
        });
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        response.headers_mut().extend(offer.fields());
        response
    }
}

/// The members of a header that is a list (RFC 9110, section 5.6.1).
pub(super) fn members(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|member| member.trim_matches([' ', '\t']))
}

fn lists(headers: &HeaderMap, name: HeaderName, member: &str) -> bool {
    members(headers, name).any(|listed| listed.eq_ignore_ascii_case(member))
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use rstest::rstest;

    use super::*;

    fn judge(headers: &[(&str, &str)]) -> Result<Handshake, Refusal> {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Handshake::of(&mut request.into_parts().0, "wirepost.v1")
    }

    const VERSION_AND_KEY: [(&str, &str); 2] =
        [("sec-websocket-version", "13"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];

    /// Everything except the connection itself, which a test does not have.
    fn is_handshake(headers: &[(&str, &str)]) -> bool {
        let refusal = judge(&[headers, &VERSION_AND_KEY].concat()).unwrap_err();
        refusal.description.contains("this connection can't become")
    }

    #[rstest]
    #[case::as_usual(&[("connection", "Upgrade"), ("upgrade", "websocket")], true)]
    #[case::lists(&[("connection", "keep-alive, upgrade"), ("upgrade", "foo/2,\tWebSocket")], true)]
    #[case::lines(&[("connection", "keep-alive"), ("connection", "upgrade"), ("upgrade", "h2c"), ("upgrade", "websocket")], true)]
    #[case::empty_members(&[("connection", ",, upgrade ,"), ("upgrade", ", websocket")], true)]
    #[case::a_part_of_a_word(&[("connection", "upgrades"), ("upgrade", "websocket")], false)]
    #[case::another_version_of_the_name(&[("connection", "upgrade"), ("upgrade", "websocket2")], false)]
    #[case::no_connection(&[("upgrade", "websocket")], false)]
    fn header_fields_are_lists(#[case] headers: &[(&str, &str)], #[case] good: bool) {
        assert_eq!(is_handshake(headers), good);
    }

    #[test]
    fn a_key_and_the_version_are_needed() {
        let begin = [("connection", "upgrade"), ("upgrade", "websocket")];
        let refused = |more: &[(&str, &str)]| judge(&[&begin[..], more].concat()).unwrap_err().code;
        assert_eq!(refused(&[("sec-websocket-version", "8"), VERSION_AND_KEY[1]]), Code::UpgradeRequired);
        assert_eq!(refused(&[VERSION_AND_KEY[1]]), Code::UpgradeRequired);
        assert_eq!(refused(&[VERSION_AND_KEY[0]]), Code::BadRequest);
        assert_eq!(refused(&[VERSION_AND_KEY[0], ("sec-websocket-key", "")]), Code::BadRequest);
    }
}
