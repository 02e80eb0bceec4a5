//! Whom a token endpoint is believed to be.
//!
//! Somebody vouches for it, as for every server: the platform's authorities, or those of the provider's `ca_file`. Where
//! there are pins, the server must also have one of those keys. It is the server's own certificate that
//! is held against them and never an intermediate one: what a server sends along may have no part in what was verified.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};

use crate::client::outbound::{Outbound, Pin};
use crate::tls::{self, TlsError};

/// The authorities of each `ca_file`, read once a path: a file that has changed would be trusted by some clients and not by
/// others.
#[derive(Default)]
pub(super) struct Authorities(Mutex<HashMap<PathBuf, Arc<RootCertStore>>>);

impl Authorities {
    fn of(&self, file: &Path) -> Result<Arc<RootCertStore>, TlsError> {
        let mut read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(roots) = read.get(file) {
            return Ok(Arc::clone(roots));
        }
        let roots = Arc::new(tls::roots(file)?);
        read.insert(file.to_owned(), Arc::clone(&roots));
        Ok(roots)
    }
}

/// How connections to a provider are secured.
pub(super) fn configuration(outbound: &Outbound, known: &Authorities) -> Result<ClientConfig, TlsError> {
    let roots = outbound.ca_file.as_deref().map(|file| known.of(file)).transpose()?;
    let mut verifier = tls::verifier(roots)?;
    if !outbound.pins.is_empty() {
        verifier = Arc::new(Pinned { pins: outbound.pins.clone(), inner: verifier });
    }
    let mut config = tls::configuration(verifier)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The server has another key than the pinned ones.
#[derive(Debug, thiserror::Error)]
#[error("the server's key is not one of the pinned ones")]
struct PinMismatch;

/// Beside what another verifier asks, one of these keys.
#[derive(Debug)]
struct Pinned {
    pins: Vec<Pin>,
    inner: Arc<dyn ServerCertVerifier>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let key = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
        let key = digest(&SHA256, key.as_ref());
        if self.pins.iter().any(|pin| pin.0 == key.as_ref()) {
            return Ok(verified);
        }
        Err(CertificateError::Other(OtherError(Arc::new(PinMismatch))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The reply's code for a handshake that failed.
pub(super) fn code(error: &rustls::Error) -> &'static str {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, Other, UnknownIssuer,
    };
    let rustls::Error::InvalidCertificate(error) = error else { return "tls" };
    match error {
        Other(OtherError(inner)) if inner.is::<PinMismatch>() => "certificate_not_pinned",
        // An authority of the right name with another key vouches for nothing.
        UnknownIssuer | BadSignature => "certificate_untrusted",
        Expired | ExpiredContext { .. } => "certificate_expired",
        NotValidForName | NotValidForNameContext { .. } => "certificate_of_another",
        _ => "certificate_invalid",
    }
}
