use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::*;
use crate::flow::{Aud, PersonId};

const NOW: UnixTime = UnixTime(1_700_000_000);

async fn tokens() -> (tempfile::TempDir, Tokens) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let tokens = Tokens::load(store, "access.example.com", NOW).await.unwrap();
    (directory, tokens)
}

fn session() -> Session {
    Session {
        id: SessionId::from_bytes([7; 16]),
        person: PersonId { provider: "local".into(), subject: "ann".into() },
        is_local: None,
        email: Some("ann@example.com".parse().unwrap()),
        display_name: "Ann".into(),
        groups: vec![],
        amr: vec![],
        address: [192, 0, 2, 1].into(),
        authenticated_at: None,
        created_at: NOW,
        expires_at: NOW.after(Duration::from_secs(3600)),
    }
}

fn aud(name: &str) -> Aud {
    Aud::derive(&Host::parse("access.example.com").unwrap(), name)
}

/// Claims as a token of application `wiki` has them.
fn claims() -> Value {
    json!({
        "aud": [aud("wiki").as_str()], "email": "ann@example.com", "exp": NOW.0 + 60, "iat": NOW.0, "nbf": NOW.0,
        "iss": "https://access.example.com", "type": "app", "identity_nonce": SessionId::from_bytes([7; 16]),
        "sub": "x", "country": ""
    })
}

fn sign(tokens: &Tokens, header: Value, claims: &Value) -> String {
    let ring = tokens.ring();
    let key = &ring.stored()[0];
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let encoding = EncodingKey::from_rsa_pem(key.private_pem.as_bytes()).unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &encoding, Algorithm::RS256).unwrap();
    format!("{message}.{signature}")
}

fn kid(tokens: &Tokens) -> String {
    tokens.ring().stored()[0].kid.clone()
}

#[tokio::test]
async fn a_global_token_verifies_as_such_only() {
    let (_directory, tokens) = tokens().await;
    let jwt = tokens.mint_global(&session(), NOW).unwrap();
    assert_eq!(tokens.verify(&jwt, Kind::Global, NOW).unwrap().identity_nonce, session().id);
    assert!(matches!(tokens.verify(&jwt, Kind::Application(&aud("wiki")), NOW), Err(TokenError::Audience)));
    let late = NOW.after(Duration::from_secs(3600));
    assert!(matches!(tokens.verify(&jwt, Kind::Global, late), Err(TokenError::Time)));
    assert!(jwt.len() < 2048);
}

#[tokio::test]
async fn hostile_tokens_are_refused() {
    let (_directory, tokens) = tokens().await;
    let wiki = aud("wiki");
    let good = json!({ "alg": "RS256", "typ": "JWT", "kid": kid(&tokens) });
    let accepts = |jwt: &str| tokens.verify(jwt, Kind::Application(&wiki), NOW).is_ok();
    assert!(accepts(&sign(&tokens, good.clone(), &claims())), "the control is accepted");

    for (name, value) in [
        ("exp", json!("99999999999")),
        ("exp", json!(-1)),
        ("exp", json!(NOW.0)),
        ("exp", Value::Null),
        ("nbf", json!(NOW.0 + 61)),
        ("aud", json!([])),
        ("aud", json!(7)),
        ("aud", Value::Null),
        ("aud", json!([aud("jira").as_str()])),
        ("aud", json!([aud("jira").as_str(), aud("wiki").as_str()])),
        ("type", json!("org")),
        ("type", json!(["app"])),
        ("iss", json!("https://evil.example")),
        ("identity_nonce", json!("../../etc")),
    ] {
        let mut changed = claims();
        changed[name] = value.clone();
        assert!(!accepts(&sign(&tokens, good.clone(), &changed)), "{name} = {value}");
    }

    for header in [
        json!({ "alg": "none", "kid": kid(&tokens) }),
        json!({ "alg": "RS256" }),
        json!({ "alg": "RS256", "kid": "../../../dev/null" }),
        json!({ "alg": "RS256", "kid": "x", "jku": "http://127.0.0.1/", "jwk": { "kty": "RSA", "n": "AQAB", "e": "AQAB" } }),
        json!({ "alg": "RS512", "kid": kid(&tokens) }),
    ] {
        assert!(!accepts(&sign(&tokens, header.clone(), &claims())), "{header}");
    }

    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(kid(&tokens));
    let public = tokens.ring().stored()[0].certificate_pem.clone();
    let confused =
        jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
    assert!(!accepts(&confused), "HS256 with public material");

    let jwt = sign(&tokens, good, &claims());
    let unsigned = jwt.rsplit_once('.').unwrap().0.to_owned() + ".";
    assert!(!accepts(&unsigned));
    assert!(!accepts(&".".repeat(1_000_000)));
    assert!(matches!(tokens.verify(&"a".repeat(5000), Kind::Global, NOW), Err(TokenError::TooLong)));
}

/// A signature that is remembered makes nothing of what depends on who asks, and when.
#[tokio::test]
async fn a_token_that_has_been_verified_is_looked_at_again_all_the_same() {
    let (_directory, tokens) = tokens().await;
    let (wiki, jira) = (aud("wiki"), aud("jira"));
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": kid(&tokens) });
    let jwt = sign(&tokens, header, &claims());
    let verify = |kind, now| tokens.verify(&jwt, kind, now);
    let is_remembered = || tokens.ring().verified().has(&Digest::of(&jwt).unwrap());
    // Of another audience, and yet signed.
    assert!(!is_remembered());
    assert!(matches!(verify(Kind::Global, NOW), Err(TokenError::Audience)) && is_remembered());
    let first = verify(Kind::Application(&wiki), NOW).unwrap();
    assert_eq!(verify(Kind::Application(&wiki), NOW).unwrap(), first);
    for (kind, now) in [
        (Kind::Application(&wiki), NOW.after(Duration::from_secs(60))),
        (Kind::Application(&wiki), UnixTime(NOW.0 - SKEW - 1)),
    ] {
        assert!(matches!(verify(kind, now), Err(TokenError::Time)), "{now:?}");
    }
    assert!(matches!(verify(Kind::Application(&jira), NOW), Err(TokenError::Audience)));
    // Every other token is another one, whatever of it is the same.
    for at in 0..jwt.len() {
        let mut changed = jwt.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        let read = tokens.verify(&changed, Kind::Application(&wiki), NOW);
        assert!(read.is_err() && !tokens.ring().verified().has(&Digest::of(&changed).unwrap()), "{at}");
    }
    // The key that signed it is no longer published, or is gone.
    let last = tokens.keys(NOW)[0].publish_until;
    assert!(matches!(verify(Kind::Application(&wiki), last), Err(TokenError::Invalid)));
    assert!(verify(Kind::Application(&wiki), NOW).is_ok() && is_remembered(), "the control");
    tokens.rotate(false, NOW).await.unwrap();
    assert!(!is_remembered(), "every rotation begins anew");
    assert!(verify(Kind::Application(&wiki), NOW).is_ok() && is_remembered());
    tokens.rotate(true, NOW).await.unwrap();
    assert!(matches!(verify(Kind::Application(&wiki), NOW), Err(TokenError::Invalid)));
}

#[tokio::test]
async fn a_binding_is_for_one_host_and_session() {
    let (_directory, tokens) = tokens().await;
    let (here, there) = (Host::parse("a.example").unwrap(), Host::parse("b.example").unwrap());
    let cookie = tokens.binding(&session().id, &here);
    assert_eq!(tokens.check_binding(&cookie, &here), Some(session().id));
    assert_eq!(tokens.check_binding(&cookie, &there), None);
    let other = cookie.replacen(&session().id.to_string(), &SessionId::from_bytes([8; 16]).to_string(), 1);
    assert_eq!(tokens.check_binding(&other, &here), None);
    assert_eq!(tokens.check_binding("", &here), None);
}

#[tokio::test]
async fn keys_rotate_with_overlap_and_survive_a_restart() {
    let (directory, tokens) = tokens().await;
    let before = tokens.mint_global(&session(), NOW).unwrap();
    assert!(!tokens.rotate_if_due(NOW).await.unwrap());

    tokens.rotate(false, NOW).await.unwrap();
    let states: Vec<_> = tokens.keys(NOW).into_iter().map(|key| key.state).collect();
    assert_eq!(states, [KeyState::Signing, KeyState::Next], "published before it signs");
    let published: Value = serde_json::from_str(&tokens.certs()).unwrap();
    assert_eq!(published["keys"].as_array().unwrap().len(), 2);
    let tomorrow = NOW.after(Duration::from_secs(86_400));
    let states: Vec<_> = tokens.keys(tomorrow).into_iter().map(|key| key.state).collect();
    assert_eq!(states, [KeyState::Retired, KeyState::Signing]);
    assert!(tokens.verify(&before, Kind::Global, NOW).is_ok(), "the old key still verifies");

    let again =
        Tokens::load(Store::open(directory.path()).unwrap(), "access.example.com", NOW).await.unwrap();
    assert!(again.verify(&before, Kind::Global, NOW).is_ok());

    let near_end = NOW.after(Duration::from_secs(42 * 86_400));
    assert!(again.rotate_if_due(near_end).await.unwrap());
    assert!(!again.rotate_if_due(near_end).await.unwrap());

    again.rotate(true, NOW).await.unwrap();
    assert!(again.verify(&before, Kind::Global, NOW).is_err(), "a compromised key verifies nothing");
    assert_eq!(again.keys(NOW).len(), 1);
}

#[tokio::test]
async fn certificates_match_their_keys() {
    let (_directory, tokens) = tokens().await;
    let published: Value = serde_json::from_str(&tokens.certs()).unwrap();
    assert_eq!(published["public_cert"]["kid"], published["keys"][0]["kid"]);
    assert!(published["public_cert"]["cert"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!(published["public_certs"].as_array().unwrap().len(), 1);
}
