//! A realm with four clients: `git` with a secret, `keys` with a key, `spa` with neither, and `ops`, which few may use.

use std::io::Write as _;
use std::process::Stdio;

use portcullis_tests::portcullis::binary;
use portcullis_tests::ports;
use portcullis_tests::realm::{PASSWORD, Plan, Realm};
use portcullis_tests::third_party::script;
use serde_json::{Value, json};

const SECRET: &str = "saas-secret-canary-0f3a9b517c2d4e68";

pub struct Lab {
    pub realm: Realm,
    key: Value,
    other: Value,
    logout_port: u16,
}

impl Lab {
    pub fn start() -> Self {
        let plan = Plan::new().unwrap();
        let (key, other) = (keys(), keys());
        let logout_port = ports::free().unwrap();
        let dir = plan.path().display().to_string();
        plan.ca.issue(&["localhost"]).unwrap().write(plan.path(), "logout").unwrap();
        std::fs::write(plan.path().join("saas.secret"), format!("{SECRET}\n")).unwrap();
        std::fs::write(plan.path().join("keys.json"), json!({ "keys": [key["public"]] }).to_string())
            .unwrap();
        let more = format!(
            r#"
[[application]]
name = "git"
type = "saas"
url = "https://git.elsewhere.test/"
policies = ["staff"]
[application.oidc]
client_secret = {{ file = "{dir}/saas.secret" }}
redirect_uris = ["https://git.elsewhere.test/cb", "https://git.elsewhere.test/other"]
post_logout_redirect_uris = ["https://git.elsewhere.test/bye"]
backchannel_logout = {{ uri = "https://localhost:{logout_port}/logout", ca = "{dir}/ca.pem", local = true }}
claims = {{ login = "email_local_part", tenant = {{ value = "acme" }}, roles = {{ groups_with = "op" }} }}
[[application]]
name = "keyed"
type = "saas"
policies = ["staff"]
oidc = {{ client_id = "keys", jwks = {{ file = "{dir}/keys.json" }}, redirect_uris = ["https://git.elsewhere.test/cb"] }}
[[application]]
name = "spa"
type = "saas"
policies = ["staff"]
oidc = {{ redirect_uris = ["https://spa.elsewhere.test/cb"] }}
[[application]]
name = "ops"
type = "saas"
policies = ["ops"]
oidc = {{ client_secret = {{ file = "{dir}/saas.secret" }}, redirect_uris = ["https://git.elsewhere.test/cb"] }}
"#
        );
        let realm = plan.start(true, &[], &more).unwrap();
        Self { realm, key, other, logout_port }
    }

    /// Runs a scenario, and compares the sign-ins in the log with those it says it caused.
    pub fn run(&self, scenario: &str) {
        let dir = self.realm.dir.path();
        let counted = node(&json!({
            "scenario": scenario,
            "port": self.realm.port,
            "password": PASSWORD,
            "ca": std::fs::read_to_string(&self.realm.ca_file).unwrap(),
            "secret": SECRET,
            "key": self.key["private"],
            "other": self.other["private"],
            "logout": { "port": self.logout_port, "cert": dir.join("logout.pem"), "key": dir.join("logout.key") },
            "admin": [json!(binary().unwrap()), json!("admin"), json!("--config"), json!(self.realm.node.config())],
        }));
        let (allowed, denied) = (number(&counted, "allowed"), number(&counted, "denied"));
        let events = self.realm.events("sign_in", allowed + denied).unwrap();
        let of = |verdict: bool| events.iter().filter(|event| event["allowed"] == verdict).count();
        assert_eq!((of(true), of(false)), (allowed, denied), "{}", self.realm.log().unwrap());
        for event in &events {
            assert!(event["app_name"].is_string() && event["ray_id"].is_string(), "{event}");
            assert_eq!(event["allowed"] == true, event["reason"].is_null(), "{event}");
        }
        assert_eq!(self.realm.origin.requests(), []);
        let log = self.realm.log().unwrap();
        for secret in [SECRET, "eyJ"] {
            assert!(!log.contains(secret), "{secret} is in the log");
        }
    }
}

fn number(counted: &Value, name: &str) -> usize {
    counted[name].as_u64().and_then(|number| usize::try_from(number).ok()).unwrap()
}

/// A pair of keys as JWKs, `public` and `private`.
fn keys() -> Value {
    node(&json!({ "scenario": "keys" }))
}

fn node(input: &Value) -> Value {
    let mut child = script(None, "saas.mjs")
        .unwrap()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    serde_json::from_str(out.trim()).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"))
}
