use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::tunnel::TunnelKey;

const NOW: UnixTime = UnixTime(1_000_000);
const URL: &str = "https://access.example.com/cdn-cgi/access/cli/token";

fn about(token: Option<&str>) -> About<'_> {
    About { method: "POST", url: URL, token }
}

/// A proof with any header and claims, signed by `pkcs8`.
fn forge(pkcs8: &[u8], header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_ec_der(pkcs8);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::ES256).unwrap();
    format!("{message}.{signature}")
}

#[test]
fn a_proof_holds_for_its_request_its_token_and_its_time() {
    let pkcs8 = TunnelKey::generate().unwrap();
    let hash = *TunnelKey::from_pkcs8(pkcs8.clone()).unwrap().hash().as_bytes();
    let signer = Signer::from_pkcs8(&pkcs8).unwrap();
    let proof = signer.prove(about(Some("token")), [1; 16], NOW).unwrap();
    let held = check(&proof, about(Some("token")), NOW).unwrap();
    assert_eq!(
        (held.key, &held.thumbprint),
        (hash, &signer.thumbprint()),
        "the hash is that of the tunnel's certificate"
    );
    for (wrong, error) in [
        (About { method: "GET", ..about(Some("token")) }, ProofError::Request),
        (
            About { url: "https://access.example.com/cdn-cgi/access/cli/revoke", ..about(Some("token")) },
            ProofError::Request,
        ),
        (
            About { url: "https://evil.example/cdn-cgi/access/cli/token", ..about(Some("token")) },
            ProofError::Request,
        ),
        (about(Some("another")), ProofError::Token),
        (about(None), ProofError::Token),
    ] {
        assert_eq!(check(&proof, wrong, NOW), Err(error));
    }
    for (second, holds) in [(-WINDOW - 1, false), (-WINDOW, true), (WINDOW, true), (WINDOW + 1, false)] {
        assert_eq!(check(&proof, about(Some("token")), UnixTime(NOW.0 + second)).is_ok(), holds, "{second}");
    }
    let bare = signer.prove(about(None), [1; 16], NOW).unwrap();
    assert_eq!(check(&bare, about(Some("token")), NOW), Err(ProofError::Token));
    assert!(Signer::from_pkcs8(&[0; 40]).is_err());
}

/// RFC 7638 has an RSA example only; this one is of RFC 9449 §6.1 (key of §4.1).
#[test]
fn the_thumbprint_is_that_of_the_standard() {
    let jwk = PublicJwk {
        kty: "EC".into(),
        crv: "P-256".into(),
        x: "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs".into(),
        y: "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA".into(),
    };
    assert_eq!(jwk.thumbprint(), "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I");
}

#[test]
fn every_other_shape_of_proof_is_refused() {
    let pkcs8 = TunnelKey::generate().unwrap();
    let public = Signer::from_pkcs8(&pkcs8).unwrap().public;
    let jwk = json!({ "kty": "EC", "crv": "P-256", "x": public.x, "y": public.y });
    let header = json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": jwk });
    let claims = json!({ "jti": "x", "htm": "POST", "htu": URL, "iat": NOW.0 });
    let with = |value: &Value, name: &str, other: Value| {
        let mut value = value.clone();
        value[name] = other;
        value
    };
    let without = |value: &Value, name: &str| {
        let mut value = value.clone();
        value.as_object_mut().unwrap().remove(name);
        value
    };
    assert!(check(&forge(&pkcs8, &header, &claims), about(None), NOW).is_ok(), "the control");
    assert!(check(&forge(&pkcs8, &header, &with(&claims, "nbf", json!("x"))), about(None), NOW).is_ok());

    let other = TunnelKey::generate().unwrap();
    let foreign = Signer::from_pkcs8(&other).unwrap().public;
    let headers = [
        with(&header, "typ", json!("JWT")),
        without(&header, "typ"),
        with(&header, "alg", json!("none")),
        with(&header, "alg", json!("HS256")),
        with(&header, "alg", json!("ES384")),
        with(&header, "kid", json!("../../key")),
        with(&header, "jku", json!("https://evil.example/jwks")),
        with(&header, "x5u", json!("https://evil.example/cert")),
        with(&header, "crit", json!(["exp"])),
        without(&header, "jwk"),
        with(&header, "jwk", json!(null)),
        with(&header, "jwk", with(&jwk, "x", json!(foreign.x))),
        with(&header, "jwk", json!({ "kty": "EC", "crv": "P-256", "x": foreign.x, "y": foreign.y })),
        with(&header, "jwk", with(&jwk, "crv", json!("P-384"))),
        with(&header, "jwk", with(&jwk, "kty", json!("oct"))),
        with(&header, "jwk", with(&jwk, "d", json!("AA"))),
        with(&header, "jwk", with(&jwk, "x", json!("AA"))),
        with(&header, "jwk", with(&jwk, "x", json!(7))),
        with(&header, "jwk", json!({ "kty": "oct", "k": "AA" })),
    ];
    for header in &headers {
        assert_eq!(
            check(&forge(&pkcs8, header, &claims), about(None), NOW),
            Err(ProofError::Malformed),
            "{header}"
        );
    }
    for claims in [
        without(&claims, "jti"),
        with(&claims, "jti", json!("")),
        with(&claims, "jti", json!("x".repeat(129))),
        with(&claims, "jti", json!(7)),
        without(&claims, "iat"),
        with(&claims, "iat", json!("1000000")),
        with(&claims, "iat", json!(1e30)),
        without(&claims, "htm"),
        with(&claims, "htm", json!(["POST"])),
        without(&claims, "htu"),
        with(&claims, "ath", json!(["x"])),
    ] {
        assert_eq!(
            check(&forge(&pkcs8, &header, &claims), about(None), NOW),
            Err(ProofError::Malformed),
            "{claims}"
        );
    }
    let lower = with(&claims, "htm", json!("post"));
    assert_eq!(check(&forge(&pkcs8, &header, &lower), about(None), NOW), Err(ProofError::Request));
    let far = with(&claims, "iat", json!(i64::MIN));
    assert_eq!(check(&forge(&pkcs8, &header, &far), about(None), NOW), Err(ProofError::Time));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}", parts in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(check(&text, about(None), NOW).is_err());
        let encoded = [URL_SAFE_NO_PAD.encode(parts).as_str(); 3].join(".");
        prop_assert!(check(&encoded, about(None), NOW).is_err());
    }

    #[test]
    fn a_changed_character_never_holds(at in any::<prop::sample::Index>(), other in "[A-Za-z0-9_-]") {
        let signer = Signer::from_pkcs8(&TunnelKey::generate().unwrap()).unwrap();
        let mut proof = signer.prove(about(None), [1; 16], NOW).unwrap();
        let at = at.index(proof.len());
        if proof.get(at..=at) != Some(other.as_str()) {
            proof.replace_range(at..=at, &other);
            prop_assert!(check(&proof, about(None), NOW).is_err());
        }
    }
}
