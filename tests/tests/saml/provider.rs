//! An identity provider whose answers are made by hand, and signed and encrypted by xmlsec.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use portcullis_tests::realm::{AUTH, Plan, Realm, WIKI};
use portcullis_tests::web::{Reply, Web};
use serde_json::{Value, json};

pub const ISSUER: &str = "https://idp.example.org/metadata";
const PROTOCOL: &str = "urn:oasis:names:tc:SAML:2.0:protocol";
const ASSERTION: &str = "urn:oasis:names:tc:SAML:2.0:assertion";

/// A node, and the provider's keys beside it.
pub struct Provider {
    pub realm: Realm,
    tools: RefCell<Tools>,
}

struct Tools {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Tools {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A login that was begun.
pub struct Begun {
    pub web: Web,
    pub request: String,
}

/// What an answer says. What is wrong with it, a test changes.
#[derive(Clone, Debug)]
pub struct Answer {
    pub issuer: String,
    pub response_issuer: String,
    pub destination: String,
    pub recipient: String,
    pub audience: String,
    pub in_response_to: String,
    pub response_in_response_to: String,
    pub issued: i64,
    pub not_before: i64,
    pub not_on_or_after: i64,
    pub confirmed_until: i64,
    pub session_until: i64,
    pub status: String,
    pub name_id: String,
    pub roles: Vec<String>,
    pub id: String,
}

/// What is signed and encrypted.
#[derive(Clone, Copy, Debug)]
pub struct Seals<'a> {
    pub assertion: Option<&'a str>,
    pub response: Option<&'a str>,
    pub method: &'a str,
    pub digest: &'a str,
    pub encrypt: Option<&'a str>,
    pub transport: &'a str,
    pub prefixes: &'a str,
}

impl Default for Seals<'_> {
    fn default() -> Self {
        Self {
            assertion: Some("idp"),
            response: None,
            method: "RSA_SHA256",
            digest: "SHA256",
            encrypt: None,
            transport: "oaep",
            prefixes: "",
        }
    }
}

/// `seconds` from now, as SAML has it.
pub fn instant(seconds: i64) -> String {
    let output = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("{seconds} seconds")])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Provider {
    /// `more` is added to the provider's configuration.
    pub fn start(more: &str) -> Result<Self> {
        let plan = Plan::new()?;
        for name in ["idp", "other"] {
            let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
            let certificate = rcgen::CertificateParams::default().self_signed(&pair)?;
            std::fs::write(plan.path().join(format!("{name}.pem")), certificate.pem())?;
            std::fs::write(plan.path().join(format!("{name}.key")), pair.serialize_pem())?;
        }
        let metadata = plan.path().join("idp.xml");
        std::fs::write(&metadata, metadata_of(&plan.path().join("idp.pem"))?)?;
        let config = format!(
            "[[identity_provider]]\nname = \"adfs\"\ntype = \"saml\"\nmetadata = \"{}\"\nemail_domains = [\"example.com\"]\n\
             {more}\n",
            metadata.display()
        );
        let realm = plan.start(true, &[], &config)?;
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("third-party/python/saml_idp.py");
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("/usr/bin/python3")?;
        let input = child.stdin.take().context("stdin")?;
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { realm, tools: RefCell::new(Tools { child, input, output }) })
    }

    pub fn tool(&self, command: &Value) -> Result<Value> {
        let mut tools = self.tools.borrow_mut();
        writeln!(tools.input, "{command}")?;
        let mut line = String::new();
        tools.output.read_line(&mut line)?;
        ensure!(
            !line.is_empty(),
            "saml_idp.py is gone (`cargo xtask setup` installs python3-onelogin-saml2)"
        );
        Ok(serde_json::from_str(&line)?)
    }

    pub fn at(&self, endpoint: &str) -> String {
        self.realm.url(AUTH, &format!("/cdn-cgi/access/saml/adfs/{endpoint}"))
    }

    /// Begins a login on the way to the wiki, in a browser of a `network`.
    pub fn begin(&self, name: &str, network: u8) -> Result<Begun> {
        let web = self.realm.web(name).from(&format!("127.0.{network}.1"));
        let login = web.follow(web.get(&self.realm.url(WIKI, "/deep"))?, Some("https://idp.example.org"))?;
        let to = match login.redirect() {
            Some(to) => to,
            // The chooser: the password form and this provider.
            None => {
                let choice = login.between("href=\"?", "\"")?;
                let page = login.url.split('?').next().unwrap_or_default().to_owned();
                web.get(&format!("{page}?{choice}"))?.redirect().context("the provider's address")?
            }
        };
        let read = self.tool(&json!({ "op": "read", "url": to }))?;
        ensure!(read["signed"] == json!(true), "{read}");
        Ok(Begun { web, request: read["id"].as_str().context("id")?.to_owned() })
    }

    /// A good answer to `request`.
    pub fn answer(&self, request: &str) -> Answer {
        let acs = self.at("acs");
        Answer {
            issuer: ISSUER.into(),
            response_issuer: ISSUER.into(),
            destination: acs.clone(),
            recipient: acs,
            audience: self.at("saml-metadata"),
            in_response_to: request.into(),
            response_in_response_to: request.into(),
            issued: 0,
            not_before: -30,
            not_on_or_after: 300,
            confirmed_until: 300,
            session_until: 3600,
            status: "urn:oasis:names:tc:SAML:2.0:status:Success".into(),
            name_id: "ann@example.com".into(),
            roles: vec!["ops".into()],
            id: format!("_a{}", request.trim_start_matches('_')),
        }
    }

    /// The text of the response, sealed as told.
    pub fn sealed(&self, answer: &Answer, seals: Seals<'_>) -> Result<String> {
        let key = |name: &str| self.realm.dir.path().join(format!("{name}.key")).display().to_string();
        let sign = |xml: &str, name: &str| -> Result<String> {
            let signed = self.tool(&json!({
                "op": "sign", "xml": xml, "key": key(name), "method": seals.method, "digest": seals.digest,
                "prefixes": seals.prefixes,
            }))?;
            Ok(signed["xml"].as_str().context("xml")?.to_owned())
        };
        let mut assertion = answer.assertion();
        if let Some(name) = seals.assertion {
            assertion = sign(&assertion, name)?;
        }
        if let Some(method) = seals.encrypt {
            let certificate = self.realm.dir.path().join("node-saml.pem");
            std::fs::write(&certificate, self.certificate()?)?;
            let encrypted = self.tool(&json!({
                "op": "encrypt", "xml": assertion, "certificate": certificate, "method": method,
                "transport": seals.transport,
            }))?;
            assertion = encrypted["xml"].as_str().context("xml")?.to_owned();
        }
        let response = answer.response(&assertion);
        match seals.response {
            Some(name) => sign(&response, name),
            None => Ok(response),
        }
    }

    /// The node's certificate for this provider.
    fn certificate(&self) -> Result<String> {
        let metadata = self.realm.web("metadata").get(&self.at("saml-metadata"))?;
        let text = metadata.between("use=\"encryption\"", "</md:KeyDescriptor>")?;
        let text = text.split("<ds:X509Certificate>").nth(1).context("certificate")?;
        let text = text.split('<').next().context("certificate")?;
        let lines: Vec<String> =
            text.as_bytes().chunks(64).map(|l| String::from_utf8_lossy(l).into()).collect();
        Ok(format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")))
    }

    /// Posts an answer, as the provider's page does, and follows it to its end.
    pub fn post(&self, web: &Web, text: &str) -> Result<Reply> {
        self.post_raw(web, &encode(text))
    }

    pub fn post_raw(&self, web: &Web, message: &str) -> Result<Reply> {
        let foreign = web.clone().header("Sec-Fetch-Site: cross-site");
        let reply = foreign.post(&self.at("acs"), &[("SAMLResponse", message), ("RelayState", "x")])?;
        web.follow(reply, None)
    }
}

pub fn encode(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

impl Answer {
    pub fn assertion(&self) -> String {
        let Self { issuer, recipient, audience, name_id, id, .. } = self;
        let role = |role: &String| {
            format!("<saml:AttributeValue xsi:type=\"xs:string\">{role}</saml:AttributeValue>")
        };
        let roles: String = self.roles.iter().map(role).collect();
        let in_response_to = match self.in_response_to.as_str() {
            "" => String::new(),
            request => format!(" InResponseTo=\"{request}\""),
        };
        format!(
            "<saml:Assertion xmlns:saml=\"{ASSERTION}\" xmlns:xs=\"http://www.w3.org/2001/XMLSchema\" \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" ID=\"{id}\" Version=\"2.0\" \
             IssueInstant=\"{issued}\"><saml:Issuer>{issuer}</saml:Issuer><saml:Subject><saml:NameID \
             Format=\"urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress\">{name_id}</saml:NameID>\
             <saml:SubjectConfirmation Method=\"urn:oasis:names:tc:SAML:2.0:cm:bearer\">\
             <saml:SubjectConfirmationData NotOnOrAfter=\"{confirmed}\" Recipient=\"{recipient}\"{in_response_to}/>\
             </saml:SubjectConfirmation></saml:Subject><saml:Conditions NotBefore=\"{from}\" NotOnOrAfter=\"{until}\">\
             <saml:AudienceRestriction><saml:Audience>{audience}</saml:Audience></saml:AudienceRestriction>\
             </saml:Conditions><saml:AuthnStatement AuthnInstant=\"{issued}\" SessionIndex=\"_s{id}\" \
             SessionNotOnOrAfter=\"{session}\"><saml:AuthnContext><saml:AuthnContextClassRef>\
             urn:oasis:names:tc:SAML:2.0:ac:classes:PasswordProtectedTransport</saml:AuthnContextClassRef>\
             </saml:AuthnContext></saml:AuthnStatement><saml:AttributeStatement><saml:Attribute Name=\"roles\">\
             {roles}</saml:Attribute></saml:AttributeStatement></saml:Assertion>",
            issued = instant(self.issued),
            confirmed = instant(self.confirmed_until),
            from = instant(self.not_before),
            until = instant(self.not_on_or_after),
            session = instant(self.session_until),
        )
    }

    pub fn response(&self, assertion: &str) -> String {
        let Self { response_issuer, destination, status, .. } = self;
        let in_response_to = match self.response_in_response_to.as_str() {
            "" => String::new(),
            request => format!(" InResponseTo=\"{request}\""),
        };
        format!(
            "<samlp:Response xmlns:samlp=\"{PROTOCOL}\" xmlns:saml=\"{ASSERTION}\" ID=\"_resp\" Version=\"2.0\" \
             IssueInstant=\"{}\" Destination=\"{destination}\"{in_response_to}><saml:Issuer>{response_issuer}\
             </saml:Issuer><samlp:Status><samlp:StatusCode Value=\"{status}\"/></samlp:Status>{assertion}\
             </samlp:Response>",
            instant(self.issued)
        )
    }
}

fn metadata_of(certificate: &Path) -> Result<String> {
    let pem = std::fs::read_to_string(certificate)?;
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let service = |name: &str, path: &str| {
        format!(
            "<md:{name} Binding=\"urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect\" \
             Location=\"https://idp.example.org/{path}\"/>"
        )
    };
    Ok(format!(
        "<md:EntityDescriptor xmlns:md=\"urn:oasis:names:tc:SAML:2.0:metadata\" entityID=\"{ISSUER}\">\
         <md:IDPSSODescriptor protocolSupportEnumeration=\"{PROTOCOL}\"><md:KeyDescriptor use=\"signing\"><ds:KeyInfo \
         xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\"><ds:X509Data><ds:X509Certificate>{base64}</ds:X509Certificate>\
         </ds:X509Data></ds:KeyInfo></md:KeyDescriptor>{}{}</md:IDPSSODescriptor></md:EntityDescriptor>",
        service("SingleLogoutService", "slo"),
        service("SingleSignOnService", "sso"),
    ))
}
