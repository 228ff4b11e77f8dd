//! Certificates against OpenSSH: `ssh-keygen` reads them, and a server that allows nothing else lets in who is meant to be.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use portcullis::clock;
use portcullis_tests::access::Machine;
use portcullis_tests::process::wait_until;
use portcullis_tests::realm::AUTH;
use portcullis_tests::sshd::Sshd;
use portcullis_tests::third_party;
use portcullis_tests::web::{Reply, Web};
use serde_json::{Value, json};

use crate::world::{HOSTS, SHELL, SOON, World, run};

/// What a person with an identity (a key, its certificate beside it) is told: who they are there.
fn login(sshd: &Sshd, identity: &Path, user: &str) -> Option<String> {
    let port = sshd.port.to_string();
    let (good, out, _) = run(ssh(identity).args(["-p", &port, &format!("{user}@127.0.0.1"), "id -un"]));
    good.then(|| out.trim().to_owned())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// `ssh` with one identity and nothing else.
fn ssh(identity: &Path) -> Command {
    let mut command = Command::new("ssh");
    command.args([
        "-F",
        "/dev/null",
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "IdentityAgent=none",
    ]);
    command
        .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i"])
        .arg(identity);
    command.arg("-o").arg(format!("CertificateFile={}-cert.pub", identity.display()));
    command
}

/// A fresh key of a type; its path and public half.
fn keygen(world: &World, name: &str, kind: &[&str]) -> (PathBuf, String) {
    let path = world.realm.dir.path().join(name);
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-N", ""]).args(kind).arg("-f").arg(&path);
    assert!(run(&mut command).0);
    let public = read(&format!("{}.pub", path.display()));
    (path, public.trim().to_owned())
}

/// Asks for a certificate as a client does: by JSON, without cookies.
fn sign(world: &World, host: &str, body: &Value) -> Reply {
    let jar = world.realm.dir.path().join("no.jar");
    let web = Web::bare(&jar, &world.realm.ca_file, world.realm.port, &HOSTS);
    let args = ["--header", "Content-Type: application/json", "--data-raw", &body.to_string()];
    let url = world.realm.url(host, "/cdn-cgi/access/cert_sign");
    web.send(&url, &args.map(str::to_owned)).unwrap()
}

fn request(world: &World, public_key: &str, jwt: &str) -> Value {
    json!({ "public_key": public_key, "jwt": jwt, "issuer": format!("https://{AUTH}:{}", world.realm.port) })
}

/// A key with a certificate beside it, for whom the token is of.
fn certified(world: &World, name: &str, kind: &[&str], jwt: &str) -> PathBuf {
    let (path, public) = keygen(world, name, kind);
    certify(world, &path, &public, jwt).unwrap();
    path
}

/// Puts a certificate beside a key; an error with the answer where there is none.
fn certify(world: &World, key: &Path, public: &str, jwt: &str) -> Result<(), Reply> {
    let reply = sign(world, AUTH, &request(world, public, jwt));
    if reply.status != 200 {
        return Err(reply);
    }
    let answer: Value = serde_json::from_str(&reply.body).unwrap();
    let file = format!("{}-cert.pub", key.display());
    std::fs::write(file, answer["certificate"].as_str().unwrap()).unwrap();
    Ok(())
}

/// The option that makes `ssh` go through the node by the wire.
fn proxy(world: &World, jwt: &str) -> String {
    let plan = world.wire_file(SHELL, &json!({ "Cf-Access-Token": jwt }), json!({}));
    let script = third_party::script(None, "wire.mjs").unwrap();
    let words: Vec<String> = std::iter::once(script.get_program())
        .chain(script.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .chain([plan.display().to_string()])
        .collect();
    format!("ProxyCommand={}", words.join(" "))
}

const ED25519: [&str; 2] = ["-t", "ed25519"];

#[test]
fn a_server_that_trusts_one_application_lets_its_people_in_and_nobody_else() {
    let world = World::start();
    let authority = |name: &str| world.realm.node.admin(&["ssh-ca", "public-key", name]).unwrap();
    let sshd =
        Sshd::start(None, &world.realm.dir.path().join("sshd"), world.ssh_port, &authority("shell")).unwrap();
    let (ann, bob) = (world.session("ann"), world.session("bob"));

    let identity = certified(&world, "ann_key", &ED25519, &world.app_token(&ann, "shell"));
    for (user, expected) in
        [("ann", Some("ann")), ("deploy", Some("deploy")), ("bob", None), ("other", None), ("root", None)]
    {
        assert_eq!(login(&sshd, &identity, user).as_deref(), expected, "{user}");
    }
    let ecdsa = certified(&world, "bob_key", &["-t", "ecdsa", "-b", "384"], &world.app_token(&bob, "shell"));
    assert_eq!(login(&sshd, &ecdsa, "bob").as_deref(), Some("bob"));
    assert_eq!(login(&sshd, &ecdsa, "ann"), None);
    // The certificate is for its key, and the key is nothing without it.
    let (stranger, _) = keygen(&world, "stranger", &ED25519);
    std::fs::copy(format!("{}-cert.pub", identity.display()), format!("{}-cert.pub", stranger.display()))
        .unwrap();
    assert_eq!(login(&sshd, &stranger, "ann"), None);

    // Another application's authority, for the same person: root, since that one names it.
    let vault = certified(&world, "vault_key", &ED25519, &world.app_token(&ann, "vault"));
    assert_eq!((login(&sshd, &vault, "root"), login(&sshd, &vault, "ann")), (None, None));
    std::fs::write(&sshd.authorities, authority("vault")).unwrap();
    assert_eq!(login(&sshd, &vault, "root").as_deref(), Some("root"), "where it is trusted");
    assert_eq!(login(&sshd, &identity, "ann"), None, "the other one is not any more");
    let both = world.realm.node.admin(&["ssh-ca", "public-key"]).unwrap();
    assert_eq!(both, authority("shell") + &authority("vault"));
    std::fs::write(&sshd.authorities, both).unwrap();

    // A token that ends in a moment takes its certificate with it. A machine that is too busy to log in within it gets a longer
    // one.
    let short = [8, 20, 40].into_iter().find_map(|seconds| {
        let almost_a_day_ago = clock::now().before(Duration::from_secs(86_400 - seconds));
        let (key, public) = keygen(&world, &format!("short_key{seconds}"), &ED25519);
        let token = world.app_token_of(&ann, "shell", almost_a_day_ago);
        let began = Instant::now();
        let in_time = certify(&world, &key, &public, &token).is_ok()
            && login(&sshd, &key, "ann").as_deref() == Some("ann");
        assert!(in_time || began.elapsed() > Duration::from_secs(seconds / 2), "in {:?}", began.elapsed());
        in_time.then_some(key)
    });
    let short = short.expect("this machine never logs in in time");
    wait_until("the certificate to expire", SOON, || Ok(login(&sshd, &short, "ann").is_none().then_some(())))
        .unwrap();
    assert_eq!(login(&sshd, &identity, "ann").as_deref(), Some("ann"), "the others last");

    // Through the node, by the wire, as ProxyCommand.
    let proxy = proxy(&world, &world.app_token(&ann, "shell"));
    let (good, out, told) = run(ssh(&identity).args(["-o", &proxy, "ann@shell", "id -un; exit 7"]));
    assert_eq!((good, out.trim()), (false, "ann"), "{told}");
    let copy = world.realm.dir.path().join("copied");
    let big: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    let source = world.realm.dir.path().join("big");
    std::fs::write(&source, &big).unwrap();
    std::fs::set_permissions(world.realm.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut scp = Command::new("scp");
    scp.args(ssh(&identity).get_args()).args(["-q", "-o", &proxy]);
    scp.arg(format!("ann@shell:{}", source.display())).arg(&copy);
    let (good, _, told) = run(&mut scp);
    assert!(good && std::fs::read(&copy).unwrap() == big, "{told}");
    let end = world.last_event("disconnect", "shell", 2);
    assert!(end["bytes"].as_u64().unwrap() > 8_000_000, "{end}");
}

#[test]
fn a_certificate_says_what_was_decided_and_one_event_tells() {
    let world = World::start();
    let ann = world.session("ann");
    let (path, public) = keygen(&world, "key", &ED25519);
    let token = world.app_token(&ann, "shell");
    let reply = sign(&world, SHELL, &request(&world, &public, &token));
    assert_eq!(reply.status, 200, "on the application's host too: {}", reply.body);
    let answer: Value = serde_json::from_str(&reply.body).unwrap();
    let file = format!("{}-cert.pub", path.display());
    std::fs::write(&file, answer["certificate"].as_str().unwrap()).unwrap();
    let (good, listed, _) = run(Command::new("ssh-keygen").args(["-L", "-f", &file]));
    assert!(good);
    let id = answer["id"].as_str().unwrap();
    assert!(id.starts_with("ann@example.com local:ann ray "), "{id}");
    for line in [
        "ssh-ed25519-cert-v01@openssh.com user certificate",
        &format!("Key ID: \"{id}\""),
        "Critical Options: (none)",
    ] {
        assert!(listed.contains(line), "{line} not in {listed}");
    }
    let block = |from: &str, to: &str| -> Vec<String> {
        let rest =
            listed.split_once(from).unwrap().1.split_once(to).map_or(listed.as_str(), |(block, _)| block);
        rest.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    assert_eq!(block("Principals:", "Critical"), ["deploy", "ann"]);
    let extensions = listed.split_once("Extensions:").unwrap().1;
    let extensions: Vec<&str> = extensions.split_whitespace().collect();
    assert_eq!(
        extensions,
        ["permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"]
    );
    let event = world.last_event("certificate", "shell", 1);
    assert_eq!((&event["allowed"], &event["user_email"]), (&json!(true), &json!("ann@example.com")));
    assert_eq!((&event["policy"], &event["session_id"]), (&json!("staff"), &json!(ann.id.to_string())));
    assert!(id.ends_with(event["ray_id"].as_str().unwrap()), "{event}");
    assert!(event["detail"].as_str().unwrap().contains("for deploy,ann until "), "{event}");
    let log = world.realm.log().unwrap();
    assert!(!log.contains(&token) && !log.contains("PRIVATE"));

    // Refusals: each is one event, and says what is wrong in the words that the client reads.
    let rsa = keygen(&world, "rsa", &["-t", "rsa", "-b", "2048"]).1;
    let good = request(&world, &public, &token);
    let with = |key: &str, value: &str| {
        let mut body = good.clone();
        body[key] = json!(value);
        body
    };
    let a_day_ago = clock::now().before(Duration::from_secs(86_400 + 60));
    for (host, body, status, reason) in [
        (AUTH, with("jwt", &world.app_token_of(&ann, "shell", a_day_ago)), 401, "session_ended"),
        (AUTH, with("jwt", &world.app_token(&ann, "echo")), 401, "bad_token"),
        (SHELL, with("jwt", &world.app_token(&ann, "vault")), 401, "bad_token"),
        (AUTH, with("jwt", &world.org_token("ann")), 401, "bad_token"),
        (AUTH, with("jwt", "x.y.z"), 401, "bad_token"),
        (AUTH, with("jwt", &format!("{token}x")), 401, "bad_token"),
        (AUTH, with("issuer", "https://elsewhere.example"), 400, "bad_request"),
        (AUTH, with("public_key", &rsa), 400, "bad_request"),
        (AUTH, with("public_key", "ssh-ed25519 AAAA"), 400, "bad_request"),
        (AUTH, json!([1]), 400, "bad_request"),
        (AUTH, json!({ "public_key": public }), 400, "bad_request"),
    ] {
        let before = world.realm.events("certificate", 0).unwrap().len();
        let reply = sign(&world, host, &body);
        assert_eq!(reply.status, status, "{reason}: {}", reply.body);
        let told: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(told["status"], status);
        assert!(told["message"].is_string() && told["certificate"].is_null());
        let events = world.realm.events("certificate", before + 1).unwrap();
        assert_eq!(events.len(), before + 1, "one event");
        assert_eq!((&events[before]["reason"], &events[before]["allowed"]), (&json!(reason), &json!(false)));
    }
    // A browser's token is one that origins see.
    let jar = std::fs::read_to_string(world.realm.dir.path().join("ann.jar")).unwrap();
    let browsers = jar.lines().find(|line| line.contains("CF_Authorization")).unwrap();
    let browsers = browsers.rsplit('\t').next().unwrap();
    assert_eq!(sign(&world, AUTH, &with("jwt", browsers)).status, 401);

    world.realm.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    assert_eq!(sign(&world, AUTH, &good).status, 401, "the session is over");
    let metrics = world.realm.node.metrics().unwrap();
    let counted = "portcullis_ssh_certificates_total{application=\"shell\",reason=\"\",verdict=\"allow\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    assert!(world.realm.node.admin(&["ssh-ca", "public-key", "echo"]).is_err(), "not of type ssh");
}

#[test]
fn a_person_logs_in_once_and_ssh_gets_its_certificates() {
    let world = World::start();
    let authority = world.realm.node.admin(&["ssh-ca", "public-key", "shell"]).unwrap();
    let _sshd = Sshd::start(None, &world.realm.dir.path().join("sshd"), world.ssh_port, &authority).unwrap();
    let (laptop, ann) = (Machine::new(&world.realm, "laptop").unwrap(), world.realm.web("ann"));
    assert!(laptop.fails(&["ssh-cert", "shell"]).unwrap().contains("nobody is logged in here"));
    laptop.log_in(&ann, "ann").unwrap();

    // Files that only their user reads, left alone while they are fresh.
    let certificate = laptop.ok(&["ssh-cert", "shell"]).unwrap();
    let certificate = Path::new(certificate.trim());
    assert_eq!(certificate, laptop.profile().join("ssh/shell-cert.pub"));
    let key = certificate.with_file_name("shell");
    for file in [&key, certificate] {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let before = (std::fs::read(&key).unwrap(), std::fs::read(certificate).unwrap());
    laptop.ok(&["ssh-cert", "shell"]).unwrap();
    assert_eq!((std::fs::read(&key).unwrap(), std::fs::read(certificate).unwrap()), before);
    assert!(laptop.fails(&["ssh-cert", "echo"]).unwrap().contains("no application of type `ssh`"));
    assert!(laptop.fails(&["ssh-cert", "../x"]).unwrap().contains("is no name of an application"));

    // The stanzas, for what is open to this person; and `ssh` with them and nothing else.
    let printed = laptop.ok(&["ssh-config"]).unwrap();
    assert!(printed.contains("\nHost shell\n") && printed.contains("\nHost vault\n"), "{printed}");
    assert!(!printed.contains("Host echo"), "{printed}");
    assert_eq!(laptop.ok(&["ssh-config", "--write", "shell"]).unwrap().lines().count(), 2);
    assert_eq!(laptop.ok(&["ssh-config", "--write", "shell"]).unwrap(), "nothing to change\n");
    let name = format!("{AUTH}:{}.conf", world.realm.port);
    let config = laptop.home().join(".ssh/portcullis").join(name);
    let token = laptop.ok(&["token", "shell"]).unwrap();
    let proxy = proxy(&world, token.trim());
    let ssh = |user: &str| {
        let mut command = laptop.program("ssh").unwrap();
        command
            .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", &proxy, "-F"])
            .arg(&config)
            .args(["-l", user, "shell", "id -un"]);
        run(&mut command)
    };
    std::fs::remove_file(certificate).unwrap();
    let (good, out, told) = ssh("ann");
    assert!(good && out.trim() == "ann", "{told}");
    assert!(certificate.exists(), "`ssh` has asked for it");
    assert!(!ssh("root").0);

    // The end of the device's login ends it, though the person's session lasts.
    let public = read(&keygen(&world, "late", &ED25519).0.with_extension("pub").display().to_string());
    assert_eq!(sign(&world, AUTH, &request(&world, public.trim(), token.trim())).status, 200);
    laptop.ok(&["logout"]).unwrap();
    let refused = sign(&world, AUTH, &request(&world, public.trim(), token.trim()));
    assert_eq!(refused.status, 401, "{}", refused.body);
    assert!(laptop.fails(&["ssh-cert", "shell"]).unwrap().contains("log"), "logged out");
}
