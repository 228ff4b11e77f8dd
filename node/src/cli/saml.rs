//! `portcullis admin saml …`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;

use crate::admin::client::Target;
use crate::admin::wire::Request;
use crate::config::{Config, ProviderKind, check_metadata_url, is_url};
use crate::fetch::HttpClient;
use crate::flow::{Kind, SaasProtocol, SamlApplication, SamlProviderSource, UnixTime};
use crate::identity::saml::MetadataSource;
use crate::saas::saml::{SamlKeyState, SamlKeySummary};
use crate::saml::ServiceProvider;
use crate::store::SamlKey;

use super::output;

/// A certificate is worth a note this long before it expires.
const SOON: Duration = Duration::from_secs(30 * 86_400);

#[derive(Subcommand)]
pub(super) enum SamlCommand {
    /// Keys that sign for service providers, with their certificates
    Keys,
    /// Publish a new key in the metadata; it signs in a month
    Rotate {
        /// The key is compromised: sign with a new one at once; service providers must be told its certificate
        #[arg(long)]
        now: bool,
    },
    /// Print the configuration of a service provider from its metadata, for node.toml
    Import {
        /// The service provider's metadata, a file or its address
        #[arg(value_name = "FILE|URL")]
        metadata: String,
        /// What to call the application
        #[arg(long, default_value = "NAME")]
        name: String,
        /// PEM file of an authority to trust at the address besides the system's
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
}

pub(super) async fn run(target: &Target, command: SamlCommand) -> anyhow::Result<()> {
    let request = match command {
        SamlCommand::Keys => Request::SamlKeysList,
        SamlCommand::Rotate { now } => Request::SamlKeysRotate { now },
        SamlCommand::Import { metadata, name, ca } => return import(&metadata, &name, ca.as_deref()).await,
    };
    target
        .ask(request, |value| {
            let keys: Vec<SamlKeySummary> = serde_json::from_value(value)?;
            for key in keys {
                let state = match key.state {
                    SamlKeyState::Next => "next",
                    SamlKeyState::Signing => "signing",
                };
                let (from, until) = (key.sign_from.0, key.sign_until.0);
                output::line(&format!(
                    "{state}, signs from {} until {}\n{}",
                    output::time(Some(from)),
                    output::time(Some(until)),
                    key.certificate
                ))?;
            }
            Ok(())
        })
        .await
}

/// Needs no node: what is printed is checked as a configuration is.
async fn import(metadata: &str, name: &str, ca: Option<&Path>) -> anyhow::Result<()> {
    let (bytes, place) = if is_url(metadata) {
        let url = check_metadata_url(metadata).map_err(anyhow::Error::msg)?;
        (fetch(&url, ca).await.with_context(|| url.clone())?, url)
    } else {
        let bytes = std::fs::read(metadata).with_context(|| metadata.to_owned())?;
        (bytes, std::path::absolute(metadata)?.display().to_string())
    };
    let provider = ServiceProvider::read(&bytes).with_context(|| metadata.to_owned())?;
    // Whoever publishes it may change it: but not whose it is.
    let pinned = match is_url(metadata) {
        true => format!(", entity_id = {:?}", provider.entity_id),
        false => String::new(),
    };
    let trusted = match ca {
        Some(ca) if is_url(metadata) => {
            format!(", ca = {:?}", std::path::absolute(ca)?.display().to_string())
        }
        _ => String::new(),
    };
    output::line(&format!(
        "# {}: consumer services {}, certificates for its requests {}, assertions {}\n[[application]]\nname = {name:?}\ntype = \"saas\"\npolicies = []   # who may \
         sign in: names of policies\nsaml = {{ metadata = {place:?}{pinned}{trusted} }}",
        provider.entity_id,
        provider.consumers.len(),
        provider.signing.len(),
        if provider.encryption.is_some() { "encrypted" } else { "not encrypted" },
    ))
}

async fn fetch(url: &str, ca: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let request = http::Request::get(url).body(Vec::new())?;
    let answer = HttpClient::new(ca)?.send(request).await?;
    anyhow::ensure!(answer.status().is_success(), "status {}", answer.status().as_u16());
    Ok(answer.into_body())
}

/// The service providers of a configuration.
pub(super) fn applications(config: &Config) -> impl Iterator<Item = &SamlApplication> {
    config.applications.iter().filter_map(|application| match &application.kind {
        Kind::Saas(saas) => match &saas.protocol {
            SaasProtocol::Saml(application) => Some(application),
            SaasProtocol::Oidc(_) => None,
        },
        Kind::Web(_) | Kind::Private(_) => None,
    })
}

/// What an administrator should know before an application turns people away.
pub(super) fn notes(config: &Config, keys: &[SamlKey], now: UnixTime) -> Vec<String> {
    let mut notes = Vec::new();
    let mut names = Vec::new();
    for application in applications(config) {
        let name = &application.name;
        names.push(format!("`{name}`"));
        // What is published is renewed by its publisher, and known to the node that runs.
        let SamlProviderSource::Configured(service) = &application.provider else { continue };
        let requests =
            service.certificates.iter().map(|certificate| (certificate, "that verifies its requests"));
        let assertions = service
            .encrypt_to
            .iter()
            .map(|certificate| (certificate, "that its assertions are encrypted to"));
        for (certificate, use_) in requests.chain(assertions) {
            let until = certificate.valid_until();
            if until < now.after(SOON) {
                let state = if until < now { "expired" } else { "expires" };
                notes.push(format!(
                    "application `{name}`: the certificate {use_} {state} at {}; the node goes on using its key, \
                     the application may not: give the node its new metadata or certificate",
                    output::time(Some(until.0))
                ));
            }
        }
    }
    for provider in &config.identity_providers {
        let ProviderKind::Saml(saml) = &provider.kind else { continue };
        let name = &provider.name;
        names.push(format!("`{name}`"));
        if saml.rules.email_domains.is_empty() {
            notes.push(format!(
                "identity provider `{name}` has no `email_domains`: no address of its people is accepted"
            ));
        }
        let MetadataSource::File(metadata) = &saml.metadata else { continue };
        let until = metadata.validity.until;
        if let Some(until) = until.filter(|until| *until < now.after(SOON)) {
            let state = if until <= now { "was" } else { "is" };
            notes.push(format!(
                "identity provider `{name}`: its metadata {state} good until {} only: nobody logs in with it after that",
                output::time(Some(until.0))
            ));
        }
    }
    let next = keys.iter().filter(|key| key.sign_from > now).map(|key| key.sign_from).min();
    if let Some(next) = next.filter(|_| !names.is_empty()) {
        notes.push(format!(
            "the node signs by SAML with a new key from {}: give its metadata to {} before that",
            output::time(Some(next.0)),
            names.join(", ")
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate that expires at the second `until`, as a file.
    fn certificate(file: &Path, until: i64) {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.not_after = time::OffsetDateTime::from_unix_timestamp(until).unwrap();
        std::fs::write(file, parameters.self_signed(&pair).unwrap().pem()).unwrap();
    }

    #[test]
    fn certificates_that_expire_and_keys_that_change_are_told() {
        const NOW: UnixTime = UnixTime(1_800_000_000);
        let month = i64::try_from(SOON.as_secs()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        for name in ["cert.pem", "key.pem"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        let path = directory.path().join("node.toml");
        std::fs::write(
            &path,
            "[node]\ndomain = \"access.example.com\"\nlisten = \"[::]:443\"\n[[node.certificate]]\ncert = \"cert.pem\"\nkey = \
             \"key.pem\"\n[gate]\ninterfaces = [\"eth0\"]\nadmin = [\"192.0.2.0/24:22\"]\n[[identity_provider]]\nname = \
             \"local\"\ntype = \"local\"\n[[policy]]\nname = \"staff\"\naction = \"allow\"\ninclude = [{ everyone = true }]\n\
             [[application]]\nname = \"crm\"\ntype = \"saas\"\npolicies = [\"staff\"]\nsaml = { entity_id = \"urn:x\", acs = \
             [\"https://crm.example/acs\"], certificate = \"sp.pem\" }\n",
        )
        .unwrap();
        let told = |until: i64, keys: &[SamlKey]| {
            certificate(&directory.path().join("sp.pem"), until);
            notes(&Config::load(&path).unwrap(), keys, NOW)
        };
        assert_eq!(told(NOW.0 + month, &[]), [""; 0]);
        let soon = told(NOW.0 + month - 1, &[]);
        assert!(soon.len() == 1 && soon[0].contains("requests expires at 2027-02-14T"), "{soon:?}");
        assert!(
            told(NOW.0 - 1, &[])[0].contains("`crm`: the certificate that verifies its requests expired at")
        );
        let key = |sign_from| SamlKey {
            private_pem: String::new().into(),
            certificate_pem: String::new(),
            sign_from: UnixTime(sign_from),
            sign_until: UnixTime(i64::MAX),
        };
        let next = told(NOW.0 + month, &[key(NOW.0 - 9), key(NOW.0 + 9)]);
        assert!(next.len() == 1 && next[0].contains("give its metadata to `crm`"), "{next:?}");
        assert_eq!(told(NOW.0 + month, &[key(NOW.0 - 9)]), [""; 0]);
    }
}
