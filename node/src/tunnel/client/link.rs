//! One control connection of a client: what was asked over it, and how it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, SendStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::clock;
use crate::flow::UnixTime;

use super::super::access_wire::{ClientFrame, ClientVersion, RequestId};
use super::super::carrier::{Connected, Route};
use super::super::control::{self, ControlError, FrameReader};
use super::super::relay::SessionRef;
use super::super::relay::wire::Ticket;
use super::super::session::{ClientAction, ClientInput, ClientSession};
use super::super::wire::CloseCode;
use super::early::EarlyLeg;
use super::session::Session;
use super::{Credentials, NoCredentials, OpenError, Wanted};

/// The last frames get so long to arrive, and a close to leave.
const PARTING_TIMEOUT: Duration = Duration::from_millis(500);
pub(super) const CLOSE_TIME: Duration = Duration::from_millis(100);

/// A session that is wanted.
pub(super) struct Wish {
    pub(super) wanted: Wanted,
    pub(super) reply: oneshot::Sender<Result<Arc<Session>, OpenError>>,
    pub(super) attempts: u32,
}

/// What a request is for.
pub(super) enum Asked {
    Open(Wish, Option<EarlyLeg>),
    Resume(Arc<Session>),
}

/// Why a connection is over.
pub(super) enum Over {
    /// Nobody wants the client any more.
    Stopped(Option<oneshot::Sender<()>>),
    /// Trying again right away helps nobody: whoever waits is told.
    Failed(OpenError),
    /// To be tried again.
    Lost(String),
}

/// One control connection.
pub(super) struct Link {
    pub(super) route: Arc<Route>,
    pub(super) machine: ClientSession,
    pub(super) began: Instant,
    send: SendStream,
    pub(super) reader: FrameReader,
    pub(super) asked: BTreeMap<RequestId, Asked>,
    pub(super) welcomed: bool,
    /// What a leg's first bind may carry.
    pub(super) ticket: Option<Ticket>,
    /// When the first token ends, by the clock of this machine.
    pub(super) token_expires: UnixTime,
    /// Seconds that the node's clock is ahead of it, as far as the ends of the token tell.
    pub(super) ahead: i64,
    /// A task of its own: a renewal that is under way is never given up, since its token is good for one use.
    pub(super) renewing: Option<JoinHandle<Result<Credentials, NoCredentials>>>,
}

impl Link {
    pub(super) async fn open(connected: &Connected, credentials: Credentials) -> Result<Self, ControlError> {
        let (mut send, recv) = connected.connection.open_bi().await.map_err(quinn::WriteError::from)?;
        let Credentials { token, lifetime, ticket, .. } = credentials;
        let token_expires = clock::now().after(lifetime);
        let (machine, hello) = ClientSession::new(token, version(), lifetime, Duration::ZERO);
        control::send(&mut send, &hello).await?;
        Ok(Self {
            route: Arc::clone(&connected.route),
            machine,
            began: Instant::now(),
            send,
            reader: FrameReader::new(recv),
            asked: BTreeMap::new(),
            welcomed: false,
            ticket,
            token_expires,
            ahead: 0,
            renewing: None,
        })
    }

    pub(super) async fn request(&mut self, input: ClientInput) -> Result<(), Over> {
        for action in self.machine.handle(input, self.began.elapsed()) {
            if let ClientAction::Send(frame) = action {
                self.send(&frame).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn send(&mut self, frame: &ClientFrame) -> Result<(), Over> {
        control::send(&mut self.send, frame).await.map_err(|error| Over::Lost(error.to_string()))
    }

    /// Closes these sessions, and waits until the node has heard it, or not for long.
    pub(super) async fn take_leave(&mut self, sessions: impl Iterator<Item = &SessionRef>) {
        for session in sessions {
            if self.request(ClientInput::Close(*session)).await.is_err() {
                return;
            }
        }
        let _ = self.send.finish();
        let _ = timeout(PARTING_TIMEOUT, self.send.stopped()).await;
    }
}

/// What comes of a renewal.
pub(super) async fn renewed(
    renewing: &mut Option<JoinHandle<Result<Credentials, NoCredentials>>>,
) -> Result<Credentials, NoCredentials> {
    match renewing {
        Some(task) => task.await.unwrap_or_else(|error| Err(NoCredentials(error.to_string()))),
        None => std::future::pending().await,
    }
}

/// Closes the connection, and waits for the close to leave.
pub(super) async fn part(endpoint: &Endpoint, connection: &Connection) {
    connection.close(CloseCode::Shutdown.into(), b"");
    // Idle is an endpoint only three probe timeouts later (RFC 9000 §10.2), and nothing is lost if the close is.
    let _ = timeout(CLOSE_TIME, endpoint.wait_idle()).await;
}

/// As the node's log shows it.
fn version() -> ClientVersion {
    let known = env!("CARGO_PKG_VERSION").parse();
    known.unwrap_or_else(|_| ClientVersion::unknown())
}
