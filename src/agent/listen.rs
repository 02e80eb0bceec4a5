//! The two doors: a port on loopback, and a socket file that says who knocks.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::server::{self, Connections, Door, Service};
use crate::time::Clock;

/// Whoever the file's mode lets through may connect; its user still has to be one of ours.
const MODE: u32 = 0o660;
/// For connections to the table, files, and the runtime.
const OWN_DESCRIPTORS: usize = 128;

/// A place to answer at.
pub enum Socket {
    /// A port.
    Tcp(TcpListener),
    /// A socket file, and the users whose processes may speak.
    Unix {
        /// Accepts connections.
        listener: UnixListener,
        /// Where it is; removed with this.
        file: SocketFile,
        /// Their numeric ids.
        users: Vec<u32>,
    },
}

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The port.
    #[error("cannot listen at {0}: another process may; or set agent.address, or agent.drop_in.address")]
    Port(SocketAddr, #[source] io::Error),
    /// The file.
    #[error("cannot listen at {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// Something that is no socket stands there.
    #[error("{} is there and is no socket: remove it, or set agent.socket to another path", .0.display())]
    NoSocket(PathBuf),
    /// Somebody listens there.
    #[error("{}: another process answers there", .0.display())]
    Taken(PathBuf),
}

/// Has the operating system allow descriptors for so many connections beside the program's own, as far as its hard limit
/// goes: the soft one is often 1024. Returns for how many connections there is room.
pub fn make_room_for(connections: usize) -> usize {
    let needed = (connections + OWN_DESCRIPTORS) as u64;
    let limit = getrlimit(Resource::Nofile);
    let allowed = limit.maximum.map_or(needed, |most| most.min(needed));
    if limit.current.is_some_and(|now| now < allowed) {
        // Where it is refused, what there is has to do.
        _ = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum });
    }
    let room = getrlimit(Resource::Nofile).current.unwrap_or(needed).min(needed);
    usize::try_from(room).unwrap_or(connections).saturating_sub(OWN_DESCRIPTORS)
}

/// A socket's file: it goes with the process.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            warn!(path = %self.0.display(), %error, "the socket's file could not be removed");
        }
    }
}

impl Socket {
    /// A port.
    ///
    /// # Errors
    /// Where the operating system refuses it.
    pub async fn tcp(address: SocketAddr) -> Result<Self, SocketError> {
        let listener = TcpListener::bind(address).await;
        Ok(Self::Tcp(listener.map_err(|error| SocketError::Port(address, error))?))
    }

    /// A socket file. One that a process left behind is replaced; one where somebody answers is not.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn unix(path: &Path, users: Vec<u32>) -> Result<Self, SocketError> {
        clear(path)?;
        let failed = |error| SocketError::File(path.to_owned(), error);
        let listener = UnixListener::bind(path).map_err(failed)?;
        let file = SocketFile(path.to_owned());
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        Ok(Self::Unix { listener, file, users })
    }

    /// Where it is.
    pub fn place(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(|at| at.to_string()).unwrap_or_default(),
            Self::Unix { file, .. } => file.0.display().to_string(),
        }
    }

    /// Whether it is a port, at which names lead to this machine.
    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    pub(super) async fn serve<S: Service>(
        self,
        service: Arc<S>,
        connections: Arc<Connections>,
        clock: Arc<dyn Clock>,
        drain: CancellationToken,
    ) {
        match self {
            Self::Tcp(listener) => server::serve(Port(listener), service, connections, clock, drain).await,
            Self::Unix { listener, file, users } => {
                let door = Guarded { listener, users, _file: file };
                server::serve(door, service, connections, clock, drain).await;
            }
        }
    }
}

/// What a process that was killed leaves behind is in nobody's use.
fn clear(path: &Path) -> Result<(), SocketError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(SocketError::NoSocket(path.to_owned()));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(SocketError::Taken(path.to_owned()));
    }
    fs::remove_file(path).map_err(|error| SocketError::File(path.to_owned(), error))
}

struct Port(TcpListener);

impl Door for Port {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<Option<TcpStream>> {
        let (stream, _) = self.0.accept().await?;
        // An answer is one small segment: it must not wait for the acknowledgement of the last.
        stream.set_nodelay(true)?;
        Ok(Some(stream))
    }
}

struct Guarded {
    listener: UnixListener,
    users: Vec<u32>,
    _file: SocketFile,
}

impl Door for Guarded {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.accept().await?;
        let user = stream.peer_cred()?.uid();
        if self.users.contains(&user) {
            return Ok(Some(stream));
        }
        warn!(code = "unknown_user", user, "a connection was refused: see agent.socket_users");
        Ok(None)
    }
}
