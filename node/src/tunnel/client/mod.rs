//! The access client's half of the tunnel: one control connection to the node, and the private sessions it brings.
//!
//! ```text
//! Client::session ── Open ──▶ node ── Opened ──▶ Session                                          control, session
//!        └── leg: a socket of its own, which binds meanwhile ──┘                                   early
//! Session::open_tcp, open_udp ── end to end, by the connector's key ──▶ streams, flows            session
//! ```
//!
//! 1. Nothing is dialled before a session is wanted. Then one connection is kept, with a growing wait in between.
//! 2. There is one session for each application and destination, however many want it.
//! 3. A session outlives the connection that brought it: over the next one it is asked for again, by its grant.
//! 4. A connector that falls silent is told of within seconds; the session waits for it as long as the node does.
//! 5. It ends when the node says so, when its time is over, when its leg cannot be bound, or with its connector.
//!
//! Who logs in, and what is remembered, is the caller's: [`Login`].

mod control;
mod early;
mod hearing;
mod link;
mod session;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{ConnectionError, Endpoint};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::flow::UnixTime;

use super::access_wire::{AccessRefusal, AccessToken, Denial, Ray};
use super::carrier::Carrier;
use super::end_to_end::{self, Rooms};
use super::identity::{KeyHash, TunnelKey};
use super::reach::ReachError;
use super::relay::Legs;
use super::relay::wire::Ticket;
use super::transport::TransportError;
use super::wire::{Authority, DeviceSecret, RelayPath};

pub(crate) use super::end_to_end::MAX_PAYLOAD;
pub(crate) use super::pipe::pipe as carry_tcp;
pub(crate) use session::{Session, SessionEnd, StreamError, UdpFlow};

/// All there is to a session, from the wish to the end-to-end connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(45);

/// Wishes that wait for the control connection.
const QUEUE: usize = 256;

/// What it takes to be let in by a node, fresh.
pub(crate) struct Credentials {
    pub(crate) address: Authority,
    /// Where the node serves HTTPS, at the same addresses: the way over TCP.
    pub(crate) web: Option<Authority>,
    pub(crate) node: KeyHash,
    pub(crate) device: DeviceSecret,
    /// What a first bind may carry, if the node has said.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) token: AccessToken,
    /// How long the token is good for.
    pub(crate) lifetime: Duration,
}

/// Why there are no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoCredentials(pub(crate) String);

pub(crate) type Fresh<'a> = Pin<Box<dyn Future<Output = Result<Credentials, NoCredentials>> + Send + 'a>>;

/// The person's side of a client.
pub(crate) trait Login: Send + Sync + 'static {
    /// Is asked before every dial, and when a token is about to end.
    fn credentials(&self) -> Fresh<'_>;

    /// Keeps the connector's key of an application; the one that was kept, if it was another.
    fn remember(&self, application: &str, connector: KeyHash) -> Option<KeyHash>;

    /// For the person to read.
    fn notify(&self, notice: Notice);
}

/// What a person should know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Notice {
    #[error(
        "the connector of {application} has another key than the last time ({was} before, {is} now): a new connector, or \
         somebody who poses as one; ask whoever runs the node"
    )]
    ConnectorChanged { application: String, was: KeyHash, is: KeyHash },
    #[error("{application}: the session's time is over in {}", in_words(*.left))]
    Expires { application: String, left: Duration },
    #[error(
        "{application}: nothing has come from the connector for {} seconds; the session waits for it",
        .silence.as_secs()
    )]
    Silent { application: String, silence: Duration },
    #[error("{application}: the connector is heard again")]
    HeardAgain { application: String },
    #[error("{application}: {end}")]
    Ended { application: String, end: SessionEnd },
    #[error("the connection to the node is lost ({0}); sessions go on, and it is tried again")]
    Lost(String),
    #[error("connected to the node again")]
    Back,
    #[error("the login could not be renewed: {0}")]
    NotRenewed(String),
}

/// Why there is no session.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{message} ({ray})")]
    Denied { denial: Denial, message: String, ray: Ray },
    #[error(transparent)]
    Refused(#[from] AccessRefusal),
    #[error(transparent)]
    Credentials(#[from] NoCredentials),
    #[error("the node {node} cannot be reached: {why}")]
    Unreachable { node: Authority, why: String },
    #[error("the node did not answer in time")]
    Unanswered,
    #[error("the node broke the protocol: is it of another version?")]
    Protocol,
    #[error("the session has ended: {0}")]
    Ended(SessionEnd),
    #[error("the connector does not have the key that the node named, so it is not spoken to")]
    WrongConnector,
    #[error("the connector does not answer")]
    Silent,
    #[error("there is no socket for the session: {0}")]
    Socket(String),
    #[error("the client stops")]
    Stopped,
}

/// One session, for a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionStatus {
    pub(crate) application: String,
    pub(crate) destination: Option<Authority>,
    /// Absent as long as the leg is not in force.
    pub(crate) path: Option<RelayPath>,
    /// What carries the leg.
    pub(crate) carrier: Carrier,
    pub(crate) expires: UnixTime,
}

/// One access client. Clones are the same; the last one that is dropped ends it.
#[derive(Clone)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

struct Shared {
    key: TunnelKey,
    login: Arc<dyn Login>,
    legs: Legs,
    endpoint: Endpoint,
    /// How many bytes all sessions may make this process hold.
    rooms: Rooms,
    /// One place for each session that anybody has wanted, which one at a time may fill.
    places: Mutex<HashMap<Wanted, Place>>,
}

type Place = Arc<tokio::sync::Mutex<Filled>>;

/// What came of the last who wanted this session.
#[derive(Default)]
enum Filled {
    #[default]
    Empty,
    Session(Arc<Session>),
    Failed(Instant, OpenError),
}

impl Filled {
    /// The session, if it is alive.
    fn session(&self) -> Option<&Arc<Session>> {
        match self {
            Self::Session(session) => Some(session).filter(|session| session.end().is_none()),
            Self::Empty | Self::Failed(..) => None,
        }
    }
}

/// What a session is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wanted {
    application: String,
    destination: Option<Authority>,
}

enum Command {
    Open {
        wanted: Wanted,
        reply: oneshot::Sender<Result<Arc<Session>, OpenError>>,
    },
    /// A session has ended at this end.
    Ended(Arc<Session>),
    /// End everything in good order, then say so.
    Stop(oneshot::Sender<()>),
}

impl Client {
    /// Starts a client whose device key is `key`.
    pub(crate) fn start(login: Arc<dyn Login>, key: TunnelKey) -> Result<Self, TransportError> {
        let legs = Legs::default();
        let endpoint = end_to_end::endpoint(&legs, &key, None)?;
        let rooms = Rooms::new(end_to_end::CLIENT);
        let shared = Arc::new(Shared { key, login, legs, endpoint, rooms, places: Mutex::default() });
        let (commands, queue) = mpsc::channel(QUEUE);
        tokio::spawn(control::run(Arc::clone(&shared), commands.downgrade(), queue));
        Ok(Self { shared, commands })
    }

    /// Connects by a session's leg once more.
    #[cfg(test)]
    pub(crate) fn connect_again(&self, session: &Session) -> quinn::Connecting {
        session.connect_again(&self.shared)
    }

    /// Sends by a session's leg what another endpoint has made.
    #[cfg(test)]
    pub(crate) fn inject(&self, session: &Session, contents: &[u8]) {
        session.inject(&self.shared, contents);
    }

    /// The session with `application`: the one there is, or a new one, ready for streams.
    pub(crate) async fn session(
        &self,
        application: &str,
        destination: Option<&Authority>,
    ) -> Result<Arc<Session>, OpenError> {
        let wanted = Wanted { application: application.to_owned(), destination: destination.cloned() };
        let place = {
            let mut places = self.shared.places.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody waits for and nothing runs in.
            places.retain(|_, place| {
                Arc::strong_count(place) > 1 || place.try_lock().is_ok_and(|place| place.session().is_some())
            });
            Arc::clone(places.entry(wanted.clone()).or_default())
        };
        let since = Instant::now();
        let mut place = place.lock().await;
        match &*place {
            // Whoever waited while this failed need not wait for the same again.
            Filled::Failed(at, error) if *at >= since => return Err(error.clone()),
            filled => {
                if let Some(session) = filled.session() {
                    return Ok(Arc::clone(session));
                }
            }
        }
        let opening = async {
            let (reply, answer) = oneshot::channel();
            let command = Command::Open { wanted, reply };
            self.commands.send(command).await.map_err(|_| OpenError::Stopped)?;
            let session = answer.await.map_err(|_| OpenError::Stopped)??;
            match session.connect(&self.shared).await {
                Ok(()) => Ok(session),
                Err(error) => {
                    session.finish(SessionEnd::Closed);
                    Err(error)
                }
            }
        };
        let outcome = timeout(OPEN_TIMEOUT, opening).await.unwrap_or(Err(OpenError::Unanswered));
        *place = match &outcome {
            Ok(session) => Filled::Session(Arc::clone(session)),
            Err(error) => Filled::Failed(Instant::now(), error.clone()),
        };
        outcome
    }

    /// All sessions that are alive.
    pub(crate) fn sessions(&self) -> Vec<SessionStatus> {
        let places: Vec<Place> = {
            let places = self.shared.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.values().cloned().collect()
        };
        // One that is being opened is none yet.
        let status = |place: &Place| Some(place.try_lock().ok()?.session()?.status());
        let mut all: Vec<SessionStatus> = places.iter().filter_map(status).collect();
        all.sort_by(|a, b| (&a.application, &a.destination).cmp(&(&b.application, &b.destination)));
        all
    }

    /// Ends all sessions and the connection to the node; returns once both have been told, or soon.
    pub(crate) async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop(reply)).await.is_ok() {
            let _ = stopped.await;
        }
    }
}

/// `5 minutes`, or seconds where there are fewer than two.
fn in_words(left: Duration) -> String {
    match left.as_secs() {
        1 => "1 second".to_owned(),
        seconds @ ..120 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", seconds / 60),
    }
}

/// What a connection's end means to somebody who waits for a session.
fn unreachable(node: &Authority, error: &ReachError) -> OpenError {
    let why = match error {
        ReachError::WrongNode => {
            "it has another key than at the login; log in again if it was set up anew".to_owned()
        }
        ReachError::Connection(ConnectionError::TimedOut) => ReachError::Timeout.to_string(),
        other => other.to_string(),
    };
    OpenError::Unreachable { node: node.clone(), why }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("sessions", &self.sessions()).finish_non_exhaustive()
    }
}
