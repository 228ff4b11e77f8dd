//! Secrets appear nowhere that anybody reads.

use portcullis_tests::realm::{PASSWORD, Plan, WIKI};

const CANARY: &str = "canary-4f1c2d9e7b";

#[test]
fn secrets_are_in_no_log_event_metric_or_listing() {
    let more = "[[identity_provider]]\nname = \"dead\"\ntype = \"oidc\"\nissuer = \"https://127.0.0.1:1\"\nclient_id = \"x\"\nclient_secret = { file = \"canary.secret\" }\n";
    let plan = Plan::new().unwrap();
    std::fs::create_dir_all(plan.path().join("node")).unwrap();
    std::fs::write(plan.path().join("node/canary.secret"), CANARY).unwrap();
    let mut realm = plan.start(true, &[], more).unwrap();
    let web = realm.web("ann");
    realm.log_in(&web, &realm.url(WIKI, "/"), "ann", PASSWORD).unwrap();
    let wrong = realm.web("wrong");
    realm.log_in(&wrong, &realm.url(WIKI, "/"), "ann", CANARY).unwrap();
    let token = realm.node.create_connector("hq", "127.0.0.1:1").unwrap();
    realm
        .node
        .admin_with_stdin(&["user", "passwd", "bob", "--password-stdin"], &format!("{CANARY}\n"))
        .unwrap();
    let jar = std::fs::read_to_string(realm.dir.path().join("ann.jar")).unwrap();
    let cookies: Vec<String> = jar
        .lines()
        .filter_map(|line| line.split('\t').nth(6))
        .filter(|value| value.len() > 40)
        .map(|value| value.rsplit('.').next().unwrap_or(value).to_owned())
        .collect();
    assert!(cookies.len() >= 2, "the browser holds tokens: {jar}");

    let mut read = Vec::new();
    for args in [
        &["events", "--json"][..],
        &["events"],
        &["session", "list", "--json"],
        &["user", "list"],
        &["connector", "list"],
        &["keys", "list"],
        &["status"],
    ] {
        read.push((args.join(" "), realm.node.admin(args).unwrap()));
    }
    read.push(("metrics".into(), realm.node.metrics().unwrap()));
    read.push(("log".into(), realm.node.process().unwrap().output()));
    read.push(("access log".into(), std::fs::read_to_string(realm.dir.path().join("access.jsonl")).unwrap()));
    for (place, text) in &read {
        for secret in [CANARY, PASSWORD, &token, "PRIVATE KEY", "$argon2"] {
            assert!(!text.contains(secret), "{place} shows `{secret}`");
        }
        for cookie in &cookies {
            assert!(!text.contains(cookie), "{place} shows a cookie");
        }
    }
    assert!(read.iter().any(|(_, text)| text.contains("ann@example.com")), "the control: something was read");
}
