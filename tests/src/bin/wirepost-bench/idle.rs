//! What a connection costs that does nothing.

use std::sync::Arc;

use anyhow::Result;
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use wirepost_tests::{setup::Setup, usage};

use crate::clients;

/// A process may hold 20,000 descriptors on many machines, this one's own sockets included.
const CONNECTIONS: usize = 15_000;
/// Opened first, so that what the first connections set up is not counted.
const WARM: usize = 200;

pub(crate) async fn run(setup: &Setup, tls: bool) -> Result<()> {
    let mut builder = setup.edge("idle").flag("max-connections", 19_000).flag("heartbeat-seconds", 300);
    let mut client = None;
    if tls {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let (certificate, key) = (setup.dir().join("tls.crt"), setup.dir().join("tls.key"));
        std::fs::write(&certificate, certified.cert.pem())?;
        std::fs::write(&key, certified.signing_key.serialize_pem())?;
        builder = builder.flag("tls-certificate", certificate.display()).flag("tls-key", key.display());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(certified.cert.der().to_vec()))?;
        client = Some(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()));
    }
    let edge = builder.start().await?;
    let mut sockets = clients::connect(setup, &edge, WARM, client.clone()).await?;
    let before = usage::of(edge.pid)?;
    sockets.extend(clients::connect(setup, &edge, CONNECTIONS - WARM, client).await?);
    let after = usage::of(edge.pid)?;
    let count = CONNECTIONS - WARM;
    println!(
        "{}: {:.1} KiB a connection, {:.0} us of CPU to connect one ({CONNECTIONS} connections, {} MiB in all)",
        if tls { "idle, TLS" } else { "idle" },
        after.memory.saturating_sub(before.memory) as f64 / 1024.0 / count as f64,
        usage::each(before, after, count),
        after.memory >> 20,
    );
    drop(sockets);
    Ok(())
}
