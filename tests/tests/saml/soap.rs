//! pysaml2 as service provider, which is told by SOAP that a session has ended.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::ports;
use portcullis_tests::process::{Process, wait_until};
use portcullis_tests::realm::{AUTH, PASSWORD, Plan, Realm};
use portcullis_tests::web::Web;
use serde_json::{Value, json};

use crate::service::certificate;

const SOON: Duration = Duration::from_secs(60);

/// A node and an application behind pysaml2, which know each other by their metadata.
struct Site {
    realm: Realm,
    origin: String,
    /// The node's metadata, as the application reads it for each request.
    known: PathBuf,
    server: Process,
}

impl Site {
    /// `settings` are further ones of the application.
    fn start(settings: &[(&str, Value)]) -> Result<Self> {
        let plan = Plan::new()?;
        let dir = plan.path().to_owned();
        let port = ports::free()?;
        let origin = format!("http://127.0.0.1:{port}");
        certificate(&dir)?;
        let known = dir.join("idp.xml");
        let mut all = json!({ "port": port, "key": dir.join("sp.key"), "certificate": dir.join("sp.pem"), "idp": known });
        for (name, value) in settings {
            all[*name] = value.clone();
        }
        std::fs::write(dir.join("settings.json"), all.to_string())?;
        let metadata = pysaml("metadata", &dir).output().context("/usr/bin/python3")?;
        ensure!(
            metadata.status.success(),
            "pysaml_sp.py: {} (`cargo xtask setup` installs python3-pysaml2)",
            String::from_utf8_lossy(&metadata.stderr)
        );
        std::fs::write(dir.join("sp.xml"), &metadata.stdout)?;
        let endpoint = format!("https://{AUTH}:{}/cdn-cgi/access/sso/saml/crm", plan.port);
        let more = format!(
            "[[application]]\nname = \"crm\"\ntype = \"saas\"\nurl = \"{endpoint}\"\npolicies = [\"staff\"]\n\
             saml = {{ metadata = \"{}/sp.xml\", logout = {{ local = true }} }}\n",
            dir.display()
        );
        let realm = plan.start(true, &[], &more)?;
        let metadata = realm.web("metadata").get(&format!("{endpoint}/saml-metadata"))?;
        ensure!(metadata.status == 200, "{}", metadata.body);
        std::fs::write(&known, &metadata.body)?;
        let mut server = Process::spawn_in(&dir, "pysaml2", pysaml("serve", &dir))?;
        let plain = realm.web("plain");
        server.wait_until("answer", SOON, |_| {
            Ok((plain.get(&format!("{origin}/who"))?.status == 200).then_some(()))
        })?;
        Ok(Self { realm, origin, known, server })
    }

    /// Signs somebody in at the application; a browser of theirs.
    fn sign_in(&self, user: &str) -> Result<Web> {
        let web = self.realm.web(user);
        let form = web.follow(web.get(&format!("{}/app", self.origin))?, None)?;
        let ticket = form.field("ticket").with_context(|| format!("{}: {}", form.url, form.body))?;
        let fields = [("ticket", ticket.as_str()), ("username", user), ("password", PASSWORD)];
        let page = web.follow(web.post(&form.url, &fields)?, None)?;
        let answer = page.field("SAMLResponse").with_context(|| format!("{}: {}", page.url, page.body))?;
        self.bring(&web, &page.between("action=\"", "\"")?, &answer)?;
        let seen = self.who(&web)?;
        ensure!(seen["name_id"] == json!(format!("{user}@example.com")), "{seen}");
        ensure!(seen["authenticated"] == json!(true), "{seen}");
        Ok(web)
    }

    fn bring(&self, web: &Web, to: &str, answer: &str) -> Result<()> {
        let reply = web.post(to, &[("SAMLResponse", answer)])?;
        ensure!(reply.status == 303, "{}\n{}", reply.body, self.server.output());
        Ok(())
    }

    fn who(&self, web: &Web) -> Result<Value> {
        let reply = web.get(&format!("{}/who", self.origin))?;
        serde_json::from_str(&reply.body).with_context(|| reply.body.clone())
    }

    fn is_signed_in(&self, web: &Web) -> bool {
        self.who(web).unwrap()["authenticated"] == json!(true)
    }

    /// An administrator ends all sessions of somebody; what is written of the application being told.
    fn revoke(&self, user: &str) -> Value {
        let told =
            self.realm.node.admin(&["session", "revoke", "--user", &format!("{user}@example.com")]).unwrap();
        assert!(told.contains("crm is told that the session"), "{told}");
        assert!(told.contains("and again at 20"), "{told}");
        let event = wait_until("the event of the back-channel logout", SOON, || {
            let logouts = self.realm.events("logout", 0)?;
            Ok(logouts.into_iter().find(|event| event["app_name"] == json!("crm")))
        });
        event.unwrap_or_else(|error| panic!("{error:#}\n{}", self.server.output()))
    }

    /// A revocation after which the application's own session goes on, and the log says so and why.
    fn assert_remains(&self, web: &Web, why: &str) {
        let event = self.revoke("ann");
        assert_eq!(
            (&event["allowed"], &event["reason"], &event["user_email"]),
            (&json!(false), &json!("origin_down"), &json!("ann@example.com")),
            "{event}"
        );
        let detail = event["detail"].as_str().unwrap();
        assert!(detail.starts_with("its session remains: back-channel logout is tried again: "), "{detail}");
        assert!(detail.contains(why), "{detail}\n{}", self.server.output());
        assert!(self.is_signed_in(web), "{}", self.server.output());
    }
}

fn pysaml(step: &str, dir: &Path) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("third-party/python/pysaml_sp.py");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script).arg(step).arg(dir.join("settings.json"));
    command
}

#[test]
fn the_application_ends_the_session_that_is_named_and_signs_that_it_did() {
    let site = Site::start(&[]).unwrap();
    let (ann, bob) = (site.sign_in("ann").unwrap(), site.sign_in("bob").unwrap());
    let event = site.revoke("ann");
    assert_eq!(
        (&event["allowed"], &event["detail"], &event["user_email"]),
        (
            &json!(true),
            &json!("back-channel logout, and again when the last answer is over"),
            &json!("ann@example.com")
        ),
        "{event}\n{}",
        site.server.output()
    );
    assert!(!site.is_signed_in(&ann) && site.is_signed_in(&bob));
}

#[test]
fn a_session_that_begins_with_an_answer_held_back_ends_when_no_answer_is_good_any_more() {
    let site = Site::start(&[]).unwrap();
    let ann = site.sign_in("ann").unwrap();
    let page = ann.follow(ann.get(&format!("{}/app", site.origin)).unwrap(), None).unwrap();
    let (to, held) = (page.between("action=\"", "\"").unwrap(), page.field("SAMLResponse").unwrap());
    // Not in eight minutes but in some seconds.
    let script = "import sqlite3, sys, time\nc = sqlite3.connect(sys.argv[1], timeout=10)\n\
                  n = c.execute('UPDATE saas_login SET answers_over_at = ?', [int(time.time()) + 25])\n\
                  c.commit()\nassert n.rowcount == 1";
    let store = site.realm.node.dir().join("state/store.sqlite");
    let done = Command::new("/usr/bin/python3").args(["-c", script]).arg(store).status().unwrap();
    assert!(done.success());
    let said = site.realm.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    assert!(said.contains("and again at 20"), "{said}");
    let told = |how: &str| {
        wait_until("the application to be told", 3 * SOON, || {
            let logouts = site.realm.events("logout", 0)?;
            Ok(logouts.into_iter().find(|event| event["detail"] == json!(how)))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", site.server.output()))
    };
    told("back-channel logout, and again when the last answer is over");
    assert!(!site.is_signed_in(&ann));
    site.bring(&ann, &to, &held).unwrap();
    assert!(site.is_signed_in(&ann));
    told("back-channel logout, now that the last answer is over");
    assert!(!site.is_signed_in(&ann));
}

#[test]
fn an_application_that_has_another_certificate_of_the_node_ends_nothing_and_the_log_says_so() {
    let site = Site::start(&[]).unwrap();
    let ann = site.sign_in("ann").unwrap();
    // As after a change of keys that the application has not heard of.
    let known = std::fs::read_to_string(&site.known).unwrap();
    let (before, rest) = known.split_once("X509Certificate>").unwrap();
    let (_, after) = rest.split_once('<').unwrap();
    let other = std::fs::read_to_string(site.realm.dir.path().join("sp.pem")).unwrap();
    let other: String = other.lines().filter(|line| !line.starts_with("-----")).collect();
    std::fs::write(&site.known, format!("{before}X509Certificate>{other}<{after}")).unwrap();
    site.assert_remains(&ann, "it answered 500");
    assert!(site.server.output().contains("IncorrectlySigned"), "{}", site.server.output());
}

#[test]
fn an_answer_that_nobody_vouches_for_is_no_success() {
    let site = Site::start(&[("signed", json!(false))]).unwrap();
    let ann = site.sign_in("ann").unwrap();
    let event = site.revoke("ann");
    assert_eq!(event["allowed"], json!(false), "{event}");
    assert!(
        event["detail"].as_str().unwrap().ends_with("its answer: the message has no signature"),
        "{event}"
    );
    assert!(!site.is_signed_in(&ann));
}
