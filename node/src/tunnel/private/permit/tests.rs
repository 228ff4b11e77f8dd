use super::*;
use crate::flow::{
    Aud, EncodedSlash, Host, HostPattern, Kind, Origin, OriginScheme, Path, PersonId, Ports,
    Protocol as AppProtocol, SessionId, Web,
};
use crate::policy::{Action, Policy, Rule, Selector};

const NOW: UnixTime = UnixTime(1_000_000);

fn login(provider: &str) -> Arc<Session> {
    Arc::new(Session {
        id: SessionId::from_bytes([1; 16]),
        person: PersonId { provider: provider.into(), subject: "ann".into() },
        is_local: None,
        email: Some("ann@example.com".parse().unwrap()),
        display_name: "ann".into(),
        groups: vec!["staff".into()],
        amr: vec![],
        address: [192, 0, 2, 1].into(),
        authenticated_at: None,
        created_at: UnixTime(0),
        expires_at: NOW.after(std::time::Duration::from_secs(600)),
    })
}

fn application(name: &str, kind: Kind) -> Application {
    Application {
        name: name.into(),
        aud: Aud::derive(&Host::parse("access.example.com").unwrap(), name),
        policies: vec!["block".into(), "office".into()],
        providers: vec!["local".into()],
        session: None,
        launcher: true,
        kind,
    }
}

fn private(protocol: AppProtocol, target: Target) -> Kind {
    Kind::Private(Private { protocol, target, connector: "hq".into(), host: None, ssh: None })
}

fn policies() -> PolicySet {
    let host = Host::parse("10.0.0.5").unwrap();
    let single = Target::Single { host: host.clone(), port: 53 };
    let lan = Target::Network {
        prefix: "10.0.0.0/24".parse().unwrap(),
        ports: Ports::new([22..=22, 8000..=8100]).unwrap(),
    };
    let web = Kind::Web(Web {
        host: HostPattern::Exact(Host::parse("wiki.example.com").unwrap()),
        path: Path::parse("/", false).unwrap(),
        origin: Origin {
            scheme: OriginScheme::Http,
            host,
            port: 80,
            connector: Some("hq".into()),
            ca: None,
            server_name: None,
            host_header: None,
        },
        allowed_origins: vec![],
        encoded_slash: EncodedSlash::Reject,
    });
    let policy = |name: &str, action, include| Policy {
        name: name.into(),
        action,
        rule: Rule { include: vec![include], ..Rule::default() },
        session: None,
    };
    PolicySet::new(
        vec![
            application("dns", private(AppProtocol::Udp, single)),
            application("lan", private(AppProtocol::Ssh, lan)),
            application("wiki", web),
        ],
        vec![
            policy("block", Action::Block, Selector::Ip("192.0.2.66/32".parse().unwrap())),
            policy("office", Action::Allow, Selector::Ip("192.0.2.0/24".parse().unwrap())),
        ],
    )
}

fn ask(
    application: &str,
    destination: Option<&str>,
    address: &str,
    provider: &str,
) -> Result<Allowed, Refused> {
    let destination = destination.map(|text| text.parse().unwrap());
    let wanted = Wanted {
        login: &login(provider),
        address: address.parse().unwrap(),
        application,
        destination: destination.as_ref(),
    };
    permit(&policies(), &wanted, NOW)
}

#[test]
fn an_application_leads_to_its_one_address_and_a_network_to_the_one_that_was_named() {
    let dns = ask("dns", None, "192.0.2.7", "local").unwrap();
    assert_eq!((dns.protocol, dns.connector.as_str()), (Protocol::Udp, "hq"));
    assert_eq!(dns.reach, Reach::Host("10.0.0.5:53".parse().unwrap()));
    assert_eq!(dns.permit.policy(), "office");
    // What a grant says can be asked for again.
    assert!(ask("dns", Some("10.0.0.5:53"), "192.0.2.7", "local").is_ok());
    let lan = ask("lan", Some("10.0.0.9:8080"), "::ffff:192.0.2.7", "local").unwrap();
    assert_eq!((lan.protocol, lan.reach), (Protocol::Tcp, Reach::Host("10.0.0.9:8080".parse().unwrap())));
}

#[test]
fn each_refusal_has_its_name_and_its_reason() {
    for (application, destination, address, provider, denial, reason) in [
        ("none", None, "192.0.2.7", "local", Denial::NoApplication, Reason::NoApplication),
        ("wiki", None, "192.0.2.7", "local", Denial::NoApplication, Reason::NoApplication),
        ("dns", None, "192.0.2.66", "local", Denial::NotAllowed, Reason::Blocked),
        ("dns", None, "198.51.100.7", "local", Denial::NotAllowed, Reason::NoMatch),
        ("dns", None, "192.0.2.7", "okta", Denial::LoginNeeded, Reason::ProviderNotAllowed),
        ("dns", Some("10.0.0.6:53"), "192.0.2.7", "local", Denial::Destination, Reason::BadRequest),
        ("lan", None, "192.0.2.7", "local", Denial::Destination, Reason::BadRequest),
        ("lan", Some("10.0.0.9:23"), "192.0.2.7", "local", Denial::Destination, Reason::BadRequest),
        ("lan", Some("db.internal:22"), "192.0.2.7", "local", Denial::Destination, Reason::BadRequest),
        // Whether a destination exists is nothing for those who are not let in.
        ("lan", Some("10.9.9.9:22"), "198.51.100.7", "local", Denial::NotAllowed, Reason::NoMatch),
    ] {
        let refused = ask(application, destination, address, provider).unwrap_err();
        assert_eq!((refused.denial, refused.reason), (denial, reason), "{application} {destination:?}");
        assert_eq!(refused.policy.as_deref(), (reason == Reason::Blocked).then_some("block"));
    }
}

#[test]
fn every_denial_has_words_for_a_person() {
    for denial in [
        Denial::NoApplication,
        Denial::NotAllowed,
        Denial::LoginNeeded,
        Denial::Destination,
        Denial::ConnectorGone,
        Denial::ConnectorOld,
        Denial::ConnectorDeclined,
        Denial::TooManySessions,
        Denial::NodeFull,
        Denial::Internal,
    ] {
        assert!(message(denial, "db").contains("`db`"), "{denial:?}");
    }
    assert!(message(Denial::Gone, "").contains("over"));
}
