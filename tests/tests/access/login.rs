//! The person's way: the real binary, a scripted browser, a real curl and a real application.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use portcullis_tests::access::{Machine, answer, confirmation, finish};
use portcullis_tests::realm::{AUTH, Plan, Realm, SHOP, WIKI};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn realm() -> Realm {
    Plan::new().unwrap().start(true, &[], "").unwrap()
}

/// The files below `path`, with their modes.
fn files(path: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            found.extend(
                files(&entry.path()).into_iter().map(|(below, mode)| (format!("{name}/{below}"), mode)),
            );
        }
        found.push((name, mode));
    }
    found
}

#[test]
fn a_person_logs_in_by_browser_and_curl_reaches_an_application() {
    let realm = realm();
    let (laptop, ann) = (Machine::new(&realm, "laptop").unwrap(), realm.web("ann"));
    assert!(laptop.fails(&["whoami"]).unwrap().contains("nobody is logged in here"));
    laptop.log_in(&ann, "ann").unwrap();

    let who = laptop.ok(&["whoami"]).unwrap();
    assert!(who.contains("ann@example.com") && who.contains("laptop") && who.contains("ops"), "{who}");
    let who: Value = serde_json::from_str(&laptop.ok(&["whoami", "--json"]).unwrap()).unwrap();
    assert_eq!(who["id"], "local:ann");
    let apps = laptop.ok(&["apps"]).unwrap();
    for app in ["wiki", "admin", "shop", "web", &realm.url(SHOP, "")] {
        assert!(apps.contains(app), "{app} not in {apps}");
    }
    for (name, mode) in files(&laptop.home().join(".config/portcullis/access")) {
        let directory = !name.ends_with(".json")
            && !name.ends_with(".pem")
            && !["lock", "current"].iter().any(|file| name.ends_with(file));
        assert_eq!(mode, if directory { 0o700 } else { 0o600 }, "{name}");
    }

    // A curl that notes what it was called with: the token is not among it.
    let bin = laptop.home().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let script =
        format!("#!/bin/sh\necho \"$@\" >> {}/argv\nexec /usr/bin/curl \"$@\"\n", laptop.home().display());
    std::fs::write(bin.join("curl"), script).unwrap();
    std::fs::set_permissions(bin.join("curl"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command =
        laptop.command(&["curl", &realm.url(WIKI, "/api?x=1"), "--silent", "-d", "@-"]).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut child = command
        .env("PATH", path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"hello").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let requests = realm.origin.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!((requests[0].target.as_str(), requests[0].body.as_slice()), ("/api?x=1", &b"hello"[..]));
    assert_eq!(requests[0].header("cf-access-authenticated-user-email"), ["ann@example.com"]);
    let assertion = requests[0].header("cf-access-jwt-assertion")[0].to_owned();
    assert_eq!(
        requests[0].header("cf-access-token"),
        [""; 0],
        "the origin does not see what it could replay"
    );
    let argv = std::fs::read_to_string(laptop.home().join("argv")).unwrap();
    assert!(
        argv.contains("--config /proc/self/fd/") && !argv.contains("eyJ") && !argv.contains("Cf-Access"),
        "{argv}"
    );
    // What the origin saw opens nothing.
    let replay = ["--header".to_owned(), format!("Cf-Access-Token: {assertion}")];
    assert_eq!(realm.web("origin").send(&realm.url(WIKI, "/"), &replay).unwrap().status, 302);

    // curl's own exit status, and its refusal to be led away.
    let missing = laptop.run(&["curl", &realm.url(WIKI, "/"), "--silent", "--output", "/nowhere/x"]).unwrap();
    assert_eq!(missing.status.code(), Some(23));
    let led = laptop.fails(&["curl", &realm.url(WIKI, "/"), "-sL"]).unwrap();
    assert!(led.contains("redirects are not followed"), "{led}");
    let unknown = laptop.fails(&["curl", "https://evil.example/"]).unwrap();
    assert!(unknown.contains("there is no such application"), "{unknown}");

    let logins = realm.events("login", 2).unwrap();
    assert_eq!(logins.len(), 2, "the browser and the device: {logins:?}");
    assert_eq!(logins[1]["detail"], "device laptop");
    assert!(realm.node.metrics().unwrap().contains("portcullis_clients 1"));
}

#[test]
fn a_token_opens_its_application_until_the_device_logs_out() {
    let realm = realm();
    let (laptop, bob) = (Machine::new(&realm, "laptop").unwrap(), realm.web("bob"));
    laptop.log_in(&bob, "bob").unwrap();
    let denied = laptop.fails(&["token", "admin"]).unwrap();
    assert!(denied.contains("policy does not open admin to you"), "{denied}");
    let token = laptop.ok(&["token", "wiki"]).unwrap();
    let script = realm.web("script");
    let get = |url: &str| {
        let header = ["--header".to_owned(), format!("Cf-Access-Token: {}", token.trim())];
        script.send(url, &header).unwrap().status
    };
    assert_eq!(get(&realm.url(WIKI, "/")), 200);
    assert_eq!(get(&realm.url(SHOP, "/")), 302, "not another application's");
    let cookie = ["--header".to_owned(), format!("Cookie: CF_Authorization={}", token.trim())];
    assert_eq!(script.send(&realm.url(WIKI, "/"), &cookie).unwrap().status, 302, "nor in a cookie");

    let written = laptop.ok(&["token", "wiki", "--cloudflared"]).unwrap();
    let directory = laptop.home().join(".cloudflared");
    let found = files(&directory);
    assert_eq!(found.len(), 1, "{found:?}");
    let (name, mode) = &found[0];
    assert!(name.starts_with("wiki.example.com-") && name.ends_with("-token") && *mode == 0o600, "{found:?}");
    assert_eq!(name.len(), "wiki.example.com--token".len() + 64);
    assert!(written.contains(name));
    assert!(std::fs::read_to_string(directory.join(name)).unwrap().starts_with("eyJ"));

    laptop.ok(&["logout"]).unwrap();
    assert_eq!(get(&realm.url(WIKI, "/")), 302);
    let out = laptop.fails(&["whoami"]).unwrap();
    assert!(out.contains("logged out: run `portcullis access login"), "{out}");
    assert_eq!(realm.events("logout", 1).unwrap()[0]["detail"], "device laptop: logged out there");
    // The browser's own login goes on.
    assert_eq!(bob.follow(bob.get(&realm.url(WIKI, "/")).unwrap(), None).unwrap().status, 200);
}

#[test]
fn a_person_who_declines_or_another_page_lets_nobody_in() {
    let realm = realm();
    let (laptop, ann) = (Machine::new(&realm, "laptop").unwrap(), realm.web("ann"));
    let (mut process, url) = laptop.start_login().unwrap();
    let page = confirmation(&ann, &url, "ann").unwrap();
    // Somebody on the machine guesses at the loopback address meanwhile.
    let redirect = url::decode(url.split("redirect_uri=").nth(1).unwrap().split('&').next().unwrap());
    for query in ["", "?code=x&state=y", "?error=access_denied"] {
        assert_eq!(ann.get(&format!("{redirect}{query}")).unwrap().status, 404);
    }
    assert!(process.is_running());
    let no = answer(&ann, &page, "deny").unwrap();
    let told = ann.get(&no.redirect().unwrap()).unwrap();
    assert!(told.body.contains("was not signed in"), "{}", told.body);
    assert!(!process.wait(PATIENCE).unwrap().success());
    assert!(process.output().contains("it was not confirmed"), "{}", process.output());
    assert!(laptop.fails(&["whoami"]).unwrap().contains("nobody is logged in"));
}

#[test]
fn a_person_logs_a_machine_without_a_browser_in_by_a_code() {
    let realm = realm();
    let (server, ann) = (Machine::new(&realm, "server").unwrap(), realm.web("ann"));
    let (mut process, url, code) = server.start_login_by_code().unwrap();
    assert_eq!(url, realm.url(AUTH, "/cdn-cgi/access/cli/device"));
    let form = confirmation(&ann, &url, "ann").unwrap();
    let ticket = form.field("ticket").unwrap();
    let wrong = ann.post(&form.url, &[("ticket", &ticket), ("code", "BBBB-CCCC")]).unwrap();
    assert!(wrong.status == 400 && wrong.body.contains("No device waits with this code"), "{}", wrong.body);
    let found = ann.post(&form.url, &[("ticket", &ticket), ("code", &code.to_lowercase())]).unwrap();
    let page = ann.follow(found, None).unwrap();
    for text in ["laptop", "127.0.0.1", "ann@example.com"] {
        assert!(page.body.contains(text), "{text} not in {}", page.body);
    }
    assert!(process.is_running(), "not before it is confirmed: {}", process.output());
    assert!(answer(&ann, &page, "allow").unwrap().body.contains("The device is signed in"));
    finish(&mut process).unwrap();
    assert!(server.ok(&["whoami"]).unwrap().contains("ann@example.com"));

    // A second one is refused, and says so.
    let (mut process, url, code) = server.start_login_by_code().unwrap();
    let form = ann.get(&url).unwrap();
    let typed = [("ticket", form.field("ticket").unwrap()), ("code", code)];
    let typed: Vec<(&str, &str)> = typed.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let page = ann.follow(ann.post(&url, &typed).unwrap(), None).unwrap();
    assert!(answer(&ann, &page, "deny").unwrap().body.contains("was not let in"));
    assert!(!process.wait(PATIENCE).unwrap().success());
    assert!(process.output().contains("it was not confirmed"), "{}", process.output());
    assert!(server.ok(&["whoami"]).unwrap().contains("ann@example.com"), "the login before stays");
}

#[test]
fn tokens_refresh_by_themselves_across_processes_and_a_restart() {
    let mut realm = realm();
    let (laptop, ann) = (Machine::new(&realm, "laptop").unwrap(), realm.web("ann"));
    laptop.log_in(&ann, "ann").unwrap();
    laptop.expire().unwrap();
    let together: Vec<_> = (0..4).map(|_| laptop.command(&["whoami"]).unwrap().spawn().unwrap()).collect();
    for mut child in together {
        assert!(child.wait().unwrap().success());
    }
    realm.node.restart().unwrap();
    laptop.expire().unwrap();
    assert!(laptop.ok(&["whoami"]).unwrap().contains("ann@example.com"));
    assert_eq!(realm.events("logout", 0).unwrap().len(), 0);
}

#[test]
fn a_stolen_profile_is_noticed_and_ends_for_both() {
    let realm = realm();
    let (laptop, ann) = (Machine::new(&realm, "laptop").unwrap(), realm.web("ann"));
    laptop.log_in(&ann, "ann").unwrap();
    laptop.expire().unwrap();
    let thief = laptop.copy("thief").unwrap();
    assert!(thief.ok(&["whoami"]).unwrap().contains("ann@example.com"), "the thief is first");
    let out = laptop.fails(&["whoami"]).unwrap();
    assert!(out.contains("the login has ended") && out.contains("was used before"), "{out}");
    assert!(thief.fails(&["whoami"]).unwrap().contains("the login has ended"));
    let logouts = realm.events("logout", 1).unwrap();
    assert_eq!(logouts[0]["detail"], "device laptop: its refresh token was used twice");
    assert_eq!(logouts[0]["user_email"], "ann@example.com");
}

#[test]
fn a_revoked_session_ends_its_devices() {
    let realm = realm();
    let (laptop, ann) = (Machine::new(&realm, "laptop").unwrap(), realm.web("ann"));
    laptop.log_in(&ann, "ann").unwrap();
    let token = laptop.ok(&["token", "wiki"]).unwrap();
    realm.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    assert!(laptop.fails(&["apps"]).unwrap().contains("the login has ended"));
    laptop.expire().unwrap();
    assert!(laptop.fails(&["whoami"]).unwrap().contains("the login has ended"));
    let header = ["--header".to_owned(), format!("Cf-Access-Token: {}", token.trim())];
    assert_eq!(realm.web("script").send(&realm.url(WIKI, "/"), &header).unwrap().status, 302);
}

/// Decodes what a form has encoded.
mod url {
    pub(super) fn decode(text: &str) -> String {
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            if byte != b'%' {
                bytes.push(byte);
                continue;
            }
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        }
        String::from_utf8(bytes).unwrap()
    }
}
