//! Bodies of answers, in parts: what is a secret is sent from where it lies, and is never copied.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use smallvec::SmallVec;

/// What is sent, part after part; its length is known. The last comes first.
#[derive(Debug, Default)]
pub(super) struct Body(SmallVec<[Bytes; 2]>);

impl Body {
    /// Without those that are empty.
    pub(super) fn of(parts: impl IntoIterator<Item = Bytes>) -> Self {
        let mut parts: SmallVec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.reverse();
        Self(parts)
    }

    /// What it is made of.
    pub(super) fn into_parts(self) -> impl Iterator<Item = Bytes> {
        self.0.into_iter().rev()
    }
}

impl From<Bytes> for Body {
    fn from(whole: Bytes) -> Self {
        Self::of([whole])
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}
