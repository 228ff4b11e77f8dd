//! Administration: over the socket, and straight on the store where no daemon runs.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use portcullis_tests::process::wait_until;
use portcullis_tests::realm::{PASSWORD, Plan, SHOP, WIKI};
use serde_json::Value;

#[test]
fn sessions_are_listed_and_revoked_by_id_user_and_application() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let browsers = ["by-id", "by-user", "by-app"].map(|name| realm.web(name));
    for (web, host) in browsers.iter().zip([WIKI, WIKI, SHOP]) {
        assert_eq!(realm.log_in(web, &realm.url(host, "/"), "ann", PASSWORD).unwrap().status, 200);
    }
    let list = |args: &[&str]| -> Vec<Value> {
        let out = realm.node.admin(&[&["session", "list", "--json"], args].concat()).unwrap();
        serde_json::from_str(&out).unwrap()
    };
    assert_eq!(list(&[]).len(), 3);
    let of_shop = list(&["--app", "shop"]);
    assert_eq!(of_shop.len(), 1);

    realm.node.admin(&["session", "revoke", "--app", "shop"]).unwrap();
    assert_eq!(browsers[2].get(&realm.url(SHOP, "/")).unwrap().status, 302);
    assert_eq!(browsers[0].get(&realm.url(WIKI, "/")).unwrap().status, 200);

    let first = list(&[])[0]["id"].as_str().unwrap().to_owned();
    realm.node.admin(&["session", "revoke", "--id", &first]).unwrap();
    assert_eq!(browsers[0].get(&realm.url(WIKI, "/")).unwrap().status, 302);
    assert_eq!(browsers[1].get(&realm.url(WIKI, "/")).unwrap().status, 200);

    let out = realm.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    assert!(out.contains("1 revoked"), "{out}");
    assert_eq!(browsers[1].get(&realm.url(WIKI, "/")).unwrap().status, 302);
    assert!(realm.node.admin(&["session", "revoke"]).is_err(), "a revocation must say of what");
}

#[test]
fn a_new_password_and_a_removal_end_the_sessions_of_that_user() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let wiki = realm.url(WIKI, "/");
    let (ann, bob) = (realm.web("ann"), realm.web("bob"));
    for (web, user) in [(&ann, "ann"), (&bob, "bob")] {
        assert_eq!(realm.log_in(web, &wiki, user, PASSWORD).unwrap().status, 200);
    }
    realm
        .node
        .admin_with_stdin(&["user", "passwd", "ann", "--password-stdin"], "another good one\n")
        .unwrap();
    assert_eq!(ann.get(&wiki).unwrap().status, 302);
    assert_eq!(bob.get(&wiki).unwrap().status, 200);
    realm.node.admin(&["user", "remove", "bob"]).unwrap();
    assert_eq!(bob.get(&wiki).unwrap().status, 302);
}

#[test]
fn failed_logins_of_strangers_are_counted_beyond_the_rate() {
    counted_beyond_the_rate("login", |n| format!("/cdn-cgi/access/authorized?code={n}"));
}

/// Asks for paths until some of the events are counted and not written: a busy machine may be slower than the rate.
fn counted_beyond_the_rate(action: &str, path: impl Fn(u64) -> String) {
    const TOGETHER: u64 = 400;
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let log = || -> anyhow::Result<(u64, u64)> {
        let text = std::fs::read_to_string(realm.dir.path().join("access.jsonl"))?;
        let events: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let single = events.iter().filter(|e| e["action"] == action).count() as u64;
        let summaries = events.iter().filter(|e| e["action"] == "summary");
        Ok((single, summaries.filter_map(|e| e["count"].as_u64()).sum()))
    };
    let mut asked = 0;
    for _ in 0..10 {
        let mut urls = (asked..asked + TOGETHER).map(|n| realm.url(WIKI, &path(n)));
        let first = urls.next().unwrap();
        let mut args = vec!["--parallel".to_owned(), "--parallel-max".to_owned(), "50".to_owned()];
        args.extend(urls);
        realm.web("stranger").send(&first, &args).unwrap();
        asked += TOGETHER;
        let counted = wait_until("every one to be accounted for", Duration::from_secs(60), || {
            let (single, counted) = log()?;
            anyhow::ensure!(single + counted <= asked, "{single} + {counted} is too many");
            Ok((single + counted == asked).then_some(counted))
        });
        if counted.unwrap() > 0 {
            return;
        }
    }
    panic!("this machine never asks faster than the rate");
}

#[test]
fn a_compromised_key_is_forgotten_at_once() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let web = realm.web("ann");
    let wiki = realm.url(WIKI, "/");
    assert_eq!(realm.log_in(&web, &wiki, "ann", PASSWORD).unwrap().status, 200);
    realm.node.admin(&["keys", "rotate"]).unwrap();
    assert_eq!(web.get(&wiki).unwrap().status, 200, "a planned rotation disturbs nobody");
    let certs = || -> Value {
        let reply = realm.web("keys").get(&realm.url(WIKI, "/cdn-cgi/access/certs")).unwrap();
        serde_json::from_str(&reply.body).unwrap()
    };
    assert_eq!(certs()["keys"].as_array().unwrap().len(), 2);
    realm.node.admin(&["keys", "rotate", "--now"]).unwrap();
    assert_eq!(certs()["keys"].as_array().unwrap().len(), 1);
    assert_eq!(web.get(&wiki).unwrap().status, 302);
}

#[test]
fn the_log_is_read_by_user_application_and_verdict() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let web = realm.web("bob");
    assert_eq!(realm.log_in(&web, &realm.url(WIKI, "/"), "bob", PASSWORD).unwrap().status, 200);
    assert_eq!(web.get(&realm.url(WIKI, "/admin/x")).unwrap().status, 302);
    let denied = web.follow(web.get(&realm.url(WIKI, "/admin/x")).unwrap(), None).unwrap();
    assert_eq!(denied.status, 403);
    let ray = denied.ray().unwrap();
    let read = |args: &[&str]| -> Vec<Value> {
        let out = realm.node.admin(&[&["events", "--json"], args].concat()).unwrap();
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let of_page = || -> Vec<_> {
        read(&["--denied"]).into_iter().filter(|event| event["ray_id"] == ray.as_str()).collect()
    };
    // It is written when the answer is done, which whoever reads it may know first.
    wait_until("the page's event", Duration::from_secs(60), || Ok((!of_page().is_empty()).then_some(())))
        .unwrap();
    let of_page = of_page();
    assert_eq!(of_page.len(), 1, "exactly one event for the page with ray {ray}");
    assert_eq!(of_page[0]["user_email"], "bob@example.com");
    assert!(read(&["--app", "wiki"]).iter().all(|e| e["app_name"] == "wiki"));
    assert!(read(&["--user", "nobody@example.com"]).is_empty());
    assert!(read(&["--since", "1h"]).len() >= 3);
}

#[test]
fn requests_of_strangers_beyond_the_rate_are_counted_exactly() {
    counted_beyond_the_rate("request", |n| format!("/{n}"));
}

#[test]
fn only_root_administers_and_every_change_has_an_event() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let mode = std::fs::metadata(realm.node.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::set_permissions(realm.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut as_nobody = std::process::Command::new("python3");
    let connect = format!("import socket; socket.socket(socket.AF_UNIX).connect({:?})", realm.node.socket());
    let output = as_nobody.args(["-c", &connect]).uid(65_534).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("PermissionError"), "{error}");

    let out = realm.node.admin(&["events", "--json"]).unwrap();
    assert!(out.contains("\"detail\":\"user add ann\""), "{out}");
    assert!(out.contains("\"user_id\":\"uid 0\""), "{out}");
}

#[test]
fn a_backup_brings_back_what_was_and_a_damaged_one_is_refused() {
    let mut realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let copy = realm.dir.path().join("copy.sqlite");
    realm.node.admin(&["backup", copy.to_str().unwrap()]).unwrap();
    realm.node.admin(&["user", "remove", "ann"]).unwrap();
    assert!(realm.node.admin(&["restore", copy.to_str().unwrap()]).is_err(), "not while the node runs");
    realm.node.process().unwrap().terminate(Duration::from_secs(60)).unwrap();
    realm.node.admin(&["restore", copy.to_str().unwrap()]).unwrap();
    assert!(realm.node.admin(&["user", "list"]).unwrap().contains("ann@example.com"));
    assert!(realm.node.admin(&["events"]).unwrap().contains("restore "), "the restored log says so");
    std::fs::write(&copy, b"SQLite format 3\0 and then nothing of the kind").unwrap();
    assert!(realm.node.admin(&["restore", copy.to_str().unwrap()]).is_err());
    assert!(realm.node.admin(&["user", "list"]).unwrap().contains("ann@example.com"));
    realm.node.restart().unwrap();
}

#[test]
fn check_tells_how_to_make_the_first_user() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    assert!(!realm.node.admin(&["check"]).unwrap().contains("note:"));
    for name in ["ann", "bob", "eve"] {
        realm.node.admin(&["user", "remove", name]).unwrap();
    }
    let out = realm.node.admin(&["check"]).unwrap();
    assert!(out.contains("admin user add"), "{out}");
    assert!(
        realm
            .node
            .admin_with_stdin(&["user", "add", "x", "--email", "x@y.z", "--password-stdin"], "short")
            .is_err()
    );
    assert!(realm.node.admin(&["user", "add", "x", "--email", "x@y@z"]).is_err());
}
