//! An identity provider elsewhere, whatever it speaks: the browser goes there with a request and comes back with an answer.
//!
//! Another kind is a variant of each of these three enums and what its own module does for it; the portal deals with
//! attempts, cookies, throttling and events for all of them alike.

use serde::{Deserialize, Serialize};

use crate::flow::UnixTime;
use crate::saml::{Onward, Signer};

use super::oidc::{self, OidcProvider};
use super::saml::{self, SamlUpstream};
use super::{Authenticated, LoginError};

/// One provider.
pub enum Upstream {
    Oidc(Box<OidcProvider>),
    Saml(Box<SamlUpstream>),
}

/// What the browser keeps, sealed, until it comes back.
#[derive(Serialize, Deserialize)]
pub enum Kept {
    Oidc(oidc::Secrets),
    Saml(saml::Secrets),
}

/// What it comes back with.
pub enum Answer<'a> {
    Oidc(oidc::Answer<'a>),
    /// Verified already.
    Saml(Box<saml::Accepted>),
}

impl Upstream {
    /// Whether to start costs a signature.
    pub fn signs(&self) -> bool {
        match self {
            Self::Oidc(_) => false,
            Self::Saml(provider) => provider.signs(),
        }
    }

    /// What sends the browser to the provider for an attempt named `attempt`, and what must be kept meanwhile. With `fresh`,
    /// a login that the provider remembers does not do. `key` signs what is signed.
    pub async fn start(
        &self,
        attempt: &str,
        fresh: bool,
        key: &dyn Signer,
        now: UnixTime,
    ) -> Result<(Onward, Kept), LoginError> {
        match self {
            Self::Oidc(provider) => {
                let (url, secrets) = provider.start(attempt, fresh, now).await?;
                Ok((Onward::Open(url), Kept::Oidc(secrets)))
            }
            Self::Saml(provider) => {
                let (onward, secrets) = provider.start(attempt, fresh, key, now).await?;
                Ok((onward, Kept::Saml(secrets)))
            }
        }
    }

    /// Who the answer is about, at `now`. An answer that nobody asked for has nothing kept.
    pub async fn finish(
        &self,
        kept: Option<Kept>,
        answer: Answer<'_>,
        now: UnixTime,
    ) -> Result<Authenticated, LoginError> {
        match (self, kept, answer) {
            (Self::Oidc(provider), Some(Kept::Oidc(secrets)), Answer::Oidc(answer)) => {
                provider.finish(secrets, answer, now).await
            }
            (Self::Saml(provider), Some(Kept::Saml(secrets)), Answer::Saml(accepted)) => {
                provider.finish(Some(&secrets), *accepted)
            }
            (Self::Saml(provider), None, Answer::Saml(accepted)) => provider.finish(None, *accepted),
            _ => Err(LoginError::State),
        }
    }
}
