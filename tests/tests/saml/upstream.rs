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
        ensure!(reply.status == 303, "{}: {}", reply.status, reply.body);
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
fn people_log_in_by_post_with_encrypted_assertions_and_metadata_from_a_file() {
    for sign_response in [false, true] {
        let choices = Choices { encrypt: true, sign_response, validate: true, ..Choices::default() };
        let more = "name_id = \"persistent\"\nbinding = \"post\"\ngroups_attribute = \"roles\"";
        let site = Site::start(choices, "FILE", more).unwrap();
        let web = site.realm.web("ann");
        let page = site.log_in(&web, &site.realm.url(WIKI, "/"), "ann").unwrap();
        assert_eq!(page.status, 200, "{}: {}\n{}", page.url, page.body, site.idp.log());
        let who = site.who(&web).unwrap();
        assert_is_ann(&who, who["id"].as_str().unwrap());
        assert!(who["id"].as_str().unwrap().len() > 20, "a persistent name tells nothing: {who}");
    }
}
