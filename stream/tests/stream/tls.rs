//! TLS, by the configuration that the caller gives.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use wirepost_stream::{Client, Start, Tls};
use wirepost_testing::broker::Vhost;

use crate::support::{Publisher, config, host_of, numbers, range, take};

fn tls(authorities: RootCertStore) -> Result<Tls> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = Arc::new(builder.with_root_certificates(authorities).with_no_client_auth());
    Ok(Arc::new(move || Ok(Arc::clone(&config))))
}

#[tokio::test]
async fn a_broker_whose_authority_is_trusted_is_read_and_another_is_refused() -> Result<()> {
    let vhost = Vhost::create().await?;
    let publisher = Publisher::connect(&vhost).await?;
    publisher.declare("s").await?;
    publisher.numbers("s", 0..100).await?;
    let file = vhost
        .broker
        .tls_ca
        .as_ref()
        .context("WIREPOST_TEST_TLS_CA is not set: start the broker by tests/services/rabbitmq")?;
    let mut authorities = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file)? {
        authorities.add(certificate?)?;
    }
    let mut settings = config(host_of(&vhost.tls_stream()?), &vhost.name);
    settings.tls = Some(tls(authorities)?);
    let client = Client::new(settings.clone());
    assert_eq!(numbers(&take(&mut client.subscribe("s", Start::First), 100).await), range(0..100));

    settings.tls = Some(tls(RootCertStore::empty())?);
    let error = Client::new(settings).stats("s").await.unwrap_err();
    assert!(error.to_string().contains("tls"), "{error}");
    Ok(())
}
