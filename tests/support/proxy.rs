//! A network between a program and its server that can be cut and mended.

use std::net::Ipv4Addr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes connections on to one server while it is whole. It ends with this.
pub(crate) struct Proxy {
    url: String,
    whole: watch::Sender<bool>,
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
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (whole, seen) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *seen.borrow() {
                    tokio::spawn(pass(near, server.clone(), seen.clone()));
                }
            }
        });
        Self { url, whole, accepting }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Ends every connection, and each new one as it comes.
    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn pass(mut near: TcpStream, server: String, mut whole: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(server).await else { return };
    tokio::select! {
        _ = whole.wait_for(|whole| !whole) => {}
        _ = copy_bidirectional(&mut near, &mut far) => {}
    }
}
