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
    let told = lab.realm.events("logout", 7).unwrap();
    let told = told.iter().filter(|event| event["detail"] == "back-channel logout").count();
    assert_eq!(told, 4);
}

#[test]
fn hostile_requests_get_nothing_and_one_event_each() {
    Lab::start().run("hostile");
}
