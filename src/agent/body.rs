//! Bodies of answers, in parts: what is a secret is sent from where it lies, and is never copied.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// What is sent, part after part; its length is known.
#[derive(Debug, Default)]
pub(super) struct Body(vec::IntoIter<Bytes>);

impl Body {
    /// What is left of it.
    pub(super) fn into_parts(self) -> impl Iterator<Item = Bytes> {
        self.0
    }
}

impl From<Vec<Bytes>> for Body {
    /// Without those that are empty.
    fn from(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        Self(parts.into_iter())
    }
}

impl From<Bytes> for Body {
    fn from(whole: Bytes) -> Self {
        Self::from(vec![whole])
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_slice().iter().map(|part| part.len() as u64).sum())
    }
}
