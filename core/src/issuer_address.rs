//! Which addresses keys of issuers may be fetched from. A business team writes them and the edges ask them, so without these rules a
//! declaration would let its author reach what only the edges reach: the cloud's metadata, Services of the cluster, the edge itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// An address that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerAddress {
    /// The address.
    pub url: Url,
    /// The platform team lists its host: plain http is allowed, and so is any IP address. Otherwise its name must resolve to public ones.
    pub trusted: bool,
}

/// Why an address may not be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressDefect {
    /// Not an address.
    #[error("it is not an http(s) address with a host")]
    Malformed,
    /// A user or password in it would be sent along and stand in logs.
    #[error("it contains a user or password")]
    Credentials,
    /// Not encrypted.
    #[error("it is not https, and the platform team does not list its host as a trusted issuer")]
    Insecure,
    /// Inside the cluster or the company.
    #[error("its host is not public, and the platform team does not list it as a trusted issuer")]
    NotPublic,
}

/// The address of a key set or of an issuer. `trusted`: hosts as `name` (with the scheme's own port) or `name:port`.
///
/// # Errors
/// See [`AddressDefect`].
pub fn check(address: &str, trusted: &[String]) -> Result<IssuerAddress, AddressDefect> {
    let url = Url::parse(address).map_err(|_| AddressDefect::Malformed)?;
    let host = url.host().filter(|_| matches!(url.scheme(), "http" | "https")).ok_or(AddressDefect::Malformed)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(AddressDefect::Credentials);
    }
    if trusted.iter().any(|entry| names(entry, &url)) {
        return Ok(IssuerAddress { url, trusted: true });
    }
    if url.scheme() != "https" {
        return Err(AddressDefect::Insecure);
    }
    let public = match host {
        Host::Domain(name) => is_public_name(name),
        Host::Ipv4(ip) => is_public(ip.into()),
        Host::Ipv6(ip) => is_public(ip.into()),
    };
    if public { Ok(IssuerAddress { url, trusted: false }) } else { Err(AddressDefect::NotPublic) }
}

/// Is it a host, or a host with its port, as [`check`] takes it for trusted?
pub fn is_trusted_entry(entry: &str) -> bool {
    Url::parse(&format!("https://{entry}")).is_ok_and(|url| {
        url.host_str().is_some() && names(entry, &url) && url.path() == "/" && !entry.contains(['/', '@', '*'])
    })
}

/// An address as logs and conditions show it: without user, password and query.
pub fn shown(address: &str) -> String {
    let Some(mut url) = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https")) else {
        return "an address that is not http(s)".to_owned();
    };
    // An address that has no place for them fails, and has none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.into()
}

/// The entry that makes the host of this address a trusted one.
pub fn trusted_entry(address: &str) -> Option<String> {
    let url = Url::parse(address).ok()?;
    Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
}

fn names(entry: &str, url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    match (entry.strip_prefix(host), url.port()) {
        (Some(""), None) => true,
        (Some(rest), _) => rest.strip_prefix(':').and_then(|port| port.parse().ok()) == url.port_or_known_default(),
        (None, _) => false,
    }
}

/// Names that only resolve inside a cluster, a company or this machine (RFC 6761, RFC 6762, ICANN's `internal`). What other names resolve to
/// is checked when they are asked.
fn is_public_name(name: &str) -> bool {
    const PRIVATE: [&str; 9] = ["localhost", "local", "internal", "svc", "cluster", "home", "lan", "intranet", "corp"];
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    name.contains('.') && !PRIVATE.contains(&last)
}

/// Can this address belong to a host on the internet? (IANA's registries of special-purpose addresses.)
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b); // RFC 6598: carriers, and pods of some clouds
    let protocols = a == 192 && b == 0 && c == 0;
    let relays = a == 192 && b == 88 && c == 99;
    let benchmarks = a == 198 && (b == 18 || b == 19);
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || shared
        || protocols
        || relays
        || benchmarks)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    // Addresses that carry one of version 4 lead to that one: mapped, NAT64 (RFC 6052), 6to4 (RFC 3056).
    let parts = ip.segments();
    let v4 = |at: usize| Ipv4Addr::from((u32::from(parts[at]) << 16) | u32::from(parts[at + 1]));
    if matches!(parts[..6], [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0]) {
        return is_public_v4(v4(6));
    }
    let [first, second, ..] = parts;
    if first == 0x2002 {
        return is_public_v4(v4(1));
    }
    // Global unicast is 2000::/3; of it Teredo, protocols and documentation are not hosts.
    let documentation = (first == 0x2001 && second == 0xdb8) || (first == 0x3fff && second < 0x1000);
    first & 0xe000 == 0x2000 && !(first == 0x2001 && second < 0x200) && !documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_to_public_hosts_may_be_asked() {
        for (address, expected) in [
            ("https://id.example/keys?x=1", Ok(())),
            ("https://ID.Example:8443", Ok(())),
            ("https://8.8.8.8/keys", Ok(())),
            ("https://[2606:4700::1111]/", Ok(())),
            ("http://id.example/keys", Err(AddressDefect::Insecure)),
            ("ftp://id.example/keys", Err(AddressDefect::Malformed)),
            ("file:///etc/passwd", Err(AddressDefect::Malformed)),
            ("id.example", Err(AddressDefect::Malformed)),
            ("https://user@id.example/", Err(AddressDefect::Credentials)),
            ("https://:secret@id.example/", Err(AddressDefect::Credentials)),
            ("https://localhost/keys", Err(AddressDefect::NotPublic)),
            ("https://localhost./keys", Err(AddressDefect::NotPublic)),
            ("https://keycloak", Err(AddressDefect::NotPublic)),
            ("https://keycloak.idp.svc/keys", Err(AddressDefect::NotPublic)),
            ("https://keycloak.idp.svc.cluster.local/keys", Err(AddressDefect::NotPublic)),
            ("https://metadata.google.internal/", Err(AddressDefect::NotPublic)),
            ("https://127.0.0.1/", Err(AddressDefect::NotPublic)),
            ("https://169.254.169.254/latest/meta-data", Err(AddressDefect::NotPublic)),
            ("https://10.0.0.1:6443/", Err(AddressDefect::NotPublic)),
            // As browsers and libraries read numbers in an address.
            ("https://2130706433/", Err(AddressDefect::NotPublic)),
            ("https://0x7f.1/", Err(AddressDefect::NotPublic)),
            ("https://[::1]/", Err(AddressDefect::NotPublic)),
            ("https://[::ffff:10.0.0.1]/", Err(AddressDefect::NotPublic)),
        ] {
            assert_eq!(check(address, &[]).map(|_| ()), expected, "{address}");
        }
    }

    #[test]
    fn a_trusted_host_may_be_anywhere_but_only_at_its_port() {
        let trusted: Vec<String> = ["keycloak.idp.svc:8080", "localhost", "10.1.2.3"].map(str::to_owned).into();
        for (address, expected) in [
            ("http://keycloak.idp.svc:8080/realms/x", Ok(true)),
            ("https://localhost/keys", Ok(true)),
            ("http://localhost:80/keys", Ok(true)),
            ("https://10.1.2.3/keys", Ok(true)),
            ("https://id.example/keys", Ok(false)),
            ("http://keycloak.idp.svc/realms/x", Err(AddressDefect::Insecure)),
            ("http://localhost:9090/metrics", Err(AddressDefect::Insecure)),
            ("https://localhost:9090/metrics", Err(AddressDefect::NotPublic)),
            ("https://evil.localhost/keys", Err(AddressDefect::NotPublic)),
            ("http://user@localhost/keys", Err(AddressDefect::Credentials)),
        ] {
            assert_eq!(check(address, &trusted).map(|address| address.trusted), expected, "{address}");
        }
        for (entry, good) in [
            ("keycloak.idp.svc:8080", true),
            ("localhost", true),
            ("10.1.2.3:8443", true),
            ("https://id.example", false),
            ("id.example/keys", false),
            ("user@id.example", false),
            ("id.example:", false),
            ("id.example:http", false),
            ("", false),
            ("*", false),
        ] {
            assert_eq!(is_trusted_entry(entry), good, "{entry:?}");
        }
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        assert_eq!(shown("https://user:secret@id.example/keys?key=secret"), "https://id.example/keys");
        assert!(!shown("user:secret@id.example").contains("secret"));
        assert!(!shown("//user:secret@id.example").contains("secret"));
    }

    #[test]
    fn special_addresses_are_not_public() {
        for ip in [
            "0.0.0.0",
            "10.9.8.7",
            "100.64.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:a00:1::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in
            ["1.1.1.1", "100.63.0.1", "172.32.0.1", "64:ff9b::808:808", "2002:808:808::1", "2606:4700::1111", "2a00::1"]
        {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }
}
