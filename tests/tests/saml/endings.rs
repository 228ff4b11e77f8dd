//! A provider's logout and a login of the same person at the same time; large answers; a store that fails.

use std::process::Command;

use portcullis_tests::realm::AUTH;
use serde_json::json;

use crate::provider::{Answer, Begun, ISSUER, Provider, Seals, encode, instant};

/// The signed request that ends the login with `index` (all of Ann's where that is empty).
fn logout(provider: &Provider, index: &str, id: &str) -> String {
    let index = match index {
        "" => String::new(),
        index => format!("<samlp:SessionIndex>{index}</samlp:SessionIndex>"),
    };
    let xml = format!(
        "<samlp:LogoutRequest xmlns:samlp=\"urn:oasis:names:tc:SAML:2.0:protocol\" \
         xmlns:saml=\"urn:oasis:names:tc:SAML:2.0:assertion\" ID=\"{id}\" Version=\"2.0\" IssueInstant=\"{}\" \
         Destination=\"{}\"><saml:Issuer>{ISSUER}</saml:Issuer><saml:NameID>ann@example.com</saml:NameID>{index}\
         </samlp:LogoutRequest>",
        instant(0),
        provider.at("logout"),
    );
    let key = provider.realm.dir.path().join("idp.key");
    let signed = provider.tool(&json!({ "op": "sign", "xml": xml, "key": key })).unwrap();
    signed["xml"].as_str().unwrap().to_owned()
}

#[test]
fn a_logout_ends_a_login_that_is_under_way() {
    let provider = Provider::start("").unwrap();
    let eve = provider.realm.web("eve");
    let end = |index: &str, id: &str| {
        let request = encode(&logout(&provider, index, id));
        assert_eq!(
            eve.post(&provider.at("logout"), &[("SAMLRequest", &request)]).unwrap().status,
            303,
            "{id}"
        );
    };
    // The answer is accepted, and its browser has not come for it yet.
    let accepted = |id: &str| {
        let Begun { web, request } = provider.begin(id, 1).unwrap();
        let answer = Answer { id: format!("_{id}"), ..provider.answer(&request) };
        let sealed = encode(&provider.sealed(&answer, Seals::default()).unwrap());
        let reply = web.post(&provider.at("acs"), &[("SAMLResponse", &sealed), ("RelayState", "x")]).unwrap();
        assert_eq!(reply.status, 303, "{}", reply.body);
        (web, reply)
    };
    for (case, index, status) in [("named", "_s_named", 400), ("all", "", 400), ("another", "_s_else", 200)] {
        let (web, reply) = accepted(case);
        end(index, &format!("_l{case}"));
        let page = web.follow(reply, None).unwrap();
        assert_eq!(page.status, status, "{case}: {}", page.body);
        let identity = provider.realm.url(AUTH, "/cdn-cgi/access/get-identity");
        assert_eq!(web.get(&identity).unwrap().status == 200, status == 200, "{case}");
        // Whoever logs in after that is not affected.
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    let (web, reply) = accepted("later");
    assert_eq!(web.follow(reply, None).unwrap().status, 200);
    let logins = provider.realm.events("login", 4).unwrap();
    let ended: Vec<_> = logins.iter().filter(|event| event["allowed"] == json!(false)).collect();
    assert_eq!((logins.len(), ended.len()), (4, 2), "{logins:?}");
    assert!(
        ended[0]["detail"].as_str().unwrap().contains("the provider has ended that login since"),
        "{ended:?}"
    );
}

#[test]
fn an_answer_of_before_the_logout_logs_nobody_in_after_it() {
    let provider = Provider::start("").unwrap();
    let eve = provider.realm.web("eve");
    let Begun { web, request } = provider.begin("held", 1).unwrap();
    let held = Answer { id: "_held".to_owned(), ..provider.answer(&request) };
    let held = provider.sealed(&held, Seals::default()).unwrap();
    let wait = || std::thread::sleep(std::time::Duration::from_millis(2100));
    wait();
    let end = encode(&logout(&provider, "", "_l1"));
    assert_eq!(eve.post(&provider.at("logout"), &[("SAMLRequest", &end)]).unwrap().status, 303);
    wait();
    let page = provider.post(&web, &held).unwrap();
    assert_eq!(page.status, 400, "{}", page.body);
    let Begun { web, request } = provider.begin("anew", 1).unwrap();
    let anew = Answer { id: "_anew".to_owned(), ..provider.answer(&request) };
    let page = provider.post(&web, &provider.sealed(&anew, Seals::default()).unwrap()).unwrap();
    assert_eq!(page.status, 200, "{}", page.body);
}

#[test]
fn a_logout_that_could_not_be_done_may_be_sent_again() {
    let provider = Provider::start("").unwrap();
    let Begun { web, request } = provider.begin("ann", 1).unwrap();
    let answer = provider.answer(&request);
    provider.post(&web, &provider.sealed(&answer, Seals::default()).unwrap()).unwrap();
    let identity = provider.realm.url(AUTH, "/cdn-cgi/access/get-identity");
    let store = provider.realm.node.dir().join("state/store.sqlite");
    let sql = |statement: &str| {
        let script = format!(
            "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=10)\nc.execute({statement:?})\nc.commit()"
        );
        let done = Command::new("/usr/bin/python3").args(["-c", &script]).arg(&store).status().unwrap();
        assert!(done.success(), "{statement}");
    };
    let request = encode(&logout(&provider, &format!("_s{}", answer.id), "_l1"));
    let end = || web.post(&provider.at("logout"), &[("SAMLRequest", &request)]).unwrap();
    sql("CREATE TRIGGER full BEFORE UPDATE ON session BEGIN SELECT RAISE(ABORT, 'disk full'); END");
    assert_eq!(end().status, 503);
    sql("DROP TRIGGER full");
    assert_eq!(end().status, 303, "the same request, which is not spent");
    assert_eq!(web.get(&identity).unwrap().status, 401);
    assert_eq!(end().status, 400, "now it is");
}

/// As large as the largest that is read, for a person in as many groups as are kept.
#[test]
fn an_encrypted_answer_may_name_a_thousand_groups() {
    let provider = Provider::start("groups_attribute = \"roles\"").unwrap();
    let seals = Seals { encrypt: Some("aes256-gcm"), ..Seals::default() };
    for (groups, length, status) in [(1000, 55, 200), (1001, 8, 400), (1000, 80, 413)] {
        let Begun { web, request } = provider.begin(&format!("ann{groups}{length}"), 1).unwrap();
        let roles = (0..groups).map(|number| format!("{number:0length$}")).collect();
        let answer = Answer { roles, id: format!("_{groups}{length}"), ..provider.answer(&request) };
        let sealed = provider.sealed(&answer, seals).unwrap();
        let page = provider.post(&web, &sealed).unwrap();
        assert_eq!(page.status, status, "{groups} {length}: {} bytes, {}", sealed.len(), page.body);
        if status == 200 {
            assert!((150_000..196_608).contains(&sealed.len()), "{}", sealed.len());
            let identity = web.get(&provider.realm.url(AUTH, "/cdn-cgi/access/get-identity")).unwrap();
            let seen: serde_json::Value = serde_json::from_str(&identity.body).unwrap();
            assert_eq!(seen["groups"].as_array().unwrap().len(), groups);
        }
    }
}
