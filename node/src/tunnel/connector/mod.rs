//! The connector: sits beside private applications, dials out to its nodes, listens on nothing.
//!
//! 1. Enrol once, when a token is given (`state` keeps the result).
//! 2. Keep `connections` connections to every node (`link`), with `backoff` in between.
//! 3. On each, dial the origins that the node names, as far as the local allow list goes, and pipe bytes.
//! 4. Take the private sessions that are offered on them (`sessions`), which end at the client and not at the node.
//! 5. At shutdown, take no new streams, let the running ones end, and go.
//!
//! A node is trusted with the choice of origins; what it cannot choose is anything outside the local list.

mod backoff;
mod knocker;
mod link;
mod origins;
mod sessions;
mod state;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock;

use super::carrier::Web;
use super::enrolment::EnrolmentToken;
use super::identity::TunnelKeyError;
use super::session::Credential;
use super::transport::{TransportError, connector_config};
use super::wire::{Authority, ConnectorName, Refusal};

use link::{Dialer, LinkError};
use sessions::Sessions;
use state::{Credentials, State};

pub(super) use backoff::Backoff;
pub(super) use knocker::Knocker;
pub use state::StateError;

/// How a connector runs.
#[derive(Debug, Clone)]
pub struct ConnectorConfig {
    /// Directory of its own, 0700; made if absent.
    pub state: PathBuf,
    /// Needed once, and ignored when it is the one that this connector was enrolled with.
    pub token: Option<EnrolmentToken>,
    /// The only origins and private destinations it may ever dial, whatever a node says; without a list, all that a node
    /// names or signs.
    pub allow: Option<BTreeSet<Authority>>,
    /// Connections to each node, at least 1.
    pub connections: usize,
}

/// Why a connector cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    #[error("this connector was never enrolled: give it a token from `admin connector create`")]
    NotEnrolled,
    #[error("the node refuses the enrolment: {0}")]
    Refused(Refusal),
    #[error("the token is for connector {token}, but the node knows this connector's key as {node}")]
    OtherName { token: ConnectorName, node: ConnectorName },
    #[error("no node at these addresses has the key that the token names: {0}")]
    WrongNode(String),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Key(#[from] TunnelKeyError),
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Runs a connector until `shutdown`, then lets running streams end.
///
/// # Errors
/// At the beginning only: when it cannot enrol, or its state cannot be used. Nodes that are away are tried for ever.
pub async fn run(config: ConnectorConfig, shutdown: CancellationToken) -> Result<(), ConnectorError> {
    let state = State::open(config.state)?;
    let credentials = match (state.load()?, config.token) {
        (Some(enrolled), Some(token)) if !enrolled.is_from(&token) => {
            info!(connector = %token.connector(), "enrolling anew");
            match enrol(&state, token, &shutdown).await? {
                Some(credentials) => credentials,
                None => return Ok(()),
            }
        }
        (Some(enrolled), _) => enrolled,
        (None, Some(token)) => match enrol(&state, token, &shutdown).await? {
            Some(credentials) => credentials,
            None => return Ok(()),
        },
        (None, None) => return Err(ConnectorError::NotEnrolled),
    };
    info!(connector = %credentials.connector, nodes = credentials.nodes.len(), "the connector runs");

    let client = connector_config(&credentials.key()?, credentials.node_key)?;
    let sessions = Sessions::new(credentials.key()?, credentials.node_key, config.allow.clone())?;
    tokio::spawn(Arc::clone(&sessions).run());
    let nodes = credentials.nodes.clone();
    let web = web(&credentials);
    let knocker = Knocker::kept(state, credentials);
    let dialer = Dialer::new(client, web, config.allow, knocker, Some(Arc::clone(&sessions)));
    let dialer = Arc::new(dialer);
    let mut links = JoinSet::new();
    for node in &nodes {
        for slot in 0..config.connections.max(1) {
            links.spawn(keep(Arc::clone(&dialer), node.clone(), slot, shutdown.clone()));
        }
    }
    while links.join_next().await.is_some() {}
    sessions.close().await;
    Ok(())
}

/// Spends the token, trying the nodes in turn until one answers; nothing when `shutdown` comes first. The key is
/// written before the token is spent, so a crash in between loses neither.
async fn enrol(
    state: &State,
    token: EnrolmentToken,
    shutdown: &CancellationToken,
) -> Result<Option<Credentials>, ConnectorError> {
    let pending = state.prepare(&token)?;
    let client = connector_config(&pending.key()?, pending.node_key)?;
    let knocker = Knocker::of(pending.device.clone());
    let dialer = Dialer::new(client, web(&pending), None, knocker, None);
    let mut backoff = Backoff::default();
    loop {
        let mut wrong = Vec::new();
        for node in &token.nodes {
            let credential = Credential::Token(token.secret.clone());
            let answer = tokio::select! {
                answer = dialer.introduce(node, credential) => answer,
                () = shutdown.cancelled() => return Ok(None),
            };
            match answer {
                Ok((name, device)) if name == token.connector => {
                    let enrolled = pending.with_device(device);
                    state.commit(&enrolled)?;
                    info!(connector = %name, %node, "enrolled");
                    return Ok(Some(enrolled));
                }
                Ok((node, _)) => {
                    return Err(ConnectorError::OtherName { token: token.connector.clone(), node });
                }
                Err(LinkError::Refused(refusal @ (Refusal::BadToken | Refusal::UnknownKey))) => {
                    state.abandon()?;
                    return Err(ConnectorError::Refused(refusal));
                }
                Err(error) => {
                    warn!(%node, %error, "enrolment is not possible yet");
                    if error.is_wrong_node() {
                        wrong.push(node.to_string());
                    }
                }
            }
        }
        if wrong.len() == token.nodes.len() {
            state.abandon()?;
            return Err(ConnectorError::WrongNode(wrong.join(", ")));
        }
        tokio::select! {
            () = sleep(backoff.next(u64::from_be_bytes(clock::random()))) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
    }
}

/// Where to go over TCP, if anywhere: a connector that enrolled with an older version has not been told.
fn web(credentials: &Credentials) -> Option<Web> {
    let Some(at) = credentials.web.clone() else {
        info!("this connector was not told where its node serves HTTPS: it enrols anew for a way over TCP");
        return None;
    };
    Web::new(at).inspect_err(|error| warn!(%error, "there is no way over TCP")).ok()
}

/// Keeps one connection to `node`.
async fn keep(dialer: Arc<Dialer>, node: Authority, slot: usize, shutdown: CancellationToken) {
    let mut backoff = Backoff::default();
    loop {
        let served = dialer.serve(&node, slot, &shutdown).await;
        if shutdown.is_cancelled() {
            return;
        }
        match served {
            Ok(served_for) => {
                info!(%node, slot, "the connection has ended");
                backoff.served(served_for);
            }
            Err(error) => warn!(%node, slot, %error, "no connection"),
        }
        tokio::select! {
            () = sleep(backoff.next(u64::from_be_bytes(clock::random()))) => {}
            () = shutdown.cancelled() => return,
        }
    }
}
