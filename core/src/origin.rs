//! Origins of pages and apps, as declared and as an `Origin` header names them. Two are the same if scheme, host and port are; case and a
//! default port make no difference.

/// A parsed origin. Borrowed, since every request with an `Origin` is compared with every declared one.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    /// `scheme://host:port`, with the slash that browsers' address bars add. `None` for anything else, including `null`.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        Self::of(scheme, rest.strip_suffix('/').unwrap_or(rest))
    }

    /// The origin of a page that this scheme and authority (`host:port`) serve.
    pub fn of(scheme: &'a str, authority: &'a str) -> Option<Self> {
        // The colons of an IPv6 address in brackets do not begin a port.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (authority, None),
        };
        let forbidden = |c: char| matches!(c, '/' | '?' | '#' | '@' | '\\') || c.is_whitespace() || c.is_control();
        if scheme.is_empty() || host.contains(forbidden) {
            return None;
        }
        Some(Self { scheme, host, port: port.or_else(|| default_port(scheme)) })
    }

    /// Whether both are the same origin.
    pub fn is(&self, other: &Self) -> bool {
        self.scheme.eq_ignore_ascii_case(other.scheme) && self.is_served_by(other)
    }

    /// Whether host and port are the same, whatever the scheme.
    pub fn is_served_by(&self, other: &Self) -> bool {
        self.host.eq_ignore_ascii_case(other.host) && self.port == other.port
    }

    /// Whether it names a host; `file://` does not.
    pub fn has_host(&self) -> bool {
        !self.host.is_empty()
    }

    /// The scheme, as written.
    pub fn scheme(&self) -> &'a str {
        self.scheme
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    let is = |name: &str| scheme.eq_ignore_ascii_case(name);
    if is("https") || is("wss") {
        Some(443)
    } else if is("http") || is("ws") {
        Some(80)
    } else {
        None
    }
}

/// Whether a declared origin, or `*`, allows this one. `null` stands for pages without an origin (sandboxed frames, some files) and is
/// compared as text.
pub fn allows(declared: &str, origin: &str) -> bool {
    declared == "*"
        || declared == origin
        || Origin::parse(declared).zip(Origin::parse(origin)).is_some_and(|(declared, origin)| declared.is(&origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_its_scheme_host_and_port_however_they_are_written() {
        for (declared, origin, expected) in [
            ("https://shop.example", "https://shop.example", true),
            ("https://shop.example:443", "https://shop.example", true),
            ("https://shop.example", "https://shop.example:443", true),
            ("http://shop.example:80", "http://shop.example", true),
            ("HTTPS://Shop.Example/", "https://shop.example", true),
            ("http://[::1]:80", "http://[::1]", true),
            ("http://[::1]:8080", "http://[::1]", false),
            ("http://[::1]", "http://[::2]", false),
            ("https://shop.example:80", "https://shop.example", false),
            ("https://shop.example:0443", "https://shop.example", true),
            ("https://shop.example", "http://shop.example", false),
            ("https://shop.example", "https://shop.example:8443", false),
            ("https://shop.example", "https://shop.example.evil.example", false),
            ("https://shop.example", "https://evil.example/https://shop.example", false),
            ("https://shop.example", "https://shop.example@evil.example", false),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("tauri://localhost", "capacitor://localhost", false),
            ("safari-web-extension://0A1B", "safari-web-extension://0a1b", true),
            ("app://-", "app://-", true),
            ("file://", "file://", true),
            ("file://", "null", false),
            ("null", "null", true),
            ("*", "null", true),
            ("https://shop.example", "null", false),
            ("https://shop.example", "", false),
        ] {
            assert_eq!(allows(declared, origin), expected, "{declared} and {origin}");
        }
    }
}
