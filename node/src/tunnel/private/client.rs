//! One access client's control connection, from its `Hello` to its end.
//!
//! 1. TLS has proved the device key. The token names that key and a login; both must be live, in memory and in the store.
//! 2. From then on each request is answered before the next is read, at a bounded pace: a client that asks too fast waits.
//! 3. The connection lives as long as its last token and its login. Its sessions outlive it for as long as it takes a
//!    client to come back.
//!
//! A false accept opens sessions in somebody's name, as far as policy lets that person; a false reject is one more login.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, SendStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::clock;
use crate::event::{Action, Event};
use crate::flow::{ClientId, Reason, UnixTime};
use crate::places::Place;
use crate::session::LiveSession;
use crate::token::Kind;

use super::super::access_wire::{AccessFrame, AccessRefusal, AccessToken, ClientFrame, MAX_APPLICATION};
use super::super::control::{self, ControlError, FrameReader};
use super::super::identity::KeyHash;
use super::super::node::{NodeTunnel, PARTING_TIMEOUT};
use super::super::session::OPENING_TIMEOUT;
use super::super::standing::Standing;
use super::super::wire::{CloseCode, EndReason};
use super::book::ControlId;
use super::ending::login_over;
use super::open::{Asker, Wish};
use super::waiting::Waiting;
use super::{ClientSeat, PrivateSessions, Shared};

/// Connections of one login of a client, and of all of them.
const MAX_OF_CLIENT: usize = 8;
const MAX_CLIENTS: usize = 32_768;

/// Requests that a client may make at once, and so many a second after that.
const BURST: u32 = 256;
const PACE: Duration = Duration::from_millis(20);

/// What waits for a client that does not read: more than all its sessions can ask for. Beyond, it is gone.
const TO_CLIENT: usize = 4096;

impl ClientSeat {
    pub(super) fn tell(&self, frame: AccessFrame) {
        if self.to.try_send(frame).is_err() && self.connection.close_reason().is_none() {
            debug!("an access client does not read what it is told");
            self.connection.close(CloseCode::Timeout.into(), b"control frames are not read");
        }
    }

    /// Its login is over.
    pub(super) fn log_out(&self) {
        self.tell(AccessFrame::Refused(AccessRefusal::LoginEnded));
    }
}

/// Whose connection it is.
struct Proven {
    client: ClientId,
    login: LiveSession,
    token_expires: UnixTime,
}

/// Serves an access client whose device key has the hash `key`. It holds `place` until it is known who it is.
pub(in super::super) async fn serve_client(
    node: &NodeTunnel,
    connection: Connection,
    local: SocketAddr,
    key: KeyHash,
    place: Place,
    shutdown: &CancellationToken,
) {
    let remote = connection.remote_address();
    let Some(address) = node.carried.real(remote) else { return nowhere(&connection) };
    let visit = Visit { node, shared: &node.private.shared, connection: &connection, local, key, address };
    match visit.run(place, shutdown).await {
        Ok(()) => {}
        Err(Over::Refused(refusal, reason)) => {
            node.events.emit(
                Event::new(Action::Connect, false)
                    .address(address)
                    .reason(reason)
                    .detail(refusal.to_string()),
            );
        }
        Err(Over::Control(error)) if error.is_protocol() => {
            connection.close(CloseCode::Protocol.into(), b"malformed frame");
            visit.bad(&error.to_string());
        }
        Err(Over::Control(error)) => debug!(%address, %error, "an access client is gone"),
        Err(Over::Protocol(what)) => {
            connection.close(CloseCode::Protocol.into(), what.as_bytes());
            visit.bad(what);
        }
        Err(Over::Nowhere) => nowhere(&connection),
    }
}

/// Its stream is gone, and it has come by no other way: a request of it could be judged by where it was only.
fn nowhere(connection: &Connection) {
    connection.close(CloseCode::Timeout.into(), b"the stream is gone");
}

/// How a connection ended, unless in good order.
enum Over {
    /// Before it was known who it is.
    Refused(AccessRefusal, Reason),
    Protocol(&'static str),
    Control(ControlError),
    /// It asks for something, and nobody knows from where.
    Nowhere,
}

impl<E: Into<ControlError>> From<E> for Over {
    fn from(error: E) -> Self {
        Self::Control(error.into())
    }
}

struct Visit<'a> {
    node: &'a NodeTunnel,
    shared: &'a Arc<Shared>,
    connection: &'a Connection,
    local: SocketAddr,
    key: KeyHash,
    address: IpAddr,
}

/// The connection is among those of its login; no longer when dropped.
struct Seated {
    private: PrivateSessions,
    control: ControlId,
}

impl Drop for Seated {
    fn drop(&mut self) {
        let mut inner = self.private.shared.lock();
        inner.clients.remove(&self.control);
        inner.book.client_gone(self.control, clock::monotonic());
        inner.binds.forget_early_of(self.control.0);
        let connections = i64::try_from(inner.clients.len()).unwrap_or(i64::MAX);
        self.private.shared.metrics.access_connections.set(connections);
    }
}

impl Visit<'_> {
    fn bad(&self, detail: &str) {
        self.node.events.emit(
            Event::new(Action::Connect, false)
                .address(self.address)
                .reason(Reason::BadRequest)
                .detail(detail),
        );
    }

    async fn run(&self, place: Place, shutdown: &CancellationToken) -> Result<(), Over> {
        let opening = async {
            let (send, recv) = self.connection.accept_bi().await.map_err(quinn::ReadError::from)?;
            let mut reader = FrameReader::new(recv);
            let hello = reader.next::<ClientFrame>().await?;
            Ok::<_, Over>((send, reader, hello))
        };
        let Ok(opened) = timeout(OPENING_TIMEOUT, opening).await else {
            return Err(Over::Protocol("no frame in time"));
        };
        let (mut send, mut reader, hello) = opened?;
        let Some(ClientFrame::Hello { token, version }) = hello else {
            return Err(Over::Protocol("frames out of order"));
        };
        let (proven, seat, seated, mut told) = match self.admit(&token).await {
            Ok(admitted) => admitted,
            Err((refusal, reason)) => {
                self.part(&mut send, refusal).await;
                return Err(Over::Refused(refusal, reason));
            }
        };
        drop(place);
        debug!(address = %self.address, version = version.as_str(), "an access client");
        self.node.recent.remember(&proven.login.session.person.to_string(), self.address, clock::now());
        let _standing = self
            .node
            .gate
            .as_ref()
            .map(|gate| Standing::begin(gate, &self.node.carried, self.connection, self.local));
        self.welcome(&mut send, &proven).await?;

        let waiting = Waiting::new(&self.shared.came);
        let mut conversation = Conversation { visit: self, seat, control: seated.control, proven, waiting };
        match conversation.run(&mut send, &mut reader, &mut told, shutdown).await? {
            Ending::Left => self.close(CloseCode::Shutdown),
            Ending::Said => self.finish(&mut send).await,
            Ending::Refuse(refusal) => self.part(&mut send, refusal).await,
        }
        Ok(())
    }

    /// Puts the connection among those of its login, and looks again: whoever logs the client out first does it in memory
    /// and then looks for connections, so that one of the two sees the other.
    async fn admit(
        &self,
        token: &AccessToken,
    ) -> Result<(Proven, ClientSeat, Seated, mpsc::Receiver<AccessFrame>), (AccessRefusal, Reason)> {
        let proven = self.prove(token).await?;
        let (to, told) = mpsc::channel(TO_CLIENT);
        let seat = ClientSeat { client: proven.client, connection: self.connection.clone(), to };
        let seated = {
            let mut inner = self.shared.lock();
            let of_client = inner.clients.values().filter(|seat| seat.client == proven.client).count();
            if of_client >= MAX_OF_CLIENT || inner.clients.len() >= MAX_CLIENTS {
                return Err((AccessRefusal::TooManyConnections, Reason::Throttled));
            }
            let control = inner.control();
            inner.clients.insert(control, seat.clone());
            let connections = i64::try_from(inner.clients.len()).unwrap_or(i64::MAX);
            self.shared.metrics.access_connections.set(connections);
            Seated { private: self.node.private.clone(), control }
        };
        self.prove(token).await?;
        Ok((proven, seat, seated, told))
    }

    /// Who holds the token and the key.
    async fn prove(&self, token: &AccessToken) -> Result<Proven, (AccessRefusal, Reason)> {
        let now = clock::now();
        let claims = self
            .shared
            .tokens
            .verify(token.expose(), Kind::Client, now)
            .map_err(|_| (AccessRefusal::BadToken, Reason::BadToken))?;
        if !claims.is_bound_to(self.key.as_bytes()) {
            return Err((AccessRefusal::OtherDevice, Reason::BadToken));
        }
        let ended = (AccessRefusal::LoginEnded, Reason::SessionEnded);
        let client = claims.client_login.ok_or((AccessRefusal::BadToken, Reason::BadToken))?;
        let login = self.shared.clients.live(&self.shared.sessions, &claims, now).ok_or(ended)?;
        let known = self.shared.store.live_client(client, now).await.map_err(|error| {
            warn!(%error, "a client's login could not be looked up");
            (AccessRefusal::Internal, Reason::Internal)
        })?;
        let is_its_own =
            known.is_some_and(|known| known.key == *self.key.as_bytes() && known.session == login.session.id);
        if is_its_own {
            Ok(Proven { client, login, token_expires: UnixTime(claims.exp) })
        } else {
            Err(ended)
        }
    }

    async fn welcome(&self, send: &mut SendStream, proven: &Proven) -> Result<(), ControlError> {
        let session = &proven.login.session;
        let person = session.email.as_ref().map_or_else(|| session.person.to_string(), ToString::to_string);
        let welcome = AccessFrame::Welcome {
            person: person.chars().take(256).collect(),
            token_expires: proven.token_expires,
            login_expires: session.expires_at,
        };
        control::send(send, &welcome).await
    }

    /// Says why, and closes.
    async fn part(&self, send: &mut SendStream, refusal: AccessRefusal) {
        let _ = control::send(send, &AccessFrame::Refused(refusal)).await;
        self.finish(send).await;
    }

    /// Closes once the last frame has arrived, if the client still listens.
    async fn finish(&self, send: &mut SendStream) {
        if send.finish().is_ok() {
            let _ = timeout(PARTING_TIMEOUT, send.stopped()).await;
        }
        self.close(CloseCode::Refused);
    }

    fn close(&self, code: CloseCode) {
        self.connection.close(code.into(), b"");
    }
}

/// How a conversation ends.
enum Ending {
    /// The client has ended it.
    Left,
    /// The last word was said.
    Said,
    /// This is the last word.
    Refuse(AccessRefusal),
}

/// What is said once it is known who the client is.
struct Conversation<'a> {
    visit: &'a Visit<'a>,
    seat: ClientSeat,
    control: ControlId,
    proven: Proven,
    waiting: Waiting,
}

impl Conversation<'_> {
    async fn run(
        &mut self,
        send: &mut SendStream,
        reader: &mut FrameReader,
        told: &mut mpsc::Receiver<AccessFrame>,
        shutdown: &CancellationToken,
    ) -> Result<Ending, Over> {
        let login = self.proven.login.clone();
        let mut pace = Pace::new();
        loop {
            let ends = Instant::now() + left(self.proven.token_expires);
            let frame = tokio::select! {
                frame = reader.next::<ClientFrame>() => {
                    let Some(frame) = frame? else { return Ok(Ending::Left) };
                    pace.wait().await;
                    self.answer(frame).await?
                }
                Some(frame) = told.recv() => Some(frame),
                due = self.waiting.due() => {
                    for frame in self.try_again(due).await? {
                        control::send(send, &frame).await?;
                    }
                    None
                }
                () = login.ended.cancelled() => {
                    // What its sessions are told comes first.
                    let _ = self.visit.node.private.end_client(self.seat.client, login_over(&login)).await;
                    while let Ok(frame) = told.try_recv() {
                        control::send(send, &frame).await?;
                    }
                    return Ok(Ending::Refuse(AccessRefusal::LoginEnded));
                }
                () = sleep_until(ends) => return Ok(Ending::Refuse(AccessRefusal::BadToken)),
                () = shutdown.cancelled() => {
                    control::send(send, &AccessFrame::Drain).await?;
                    return Ok(Ending::Said);
                }
            };
            if let Some(frame) = frame {
                control::send(send, &frame).await?;
                if matches!(frame, AccessFrame::Refused(_)) {
                    return Ok(Ending::Said);
                }
            }
        }
    }

    async fn answer(&mut self, frame: ClientFrame) -> Result<Option<AccessFrame>, Over> {
        let shared = self.visit.shared;
        match frame {
            ClientFrame::Hello { .. } => Err(Over::Protocol("a second Hello")),
            ClientFrame::Open { application, .. } | ClientFrame::OpenBinding { application, .. }
                if application.len() > MAX_APPLICATION =>
            {
                Err(Over::Protocol("the name of an application is too long"))
            }
            ClientFrame::Open { request, application, destination } => {
                let wish = Wish { request, application, destination, early: None };
                self.open(wish, Waiting::until()).await
            }
            ClientFrame::OpenBinding { request, application, destination, early } => {
                let early = shared.expect_early(self.control, &self.seat.connection, early);
                let wish = Wish { request, application, destination, early };
                self.open(wish, Waiting::until()).await
            }
            ClientFrame::Resume { request, grant } => {
                let asker = self.asker().ok_or(Over::Nowhere)?;
                Ok(Some(shared.resume(&asker, request, grant).await))
            }
            ClientFrame::Close { session } => {
                let is_its_own = shared
                    .lock()
                    .book
                    .get(session)
                    .is_some_and(|entry| entry.about.client == self.seat.client);
                if is_its_own {
                    shared.end_soon(vec![(session, EndReason::Closed)]);
                }
                Ok(None)
            }
            ClientFrame::Renew { token } => Ok(Some(self.renew(&token).await)),
        }
    }

    /// Who asks, and from where. None: the stream by which it came is gone.
    fn asker(&self) -> Option<Asker<'_>> {
        let Visit { node, connection, key, .. } = *self.visit;
        Some(Asker {
            control: self.control,
            seat: &self.seat,
            login: &self.proven.login,
            key,
            address: node.carried.real(connection.remote_address())?,
        })
    }

    /// The answer to a request that may wait `until` then; none yet where it waits. So it does for the way by which the
    /// client goes on, once its stream is gone.
    async fn open(&mut self, wish: Wish, until: Instant) -> Result<Option<AccessFrame>, Over> {
        let Visit { node, shared, .. } = *self.visit;
        let may_wait = Instant::now() < until && self.waiting.has_room();
        let answer = match self.asker() {
            Some(asker) => shared.open(&node.registry, &asker, &wish, may_wait).await,
            None if may_wait => None,
            None => return Err(Over::Nowhere),
        };
        match (&answer, &wish.early) {
            (None, _) => self.waiting.add(until, wish),
            (Some(AccessFrame::Opened(opened)), Some(early)) => {
                shared.settle_early(early, Some(opened.session));
            }
            (Some(_), Some(early)) => shared.settle_early(early, None),
            (Some(_), None) => {}
        }
        Ok(answer)
    }

    /// The answers to what has waited, as far as it does not go on waiting.
    async fn try_again(&mut self, due: Vec<(Instant, Wish)>) -> Result<Vec<AccessFrame>, Over> {
        let mut answers = Vec::new();
        for (until, wish) in due {
            answers.extend(self.open(wish, until).await?);
        }
        Ok(answers)
    }

    /// A younger token, of the same login: any other is refused, and the connection ends.
    async fn renew(&mut self, token: &AccessToken) -> AccessFrame {
        let proven = &mut self.proven;
        match self.visit.prove(token).await {
            Ok(renewed)
                if renewed.client == proven.client && renewed.login.session.id == proven.login.session.id =>
            {
                proven.token_expires = proven.token_expires.max(renewed.token_expires);
                AccessFrame::Renewed { token_expires: proven.token_expires }
            }
            Ok(_) => AccessFrame::Refused(AccessRefusal::BadToken),
            Err((refusal, _)) => AccessFrame::Refused(refusal),
        }
    }
}

/// So long until `end`, by the wall clock.
fn left(end: UnixTime) -> Duration {
    Duration::from_secs(u64::try_from(end.0.saturating_sub(clock::now().0)).unwrap_or(0))
}

/// A bucket that holds [`BURST`] and gets one every [`PACE`].
struct Pace {
    /// When the bucket is full again.
    full_at: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { full_at: Instant::now() }
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        self.full_at = self.full_at.max(now) + PACE;
        sleep_until(self.full_at.checked_sub(PACE * BURST).unwrap_or(now)).await;
    }
}
