//! Identity providers: from a proof (a password, an OpenID Connect answer, a SAML assertion) to a person.
//!
//! Each provider ends in an [`Authenticated`]: who it vouches for, and nothing else. A false accept is somebody
//! else's session; a false reject is a page that says what to try. What a person may reach is decided elsewhere.

pub mod local;
pub mod oidc;
pub mod password;
pub mod saml;
pub mod service;
pub mod throttle;
pub mod turns;
pub mod upstream;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::flow::{Email, PersonId, Reason, UnixTime};
use crate::saml::NameId;

/// A person as an identity provider vouches for them at login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authenticated {
    pub person: PersonId,
    /// Only an address that the provider has verified.
    pub email: Option<Email>,
    pub display_name: String,
    pub groups: Vec<String>,
    /// Authentication methods (RFC 8176).
    pub amr: Vec<String>,
    /// When they proved it, by the provider's clock and where it says so. Who brings a password does so now.
    pub authenticated_at: Option<UnixTime>,
    /// When the provider's own session ends, where it says so.
    pub ends_at: Option<UnixTime>,
    /// Where the provider takes and sends logouts.
    pub at_provider: Option<Heard>,
}

impl Authenticated {
    /// Refuses a login from before `since`, where that is asked, and one from nobody knows when.
    fn anew(self, since: Option<UnixTime>) -> Result<Self, LoginError> {
        let since = since.map(|since| since.before(UnixTime::SKEW));
        match since {
            Some(since) if self.authenticated_at.is_none_or(|at| at < since) => Err(LoginError::NotAnew),
            _ => Ok(self),
        }
    }
}

/// What a provider calls a login of its own, and when it said so: by its own clock, and not after the node heard it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    pub login: ProviderLogin,
    pub at: UnixTime,
}

/// What a provider calls a login of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderLogin {
    pub name_id: NameId,
    pub session_index: Option<String>,
}

/// Why nobody was authenticated. The texts are for the log: they name no secret and no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    #[error("wrong user name or password")]
    BadCredentials,
    #[error("too many attempts, again in {} s", retry_after.as_secs())]
    Throttled { retry_after: Duration },
    /// The answer belongs to no login of this browser, or to one that is over.
    #[error("no such login in this browser")]
    State,
    /// The person or their provider said no.
    #[error("the identity provider refused: {0}")]
    Refused(String),
    /// The provider's answer does not verify.
    #[error("the identity provider's answer: {0}")]
    Answer(String),
    /// A login that the provider remembered does not do, and it is not known to be another.
    #[error("the identity provider did not say that the person proved anew who they are")]
    NotAnew,
    #[error("the identity provider is unavailable: {0}")]
    Unavailable(String),
    #[error("internal: {0}")]
    Internal(String),
}

impl LoginError {
    pub const fn reason(&self) -> Reason {
        match self {
            Self::BadCredentials => Reason::BadCredentials,
            Self::Throttled { .. } => Reason::Throttled,
            Self::State => Reason::BadState,
            Self::Refused(_) | Self::Answer(_) => Reason::ProviderAnswer,
            Self::NotAnew => Reason::NotAnew,
            Self::Unavailable(_) => Reason::ProviderUnavailable,
            Self::Internal(_) => Reason::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_be_new_is_not() {
        let authenticated = |at: Option<i64>| Authenticated {
            person: PersonId { provider: "okta".into(), subject: "ann".into() },
            email: None,
            display_name: "Ann".into(),
            groups: vec![],
            amr: vec![],
            authenticated_at: at.map(UnixTime),
            ends_at: None,
            at_provider: None,
        };
        let since = Some(UnixTime(1000));
        for (at, since, good) in [
            (None, None, true),
            (Some(0), None, true),
            (None, since, false),
            (Some(939), since, false),
            (Some(940), since, true),
            (Some(1000), since, true),
        ] {
            let held = authenticated(at).anew(since);
            assert_eq!(held.is_ok(), good, "{at:?} since {since:?}");
            assert!(good || held == Err(LoginError::NotAnew));
        }
    }
}
