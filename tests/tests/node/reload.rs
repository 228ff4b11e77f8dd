//! A reload is whole or not at all.

use std::time::Duration;

use portcullis_tests::process::wait_until;
use portcullis_tests::realm::{PASSWORD, Plan, Realm, WIKI};
use rustix::process::Signal;

/// Replaces the node's configuration, as an editor does, and asks for a reload.
fn reload(realm: &mut Realm, change: impl FnOnce(String) -> String, expected: &str) {
    let text = std::fs::read_to_string(realm.node.config()).unwrap();
    let new = realm.node.dir().join("new");
    std::fs::write(&new, change(text)).unwrap();
    std::fs::rename(new, realm.node.config()).unwrap();
    realm.node.process().unwrap().signal(Signal::HUP).unwrap();
    let log = realm.dir.path().join("access.jsonl");
    wait_until(&format!("an event that says `{expected}`"), Duration::from_secs(60), || {
        let text = std::fs::read_to_string(&log)?;
        Ok(text.lines().any(|line| line.contains("reload") && line.contains(expected)).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_new_policy_takes_effect_on_the_next_request_and_a_bad_file_changes_nothing() {
    let mut realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let web = realm.web("bob");
    let wiki = realm.url(WIKI, "/");
    assert_eq!(realm.log_in(&web, &wiki, "bob", PASSWORD).unwrap().status, 200);

    reload(&mut realm, |text| text.replacen("action = \"allow\"", "action = \"permit\"", 1), "is no action");
    assert_eq!(web.get(&wiki).unwrap().status, 200, "the old configuration stays");

    reload(
        &mut realm,
        |text| {
            text.replacen("action = \"permit\"", "action = \"allow\"", 1)
                .replace("example.com\" }]", "other.test\" }]")
        },
        "\"allowed\":true",
    );
    assert_eq!(web.get(&wiki).unwrap().status, 403, "the new policy is in force");
}

#[test]
fn a_user_is_removed_whole_though_the_provider_got_another_name() {
    let mut realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let wiki = realm.url(WIKI, "/");
    let [before, after, bob] = ["before", "after", "bob"].map(|name| realm.web(name));
    assert_eq!(realm.log_in(&before, &wiki, "ann", PASSWORD).unwrap().status, 200);
    let renamed = |text: String| text.replacen("name = \"local\"", "name = \"staff\"", 1);
    reload(&mut realm, renamed, "\"allowed\":true");
    assert_eq!(realm.log_in(&after, &wiki, "ann", PASSWORD).unwrap().status, 200);
    assert_eq!(realm.log_in(&bob, &wiki, "bob", PASSWORD).unwrap().status, 200);
    let removed = |name| realm.node.admin(&["user", "remove", name]).unwrap();
    assert_eq!(removed("ann").trim(), "done: 2 sessions ended");
    for (web, status) in [(&before, 302), (&after, 302), (&bob, 200)] {
        assert_eq!(web.get(&wiki).unwrap().status, status);
    }
    assert_eq!(removed("eve").trim(), "done: no session was live");
    let events = realm.node.admin(&["events", "--json"]).unwrap();
    for detail in ["user remove ann: 2 sessions ended", "user remove eve: no session was live"] {
        assert!(events.contains(detail), "{events}");
    }
}

#[test]
fn a_missing_secret_or_certificate_keeps_the_old_configuration() {
    let mut realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let provider = "[[identity_provider]]\nname = \"idp\"\ntype = \"oidc\"\nissuer = \"https://idp.example\"\nclient_id = \"x\"\nclient_secret = { file = \"gone\" }\n";
    reload(&mut realm, |text| format!("{text}\n{provider}"), "cannot be read");
    reload(&mut realm, |text| text.replace(provider, "").replacen("node.key", "ca.pem", 1), "ca.pem");
    reload(
        &mut realm,
        |text| {
            text.replacen("ca.pem\"", "node.key\"", 1).replace("listen = \"127.0.0.1", "listen = \"127.0.0.2")
        },
        "restart",
    );
    let web = realm.web("ann");
    let reply = realm.log_in(&web, &realm.url(WIKI, "/"), "ann", PASSWORD).unwrap();
    assert_eq!(reply.status, 200);
}

#[test]
fn a_renewed_certificate_is_served_without_a_restart() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let served = || {
        let script = format!(
            "echo | openssl s_client -connect 127.0.0.1:{} -servername {WIKI} 2>/dev/null | openssl x509 -noout -fingerprint -sha256",
            realm.port
        );
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "openssl could not read a certificate");
        String::from_utf8(output.stdout).unwrap()
    };
    let before = served();
    assert_eq!(before, served(), "the control");
    realm.ca.issue(&portcullis_tests::realm::HOSTS).unwrap().write(realm.dir.path(), "node").unwrap();
    wait_until("the new certificate to be served", Duration::from_secs(60), || {
        Ok((served() != before).then_some(()))
    })
    .unwrap();
}
