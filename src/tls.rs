//! Whom a server is believed to be, for connections of our own: what AWS's SDK connects to, it verifies itself.
//!
//! TLS 1.2 and later. The platform's authorities vouch for a server, or in their place those of a file that the operator
//! names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs as crypto};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};

/// TLS that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authorities cannot be had.
    #[error("ca_file = {file:?} {problem}: name a PEM file with the certificates of the authorities")]
    Authorities {
        /// As configured.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The platform's trust store cannot be used, or something else in the TLS library.
    #[error("TLS cannot be set up: {0}")]
    Library(String),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Library(error.to_string())
    }
}

/// The authorities of a PEM file: one at least.
///
/// # Errors
/// Where it cannot be read, or has none.
pub fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let wrong = |problem: String| TlsError::Authorities { file: file.to_owned(), problem };
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(format!("cannot be read ({error})")))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| wrong(format!("has an unusable certificate ({error})")))?;
    }
    if roots.is_empty() {
        return Err(wrong("has no certificate in it".to_owned()));
    }
    Ok(roots)
}

/// Believes in servers for whom these vouch; `None` for the platform's authorities.
///
/// # Errors
/// Where the platform's trust store cannot be used.
pub fn verifier(roots: Option<Arc<RootCertStore>>) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let Some(roots) = roots else {
        return Ok(Arc::new(rustls_platform_verifier::Verifier::new(provider())?));
    };
    let built = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
    Ok(built.map_err(|error| TlsError::Library(error.to_string()))?)
}

/// Connections to servers that this verifier believes in. We show no certificate of ours.
///
/// # Errors
/// Where the TLS library cannot be used.
pub fn configuration(verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::default_provider())
}
