//! A provider, or somebody between, that cheats: refused, no cookie, nothing at the origin, one event.

use std::time::Instant;

use portcullis_tests::idp::ClaimsIn;
use portcullis_tests::realm::{AUTH, WIKI};

use crate::visit::{assert_refused, log_in, realm, to_callback};

/// Control for every case below: the proxy signs the same claims again with the provider's key, and that is fine.
#[test]
fn what_is_signed_again_unchanged_is_accepted() {
    let (realm, idp) = realm(ClaimsIn::IdToken, "").unwrap();
    idp.tamper("resign").unwrap();
    let page = log_in(&realm, &realm.web("ann"), &realm.url(WIKI, "/"), "ann").unwrap();
    assert_eq!(page.status, 200, "{}", page.body);
}

fn refused(claims_in: ClaimsIn, mode: &str, reason: &str) {
    let (realm, idp) = realm(claims_in, "").unwrap();
    idp.tamper(mode).unwrap();
    let web = realm.web("ann");
    let reply = log_in(&realm, &web, &realm.url(WIKI, "/"), "ann").unwrap();
    assert_refused(&realm, &web, &reply, reason, mode);
}

macro_rules! cases {
    ($($name:ident: $claims:ident $mode:literal => $reason:literal),* $(,)?) => {
        $(#[test]
        fn $name() {
            refused(ClaimsIn::$claims, $mode, $reason);
        })*
    };
}

cases! {
    wrong_nonce: IdToken "nonce" => "provider_answer",
    no_nonce: IdToken "no_nonce" => "provider_answer",
    wrong_issuer: IdToken "issuer" => "provider_answer",
    wrong_audience: IdToken "audience" => "provider_answer",
    a_second_audience: IdToken "two_audiences" => "provider_answer",
    another_authorized_party: IdToken "authorized_party" => "provider_answer",
    expired: IdToken "expired" => "provider_answer",
    an_expiry_that_is_text: IdToken "exp_text" => "provider_answer",
    issued_in_the_future: IdToken "future" => "provider_answer",
    another_access_token: IdToken "access_token_hash" => "provider_answer",
    no_subject: IdToken "no_subject" => "provider_answer",
    a_critical_header: IdToken "critical" => "provider_answer",
    a_broken_signature: IdToken "signature" => "provider_answer",
    no_signature: IdToken "unsigned" => "provider_answer",
    a_mac_with_the_client_secret: IdToken "hmac_secret" => "provider_answer",
    a_mac_with_the_public_key: IdToken "hmac_public" => "provider_answer",
    a_key_that_is_not_published: IdToken "unknown_key" => "provider_answer",
    a_key_that_the_token_brings: IdToken "own_key" => "provider_answer",
    a_key_under_the_name_of_another: IdToken "same_kid" => "provider_answer",
    a_verified_number: IdToken "verified_number" => "provider_answer",
    no_id_token: IdToken "no_id_token" => "provider_answer",
    userinfo_of_another_subject: Userinfo "userinfo_subject" => "provider_answer",
    userinfo_that_is_a_list: Userinfo "userinfo_list" => "provider_answer",
    another_issuer_in_the_answer: Userinfo "callback_issuer" => "provider_answer",
    no_issuer_in_the_answer: Userinfo "callback_no_issuer" => "provider_answer",
    another_state: Userinfo "callback_state" => "bad_state",
    no_state: Userinfo "callback_no_state" => "bad_state",
    two_codes: Userinfo "callback_two_codes" => "provider_answer",
    the_provider_says_no: Userinfo "callback_error" => "provider_answer",
    an_access_token_with_a_line_break: Userinfo "header_injection" => "provider_answer",
    garbage: Userinfo "garbage" => "provider_answer",
    a_huge_answer: Userinfo "huge" => "provider_unavailable",
    an_answer_without_end: Userinfo "endless" => "provider_unavailable",
    a_redirect_instead_of_an_answer: Userinfo "redirect" => "provider_answer",
    an_error_page: Userinfo "error" => "provider_answer",
    a_connection_that_breaks: Userinfo "hang_up" => "provider_unavailable",
}

/// The person is who they are, but no rule about their address matches.
#[test]
fn an_address_that_is_not_verified_is_no_address() {
    for claims_in in [ClaimsIn::IdToken, ClaimsIn::Userinfo] {
        let (realm, idp) = realm(claims_in, "").unwrap();
        for mode in ["verified_text", "verified_false", "verified_absent"] {
            idp.tamper(mode).unwrap();
            let web = realm.web(mode);
            let page = log_in(&realm, &web, &realm.url(WIKI, "/"), "ann").unwrap();
            assert_eq!(page.status, 403, "{claims_in:?} {mode}: {}", page.body);
            assert!(!page.body.contains("ann@example.com"), "{claims_in:?} {mode}");
            // A rule about groups still does.
            let page = web.follow(web.get(&realm.url(WIKI, "/admin/")).unwrap(), None).unwrap();
            assert_eq!(page.status, 200, "{claims_in:?} {mode}: {}", page.body);
        }
        assert!(realm.origin.requests().iter().all(|request| request.target == "/admin/"));
    }
}

/// Login CSRF: an answer meant for Eve's browser, opened in Ann's.
#[test]
fn an_answer_in_another_browser_is_refused() {
    let (realm, _idp) = realm(ClaimsIn::Userinfo, "").unwrap();
    let back = to_callback(&realm, &realm.web("eve"), &realm.url(WIKI, "/"), "ann").unwrap();
    let victim = realm.web("victim");
    let reply = victim.get(&back).unwrap();
    assert_refused(&realm, &victim, &reply, "bad_state", "another browser");
}

/// The same answer twice, in the same browser, cookies of the first time included, and a provider that lets codes
/// be redeemed again.
#[test]
fn an_answer_counts_once() {
    let (realm, idp) = realm(ClaimsIn::IdToken, "").unwrap();
    idp.tamper("replay").unwrap();
    let web = realm.web("ann");
    let back = to_callback(&realm, &web, &realm.url(WIKI, "/"), "ann").unwrap();
    let twin = web.copy(&realm.dir.path().join("twin.jar")).unwrap();
    assert_eq!(web.get(&back).unwrap().status, 302);
    for (what, browser) in [("the browser itself", &web), ("a copy from before", &twin)] {
        let reply = browser.get(&back).unwrap();
        assert_eq!(reply.status, 400, "{what}: {}", reply.body);
        assert_eq!(reply.cookies(), [""; 0], "{what}");
    }
}

#[test]
fn callbacks_out_of_nowhere_are_refused() {
    let (realm, idp) = realm(ClaimsIn::Userinfo, "").unwrap();
    let web = realm.web("stranger");
    let long = format!("?code=x&state={}", "a".repeat(7000));
    for query in
        ["", "?code=x", "?state=x", "?code=x&state=x", "?error=%3Cscript%3Ealert(1)%3C/script%3E", &long]
    {
        let reply = web.get(&realm.url(AUTH, &format!("/cdn-cgi/access/callback{query}"))).unwrap();
        assert_eq!(reply.status, 400, "{query}: {}", reply.body);
        assert_eq!(reply.cookies(), [""; 0], "{query}");
        assert!(!reply.body.contains("<script"), "{query}");
    }
    assert_eq!(idp.seen("/token").unwrap(), 0, "no code of a stranger is redeemed");
    assert_eq!(realm.events("login", 6).unwrap().len(), 6);
}

/// Whoever starts a login can invent any number of answers to it, and start more; the provider is not asked about all of
/// them.
#[test]
fn invented_codes_do_not_become_a_flood_at_the_provider() {
    let (realm, idp) = realm(ClaimsIn::Userinfo, "").unwrap();
    let began = Instant::now();
    let mut most_of_one = 0;
    for login in 0..10 {
        let web = realm.web(&format!("eve{login}"));
        let form = web.follow(web.get(&realm.url(WIKI, "/")).unwrap(), Some(idp.issuer())).unwrap();
        let start = form.redirect().unwrap();
        let state = start.split("state=").nth(1).unwrap().split('&').next().unwrap();
        let answer = format!("/cdn-cgi/access/callback?code=invented&state={state}&iss={}", idp.issuer());
        let attempt = |number: u64| {
            let copy = web.copy(&realm.dir.path().join(format!("eve{login}-{number}.jar"))).unwrap();
            copy.get(&realm.url(AUTH, &answer)).unwrap().status
        };
        let taken = (0..10).map(attempt).take_while(|status| *status == 400).count();
        most_of_one = most_of_one.max(taken);
    }
    // Of one login five and one more each minute; of the network twenty, and one more every ten seconds.
    let passed = began.elapsed().as_secs();
    assert!((5..=6 + passed / 60).contains(&(most_of_one as u64)), "{most_of_one} in {passed} s");
    let asked = idp.seen("/token").unwrap();
    assert!((20..=21 + passed / 10).contains(&asked), "{asked} in {passed} s");
    assert_eq!(realm.origin.requests(), []);
}
