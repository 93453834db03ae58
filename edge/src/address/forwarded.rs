//! What proxies say about the client in a request's header.
//!
//! Only one header is read, the one that the proxies are set to write: most proxies write one of the two and pass the
//! other one on as the client sent it.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header::FORWARDED};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The header that trusted proxies set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`: addresses, separated by commas.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl ForwardedHeader {
    /// The addresses in it from the last one to the first. `None`: one that can't be read, so that nothing in front of it
    /// can be believed.
    pub(super) fn addresses(self, headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
        let name = match self {
            Self::XForwardedFor => X_FORWARDED_FOR,
            Self::Forwarded => FORWARDED,
        };
        let lines: Vec<_> = headers.get_all(name).iter().collect();
        lines.into_iter().rev().flat_map(move |line| {
            let text = line.to_str().unwrap_or("unreadable");
            text.rsplit(',').map(move |element| match self {
                Self::XForwardedFor => address(element.trim()),
                Self::Forwarded => address(node(element)?),
            })
        })
    }
}

/// The `for` of one element of `Forwarded`.
fn node(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| value.trim_matches('"'))
    })
}

/// An address, alone or with a port; an IPv6 address with or without brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).or_else(bare)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn forwarded(line: &str) -> Vec<Option<String>> {
        let mut headers = HeaderMap::new();
        headers.append(FORWARDED, HeaderValue::from_str(line).unwrap());
        ForwardedHeader::Forwarded.addresses(&headers).map(|said| said.map(|address| address.to_string())).collect()
    }

    #[test]
    fn forwarded_names_the_client_of_each_proxy() {
        let line = r#"for=192.0.2.43;proto=https, by=10.0.0.1;For="[2001:db8::17]:4711", for="192.0.2.7:80""#;
        let said = ["192.0.2.7", "2001:db8::17", "192.0.2.43"].map(|address| Some(address.to_owned()));
        assert_eq!(forwarded(line), said);
        assert_eq!(forwarded("for=_hidden"), [None]);
        assert_eq!(forwarded("proto=https"), [None]);
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(bytes: Vec<u8>, forwarded: bool) {
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
            let mut headers = HeaderMap::new();
            headers.append(if forwarded { FORWARDED } else { X_FORWARDED_FOR }, value);
            let header = if forwarded { ForwardedHeader::Forwarded } else { ForwardedHeader::XForwardedFor };
            let _ = header.addresses(&headers).count();
        }
    }
}
