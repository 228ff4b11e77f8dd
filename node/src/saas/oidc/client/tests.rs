use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NOW: UnixTime = UnixTime(1_000_000);
const AUDIENCES: [&str; 2] = ["https://access.example.com/x", "https://access.example.com/x/token"];

fn client(authentication: ClientAuthentication) -> OidcClient {
    OidcClient {
        id: "git lab".into(),
        authentication,
        redirect_uris: vec![],
        post_logout_redirect_uris: vec![],
        backchannel_logout: None,
        claims: BTreeMap::new(),
    }
}

fn form(fields: &[(&str, &str)]) -> Parameters {
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    Parameters::of_query(Some(&query))
}

fn header(text: &str) -> String {
    format!("Basic {}", STANDARD.encode(text))
}

#[test]
fn a_secret_is_taken_from_one_place() {
    let client = client(ClientAuthentication::Secret(sha256(b"s&cret =%")));
    let ask = |authorization: Option<&str>, fields: &[(&str, &str)]| {
        authenticate(&client, authorization, &form(fields), &AUDIENCES, NOW)
    };
    let good = header("git+lab:s%26cret+%3D%25");
    assert_eq!(ask(Some(&good), &[]), Ok(Proof::Shown));
    assert_eq!(ask(Some(&good.replace("Basic", "basic")), &[("client_id", "git lab")]), Ok(Proof::Shown));
    let fields = [("client_id", "git lab"), ("client_secret", "s&cret =%")];
    assert_eq!(ask(None, &fields), Ok(Proof::Shown));
    assert_eq!(ask(Some(&good), &fields), Err(ClientError::Ambiguous));
    assert_eq!(ask(None, &[fields[0], fields[0], fields[1]]), Err(ClientError::Ambiguous));
    for (authorization, fields) in [
        (None, vec![]),
        (None, vec![fields[1]]),
        (None, vec![fields[0]]),
        (None, vec![fields[0], ("client_secret", "s&cret =")]),
        (None, vec![("client_id", "git"), fields[1]]),
        (Some(header("git lab:wrong")), vec![]),
        (Some(header("other:s%26cret+%3D%25")), vec![]),
        (Some(header("git lab")), vec![]),
        (Some(good.replace("Basic", "Bearer")), vec![]),
        (Some("Basic".to_owned()), vec![]),
        (Some(good.clone()), vec![("client_id", "other")]),
    ] {
        let found = ask(authorization.as_deref(), &fields);
        assert!(matches!(found, Err(ClientError::Unproven(_))), "{authorization:?} {fields:?}: {found:?}");
    }
}

#[test]
fn a_public_client_names_itself_and_shows_nothing() {
    let client = client(ClientAuthentication::None);
    let ask = |authorization: Option<&str>, fields: &[(&str, &str)]| {
        authenticate(&client, authorization, &form(fields), &AUDIENCES, NOW)
    };
    assert_eq!(ask(None, &[("client_id", "git lab")]), Ok(Proof::Shown));
    assert!(ask(None, &[]).is_err());
    assert!(ask(None, &[("client_id", "git lab"), ("client_secret", "")]).is_err());
    assert!(ask(Some("Basic eDp5"), &[("client_id", "git lab")]).is_err());
}

proptest! {
    #[test]
    fn no_header_or_assertion_panics(authorization: Option<String>, assertion in "\\PC{0,60}|[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}") {
        let keys = JwkSet { keys: vec![] };
        for authentication in [ClientAuthentication::Secret([1; 32]), ClientAuthentication::Keys(keys.clone())] {
            let fields = [("client_assertion", assertion.as_str()), ("client_assertion_type", ASSERTION_TYPE)];
            let found =
                authenticate(&client(authentication), authorization.as_deref(), &form(&fields), &AUDIENCES, NOW);
            prop_assert!(found.is_err());
        }
    }
}
