use proptest::prelude::*;

use super::super::{Rule, Selector};
use super::*;
use crate::flow::{
    Aud, EncodedSlash, Host, HostPattern, Origin, OriginScheme, Path, PersonId, ServiceId, SessionId,
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
        is_local: None,
        email: Some(email.parse().unwrap()),
        display_name: email.into(),
        groups: vec!["ops".into()],
        amr: vec!["pwd".into()],
        address: [192, 0, 2, 1].into(),
        authenticated_at: None,
        created_at: NOW,
        expires_at: UnixTime(NOW.0 + 3600),
    })
}

fn run(application: Application, policies: Vec<Policy>, session: Option<&Arc<Session>>) -> Decision {
    let set = PolicySet::new(vec![application.clone()], policies);
    let facts = Facts { application: &application, session, service: None, address: [192, 0, 2, 7].into() };
    decide(&set, &facts, NOW)
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
        let Decision::Allow(permit) = run(application(&["allow"]), vec![allow.clone()], Some(&ann)) else {
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

fn service(name: &str) -> Arc<Service> {
    let client_id = ServiceId::from_bytes([7; 16]);
    Arc::new(Service { name: name.into(), client_id, expires_at: UnixTime(NOW.0 + 60) })
}

fn ask(policies: &[Policy], session: Option<&Arc<Session>>, service: Option<&Arc<Service>>) -> Decision {
    let names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
    let wiki = application(&names);
    let set = PolicySet::new(vec![wiki.clone()], policies.to_vec());
    decide(&set, &Facts { application: &wiki, session, service, address: [192, 0, 2, 7].into() }, NOW)
}

#[test]
fn a_service_is_let_in_by_its_credential_and_nothing_else() {
    let (ann, ci) = (session("ann@example.com"), service("ci"));
    let named = policy("named", Action::ServiceAuth, vec![Selector::ServiceToken("ci".into())]);
    let any = policy("any", Action::ServiceAuth, vec![Selector::AnyServiceToken]);
    let here = policy("here", Action::ServiceAuth, vec![Selector::Ip("192.0.2.0/24".parse().unwrap())]);
    for auth in [&named, &any, &here] {
        let only = std::slice::from_ref(auth);
        let Decision::Allow(permit) = ask(only, Some(&ann), Some(&ci)) else { panic!("{}", auth.name) };
        assert!(permit.session().is_none() && permit.service() == Some(&ci));
        assert_eq!(permit.token_expires_at(), ci.expires_at);
        // Neither a place nor a login is a credential.
        for who in [None, Some(&ann)] {
            assert!(matches!(ask(only, who, None), Decision::Deny(d) if d.reason == Reason::NoMatch));
        }
    }
    let old = Arc::new(Service { expires_at: NOW, ..(*ci).clone() });
    for other in [service("cd"), old] {
        let decision = ask(std::slice::from_ref(&named), None, Some(&other));
        assert!(matches!(decision, Decision::Deny(d) if d.reason == Reason::NoMatch));
    }
}

#[test]
fn a_service_does_not_log_in() {
    let allow = policy("allow", Action::Allow, vec![Selector::Everyone]);
    let auth = policy("auth", Action::ServiceAuth, vec![Selector::ServiceToken("cd".into())]);
    let both = [allow, auth];
    assert!(matches!(ask(&both, None, None), Decision::Login(_)));
    assert!(
        matches!(ask(&both, None, Some(&service("ci"))), Decision::Deny(d) if d.reason == Reason::NoMatch)
    );
    let ann = session("ann@example.com");
    let Decision::Allow(permit) = ask(&both, Some(&ann), Some(&service("ci"))) else { panic!("ann") };
    assert!(permit.service().is_none() && permit.session().is_some());
}

#[test]
fn a_person_may_be_asked_for_a_service_token_too() {
    let mut allow = policy("allow", Action::Allow, vec![Selector::Everyone]);
    allow.rule.require = vec![Selector::AnyServiceToken];
    let (ann, only) = (session("ann@example.com"), [allow]);
    assert!(matches!(ask(&only, Some(&ann), None), Decision::Deny(d) if d.reason == Reason::NoMatch));
    assert!(matches!(ask(&only, Some(&ann), Some(&service("ci"))), Decision::Allow(_)));
}

#[test]
fn bypass_and_service_auth_come_first_from_top_to_bottom() {
    let ci = service("ci");
    let block = policy("block", Action::Block, vec![Selector::Everyone]);
    let open = policy("open", Action::Bypass, vec![Selector::Everyone]);
    let auth = policy("auth", Action::ServiceAuth, vec![Selector::Everyone]);
    for (order, first) in [([&block, &open, &auth], "open"), ([&block, &auth, &open], "auth")] {
        let decision = ask(&order.map(Clone::clone), None, Some(&ci));
        assert!(matches!(decision, Decision::Allow(permit) if permit.policy() == first));
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
        Just(Selector::ServiceToken("ci".into())),
        Just(Selector::AnyServiceToken),
    ]
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let some = || proptest::collection::vec(selectors(), 0..3);
    let action = prop_oneof![
        Just(Action::Allow),
        Just(Action::Block),
        Just(Action::Bypass),
        Just(Action::ServiceAuth)
    ];
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
    fn agrees_with_the_order_spelled_out(policies in policies(), logged_in: bool, proven: bool) {
        let names: Vec<String> = policies.iter().map(|p| p.name.clone()).collect();
        let wiki = application(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let (ann, ci) = (session("ann@example.com"), service("ci"));
        let (who, what) = (logged_in.then_some(&ann), proven.then_some(&ci));
        let facts = Facts { application: &wiki, session: who, service: what, address: [192, 0, 2, 7].into() };
        let nobody = Facts { session: None, ..facts };
        let unasked = policies.iter().find(|p| {
            let good = p.action == Action::Bypass || (p.action == Action::ServiceAuth && proven);
            good && p.rule.matches(&nobody)
        });
        let first = policies
            .iter()
            .find(|p| matches!(p.action, Action::Allow | Action::Block) && p.rule.matches(&facts));
        let could_allow = policies.iter().any(|p| p.action == Action::Allow);
        match ask(&policies, who, what) {
            Decision::Allow(permit) => {
                let by = unasked.or(first.filter(|p| p.action == Action::Allow)).map(|p| (p.action, p.name.as_str()));
                let bearer = match (permit.session(), permit.service()) {
                    (Some(_), None) => Action::Allow,
                    (None, Some(_)) => Action::ServiceAuth,
                    (None, None) => Action::Bypass,
                    (Some(_), Some(_)) => panic!("one bearer"),
                };
                prop_assert_eq!(by, Some((bearer, permit.policy())));
                prop_assert!(logged_in || bearer != Action::Allow);
                prop_assert!(proven || bearer != Action::ServiceAuth);
            }
            Decision::Login(_) => prop_assert!(unasked.is_none() && !logged_in && !proven && could_allow),
            Decision::Deny(_) => {
                prop_assert!(unasked.is_none());
                prop_assert!(
                    !could_allow || (!logged_in && proven) || first.is_none_or(|p| p.action == Action::Block)
                );
            }
        }
    }
}
