//! A token endpoint over TLS, whose authority is the test's own, and a proxy before it.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};
use tempfile::TempDir;

/// An authority that nobody else knows.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    folder: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signed");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("a fresh folder is writable");
        Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key), folder }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The pin of the authority's own key.
    pub(crate) fn pin(&self) -> String {
        pin(self.issuer.key())
    }

    /// A token endpoint for these names, until this year.
    pub(crate) fn endpoint(&self, names: &[&str], until: i32) -> Endpoint {
        let key = KeyPair::generate().expect("a key");
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let own = params.signed_by(&key, &self.issuer).expect("signed");
        let pin = pin(&key);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS")
            .with_no_client_auth()
            // The authority's certificate is sent along, as servers do.
            .with_single_cert(vec![own.der().clone(), self.certificate.clone()], key)
            .expect("a certificate");
        Endpoint::start(Arc::new(config), pin)
    }
}

fn pin(key: &KeyPair) -> String {
    let digest = digest(&SHA256, &key.subject_public_key_info());
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// A token endpoint that grants whatever it is asked for, and counts.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) pin: String,
    requests: Arc<AtomicUsize>,
}

impl Endpoint {
    fn start(config: Arc<ServerConfig>, pin: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, counted) = (Arc::clone(&config), Arc::clone(&counted));
                // Who does not trust the certificate hangs up.
                std::thread::spawn(move || answer(stream?, config, &counted));
            }
        });
        Self { address, pin, requests }
    }

    /// Requests that were heard.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn answer(mut tcp: TcpStream, config: Arc<ServerConfig>, requests: &AtomicUsize) -> std::io::Result<()> {
    let mut tls = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = Stream::new(&mut tls, &mut tcp);
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..read]);
    }
    requests.fetch_add(1, Ordering::SeqCst);
    let body = "{\"access_token\":\"granted\",\"token_type\":\"bearer\",\"expires_in\":3600}";
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}

/// A proxy that knows CONNECT, and leads every name to one address.
pub(crate) struct ConnectProxy {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || tunnel(stream?, target, &seen));
            }
        });
        Self { url, asked }
    }

    /// The first line of every request.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nobody has panicked").clone()
    }
}

fn tunnel(stream: TcpStream, target: SocketAddr, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    seen.lock().expect("nobody has panicked").push(first.trim_end().to_owned());
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let server = TcpStream::connect(target)?;
    (&stream).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut up, mut from_client) = (server.try_clone()?, reader);
    std::thread::spawn(move || {
        let copied = std::io::copy(&mut from_client, &mut up);
        copied.and_then(|_| up.shutdown(Shutdown::Write))
    });
    std::io::copy(&mut &server, &mut &stream)?;
    stream.shutdown(Shutdown::Both)
}
