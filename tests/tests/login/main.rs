//! Local users, the hand-over and logout against the running node, with curl as the browser.

use portcullis_tests::realm::{AUTH, PASSWORD, Plan, Realm, SHOP, WIKI};
use serde_json::{Value, json};

fn realm() -> Realm {
    Plan::new().unwrap().start(true, &[], "").unwrap()
}

#[test]
fn a_password_opens_applications_and_a_logout_closes_them() {
    let realm = realm();
    let ann = realm.web("ann");
    let wrong = realm.log_in(&ann, &realm.url(WIKI, "/page?x=1"), "ann", "wrong password").unwrap();
    assert_eq!(wrong.status, 401);
    assert!(wrong.body.contains("The user name or the password is wrong."));
    assert_eq!(realm.origin.requests(), []);

    let page = realm.log_in(&ann, &realm.url(WIKI, "/page?x=1"), "ann", PASSWORD).unwrap();
    assert_eq!((page.status, page.url.as_str()), (200, realm.url(WIKI, "/page?x=1").as_str()));
    let silent = ann.follow(ann.get(&realm.url(SHOP, "/")).unwrap(), None).unwrap();
    assert_eq!(silent.status, 200);
    let before = ann.copy(&realm.dir.path().join("before.jar")).unwrap();

    let ask = ann.get(&realm.url(SHOP, "/cdn-cgi/access/logout")).unwrap();
    assert!(ask.body.contains("Sign out?"), "curl says nothing about where it comes from");
    let done = ann.post(&ask.url, &[("ticket", &ask.field("ticket").unwrap())]).unwrap();
    assert!(done.body.contains("You are signed out"));
    for host in [WIKI, SHOP] {
        assert_eq!(before.get(&realm.url(host, "/")).unwrap().status, 302, "{host}");
    }
    assert_eq!(realm.origin.requests().len(), 2);

    let logins = realm.events("login", 2).unwrap();
    let told: Vec<(&Value, &Value)> =
        logins.iter().map(|event| (&event["allowed"], &event["reason"])).collect();
    assert_eq!(told, [(&json!(false), &json!("bad_credentials")), (&json!(true), &Value::Null)]);
    assert_eq!(realm.events("logout", 1).unwrap().len(), 1);
}

/// What `cloudflared access` and other clients that follow redirects look at.
#[test]
fn clients_that_follow_redirects_find_their_way() {
    let realm = realm();
    let go = realm.web("go");
    let head = ["--head".to_owned(), "--header".to_owned(), "Accept:".to_owned()];
    let challenge = go.send(&realm.url(WIKI, "/"), &head).unwrap();
    assert_eq!(challenge.status, 302);
    let login = challenge.redirect().unwrap();
    let url = login.strip_prefix(&realm.url(AUTH, "")).unwrap();
    assert!(url.starts_with("/cdn-cgi/access/login/wiki.example.com?"), "{url}");
    let aud = url.split("kid=").nth(1).unwrap().split('&').next().unwrap();
    assert!(aud.len() == 64 && aud.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let end = go.send(&login, &head).unwrap();
    assert_eq!(
        (end.status, end.header("cf-access-aud"), end.header("cf-access-domain")),
        (200, vec![aud], vec![WIKI])
    );

    // Silent: the global session is enough, and the token comes with a date in the future.
    let ann = realm.web("ann");
    realm.log_in(&ann, &realm.url(WIKI, "/"), "ann", PASSWORD).unwrap();
    let mut reply = ann.send(&realm.url(SHOP, "/"), &head).unwrap();
    for _ in 0..2 {
        assert_eq!(reply.status, 302);
        reply = ann.send(&reply.redirect().unwrap(), &head).unwrap();
    }
    assert!(reply.url.starts_with(&realm.url(SHOP, "/cdn-cgi/access/authorized?code=")), "{}", reply.url);
    let cookies = reply.header("set-cookie");
    let token = cookies.iter().find(|line| line.starts_with("CF_Authorization=ey")).unwrap();
    assert!(token.contains("Expires=") && token.contains("GMT"), "{token}");
}

#[test]
fn scripts_and_api_clients_get_401() {
    let realm = realm();
    for line in ["X-Requested-With: XMLHttpRequest", "Sec-Fetch-Mode: cors", "Accept: application/json"] {
        let web = realm.web("script").header(line);
        let reply = if line.starts_with("Accept") {
            // The browser's own Accept must not be there too.
            let only = ["--header".to_owned(), "Accept: application/json".to_owned()];
            let bare = portcullis_tests::web::Web::bare(
                &realm.dir.path().join("bare.jar"),
                &realm.ca_file,
                realm.port,
                &[WIKI],
            );
            bare.send(&realm.url(WIKI, "/api"), &only).unwrap()
        } else {
            web.get(&realm.url(WIKI, "/api")).unwrap()
        };
        assert_eq!(reply.status, 401, "{line}");
        assert_eq!(reply.cookies(), [""; 0], "{line}");
    }
}

#[test]
fn hostile_names_and_bodies_are_one_event_and_no_harm() {
    let realm = realm();
    let web = realm.web("eve");
    let start = realm.url(WIKI, "/");
    let name = "x\r\n{\"action\":\"login\",\"allowed\":true}\u{202e}<script>alert(1)</script>";
    let reply = realm.log_in(&web, &start, name, "wrong password").unwrap();
    assert_eq!(reply.status, 401);
    assert!(!reply.body.contains("<script"));
    let long = realm.log_in(&web, &start, "ann", &"x".repeat(2000)).unwrap();
    assert_eq!(long.status, 401);

    let form = web.follow(web.get(&start).unwrap(), None).unwrap();
    let huge = "x".repeat(100_000);
    assert_eq!(web.post(&form.url, &[("ticket", &huge)]).unwrap().status, 413);
    let json = [
        "--data-raw".to_owned(),
        "{}".to_owned(),
        "--header".to_owned(),
        "Content-Type: application/json".to_owned(),
    ];
    assert_eq!(web.send(&form.url, &json).unwrap().status, 400);
    assert_eq!(
        web.post(&form.url, &[("ticket", "x"), ("username", "ann"), ("password", PASSWORD)]).unwrap().status,
        400
    );

    let logins = realm.events("login", 4).unwrap();
    assert_eq!(logins.len(), 4, "{logins:?}");
    assert!(logins.iter().all(|event| event["allowed"] == false));
    assert_eq!(realm.origin.requests(), []);
}

/// A browser that brings a session id of somebody else's choice gets one of its own.
#[test]
fn a_preset_session_is_not_adopted() {
    let realm = realm();
    let eve = realm.web("eve");
    realm.log_in(&eve, &realm.url(WIKI, "/"), "eve", PASSWORD).unwrap();
    let ann = eve.copy(&realm.dir.path().join("ann.jar")).unwrap();
    let who = |web: &portcullis_tests::web::Web| -> Value {
        let reply = web.get(&realm.url(AUTH, "/cdn-cgi/access/get-identity")).unwrap();
        serde_json::from_str(&reply.body).unwrap()
    };
    // Ann is shown the form because Eve's session does not let anybody in; she asks for it at the start page.
    assert_eq!(who(&ann)["email"], "eve@evil.test");
    let out = ann.get(&realm.url(AUTH, "/cdn-cgi/access/logout")).unwrap();
    ann.post(&out.url, &[("ticket", &out.field("ticket").unwrap())]).unwrap();
    realm.log_in(&ann, &realm.url(WIKI, "/"), "ann", PASSWORD).unwrap();
    assert_eq!(who(&ann)["email"], "ann@example.com");
    assert_eq!(who(&eve)["err"], "no session", "what Eve holds is worth nothing");
}

#[test]
fn an_administrator_ends_a_session() {
    let realm = realm();
    let ann = realm.web("ann");
    realm.log_in(&ann, &realm.url(WIKI, "/"), "ann", PASSWORD).unwrap();
    assert_eq!(ann.get(&realm.url(WIKI, "/")).unwrap().status, 200);
    realm.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    let reply = ann.follow(ann.get(&realm.url(WIKI, "/")).unwrap(), None).unwrap();
    assert!(reply.body.contains("<h1>Sign in</h1>"), "{}", reply.body);
}
