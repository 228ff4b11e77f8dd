//! Selectors: one question about the facts each.

use ipnet::IpNet;

use crate::flow::{Email, Facts};

use super::Rule;

/// One condition. Identity selectors never match where nobody is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Everyone,
    Email(Email),
    /// The exact domain behind the `@`, in lower case; subdomains do not match.
    EmailDomain(String),
    /// A group the identity provider named at login.
    Group(String),
    IdentityProvider(String),
    Ip(IpNet),
    /// The request proves the service token of this name.
    ServiceToken(String),
    /// The request proves some service token.
    AnyServiceToken,
    /// A reusable rule.
    RuleGroup(Box<Rule>),
}

impl Selector {
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Everyone => true,
            Self::Email(email) => facts.session.is_some_and(|s| s.email.as_ref() == Some(email)),
            Self::EmailDomain(domain) => facts
                .session
                .and_then(|session| session.email.as_ref())
                .is_some_and(|email| email.domain() == domain),
            Self::Group(group) => facts.session.is_some_and(|s| s.groups.contains(group)),
            Self::IdentityProvider(name) => facts.session.is_some_and(|s| s.person.provider == *name),
            Self::Ip(network) => network.contains(&facts.address),
            Self::ServiceToken(name) => facts.service.is_some_and(|service| service.name == *name),
            Self::AnyServiceToken => facts.service.is_some(),
            Self::RuleGroup(rule) => rule.matches(facts),
        }
    }

    /// Names of the service tokens it asks for.
    pub fn service_tokens(&self) -> Vec<&str> {
        match self {
            Self::ServiceToken(name) => vec![name],
            Self::RuleGroup(rule) => rule.service_tokens(),
            Self::Everyone
            | Self::Email(_)
            | Self::EmailDomain(_)
            | Self::Group(_)
            | Self::IdentityProvider(_)
            | Self::Ip(_)
            | Self::AnyServiceToken => Vec::new(),
        }
    }

    /// Whether the answer depends on who asks; `bypass` and `service_auth` may not use such a selector.
    pub fn needs_identity(&self) -> bool {
        match self {
            Self::Everyone | Self::Ip(_) | Self::ServiceToken(_) | Self::AnyServiceToken => false,
            Self::Email(_) | Self::EmailDomain(_) | Self::Group(_) | Self::IdentityProvider(_) => true,
            Self::RuleGroup(rule) => rule.needs_identity(),
        }
    }
}
