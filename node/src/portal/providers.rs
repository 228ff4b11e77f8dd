//! The identity providers of the running configuration, with what has been learnt about them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Active, IdentityProvider, ProviderKind};
use crate::flow::Application;
use crate::identity::LoginError;
use crate::identity::oidc::{Callbacks, ClaimRules, OidcProvider, OidcSettings};
use crate::identity::saml::{MetadataSource, SamlSettings, SamlUpstream, Source};
use crate::identity::upstream::Upstream;
use crate::metadata::Metadata;

use super::Site;

/// Providers elsewhere that are in use. They start afresh with every configuration.
pub(super) struct Providers {
    metadata: Metadata,
    made: Mutex<Option<Made>>,
}

struct Made {
    active: Arc<Active>,
    upstreams: BTreeMap<String, Arc<Upstream>>,
}

impl Providers {
    pub(super) fn new(metadata: Metadata) -> Self {
        Self { metadata, made: Mutex::default() }
    }

    /// The provider that `provider` configures; nothing if it is the node itself.
    pub(super) fn upstream(
        &self,
        active: &Arc<Active>,
        site: &Site,
        provider: &IdentityProvider,
    ) -> Result<Option<Arc<Upstream>>, LoginError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match &mut *made {
            Some(made) if Arc::ptr_eq(&made.active, active) => made,
            stale => stale.insert(Made { active: Arc::clone(active), upstreams: BTreeMap::new() }),
        };
        if let Some(upstream) = made.upstreams.get(&provider.name) {
            return Ok(Some(Arc::clone(upstream)));
        }
        let alone = active.config.oidc_providers().nth(1).is_none();
        let Some(upstream) = make(site, provider, alone, &self.metadata)? else { return Ok(None) };
        let upstream = Arc::new(upstream);
        made.upstreams.insert(provider.name.clone(), Arc::clone(&upstream));
        Ok(Some(upstream))
    }
}

fn make(
    site: &Site,
    provider: &IdentityProvider,
    alone: bool,
    metadata: &Metadata,
) -> Result<Option<Upstream>, LoginError> {
    let name = provider.name.as_str();
    Ok(match &provider.kind {
        ProviderKind::Local => None,
        ProviderKind::Oidc(config) => Some(Upstream::Oidc(Box::new(OidcProvider::new(OidcSettings {
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
            callbacks: Callbacks { shared: site.callback(), own: site.callback_of(name), alone },
        })?))),
        ProviderKind::Saml(config) => {
            let source = match &config.metadata {
                MetadataSource::File(provider) => Source::File(Arc::clone(provider)),
                // A request that a reload has overtaken may find none.
                MetadataSource::Url(_) => {
                    Source::Published(metadata.provider(name).ok_or(LoginError::State)?)
                }
            };
            let at = |endpoint: &str| site.endpoint(&site.auth, &format!("saml/{name}/{endpoint}"));
            Some(Upstream::Saml(Box::new(SamlUpstream::new(SamlSettings {
                name,
                metadata: source,
                rules: config.rules.clone(),
                sign_requests: config.sign_requests,
                allow_unsolicited: config.allow_unsolicited,
                binding: config.binding,
                name_id_format: config.name_id_format,
                entity_id: config.entity_id.clone().unwrap_or_else(|| at("saml-metadata")),
                consumer: at("acs"),
                logout: at("logout"),
            }))))
        }
    })
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
