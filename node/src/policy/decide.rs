//! The decision. Pure and total: no I/O, no clock of its own.
//!
//! Order: `bypass` and `service_auth` policies first, top to bottom; then `allow` and `block`, top to bottom; the first match stops; no
//! match denies. A false allow opens an application to a stranger; a false deny shows a page with a ray id.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::{Application, Facts, Kind, Private, Reason, Saas, Service, Session, UnixTime, Web};

use super::{Action, Policy, PolicySet};

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Decision {
    Allow(Permit),
    /// Somebody has to log in first.
    Login(Need),
    Deny(Denial),
}

/// What a login must satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Names of the identity providers that may be used; empty means all.
    pub providers: Vec<String>,
}

/// A refusal and the policy that made it, where one did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    pub reason: Reason,
    pub policy: Option<String>,
}

/// Proof that policy allowed one request to one application. Proxy, tunnel streams and token minting accept nothing
/// else, and only [`decide`] can make one.
#[derive(Debug, Clone)]
pub struct Permit {
    application: Arc<Application>,
    to: Bearer,
    policy: String,
    /// Life of an application token made from this permit.
    token_life: Duration,
    decided_at: UnixTime,
}

/// Whom a permit was granted to.
#[derive(Debug, Clone)]
enum Bearer {
    Person(Arc<Session>),
    Service(Arc<Service>),
    /// By a bypass.
    Nobody,
}

/// A permit for an application of one kind: what it takes to reach the target of that kind, where the kind has been
/// told apart once and needs no second look.
#[derive(Debug)]
pub struct PermitOf<'a, K> {
    permit: &'a Permit,
    kind: &'a K,
}

/// A permit by the kind of its application.
#[derive(Debug, Clone, Copy)]
pub enum PermitKind<'a> {
    Web(PermitOf<'a, Web>),
    Private(PermitOf<'a, Private>),
    Saas(PermitOf<'a, Saas>),
}

impl<'a, K> PermitOf<'a, K> {
    pub const fn permit(&self) -> &'a Permit {
        self.permit
    }

    /// What the application is as one of its kind.
    pub const fn kind(&self) -> &'a K {
        self.kind
    }
}

impl<K> Clone for PermitOf<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for PermitOf<'_, K> {}

/// Application tokens live this long unless policy or application say otherwise.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

impl Permit {
    pub fn application(&self) -> &Arc<Application> {
        &self.application
    }

    /// The same permit, by the kind of its application.
    pub fn kind(&self) -> PermitKind<'_> {
        match &self.application.kind {
            Kind::Web(web) => PermitKind::Web(PermitOf { permit: self, kind: web }),
            Kind::Private(private) => PermitKind::Private(PermitOf { permit: self, kind: private }),
            Kind::Saas(saas) => PermitKind::Saas(PermitOf { permit: self, kind: saas }),
        }
    }

    /// The session of the person it was granted to.
    pub fn session(&self) -> Option<&Arc<Session>> {
        match &self.to {
            Bearer::Person(session) => Some(session),
            Bearer::Service(_) | Bearer::Nobody => None,
        }
    }

    /// The service it was granted to.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match &self.to {
            Bearer::Service(service) => Some(service),
            Bearer::Person(_) | Bearer::Nobody => None,
        }
    }

    /// The policy that allowed.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// When an application token made from this permit ends: never after the global session or the service token.
    pub fn token_expires_at(&self) -> UnixTime {
        let own = self.decided_at.after(self.token_life);
        match &self.to {
            Bearer::Person(session) => own.min(session.expires_at),
            Bearer::Service(service) => own.min(service.expires_at),
            Bearer::Nobody => own,
        }
    }
}

/// Decides about one request at `now`.
pub fn decide(policies: &PolicySet, facts: &Facts<'_>, now: UnixTime) -> Decision {
    let Some(application) = policies.application(&facts.application.name) else {
        return deny(Reason::NoApplication, None);
    };
    let of_application: Vec<&Policy> =
        application.policies.iter().filter_map(|name| policies.policy(name)).collect();

    // An expired credential proves nothing, whoever asks.
    let service = facts.service.filter(|service| service.expires_at > now);
    let facts = &Facts { service, ..*facts };
    let unasked = Facts { session: None, ..*facts };
    for policy in of_application.iter().filter(|p| p.rule.matches(&unasked)) {
        match (policy.action, service) {
            (Action::Bypass, _) => {
                return Decision::Allow(permit(application, Bearer::Nobody, policy, now));
            }
            (Action::ServiceAuth, Some(service)) => {
                let to = Bearer::Service(Arc::clone(service));
                return Decision::Allow(permit(application, to, policy, now));
            }
            (Action::ServiceAuth, None) | (Action::Allow | Action::Block, _) => {}
        }
    }

    let mut deciding = of_application.iter().filter(|p| !p.action.is_of_requests()).peekable();
    if !of_application.iter().any(|p| p.action == Action::Allow) {
        return match deciding.find(|p| p.rule.matches(facts)) {
            Some(policy) => deny(Reason::Blocked, Some(&policy.name)),
            None if of_application.iter().any(|p| p.action == Action::ServiceAuth) => {
                deny(Reason::NoMatch, None)
            }
            None => deny(Reason::NoPolicy, None),
        };
    }
    let Some(session) = facts.session else {
        // A program cannot log in.
        if service.is_some() {
            return deny(Reason::NoMatch, None);
        }
        return Decision::Login(Need { providers: application.providers.clone() });
    };
    if session.expires_at <= now {
        return deny(Reason::SessionEnded, None);
    }
    if !application.providers.is_empty() && !application.providers.contains(&session.person.provider) {
        return deny(Reason::ProviderNotAllowed, None);
    }
    match deciding.find(|p| p.rule.matches(facts)) {
        Some(policy) if policy.action == Action::Allow => {
            Decision::Allow(permit(application, Bearer::Person(Arc::clone(session)), policy, now))
        }
        Some(policy) => deny(Reason::Blocked, Some(&policy.name)),
        None => deny(Reason::NoMatch, None),
    }
}

fn permit(application: &Arc<Application>, to: Bearer, policy: &Policy, now: UnixTime) -> Permit {
    Permit {
        application: Arc::clone(application),
        to,
        policy: policy.name.clone(),
        token_life: policy.session.or(application.session).unwrap_or(DEFAULT_TOKEN_LIFE),
        decided_at: now,
    }
}

fn deny(reason: Reason, policy: Option<&String>) -> Decision {
    Decision::Deny(Denial { reason, policy: policy.cloned() })
}

#[cfg(test)]
mod tests;
