//! Rules and policies.

use std::time::Duration;

use crate::flow::Facts;

use super::Selector;

/// `include` = any, `require` = all, `exclude` = none. A rule without `include` matches nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub include: Vec<Selector>,
    pub require: Vec<Selector>,
    pub exclude: Vec<Selector>,
}

impl Rule {
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.include.iter().any(|selector| selector.matches(facts))
            && self.require.iter().all(|selector| selector.matches(facts))
            && !self.exclude.iter().any(|selector| selector.matches(facts))
    }

    pub fn needs_identity(&self) -> bool {
        self.selectors().any(Selector::needs_identity)
    }

    /// Names of the service tokens it asks for.
    pub fn service_tokens(&self) -> Vec<&str> {
        self.selectors().flat_map(Selector::service_tokens).collect()
    }

    fn selectors(&self) -> impl Iterator<Item = &Selector> {
        self.include.iter().chain(&self.require).chain(&self.exclude)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Block,
    /// Lets everybody who matches through without an identity; mints nothing.
    Bypass,
    /// Lets a service through that has proven a service token; nobody is logged in.
    ServiceAuth,
}

impl Action {
    /// Whether it knows requests only, not people: it then comes first, and no selector may ask who is logged in.
    pub const fn is_of_requests(self) -> bool {
        match self {
            Self::Bypass | Self::ServiceAuth => true,
            Self::Allow | Self::Block => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub name: String,
    pub action: Action,
    pub rule: Rule,
    /// Life of an application token made under this policy.
    pub session: Option<Duration>,
}
