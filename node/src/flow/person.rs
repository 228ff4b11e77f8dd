//! People and their sessions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{SessionId, UnixTime};

/// Who a person is: the subject a provider vouches for. Equal emails of different providers are different people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PersonId {
    /// Name of the identity provider in the configuration.
    pub provider: String,
    /// The provider's own stable identifier (`sub` of OpenID Connect).
    pub subject: String,
}

impl fmt::Display for PersonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.provider, self.subject)
    }
}

/// An email address that a provider has verified, in lower case. ASCII only: look-alikes of other scripts are
/// refused rather than folded, so that two spellings never name one person.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Email(String);

/// The text is no address that can be compared safely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an email address: expected local@domain in printable ASCII with one @")]
pub struct EmailError;

impl Email {
    /// The part behind the `@`.
    pub fn domain(&self) -> &str {
        self.0.split_once('@').map_or("", |(_, domain)| domain)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Email {
    type Err = EmailError;

    fn from_str(text: &str) -> Result<Self, EmailError> {
        let (local, domain) = text.split_once('@').ok_or(EmailError)?;
        let local_ok = !local.is_empty()
            && local.len() <= 64
            && local.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b));
        let domain_ok = domain.len() <= 253
            && domain.split('.').all(|label| {
                !label.is_empty()
                    && label.len() <= 63
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            });
        if local_ok && domain_ok { Ok(Self(text.to_ascii_lowercase())) } else { Err(EmailError) }
    }
}

impl TryFrom<String> for Email {
    type Error = EmailError;

    fn try_from(text: String) -> Result<Self, EmailError> {
        text.parse()
    }
}

impl From<Email> for String {
    fn from(email: Email) -> Self {
        email.0
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A global session: one login, with the identity facts of that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: SessionId,
    pub person: PersonId,
    /// Whether it began with a password of a local user, whatever the configuration called their provider then. Unknown of
    /// one that an older version began.
    #[serde(default)]
    pub is_local: Option<bool>,
    /// Absent when the provider did not verify one; then no selector matches by email.
    pub email: Option<Email>,
    /// What pages show.
    pub display_name: String,
    pub groups: Vec<String>,
    /// Authentication methods (RFC 8176).
    pub amr: Vec<String>,
    /// Where the login came from.
    pub address: std::net::IpAddr,
    /// When the person proved who they are; unknown where their provider did not say.
    pub authenticated_at: Option<UnixTime>,
    pub created_at: UnixTime,
    pub expires_at: UnixTime,
}

impl Session {
    /// Whether it began after `moment` with a proof from after it. A provider's clock may be behind by
    /// [`UnixTime::SKEW`].
    pub fn is_newer_than(&self, moment: UnixTime) -> bool {
        let proven = self.authenticated_at.is_some_and(|at| at >= moment.before(UnixTime::SKEW));
        proven && self.created_at >= moment
    }

    /// Whether it is one of the local user `name`. One that an older version began is taken for local: to end somebody
    /// else's of the same name costs a login, to miss one leaves a removed user in.
    pub fn is_of_local_user(&self, name: &str) -> bool {
        self.person.subject == name && self.is_local.unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn look_alikes_are_refused_not_folded() {
        for text in [
            "a@evil@corp",
            "a\u{ff20}corp.com",
            "\u{131}a@corp.com",
            "\u{430}@corp.com",
            "a@",
            "@b",
            "a b@c.d",
            "a@b..c",
            "a@-b.c",
            "a\r\n@b.c",
            "",
        ] {
            assert_eq!(text.parse::<Email>(), Err(EmailError), "{text:?}");
        }
        let email: Email = "Ann@Corp.COM".parse().unwrap();
        assert_eq!((email.as_str(), email.domain()), ("ann@corp.com", "corp.com"));
    }

    proptest! {
        #[test]
        fn emails_survive_their_text(text in ".{0,60}") {
            if let Ok(email) = text.parse::<Email>() {
                prop_assert_eq!(email.as_str().parse::<Email>(), Ok(email.clone()));
            }
        }
    }
}
