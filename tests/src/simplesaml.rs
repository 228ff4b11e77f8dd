//! SimpleSAMLphp as SAML identity provider, behind PHP's own server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ca::Ca;
use crate::ports;
use crate::process::{Process, wait_until};
use crate::web::{Reply, Web};

/// Password of its people: `ann` (roles `ops` and `dev`, ann@example.com) and `bob` (bob@example.com).
pub const PASSWORD: &str = "pass-of-a-test";

/// What of its configuration tests choose.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choices {
    /// Whether assertions are encrypted (AES-256-GCM).
    pub encrypt: bool,
    /// Whether the response is signed too, and not the assertion alone.
    pub sign_response: bool,
    /// Whether it refuses requests that are not signed.
    pub validate: bool,
    /// Processes of PHP's server.
    pub workers: u32,
}

/// The provider, running.
pub struct SimpleSaml {
    dir: PathBuf,
    pub origin: String,
    server: Process,
}

impl SimpleSaml {
    /// Starts it in `dir`. `ca` is trusted by the browser that waits for it.
    pub fn start(dir: &Path, ca: &Ca, choices: Choices) -> Result<Self> {
        let dir = dir.join("simplesaml");
        let port = ports::free()?;
        let origin = format!("http://localhost:{port}");
        std::fs::create_dir(&dir)?;
        for name in ["config", "metadata", "data", "log", "tmp", "www"] {
            std::fs::create_dir(dir.join(name))?;
        }
        std::os::unix::fs::symlink("/usr/share/simplesamlphp/www", dir.join("www/simplesaml"))?;
        let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
        let certificate = rcgen::CertificateParams::default().self_signed(&pair)?;
        std::fs::write(dir.join("idp.pem"), certificate.pem())?;
        std::fs::write(dir.join("idp.key"), pair.serialize_pem())?;
        std::fs::write(dir.join("config/config.php"), config(&dir, &origin))?;
        std::fs::write(
            dir.join("config/authsources.php"),
            format!(
                "<?php $config = ['people' => ['exampleauth:UserPass', 'ann:{PASSWORD}' => ['uid' => ['u-1'], \
                 'mail' => 'ann@example.com', 'displayName' => 'Ann', 'roles' => ['ops', 'dev']], \
                 'bob:{PASSWORD}' => ['uid' => ['u-2'], 'mail' => 'bob@example.com']]];"
            ),
        )?;
        let Choices { encrypt, sign_response, validate, workers } = choices;
        std::fs::write(
            dir.join("metadata/saml20-idp-hosted.php"),
            format!(
                "<?php $metadata['__DYNAMIC:1__'] = ['host' => '__DEFAULT__', 'privatekey' => '{0}/idp.key', \
                 'certificate' => '{0}/idp.pem', 'auth' => 'people', 'SingleSignOnServiceBinding' => ['urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect', 'urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST'], 'signature.algorithm' => \
                 'http://www.w3.org/2001/04/xmldsig-more#rsa-sha256', 'saml20.sign.response' => {sign_response}, \
                 'saml20.sign.assertion' => true, 'assertion.encryption' => {encrypt}, 'sharedkey_algorithm' => \
                 'http://www.w3.org/2009/xmlenc11#aes256-gcm', 'validate.authnrequest' => {validate}, \
                 'validate.logout' => true, 'sign.logout' => true, 'redirect.sign' => true, \
                 'attributes.NameFormat' => 'urn:oasis:names:tc:SAML:2.0:attrname-format:basic', 'authproc' => \
                 [3 => ['class' => 'saml:AttributeNameID', 'attribute' => 'mail', 'Format' => \
                 'urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress'], 4 => ['class' => 'saml:PersistentNameID', \
                 'attribute' => 'uid']]];",
                dir.display()
            ),
        )?;
        let this_dir = dir.clone();
        std::fs::write(dir.join("metadata/sp.xml"), NOBODY)?;
        let mut command = Command::new("php");
        command
            .args([
                "-d",
                "opcache.enable=1",
                "-d",
                "opcache.enable_cli=1",
                "-d",
                "opcache.validate_timestamps=0",
            ])
            .args(["-S", &format!("127.0.0.1:{port}"), "-t"])
            .arg(dir.join("www"))
            .env("SIMPLESAMLPHP_CONFIG_DIR", dir.join("config"));
        if workers > 1 {
            command.env("PHP_CLI_SERVER_WORKERS", workers.to_string());
        }
        let server = Process::spawn_in(&dir, "php", command)?;
        ca.write(&dir)?;
        let provider = Self { dir: this_dir, origin, server };
        let plain = Web::bare(&dir.join("plain.jar"), &dir.join("ca.pem"), port, &[]);
        let metadata = wait_until("SimpleSAMLphp", Duration::from_secs(60), || {
            Ok(plain.get(&provider.metadata()).ok().filter(|reply| reply.status == 200))
        })?;
        ensure!(metadata.body.contains("IDPSSODescriptor"), "{}", metadata.body);
        std::fs::write(dir.join("idp.xml"), &metadata.body)?;
        Ok(provider)
    }

    /// Address of its metadata.
    pub fn metadata(&self) -> String {
        format!("{}/simplesaml/saml2/idp/metadata.php", self.origin)
    }

    /// Its metadata as a file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("idp.xml")
    }

    /// Tells it who may ask.
    pub fn know(&self, service_provider: &str) -> Result<()> {
        Ok(std::fs::write(self.dir.join("metadata/sp.xml"), service_provider)?)
    }

    /// Of PHP's server.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log/idp.log")).unwrap_or_default()
    }

    /// Logs `user` in at the form that `reply` led to; the page that posts its answer.
    pub fn log_in(&self, web: &Web, reply: Reply, user: &str) -> Result<Reply> {
        let form = web.follow(reply, None)?;
        let state = form.field("AuthState").with_context(|| format!("{}\n{}", form.url, form.body))?;
        let fields = [("AuthState", state.as_str()), ("username", user), ("password", PASSWORD)];
        web.follow(web.post(&form.url, &fields)?, None)
    }

    /// Posts what a page of its posts by itself.
    pub fn posted(&self, web: &Web, page: &Reply) -> Result<Reply> {
        let answer = page.field("SAMLResponse").with_context(|| format!("{}\n{}", page.url, page.body))?;
        let to = page.between("action=\"", "\"")?;
        let foreign = web.clone().header("Sec-Fetch-Site: cross-site");
        foreign.post(&to, &[("SAMLResponse", &answer)])
    }
}

/// Somebody nobody is, until the node is known.
const NOBODY: &str = "<EntityDescriptor xmlns=\"urn:oasis:names:tc:SAML:2.0:metadata\" entityID=\"urn:none\"><SPSSODescriptor \
    protocolSupportEnumeration=\"urn:oasis:names:tc:SAML:2.0:protocol\"><AssertionConsumerService index=\"0\" \
    Binding=\"urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST\" Location=\"http://localhost/none\"/></SPSSODescriptor>\
    </EntityDescriptor>";

fn config(dir: &Path, origin: &str) -> String {
    format!(
        "<?php $config = ['baseurlpath' => '{origin}/simplesaml/', 'datadir' => '{dir}/data/', 'loggingdir' => '{dir}/log/', \
         'tempdir' => '{dir}/tmp', 'certdir' => '{dir}/', 'metadatadir' => '{dir}/metadata/', \
         'attributenamemapdir' => '/etc/simplesamlphp/attributemap/', 'secretsalt' => 'salt-of-a-test', \
         'auth.adminpassword' => 'admin-of-a-test', 'logging.level' => SimpleSAML\\Logger::NOTICE, \
         'logging.handler' => 'file', 'logging.logfile' => 'idp.log', 'timezone' => 'UTC', \
         'admin.checkforupdates' => false, 'technicalcontact_email' => 'x@example.org', 'showerrors' => true, \
         'session.cookie.secure' => false, 'session.cookie.samesite' => null, \
         'session.phpsession.savepath' => '{dir}/tmp', 'store.type' => 'phpsession', 'language.default' => 'en', \
         'language.available' => ['en'], 'theme.use' => 'default', 'enable.saml20-idp' => true, \
         'metadata.sources' => [['type' => 'flatfile'], ['type' => 'xml', 'file' => '{dir}/metadata/sp.xml']], \
         'module.enable' => ['core' => true, 'saml' => true, 'exampleauth' => true]];",
        dir = dir.display()
    )
}
