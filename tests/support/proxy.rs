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
    /// Connections that are open end with the next that is sent; new ones are whole.
    Brittle,
}

/// Passes connections on to one server while it is whole. It ends with this.
pub(crate) struct Proxy {
    url: String,
    address: SocketAddr,
    line: watch::Sender<Line>,
    swallowed: Arc<AtomicUsize>,
    broken: Arc<AtomicUsize>,
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
        let [swallowed, broken] = <[Arc<AtomicUsize>; 2]>::default();
        let way = Way { server, swallowed: Arc::clone(&swallowed), broken: Arc::clone(&broken) };
        let accepting = tokio::spawn(accept(listener, address, way, seen));
        Self { url: format!("http://{address}"), address, line, swallowed, broken, accepting }
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

    /// Has the connections that are open end with the next that is sent there, as whoever has forgotten them and says so does
    /// (RFC 9293 section 3.5.2).
    pub(crate) fn break_all(&self) {
        self.line.send_replace(Line::Brittle);
    }

    /// Connections that have ended so.
    pub(crate) fn broken(&self) -> usize {
        self.broken.load(Ordering::Relaxed)
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

/// Where connections lead, and what is known of them.
#[derive(Clone)]
struct Way {
    server: String,
    swallowed: Arc<AtomicUsize>,
    broken: Arc<AtomicUsize>,
}

async fn accept(mut listener: TcpListener, address: SocketAddr, way: Way, mut line: watch::Receiver<Line>) {
    let mut seen = line.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { return };
                let begun = *seen.borrow();
                if matches!(begun, Line::Whole | Line::Forgotten | Line::Brittle) {
                    tokio::spawn(pass(near, way.clone(), begun, seen.clone()));
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

async fn pass(mut near: TcpStream, way: Way, begun: Line, mut line: watch::Receiver<Line>) {
    let Ok(mut far) = TcpStream::connect(way.server).await else { return };
    let is_over = |line: &Line| match line {
        Line::Whole => false,
        Line::Forgotten | Line::Brittle => begun != *line,
        Line::Cut | Line::Closed => true,
    };
    tokio::select! {
        // What is sent after a change meets the changed line.
        biased;
        over = line.wait_for(is_over) => if over.is_err() { return },
        _ = copy_bidirectional(&mut near, &mut far) => return,
    }
    let how = *line.borrow();
    let mut lost = [0; 1024];
    match how {
        Line::Forgotten => {
            while let Ok(read @ 1..) = near.read(&mut lost).await {
                way.swallowed.fetch_add(read, Ordering::Relaxed);
            }
        }
        Line::Brittle => {
            if let Ok(1..) = near.read(&mut lost).await {
                way.broken.fetch_add(1, Ordering::Relaxed);
            }
        }
        Line::Whole | Line::Cut | Line::Closed => {}
    }
}
