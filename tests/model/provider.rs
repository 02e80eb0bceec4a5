//! The providers: what a token endpoint does with a refresh token that it is shown.

use std::time::Duration;

use perennial::client::{InDoubt, Provider};
use perennial::reply::{Lifetime, Reply, Tokens};
use url::Url;

use super::table::token;

/// How a provider treats refresh tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The refresh token stays the same.
    Fixed,
    /// It rotates, and the last one is accepted for a while after its successor was issued.
    Grace,
    /// It rotates, and one that was used before revokes the whole grant.
    Strict,
}

/// A provider's view of the one customer's consent. Tokens are numbered as they are issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Grants {
    /// The refresh token that is good.
    pub(crate) live: u8,
    /// The first one of the consent in force: older ones are strangers, and harm nobody.
    pub(crate) family: u8,
    /// Accepted once more.
    pub(crate) grace: Option<u8>,
    /// A used token was shown: nothing is good any more.
    pub(crate) revoked: bool,
    issued: u8,
}

/// What a token endpoint says, or what is left of it on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Answer {
    /// Tokens; with a new refresh token, where the provider rotates.
    Granted(Option<u8>),
    /// `invalid_grant`.
    Refused,
    /// Nothing was heard.
    Silence,
    /// 5xx.
    Fault,
    /// The connection was refused: nothing left the machine.
    NotSent,
}

impl Grants {
    pub(crate) fn first() -> Self {
        Self { live: 0, family: 0, grace: None, revoked: false, issued: 0 }
    }

    /// The customer consents anew: returns the refresh token.
    pub(crate) fn consent(&mut self) -> u8 {
        self.issued += 1;
        *self =
            Self { live: self.issued, family: self.issued, grace: None, revoked: false, issued: self.issued };
        self.live
    }

    /// A refresh token is shown.
    pub(crate) fn redeem(&mut self, kind: Kind, shown: u8) -> Answer {
        if shown < self.family || self.revoked {
            return Answer::Refused;
        }
        if kind == Kind::Fixed {
            return Answer::Granted(None);
        }
        if shown == self.live || self.grace == Some(shown) {
            self.issued += 1;
            self.grace = (kind == Kind::Grace).then_some(shown);
            self.live = self.issued;
            return Answer::Granted(Some(self.live));
        }
        self.revoked = true;
        Answer::Refused
    }

    pub(crate) fn is_live(&self, token: u8) -> bool {
        !self.revoked && token == self.live
    }
}

impl Answer {
    /// As the flow is told.
    pub(crate) fn reply(self) -> Reply {
        match self {
            Self::Granted(refresh) => Reply::Granted(Box::new(Tokens {
                access_token: "a".into(),
                refresh_token: refresh.map(token),
                token_type: None,
                scope: None,
                lifetime: Lifetime::Stated(Duration::from_secs(3600)),
            })),
            Self::Refused => Reply::Rejected("invalid_grant".into()),
            Self::Silence => Reply::Unknown { code: "timeout".into(), server_fault: false, after: None },
            Self::Fault => Reply::Unknown { code: "http_500".into(), server_fault: true, after: None },
            Self::NotSent => Reply::NotSent("connect".into()),
        }
    }
}

/// The profile that an operator would write for it. An exchange takes one tick at most.
pub(crate) fn profile(kind: Kind, in_doubt: InDoubt) -> Provider {
    let url = Url::parse("https://acme.test/token").expect("a url");
    Provider {
        rotates: kind != Kind::Fixed,
        in_doubt,
        grace_window: Duration::from_secs(60),
        request_timeout: Duration::from_secs(1),
        ..Provider::new("acme", url)
    }
}
