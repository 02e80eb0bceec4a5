//! Bodies of answers: a token is sent from where it lies.

use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;

use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};

use super::answer::Form;
use crate::client::ClientId;
use crate::reader::Sighting;

/// What is sent, piece after piece; its length is known.
#[derive(Default)]
pub(super) enum Body {
    #[default]
    Empty,
    One(Piece),
    Many(vec::IntoIter<Piece>),
}

/// What is sent at once.
pub(super) enum Piece {
    /// What is made for this answer.
    Made(Bytes),
    /// A token.
    Token(Lent),
}

/// A token, and what stands around it, lent from the cache for as long as it is being sent.
pub(super) struct Lent {
    /// What is made for this answer.
    begins: String,
    sighting: Arc<Sighting>,
    form: Form,
    /// Bytes that are sent, and those that are not.
    sent: usize,
    left: usize,
}

impl Lent {
    /// A token's JSON: the members that age, which begin the object, and those that do not.
    pub(super) fn json(mut ages: String, client: &ClientId, sighting: Arc<Sighting>) -> Self {
        if let Some(token) = &sighting.token {
            ages.push_str(token.written.json(client, token).begins().unwrap_or_default());
        }
        Self::new(ages, sighting, Form::Json)
    }

    /// A token alone.
    pub(super) fn text(sighting: Arc<Sighting>) -> Self {
        Self::new(String::new(), sighting, Form::Text)
    }

    fn new(begins: String, sighting: Arc<Sighting>, form: Form) -> Self {
        let mut lent = Self { begins, sighting, form, sent: 0, left: 0 };
        lent.left = lent.parts().iter().map(|part| part.len()).sum();
        lent
    }

    /// All of it, in its order.
    fn parts(&self) -> [&[u8]; 5] {
        let [a, b, c, d] = match (&self.sighting.token, self.form) {
            (Some(token), Form::Text) => [token.secret.expose(), "", "", ""],
            (Some(token), Form::Json) => {
                let around = token.written.known_json();
                around.map_or([""; 4], |around| around.goes_on(token.secret.expose()))
            }
            (None, _) => [""; 4],
        };
        [&self.begins, a, b, c, d].map(str::as_bytes)
    }

    /// What is not sent yet.
    fn rest(&self) -> impl Iterator<Item = &[u8]> {
        let mut sent = self.sent;
        self.parts().into_iter().filter_map(move |part| {
            let skipped = sent.min(part.len());
            sent -= skipped;
            Some(&part[skipped..]).filter(|rest| !rest.is_empty())
        })
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match self {
            Self::Made(made) => made.remaining(),
            Self::Token(lent) => lent.left,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Made(made) => made.chunk(),
            Self::Token(lent) => lent.rest().next().unwrap_or_default(),
        }
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Made(made) => made.chunks_vectored(into),
            Self::Token(lent) => {
                let places = into.iter_mut().zip(lent.rest());
                places.map(|(place, part)| *place = IoSlice::new(part)).count()
            }
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Made(made) => made.advance(count),
            Self::Token(lent) => {
                assert!(count <= lent.left, "no more is sent than there is");
                (lent.sent, lent.left) = (lent.sent + count, lent.left - count);
            }
        }
    }
}

impl Body {
    fn pieces(&self) -> &[Piece] {
        match self {
            Self::Empty => &[],
            Self::One(piece) => std::slice::from_ref(piece),
            Self::Many(pieces) => pieces.as_slice(),
        }
    }
}

impl From<Vec<Piece>> for Body {
    fn from(pieces: Vec<Piece>) -> Self {
        Self::Many(pieces.into_iter())
    }
}

impl From<Bytes> for Body {
    fn from(whole: Bytes) -> Self {
        Self::One(Piece::Made(whole))
    }
}

impl From<Lent> for Body {
    fn from(token: Lent) -> Self {
        Self::One(Piece::Token(token))
    }
}

impl hyper::body::Body for Body {
    type Data = Piece;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Infallible>>> {
        let next = match &mut *self {
            Self::Many(pieces) => pieces.next(),
            body => match std::mem::take(body) {
                Self::One(piece) => Some(piece),
                Self::Empty | Self::Many(_) => None,
            },
        };
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces().is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.pieces().iter().map(|piece| piece.remaining() as u64).sum())
    }
}
