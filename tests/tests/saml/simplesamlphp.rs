//! SimpleSAMLphp as service provider: signed in from either side, encrypted and not, signed out from either side.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::browser::walk;
use portcullis_tests::idp::{ClaimsIn, Idp};
use portcullis_tests::ports;
use portcullis_tests::process::{Process, wait_until};
use portcullis_tests::realm::{AUTH, PASSWORD, Plan, Provider, Realm};
use portcullis_tests::simplesaml::{self, Choices, SimpleSaml};
use portcullis_tests::web::{Reply, Web};
use serde_json::{Value, json};

use crate::service::certificate;

/// What the application asks to be told as the name; without asking it would get one for each session.
const EMAIL: &str = "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress";

/// A node and an application behind SimpleSAMLphp, which know each other by their metadata.
struct Site {
    realm: Realm,
    origin: String,
    idp: Option<Idp>,
    campus: Option<SimpleSaml>,
    _server: Process,
}

/// Where people log in beside the node itself.
#[derive(Clone, Copy)]
enum Behind<'a> {
    Nobody,
    /// An OpenID provider with these accounts.
    Oidc(&'a Value),
    /// SimpleSAMLphp; the application is then at 127.0.0.1, which is another site than its `localhost`.
    Saml,
}

impl Site {
    /// With `keys` the service provider signs what it asks, and gets its assertions encrypted.
    fn start(keys: bool) -> Result<Self> {
        Self::with(keys, Behind::Nobody)
    }

    fn with(keys: bool, behind: Behind<'_>) -> Result<Self> {
        let plan = Plan::new()?;
        let dir = plan.path().to_owned();
        let port = ports::free()?;
        let host = if let Behind::Saml = behind { "127.0.0.1" } else { "localhost" };
        let origin = format!("http://{host}:{port}");
        certificate(&dir)?;
        for name in ["config", "metadata", "data", "log", "tmp", "www"] {
            std::fs::create_dir(dir.join(name))?;
        }
        std::os::unix::fs::symlink("/usr/share/simplesamlphp/www", dir.join("www/simplesaml"))?;
        let own = if keys {
            format!(
                "'certificate' => '{0}/sp.pem', 'privatekey' => '{0}/sp.key', 'sign.authnrequest' => true, \
                 'sign.logout' => true, 'redirect.sign' => true, 'assertion.encryption' => true,",
                dir.display()
            )
        } else {
            String::new()
        };
        let config = format!(
            "<?php $config = ['baseurlpath' => '{origin}/simplesaml/', 'datadir' => '{dir}/data/', 'loggingdir' => '{dir}/log/', \
             'tempdir' => '{dir}/tmp', 'certdir' => '{dir}/', 'metadatadir' => '{dir}/metadata/', \
             'attributenamemapdir' => '/etc/simplesamlphp/attributemap/', 'secretsalt' => 'salt-of-a-test', 'auth.adminpassword' => 'pass-of-a-test', \
             'logging.level' => SimpleSAML\\Logger::DEBUG, 'logging.handler' => 'file', 'logging.logfile' => 'sp.log', \
             'timezone' => 'UTC', 'admin.checkforupdates' => false, 'technicalcontact_email' => 'x@example.org', \
             'showerrors' => true, 'session.cookie.secure' => false, 'session.cookie.samesite' => null, \
             'session.phpsession.savepath' => '{dir}/tmp', 'store.type' => 'sql', 'store.sql.dsn' => 'sqlite:{dir}/data/store.sqlite', \
             'language.default' => 'en', 'language.available' => ['en'], 'theme.use' => 'default', 'trusted.url.domains' => ['{host}:{port}', '{host}'], \
             'metadata.sources' => [['type' => 'xml', 'file' => '{dir}/metadata/idp.xml']], 'module.enable' => ['core' => true, 'saml' => true]];",
            dir = dir.display()
        );
        std::fs::write(dir.join("config/config.php"), config)?;
        let endpoint = format!("https://{AUTH}:{}/cdn-cgi/access/sso/saml/crm", plan.port);
        std::fs::write(
            dir.join("config/authsources.php"),
            format!(
                "<?php $config = ['default-sp' => ['saml:SP', 'entityID' => '{origin}/sp', 'idp' => '{endpoint}', \
                 'NameIDPolicy' => ['Format' => '{EMAIL}', 'AllowCreate' => true], {own}]];"
            ),
        )?;
        std::fs::write(
            dir.join("metadata/idp.xml"),
            "<EntityDescriptor xmlns=\"urn:oasis:names:tc:SAML:2.0:metadata\" entityID=\"urn:none\"/>",
        )?;

        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("third-party/php/service.php");
        let mut command = Command::new("php");
        command
            .arg("-S")
            .arg(format!("127.0.0.1:{port}"))
            .arg("-t")
            .arg(dir.join("www"))
            .arg(script)
            .env("SIMPLESAMLPHP_CONFIG_DIR", dir.join("config"));
        let server = Process::spawn_in(&dir, "php", command)?;
        let plain = Web::bare(&dir.join("plain.jar"), &dir.join("ca.pem"), port, &[]);
        plan.ca.write(&dir)?;
        wait_until("PHP's server", Duration::from_secs(60), || {
            Ok(plain.get(&format!("{origin}/bye")).ok().filter(|reply| reply.status == 200))
        })?;
        let metadata =
            plain.get(&format!("{origin}/simplesaml/module.php/saml/sp/metadata.php/default-sp"))?;
        ensure!(metadata.status == 200, "{}\n{}", metadata.body, server.output());
        std::fs::write(dir.join("sp.xml"), &metadata.body)?;

        let mut more = format!(
            "[[application]]\nname = \"crm\"\ntype = \"saas\"\nurl = \"{endpoint}\"\npolicies = [\"staff\"]\n\
             saml = {{ metadata = \"{}/sp.xml\", relay_state = \"{origin}/app\", logout = {{ local = true }} }}\n",
            dir.display()
        );
        let (mut idp, mut campus) = (None, None);
        match behind {
            Behind::Nobody => {}
            Behind::Oidc(accounts) => {
                let callbacks = plan.callbacks("okta");
                idp = Some(Idp::start(plan.path(), &plan.ca, &callbacks, accounts, ClaimsIn::Userinfo)?);
            }
            Behind::Saml => {
                let provider = SimpleSaml::start(plan.path(), &plan.ca, Choices::default())?;
                more += &format!(
                    "[[identity_provider]]\nname = \"campus\"\ntype = \"saml\"\nlabel = \"Campus\"\nmetadata = \"{}\"\n\
                     email_domains = [\"example.com\"]\nname_id = \"email\"\n",
                    provider.metadata()
                );
                campus = Some(provider);
            }
        }
        let providers: Vec<Provider<'_>> =
            idp.iter().map(|idp| Provider { name: "okta", idp, more: "label = \"Okta\"" }).collect();
        let realm = plan.start(true, &providers, &more)?;
        let metadata = realm.web("metadata").get(&format!("{endpoint}/saml-metadata"))?;
        ensure!(metadata.status == 200, "{}", metadata.body);
        std::fs::write(dir.join("metadata/idp.xml"), &metadata.body)?;
        if let Some(campus) = &campus {
            let own = realm.web("own").get(&realm.url(AUTH, "/cdn-cgi/access/saml/campus/saml-metadata"))?;
            campus.know(&own.body)?;
        }
        Ok(Self { realm, origin, idp, campus, _server: server })
    }

    /// Logs somebody in from `start`, and posts the node's answer as the page would.
    fn sign_in(&self, web: &Web, start: &str, user: &str) -> Result<(Reply, String)> {
        let form = web.follow(web.get(start)?, None)?;
        let ticket = form.field("ticket").with_context(|| format!("{}: {}", form.url, form.body))?;
        let fields = [("ticket", ticket.as_str()), ("username", user), ("password", PASSWORD)];
        let page = web.follow(web.post(&form.url, &fields)?, None)?;
        let answer = page.field("SAMLResponse").with_context(|| format!("{}: {}", page.url, page.body))?;
        let mut fields = vec![("SAMLResponse", answer.as_str())];
        let state = page.field("RelayState")?;
        fields.push(("RelayState", &state));
        let reply = web.post(&page.between("action=\"", "\"")?, &fields)?;
        Ok((web.follow(reply, None)?, answer))
    }

    fn who(&self, web: &Web) -> Result<Value> {
        let reply = web.get(&format!("{}/who", self.origin))?;
        serde_json::from_str(&reply.body).with_context(|| reply.body.clone())
    }

    fn is_signed_in(&self, web: &Web) -> Result<bool> {
        Ok(self.who(web)?["authenticated"] == json!(true))
    }
}

fn assert_is_ann(reply: &Reply) {
    let seen: Value =
        serde_json::from_str(&reply.body).unwrap_or_else(|_| panic!("{}: {}", reply.url, reply.body));
    assert_eq!(
        (&seen["authenticated"], &seen["name_id"]),
        (&json!(true), &json!("ann@example.com")),
        "{seen}"
    );
    assert_eq!(seen["attributes"]["email"], json!(["ann@example.com"]), "{seen}");
    assert_eq!(seen["attributes"]["groups"], json!(["ops"]), "{seen}");
}

fn is_encrypted(answer: &str) -> bool {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.decode(answer).unwrap();
    String::from_utf8(text).unwrap().contains("EncryptedAssertion")
}

#[test]
fn signed_and_encrypted_in_and_out_from_either_side() {
    let site = Site::start(true).unwrap();
    let web = site.realm.web("ann");
    let (page, answer) = site.sign_in(&web, &format!("{}/app", site.origin), "ann").unwrap();
    assert_is_ann(&page);
    assert!(is_encrypted(&answer));

    // The application signs the person out, here and at the node.
    let bye = web.follow(web.get(&format!("{}/logout", site.origin)).unwrap(), None).unwrap();
    assert_eq!(bye.body, "bye", "{}", bye.url);
    assert!(!site.is_signed_in(&web).unwrap());
    assert!(web.follow(web.get(&site.realm.url(AUTH, "/")).unwrap(), None).unwrap().field("ticket").is_ok());

    // From the node's side; an administrator ends it, and the application hears so.
    let (page, answer) =
        site.sign_in(&web, &site.realm.url(AUTH, "/cdn-cgi/access/sso/saml/crm"), "ann").unwrap();
    assert_is_ann(&page);
    assert!(is_encrypted(&answer));
    assert!(site.is_signed_in(&web).unwrap());
    let told = site.realm.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    assert!(told.contains("crm is told that the session of ann@example.com has ended"), "{told}");
    // It ends its session, and then fails to write the answer (1.19: the destination of a SOAP answer is an array), so the node
    // rightly has no word that it did, says so in an event and asks again. `soap` has an application that answers.
    wait_until("the application to hear of it", Duration::from_secs(60), || {
        Ok((!site.is_signed_in(&web)?).then_some(()))
    })
    .unwrap();
}

#[test]
fn unsigned_and_unencrypted_in_and_what_remains_is_told() {
    let site = Site::start(false).unwrap();
    let web = site.realm.web("ann");
    let (page, answer) = site.sign_in(&web, &format!("{}/app", site.origin), "ann").unwrap();
    assert_is_ann(&page);
    assert!(!is_encrypted(&answer));
    // It cannot sign, so it cannot sign anybody out.
    let refused = web.follow(web.get(&format!("{}/logout", site.origin)).unwrap(), None).unwrap();
    assert_eq!(refused.status, 400, "{}", refused.body);

    let other = site.realm.web("bob");
    let (page, _) =
        site.sign_in(&other, &site.realm.url(AUTH, "/cdn-cgi/access/sso/saml/crm"), "bob").unwrap();
    assert!(page.body.contains("bob@example.com"), "{}", page.body);
}

#[test]
fn a_browser_goes_from_the_application_to_the_provider_and_back_and_out() {
    let accounts = json!({ "ann": { "email": "ann@example.com", "email_verified": true } });
    let site = Site::with(true, Behind::Oidc(&accounts)).unwrap();
    walk(&site.realm, site.idp.as_ref(), "saml", &json!({ "origin": site.origin })).unwrap();
    assert_eq!(site.realm.events("sign_in", 2).unwrap().len(), 2);
}

#[test]
fn a_browser_goes_from_the_application_to_a_saml_provider_and_back_and_out() {
    let site = Site::with(true, Behind::Saml).unwrap();
    let provider = &site.campus.as_ref().unwrap().origin;
    let known = json!({ "origin": site.origin, "provider": provider, "password": simplesaml::PASSWORD });
    walk(&site.realm, None, "saml_upstream", &known).unwrap();
    assert_eq!(site.realm.events("sign_in", 1).unwrap().len(), 1);
}
