//! What every part of the daemon lane shares.

use std::sync::Arc;

use tokio::sync::watch;

use crate::clients::Clients;
use crate::config::Active;
use crate::event::Events;
use crate::flow::UnixTime;
use crate::identity::service::Services;
use crate::metadata::Metadata;
use crate::metrics::Metrics;
use crate::recent::Recent;
use crate::saas::saml::SamlProvider;
use crate::seal::Seal;
use crate::session::{LiveSession, Sessions};
use crate::store::Store;
use crate::token::{Claims, Tokens};
use crate::tunnel::Registry;
use crate::tunnel::carrier::Carried;

/// One of these exists per node; parts hold it in an `Arc`.
pub struct Context {
    /// The configuration in force; changes at a reload.
    pub active: watch::Receiver<Arc<Active>>,
    pub store: Store,
    pub sessions: Sessions,
    pub clients: Clients,
    pub services: Services,
    pub tokens: Tokens,
    /// Signs for applications elsewhere.
    pub saml: SamlProvider,
    /// What they and identity providers publish about themselves.
    pub metadata: Metadata,
    pub seal: Seal,
    pub events: Events,
    pub metrics: Arc<Metrics>,
    pub tunnels: Arc<Registry>,
    /// Tunnels that come by TCP.
    pub carried: Carried,
    /// Networks to serve first while strangers flood.
    pub recent: Recent,
}

impl Context {
    /// The live session that a verified token names, as [`Clients::live`] says.
    pub fn live(&self, claims: &Claims, now: UnixTime) -> Option<LiveSession> {
        self.clients.live(&self.sessions, claims, now)
    }

    /// The configuration in force now.
    pub fn active(&self) -> Arc<Active> {
        Arc::clone(&self.active.borrow())
    }
}
