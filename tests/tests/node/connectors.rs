//! Connectors as processes: enrolment, reach, revocation, restart.

use std::time::Duration;

use portcullis_tests::portcullis::Connector;
use portcullis_tests::process::wait_until;
use portcullis_tests::realm::{PASSWORD, Plan, Realm};

const HOST: &str = "wiki.example.com";

/// A realm with one more application below `/tunnel`, reached through connector `hq`.
fn realm() -> Realm {
    let plan = Plan::new().unwrap();
    let mut realm = plan.start(true, &[], "").unwrap();
    let origin = realm.origin.address();
    let mut config = std::fs::read_to_string(realm.node.config()).unwrap();
    config.push_str(&format!(
        "[[application]]\nname = \"tunnelled\"\nurl = \"https://{HOST}/tunnel\"\norigin = \"http://{origin}\"\nconnector = \"hq\"\npolicies = [\"staff\"]\n"
    ));
    std::fs::write(realm.node.config(), config).unwrap();
    realm.node.restart().unwrap();
    realm
}

fn token(realm: &Realm) -> String {
    let node = format!("127.0.0.1:{}", realm.port);
    realm.node.admin(&["connector", "create", "hq", "--node", &node]).unwrap().trim().to_owned()
}

fn wait_for_connections(realm: &Realm, count: &str) {
    wait_until(&format!("{count} connections of hq"), Duration::from_secs(60), || {
        let out = realm.node.admin(&["connector", "list"])?;
        let row = out.lines().find(|line| line.starts_with("hq")).map(str::to_owned);
        Ok(row.filter(|row| row.split_whitespace().nth(1) == Some(count)))
    })
    .unwrap();
}

#[test]
fn an_application_is_reached_through_a_connector_that_only_dials_out() {
    let mut realm = realm();
    let web = realm.web("ann");
    let url = realm.url(HOST, "/tunnel/page");
    let gone = realm.log_in(&web, &url, "ann", PASSWORD).unwrap();
    assert_eq!(gone.status, 503, "no connector yet");
    assert!(!gone.header("retry-after").is_empty());

    let token = token(&realm);
    let dir = realm.dir.path().join("connector");
    let mut connector = Connector::enrol(&dir, None, &token).unwrap();
    wait_for_connections(&realm, "2");
    realm.origin.clear();
    assert_eq!(web.get(&url).unwrap().status, 200);
    let seen = realm.origin.requests();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].header("cf-access-jwt-assertion").is_empty());

    // A node that comes back finds its connector again, without a token.
    realm.node.restart().unwrap();
    wait_for_connections(&realm, "2");
    assert_eq!(web.get(&url).unwrap().status, 200);

    // A token is spent; the key it made is what counts.
    connector.process.terminate(Duration::from_secs(60)).unwrap();
    let mut thief = Connector::enrol(&realm.dir.path().join("thief"), None, &token).unwrap();
    assert!(!thief.process.wait(Duration::from_secs(60)).unwrap().success(), "a spent token is refused");
    let _again = Connector::start(&dir, None).unwrap();
    wait_for_connections(&realm, "2");

    realm.node.admin(&["connector", "revoke", "hq"]).unwrap();
    wait_until("the application to be gone", Duration::from_secs(60), || {
        Ok((web.get(&url)?.status == 503).then_some(()))
    })
    .unwrap();
}
