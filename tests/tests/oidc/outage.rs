//! The provider is down: whoever has a session goes on, whoever needs one is told.

use std::time::{Duration, Instant};

use portcullis_tests::idp::ClaimsIn;
use portcullis_tests::realm::{SHOP, WIKI};

use crate::visit::{assert_refused, log_in, realm};

#[test]
fn sessions_outlive_the_provider() {
    let (realm, mut idp) = realm(ClaimsIn::Userinfo, "").unwrap();
    let ann = realm.web("ann");
    log_in(&realm, &ann, &realm.url(WIKI, "/"), "ann").unwrap();
    idp.stop().unwrap();
    assert_eq!(ann.get(&realm.url(WIKI, "/")).unwrap().status, 200);
    let other = ann.follow(ann.get(&realm.url(SHOP, "/")).unwrap(), None).unwrap();
    assert_eq!(other.status, 200, "a new application too: {}", other.body);
}

#[test]
fn a_login_says_that_the_provider_is_down_and_does_not_queue() {
    let (realm, mut idp) = realm(ClaimsIn::Userinfo, "").unwrap();
    idp.stop().unwrap();
    let web = realm.web("ann");
    let reply = web.follow(web.get(&realm.url(WIKI, "/")).unwrap(), None).unwrap();
    assert_eq!(reply.status, 503);
    assert!(!reply.header("retry-after").is_empty());
    assert!(reply.body.contains("The identity provider does not answer"));
    assert_refused(&realm, &web, &reply, "provider_unavailable", "down");

    let begun = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let realm = &realm;
            scope.spawn(move || {
                let web = realm.web(&format!("queue{number}"));
                let reply = web.follow(web.get(&realm.url(WIKI, "/")).unwrap(), None).unwrap();
                assert_eq!(reply.status, 503);
            });
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
