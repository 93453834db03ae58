//! Where the edges are reached.

use serde_json::{Value, json};

/// The edges' address, taken apart.
pub(super) struct Base<'a> {
    pub secure: bool,
    host: &'a str,
    /// With its first slash; empty without a path.
    path: &'a str,
}

impl<'a> Base<'a> {
    /// Of a base URL such as `https://ws.example` or `wss://example.com/ws`.
    pub(super) fn of(url: &'a str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self { secure: !matches!(scheme, "http" | "ws"), host, path: path.trim_end_matches('/') }
    }

    /// The server of one protocol there.
    pub(super) fn server(&self, protocol: &str) -> Value {
        let mut server = json!({"host": self.host, "protocol": protocol});
        if !self.path.is_empty() {
            server["pathname"] = json!(self.path);
        }
        server
    }

    /// A URL there, by its scheme without and with TLS.
    pub(super) fn url(&self, (plain, secure): (&str, &str), path: &str) -> String {
        format!("{}://{}{}{path}", if self.secure { secure } else { plain }, self.host, self.path)
    }
}
