//! A service provider: python3-saml, and the realm that knows it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use portcullis_tests::realm::{AUTH, PASSWORD, Plan, Realm};
use portcullis_tests::web::{Reply, Web};
use serde_json::{Value, json};

pub const ACS: &str = "https://sp.example.org/saml/acs";
pub const ENTITY: &str = "https://sp.example.org/saml/metadata";

/// A node with one application elsewhere, called `crm`.
pub struct Lab {
    pub realm: Realm,
    settings: Value,
}

impl Lab {
    /// `saml` is what `saml = { … }` says beside the entity ID and the consumer service, where `DIR` stands for a
    /// folder with the provider's own `sp.pem` and `sp.key`; `signs` tells whether it signs its requests with it.
    pub fn new(saml: &str, signs: bool) -> Result<Self> {
        let plan = Plan::new()?;
        certificate(plan.path())?;
        let saml = saml.replace("DIR", &plan.path().display().to_string());
        let whole =
            format!("entity_id = \"{ENTITY}\", acs = [\"{ACS}\", \"https://sp.example.org/other\"]{saml}");
        Self::in_plan(plan, &whole, signs)
    }

    /// In a plan whose folder has the provider's `sp.pem` and `sp.key`; `saml` is all of what `saml = { … }` says.
    pub fn in_plan(plan: Plan, saml: &str, signs: bool) -> Result<Self> {
        let dir = plan.path().to_owned();
        let more = format!(
            "[[application]]\nname = \"crm\"\ntype = \"saas\"\nurl = \"https://sp.example.org/\"\n\
             policies = [\"staff\"]\nsaml = {{ {saml} }}\n"
        );
        let realm = plan.start(true, &[], &more)?;
        let metadata =
            realm.web("metadata").get(&realm.url(AUTH, "/cdn-cgi/access/sso/saml/crm/saml-metadata"))?;
        ensure!(metadata.status == 200, "{}", metadata.body);
        std::fs::write(dir.join("idp.xml"), &metadata.body)?;
        let mut settings = json!({ "acs": ACS, "entity_id": ENTITY, "metadata": dir.join("idp.xml") });
        if signs {
            settings["certificate"] = json!(dir.join("sp.pem"));
            settings["key"] = json!(dir.join("sp.key"));
        }
        Ok(Self { realm, settings })
    }

    /// The same with a further setting of the service provider.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.settings[name] = value;
        self
    }

    pub fn dir(&self) -> &Path {
        self.realm.dir.path()
    }

    pub fn endpoint(&self) -> String {
        self.realm.url(AUTH, "/cdn-cgi/access/sso/saml/crm")
    }

    /// A request as the service provider makes it.
    pub fn request(&self, args: &[&str]) -> Result<Value> {
        self.step("request", args, "")
    }

    /// What the service provider makes of the answer on a page of the node, to the request `id`.
    pub fn consume(&self, page: &Reply, id: &str) -> Result<Value> {
        self.step("response", &[id], &page.field("SAMLResponse")?)
    }

    /// A logout request of the service provider, about `index` or whatever session there is.
    pub fn logout(&self, name: &str, index: Option<&str>) -> Result<Value> {
        self.step("logout", &[name, index.unwrap_or("-")], "")
    }

    /// What the service provider makes of the address that answers its logout request `id`.
    pub fn logged_out(&self, url: &str, id: &str) -> Result<Value> {
        self.step("logged-out", &[id], url)
    }

    fn step(&self, step: &str, args: &[&str], input: &str) -> Result<Value> {
        let settings = self.dir().join("settings.json");
        std::fs::write(&settings, self.settings.to_string())?;
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("third-party/python/saml_sp.py");
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(step)
            .arg(settings)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("/usr/bin/python3")?;
        child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(
            output.status.success(),
            "saml_sp.py {step}: {err} (`cargo xtask setup` installs python3-saml)"
        );
        Ok(serde_json::from_str(&out)?)
    }

    /// Logs a local user in at the form `reply` led to, and on to the page that posts the answer.
    pub fn log_in(&self, web: &Web, reply: Reply, user: &str) -> Result<Reply> {
        let form = web.follow(reply, None)?;
        let ticket = form.field("ticket").with_context(|| format!("{}: {}", form.url, form.body))?;
        let fields = [("ticket", ticket.as_str()), ("username", user), ("password", PASSWORD)];
        web.follow(web.post(&form.url, &fields)?, None)
    }
}

/// A key and a certificate of the service provider's own: `sp.key`, `sp.pem`.
pub fn certificate(dir: &Path) -> Result<()> {
    let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
    std::fs::write(dir.join("sp.pem"), rcgen::CertificateParams::default().self_signed(&pair)?.pem())?;
    Ok(std::fs::write(dir.join("sp.key"), pair.serialize_pem())?)
}
