//! Local ends of private applications: listeners, one connection on standard input and output, and what they say of
//! themselves.
//!
//! ```text
//! program ── TCP ──▶ listener ─┐                      tcp
//! ssh ── stdin, stdout ────────┼─▶ Client::session ──▶ stream          stdio
//! program ── UDP ──▶ listener ─┘                  └──▶ flow            udp
//! ```
//!
//! One process has one client: one connection to the node, and one session for each application, however many forwards.

mod stdio;
mod tcp;
mod udp;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::{RecvStream, SendStream};
use serde::{Deserialize, Serialize};

use crate::flow::UnixTime;
use crate::private_file::{self, PrivateFileError};
use crate::tunnel::TransportError;
use crate::tunnel::client::{Client, OpenError, Session, StreamError, UdpFlow};
use crate::tunnel::wire::Authority;

use super::person::{Person, say};
use super::profile::{Profile, ProfileError};

pub use tcp::Admits;

/// Why a forward cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("{application}: {why}")]
    Application { application: String, why: String },
    #[error("{address} cannot be listened on: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error(
        "{address}: a connection {why} was refused, and so are others, without a further word; `--any-user` takes them"
    )]
    Stranger { address: SocketAddr, why: String },
    #[error("the connection was cut: {0}")]
    Cut(String),
}

/// A private application, and where in it if it is a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub application: String,
    pub destination: Option<Authority>,
}

/// What a forward carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carried {
    Tcp,
    Udp,
}

/// One person's forwards in this process.
#[derive(Debug)]
pub struct Forwards {
    client: Client,
    open: Arc<Mutex<BTreeMap<usize, Open>>>,
    next: AtomicUsize,
}

/// A forward that exists.
#[derive(Debug)]
struct Open {
    target: Target,
    carried: Carried,
    listens: Option<SocketAddr>,
    connections: Arc<AtomicUsize>,
}

/// What a process says of one of its forwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardStatus {
    pub application: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    pub protocol: Carried,
    /// Absent where it is standard input and output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Connections or flows right now.
    pub connections: usize,
    /// `kernel` or `userspace`; absent as long as there is no session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What carries this end's packets to the node: `udp`, or `tcp` where that brings nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// When the session ends, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
}

/// Listed until dropped.
struct Listed {
    number: usize,
    open: Arc<Mutex<BTreeMap<usize, Open>>>,
    connections: Arc<AtomicUsize>,
}

/// Counted until dropped.
struct Counted(Arc<AtomicUsize>);

impl Forwards {
    /// A client for whoever is logged in at this profile. Nothing is dialled yet.
    ///
    /// # Errors
    /// When nobody is logged in, or the profile cannot be read.
    pub fn new(profile: Profile) -> Result<Self, ForwardError> {
        profile.login()?;
        let key = profile.device_key()?;
        let client = Client::start(Arc::new(Person::new(profile)), key)?;
        Ok(Self { client, open: Arc::default(), next: AtomicUsize::new(0) })
    }

    /// Opens the session of a target, so that what is wrong with it shows now.
    ///
    /// # Errors
    /// When the node denies it, or it cannot be reached.
    pub async fn prepare(&self, target: &Target) -> Result<(), ForwardError> {
        self.session(target).await.map(drop)
    }

    /// What there is, in the order of its making.
    pub fn status(&self) -> Vec<ForwardStatus> {
        let sessions = self.client.sessions();
        let of = |open: &Open| {
            let Target { application, destination } = &open.target;
            let session = sessions
                .iter()
                .find(|session| session.application == *application && session.destination == *destination);
            ForwardStatus {
                application: application.clone(),
                destination: destination.as_ref().map(Authority::to_string),
                protocol: open.carried,
                listen: open.listens,
                connections: open.connections.load(Ordering::Relaxed),
                path: session.and_then(|session| session.path).map(|path| path.as_str().to_owned()),
                carrier: session.map(|session| session.carrier.as_str().to_owned()),
                expires_at: session.map(|session| {
                    let UnixTime(at) = session.expires;
                    at
                }),
            }
        };
        self.lock().values().map(of).collect()
    }

    /// A directory of this profile for sockets of processes.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn run_directory(profile: &Profile) -> Result<PathBuf, PrivateFileError> {
        let directory = profile.directory().join("run");
        private_file::make_directory(&directory)?;
        Ok(directory)
    }

    /// Ends everything in good order, soon.
    pub async fn stop(&self) {
        self.client.stop().await;
    }

    fn list(&self, target: &Target, carried: Carried, listens: Option<SocketAddr>) -> Listed {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let connections = Arc::new(AtomicUsize::new(0));
        let target = target.clone();
        self.lock().insert(number, Open { target, carried, listens, connections: Arc::clone(&connections) });
        Listed { number, open: Arc::clone(&self.open), connections }
    }

    async fn session(&self, target: &Target) -> Result<Arc<Session>, ForwardError> {
        session(&self.client, target).await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    fn count(&self) -> Counted {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(&self.connections))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn session(client: &Client, target: &Target) -> Result<Arc<Session>, ForwardError> {
    let Target { application, destination } = target;
    client.session(application, destination.as_ref()).await.map_err(|error: OpenError| {
        ForwardError::Application { application: application.clone(), why: error.to_string() }
    })
}

/// A stream of the target's session, or of another one where that has just ended.
async fn open_tcp(
    client: &Client,
    target: &Target,
) -> Result<(Arc<Session>, SendStream, RecvStream), ForwardError> {
    let first = session(client, target).await?;
    let (session, opened) = match first.open_tcp().await {
        Err(StreamError::Ended(_)) => {
            let second = session(client, target).await?;
            let opened = second.open_tcp().await;
            (second, opened)
        }
        opened => (first, opened),
    };
    let (send, recv) = opened.map_err(|error| of_stream(target, &error))?;
    Ok((session, send, recv))
}

async fn open_udp(client: &Client, target: &Target) -> Result<UdpFlow, ForwardError> {
    let first = session(client, target).await?;
    let opened = match first.open_udp().await {
        Err(StreamError::Ended(_)) => session(client, target).await?.open_udp().await,
        opened => opened,
    };
    opened.map_err(|error| of_stream(target, &error))
}

fn of_stream(target: &Target, error: &StreamError) -> ForwardError {
    ForwardError::Application { application: target.application.clone(), why: error.to_string() }
}

/// A forward's trouble, which ends one connection and not the forward.
fn complain(error: &ForwardError) {
    say(&error.to_string());
}

#[cfg(test)]
mod tests;
