//! The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): the first bytes of a proxy's connection, in
//! front of TLS, which say whose connection it carries.

use std::{io, net::IpAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 1, with its line end.
const LONGEST_LINE: usize = 107;
/// Of version 2, behind its first 16 bytes: the largest address has 216 bytes, and some proxies add fields of a few
/// hundred.
const MOST_FIELDS: usize = 4096;
/// The first bytes of version 2: signature, version and command, family, length.
const FIXED: usize = 16;

/// Why a connection does not begin as its proxy must begin it.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It ended, or broke.
    #[error("the connection ended in its PROXY header: {0}")]
    Io(#[from] io::Error),
    /// Something else came.
    #[error(
        "the connection of a trusted proxy does not begin with a PROXY header; let the proxy send it, or switch --proxy-protocol off"
    )]
    Malformed,
}

/// Reads the header and nothing behind it. `None`: the proxy's own connection, such as a health check.
///
/// # Errors
/// See [`ProxyError`]: nothing that follows can be understood.
pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, ProxyError> {
    // The shortest header of version 1, `PROXY UNKNOWN\r\n`, has 15 bytes.
    let mut start = [0; SIGNATURE.len()];
    io.read_exact(&mut start).await?;
    if start == *SIGNATURE {
        return version_2(io).await;
    }
    if !start.starts_with(b"PROXY ") {
        return Err(ProxyError::Malformed);
    }
    let mut line = start.to_vec();
    // Byte by byte: what is behind the line belongs to TLS or HTTP. It has come with the rest, so this does not wait.
    while !line.ends_with(b"\r\n") {
        if line.len() == LONGEST_LINE {
            return Err(ProxyError::Malformed);
        }
        line.push(io.read_u8().await?);
    }
    version_1(&line)
}

fn version_1(line: &[u8]) -> Result<Option<IpAddr>, ProxyError> {
    let line = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix("\r\n"));
    let mut words = line.unwrap_or_default().split(' ').skip(1);
    let family = words.next();
    let source = words.next().unwrap_or_default();
    let source = match family {
        Some("TCP4") => source.parse().map(IpAddr::V4),
        Some("TCP6") => source.parse().map(IpAddr::V6),
        Some("UNKNOWN") => return Ok(None),
        _ => return Err(ProxyError::Malformed),
    };
    source.map(Some).map_err(|_| ProxyError::Malformed)
}

async fn version_2(io: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, ProxyError> {
    let mut rest = [0; FIXED - SIGNATURE.len()];
    io.read_exact(&mut rest).await?;
    let [command, family, length @ ..] = rest;
    let length = usize::from(u16::from_be_bytes(length));
    if command >> 4 != 2 || length > MOST_FIELDS {
        return Err(ProxyError::Malformed);
    }
    let mut fields = vec![0; length];
    io.read_exact(&mut fields).await?;
    match (command & 0xf, family >> 4) {
        // LOCAL, or a family without an address of the internet.
        (0, _) | (1, 0 | 3) => Ok(None),
        (1, 1) => source::<4>(&fields).map(|source| Some(source.into())).ok_or(ProxyError::Malformed),
        (1, 2) => source::<16>(&fields).map(|source| Some(source.into())).ok_or(ProxyError::Malformed),
        _ => Err(ProxyError::Malformed),
    }
}

/// The source, which is followed by the destination and both ports.
fn source<const N: usize>(fields: &[u8]) -> Option<[u8; N]> {
    if fields.len() < 2 * N + 4 {
        return None;
    }
    fields.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn v2(command: u8, family: u8, fields: &[u8]) -> Vec<u8> {
        let length = u16::try_from(fields.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, family], &length, fields].concat()
    }

    /// What it says, and what is left.
    fn said(bytes: &[u8]) -> Result<(Option<String>, Vec<u8>), ()> {
        let mut left = bytes;
        let source = read(&mut left).now_or_never().unwrap().map_err(|_| ())?;
        Ok((source.map(|source| source.to_string()), left.to_vec()))
    }

    #[rstest]
    #[case::v1(b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n".to_vec(), Some("192.0.2.7"))]
    #[case::v1_ipv6(b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n".to_vec(), Some("2001:db8::7"))]
    #[case::v1_health_check(b"PROXY UNKNOWN\r\n".to_vec(), None)]
    #[case::v2(v2(1, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 0, 80, 1, 187]), Some("192.0.2.7"))]
    #[case::v2_with_fields(v2(1, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 0, 80, 1, 187, 4, 0, 1, 9]), Some("192.0.2.7"))]
    #[case::v2_ipv6(v2(1, 0x21, &[[0xfd; 16].as_slice(), &[1; 20]].concat()), Some("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"))]
    #[case::v2_health_check(v2(0, 0, &[]), None)]
    fn the_source_is_read_and_what_follows_is_left(#[case] header: Vec<u8>, #[case] source: Option<&str>) {
        let all = [&header, b"GET / HTTP/1.1\r\n".as_slice()].concat();
        assert_eq!(said(&all), Ok((source.map(str::to_owned), b"GET / HTTP/1.1\r\n".to_vec())));
    }

    #[rstest]
    #[case::a_request(b"GET /socket/abc HTTP/1.1\r\n".to_vec())]
    #[case::tls(vec![0x16; 100])]
    #[case::no_line_end([b"PROXY TCP4 192.0.2.7".as_slice(), &[b' '; 200]].concat())]
    #[case::another_family(b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 443\r\n".to_vec())]
    #[case::too_short(v2(1, 0x11, &[192, 0, 2, 7]))]
    #[case::too_long(v2(1, 0x11, &[0; MOST_FIELDS + 1]))]
    #[case::version_3([SIGNATURE.as_slice(), &[0x31, 0x11, 0, 0]].concat())]
    #[case::ends(b"PROXY TCP4".to_vec())]
    fn anything_else_is_refused(#[case] bytes: Vec<u8>) {
        assert_eq!(said(&bytes), Err(()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, at in 0..28_usize) {
            let _ = said(&bytes);
            let mut changed = v2(1, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 0, 80, 1, 187]);
            changed.splice(at..(at + bytes.len()).min(28), bytes);
            let _ = said(&changed);
        }
    }
}
