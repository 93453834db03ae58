//! A certificate for `wirepost dev --tls`: made once and kept, so that who trusts it has to do so once.

use std::{
    env, fs, io,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use wirepost_edge::config::settings::TlsFiles;

const DAY: Duration = Duration::from_hours(24);
/// Some browsers accept no certificate that lives longer than 825 days.
const LIFE: Duration = DAY.saturating_mul(397);
/// One that ends sooner is replaced at the next start.
const RENEWED_BEFORE: Duration = DAY.saturating_mul(30);

/// A certificate for this machine's names and the address that is listened on.
pub(super) fn certificate(listen: IpAddr) -> anyhow::Result<TlsFiles> {
    let folder = folder()?;
    // Another address needs another certificate.
    let name =
        if listen.is_loopback() || listen.is_unspecified() { "localhost".to_owned() } else { listen.to_string() };
    let name = name.replace(':', "-");
    let files = TlsFiles {
        certificate: folder.join(format!("{name}.crt")),
        key: folder.join(format!("{name}.key")),
        clients: None,
    };
    if is_young(&files) {
        return Ok(files);
    }
    let context = || format!("cannot write a certificate to {}", folder.display());
    fs::create_dir_all(&folder).with_context(context)?;
    let (certificate, key) = generate(listen).context("cannot generate a certificate")?;
    write(&files.key, &key).and_then(|()| write(&files.certificate, &certificate)).with_context(context)?;
    Ok(files)
}

/// `~/.cache/wirepost/dev-tls`.
fn folder() -> anyhow::Result<PathBuf> {
    let set = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Ok(cache
        .context("neither XDG_CACHE_HOME nor HOME is set: there is no place for a certificate")?
        .join("wirepost/dev-tls"))
}

/// By the age of the file: it was written when it was made.
fn is_young(files: &TlsFiles) -> bool {
    let age = |file: &Path| fs::metadata(file).and_then(|data| data.modified()).ok()?.elapsed().ok();
    let young = |file: &Path| age(file).is_some_and(|age| age < LIFE.saturating_sub(RENEWED_BEFORE));
    young(&files.certificate) && young(&files.key)
}

fn generate(listen: IpAddr) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    if !listen.is_unspecified() && !addresses.contains(&listen) {
        addresses.push(listen);
    }
    let names = std::iter::once("localhost".to_owned()).chain(addresses.iter().map(IpAddr::to_string));
    let mut params = CertificateParams::new(names.collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, "wirepost dev");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begin = rcgen::date_time_ymd(1970, 1, 1);
    // Clocks differ.
    (params.not_before, params.not_after) = (begin + now.saturating_sub(DAY), begin + (now + LIFE));
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// For this user alone.
fn write(file: &Path, content: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut open = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    open.write_all(content.as_bytes())?;
    fs::rename(new, file)
}
