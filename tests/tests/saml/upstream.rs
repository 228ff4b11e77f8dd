//! SimpleSAMLphp as identity provider of the node.

use anyhow::{Result, ensure};
use portcullis_tests::realm::{AUTH, Plan, Realm, WIKI};
use portcullis_tests::simplesaml::{Choices, SimpleSaml};
use portcullis_tests::web::{Reply, Web};
use serde_json::{Value, json};

/// A node whose people log in at SimpleSAMLphp.
struct Site {
    realm: Realm,
    idp: SimpleSaml,
}

impl Site {
    /// `more` is added to the provider's configuration; `METADATA` in it is the address of the provider's.
    fn start(choices: Choices, metadata: &str, more: &str) -> Result<Self> {
        let plan = Plan::new()?;
        let idp = SimpleSaml::start(plan.path(), &plan.ca, choices)?;
        let metadata =
            metadata.replace("URL", &idp.metadata()).replace("FILE", &idp.file().display().to_string());
        let config = format!(
            "[[identity_provider]]\nname = \"adfs\"\ntype = \"saml\"\nlabel = \"Campus\"\nmetadata = \"{metadata}\"\n\
             email_domains = [\"example.com\"]\n{more}\n"
        );
        let realm = plan.start(false, &[], &config)?;
        let own = realm.web("metadata").get(&realm.url(AUTH, "/cdn-cgi/access/saml/adfs/saml-metadata"))?;
        ensure!(own.status == 200, "{}", own.body);
        idp.know(&own.body)?;
        Ok(Self { realm, idp })
    }

    /// Logs `user` in on the way to `url`; the page that is reached.
    fn log_in(&self, web: &Web, url: &str, user: &str) -> Result<Reply> {
        let start = web.follow(web.get(url)?, None)?;
        let start = match start.field("SAMLRequest") {
            Ok(request) => web.post(&start.between("action=\"", "\"")?, &[("SAMLRequest", &request)])?,
            Err(_) => start,
        };
        let page = self.idp.log_in(web, start, user)?;
        let reply = self.idp.posted(web, &page)?;
        ensure!(reply.status == 303, "{}: {}\n{}", reply.status, self.realm.log()?, self.idp.log());
        ensure!(reply.cookies().is_empty(), "{:?}", reply.headers);
        web.follow(reply, None)
    }

    fn who(&self, web: &Web) -> Result<Value> {
        let reply = web.get(&self.realm.url(AUTH, "/cdn-cgi/access/get-identity"))?;
        Ok(serde_json::from_str(&reply.body)?)
    }
}

fn assert_is_ann(who: &Value, subject: &str) {
    assert_eq!(who["email"], "ann@example.com", "{who}");
    assert_eq!((&who["id"], &who["name"]), (&json!(subject), &json!("Ann")), "{who}");
    assert_eq!((&who["groups"], &who["idp"]["type"]), (&json!(["ops", "dev"]), &json!("saml")), "{who}");
}

#[test]
fn people_log_in_by_redirect_and_metadata_by_address() {
    let choices = Choices { sign_response: true, validate: true, ..Choices::default() };
    let more = "name_id = \"email\"\ngroups_attribute = \"roles\"";
    let site = Site::start(choices, "URL", more).unwrap();
    let web = site.realm.web("ann");
    let page = site.log_in(&web, &site.realm.url(WIKI, "/deep?x=1"), "ann").unwrap();
    assert_eq!(page.status, 200, "{}: {}", page.url, page.body);
    assert!(page.url.ends_with("/deep?x=1"), "{}", page.url);
    assert_is_ann(&site.who(&web).unwrap(), "adfs:ann@example.com");
    let logins = site.realm.events("login", 1).unwrap();
    assert_eq!(logins.len(), 1, "{logins:?}");
    let login = &logins[0];
    assert_eq!((&login["allowed"], &login["identity_provider"]), (&json!(true), &json!("adfs")));
    assert_eq!((&login["app_name"], &login["policy"]), (&json!("wiki"), &json!("staff")));
}

#[test]
fn people_log_in_by_post_and_metadata_from_a_file() {
    let choices = Choices { validate: true, ..Choices::default() };
    let more = "name_id = \"persistent\"\nbinding = \"post\"\ngroups_attribute = \"roles\"";
    let site = Site::start(choices, "FILE", more).unwrap();
    let web = site.realm.web("ann");
    let page = site.log_in(&web, &site.realm.url(WIKI, "/"), "ann").unwrap();
    assert_eq!(page.status, 200, "{}: {}\n{}", page.url, page.body, site.idp.log());
    let who = site.who(&web).unwrap();
    assert_is_ann(&who, who["id"].as_str().unwrap());
    assert!(who["id"].as_str().unwrap().len() > 20, "a persistent name tells nothing: {who}");
    // Bob has no roles and no name to show.
    let other = site.realm.web("bob");
    site.log_in(&other, &site.realm.url(WIKI, "/"), "bob").unwrap();
    let who = site.who(&other).unwrap();
    assert_eq!((&who["email"], &who["groups"]), (&json!("bob@example.com"), &json!([])), "{who}");
}

/// SimpleSAMLphp 1.19 encrypts with CBC, which gives texts away: it is refused. AES-GCM is shown with xmlsec's.
#[test]
fn what_is_encrypted_with_cbc_is_refused() {
    let choices = Choices { encrypt: true, sign_response: true, ..Choices::default() };
    let site = Site::start(choices, "FILE", "name_id = \"email\"").unwrap();
    let web = site.realm.web("ann");
    let start = web.follow(web.get(&site.realm.url(WIKI, "/")).unwrap(), None).unwrap();
    let page = site.idp.log_in(&web, start, "ann").unwrap();
    assert_eq!(site.idp.posted(&web, &page).unwrap().status, 400);
    let logins = site.realm.events("login", 1).unwrap();
    assert_eq!(logins.len(), 1, "{logins:?}");
    assert!(logins[0]["detail"].as_str().unwrap().ends_with("cannot be decrypted"), "{logins:?}");
}

#[test]
fn a_logout_here_leads_to_applications_and_to_the_provider() {
    let crm = "name_id = \"email\"\n[[application]]\nname = \"crm\"\ntype = \"saas\"\npolicies = [\"staff\"]\n\
               saml = { entity_id = \"https://sp.example.org\", acs = [\"https://sp.example.org/acs\"], \
               logout = { redirect = \"https://sp.example.org/slo\" } }";
    let site = Site::start(Choices { sign_response: true, ..Choices::default() }, "FILE", crm).unwrap();
    let web = site.realm.web("ann");
    site.log_in(&web, &site.realm.url(WIKI, "/"), "ann").unwrap();
    let endpoint = site.realm.url(AUTH, "/cdn-cgi/access/sso/saml/crm");
    assert!(web.get(&endpoint).unwrap().field("SAMLResponse").is_ok());

    let logout = site.realm.url(WIKI, "/cdn-cgi/access/logout");
    let typed = web.clone().header("Sec-Fetch-Site: none").header("Sec-Fetch-Mode: navigate");
    let page = typed.header("Sec-Fetch-Dest: document").get(&logout).unwrap();
    assert_eq!(page.status, 200, "{}", page.body);
    let onward = page.between("http-equiv=\"refresh\" content=\"0; url=", "\"").unwrap();
    assert_eq!(
        web.get(&site.realm.url(WIKI, "/cdn-cgi/access/get-identity")).unwrap().status,
        401,
        "at once"
    );
    // Whoever else has the address is led nowhere, and spends nothing.
    let stolen = site.realm.web("eve").get(&onward).unwrap();
    assert!(stolen.status == 200 && stolen.cookies().is_empty(), "{}: {}", stolen.status, stolen.body);
    let to_application = web.get(&onward).unwrap();
    let asked = to_application.redirect().unwrap();
    assert!(
        asked.starts_with("https://sp.example.org/slo?SAMLRequest=") && asked.contains("&Signature="),
        "{asked}"
    );
    // It sends the browser back, whatever it says.
    let back = web.get(&format!("{endpoint}/logout?SAMLResponse=x")).unwrap();
    assert_eq!(back.status, 303, "{}", back.body);
    let end = web.follow(back, None).unwrap();
    assert!(end.body.contains("You are signed out"), "{}: {}", end.url, end.body);
    // The provider has forgotten the login: it asks again.
    let again = web.follow(web.get(&site.realm.url(WIKI, "/")).unwrap(), None).unwrap();
    assert!(again.field("AuthState").is_ok(), "{}: {}", again.url, again.body);
    let logouts = site.realm.events("logout", 2).unwrap();
    assert_eq!(logouts.len(), 2, "{logouts:?}");
    assert_eq!(
        (&logouts[1]["app_name"], &logouts[1]["detail"]),
        (&json!("crm"), &json!("front-channel logout"))
    );
    // Without a round there is nothing to go on with.
    let stray = site.realm.web("eve").get(&site.realm.url(AUTH, "/cdn-cgi/access/logout/onward")).unwrap();
    assert!(stray.status == 200 && stray.cookies().is_empty(), "{}", stray.body);
}

#[test]
fn a_logout_at_the_provider_ends_the_session_here() {
    let site = Site::start(Choices::default(), "URL", "name_id = \"email\"").unwrap();
    let web = site.realm.web("ann");
    site.log_in(&web, &site.realm.url(WIKI, "/"), "ann").unwrap();
    let other = site.realm.web("bob");
    site.log_in(&other, &site.realm.url(WIKI, "/"), "bob").unwrap();
    let out = format!(
        "{}/simplesaml/saml2/idp/initSLO.php?RelayState={}/simplesaml/",
        site.idp.origin, site.idp.origin
    );
    let end = web.follow(web.get(&out).unwrap(), None).unwrap();
    assert!(end.url.starts_with(&site.idp.origin), "{}: {}", end.url, end.body);
    let identity = site.realm.url(AUTH, "/cdn-cgi/access/get-identity");
    assert_eq!(web.get(&identity).unwrap().status, 401);
    assert_eq!(other.get(&identity).unwrap().status, 200, "another person's session goes on");
    let logouts = site.realm.events("logout", 1).unwrap();
    assert_eq!(logouts.len(), 1, "{logouts:?}");
    assert_eq!(logouts[0]["user_email"], "ann@example.com");
    assert_eq!(logouts[0]["detail"], "asked for by the identity provider");
}
