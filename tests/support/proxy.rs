//! A network between a program and its server that can be cut, closed and mended.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Whole,
    /// Connections end without a word.
    Cut,
    /// Nobody listens.
    Closed,
    /// Connections that are open take what is sent, and lead nowhere any more; new ones are whole.
    Forgotten,
}

/// Passes connections on to one server while it is whole. It ends with this.
pub(crate) struct Proxy {
    url: String,
    address: SocketAddr,
    line: watch::Sender<Line>,
    swallowed: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port, in front of a server such as `http://127.0.0.1:8000`.
    ///
    /// # Panics
    /// When no port can be bound.
    pub(crate) async fn before(server: &str) -> Self {
        let server = server.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (line, seen) = watch::channel(Line::Whole);
        let swallowed = Arc::<AtomicUsize>::default();
        let accepting = tokio::spawn(accept(listener, address, server, seen, Arc::clone(&swallowed)));
        Self { url: format!("http://{address}"), address, line, swallowed, accepting }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The port, for those who name the host otherwise.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Ends every connection, and each new one as it comes.
    pub(crate) fn cut(&self) {
        self.line.send_replace(Line::Cut);
    }

    /// Ends every connection and refuses new ones.
    pub(crate) fn close(&self) {
        self.line.send_replace(Line::Closed);
    }

    /// Forgets the connections that are open, as a NAT gateway does: nobody is told, and what is sent there is lost.
    pub(crate) fn forget(&self) {
        self.line.send_replace(Line::Forgotten);
    }

    /// Bytes that were sent into forgotten connections.
    pub(crate) fn swallowed(&self) -> usize {
        self.swallowed.load(Ordering::Relaxed)
    }

    pub(crate) fn mend(&self) {
        self.line.send_replace(Line::Whole);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(
    mut listener: TcpListener,
    address: SocketAddr,
    server: String,
    mut line: watch::Receiver<Line>,
    swallowed: Arc<AtomicUsize>,
) {
    let mut seen = line.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { return };
                let begun = *seen.borrow();
                if matches!(begun, Line::Whole | Line::Forgotten) {
                    tokio::spawn(pass(near, server.clone(), begun, seen.clone(), Arc::clone(&swallowed)));
                }
                continue;
            }
            closed = line.wait_for(|line| *line == Line::Closed) => if closed.is_err() { return },
        }
        drop(listener);
        if seen.wait_for(|line| *line != Line::Closed).await.is_err() {
            return;
        }
        // Somebody else's outgoing connection may have the port for a moment.
        listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
            }
        };
    }
}

async fn pass(
    mut near: TcpStream,
    server: String,
    begun: Line,
    mut line: watch::Receiver<Line>,
    swallowed: Arc<AtomicUsize>,
) {
    let Ok(mut far) = TcpStream::connect(server).await else { return };
    let is_over = |line: &Line| match line {
        Line::Whole => false,
        Line::Forgotten => begun == Line::Whole,
        Line::Cut | Line::Closed => true,
    };
    tokio::select! {
        over = line.wait_for(is_over) => if over.is_err() { return },
        _ = copy_bidirectional(&mut near, &mut far) => return,
    }
    if *line.borrow() == Line::Forgotten {
        let mut lost = [0; 1024];
        while let Ok(read @ 1..) = near.read(&mut lost).await {
            swallowed.fetch_add(read, Ordering::Relaxed);
        }
    }
}
