//! The address that clients and services reach the edges by.

use std::{fmt, str::FromStr};

use crate::origin::Origin;

/// `wss://host[:port][/path]`, or the same with `ws`, `https` or `http`: the scheme says whether TLS is used, and each caller gets the form
/// that it needs. Without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    secure: bool,
    /// Host, port and path.
    rest: String,
}

impl PublicUrl {
    /// For WebSockets: `wss://…` or `ws://…`.
    pub fn websocket(&self) -> String {
        self.with(if self.secure { "wss" } else { "ws" })
    }

    /// For HTTP calls: `https://…` or `http://…`.
    pub fn http(&self) -> String {
        self.with(if self.secure { "https" } else { "http" })
    }

    /// The origin of pages that it serves.
    pub fn origin(&self) -> Option<Origin<'_>> {
        let authority = self.rest.split('/').next()?;
        Origin::of(if self.secure { "https" } else { "http" }, authority)
    }

    fn with(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.rest)
    }
}

/// Why no client could connect to an address. The message does not contain the address: it may contain a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicUrlError {
    /// Neither WebSocket nor HTTP.
    Scheme,
    /// A user or password, which browsers refuse in such an address.
    User,
    /// A query or fragment, to which no path can be added.
    Query,
    /// No host, or not a host name.
    Host,
    /// Not a port.
    Port,
    /// A path with characters that need encoding.
    Path,
}

impl std::error::Error for PublicUrlError {}

impl fmt::Display for PublicUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Scheme => "does not begin with wss://, ws://, https:// or http://",
            Self::User => "contains a user name or password",
            Self::Query => "contains a query or fragment (? or #)",
            Self::Host => "names no host that clients can look up",
            Self::Port => "has a port that is not a number from 1 to 65535",
            Self::Path => "has a path with spaces or characters that must be percent-encoded",
        };
        write!(
            f,
            "the public URL {what}; write what clients connect to, such as wss://ws.example.com or wss://example.com:8443/ws"
        )
    }
}

impl FromStr for PublicUrl {
    type Err = PublicUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").ok_or(PublicUrlError::Scheme)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "wss" | "https" => true,
            "ws" | "http" => false,
            _ => return Err(PublicUrlError::Scheme),
        };
        if rest.contains(['?', '#']) {
            return Err(PublicUrlError::Query);
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(PublicUrlError::User);
        }
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an IPv6 address are within brackets.
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        if !is_host(host) {
            return Err(PublicUrlError::Host);
        }
        if port.is_some_and(|port| !is_port(port)) {
            return Err(PublicUrlError::Port);
        }
        let encoded = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/".contains(&b);
        if !path.bytes().all(encoded) {
            return Err(PublicUrlError::Path);
        }
        Ok(Self { secure, rest: rest.trim_end_matches('/').to_owned() })
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
    };
    host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_works_is_taken_in_every_form() {
        for (text, websocket, http) in [
            ("wss://ws.example", "wss://ws.example", "https://ws.example"),
            ("https://ws.example/", "wss://ws.example", "https://ws.example"),
            ("WS://127.0.0.1:8080", "ws://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:8080/a/b/", "ws://[::1]:8080/a/b", "http://[::1]:8080/a/b"),
            ("wss://[::1]", "wss://[::1]", "https://[::1]"),
            ("wss://my_host.", "wss://my_host.", "https://my_host."),
        ] {
            let url: PublicUrl = text.parse().unwrap();
            assert_eq!((url.websocket().as_str(), url.http().as_str()), (websocket, http), "{text}");
        }
    }

    #[test]
    fn its_origin_has_neither_path_nor_a_port_that_the_scheme_means_anyway() {
        for (text, expected) in [
            ("wss://ws.example:443/a/b", "https://ws.example"),
            ("WS://WS.example/a", "http://ws.example:80"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            let url: PublicUrl = text.parse().unwrap();
            assert!(Origin::parse(expected).unwrap().is(&url.origin().unwrap()), "{text}");
        }
    }

    #[test]
    fn an_address_that_can_not_work_is_refused_with_a_sentence() {
        for (text, why) in [
            ("", PublicUrlError::Scheme),
            ("ws.example", PublicUrlError::Scheme),
            ("ftp://x", PublicUrlError::Scheme),
            ("//x", PublicUrlError::Scheme),
            (" wss://x", PublicUrlError::Scheme),
            ("wss:/x", PublicUrlError::Scheme),
            ("wss://", PublicUrlError::Host),
            ("wss:///path", PublicUrlError::Host),
            ("wss://:8080", PublicUrlError::Host),
            ("wss://a..b", PublicUrlError::Host),
            ("wss://*.example", PublicUrlError::Host),
            ("wss://a b", PublicUrlError::Host),
            ("wss://x\n", PublicUrlError::Host),
            ("wss://::1", PublicUrlError::Host),
            ("wss://[x]", PublicUrlError::Host),
            ("wss://ws.例.example", PublicUrlError::Host),
            ("wss://x:", PublicUrlError::Port),
            ("wss://x:0", PublicUrlError::Port),
            ("wss://x:65536", PublicUrlError::Port),
            ("wss://x:+80", PublicUrlError::Port),
            ("wss://x/?a=b", PublicUrlError::Query),
            ("wss://x?a=b", PublicUrlError::Query),
            ("wss://x/#a", PublicUrlError::Query),
            ("wss://u:p@x", PublicUrlError::User),
            ("wss://u@x/y", PublicUrlError::User),
            ("wss://x/a b", PublicUrlError::Path),
        ] {
            assert_eq!(text.parse::<PublicUrl>(), Err(why), "{text}");
        }
        let sentence = PublicUrlError::User.to_string();
        assert!(sentence.contains("user name or password") && sentence.contains("wss://ws.example.com"), "{sentence}");
    }
}
