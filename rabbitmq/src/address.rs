//! An AMQP URI.

use std::{fmt, str::FromStr};

use lapin::uri::{AMQPScheme, AMQPUri};

use crate::Login;

/// Where a node of a RabbitMQ speaks AMQP, which vhost is meant, and the user: `amqp(s)://user:password@host:port/vhost`. `Debug` and `Display` show
/// host, port and vhost only.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(AMQPUri);

/// It is not an AMQP URI. The text contains none of it, since it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an AMQP address: {0}; write amqp://user:password@host:5672/vhost")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        text.trim().parse().map(Self).map_err(AddressError)
    }
}

impl Address {
    /// Host name or IP address.
    pub fn host(&self) -> &str {
        &self.0.authority.host
    }

    /// The AMQP port; both versions of the protocol are spoken on it.
    pub fn port(&self) -> u16 {
        self.0.authority.port
    }

    /// The vhost, not escaped.
    pub fn vhost(&self) -> &str {
        &self.0.vhost
    }

    /// `amqp` or `amqps`.
    pub fn scheme(&self) -> &'static str {
        if self.is_tls() { "amqps" } else { "amqp" }
    }

    /// Whether it is `amqps`.
    pub fn is_tls(&self) -> bool {
        self.0.scheme == AMQPScheme::AMQPS
    }

    /// User and password.
    pub fn login(&self) -> Login {
        let user = &self.0.authority.userinfo;
        Login::new(&user.username, user.password.as_str())
    }

    /// The same with another user.
    #[must_use]
    pub fn with_login(mut self, login: Login) -> Self {
        let Login { user, password } = login;
        self.0.authority.userinfo.username = user;
        password.expose().clone_into(&mut self.0.authority.userinfo.password);
        self
    }

    /// The same, reached at another host and port.
    #[must_use]
    pub fn at(mut self, host: &str, port: u16) -> Self {
        host.clone_into(&mut self.0.authority.host);
        self.0.authority.port = port;
        self
    }

    /// `host:port`.
    pub fn host_and_port(&self) -> String {
        format!("{}:{}", self.host(), self.port())
    }

    pub(crate) fn uri(&self) -> AMQPUri {
        self.0.clone()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}, vhost {}", self.host(), self.port(), self.vhost())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_taken_apart_and_its_password_is_not_shown() {
        let address: Address = "amqps://me:p%40ss@rabbit/%2Fdev".parse().unwrap();
        assert_eq!((address.host(), address.port(), address.vhost()), ("rabbit", 5671, "/dev"));
        assert_eq!(address.login(), Login::new("me", "p@ss"));
        assert!(address.is_tls());
        assert_eq!(format!("{address} {address:?}"), "rabbit:5671, vhost /dev rabbit:5671, vhost /dev");
        let elsewhere = address.at("::1", 15).with_login(Login::new("you", "x"));
        assert_eq!((elsewhere.host_and_port().as_str(), elsewhere.login().user.as_str()), ("::1:15", "you"));
    }

    #[test]
    fn what_is_not_a_uri_is_refused_without_its_password() {
        for text in ["", "amqp//me:secret@h", "http://me:secret@h", "amqp://me:secret@h:x"] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }
}
