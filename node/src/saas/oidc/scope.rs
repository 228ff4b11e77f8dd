//! Scopes (RFC 6749 §3.3, OpenID Connect Core 1.0 §5.4 and §11).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    Openid,
    Email,
    Profile,
    Groups,
    OfflineAccess,
}

impl Scope {
    pub(crate) const ALL: [Self; 5] =
        [Self::Openid, Self::Email, Self::Profile, Self::Groups, Self::OfflineAccess];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Openid => "openid",
            Self::Email => "email",
            Self::Profile => "profile",
            Self::Groups => "groups",
            Self::OfflineAccess => "offline_access",
        }
    }
}

/// What was asked for and granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// The scopes that are known; others are passed over (OpenID Connect Core 1.0 §3.1.2.1).
    pub(crate) fn parse(text: &str) -> Self {
        let known = |word: &str| Scope::ALL.into_iter().find(|scope| scope.as_str() == word);
        Self(text.split(' ').filter_map(known).collect())
    }

    pub(crate) fn has(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }

    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    pub(crate) fn text(&self) -> String {
        self.0.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ")
    }
}
