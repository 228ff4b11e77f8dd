//! Applications elsewhere that sign people in with the node: npm `openid-client` against the running node, honest and
//! hostile. What they do is in `third-party/npm/saas.mjs` and `saas-hostile.mjs`.

mod lab;

use lab::Lab;

#[test]
fn every_kind_of_client_signs_in_refreshes_and_ends() {
    Lab::start().run("honest");
}

#[test]
fn forms_of_other_sites_go_on_where_the_cookie_counts() {
    Lab::start().run("forms");
}

#[test]
fn a_logout_ends_every_token_and_the_application_is_told() {
    let lab = Lab::start();
    lab.run("logout");
    let events = lab.realm.events("logout", 8).unwrap();
    let told = events.iter().filter(|event| event["detail"] == "back-channel logout").count();
    let remains = |event: &&serde_json::Value| {
        event["detail"].as_str().is_some_and(|detail| detail.starts_with("its session remains: "))
    };
    assert_eq!((told, events.iter().filter(remains).count()), (4, 1), "one was told at the second try");
}

#[test]
fn hostile_requests_get_nothing_and_one_event_each() {
    Lab::start().run("hostile");
}
