//! One connection of a connector to a node.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::super::carrier::{Connected, DialError, Routes, Web};
use super::super::control::{self, ControlError, FrameReader};
use super::super::dial::dial;
use super::super::pipe::pipe;
use super::super::session::{ConnectorAction, ConnectorInput, ConnectorSession, Credential};
use super::super::wire::{
    Authority, CloseCode, ConnectorName, DeviceSecret, NodeFrame, OpenReply, OpenRequest, Refusal, StreamCode,
};
use super::knocker::Knocker;
use super::origins::{Origins, permits};

/// Addresses of one node that are tried in one attempt.
const MAX_ADDRESSES: usize = 8;

/// The node gets so long to name the origin of a stream that it has opened.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The node gets so long to answer an enrolment in full.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Running streams get so long to end when the connector stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The last packets get so long to leave.
const PARTING_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("its name has no address")]
    NoAddress,
    #[error("its name cannot be resolved: {0}")]
    Resolve(io::Error),
    #[error("it does not answer")]
    Timeout,
    #[error("it has another key than this connector was enrolled with")]
    WrongNode,
    #[error(transparent)]
    Refused(Refusal),
    #[error("it broke the protocol")]
    Protocol,
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Dial(DialError),
    #[error("the connector stops")]
    Shutdown,
}

impl LinkError {
    pub(super) const fn is_wrong_node(&self) -> bool {
        matches!(self, Self::WrongNode)
    }
}

impl From<DialError> for LinkError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Timeout => Self::Timeout,
            DialError::Connection(ConnectionError::TransportError(error)) if is_our_refusal(&error) => {
                Self::WrongNode
            }
            DialError::Connection(error) => error.into(),
            other => Self::Dial(other),
        }
    }
}

/// Dials nodes.
pub(super) struct Dialer {
    allow: Option<BTreeSet<Authority>>,
    knocker: Arc<Knocker>,
    routes: Routes,
}

impl Dialer {
    /// Dials with `client`, and over TCP at `web` where UDP brings nothing.
    pub(super) fn new(
        client: ClientConfig,
        web: Option<Web>,
        allow: Option<BTreeSet<Authority>>,
        knocker: Knocker,
    ) -> Self {
        let knocker = Arc::new(knocker);
        let knocking = Arc::clone(&knocker);
        Self { allow, knocker, routes: Routes::new(web, Arc::new(move || knocking.knocking(&client))) }
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
            let mut link = Link::open(connection, credential, self.allow.clone()).await?;
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
        let mut link = Link::open(connection, Credential::Key, self.allow.clone()).await?;
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
        let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host((node.host(), node.port()))
            .await
            .map_err(LinkError::Resolve)?
            .take(MAX_ADDRESSES)
            .collect();
        if addresses.is_empty() {
            return Err(LinkError::NoAddress);
        }
        let first = slot % addresses.len();
        addresses.rotate_left(first);
        let mut last = LinkError::NoAddress;
        for address in addresses {
            match self.routes.to(address).connect().await.map_err(LinkError::from) {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    debug!(%node, %address, %error, "no connection");
                    last = error;
                }
            }
        }
        Err(last)
    }
}

/// Whether the handshake failed because we did not accept the node's certificate: the error is ours (it has no frame
/// of the peer's) and carries the TLS alert for it (RFC 9001 §4.8).
fn is_our_refusal(error: &quinn_proto::TransportError) -> bool {
    const ACCESS_DENIED: u8 = 49;
    error.code == quinn_proto::TransportErrorCode::crypto(ACCESS_DENIED)
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
        })
    }

    /// Waits for one thing to happen and does what follows from it.
    async fn step(
        &mut self,
        connection: &Connection,
        shutdown: Option<&CancellationToken>,
    ) -> Result<Option<Milestone>, LinkError> {
        let deadline = self.session.deadline();
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
                ConnectorInput::Drain
            }
            () = drained(&self.streams, self.drain_until) => return Err(LinkError::Shutdown),
        };
        self.perform(input).await
    }

    async fn perform(&mut self, input: ConnectorInput) -> Result<Option<Milestone>, LinkError> {
        let mut milestone = None;
        for action in self.session.handle(input, self.began.elapsed()) {
            match action {
                ConnectorAction::Send(frame) => control::send(&mut self.send, &frame).await?,
                ConnectorAction::Welcome(name) => milestone = Some(Milestone::Welcome(name)),
                ConnectorAction::Device(device) => milestone = Some(Milestone::Device(device)),
                ConnectorAction::NodeDrains => milestone = Some(Milestone::NodeDrains),
                ConnectorAction::Refused(refusal) => return Err(LinkError::Refused(refusal)),
                ConnectorAction::Configure { epoch, origins } => {
                    debug!(epoch, origins = origins.len(), "the node's origins");
                    self.origins.send_replace(Origins { epoch, of_node: origins.into_iter().collect() });
                }
                // Come only to a connector that has said that it takes sessions.
                ConnectorAction::Offer(_)
                | ConnectorAction::SessionReady { .. }
                | ConnectorAction::EndSession { .. } => {}
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

/// During a drain: every stream has ended, or has had its time.
async fn drained(streams: &TaskTracker, until: Option<Instant>) {
    match until {
        Some(until) => {
            let _ = timeout_at(until, streams.wait()).await;
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
