//! An application that publishes its metadata at an address.

use portcullis_tests::process::wait_until;
use portcullis_tests::publisher::Publisher;
use portcullis_tests::realm::{AUTH, Plan};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

use crate::service::{ACS, ENTITY, Lab, certificate};

/// What the service provider says of itself: one consumer service, and that it signs with `sp.pem`.
fn metadata(dir: &Path, acs: &str) -> String {
    let pem = std::fs::read_to_string(dir.join("sp.pem")).unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    format!(
        "<EntityDescriptor xmlns='urn:oasis:names:tc:SAML:2.0:metadata' entityID='{ENTITY}'><SPSSODescriptor \
         AuthnRequestsSigned='true' protocolSupportEnumeration='urn:oasis:names:tc:SAML:2.0:protocol'><KeyDescriptor \
         use='signing'><KeyInfo xmlns='http://www.w3.org/2000/09/xmldsig#'><X509Data><X509Certificate>{base64}\
         </X509Certificate></X509Data></KeyInfo></KeyDescriptor><AssertionConsumerService index='0' \
         Binding='urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST' Location='{acs}'/></SPSSODescriptor></EntityDescriptor>"
    )
}

/// A node that fetches the metadata of its application, and who publishes that.
fn start(more: &str) -> (Lab, Publisher) {
    let plan = Plan::new().unwrap();
    certificate(plan.path()).unwrap();
    let publisher = Publisher::start(&metadata(plan.path(), ACS)).unwrap();
    let saml = format!("metadata = \"{}\"{more}", publisher.url);
    (Lab::in_plan(plan, &saml, true).unwrap(), publisher)
}

/// Replaces a part of the configuration, and waits until the node has taken the whole up.
fn reload(lab: &Lab, from: &str, to: &str) {
    let config = lab.realm.node.config();
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    let reloads = || anyhow::Ok(lab.realm.log()?.matches("\"detail\":\"reload\"").count());
    let before = reloads().unwrap();
    let new = config.with_extension("new");
    std::fs::write(&new, text.replacen(from, to, 1)).unwrap();
    std::fs::rename(new, &config).unwrap();
    wait_until("a reload", Duration::from_secs(60), || Ok((reloads()? > before).then_some(()))).unwrap();
}

#[test]
fn what_an_application_publishes_counts_and_outlives_its_publisher() {
    let (lab, publisher) = start("");
    // The node has fetched it by itself; nothing asks for it any more.
    wait_until("a fetch", Duration::from_secs(60), || {
        let counted =
            "portcullis_metadata_fetches_total{kind=\"application\",name=\"crm\",result=\"good\"} 1";
        Ok(lab.realm.node.metrics()?.contains(counted).then_some(()))
    })
    .unwrap();
    publisher.publish(None);
    let web = lab.realm.web("ann");
    let request = lab.request(&["redirect"]).unwrap();
    let page = lab.log_in(&web, web.get(request["url"].as_str().unwrap()).unwrap(), "ann").unwrap();
    let seen = lab.consume(&page, request["id"].as_str().unwrap()).unwrap();
    assert_eq!((&seen["errors"], &seen["name_id"]), (&json!([]), &json!("ann@example.com")), "{seen}");

    // It says that it signs, with a key of its own, and where answers may go.
    let eve = lab.realm.web("eve");
    let refused = |lab: &Lab| eve.get(lab.request(&["redirect"]).unwrap()["url"].as_str().unwrap()).unwrap();
    let elsewhere = lab.with("acs", json!("https://sp.example.org/other"));
    assert_eq!(refused(&elsewhere).status, 400);
    let lab = elsewhere.with("acs", json!(ACS));
    assert_eq!(refused(&lab).status, 302);

    // A reload while the publisher is away turns nobody away.
    reload(&lab, "name = \"shop\"", "name = \"store\"");
    let request = lab.request(&["redirect"]).unwrap();
    let page = web.get(request["url"].as_str().unwrap()).unwrap();
    assert_eq!(lab.consume(&page, request["id"].as_str().unwrap()).unwrap()["errors"], json!([]));

    certificate(lab.dir()).unwrap();
    assert_eq!(refused(&lab).status, 400, "signed with a key that nobody published");
}

#[test]
fn what_does_not_fit_the_configuration_is_nobodys() {
    let (lab, publisher) = start("");
    let web = lab.realm.web("ann");
    let sign_in = |lab: &Lab| web.get(lab.request(&["redirect"]).unwrap()["url"].as_str().unwrap()).unwrap();
    assert_eq!(sign_in(&lab).status, 302);
    let pinned = format!("metadata = \"{}\", entity_id = \"urn:another\"", publisher.url);
    let plain = format!("metadata = \"{}\"", publisher.url);
    reload(&lab, &plain, &pinned);
    let reply = sign_in(&lab);
    assert!(reply.status == 503 && reply.ray().is_ok() && reply.cookies().is_empty(), "{}", reply.body);
    let events = lab.realm.events("sign_in", 1).unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (&events[0]["allowed"], &events[0]["reason"]),
        (&json!(false), &json!("metadata_unavailable"))
    );
    let why = events[0]["detail"].as_str().unwrap();
    assert!(why.contains("is of `https://sp.example.org/saml/metadata`, and not of `urn:another`"), "{why}");
    let is_failure =
        |event: &serde_json::Value| event["detail"].as_str().unwrap().contains("cannot be fetched: ");
    wait_until("the failure in the log", Duration::from_secs(60), || {
        Ok(lab.realm.events("admin", 0)?.iter().any(is_failure).then_some(()))
    })
    .unwrap();
    // The application can be told of the node meanwhile.
    let own = web.get(&lab.realm.url(AUTH, "/cdn-cgi/access/sso/saml/crm/saml-metadata")).unwrap();
    assert!(own.status == 200 && own.body.contains("IDPSSODescriptor"), "{}", own.body);

    // Another configuration is another question: what was fetched for the one before answers nothing.
    let other = format!("metadata = \"{}\", acs = [\"https://sp.example.org/other\"]", publisher.url);
    reload(&lab, &pinned, &other);
    assert_eq!(sign_in(&lab).status, 503);
    reload(&lab, &other, &plain);
    assert_eq!(sign_in(&lab).status, 302);
}

#[test]
fn check_and_import_take_an_address() {
    let (lab, publisher) = start("");
    publisher.publish(None);
    // `check` asks nobody.
    assert!(lab.realm.node.admin(&["check"]).unwrap().ends_with(": good\n"));
    let import = |url: &str| lab.realm.node.admin(&["saml", "import", url, "--name", "hr"]);
    let fault = import(&publisher.url).unwrap_err().to_string();
    assert!(fault.contains("status 503"), "{fault}");
    publisher.publish(Some(&metadata(lab.dir(), ACS)));
    let stanza = import(&publisher.url).unwrap();
    assert!(stanza.starts_with(&format!("# {ENTITY}: consumer services 1,")), "{stanza}");
    assert!(
        stanza.contains(&format!("saml = {{ metadata = \"{}\", entity_id = \"{ENTITY}\" }}", publisher.url)),
        "{stanza}"
    );
    assert!(import("http://sp.example.org/metadata").unwrap_err().to_string().contains("at https://"));
}
