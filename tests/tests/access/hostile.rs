//! Clients that cheat, against the running node over real TLS: what they present gets them nothing, and each try is one
//! event.

use portcullis::clock;
use portcullis::flow::UnixTime;
use portcullis::token::dpop::{About, Signer};
use portcullis::tunnel::TunnelKey;
use portcullis_tests::access::{answer, confirmation};
use portcullis_tests::realm::{AUTH, Realm};
use portcullis_tests::web::{Reply, Web};
use serde_json::Value;

use super::login::realm;

/// RFC 7636 appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const REDIRECT: &str = "http://127.0.0.1:4000/callback";

struct Client<'a> {
    realm: &'a Realm,
    web: Web,
    signer: Signer,
}

impl<'a> Client<'a> {
    fn new(realm: &'a Realm) -> Self {
        let signer = Signer::from_pkcs8(&TunnelKey::generate().unwrap()).unwrap();
        Self { realm, web: realm.web("client"), signer }
    }

    fn url(&self, endpoint: &str) -> String {
        self.realm.url(AUTH, &format!("/cdn-cgi/access/cli/{endpoint}"))
    }

    fn authorize(&self, redirect: &str) -> String {
        format!(
            "{}?response_type=code&client_id=portcullis-access&redirect_uri={redirect}&state=abc\
             &code_challenge={CHALLENGE}&code_challenge_method=S256&dpop_jkt={}&device=box",
            self.url("authorize"),
            self.signer.thumbprint()
        )
    }

    /// A code, with the person's consent.
    fn code(&self, person: &Web) -> String {
        let page = confirmation(person, &self.authorize(REDIRECT), "ann").unwrap();
        let location = answer(person, &page, "allow").unwrap().redirect().unwrap();
        location.split("code=").nth(1).unwrap().split('&').next().unwrap().to_owned()
    }

    fn prove(&self, method: &str, endpoint: &str, token: Option<&str>) -> String {
        let about = About { method, url: &self.url(endpoint), token };
        self.signer.prove(about, clock::random(), clock::now()).unwrap()
    }

    fn send(&self, endpoint: &str, proof: &str, token: Option<&str>, form: &[(&str, &str)]) -> Reply {
        let mut args = vec!["--header".to_owned(), format!("DPoP: {proof}")];
        if let Some(token) = token {
            args.extend(["--header".to_owned(), format!("Authorization: DPoP {token}")]);
        }
        for (name, value) in form {
            args.extend(["--data-urlencode".to_owned(), format!("{name}={value}")]);
        }
        self.web.send(&self.url(endpoint), &args).unwrap()
    }

    fn exchange(&self, code: &str, redirect: &str, verifier: &str) -> Reply {
        let form = [
            ("client_id", "portcullis-access"),
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect),
            ("code_verifier", verifier),
        ];
        self.send("token", &self.prove("POST", "token", None), None, &form)
    }
}

fn json(reply: &Reply) -> Value {
    serde_json::from_str(&reply.body).unwrap_or_else(|_| panic!("{} {}", reply.status, reply.body))
}

#[test]
fn a_code_is_worth_nothing_to_anybody_else() {
    let realm = realm();
    let (client, thief, ann) = (Client::new(&realm), Client::new(&realm), realm.web("ann"));
    let wrong = VERIFIER.replace('d', "e");
    for (who, redirect, verifier) in [
        (&client, REDIRECT, wrong.as_str()),
        (&client, "http://127.0.0.1:4001/callback", VERIFIER),
        (&thief, REDIRECT, VERIFIER),
    ] {
        let refused = who.exchange(&client.code(&ann), redirect, verifier);
        assert_eq!((refused.status, &json(&refused)["error"]), (400, &"invalid_grant".into()));
    }
    let code = client.code(&ann);
    let given = client.exchange(&code, REDIRECT, VERIFIER);
    assert_eq!(given.status, 200, "{}", given.body);
    let again = thief.exchange(&code, REDIRECT, VERIFIER);
    assert_eq!((again.status, &json(&again)["error"]), (400, &"invalid_grant".into()));
    let token = json(&given)["access_token"].as_str().unwrap().to_owned();
    let proof = client.prove("GET", "whoami", Some(&token));
    let ended = client.send("whoami", &proof, Some(&token), &[]);
    assert_eq!(
        (ended.status, &json(&ended)["error"]),
        (401, &"invalid_token".into()),
        "a code that comes twice"
    );
    let logins = realm.events("login", 6).unwrap();
    let refused: Vec<&str> = logins
        .iter()
        .filter(|event| event["allowed"] == false)
        .map(|event| event["reason"].as_str().unwrap())
        .collect();
    assert_eq!(refused, ["bad_binding", "bad_binding", "bad_binding", "bad_state"]);
}

#[test]
fn a_foreign_address_is_never_led_to() {
    let realm = realm();
    let (client, ann) = (Client::new(&realm), realm.web("ann"));
    assert!(
        confirmation(&ann, &client.authorize(REDIRECT), "ann").unwrap().body.contains("Sign this device in?")
    );
    for redirect in [
        "https://evil.example/callback",
        "http://127.0.0.1.evil.example:80/callback",
        "http://127.0.0.1:80@evil.example/callback",
        "http://localhost:4000/callback",
        "http://127.0.0.1:4000/other",
        "//127.0.0.1:4000/callback",
    ] {
        let reply = ann.get(&client.authorize(redirect)).unwrap();
        assert_eq!((reply.status, reply.redirect()), (400, None), "{redirect}");
    }
}

#[test]
fn a_token_without_its_key_or_with_a_used_proof_is_refused() {
    let realm = realm();
    let (client, thief, ann) = (Client::new(&realm), Client::new(&realm), realm.web("ann"));
    let given = json(&client.exchange(&client.code(&ann), REDIRECT, VERIFIER));
    let token = given["access_token"].as_str().unwrap();
    let proof = client.prove("GET", "whoami", Some(token));
    assert_eq!(client.send("whoami", &proof, Some(token), &[]).status, 200);
    let old = Signer::prove(
        &client.signer,
        About { method: "GET", url: &client.url("whoami"), token: Some(token) },
        clock::random(),
        UnixTime(clock::now().0 - 600),
    )
    .unwrap();
    for (proof, error) in [
        (proof, "invalid_dpop_proof"),
        (old, "invalid_dpop_proof"),
        (thief.prove("GET", "whoami", Some(token)), "invalid_token"),
        (client.prove("GET", "apps", Some(token)), "invalid_dpop_proof"),
        ("x".repeat(3000), "invalid_dpop_proof"),
    ] {
        let refused = thief.send("whoami", &proof, Some(token), &[]);
        assert_eq!((refused.status, &json(&refused)["error"]), (401, &error.into()));
        assert!(refused.header("www-authenticate")[0].starts_with("DPoP "));
    }
    assert_eq!(realm.events("request", 5).unwrap().len(), 5);
    let log = realm.log().unwrap();
    let secret = given["refresh_token"].as_str().unwrap();
    assert!(!log.contains(token) && !log.contains(secret), "no secret in the log");
}

#[test]
fn attempts_at_codes_are_limited() {
    let realm = realm();
    let ann = realm.web("ann");
    let url = realm.url(AUTH, "/cdn-cgi/access/cli/device");
    let form = confirmation(&ann, &url, "ann").unwrap();
    let ticket = form.field("ticket").unwrap();
    let typed: Vec<u16> = (0..12)
        .map(|_| ann.post(&url, &[("ticket", &ticket), ("code", "BBBB-CCCC")]).unwrap().status)
        .collect();
    assert_eq!(typed, [vec![400; 10], vec![429; 2]].concat());

    let form = [("client_id", "portcullis-access"), ("device", "x")];
    let starts: Vec<u16> = (0..18)
        .map(|_| {
            let client = Client::new(&realm);
            let proof = client.prove("POST", "device_authorization", None);
            client.send("device_authorization", &proof, None, &form).status
        })
        .collect();
    assert_eq!(starts, [vec![200; 16], vec![429; 2]].concat());
}
