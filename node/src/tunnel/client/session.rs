//! One private session at the client: its leg, its end-to-end connection, and what runs over that.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ConnectionId, RecvStream, SendStream};
use tokio::sync::{SetOnce, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::clock;
use crate::flow::UnixTime;

use super::super::access_wire::{ALPN_HOLDING, Opened};
use super::super::carrier::{Carrier, LegWay, Route};
use super::super::control::{self, FrameReader};
use super::super::end_to_end::{self, Carries, Flow, Flows, Reply, Request, SessionCode, Use, probe_timeout};
use super::super::identity::{KeyHash, SERVER_NAME};
use super::super::relay::wire::{BindKey, Ticket};
use super::super::relay::{BoundLeg, End, Leg, LegAddress, LegState, SessionRef};
use super::super::transport::{is_our_refusal, speaks};
use super::super::wire::{DialFailure, EndReason, RelayPath};
use super::early::EarlyLeg;
use super::hearing::{Heard, Hearing};
use super::{Notice, OpenError, SessionStatus, Shared, Wanted};

/// The connector gets so long for the handshake, and to answer a stream's request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
const REPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// The person is told so long before a session's time is over.
const ANNOUNCE: Duration = Duration::from_secs(300);

/// The wall clock is looked at so often, since it may be set.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(5);

/// How often it is looked whether the connector is heard.
const LISTEN_EVERY: Duration = Duration::from_secs(1);

/// The last packets get so long to leave.
const PARTING_TIME: Duration = Duration::from_millis(300);

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionEnd {
    #[error("the session was closed")]
    Closed,
    #[error("the session is over: {0}")]
    ByNode(EndReason),
    #[error("the session did not survive a lost connection: {0}")]
    NotResumed(String),
    #[error("the session's time is over")]
    Expired,
    #[error("the node's UDP port does not answer, or does not let this client through")]
    Unbound,
    #[error("the connector ended the session: {0}")]
    ByConnector(String),
}

impl From<EndReason> for SessionEnd {
    /// What the node says. Whether it or this end sees first that time is over makes no difference.
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Expired => Self::Expired,
            other => Self::ByNode(other),
        }
    }
}

/// Why there is no stream.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the application cannot be reached: {0}")]
    Down(DialFailure),
    #[error("the connector does not connect this client to that destination")]
    Refused,
    #[error("the connector is about to stop, or carries as much as it can")]
    Busy,
    #[error("the connector does not answer")]
    Silent,
    #[error("{0}")]
    Ended(SessionEnd),
}

/// A session that is alive until [`Self::end`] says otherwise.
pub(crate) struct Session {
    wanted: Wanted,
    session: SessionRef,
    leg: Arc<BoundLeg>,
    address: LegAddress,
    connector: KeyHash,
    terms: Mutex<Terms>,
    path: Mutex<Option<RelayPath>>,
    carrier: Mutex<Carrier>,
    end: watch::Sender<Option<SessionEnd>>,
    through: SetOnce<(Connection, Arc<Flows>)>,
    flow: AtomicU32,
    /// Where the first packets go, for the node to know them: it holds them until the leg is in force.
    ahead: Option<Ticket>,
}

struct Terms {
    grant: Vec<u8>,
    expires: UnixTime,
}

/// How a session comes to its leg.
pub(super) enum Start<'a> {
    /// It has one, which binds already.
    With(EarlyLeg),
    /// By a route.
    At(&'a Arc<Route>),
}

impl Session {
    /// Binds the leg of a session that the node has opened over `control`.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        control: &Connection,
        start: Start<'_>,
        wanted: Wanted,
        opened: Opened,
    ) -> Result<(Arc<Self>, LegWay), OpenError> {
        let Opened { session, ticket, grant, connector, expires, .. } = opened;
        let node_holds = speaks(control, ALPN_HOLDING);
        let key = BindKey::export(control, session, Leg::Client).map_err(|_| OpenError::Protocol)?;
        let (leg, address, way) = match start {
            Start::With(early) => early.become_of(key, ticket, session),
            Start::At(route) => {
                let (socket, way) = route.leg().map_err(|error| OpenError::Socket(error.to_string()))?;
                let start = |now| End::start(key, ticket, session, Leg::Client, 0, now);
                let (leg, socket) = BoundLeg::start(socket, control.remote_address(), start);
                (leg, shared.legs.add(socket), way)
            }
        };
        if node_holds {
            leg.node_holds();
        }
        if let Some(was) = shared.login.remember(&wanted.application, connector) {
            let application = wanted.application.clone();
            shared.login.notify(Notice::ConnectorChanged { application, was, is: connector });
        }
        let session = Self {
            wanted,
            session,
            leg,
            address,
            connector,
            terms: Mutex::new(Terms { grant, expires }),
            path: Mutex::default(),
            carrier: Mutex::new(way.carrier()),
            end: watch::Sender::new(None),
            through: SetOnce::new(),
            flow: AtomicU32::new(0),
            ahead: node_holds.then_some(ticket),
        };
        Ok((Arc::new(session), way))
    }

    /// The session goes on over another control connection. False: it cannot.
    pub(super) fn go_on(&self, control: &Connection, opened: &Opened) -> bool {
        let Opened { session, ticket, connector, expires, .. } = *opened;
        if (session, connector) != (self.session, self.connector) {
            return false;
        }
        let Ok(key) = BindKey::export(control, session, Leg::Client) else { return false };
        *self.terms() = Terms { grant: opened.grant.clone(), expires };
        self.leg.rekey(key, ticket);
        true
    }

    /// Bind number `counter` is in force.
    pub(super) fn ready(&self, counter: u64, path: RelayPath) {
        *self.path.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
        self.leg.ready(counter);
    }

    /// Waits for the leg, or until the node holds what is sent by it, and connects to the connector.
    pub(super) async fn connect(&self, shared: &Shared) -> Result<(), OpenError> {
        let mut end = self.end.subscribe();
        let bound = tokio::select! {
            bound = self.leg.wait_may_send() => bound,
            Ok(end) = end.wait_for(Option::is_some) => {
                return Err(OpenError::Ended(end.clone().unwrap_or(SessionEnd::Closed)));
            }
        };
        if !bound {
            self.finish(SessionEnd::Unbound);
            return Err(OpenError::Ended(SessionEnd::Unbound));
        }
        let room = shared.rooms.take("", Use::Either);
        let mut config = end_to_end::client_config(&shared.key, self.connector, &room)
            .map_err(|error| OpenError::Socket(error.to_string()))?;
        if let Some(ticket) = self.ahead {
            config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&ticket)));
        }
        let connecting = shared
            .endpoint
            .connect_with(config, self.address.socket_addr(), SERVER_NAME)
            .map_err(|error| OpenError::Socket(error.to_string()))?;
        // A leg that is given up ends the session.
        let silent = async {
            self.leg.wait_ready().await;
            sleep(HANDSHAKE_TIMEOUT).await;
        };
        let connection = tokio::select! {
            connected = connecting => match connected {
                Ok(connection) => connection,
                Err(ConnectionError::TransportError(error)) if is_our_refusal(&error) => {
                    return Err(OpenError::WrongConnector);
                }
                Err(ConnectionError::TimedOut) => return Err(OpenError::Silent),
                Err(error) => return Err(OpenError::Ended(SessionEnd::ByConnector(error.to_string()))),
            },
            () = silent => return Err(OpenError::Silent),
            Ok(end) = end.wait_for(Option::is_some) => {
                return Err(OpenError::Ended(end.clone().unwrap_or(SessionEnd::Closed)));
            }
        };
        self.leg.set_pto(probe_timeout(&connection));
        let flows = Flows::new(connection.clone(), room);
        // There is one caller, and it calls once.
        let _ = self.through.set((connection, flows));
        Ok(())
    }

    /// A TCP connection of the connector's to the application: what is to be sent, and what comes.
    pub(crate) async fn open_tcp(&self) -> Result<(SendStream, RecvStream), StreamError> {
        self.open(Carries::Tcp).await
    }

    /// A UDP flow from the connector to the application.
    pub(crate) async fn open_udp(&self) -> Result<UdpFlow, StreamError> {
        let Some((_, flows)) = self.through.get() else { return Err(self.ended()) };
        // Numbers come again after four billion flows; one that is still open is passed over.
        let flow = (0..=u32::MAX).find_map(|_| flows.add(self.flow.fetch_add(1, Ordering::Relaxed)));
        let flow = flow.ok_or(StreamError::Busy)?;
        let (send, recv) = self.open(Carries::Udp { flow: flow.number() }).await?;
        Ok(UdpFlow { flow, _send: send, recv })
    }

    async fn open(&self, carries: Carries) -> Result<(SendStream, RecvStream), StreamError> {
        let Some((connection, _)) = self.through.get() else { return Err(self.ended()) };
        self.leg.set_pto(probe_timeout(connection));
        let exchange = async {
            let (mut send, recv) = connection.open_bi().await.map_err(|_| self.ended())?;
            let request = Request { carries, destination: self.wanted.destination.clone() };
            control::send(&mut send, &request).await.map_err(|_| self.ended())?;
            let mut reader = FrameReader::new(recv);
            let reply = reader.next::<Reply>().await.ok().flatten().ok_or_else(|| self.ended())?;
            Ok((reply, send, reader.into_stream()))
        };
        let mut end = self.end.subscribe();
        let answered = tokio::select! {
            answered = timeout(REPLY_TIMEOUT, exchange) => answered.map_err(|_| StreamError::Silent)??,
            _ = end.wait_for(Option::is_some) => return Err(self.ended()),
        };
        match answered {
            (Reply::Opened, send, recv) => Ok((send, recv)),
            (Reply::Refused, ..) => Err(StreamError::Refused),
            (Reply::Down(failure), ..) => Err(StreamError::Down(failure)),
            (Reply::Busy, ..) => Err(StreamError::Busy),
        }
    }

    /// Connects by the same leg once more.
    #[cfg(test)]
    pub(super) fn connect_again(&self, shared: &Shared) -> quinn::Connecting {
        let room = shared.rooms.take("", Use::Either);
        let config = end_to_end::client_config(&shared.key, self.connector, &room).unwrap();
        shared.endpoint.connect_with(config, self.address.socket_addr(), SERVER_NAME).unwrap()
    }

    /// Sends by its leg what another endpoint has made.
    #[cfg(test)]
    pub(super) fn inject(&self, shared: &Shared, contents: &[u8]) {
        use quinn::AsyncUdpSocket as _;

        let destination = self.address.socket_addr();
        let transmit =
            quinn::udp::Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None };
        shared.legs.try_send(&transmit).unwrap();
    }

    /// Why it is over, if it is.
    pub(crate) fn end(&self) -> Option<SessionEnd> {
        self.end.borrow().clone()
    }

    /// Waits until it is over.
    #[cfg(test)]
    pub(crate) async fn wait_end(&self) -> SessionEnd {
        let mut end = self.end.subscribe();
        let end = end.wait_for(Option::is_some).await;
        end.ok().and_then(|end| end.clone()).unwrap_or(SessionEnd::Closed)
    }

    /// Ends it here, for the first reason that is given.
    pub(super) fn finish(&self, why: SessionEnd) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(why);
            }
            first
        });
    }

    pub(super) const fn session_ref(&self) -> SessionRef {
        self.session
    }

    pub(super) fn grant(&self) -> Vec<u8> {
        self.terms().grant.clone()
    }

    pub(super) fn status(&self) -> SessionStatus {
        SessionStatus {
            application: self.wanted.application.clone(),
            destination: self.wanted.destination.clone(),
            path: *self.path.lock().unwrap_or_else(PoisonError::into_inner),
            carrier: *self.carrier.lock().unwrap_or_else(PoisonError::into_inner),
            expires: self.terms().expires,
        }
    }

    /// Keeps the session for as long as it lasts, and takes it down.
    pub(super) async fn keep(self: Arc<Self>, way: LegWay, shared: Arc<Shared>) {
        let moved = |socket, carrier| {
            *self.carrier.lock().unwrap_or_else(PoisonError::into_inner) = carrier;
            shared.legs.replace(self.address, self.leg.move_to(socket));
        };
        let mut end = self.end.subscribe();
        let mut state = self.leg.state();
        let why = tokio::select! {
            never = Arc::clone(&self.leg).run() => match never {},
            _ = end.wait_for(Option::is_some) => SessionEnd::Closed,
            _ = state.wait_for(|state| *state == LegState::GaveUp) => SessionEnd::Unbound,
            () = self.expiry(&shared) => SessionEnd::Expired,
            never = way.keep_going(|time| self.leg.heard_within(time), moved) => match never {},
            never = self.listen(&shared) => match never {},
            why = self.connector_ends() => why,
        };
        self.finish(why);
        let end = self.ended_as();
        if end != SessionEnd::Closed {
            let application = self.wanted.application.clone();
            shared.login.notify(Notice::Ended { application, end });
        }
        if let Some((connection, _)) = self.through.get() {
            connection.close(SessionCode::Closed.into(), b"");
        }
        // The close has to leave by the leg.
        sleep(PARTING_TIME).await;
        shared.legs.remove(self.address);
    }

    async fn connector_ends(&self) -> SessionEnd {
        let (connection, flows) = self.through.wait().await;
        let error = flows.run().await;
        match error {
            ConnectionError::LocallyClosed => SessionEnd::Closed,
            ConnectionError::Reset => SessionEnd::ByConnector("it has restarted".to_owned()),
            ConnectionError::TimedOut => SessionEnd::ByConnector("it is not heard any more".to_owned()),
            ConnectionError::ApplicationClosed(close) if close.error_code == SessionCode::Leaving.into() => {
                SessionEnd::ByConnector("it stops".to_owned())
            }
            ConnectionError::ApplicationClosed(close) if close.error_code == SessionCode::Expired.into() => {
                SessionEnd::Expired
            }
            _ => {
                // Whoever ended it, the node says why a moment later, if it was the node's doing.
                let mut end = self.end.subscribe();
                let _ = timeout(Duration::from_secs(1), end.wait_for(Option::is_some)).await;
                SessionEnd::ByConnector(
                    connection.close_reason().map_or_else(String::new, |why| why.to_string()),
                )
            }
        }
    }

    /// Returns when the session's time is over; says so before.
    async fn expiry(&self, shared: &Shared) {
        let mut announced = None;
        loop {
            let expires = self.terms().expires;
            let left = expires.0.saturating_sub(clock::now().0);
            let Ok(left) = u64::try_from(left).map(Duration::from_secs) else { return };
            if left.is_zero() {
                return;
            }
            let connected = self.through.get().is_some();
            if left <= ANNOUNCE && announced != Some(expires) && connected {
                announced = Some(expires);
                let application = self.wanted.application.clone();
                shared.login.notify(Notice::Expires { application, left });
            }
            tokio::select! {
                () = sleep(left.min(LOOK_AT_CLOCK)) => {}
                _ = self.through.wait(), if !connected => {}
            }
        }
    }

    /// Tells the person when nothing comes from the connector any more, and when something does again.
    async fn listen(&self, shared: &Shared) -> Infallible {
        let (connection, _) = self.through.wait().await;
        let (began, mut hearing) = (Instant::now(), Hearing::default());
        loop {
            sleep(LISTEN_EVERY).await;
            let stats = connection.stats();
            let (sent, received) = (stats.udp_tx.datagrams, stats.udp_rx.datagrams);
            let application = || self.wanted.application.clone();
            match hearing.look(sent, received, began.elapsed()) {
                Some(Heard::Nothing(silence)) => {
                    shared.login.notify(Notice::Silent { application: application(), silence });
                }
                Some(Heard::Again) => {
                    shared.login.notify(Notice::HeardAgain { application: application() });
                }
                None => {}
            }
        }
    }

    fn ended(&self) -> StreamError {
        StreamError::Ended(self.ended_as())
    }

    fn ended_as(&self) -> SessionEnd {
        self.end().unwrap_or(SessionEnd::Closed)
    }

    fn terms(&self) -> MutexGuard<'_, Terms> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.status().fmt(f)
    }
}

/// One UDP flow; over when dropped.
#[derive(Debug)]
pub(crate) struct UdpFlow {
    flow: Flow,
    _send: SendStream,
    recv: RecvStream,
}

impl UdpFlow {
    /// Bytes of all flows of the session that wait to be received.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.flow.flows().held()
    }

    /// And how many may.
    #[cfg(test)]
    pub(crate) fn most_held(&self) -> usize {
        self.flow.flows().most_held()
    }

    pub(crate) async fn send(&self, payload: &Bytes) -> Result<(), ConnectionError> {
        self.flow.send(payload).await
    }

    /// The next payload; nothing once the connector has ended the flow or the session is over.
    pub(crate) async fn receive(&mut self) -> Option<Bytes> {
        let mut nothing = [0; 1];
        tokio::select! {
            payload = self.flow.receive() => payload,
            _ = self.recv.read(&mut nothing) => None,
        }
    }
}
