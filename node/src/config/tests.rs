use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::flow::{
    ClaimSource, ClientAuthentication, Kind, Private, Protocol, Saas, SaasProtocol, SamlApplication,
    SamlAttribute, SamlBinding, SamlNameId, SamlProviderSource, SamlService, SamlSource, Target,
};
use crate::policy::Action;

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
    let Kind::Web(web) = &config.applications[0].kind else { panic!("web") };
    assert_eq!(web.origin.authority(), "10.0.0.5:8080");
    assert_eq!(config.applications[0].connector(), Some("hq"));
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
        ("{ group = \"contractors\" }", "{ service_token = \"a b\" }", "no name of a service token"),
        ("{ group = \"contractors\" }", "{ any_service_token = false }", "can only be true"),
        ("{ group = \"contractors\" }", "{ country = [\"DE\"] }", "`country` is not yet supported"),
        ("connector = \"hq\"", "type = \"vnc\"", "is no type of application"),
        ("connector = \"hq\"", "type = \"shh\"", "use web, tcp, udp, ssh, rdp or saas"),
        ("connector = \"hq\"", "ssh = { users = [\"deploy\"] }", "it is for `type = \"ssh\"`"),
        (
            "connector = \"hq\"",
            "network = { prefix = \"10.0.0.0/24\", ports = [22] }",
            "it is for `type` tcp, udp, ssh and rdp",
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

/// The good file with one more application.
fn with(application: &str) -> String {
    format!("{GOOD}\n[[application]]\nname = \"db\"\npolicies = [\"engineers\"]\n{application}\n")
}

fn private(application: &str) -> Private {
    let config = parse(&with(application)).unwrap_or_else(|error| panic!("{application}: {error}"));
    match &config.applications[1].kind {
        Kind::Private(private) => private.clone(),
        Kind::Web(_) | Kind::Saas(_) => panic!("{application} is no private application"),
    }
}

#[test]
fn private_applications_are_understood() {
    let db = private(
        "type = \"tcp\"\norigin = \"10.0.0.9:5432\"\nconnector = \"hq\"\nurl = \"https://db.example.com\"",
    );
    assert_eq!((db.protocol, db.connector.as_str()), (Protocol::Tcp, "hq"));
    assert_eq!(db.host.as_ref().map(Host::as_str), Some("db.example.com"));
    assert!(matches!(&db.target, Target::Single { host, port: 5432 } if host.as_str() == "10.0.0.9"));

    let lan = private(
        "type = \"ssh\"\nnetwork = { prefix = \"2001:db8::/64\", ports = [22, \"8000-8100\"] }\nconnector = \"hq\"\n\
         ssh = { users = [\"deploy\"], email_user_domains = [\"Example.com\"] }",
    );
    let Target::Network { prefix, ports } = &lan.target else { panic!("a network") };
    assert_eq!((prefix.to_string(), ports.to_string()), ("2001:db8::/64".into(), "22, 8000-8100".into()));
    let ssh = lan.ssh.unwrap();
    assert_eq!((ssh.users, ssh.email_user_domains), (vec!["deploy".into()], vec!["example.com".into()]));
    private("type = \"udp\"\norigin = \"dns.internal:53\"\nconnector = \"hq\"");
    private("type = \"rdp\"\norigin = \"[2001:db8::9]:3389\"\nconnector = \"hq\"");
}

#[test]
fn faults_of_private_applications_name_line_and_remedy() {
    let tcp = "type = \"tcp\"\nconnector = \"hq\"\n";
    let network = |network: &str| format!("{tcp}network = {{ {network} }}");
    // The line is that of the key at fault, counted from the application's type; 0 is the application's name.
    for (application, line, message) in [
        ("type = \"tcp\"\norigin = \"a:1\"".to_owned(), 0, "admin connector create"),
        (tcp.to_owned(), 0, "neither `origin` nor `network`"),
        (format!("{tcp}origin = \"a\""), 3, "write `a:5432`"),
        (format!("{tcp}origin = \"a:0\""), 3, "write host:port"),
        (format!("{tcp}origin = \"a:70000\""), 3, "write host:port"),
        (format!("{tcp}origin = \"tcp://a:1\""), 3, "no URL"),
        (network("prefix = \"10.0.0.5/24\", ports = [1]"), 3, "write `10.0.0.0/24`"),
        (network("prefix = \"10.0.0.5\", ports = [1]"), 3, "write `10.0.0.5/32`"),
        (network("prefix = \"::ffff:10.0.0.0/120\", ports = [1]"), 3, "write the IPv4 one"),
        (network("prefix = \"lan\", ports = [1]"), 3, "is no prefix"),
        (network("prefix = \"10.0.0.0/24\", ports = []"), 3, "there are no ports"),
        (network("prefix = \"10.0.0.0/24\", ports = [0]"), 3, "from 1 to 65535"),
        (network("prefix = \"10.0.0.0/24\", ports = [65536]"), 3, "from 1 to 65535"),
        (network("prefix = \"10.0.0.0/24\", ports = [-1]"), 3, "from 1 to 65535"),
        (network("prefix = \"10.0.0.0/24\", ports = [\"9-1\"]"), 3, "write \"1-9\""),
        (network("prefix = \"10.0.0.0/24\", ports = [\"1-\"]"), 3, "like \"8000-8100\""),
        (network("prefix = \"10.0.0.0/24\", ports = [\"+1-2\"]"), 3, "like \"8000-8100\""),
        (network("prefix = \"10.0.0.0/24\", ports = [1], port = 1"), 3, "unknown field `port`"),
        (network("prefix = \"10.0.0.0/24\", ports = [1]") + "\norigin = \"a:1\"", 3, "has both"),
        (
            network("prefix = \"10.0.0.0/24\", ports = [1]") + "\nurl = \"https://db.example.com\"",
            4,
            "single `origin`",
        ),
        (format!("{tcp}origin = \"a:1\"\nurl = \"https://db.example.com/x\""), 4, "has no path"),
        (format!("{tcp}origin = \"a:1\"\nurl = \"https://*.example.com\""), 4, "cannot be a wildcard"),
        (format!("{tcp}origin = \"a:1\"\nurl = \"https://jira.example.com\""), 0, "needs one of its own"),
        (format!("{tcp}origin = \"a:1\"\nurl = \"https://access.example.com\""), 4, "auth domain"),
        (format!("{tcp}origin = \"a:1\"\nssh = {{ users = [\"deploy\"] }}"), 4, "it is for `type = \"ssh\"`"),
        (format!("{tcp}origin = \"a:1\"\nhost_header = \"x\""), 4, "`host_header` has no meaning"),
        (format!("{tcp}origin = \"a:1\"\nallowed_origins = [\"https://x\"]"), 4, "no meaning"),
        (
            "type = \"udp\"\nconnector = \"hq\"\norigin = \"a:1\"\nurl = \"https://db.example.com\"".into(),
            4,
            "connections only",
        ),
        ("type = \"ssh\"\nconnector = \"hq\"\norigin = \"a:1\"\nssh = {}".into(), 4, "names nobody"),
        (
            "type = \"ssh\"\nconnector = \"hq\"\norigin = \"a:1\"\nssh = { users = [\"-o\"] }".into(),
            4,
            "no name of a UNIX user",
        ),
    ] {
        let text = with(&application);
        let first = 1 + text[..text.find(&application).unwrap()].matches('\n').count();
        let expected = if line == 0 { first - 2 } else { first + line - 1 };
        let error = parse(&text).expect_err(&application);
        assert!(
            error.faults.iter().any(|fault| fault.line == Some(expected) && fault.message.contains(message)),
            "{application}: expected {expected}: {message}, found\n{error}"
        );
    }
}

/// An application elsewhere, below a file with the secret and a key.
fn saas(oidc: &str) -> Result<Saas, ConfigError> {
    let config = parse(&with(&format!("type = \"saas\"\noidc = {{ {oidc} }}")))?;
    match &config.applications[1].kind {
        Kind::Saas(saas) => Ok(saas.clone()),
        Kind::Web(_) | Kind::Private(_) => panic!("{oidc}"),
    }
}

fn saml(saml: &str) -> Result<SamlService, ConfigError> {
    match saml_application(saml)?.provider {
        SamlProviderSource::Configured(service) => Ok(Arc::unwrap_or_clone(service)),
        SamlProviderSource::Published(_) => panic!("{saml}"),
    }
}

fn saml_application(saml: &str) -> Result<SamlApplication, ConfigError> {
    let config = parse(&with(&format!("type = \"saas\"\nsaml = {{ {saml} }}")))?;
    match &config.applications[1].kind {
        Kind::Saas(Saas { protocol: SaasProtocol::Saml(application), .. }) => Ok(application.clone()),
        Kind::Saas(_) | Kind::Web(_) | Kind::Private(_) => panic!("{saml}"),
    }
}

#[test]
fn service_providers_are_understood() {
    const BASE: &str = "entity_id = \"urn:x\", acs = [\"https://a.b/acs\", \"http://127.0.0.1/acs\"]";
    let found = saml(BASE).unwrap();
    assert_eq!((found.name.as_str(), found.entity_id.as_str()), ("db", "urn:x"));
    let consumers: Vec<_> = found.consumers.iter().map(|acs| (acs.location.as_str(), acs.index)).collect();
    assert_eq!(consumers, [("https://a.b/acs", Some(0)), ("http://127.0.0.1/acs", Some(1))]);
    assert!(!found.require_signed && found.name_id.is_none() && found.attributes.len() == 4);
    for (more, name_id) in [
        ("email", SamlNameId::Email),
        ("persistent", SamlNameId::Persistent),
        ("transient", SamlNameId::Transient),
        ("email_local_part", SamlNameId::Of(ClaimSource::EmailLocalPart)),
    ] {
        let found = saml(&format!("{BASE}, name_id = \"{more}\", attributes = {{ a = \"id\" }}")).unwrap();
        assert_eq!(found.name_id, Some(name_id));
        assert_eq!(found.attributes, [SamlAttribute { name: "a".into(), source: SamlSource::Id }]);
    }
    let slack = saml("preset = \"slack\", acs = [\"https://acme.slack.com/sso/saml\"]").unwrap();
    assert_eq!(
        (slack.entity_id.as_str(), slack.name_id),
        ("https://slack.com", Some(SamlNameId::Persistent))
    );
    assert_eq!(slack.attributes[0].name, "User.Email");
    for (more, message) in [
        ("preset = \"slack\"".to_owned(), "has no `acs`"),
        ("preset = \"gitlab\", acs = [\"https://a.b/acs\"]".to_owned(), "has no `entity_id`"),
        (format!("{BASE}, preset = \"slak\""), "is no preset"),
        ("entity_id = \"urn:x\"".to_owned(), "has no `acs`"),
        ("acs = [\"https://a.b/acs\"]".to_owned(), "has no `entity_id`"),
        ("entity_id = \"a b\", acs = [\"https://a.b/acs\"]".to_owned(), "an entity ID has"),
        ("entity_id = \"x\", acs = [\"http://a.b/acs\"]".to_owned(), "write https"),
        (
            "entity_id = \"x\", acs = [\"com.example.app:/acs\"]".to_owned(),
            "service of the application is at",
        ),
        ("entity_id = \"x\", acs = [\"https://a.b/*\"]".to_owned(), "no wildcards"),
        ("metadata = \"nowhere.xml\"".to_owned(), "cannot be read"),
        ("metadata = \"/dev/null\"".to_owned(), "not well-formed"),
        (format!("{BASE}, certificate = \"/dev/null\""), "not an X.509 certificate"),
        (format!("{BASE}, require_signed = true"), "has no `certificate`"),
        (format!("{BASE}, name_id = \"mail\""), "no source of a claim"),
        (format!("{BASE}, name_id = \"groups\""), "tell people apart"),
        (format!("{BASE}, attributes = {{ a = \"mail\" }}"), "no source of a claim"),
        (format!("{BASE}, relay_state = \"{}\"", "x".repeat(1025)), "at most 1024"),
        (format!("{BASE}, slo = \"x\""), "unknown field `slo`"),
        (format!("{BASE}, logout = {{ soap = \"http://sp.example.org/x\" }}"), "write https"),
        (format!("{BASE}, logout = {{ soap = \"https://a.b/x\", ca = \"nowhere.pem\" }}"), "cannot be read"),
        (format!("{BASE}, attributes = {{ a = {{ from = \"groups\" }} }}"), "changes nothing"),
        (format!("{BASE}, attributes = {{ a = {{ from = \"groups\", matches = \"(\" }} }}"), "is no pattern"),
        (
            format!("{BASE}, attributes = {{ a = {{ from = \"mail\", join = \",\" }} }}"),
            "no source of a claim",
        ),
        (format!("{BASE}, attributes = {{ a = {{ from = \"name\", replace = \",\" }} }}"), "give both"),
        (
            format!("{BASE}, attributes = {{ a = {{ from = \"name\", join = \"{}\" }} }}", "x".repeat(17)),
            "at most 16",
        ),
        (format!("{BASE}, name_id = {{ from = \"groups\", join = \",\" }}"), "tell people apart"),
    ] {
        let found = saml(&more).expect_err(&more).to_string();
        assert!(found.contains(message), "{more}: expected {message}, found\n{found}");
    }
}

#[test]
fn the_configuration_may_choose_among_the_services_of_metadata() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sp.xml");
    let service = |local: &str, binding: &str, path: &str| {
        format!(
            "<{local} index='1' Binding='urn:oasis:names:tc:SAML:2.0:bindings:{binding}' Location='https://a.b/{path}'/>"
        )
    };
    std::fs::write(
        &file,
        format!(
            "<EntityDescriptor xmlns='urn:oasis:names:tc:SAML:2.0:metadata' entityID='urn:x'><SPSSODescriptor \
             protocolSupportEnumeration='urn:oasis:names:tc:SAML:2.0:protocol'>{}{}{}{}</SPSSODescriptor></EntityDescriptor>",
            service("SingleLogoutService", "HTTP-Redirect", "out"),
            service("SingleLogoutService", "SOAP", "soap"),
            service("AssertionConsumerService", "HTTP-POST", "1"),
            service("AssertionConsumerService", "HTTP-POST", "2"),
        ),
    )
    .unwrap();
    let base = format!("metadata = \"{}\"", file.display());
    let locations = |found: &SamlService| {
        found.consumers.iter().map(|acs| acs.location.clone()).collect::<Vec<_>>().join(" ")
    };
    let all = saml(&base).unwrap();
    assert_eq!(locations(&all), "https://a.b/1 https://a.b/2");
    assert_eq!(all.logout.answers, Some((SamlBinding::Redirect, "https://a.b/out".into())));
    assert_eq!(all.logout.soap.as_deref(), Some("https://a.b/soap"));
    let one = saml(&format!("{base}, acs = [\"https://a.b/2\"], logout = {{ post = \"https://a.b/post\" }}"))
        .unwrap();
    assert_eq!(locations(&one), "https://a.b/2");
    assert_eq!(one.logout.answers, Some((SamlBinding::Post, "https://a.b/post".into())));
    let wrong = saml(&format!("{base}, acs = [\"https://a.b/2/\"]")).unwrap_err().to_string();
    assert!(
        wrong.contains("`https://a.b/2/` is no consumer service of the metadata, which has: https://a.b/1, "),
        "{wrong}"
    );
}

#[test]
fn metadata_may_be_published_elsewhere() {
    let found = saml_application(
        "metadata = \"https://sp.example.org/metadata\", ca = \"cert.pem\", entity_id = \"urn:x\", acs = \
         [\"https://a.b/2\"], name_id = \"email\"",
    )
    .unwrap();
    let SamlProviderSource::Published(place) = &found.provider else { panic!("{found:?}") };
    assert_eq!((found.name.as_str(), place.url.as_str()), ("db", "https://sp.example.org/metadata"));
    assert!(found.files.len() == 1 && found.files.first() == place.ca.as_ref(), "a reload reads it again");
    let document = |entity: &str, places: &[&str], signs: bool| {
        let services: String = places
            .iter()
            .map(|place| {
                format!(
                    "<AssertionConsumerService Binding='urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST' \
                     Location='{place}'/>"
                )
            })
            .collect();
        let text = format!(
            "<EntityDescriptor xmlns='urn:oasis:names:tc:SAML:2.0:metadata' entityID='{entity}'><SPSSODescriptor \
             AuthnRequestsSigned='{signs}' protocolSupportEnumeration='urn:oasis:names:tc:SAML:2.0:protocol'>{services}\
             </SPSSODescriptor></EntityDescriptor>"
        );
        crate::saml::ServiceProvider::read(text.as_bytes()).unwrap()
    };
    let fitted = place.said.with(&document("urn:x", &["https://a.b/1", "https://a.b/2"], false)).unwrap();
    assert_eq!(fitted.consumers.len(), 1, "the configuration has chosen");
    assert_eq!(
        (fitted.consumers[0].location.as_str(), fitted.name_id),
        ("https://a.b/2", Some(SamlNameId::Email))
    );
    for (entity, places, signs, message) in [
        ("urn:y", &["https://a.b/2"][..], false, "of `urn:y`, and not of `urn:x`"),
        ("urn:x", &["https://a.b/1"], false, "is no consumer service"),
        ("urn:x", &["https://a.b/2", "http://evil.example/"], false, "write https"),
        ("urn:x", &["https://a.b/2", "javascript:alert(1)"], false, "write https"),
        ("urn:x", &["https://a.b/2"], true, "has no `certificate`"),
    ] {
        let found = place.said.with(&document(entity, places, signs)).unwrap_err().to_string();
        assert!(found.contains(message), "{entity} {places:?}: {found}");
    }
    for (saml, message) in [
        ("metadata = \"http://sp.example.org/metadata\"", "or at https://"),
        ("metadata = \"https://a.b/m\", acs = [\"http://a.b/acs\"]", "write https"),
        ("metadata = \"https://a.b/m\", entity_id = \"a b\"", "an entity ID has"),
        ("metadata = \"https://a.b/m\", ca = \"nowhere.pem\"", "cannot be read"),
        (
            "entity_id = \"x\", acs = [\"https://a.b/acs\"], ca = \"cert.pem\"",
            "is for `metadata` at an address",
        ),
    ] {
        let found = saml_application(saml).expect_err(saml).to_string();
        assert!(found.contains(message), "{saml}: {found}");
    }
}

const KEY: &str = "{ kty = \"EC\", crv = \"P-256\", x = \"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\", \
                   y = \"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\" }";

#[test]
fn applications_elsewhere_are_understood() {
    let found = saas("redirect_uris = [\"https://git.example.org/cb?x=1\", \"http://127.0.0.1:8080/cb\", \
                      \"org.example.app:/cb\"], claims = { login = \"email_local_part\", tenant = { value = \"acme\" }, \
                      roles = { groups_with = \"git-\" } }, backchannel_logout = { uri = \"https://git.example.org/out\" }")
        .unwrap();
    assert_eq!(found.endpoint(), "sso/oidc/db");
    let SaasProtocol::Oidc(client) = found.protocol else { panic!() };
    assert!(client.is_public() && client.redirect_uris.len() == 3 && client.claims.len() == 3);
    assert!(!client.backchannel_logout.unwrap().local);
    let keys =
        format!("client_id = \"git\", redirect_uris = [\"https://a.b/c\"], jwks = {{ keys = [{KEY}] }}");
    let SaasProtocol::Oidc(client) = saas(&keys).unwrap().protocol else { panic!() };
    assert!(
        client.id == "git"
            && matches!(client.authentication, ClientAuthentication::Keys(set) if set.keys.len() == 1)
    );
}

#[test]
fn faults_of_applications_elsewhere_are_named() {
    let uri = |uri: &str| format!("redirect_uris = [\"{uri}\"]");
    let private = KEY.replace("{ kty", "{ d = \"AA\", kty");
    for (oidc, message) in [
        (String::new(), "has no `redirect_uris`"),
        (uri("https://a.b/c#d"), "no fragment"),
        (uri("https://u@a.b/c"), "no user name"),
        (uri("https://*.a.b/c"), "no wildcards"),
        (uri("http://a.b/c"), "write https"),
        (uri("javascript:alert(1)"), "write https"),
        (uri("data:text/html,x"), "write https"),
        (uri("/callback"), "is no URL"),
        (uri("https://a.b/c d"), "printable"),
        (uri(&format!("https://a.b/{}", "c".repeat(512))), "at most 512"),
        (uri("https://a.b/c") + ", client_id = \"a/b\"", "is no name of a client"),
        (uri("https://a.b/c") + ", client_secret = { env = \"NO_SUCH_VARIABLE_HERE\" }", "is not set"),
        (uri("https://a.b/c") + ", client_secret = { env = \"PATH\" }, jwks = { keys = [] }", "not by both"),
        (uri("https://a.b/c") + ", jwks = { keys = [] }", "from 1 to 32"),
        (uri("https://a.b/c") + ", jwks = { file = \"nowhere.json\" }", "cannot be read"),
        (uri("https://a.b/c") + ", jwks = { keys = [{ kty = \"oct\", k = \"AA\" }] }", "secret key"),
        (uri("https://a.b/c") + &format!(", jwks = {{ keys = [{private}] }}"), "secret key"),
        (uri("https://a.b/c") + ", claims = { sub = \"email\" }", "itself makes the claim `sub`"),
        (uri("https://a.b/c") + ", claims = { x = \"mail\" }", "no source of a claim"),
        (uri("https://a.b/c") + ", backchannel_logout = { uri = \"http://a.b/\" }", "write an https URL"),
        (uri("https://a.b/c") + ", scopes = []", "unknown field `scopes`"),
    ] {
        let found = saas(&oidc).expect_err(&oidc).to_string();
        assert!(found.contains(message), "{oidc}: expected {message}, found\n{found}");
    }
    for (application, message) in [
        ("type = \"saas\"", "has neither `oidc` nor `saml`"),
        ("type = \"saas\"\nsaml = { entity_id = \"x\" }", "has no `acs`"),
        (
            "type = \"saas\"\norigin = \"http://x\"\noidc = { redirect_uris = [\"https://a.b/c\"] }",
            "is elsewhere",
        ),
        (
            "url = \"https://x.example.com\"\norigin = \"http://x\"\noidc = {}",
            "`oidc` has no meaning for a web",
        ),
        ("type = \"tcp\"\norigin = \"x:1\"\nconnector = \"hq\"\nsaml = {}", "`saml` has no meaning"),
    ] {
        let found = parse(&with(application)).expect_err(application).to_string();
        assert!(found.contains(message), "{application}: expected {message}, found\n{found}");
    }
    let two = with("type = \"saas\"\noidc = { client_id = \"x\", redirect_uris = [\"https://a.b/c\"] }");
    let two = format!(
        "{two}{}",
        two.split("name = \"db\"")
            .nth(1)
            .map(|rest| format!("[[application]]\nname = \"dc\"{rest}"))
            .unwrap()
    );
    assert!(parse(&two).unwrap_err().to_string().contains("have the same `client_id`"));
    let open = with("type = \"saas\"\noidc = { redirect_uris = [\"https://a.b/c\"] }")
        .replace("policies = [\"engineers\"]\ntype", "policies = [\"open\"]\ntype")
        + "[[policy]]\nname = \"open\"\naction = \"bypass\"\ninclude = [{ everyone = true }]\n";
    assert!(parse(&open).unwrap_err().to_string().contains("has nobody to sign in"));
}

#[test]
fn a_policy_of_requests_that_asks_who_is_refused() {
    for action in ["bypass", "service_auth"] {
        let found = fault("action = \"allow\"", &format!("action = \"{action}\""));
        assert!(found.contains(&format!("has action `{action}`, which knows nobody")), "{found}");
    }
    let by_service = GOOD.replace("action = \"allow\"", "action = \"service_auth\"").replace(
        "include = [{ rule_group = \"staff\" }, { group = \"contractors\" }]\nexclude = [{ email = \"mallory@example.com\" }]",
        "include = [{ service_token = \"ci\" }, { any_service_token = true }]",
    );
    assert_eq!(parse(&by_service).unwrap().policies[0].action, Action::ServiceAuth);
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
fn of_several_providers_each_says_whose_addresses_it_vouches_for() {
    let second = "[[identity_provider]]\nname = \"entra\"\ntype = \"oidc\"\nissuer = \"https://login.example.net\"\nclient_id = \"x\"\nemail_domains = [\"example.net\"]\n";
    let both = format!("{GOOD}\n{second}");
    let refused = parse(&both).unwrap_err().to_string();
    assert!(refused.contains("`okta` needs `email_domains`"), "{refused}");
    assert!(!refused.contains("`entra` needs"), "{refused}");
    parse(&both.replacen("client_id", "email_domains = [\"example.com\"]\nclient_id", 1)).unwrap();
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
