//! What is signed, read back by another reader: `ssh-keygen` and a real server do so in the end-to-end tests.

use ssh_key::Certificate;

use super::*;
use crate::flow::{Application, Aud, Facts, Host, Kind, PersonId, Protocol, SessionId, SshSettings, Target};
use crate::policy::{Action, Decision, Permit, PermitKind, Policy, PolicySet, Rule, Selector, decide};

const NOW: UnixTime = UnixTime(1_800_000_000);
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ann@laptop";

fn application(name: &str, ssh: Option<SshSettings>) -> Application {
    let domain = Host::parse("access.example.com").unwrap();
    Application {
        name: name.into(),
        aud: Aud::derive(&domain, name),
        policies: vec!["staff".into(), "machines".into()],
        providers: vec![],
        session: None,
        launcher: true,
        kind: Kind::Private(Private {
            protocol: Protocol::Ssh,
            target: Target::Single { host: domain, port: 22 },
            connector: "hq".into(),
            host: None,
            ssh,
        }),
    }
}

fn settings() -> SshSettings {
    SshSettings { users: vec!["deploy".into()], email_user_domains: vec!["example.com".into()] }
}

fn permit(application: &Application, subject: &str, lives: u64) -> Permit {
    let rule = Rule { include: vec![Selector::Everyone], require: vec![], exclude: vec![] };
    let policy = Policy { name: "staff".into(), action: Action::Allow, rule, session: None };
    let policies = PolicySet::new(vec![application.clone()], vec![policy]);
    let session = Arc::new(Session {
        id: SessionId::from_bytes([1; 16]),
        person: PersonId { provider: "local".into(), subject: subject.into() },
        is_local: None,
        email: Some("ann@example.com".parse().unwrap()),
        display_name: "Ann".into(),
        groups: vec![],
        amr: vec![],
        address: [192, 0, 2, 1].into(),
        authenticated_at: None,
        created_at: NOW,
        expires_at: NOW.after(Duration::from_secs(lives)),
    });
    let facts = Facts { application, session: Some(&session), service: None, address: [192, 0, 2, 1].into() };
    match decide(&policies, &facts, NOW) {
        Decision::Allow(permit) => permit,
        other => panic!("{other:?}"),
    }
}

async fn sign(ca: &SshCa, permit: &Permit, key: &str, until: UnixTime) -> Result<Signed, SshCaError> {
    let PermitKind::Private(permit) = permit.kind() else { panic!("private") };
    ca.sign(permit, key, RayId::from_bytes([7; 8]), until, NOW).await
}

fn store(directory: &std::path::Path) -> SshCa {
    SshCa::new(Store::open(directory).unwrap())
}

#[tokio::test]
async fn a_certificate_says_who_for_how_long_and_nothing_more() {
    let directory = tempfile::tempdir().unwrap();
    let ca = store(directory.path());
    let prod = application("prod", Some(settings()));
    let late = NOW.after(Duration::from_secs(9000));
    let signed = sign(&ca, &permit(&prod, "ann\n\u{202e}x", 9000), KEY, late).await.unwrap();
    let certificate = Certificate::from_openssh(&signed.certificate).unwrap();
    assert_eq!(certificate.valid_principals(), ["deploy", "ann"]);
    assert_eq!(certificate.cert_type(), CertType::User);
    assert_eq!((certificate.valid_after(), certificate.valid_before()), (1_799_999_940, 1_800_000_240));
    assert!(certificate.critical_options().is_empty());
    assert_eq!(certificate.extensions().keys().collect::<Vec<_>>(), EXTENSIONS);
    assert_eq!(certificate.key_id(), "ann@example.com local:ann??x ray 0707070707070707");
    assert_eq!((certificate.serial(), certificate.key_id()), (signed.serial, signed.key_id.as_str()));
    let trusted: PublicKey = ca.public_key("prod").await.unwrap().parse().unwrap();
    let trusted = trusted.fingerprint(HashAlg::Sha256);
    certificate.validate_at(1_800_000_000, [&trusted]).unwrap();
    assert!(certificate.validate_at(1_800_000_240, [&trusted]).is_err(), "expired");
    let again = sign(&ca, &permit(&prod, "ann", 9000), KEY, late).await.unwrap();
    assert_ne!(again.serial, signed.serial);
}

#[tokio::test]
async fn an_authority_is_of_one_application_and_survives_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let ca = store(directory.path());
    let (prod, test) = (ca.public_key("prod").await.unwrap(), ca.public_key("test").await.unwrap());
    assert_ne!(prod, test);
    assert!(!format!("{ca:?}").contains("seed"));
    drop(ca);
    let again = store(directory.path());
    assert_eq!(again.public_key("prod").await.unwrap(), prod);
    let copy = directory.path().join("copy");
    Store::open(directory.path()).unwrap().backup(&copy).await.unwrap();
    Store::restore(&directory.path().join("restored"), &copy).unwrap();
    assert_eq!(store(&directory.path().join("restored")).public_key("prod").await.unwrap(), prod);
}

#[tokio::test]
async fn a_certificate_never_outlives_what_it_was_made_from() {
    let directory = tempfile::tempdir().unwrap();
    let ca = store(directory.path());
    let prod = application("prod", Some(settings()));
    let late = NOW.after(Duration::from_secs(9000));
    let short = sign(&ca, &permit(&prod, "ann", 30), KEY, late).await.unwrap();
    assert_eq!(short.expires_at, UnixTime(1_800_000_030), "the session's end");
    let token = sign(&ca, &permit(&prod, "ann", 9000), KEY, UnixTime(1_800_000_050)).await.unwrap();
    assert_eq!(token.expires_at, UnixTime(1_800_000_050), "the token's end");
    let over = sign(&ca, &permit(&prod, "ann", 9000), KEY, NOW).await;
    assert!(matches!(over, Err(SshCaError::Late)));
}

#[tokio::test]
async fn what_is_no_key_or_gives_no_user_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ca = store(directory.path());
    let late = NOW.after(Duration::from_secs(9000));
    let prod = permit(&application("prod", Some(settings())), "ann", 9000);
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDAu7tvIvX6ZHrRXuZNfkR3XLHSsuCK9Zn3X58lxBcQzuo5xZgB6vRwwm/QtJuF+zZPtY5hsQILBLmF+BZ5WpKZp1jBeSjH2G7lxet9kbcH+kIVj0tPFEoyKI9wvWqIwC4prx/WVk2wLTJjzBAhyNxfEq7C9CeiX9pQEbEqJfkKCQ==";
    for key in
        ["", "ssh-ed25519", "ssh-ed25519 AAAA", rsa, &"x".repeat(5000), &KEY.replace("AAAAC3", "AAAAD3")]
    {
        assert!(matches!(sign(&ca, &prod, key, late).await, Err(SshCaError::PublicKey)), "{key}");
    }
    let none = SshSettings { users: vec![], email_user_domains: vec!["else.example".into()] };
    for ssh in [None, Some(none)] {
        let refused = sign(&ca, &permit(&application("prod", ssh), "ann", 9000), KEY, late).await;
        assert!(matches!(refused, Err(SshCaError::NoUser)));
    }
}
