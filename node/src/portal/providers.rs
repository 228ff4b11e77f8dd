//! The identity providers of the running configuration, with what has been learnt about them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Active, IdentityProvider, OidcConfig, ProviderKind};
use crate::flow::Application;
use crate::identity::LoginError;
use crate::identity::oidc::{ClaimRules, OidcProvider, OidcSettings};

use super::Site;

/// OpenID providers in use. They start afresh with every configuration.
#[derive(Default)]
pub(super) struct Providers {
    made: Mutex<Option<Made>>,
}

struct Made {
    active: Arc<Active>,
    oidc: BTreeMap<String, Arc<OidcProvider>>,
}

impl Providers {
    pub(super) fn oidc(
        &self,
        active: &Arc<Active>,
        site: &Site,
        name: &str,
        config: &OidcConfig,
    ) -> Result<Arc<OidcProvider>, LoginError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match &mut *made {
            Some(made) if Arc::ptr_eq(&made.active, active) => made,
            stale => stale.insert(Made { active: Arc::clone(active), oidc: BTreeMap::new() }),
        };
        if let Some(provider) = made.oidc.get(name) {
            return Ok(Arc::clone(provider));
        }
        let provider = Arc::new(OidcProvider::new(OidcSettings {
            name,
            issuer: config.issuer.as_str(),
            client_id: &config.client_id,
            client_secret: config.client_secret.as_ref().map(|secret| secret.expose()),
            scopes: &config.scopes,
            claims: ClaimRules {
                groups_claim: config.groups_claim.clone(),
                email_domains: config.email_domains.clone(),
            },
            ca: config.ca.as_deref(),
            redirect: site.callback(),
        })?);
        made.oidc.insert(name.to_owned(), Arc::clone(&provider));
        Ok(provider)
    }
}

/// The providers that may be used to reach `application` (or the launcher), in the order of the configuration.
pub(super) fn allowed<'a>(
    active: &'a Active,
    application: Option<&Application>,
) -> Vec<&'a IdentityProvider> {
    active
        .config
        .identity_providers
        .iter()
        .filter(|provider| {
            application.is_none_or(|app| app.providers.is_empty() || app.providers.contains(&provider.name))
        })
        .collect()
}

pub(super) fn is_local(provider: &IdentityProvider) -> bool {
    matches!(provider.kind, ProviderKind::Local)
}
