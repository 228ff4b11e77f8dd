//! SAML metadata that others publish at addresses: of identity providers, and of applications elsewhere. One of these
//! exists per node. A reload keeps what was fetched from a place that stays configured, so that a publisher who is away
//! just then turns nobody away.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::{Config, ProviderKind, check_service};
use crate::context::Context;
use crate::event::{Action, Event, Events};
use crate::flow::{
    Kind, SaasProtocol, SamlApplication, SamlProviderSource, SamlPublished, SamlService, UnixTime,
};
use crate::identity::saml::MetadataSource;
use crate::metrics::Metrics;
use crate::published::{Document, Fetched, Published, Unpublished};
use crate::saml::{Provider, ServiceProvider, Validity};

/// How often it is looked whether a document is due.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Documents that are fetched at the same time.
const CONCURRENT: usize = 8;

/// A service provider as its metadata and the configuration have it together.
pub(crate) struct Fitted {
    service: Arc<SamlService>,
    validity: Validity,
}

impl Document for Fitted {
    fn validity(&self) -> Validity {
        self.validity
    }

    fn entity_id(&self) -> &str {
        &self.service.entity_id
    }

    fn says_the_same(&self, other: &Self) -> bool {
        self.service == other.service
    }
}

impl Document for Provider {
    fn validity(&self) -> Validity {
        self.validity
    }

    fn entity_id(&self) -> &str {
        &self.entity_id
    }

    fn says_the_same(&self, other: &Self) -> bool {
        Self { validity: other.validity, ..self.clone() } == *other
    }
}

/// All documents of the configuration in force. Clones share them.
#[derive(Clone, Default)]
pub struct Metadata {
    shelves: Arc<RwLock<Arc<Shelves>>>,
}

#[derive(Default)]
struct Shelves {
    providers: BTreeMap<String, Arc<Published<Provider>>>,
    services: BTreeMap<String, (Arc<SamlPublished>, Arc<Published<Fitted>>)>,
}

impl Metadata {
    /// Takes up the addresses of a configuration that is about to be in force.
    pub fn configure(&self, config: &Config, events: &Events, metrics: &Arc<Metrics>) -> anyhow::Result<()> {
        let before = self.shelves();
        let mut shelves = Shelves::default();
        for provider in &config.identity_providers {
            let ProviderKind::Saml(saml) = &provider.kind else { continue };
            let MetadataSource::Url(url) = &saml.metadata else { continue };
            let name = &provider.name;
            let tell = teller("identity provider", name, events, metrics);
            let published = Published::new(url, saml.ca.as_deref(), provider_of, tell)
                .with_context(|| format!("identity provider `{name}`: ca"))?;
            if let Some(before) = before.providers.get(name) {
                published.follow(before);
            }
            shelves.providers.insert(name.clone(), Arc::new(published));
        }
        for application in &config.applications {
            let Kind::Saas(saas) = &application.kind else { continue };
            let SaasProtocol::Saml(saml) = &saas.protocol else { continue };
            let SamlProviderSource::Published(place) = &saml.provider else { continue };
            let name = &saml.name;
            let tell = teller("application", name, events, metrics);
            let said = Arc::clone(place);
            let published =
                Published::new(&place.url, place.ca.as_deref(), move |bytes| fitted(&said, bytes), tell)
                    .with_context(|| format!("application `{name}`: ca"))?;
            // What was fitted to other words of the configuration counts for nothing now.
            if let Some((_, before)) = before.services.get(name).filter(|(said, _)| said == place) {
                published.follow(before);
            }
            shelves.services.insert(name.clone(), (Arc::clone(place), Arc::new(published)));
        }
        *self.shelves.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(shelves);
        Ok(())
    }

    /// That of the identity provider called `name`, where it is at an address.
    pub(crate) fn provider(&self, name: &str) -> Option<Arc<Published<Provider>>> {
        self.shelves().providers.get(name).cloned()
    }

    /// What is known of an application.
    pub(crate) async fn service(
        &self,
        application: &SamlApplication,
        now: UnixTime,
    ) -> Result<Arc<SamlService>, Unpublished> {
        let place = match &application.provider {
            SamlProviderSource::Configured(service) => return Ok(Arc::clone(service)),
            SamlProviderSource::Published(place) => place,
        };
        let shelves = self.shelves();
        let found = shelves.services.get(&application.name).filter(|(said, _)| said == place);
        let (_, published) = found.ok_or(Unpublished::Unknown)?;
        Ok(Arc::clone(&published.current(now).await?.service))
    }

    fn shelves(&self) -> Arc<Shelves> {
        Arc::clone(&self.shelves.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fetches what is due.
    async fn renew(&self) {
        let shelves = self.shelves();
        let now = clock::now();
        let mut due: Vec<BoxFuture<'_, ()>> = Vec::new();
        due.extend(shelves.providers.values().map(|published| published.renew(now).boxed()));
        due.extend(shelves.services.values().map(|(_, published)| published.renew(now).boxed()));
        futures_util::stream::iter(due).buffer_unordered(CONCURRENT).collect::<()>().await;
    }
}

/// Keeps documents fresh until `shutdown`: fetches them at first, at a reload, and when they are due.
pub(crate) async fn keep(context: Arc<Context>, shutdown: CancellationToken) {
    let mut active = context.active.clone();
    loop {
        context.metadata.renew().await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = active.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn provider_of(bytes: &[u8]) -> Result<Provider, Unpublished> {
    let provider = Provider::read(bytes)?;
    for address in provider.sign_in.addresses().chain(provider.logout.addresses()) {
        check_service(address).map_err(Unpublished::Address)?;
    }
    Ok(provider)
}

fn fitted(place: &SamlPublished, bytes: &[u8]) -> Result<Fitted, Unpublished> {
    let document = ServiceProvider::read(bytes)?;
    Ok(Fitted { service: Arc::new(place.said.with(&document)?), validity: document.validity })
}

/// Counts fetches, and writes down what an operator should know of: a change, and when failures begin and end.
fn teller(
    kind: &'static str,
    name: &str,
    events: &Events,
    metrics: &Arc<Metrics>,
) -> impl Fn(Fetched<'_>) + Send + Sync + 'static {
    let (name, events, metrics) = (name.to_owned(), events.clone(), Arc::clone(metrics));
    move |fetched| {
        let result = if let Fetched::Failed { .. } = fetched { "failed" } else { "good" };
        metrics.metadata_fetches.with_label_values(&[kind, &name, result]).inc();
        let of = format!("metadata of {kind} `{name}`");
        let (good, detail) = match fetched {
            Fetched::First | Fetched::Same { recovered: false } | Fetched::Failed { again: true, .. } => {
                return;
            }
            Fetched::Same { recovered: true } => (true, format!("{of}: it can be fetched again")),
            Fetched::Changed => (true, format!("{of}: it has changed")),
            Fetched::Failed { error, again: false } => (false, format!("{of} cannot be fetched: {error}")),
        };
        events.emit(Event::new(Action::Admin, good).detail(detail));
    }
}

#[cfg(test)]
mod tests;
