//! What administrators do about SAML: keys, their rotation, metadata of applications, what `check` notes.

use portcullis_tests::realm::AUTH;
use serde_json::json;

use crate::service::Lab;

const METADATA: &str = "<EntityDescriptor xmlns='urn:oasis:names:tc:SAML:2.0:metadata' entityID='https://hr.example.org/sp'>\
    <SPSSODescriptor protocolSupportEnumeration='urn:oasis:names:tc:SAML:2.0:protocol'><AssertionConsumerService index='0' \
    Binding='urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST' Location='https://hr.example.org/acs'/></SPSSODescriptor>\
    </EntityDescriptor>";

/// Certificates in the node's metadata.
fn published(lab: &Lab) -> Vec<String> {
    let url = lab.realm.url(AUTH, "/cdn-cgi/access/sso/saml/crm/saml-metadata");
    let body = lab.realm.web("metadata").get(&url).unwrap().body;
    let certificates = body.split("<ds:X509Certificate>").skip(1);
    certificates.map(|rest| rest.split('<').next().unwrap().to_owned()).collect()
}

#[test]
fn keys_are_listed_and_rotated() {
    let lab = Lab::new("", false).unwrap();
    let admin = |args: &[&str]| lab.realm.node.admin(args).unwrap();
    let first = published(&lab);
    assert_eq!(first.len(), 1);
    let keys = admin(&["saml", "keys"]);
    assert!(
        keys.starts_with("signing, signs from ") && keys.matches("BEGIN CERTIFICATE").count() == 1,
        "{keys}"
    );
    assert!(!keys.contains("PRIVATE"), "{keys}");
    assert!(!admin(&["check"]).contains("new key"));

    let keys = admin(&["saml", "rotate"]);
    assert!(keys.contains("\nnext, signs from ") && keys.matches("BEGIN CERTIFICATE").count() == 2, "{keys}");
    assert_eq!((published(&lab).len(), &published(&lab)[0]), (2, &first[0]));
    let check = admin(&["check"]);
    assert!(
        check.contains("with a new key from ") && check.contains("give its metadata to `crm`"),
        "{check}"
    );
    // The key that applications know goes on signing.
    let web = lab.realm.web("ann");
    let request = lab.request(&["redirect"]).unwrap();
    let page = lab.log_in(&web, web.get(request["url"].as_str().unwrap()).unwrap(), "ann").unwrap();
    let seen = lab.consume(&page, request["id"].as_str().unwrap()).unwrap();
    assert_eq!(seen["errors"], json!([]), "{seen}");

    admin(&["saml", "rotate", "--now"]);
    let last = published(&lab);
    assert!(last.len() == 1 && last != first);
    let request = lab.request(&["redirect"]).unwrap();
    let page = web.get(request["url"].as_str().unwrap()).unwrap();
    let seen = lab.consume(&page, request["id"].as_str().unwrap()).unwrap();
    assert_ne!(seen["errors"], json!([]), "signed with a key that it was not told of: {seen}");
}

#[test]
fn metadata_becomes_configuration() {
    let lab = Lab::new("", false).unwrap();
    let (file, config) = (lab.dir().join("hr.xml"), lab.realm.node.config());
    std::fs::write(&file, METADATA).unwrap();
    let file = file.display().to_string();
    let stanza = lab.realm.node.admin(&["saml", "import", &file, "--name", "hr"]).unwrap();
    assert!(stanza.starts_with("# https://hr.example.org/sp: consumer services 1,"), "{stanza}");
    let whole = std::fs::read_to_string(&config).unwrap()
        + "\n"
        + &stanza.replace("policies = []", "policies = [\"staff\"]");
    std::fs::write(&config, whole).unwrap();
    assert!(lab.realm.node.admin(&["check"]).unwrap().ends_with(": good\n"));
    // The metadata changed, and what the configuration chose is gone from it.
    let chosen = std::fs::read_to_string(&config).unwrap().replace(
        &format!("metadata = \"{file}\""),
        &format!("metadata = \"{file}\", acs = [\"https://hr.example.org/old\"]"),
    );
    std::fs::write(&config, chosen).unwrap();
    let fault = lab.realm.node.admin(&["check"]).unwrap_err().to_string();
    assert!(
        fault.contains("is no consumer service of the metadata, which has: https://hr.example.org/acs"),
        "{fault}"
    );
    std::fs::write(&file, "<html/>").unwrap();
    let fault = lab.realm.node.admin(&["saml", "import", &file]).unwrap_err().to_string();
    assert!(fault.contains("not the EntityDescriptor of one entity"), "{fault}");
}
