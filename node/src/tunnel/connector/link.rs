//! One connection of a connector to a node.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::super::carrier::{Connected, Route, Routes, Web};
use super::super::control::{self, ControlError, FrameReader};
use super::super::dial::dial;
use super::super::pipe::pipe;
use super::super::reach::{ReachError, reach};
use super::super::relay::SessionRef;
use super::super::session::{ConnectorAction, ConnectorInput, ConnectorSession, Credential};
use super::super::wire::{
    Authority, CloseCode, ConnectorName, DeviceSecret, NodeFrame, OpenReply, OpenRequest, Refusal, StreamCode,
};
use super::knocker::Knocker;
use super::origins::{Origins, permits};
use super::sessions::Sessions;

/// The node gets so long to name the origin of a stream that it has opened.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The node gets so long to answer an enrolment in full.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Ends of sessions that wait to be told to the node.
const ENDED_QUEUE: usize = 64;

/// Running streams get so long to end when the connector stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The last packets get so long to leave.
const PARTING_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Reach(#[from] ReachError),
    #[error("it does not answer")]
    Timeout,
    #[error(transparent)]
    Refused(Refusal),
    #[error("it broke the protocol")]
    Protocol,
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("the connector stops")]
    Shutdown,
}

impl LinkError {
    pub(super) const fn is_wrong_node(&self) -> bool {
        matches!(self, Self::Reach(ReachError::WrongNode))
    }
}

/// Dials nodes.
pub(super) struct Dialer {
    allow: Option<BTreeSet<Authority>>,
    knocker: Arc<Knocker>,
    routes: Routes,
    /// Absent where a connection is for enrolment only.
    sessions: Option<Arc<Sessions>>,
}

impl Dialer {
    /// Dials with `client`, and over TCP at `web` where UDP brings nothing.
    pub(super) fn new(
        client: ClientConfig,
        web: Option<Web>,
        allow: Option<BTreeSet<Authority>>,
        knocker: Knocker,
        sessions: Option<Arc<Sessions>>,
    ) -> Self {
        let knocker = Arc::new(knocker);
        let knocking = Arc::clone(&knocker);
        let routes = Routes::new(web, Arc::new(move || knocking.knocking(&client)));
        Self { allow, knocker, routes, sessions }
    }

    /// Says who this connector is, and comes back with the name that the node knows it by and what to knock with
    /// from now on.
    pub(super) async fn introduce(
        &self,
        node: &Authority,
        credential: Credential,
    ) -> Result<(ConnectorName, DeviceSecret), LinkError> {
        let connected = self.connect(node, 0).await?;
        let Connected { endpoint, connection, .. } = &connected;
        let introduced = timeout(INTRODUCTION_TIMEOUT, async {
            let mut link = Link::open(connection, credential, self.allow.clone(), None).await?;
            let mut welcomed = None;
            loop {
                match (link.step(connection, None).await?, &welcomed) {
                    (Some(Milestone::Welcome(name)), _) => welcomed = Some(name),
                    (Some(Milestone::Device(device)), Some(name)) => {
                        return Ok::<_, LinkError>((name.clone(), device));
                    }
                    (Some(Milestone::Device(_) | Milestone::NodeDrains) | None, _) => {}
                }
            }
        });
        let introduced = introduced.await.map_err(|_| LinkError::Timeout)??;
        connection.close(CloseCode::Shutdown.into(), b"");
        let _ = timeout(PARTING_TIMEOUT, endpoint.wait_idle()).await;
        Ok(introduced)
    }

    /// Connects and serves until the connection ends, which is how long it returns.
    pub(super) async fn serve(
        &self,
        node: &Authority,
        slot: usize,
        shutdown: &CancellationToken,
    ) -> Result<Duration, LinkError> {
        let connected = tokio::select! {
            connected = self.connect(node, slot) => connected?,
            () = shutdown.cancelled() => return Err(LinkError::Shutdown),
        };
        let Connected { endpoint, connection, .. } = &connected;
        let since = Instant::now();
        let private = self.sessions.clone().map(|sessions| {
            let (tell_ended, ended) = mpsc::channel(ENDED_QUEUE);
            Private { sessions, node: node.clone(), route: Arc::clone(&connected.route), ended, tell_ended }
        });
        let mut link = Link::open(connection, Credential::Key, self.allow.clone(), private).await?;
        let ended = loop {
            match link.step(connection, Some(shutdown)).await {
                Ok(Some(Milestone::Welcome(connector))) => {
                    info!(%connector, %node, address = %connection.remote_address(), slot, "connected");
                }
                Ok(Some(Milestone::Device(device))) => self.knocker.adopt(device),
                Ok(Some(Milestone::NodeDrains)) => info!(%node, slot, "the node is about to stop"),
                Ok(None) => {}
                Err(error) => break error,
            }
        };
        let code = match &ended {
            LinkError::Protocol => CloseCode::Protocol,
            LinkError::Timeout => CloseCode::Timeout,
            _ => CloseCode::Shutdown,
        };
        connection.close(code.into(), b"");
        let _ = timeout(PARTING_TIMEOUT, endpoint.wait_idle()).await;
        match ended {
            error @ (LinkError::Refused(_) | LinkError::Protocol | LinkError::Timeout) => Err(error),
            error => {
                debug!(%node, slot, %error, "the connection has ended");
                Ok(since.elapsed())
            }
        }
    }

    /// Tries the addresses of `node`, beginning with another one for each slot.
    async fn connect(&self, node: &Authority, slot: usize) -> Result<Connected, LinkError> {
        Ok(reach(node, slot, &self.routes).await?)
    }
}

enum Milestone {
    Welcome(ConnectorName),
    Device(DeviceSecret),
    NodeDrains,
}

/// The control session and the origin streams of one connection.
struct Link {
    session: ConnectorSession,
    began: Instant,
    send: SendStream,
    reader: FrameReader,
    origins: watch::Sender<Origins>,
    streams: TaskTracker,
    serving: Arc<Serving>,
    drain_until: Option<Instant>,
    private: Option<Private>,
}

/// The private sessions that come over a connection.
struct Private {
    sessions: Arc<Sessions>,
    /// As it is called in the state, whatever its address.
    node: Authority,
    /// By which the connection came; the sessions' legs go by it too.
    route: Arc<Route>,
    /// Sessions of this connection that have ended at this end.
    ended: mpsc::Receiver<SessionRef>,
    tell_ended: mpsc::Sender<SessionRef>,
}

/// What every origin stream looks at.
struct Serving {
    allow: Option<BTreeSet<Authority>>,
    draining: CancellationToken,
}

impl Link {
    async fn open(
        connection: &Connection,
        credential: Credential,
        allow: Option<BTreeSet<Authority>>,
        private: Option<Private>,
    ) -> Result<Self, LinkError> {
        let (mut send, recv) = connection.open_bi().await?;
        let (session, opening) = ConnectorSession::new(credential, Duration::ZERO);
        control::send(&mut send, &opening).await?;
        Ok(Self {
            session,
            began: Instant::now(),
            send,
            reader: FrameReader::new(recv),
            origins: watch::Sender::default(),
            streams: TaskTracker::new(),
            serving: Arc::new(Serving { allow, draining: CancellationToken::new() }),
            drain_until: None,
            private,
        })
    }

    /// Waits for one thing to happen and does what follows from it.
    async fn step(
        &mut self,
        connection: &Connection,
        shutdown: Option<&CancellationToken>,
    ) -> Result<Option<Milestone>, LinkError> {
        let deadline = self.session.deadline();
        let sessions = self.private.as_ref().map(|private| Arc::clone(&private.sessions));
        let input = tokio::select! {
            frame = self.reader.next::<NodeFrame>() => match frame {
                Ok(Some(frame)) => ConnectorInput::Frame(frame),
                Ok(None) => return Err(LinkError::Shutdown),
                Err(error) if error.is_protocol() => return Err(LinkError::Protocol),
                Err(error) => return Err(error.into()),
            },
            stream = connection.accept_bi() => {
                let (send, recv) = stream?;
                let origins = self.origins.subscribe();
                self.streams.spawn(origin_stream(Arc::clone(&self.serving), origins, send, recv));
                return Ok(None);
            }
            () = sleep_until(self.began + deadline.unwrap_or_default()), if deadline.is_some() => {
                ConnectorInput::Timer
            }
            () = cancelled(shutdown), if self.drain_until.is_none() => {
                self.drain_until = Some(Instant::now() + DRAIN_TIMEOUT);
                self.serving.draining.cancel();
                self.streams.close();
                if let Some(private) = &self.private {
                    private.sessions.drain();
                }
                ConnectorInput::Drain
            }
            session = ended(self.private.as_mut()) => ConnectorInput::SessionEnded(session),
            () = drained(&self.streams, sessions, self.drain_until) => return Err(LinkError::Shutdown),
        };
        self.perform(connection, input).await
    }

    async fn perform(
        &mut self,
        connection: &Connection,
        input: ConnectorInput,
    ) -> Result<Option<Milestone>, LinkError> {
        let mut milestone = None;
        let mut actions = VecDeque::from(self.session.handle(input, self.began.elapsed()));
        while let Some(action) = actions.pop_front() {
            match action {
                ConnectorAction::Send(frame) => control::send(&mut self.send, &frame).await?,
                ConnectorAction::Welcome(name) => {
                    milestone = Some(Milestone::Welcome(name));
                    if let Some(private) = &self.private {
                        let takes = ConnectorInput::TakesSessions(private.sessions.instance());
                        actions.extend(self.session.handle(takes, self.began.elapsed()));
                    }
                }
                ConnectorAction::Device(device) => milestone = Some(Milestone::Device(device)),
                ConnectorAction::NodeDrains => milestone = Some(Milestone::NodeDrains),
                ConnectorAction::Refused(refusal) => return Err(LinkError::Refused(refusal)),
                ConnectorAction::Configure { epoch, origins } => {
                    debug!(epoch, origins = origins.len(), "the node's origins");
                    self.origins.send_replace(Origins { epoch, of_node: origins.into_iter().collect() });
                }
                // These come only to a connector that has said that it takes sessions.
                ConnectorAction::Offer(offer) => {
                    let Some(private) = &self.private else { continue };
                    let session = offer.session;
                    let control = (connection, &private.route);
                    let answer =
                        private.sessions.offer(&private.node, control, offer, private.tell_ended.clone());
                    let input = match answer {
                        Ok(()) => ConnectorInput::Taken(session),
                        Err(why) => ConnectorInput::Declined(session, why),
                    };
                    actions.extend(self.session.handle(input, self.began.elapsed()));
                }
                ConnectorAction::SessionReady { session, counter, path } => {
                    let Some(private) = &self.private else { continue };
                    debug!(index = session.index, path = path.as_str(), "the leg of a session is in force");
                    private.sessions.ready(&private.node, session, counter);
                }
                ConnectorAction::EndSession { session, reason } => {
                    let Some(private) = &self.private else { continue };
                    private.sessions.end(&private.node, session, reason);
                }
                ConnectorAction::Close(CloseCode::Timeout) => return Err(LinkError::Timeout),
                ConnectorAction::Close(CloseCode::Shutdown) => return Err(LinkError::Shutdown),
                ConnectorAction::Close(_) => return Err(LinkError::Protocol),
            }
        }
        Ok(milestone)
    }
}

async fn cancelled(shutdown: Option<&CancellationToken>) {
    match shutdown {
        Some(shutdown) => shutdown.cancelled().await,
        None => std::future::pending().await,
    }
}

async fn ended(private: Option<&mut Private>) -> SessionRef {
    match private {
        // Its other half is beside it, so it never ends.
        Some(private) => match private.ended.recv().await {
            Some(session) => session,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// During a drain: every stream has ended, or has had its time.
async fn drained(streams: &TaskTracker, sessions: Option<Arc<Sessions>>, until: Option<Instant>) {
    match until {
        Some(until) => {
            let all = async {
                streams.wait().await;
                if let Some(sessions) = sessions {
                    sessions.drained().await;
                }
            };
            let _ = timeout_at(until, all).await;
        }
        None => std::future::pending().await,
    }
}

/// One stream of the node's: from its request to its end.
async fn origin_stream(
    serving: Arc<Serving>,
    mut origins: watch::Receiver<Origins>,
    mut send: SendStream,
    recv: RecvStream,
) {
    let mut reader = FrameReader::new(recv);
    let request = match timeout(REQUEST_TIMEOUT, reader.next::<OpenRequest>()).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None) | Err(_)) | Err(_) => {
            let _ = send.reset(StreamCode::Protocol.into());
            let _ = reader.into_stream().stop(VarInt::from(StreamCode::Protocol));
            return;
        }
    };
    let mut recv = reader.into_stream();
    let (reply, origin) = if serving.draining.is_cancelled() {
        (OpenReply::Draining, None)
    } else if !permits(&mut origins, serving.allow.as_ref(), &request).await {
        warn!(origin = %request.origin, "an origin that this connector does not serve was asked for");
        (OpenReply::Refused, None)
    } else {
        // A request that the node gave up need not be dialled to the end.
        let dialled = tokio::select! {
            dialled = dial(&request.origin) => dialled,
            _ = send.stopped() => return,
        };
        match dialled {
            Ok(origin) => (OpenReply::Opened, Some(origin)),
            Err(failure) => {
                warn!(origin = %request.origin, %failure, "the origin cannot be reached");
                (OpenReply::OriginDown(failure), None)
            }
        }
    };
    if control::send(&mut send, &reply).await.is_err() {
        return;
    }
    match origin {
        Some(origin) => {
            if let Err(error) = pipe(origin, send, recv).await {
                debug!(origin = %request.origin, %error, "an origin connection was cut");
            }
        }
        None => {
            let _ = recv.stop(StreamCode::Cancelled.into());
            let _ = send.finish();
            let _ = send.stopped().await;
        }
    }
}
