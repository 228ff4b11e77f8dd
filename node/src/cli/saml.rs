//! `portcullis admin saml …`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;

use crate::admin::client::Target;
use crate::admin::wire::Request;
use crate::saas::saml::{SamlKeyState, SamlKeySummary};
use crate::saml::ServiceProvider;

use super::output;

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
        /// The service provider's metadata
        file: PathBuf,
        /// What to call the application
        #[arg(long, default_value = "NAME")]
        name: String,
    },
}

pub(super) async fn run(target: &Target, command: SamlCommand) -> anyhow::Result<()> {
    let request = match command {
        SamlCommand::Keys => Request::SamlKeysList,
        SamlCommand::Rotate { now } => Request::SamlKeysRotate { now },
        SamlCommand::Import { file, name } => return import(&file, &name),
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
fn import(file: &Path, name: &str) -> anyhow::Result<()> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let provider = ServiceProvider::read(&bytes).with_context(|| file.display().to_string())?;
    let file = std::path::absolute(file)?;
    output::line(&format!(
        "# {}: consumer services {}, certificates for its requests {}, assertions {}\n[[application]]\nname = {name:?}\ntype = \"saas\"\npolicies = []   # who may \
         sign in: names of policies\nsaml = {{ metadata = {:?} }}",
        provider.entity_id,
        provider.consumers.len(),
        provider.signing.len(),
        if provider.encryption.is_some() { "encrypted" } else { "not encrypted" },
        file.display().to_string(),
    ))
}
