//! `portcullis admin check`: reads everything a node would, and starts nothing.

use std::path::Path;

use anyhow::Context as _;

use crate::config::{Config, ProviderKind};
use crate::store::Store;

use super::{output, saml};

/// Says every fault, or how to make the first user where nobody could log in.
pub(super) fn run(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    crate::role::check_files(&config)?;
    if let Some(user) = &config.node.user {
        crate::privilege::check_user(user).context("[node] user")?;
    }
    let local = config.identity_providers.iter().any(|p| matches!(p.kind, ProviderKind::Local));
    let federated = config.identity_providers.len() > usize::from(local);
    let federates = config.identity_providers.iter().any(|p| matches!(p.kind, ProviderKind::Saml(_)));
    let signs = federates || saml::applications(&config).next().is_some();
    let asks_store = local || !config.service_tokens().is_empty() || signs;
    let (users, service_tokens, saml_keys) = if asks_store && config.node.state.join("store.sqlite").exists()
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let store = Store::open(&config.node.state)?;
        runtime.block_on(async {
            anyhow::Ok((store.users().await?.len(), store.service_tokens().await?, store.saml_keys().await?))
        })?
    } else {
        (0, Vec::new(), Vec::new())
    };
    if !federated && (users == 0 || !local) {
        let provider = if local {
            String::new()
        } else {
            "\n  add to the file:   [[identity_provider]]\n                     name = \"local\"\n                     type = \"local\"".to_owned()
        };
        output::line(&format!(
            "note: nobody can log in yet: there is no identity provider with users{provider}\n  make the first user:   portcullis admin user add NAME --email NAME@example.com --config {}",
            path.display()
        ))?;
    }
    for provider in config.unbounded_providers() {
        output::line(&format!(
            "note: identity provider `{provider}` has no `email_domains`: beside the other providers it could vouch for anybody's address"
        ))?;
    }
    let callback = format!("https://{}/cdn-cgi/access/callback", config.node.authority());
    if config.oidc_providers().nth(1).is_some() {
        for provider in config.oidc_providers() {
            let name = &provider.name;
            output::line(&format!(
                "note: identity provider `{name}`, being one of several, sends browsers back to {callback}/{name}, or to {callback} if its metadata has `authorization_response_iss_parameter_supported`: register both there"
            ))?;
        }
    }
    for name in config.service_tokens() {
        if !service_tokens.iter().any(|token| token.name == name) {
            output::line(&format!(
                "note: there is no service token `{name}` yet, which a policy names\n  make it:   portcullis admin service-token create {name} --config {}",
                path.display()
            ))?;
        }
    }
    for note in saml::notes(&config, &saml_keys, crate::clock::now()) {
        output::line(&format!("note: {note}"))?;
    }
    output::line(&format!("{}: good", path.display()))
}
