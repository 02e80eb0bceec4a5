//! The server's protocol: the only place that knows the crate which speaks it.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, ServerErrorKind,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::entry::{Entry, LARGEST};
use super::{CacheError, Password, Settings};
use crate::bounded;
use crate::secret::Secret;
use crate::shown;

/// How much is said of an error, in characters: a server's words are a stranger's.
const LONGEST_PROBLEM: usize = 200;
/// No password is longer, in bytes.
const LONGEST_PASSWORD: u64 = 4096;

/// Puts an entry in its place unless a newer one stands there, in one step whatever else is written meanwhile. What is no
/// entry is newer than nothing. `PXAT` (SET, since Redis 6.2): the entry ends with its token.
const PUT: &str = "
local held = redis.pcall('GETRANGE', KEYS[1], 0, 20)
local generation = type(held) == 'string' and tonumber(string.match(held, '^(%d+) '))
if generation and generation > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PXAT', ARGV[2])
return 1
";

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What moves the bytes of a connection, and ends with it.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection; clones share it.
#[derive(Clone)]
pub(super) struct Connection(MultiplexedConnection);

/// What stands under a key.
pub(super) struct Held {
    /// Not more than one byte more than an entry may have.
    pub(super) bytes: Vec<u8>,
    /// How long it stays, by the server's clock; none where it stays for ever.
    pub(super) lives: Option<Duration>,
}

/// Connects, and has an answer. Nothing here bounds the time.
pub(super) async fn connect(
    settings: &Settings,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<(Connection, Driver), CacheError> {
    let (host, port) = place(&settings.url)?;
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|error| unreachable(&error))?;
    tcp.set_nodelay(true).map_err(|error| unreachable(&error))?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(tcp),
        Some(tls) => {
            let name = ServerName::try_from(host).map_err(|error| unreachable(&error))?;
            let secured = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
            Box::new(secured.map_err(|error| unreachable(&error))?)
        }
    };
    let (info, config) = (login(settings)?, AsyncConnectionConfig::new().set_response_timeout(None));
    let connected = MultiplexedConnection::new_with_config(&info, stream, config).await;
    let (connection, driver) = connected.map_err(|error| told(&error))?;
    let (mut connection, mut driver): (_, Driver) = (Connection(connection), Box::pin(driver));
    tokio::select! {
        answered = connection.ping() => answered?,
        () = &mut driver => return Err(CacheError::Unreachable("the connection ended at once".into())),
    }
    Ok((connection, driver))
}

impl Connection {
    async fn ping(&mut self) -> Result<(), CacheError> {
        redis::cmd("PING").query_async(&mut self.0).await.map_err(|error| told(&error))
    }

    /// What stands under this key; `None` where nothing does. A stranger's value is not read whole.
    pub(super) async fn read(mut self, key: &str) -> Result<Option<Held>, CacheError> {
        let mut both = redis::pipe();
        both.cmd("GETRANGE").arg(key).arg(0).arg(LARGEST).cmd("PTTL").arg(key);
        let answer: (Vec<u8>, i64) = both.query_async(&mut self.0).await.map_err(|error| told(&error))?;
        let (bytes, lives) = answer;
        // PTTL: -2 where there is nothing any more, -1 where there is no expiry.
        let is_there = lives != -2 && !bytes.is_empty();
        let lives = u64::try_from(lives).ok().map(Duration::from_millis);
        Ok(is_there.then_some(Held { bytes, lives }))
    }

    /// Whether it was written: false where a newer one stands there.
    pub(super) async fn put(mut self, key: &str, entry: &Entry) -> Result<bool, CacheError> {
        let mut put = redis::cmd("EVAL");
        put.arg(PUT).arg(1).arg(key).arg(entry.generation).arg(entry.expires_at.as_millis());
        put.arg(entry.text.expose()).query_async(&mut self.0).await.map_err(|error| told(&error))
    }

    pub(super) async fn remove(mut self, key: &str) -> Result<(), CacheError> {
        redis::cmd("DEL").arg(key).exec_async(&mut self.0).await.map_err(|error| told(&error))
    }
}

fn place(url: &Url) -> Result<(String, u16), CacheError> {
    let host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(host) => host.to_string(),
        None => return Err(CacheError::Unreachable("the URL names no host".into())),
    };
    Ok((host, url.port().unwrap_or(6379)))
}

fn login(settings: &Settings) -> Result<RedisConnectionInfo, CacheError> {
    // A database that is no number has been refused.
    let database = settings.url.path().trim_matches('/').parse().unwrap_or(0);
    let login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name()
        .set_db(database);
    let login = match &settings.user {
        Some(user) => login.set_username(user),
        None => login,
    };
    Ok(match &settings.password {
        Some(Password::Given(password)) => login.set_password(password.expose()),
        Some(Password::File(file)) => login.set_password(password(file)?.expose()),
        None => login,
    })
}

fn password(file: &Path) -> Result<Secret, CacheError> {
    let wrong =
        |why: String| CacheError::Refused(format!("shared_cache.password_file = {}: {why}", file.display()));
    let text = bounded::read_text(file, LONGEST_PASSWORD).map_err(|error| wrong(error.to_string()))?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

fn unreachable(error: &dyn std::error::Error) -> CacheError {
    CacheError::Unreachable(shown::clipped(&error.to_string(), LONGEST_PROBLEM))
}

/// What the server says about itself ends the connection: a primary that has become a replica (`READONLY`), say, is found
/// elsewhere by the next one. The rest is about what was asked.
fn told(error: &RedisError) -> CacheError {
    let text = shown::clipped(&error.to_string(), LONGEST_PROBLEM);
    let about_itself = [
        ServerErrorKind::BusyLoading,
        ServerErrorKind::ClusterDown,
        ServerErrorKind::MasterDown,
        ServerErrorKind::ReadOnly,
        ServerErrorKind::TryAgain,
    ];
    // Of several commands at once, what the first one was answered.
    let of_several = error.clone().into_server_errors().and_then(|errors| Some(errors.first()?.1.clone()));
    let code = of_several.as_ref().map(redis::ServerError::code).or(error.code());
    match error.kind() {
        ErrorKind::AuthenticationFailed => CacheError::Refused(text),
        ErrorKind::Server(kind) if !about_itself.contains(&kind) => CacheError::Refused(text),
        ErrorKind::Extension if code == Some("WRONGTYPE") => CacheError::WrongType,
        ErrorKind::Extension => CacheError::Refused(text),
        _ => CacheError::Unreachable(text),
    }
}
