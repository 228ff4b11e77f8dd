use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::flow::{ClientAuthentication, PersonId};

const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

fn client(public: bool) -> OidcClient {
    OidcClient {
        id: "git".into(),
        authentication: if public {
            ClientAuthentication::None
        } else {
            ClientAuthentication::Secret([0; 32])
        },
        redirect_uris: vec!["https://git.example.org/cb".into(), "org.example.app:/cb".into()],
        post_logout_redirect_uris: vec![],
        backchannel_logout: None,
        claims: BTreeMap::new(),
    }
}

/// A good request with some parameters changed, left out (`None`) or added.
fn parse(changes: &[(&str, Option<&str>)]) -> Result<AuthorizationRequest, RequestError> {
    let mut fields = vec![
        ("client_id", "git"),
        ("redirect_uri", "https://git.example.org/cb"),
        ("response_type", "code"),
        ("scope", "openid email"),
        ("state", "xyz"),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    for (name, value) in changes {
        fields.retain(|(known, _)| known != name);
        fields.extend(value.map(|value| (*name, value)));
    }
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    AuthorizationRequest::parse(&client(true), &Parameters::of_query(Some(&query)))
}

fn error(changes: &[(&str, Option<&str>)]) -> &'static str {
    match parse(changes) {
        Err(RequestError::Refused { to, error, .. }) => {
            assert_eq!(to.redirect_uri, "https://git.example.org/cb");
            error
        }
        other => panic!("{changes:?}: {other:?}"),
    }
}

#[test]
fn a_good_request_is_understood() {
    let request = parse(&[
        ("prompt", Some("login consent")),
        ("max_age", Some("60")),
        ("response_mode", Some("form_post")),
        ("scope", Some("openid future groups")),
        ("nonce", Some("n")),
        ("unknown", Some("x")),
    ])
    .unwrap();
    assert!(request.fresh && !request.quiet && request.to.form_post);
    assert_eq!((request.max_age, request.scopes.text().as_str()), (Some(60), "openid groups"));
    assert_eq!((request.to.state.as_deref(), request.nonce.as_deref()), (Some("xyz"), Some("n")));
    assert!(parse(&[("prompt", Some("none"))]).unwrap().quiet);
}

#[test]
fn nobody_is_told_before_client_and_address_are_certain() {
    for change in [
        ("client_id", None),
        ("client_id", Some("gi")),
        ("client_id", Some("GIT")),
        ("redirect_uri", None),
        ("redirect_uri", Some("")),
        ("redirect_uri", Some("https://git.example.org/cb/")),
        ("redirect_uri", Some("https://git.example.org/CB")),
        ("redirect_uri", Some("https://git.example.org/cb#x")),
        ("redirect_uri", Some("https://git.example.org/cb?x")),
        ("redirect_uri", Some("org.example.app:/cb2")),
    ] {
        // A second fault must not make the first one's answer travel.
        let changes = [change, ("response_type", Some("token"))];
        assert!(matches!(parse(&changes), Err(RequestError::Unverified(_))), "{change:?}");
    }
}

#[test]
fn faults_are_told_by_their_own_names() {
    for (changes, expected) in [
        (vec![("response_type", None)], "invalid_request"),
        (vec![("response_type", Some("token"))], "unsupported_response_type"),
        (vec![("response_mode", Some("fragment"))], "invalid_request"),
        (vec![("scope", Some("email"))], "invalid_scope"),
        (vec![("code_challenge", None), ("code_challenge_method", None)], "invalid_request"),
        (vec![("code_challenge_method", Some("plain"))], "invalid_request"),
        (vec![("code_challenge_method", None)], "invalid_request"),
        (vec![("prompt", Some("none login"))], "invalid_request"),
        (vec![("max_age", Some("-1"))], "invalid_request"),
        (vec![("max_age", Some("+1"))], "invalid_request"),
        (vec![("state", Some("a\nb"))], "invalid_request"),
        (vec![("request", Some("x"))], "request_not_supported"),
        (vec![("request_uri", Some("x"))], "request_uri_not_supported"),
        (vec![("nonce", Some(&"n".repeat(257)))], "invalid_request"),
    ] {
        assert_eq!(error(&changes), expected, "{changes:?}");
    }
    let bare = Parameters::of_query(Some(
        "client_id=git&redirect_uri=org.example.app:/cb&response_type=code&scope=openid",
    ));
    assert!(AuthorizationRequest::parse(&client(false), &bare).is_ok(), "PKCE is optional with a secret");
    assert!(AuthorizationRequest::parse(&client(true), &bare).is_err());
}

#[test]
fn a_login_satisfies_only_what_it_is_recent_enough_for() {
    let session = |id: u8, created: i64, proven: Option<i64>| Session {
        id: SessionId::from_bytes([id; 16]),
        person: PersonId { provider: "local".into(), subject: "ann".into() },
        is_local: None,
        email: None,
        display_name: "x".into(),
        groups: vec![],
        amr: vec![],
        address: [192, 0, 2, 1].into(),
        authenticated_at: proven.map(UnixTime),
        created_at: UnixTime(created),
        expires_at: UnixTime(9999),
    };
    let pending = |fresh: bool, max_age: Option<u32>| Pending {
        client: "git".into(),
        request: AuthorizationRequest { fresh, max_age, ..parse(&[]).unwrap() },
        asked_at: UnixTime(1000),
        holder: Some(SessionId::from_bytes([1; 16])),
        expires_at: UnixTime(1600),
    };
    for (fresh, max_age, id, created, proven, satisfied) in [
        (false, None, 1, 0, Some(0), true),
        (false, None, 1, 0, None, true),
        (true, None, 1, 999, Some(999), false),
        (true, None, 1, 1000, Some(1000), false),
        (true, None, 2, 999, Some(999), false),
        (true, None, 2, 1000, Some(1000), true),
        // The provider's clock may be behind, and a provider may have remembered somebody, or say nothing.
        (true, None, 2, 1000, Some(940), true),
        (true, None, 2, 1000, Some(939), false),
        (true, None, 2, 1000, None, false),
        (false, Some(100), 1, 905, Some(905), true),
        (false, Some(100), 1, 904, Some(904), false),
        (false, Some(100), 1, 1000, Some(904), false),
        (false, Some(100), 1, 1000, None, false),
        (false, Some(100), 2, 1000, Some(904), false),
        (false, Some(0), 1, 1000, Some(1000), false),
        (false, Some(0), 2, 1001, Some(1001), true),
        (false, Some(0), 2, 1001, None, false),
        (true, Some(100), 1, 990, Some(990), false),
    ] {
        let found = pending(fresh, max_age).is_satisfied_by(&session(id, created, proven), UnixTime(1005));
        assert_eq!(
            found, satisfied,
            "fresh {fresh}, max_age {max_age:?}, session {id} of {created}, {proven:?}"
        );
    }
}

proptest! {
    /// Whatever is asked for, an answer goes to a registered address or nowhere.
    #[test]
    fn answers_go_to_registered_addresses(
        fields in proptest::collection::vec(("[a-z_]{1,12}|client_id|redirect_uri|state", "\\PC{0,20}|git|https://git\\.example\\.org/cb"), 0..8)
    ) {
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
        let registered = client(true).redirect_uris;
        match AuthorizationRequest::parse(&client(true), &Parameters::of_query(Some(&query))) {
            Ok(AuthorizationRequest { to, .. }) | Err(RequestError::Refused { to, .. }) => {
                prop_assert!(registered.contains(&to.redirect_uri));
            }
            Err(RequestError::Unverified(_)) => {}
        }
    }
}
