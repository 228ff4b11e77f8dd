use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"
[node]
domain = "access.example.com"
listen = "[::]:443"
[[node.certificate]]
cert = "cert.pem"
key = "key.pem"

[gate]
interfaces = ["eth0"]
admin = ["192.0.2.0/24:22"]

[[identity_provider]]
name = "local"
type = "local"

[[identity_provider]]
name = "okta"
type = "oidc"
issuer = "https://example.okta.com"
client_id = "abc"
client_secret = { file = "okta.secret" }

[[group]]
name = "staff"
include = [{ email_domain = "Example.com" }]

[[policy]]
name = "engineers"
action = "allow"
include = [{ rule_group = "staff" }, { group = "contractors" }]
exclude = [{ email = "mallory@example.com" }]
session = "8h"

[[application]]
name = "jira"
url = "https://jira.example.com"
origin = "http://10.0.0.5:8080"
connector = "hq"
policies = ["engineers"]
"#;

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("cert.pem", "x"), ("key.pem", "x"), ("okta.secret", "hush\n")] {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    let directory = directory();
    Config::parse(text, &directory.path().join("node.toml"))
}

/// The one fault of the good file after a replacement, as `line: message`.
fn fault(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    let text = GOOD.replacen(from, to, 1);
    let error = parse(&text).expect_err(to);
    error
        .faults
        .iter()
        .map(|f| format!("{}: {}", f.line.unwrap_or(0), f.message))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_good_file_is_understood() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.node.authority(), "access.example.com");
    assert_eq!(config.applications[0].origin.authority(), "10.0.0.5:8080");
    assert_eq!(config.applications[0].origin.connector.as_deref(), Some("hq"));
    let ProviderKind::Oidc(oidc) = &config.identity_providers[1].kind else { panic!("oidc") };
    assert_eq!(oidc.client_secret.as_ref().unwrap().expose(), "hush");
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn faults_name_their_line_and_a_remedy() {
    for (from, to, message) in [
        ("listen =", "lisen =", "unknown field `lisen`"),
        ("policies = [\"engineers\"]", "policies = [\"enginers\"]", "did you mean `engineers`?"),
        ("rule_group = \"staff\"", "rule_group = \"crew\"", "there is no group `crew`"),
        ("name = \"okta\"", "name = \"local\"", "is named twice"),
        ("okta.secret", "gone.secret", "cannot be read"),
        ("cert = \"cert.pem\"", "cert = \"gone.pem\"", "cannot be read"),
        ("action = \"allow\"", "action = \"service_auth\"", "not yet supported"),
        ("{ group = \"contractors\" }", "{ country = [\"DE\"] }", "`country` is not yet supported"),
        (
            "origin = \"http://10.0.0.5:8080\"",
            "type = \"ssh\"\norigin = \"10.0.0.9:22\"",
            "not yet supported",
        ),
        (
            "[[node.certificate]]",
            "tls = { acme = \"ops@example.com\" }\n[[node.certificate]]",
            "not yet supported",
        ),
        ("interfaces = [\"eth0\"]", "interfaces = [\"lo\"]", "never attached to `lo`"),
        ("192.0.2.0/24:22", "192.0.2.1/24:22", "bits beyond its prefix"),
        ("https://jira.example.com", "https://access.example.com", "auth domain"),
        ("https://example.okta.com", "http://example.okta.com", "https URL"),
        ("session = \"8h\"", "session = \"8 hours\"", "is no duration"),
        ("mallory@example.com", "mallory@evil@example.com", "not an email address"),
        ("[node]", "[node", ""),
    ] {
        let found = fault(from, to);
        let line = 1 + GOOD[..GOOD.find(from).unwrap()].matches('\n').count();
        assert!(
            found.lines().any(|f| f.starts_with(&format!("{line}: ")) && f.contains(message)),
            "{to}: expected {line}: {message}, found {found}"
        );
    }
}

#[test]
fn a_bypass_that_asks_who_is_refused() {
    let found = fault("action = \"allow\"", "action = \"bypass\"");
    assert!(found.contains("is a bypass"), "{found}");
}

#[test]
fn a_provider_that_may_claim_any_address_is_named() {
    assert_eq!(parse(GOOD).unwrap().unbounded_providers(), ["okta"]);
    let bounded = GOOD.replacen("client_id", "email_domains = [\"example.com\"]\nclient_id", 1);
    assert!(parse(&bounded).unwrap().unbounded_providers().is_empty());
    let alone = GOOD.replacen("[[identity_provider]]\nname = \"local\"\ntype = \"local\"\n", "", 1);
    assert!(parse(&alone).unwrap().unbounded_providers().is_empty());
}

#[test]
fn a_port_is_dark_where_it_is_asked_for_and_a_gate_can_keep_it_so() {
    assert!(!parse(GOOD).unwrap().tunnel.dark);
    let dark = format!("{GOOD}\n[tunnel]\ndark = true\n");
    assert!(parse(&dark).unwrap().tunnel.dark);
    let ungated = dark.replace("interfaces = [\"eth0\"]", "ungated = true");
    assert!(parse(&ungated).unwrap_err().to_string().contains("`dark` takes a gate"));
    for bad in ["dark = 1", "dark = \"yes\"", "darc = true"] {
        assert!(parse(&dark.replace("dark = true", bad)).is_err(), "{bad}");
    }
}

#[test]
fn several_faults_are_told_at_once() {
    let text = GOOD.replace("action = \"allow\"", "action = \"permit\"").replace("\"8h\"", "\"x\"");
    assert!(parse(&text).unwrap_err().faults.len() >= 2);
}

proptest! {
    /// Whatever happens to a byte of the file, there is a configuration or an error, and a line where there is one.
    #[test]
    fn a_changed_byte_never_panics(at in 0..GOOD.len(), byte in 32u8..127) {
        let mut text = GOOD.as_bytes().to_vec();
        text[at] = byte;
        let text = String::from_utf8(text).unwrap();
        if let Err(error) = parse(&text) {
            prop_assert!(!error.faults.is_empty());
        }
    }
}
