//! The decision. Pure and total: no I/O, no clock of its own.
//!
//! Order: `bypass` policies first, top to bottom; then `allow` and `block`, top to bottom; the first match stops; no
//! match denies. A false allow opens an application to a stranger; a false deny shows a page with a ray id.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::{Application, Facts, Kind, Private, Reason, Session, UnixTime, Web};

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
    session: Option<Arc<Session>>,
    policy: String,
    /// Life of an application token made from this permit.
    token_life: Duration,
    decided_at: UnixTime,
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
        }
    }

    /// The session it was granted to; nobody for a bypass.
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref()
    }

    /// The policy that allowed.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// When an application token made from this permit ends: never after the global session.
    pub fn token_expires_at(&self) -> UnixTime {
        let own = self.decided_at.after(self.token_life);
        self.session.as_ref().map_or(own, |session| own.min(session.expires_at))
    }
}

/// Decides about one request at `now`.
pub fn decide(policies: &PolicySet, facts: &Facts<'_>, now: UnixTime) -> Decision {
    let Some(application) = policies.application(&facts.application.name) else {
        return deny(Reason::NoApplication, None);
    };
    let of_application: Vec<&Policy> =
        application.policies.iter().filter_map(|name| policies.policy(name)).collect();

    let anonymous = Facts { session: None, ..*facts };
    if let Some(policy) =
        of_application.iter().find(|p| p.action == Action::Bypass && p.rule.matches(&anonymous))
    {
        return Decision::Allow(permit(application, None, policy, now));
    }

    let mut deciding = of_application.iter().filter(|p| p.action != Action::Bypass).peekable();
    if !of_application.iter().any(|p| p.action == Action::Allow) {
        return match deciding.find(|p| p.rule.matches(facts)) {
            Some(policy) => deny(Reason::Blocked, Some(&policy.name)),
            None => deny(Reason::NoPolicy, None),
        };
    }
    let Some(session) = facts.session else {
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
            Decision::Allow(permit(application, Some(Arc::clone(session)), policy, now))
        }
        Some(policy) => deny(Reason::Blocked, Some(&policy.name)),
        None => deny(Reason::NoMatch, None),
    }
}

fn permit(
    application: &Arc<Application>,
    session: Option<Arc<Session>>,
    policy: &Policy,
    now: UnixTime,
) -> Permit {
    Permit {
        application: Arc::clone(application),
        session,
        policy: policy.name.clone(),
        token_life: policy.session.or(application.session).unwrap_or(DEFAULT_TOKEN_LIFE),
        decided_at: now,
    }
}

fn deny(reason: Reason, policy: Option<&String>) -> Decision {
    Decision::Deny(Denial { reason, policy: policy.cloned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Rule, Selector};
    use super::*;
    use crate::flow::{
        Aud, EncodedSlash, Host, HostPattern, Origin, OriginScheme, Path, PersonId, SessionId,
    };

    const NOW: UnixTime = UnixTime(1_000_000);

    fn application(policies: &[&str]) -> Application {
        let host = Host::parse("wiki.example.com").unwrap();
        Application {
            name: "wiki".into(),
            aud: Aud::derive(&host, "wiki"),
            policies: policies.iter().map(|name| (*name).into()).collect(),
            providers: Vec::new(),
            session: None,
            launcher: true,
            kind: Kind::Web(Web {
                host: HostPattern::Exact(host.clone()),
                path: Path::parse("/", false).unwrap(),
                origin: Origin {
                    scheme: OriginScheme::Http,
                    host,
                    port: 80,
                    connector: None,
                    ca: None,
                    server_name: None,
                    host_header: None,
                },
                allowed_origins: Vec::new(),
                encoded_slash: EncodedSlash::Reject,
            }),
        }
    }

    fn policy(name: &str, action: Action, include: Vec<Selector>) -> Policy {
        Policy { name: name.into(), action, rule: Rule { include, ..Rule::default() }, session: None }
    }

    fn session(email: &str) -> Arc<Session> {
        Arc::new(Session {
            id: SessionId::from_bytes([1; 16]),
            person: PersonId { provider: "local".into(), subject: email.into() },
            email: Some(email.parse().unwrap()),
            display_name: email.into(),
            groups: vec!["ops".into()],
            amr: vec!["pwd".into()],
            address: [192, 0, 2, 1].into(),
            created_at: NOW,
            expires_at: UnixTime(NOW.0 + 3600),
        })
    }

    fn run(application: Application, policies: Vec<Policy>, session: Option<&Arc<Session>>) -> Decision {
        let set = PolicySet::new(vec![application.clone()], policies);
        decide(&set, &Facts { application: &application, session, address: [192, 0, 2, 7].into() }, NOW)
    }

    fn email(text: &str) -> Selector {
        Selector::Email(text.parse().unwrap())
    }

    #[test]
    fn empty_means_deny() {
        let ann = session("ann@example.com");
        for who in [None, Some(&ann)] {
            assert!(
                matches!(run(application(&[]), vec![], who), Decision::Deny(d) if d.reason == Reason::NoPolicy)
            );
        }
        let nobody = policy("nobody", Action::Allow, vec![]);
        assert!(
            matches!(run(application(&["nobody"]), vec![nobody], Some(&ann)), Decision::Deny(d) if d.reason == Reason::NoMatch)
        );
    }

    #[test]
    fn a_path_with_a_policy_for_each_reading_is_told_apart() {
        let at = |name: &str, path: &str| {
            let mut application = application(&[]);
            application.name = name.into();
            let Kind::Web(web) = &mut application.kind else { panic!("web") };
            web.path = Path::parse(path, false).unwrap();
            application
        };
        let host = Host::parse("wiki.example.com").unwrap();
        let two = PolicySet::new(vec![at("all", "/"), at("admin", "/admin")], vec![]);
        let one = PolicySet::new(vec![at("all", "/")], vec![]);
        for (path, second) in [
            ("/admin", false),
            ("/admin/users;x=1", false),
            ("/page;x=1/Y", false),
            ("/administration", false),
            ("/admin;x=1/users", true),
            ("/Admin/users", true),
            ("/ADMIN;", true),
        ] {
            let path = Path::parse(path, false).unwrap();
            assert_eq!(two.has_second_reading(&host, &path), second, "{path}");
            assert!(!one.has_second_reading(&host, &path), "{path}");
        }
    }

    #[test]
    fn the_first_match_stops() {
        let ann = session("ann@example.com");
        let block = policy("block", Action::Block, vec![email("ann@example.com")]);
        let allow = policy("allow", Action::Allow, vec![Selector::Everyone]);
        let policies = vec![block, allow];
        assert!(matches!(
            run(application(&["block", "allow"]), policies.clone(), Some(&ann)),
            Decision::Deny(Denial { reason: Reason::Blocked, policy: Some(name) }) if name == "block"
        ));
        assert!(matches!(
            run(application(&["allow", "block"]), policies, Some(&ann)),
            Decision::Allow(permit) if permit.policy() == "allow"
        ));
    }

    #[test]
    fn a_bypass_comes_first_and_is_anonymous() {
        let ann = session("ann@example.com");
        let block = policy("block", Action::Block, vec![Selector::Everyone]);
        let bypass = policy("open", Action::Bypass, vec![Selector::Ip("192.0.2.0/24".parse().unwrap())]);
        assert!(matches!(
            run(application(&["block", "open"]), vec![block, bypass], Some(&ann)),
            Decision::Allow(permit) if permit.session().is_none()
        ));
    }

    #[test]
    fn nobody_is_sent_to_log_in_and_an_old_session_is_refused() {
        let allow = policy("allow", Action::Allow, vec![Selector::Everyone]);
        assert!(matches!(run(application(&["allow"]), vec![allow.clone()], None), Decision::Login(_)));
        let mut ann = session("ann@example.com");
        Arc::make_mut(&mut ann).expires_at = NOW;
        assert!(
            matches!(run(application(&["allow"]), vec![allow], Some(&ann)), Decision::Deny(d) if d.reason == Reason::SessionEnded)
        );
    }

    #[test]
    fn the_providers_of_an_application_are_binding() {
        let ann = session("ann@example.com");
        let allow = policy("allow", Action::Allow, vec![Selector::Everyone]);
        let mut wiki = application(&["allow"]);
        wiki.providers = vec!["okta".into()];
        assert!(
            matches!(run(wiki, vec![allow], Some(&ann)), Decision::Deny(d) if d.reason == Reason::ProviderNotAllowed)
        );
    }

    #[test]
    fn a_token_never_outlives_the_session() {
        let ann = session("ann@example.com");
        let mut allow = policy("allow", Action::Allow, vec![Selector::Everyone]);
        for (life, expected) in [(60, NOW.0 + 60), (7200, NOW.0 + 3600)] {
            allow.session = Some(Duration::from_secs(life));
            let Decision::Allow(permit) = run(application(&["allow"]), vec![allow.clone()], Some(&ann))
            else {
                panic!("allowed");
            };
            assert_eq!(permit.token_expires_at(), UnixTime(expected));
        }
    }

    #[test]
    fn an_email_domain_is_no_suffix() {
        let allow = policy("corp", Action::Allow, vec![Selector::EmailDomain("corp.com".into())]);
        for (who, allowed) in [
            ("a@corp.com", true),
            ("a@exploitcorp.com", false),
            ("a@sub.corp.com", false),
            ("a@corp.com.evil", false),
        ] {
            let decision = run(application(&["corp"]), vec![allow.clone()], Some(&session(who)));
            assert_eq!(matches!(decision, Decision::Allow(_)), allowed, "{who}");
        }
    }

    fn selectors() -> impl Strategy<Value = Selector> {
        prop_oneof![
            Just(Selector::Everyone),
            Just(Selector::Email("ann@example.com".parse().unwrap())),
            Just(Selector::EmailDomain("example.com".into())),
            Just(Selector::Group("ops".into())),
            Just(Selector::IdentityProvider("okta".into())),
            Just(Selector::Ip("192.0.2.0/24".parse().unwrap())),
            Just(Selector::Ip("2001:db8::/32".parse().unwrap())),
        ]
    }

    fn policies() -> impl Strategy<Value = Vec<Policy>> {
        let some = || proptest::collection::vec(selectors(), 0..3);
        let action = prop_oneof![Just(Action::Allow), Just(Action::Block), Just(Action::Bypass)];
        let one = (action, some(), some(), some()).prop_map(|(action, include, require, exclude)| Policy {
            name: String::new(),
            action,
            rule: Rule { include, require, exclude },
            session: None,
        });
        proptest::collection::vec(one, 0..5).prop_map(|mut all| {
            for (index, policy) in all.iter_mut().enumerate() {
                policy.name = format!("p{index}");
            }
            all
        })
    }

    proptest! {
        /// The same order, written as a plain search over all policies.
        #[test]
        fn agrees_with_the_order_spelled_out(policies in policies(), logged_in: bool) {
            let names: Vec<String> = policies.iter().map(|p| p.name.clone()).collect();
            let wiki = application(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let ann = session("ann@example.com");
            let who = logged_in.then_some(&ann);
            let facts = Facts { application: &wiki, session: who, address: [192, 0, 2, 7].into() };
            let nobody = Facts { session: None, ..facts };
            let bypassed = policies.iter().any(|p| p.action == Action::Bypass && p.rule.matches(&nobody));
            let first = policies.iter().find(|p| p.action != Action::Bypass && p.rule.matches(&facts));
            let could_allow = policies.iter().any(|p| p.action == Action::Allow);
            match run(wiki.clone(), policies.clone(), who) {
                Decision::Allow(permit) if permit.session().is_none() => prop_assert!(bypassed),
                Decision::Allow(permit) => {
                    prop_assert!(!bypassed && logged_in);
                    prop_assert_eq!(first.map(|p| (p.action, p.name.as_str())), Some((Action::Allow, permit.policy())));
                }
                Decision::Login(_) => prop_assert!(!bypassed && !logged_in && could_allow),
                Decision::Deny(_) => {
                    prop_assert!(!bypassed);
                    prop_assert!(!could_allow || first.is_none_or(|p| p.action == Action::Block));
                }
            }
        }
    }
}
