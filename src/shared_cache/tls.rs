//! Whom the server is believed to be: the platform's authorities vouch for it, or those of `ca_file`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs as crypto;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};

/// TLS that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server's own authorities cannot be had.
    #[error(
        "shared_cache.ca_file = {file:?} {problem}: name a PEM file with the certificates of the authorities"
    )]
    Authorities {
        /// As configured.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The platform's trust store cannot be used, or something else in the TLS library.
    #[error("TLS cannot be set up: {0}")]
    Library(#[from] rustls::Error),
}

/// TLS 1.2 and later.
pub(super) fn configuration(ca_file: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(crypto::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])?;
    let builder = match ca_file {
        Some(file) => builder.with_root_certificates(roots(file)?),
        None => {
            let platform = Arc::new(rustls_platform_verifier::Verifier::new(provider)?);
            builder.dangerous().with_custom_certificate_verifier(platform)
        }
    };
    Ok(builder.with_no_client_auth())
}

fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
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
