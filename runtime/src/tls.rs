//! One TLS library and one provider of its cryptography for everything in a process.

/// Makes aws-lc-rs the provider of every TLS connection. Call it before the first one; a later call does nothing.
pub fn install_provider() {
    // It fails only if a provider is installed already: by an earlier call, as nothing else here installs one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
