//! Connections: kept alive for as long as their owners like, and none of them in another's way.
//!
//! hyper's own limit on reading a header also ends connections that are merely idle. So each connection notes what it is
//! doing, and one loop ends those that take too long over it: half a header, an answer that nobody reads. Where too many
//! are open, the one that has been idle longest goes; one with a request under way never does.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use crate::time::Clock;

/// A request's line and headers, in bytes.
const HEADER_BYTES: usize = 8192;
/// A request's headers, by number.
const HEADERS: usize = 64;
/// The least buffer that hyper takes; a header must fit.
const BUFFER: usize = 16 * 1024;
/// How often connections are looked at.
const ROUND: Duration = Duration::from_millis(250);
/// From a header's first byte to its last; and for an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a connection could not be accepted: descriptors may have run out.
const PAUSE: Duration = Duration::from_millis(100);

const IDLE: u8 = 0;
const READING: u8 = 1;
const ANSWERING: u8 = 2;
const WRITING: u8 = 3;

/// What answers.
pub(super) trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, request: http::Request<Incoming>) -> impl Future<Output = Answer> + Send;
}

/// Where connections come from.
pub(super) trait Door: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next connection; `None` for one that may not come in.
    fn next(&self) -> impl Future<Output = io::Result<Option<Self::Stream>>> + Send;
}

/// What a connection is doing, and since when: in rounds.
#[derive(Default)]
struct Doing {
    what: AtomicU8,
    since: AtomicU64,
    /// Its task.
    waker: AtomicWaker,
}

/// All connections of a server.
pub(super) struct Connections {
    round: AtomicU64,
    open: Mutex<Vec<(Arc<Doing>, AbortHandle)>>,
    limit: usize,
    drains: AtomicBool,
}

impl Connections {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            round: AtomicU64::new(0),
            open: Mutex::default(),
            limit,
            drains: AtomicBool::new(false),
        })
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().filter(|(_, task)| !task.is_finished()).count()
    }

    fn turn(&self, doing: &Doing, what: u8) {
        doing.what.store(what, Ordering::Relaxed);
        doing.since.store(self.round.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Room for one more, where there is or can be.
    fn make_room(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() < self.limit {
            return true;
        }
        open.retain(|(_, task)| !task.is_finished());
        if open.len() < self.limit {
            return true;
        }
        let idle =
            open.iter().enumerate().filter(|(_, (doing, _))| doing.what.load(Ordering::Relaxed) != ANSWERING);
        let oldest =
            idle.min_by_key(|(_, (doing, _))| doing.since.load(Ordering::Relaxed)).map(|(place, _)| place);
        oldest.map(|place| open.swap_remove(place).1.abort()).is_some()
    }

    fn enter(&self, doing: Arc<Doing>, task: AbortHandle) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push((doing, task));
    }

    /// Has each connection end after the request that is under way, if there is one.
    fn drain(&self) {
        self.drains.store(true, Ordering::Release);
        for (doing, _) in self.open.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            doing.waker.wake();
        }
    }

    /// Ends what takes too long.
    fn look_round(&self) {
        let round = self.round.fetch_add(1, Ordering::Relaxed) + 1;
        let rounds = u64::try_from(PATIENCE.as_millis() / ROUND.as_millis()).unwrap_or(u64::MAX);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(doing, task)| {
            let slow = matches!(doing.what.load(Ordering::Relaxed), READING | WRITING);
            if slow && round.saturating_sub(doing.since.load(Ordering::Relaxed)) > rounds {
                task.abort();
            }
            !task.is_finished()
        });
    }
}

/// Answers until `drain` is cancelled; then ends what is idle, and waits for what is not, as long as it is polled.
pub(super) async fn serve<D: Door, S: Service>(
    door: D,
    service: Arc<S>,
    connections: Arc<Connections>,
    clock: Arc<dyn Clock>,
    drain: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    loop {
        let next = tokio::select! {
            biased;
            () = drain.cancelled() => break,
            next = door.next() => next,
        };
        while tasks.try_join_next().is_some() {}
        match next {
            Ok(Some(stream)) if connections.make_room() => {
                let doing = Arc::new(Doing::default());
                connections.turn(&doing, IDLE);
                let task =
                    connection(stream, Arc::clone(&service), Arc::clone(&connections), Arc::clone(&doing));
                connections.enter(doing, tasks.spawn(task));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                clock.sleep(PAUSE).await;
            }
        }
    }
    drop(door);
    connections.drain();
    while tasks.join_next().await.is_some() {}
}

/// Looks after the connections for as long as it is polled.
pub(super) async fn watch(connections: Arc<Connections>, clock: Arc<dyn Clock>) {
    loop {
        clock.sleep(ROUND).await;
        connections.look_round();
    }
}

async fn connection<T, S>(stream: T, service: Arc<S>, connections: Arc<Connections>, doing: Arc<Doing>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service,
{
    let watched = Watched { stream, connections: Arc::clone(&connections), doing: Arc::clone(&doing) };
    let answer = service_fn(|request| {
        let (service, connections, doing) = (&service, &connections, &doing);
        connections.turn(doing, ANSWERING);
        async move {
            let answer = service.answer(request).await;
            connections.turn(doing, WRITING);
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    http.max_headers(HEADERS).max_header_size(HEADER_BYTES).max_buf_size(BUFFER).half_close(false);
    let mut served = std::pin::pin!(http.serve_connection(TokioIo::new(watched), answer));
    let mut leaves = false;
    // Nothing is shared with other connections here: they are polled with each request.
    let served = poll_fn(|context| {
        doing.waker.register(context.waker());
        if connections.drains.load(Ordering::Acquire) && !leaves {
            leaves = true;
            served.as_mut().graceful_shutdown();
        }
        served.as_mut().poll(context)
    });
    // What went wrong is the other side's affair.
    _ = served.await;
}

/// A stream that notes what its connection is doing.
struct Watched<T> {
    stream: T,
    connections: Arc<Connections>,
    doing: Arc<Doing>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before && self.doing.what.load(Ordering::Relaxed) == IDLE {
            self.connections.turn(&self.doing, READING);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> Watched<T> {
    /// An answer is under way until all of it is written.
    fn noted<R>(&self, written: Poll<R>) -> Poll<R> {
        if written.is_ready() && self.doing.what.load(Ordering::Relaxed) == WRITING {
            self.connections.turn(&self.doing, IDLE);
        }
        written
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.noted(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.noted(shut)
    }
}
