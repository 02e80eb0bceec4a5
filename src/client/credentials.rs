//! What a client authenticates with: a secret in its registration, or a reference to one; and perhaps a second, for the
//! time in which a provider goes over to it.

use super::reference::SecretRef;
use crate::secret::Secret;

/// A client secret, or where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// In the registration itself.
    Stored(Secret),
    /// Elsewhere.
    At(SecretRef),
}

impl Credential {
    /// The reference, where it is one.
    pub fn reference(&self) -> Option<&SecretRef> {
        match self {
            Self::At(reference) => Some(reference),
            Self::Stored(_) => None,
        }
    }

    /// The secret, where it is in the registration.
    pub fn stored(&self) -> Option<&Secret> {
        match self {
            Self::Stored(secret) => Some(secret),
            Self::At(_) => None,
        }
    }

    /// As it may be shown: a reference, or that there is a secret.
    pub fn shown(&self) -> &str {
        self.reference().map_or("stored", SecretRef::as_str)
    }
}

impl From<Secret> for Credential {
    fn from(secret: Secret) -> Self {
        Self::Stored(secret)
    }
}

/// A client's secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The one that is sent; none for public clients.
    pub first: Option<Credential>,
    /// The one that is tried where the provider says `invalid_client` of the first.
    pub second: Option<Credential>,
}

impl Credentials {
    /// One secret, in the registration itself.
    pub fn stored(secret: impl Into<Secret>) -> Self {
        Self { first: Some(Credential::Stored(secret.into())), second: None }
    }

    /// Those of them that are no secrets: what may stay in memory between two refreshes.
    #[must_use]
    pub fn without_values(self) -> Self {
        let kept = |credential: Option<Credential>| credential.filter(|one| one.reference().is_some());
        Self { first: kept(self.first), second: kept(self.second) }
    }

    /// Both, where they are.
    pub fn iter(&self) -> impl Iterator<Item = &Credential> {
        self.first.iter().chain(&self.second)
    }
}
