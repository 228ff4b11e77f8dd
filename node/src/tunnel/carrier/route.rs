//! The way to one address of a node: dials, moves connections and legs to where they are to go, tries UDP again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quinn::{AsyncUdpSocket, ClientConfig, Connection, ConnectionError, Endpoint};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::PATIENCE;
use super::choice::{Carrier, Choice, Way};
use super::follower::{self, Counts, Follower, Why};
use super::http::{Pool, Web, WebError};
use super::socket::CarriedSocket;
use crate::clock;
use crate::tunnel::end_to_end::probe_timeout;
use crate::tunnel::identity::SERVER_NAME;
use crate::tunnel::socket::{Capped, dial_socket, local_address};
use crate::tunnel::transport::{TransportError, connector_endpoint};
use crate::tunnel::wire::CloseCode;

/// A handshake gets so long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a connection on UDP is looked at: a silence is noticed so much later.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The machine's own address is looked at so often.
const LOOK_AT_ADDRESS: Duration = Duration::from_secs(2);

/// The last packets of a try get so long to leave.
const PARTING_TIMEOUT: Duration = Duration::from_secs(2);

/// Addresses of which is remembered what carried last.
const MAX_ROUTES: usize = 64;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("it does not answer")]
    Timeout,
    #[error("it cannot be dialled: {0}")]
    Dial(#[from] quinn::ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("over TCP: {0}")]
    Web(#[from] WebError),
    #[error("the socket: {0}")]
    Socket(#[from] io::Error),
}

/// Makes the settings of one attempt: with a knock of its own, where the device has one.
pub type Settings = dyn Fn() -> ClientConfig + Send + Sync;

/// The ways to the addresses of a node.
pub struct Routes {
    web: Option<Web>,
    settings: Arc<Settings>,
    known: Mutex<BTreeMap<SocketAddr, Arc<Route>>>,
}

impl Routes {
    /// `web` is where the node serves HTTPS; where that is not known there is no way but UDP.
    pub fn new(web: Option<Web>, settings: Arc<Settings>) -> Self {
        Self { web, settings, known: Mutex::default() }
    }

    /// The way to `address`. Needs a runtime.
    pub fn to(&self, address: SocketAddr) -> Arc<Route> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ROUTES {
            known.retain(|_, route| Arc::strong_count(route) > 1);
        }
        let new = || Route::new(address, self.web.clone(), Arc::clone(&self.settings));
        Arc::clone(known.entry(address).or_insert_with(new))
    }
}

/// The way to one address of a node.
pub struct Route {
    node: SocketAddr,
    web: Option<Web>,
    settings: Arc<Settings>,
    pool: Pool,
    choice: Mutex<Choice>,
    /// What was chosen last.
    way: watch::Sender<Way>,
    began: Instant,
}

/// A connection that goes where it is to go as long as this is held.
pub struct Connected {
    pub endpoint: Endpoint,
    pub connection: Connection,
    pub route: Arc<Route>,
    _follows: DropGuard,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// Which way a socket goes.
struct At {
    way: Way,
    /// Fires when its stream has ended.
    gone: Option<CancellationToken>,
}

/// A connection, and the way of its socket.
struct Dialled {
    endpoint: Endpoint,
    connection: Connection,
    at: At,
}

/// The way of a leg's socket, from the route that gave it.
pub struct LegWay {
    route: Arc<Route>,
    at: At,
}

impl LegWay {
    pub const fn carrier(&self) -> Carrier {
        self.at.way.carrier
    }

    /// Gives the leg another socket whenever it has to go another way, until this future is dropped. `heard_within` says
    /// whether the other end was heard by the leg within that time: as long as it is, UDP is not given up.
    pub async fn keep_going(
        self,
        heard_within: impl Fn(Duration) -> bool + Send + Sync,
        mut place: impl FnMut(Arc<dyn AsyncUdpSocket>, Carrier) + Send,
    ) -> Infallible {
        let place = |socket, carrier| {
            place(socket, carrier);
            Ok(())
        };
        let counts = || Counts { hears: heard_within(follower::PATIENCE), ..Counts::default() };
        self.route.keep_going(self.at, false, counts, place).await
    }
}

impl Route {
    fn new(node: SocketAddr, web: Option<Web>, settings: Arc<Settings>) -> Arc<Self> {
        let route = Arc::new(Self {
            node,
            web,
            settings,
            pool: Pool::default(),
            choice: Mutex::default(),
            way: watch::Sender::default(),
            began: Instant::now(),
        });
        if let Ok(local) = local_address(node) {
            route.choice().at_address(Duration::ZERO, local);
        }
        tokio::spawn(look_after(Arc::downgrade(&route), route.way.subscribe()));
        route
    }

    /// Dials, over UDP and then over TCP too, or over TCP where that carried last.
    ///
    /// # Errors
    /// What came of UDP, unless nothing came of it; then what came of TCP.
    pub async fn connect(self: &Arc<Self>) -> Result<Connected, DialError> {
        if self.now().carrier == Carrier::Tcp {
            match self.over_tcp().await {
                Ok(dialled) => return Ok(self.follow(dialled)),
                // It answers, and with TCP it would be the same over UDP.
                Err(error @ DialError::Connection(ConnectionError::TransportError(_))) => return Err(error),
                Err(error) => debug!(node = %self.node, %error, "no connection over TCP"),
            }
        }
        let began = Instant::now();
        let mut udp = pin!(self.over_udp());
        let udp_came = match timeout(PATIENCE, &mut udp).await {
            Ok(Ok(dialled)) => {
                self.returned();
                return Ok(self.follow(dialled));
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        if let (None, _) | (_, Some(DialError::Connection(ConnectionError::TransportError(_)))) =
            (&self.web, &udp_came)
        {
            let dialled = match udp_came {
                Some(error) => return Err(error),
                None => udp.await?,
            };
            return Ok(self.follow(dialled));
        }
        let decided = began.elapsed();
        info!(node = %self.node, after_ms = decided.as_millis(), "UDP brings nothing: trying TCP");
        let mut tcp = pin!(self.over_tcp());
        let (mut udp_came, mut tcp_came) = (udp_came, None);
        loop {
            tokio::select! {
                came = &mut udp, if udp_came.is_none() => match came {
                    Ok(dialled) => {
                        self.returned();
                        return Ok(self.follow(dialled));
                    }
                    Err(error) => udp_came = Some(error),
                },
                came = &mut tcp, if tcp_came.is_none() => match came {
                    Ok(dialled) => {
                        self.fell_back();
                        return Ok(self.follow(dialled));
                    }
                    Err(error) => tcp_came = Some(error),
                },
                else => break,
            }
        }
        if let Some(error) = &tcp_came {
            debug!(node = %self.node, %error, "nor does TCP");
        }
        let udp_came = udp_came.filter(|error| !matches!(error, DialError::Timeout));
        Err(udp_came.or(tcp_came).unwrap_or(DialError::Timeout))
    }

    async fn over_udp(&self) -> Result<Dialled, DialError> {
        let way = self.now().over(Carrier::Udp);
        self.handshake(self.udp_socket()?, At { way, gone: None }).await
    }

    async fn over_tcp(&self) -> Result<Dialled, DialError> {
        let way = self.now().over(Carrier::Tcp);
        let (socket, gone) = self.stream_socket().await?;
        self.handshake(socket, At { way, gone: Some(gone) }).await
    }

    async fn handshake(&self, socket: Arc<dyn AsyncUdpSocket>, at: At) -> Result<Dialled, DialError> {
        let endpoint = connector_endpoint(socket)?;
        let connecting = endpoint.connect_with((self.settings)(), self.node, SERVER_NAME)?;
        match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(connected) => Ok(Dialled { endpoint, connection: connected?, at }),
            Err(_) => Err(DialError::Timeout),
        }
    }

    /// A socket for a leg of a session with the node, which goes the way that is chosen now.
    ///
    /// # Errors
    /// When there are no more sockets. A stream that cannot be had is one that ends.
    pub fn leg(self: &Arc<Self>) -> io::Result<(Arc<dyn AsyncUdpSocket>, LegWay)> {
        let way = self.now();
        let (socket, gone): (Arc<dyn AsyncUdpSocket>, _) = match (way.carrier, &self.web) {
            (Carrier::Tcp, Some(web)) => {
                let (route, web) = (Arc::clone(self), web.clone());
                let open = async move { route.pool.stream(route.node, &web).await };
                let socket = CarriedSocket::opening(self.node, open);
                let gone = socket.gone();
                (Arc::new(socket), Some(gone))
            }
            (Carrier::Udp, _) | (Carrier::Tcp, None) => (self.udp_socket()?, None),
        };
        Ok((socket, LegWay { route: Arc::clone(self), at: At { way, gone } }))
    }

    fn udp_socket(&self) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let (socket, capped) = dial_socket(self.node)?;
        if let Some(capped) = capped {
            warn_once(capped);
        }
        Ok(socket)
    }

    async fn stream_socket(&self) -> Result<(Arc<dyn AsyncUdpSocket>, CancellationToken), WebError> {
        let web = self.web.as_ref().ok_or(WebError::NotOffered)?;
        let (stream, held) = self.pool.stream(self.node, web).await?;
        let socket = CarriedSocket::new(self.node, stream, held);
        let gone = socket.gone();
        Ok((Arc::new(socket), gone))
    }

    fn follow(self: &Arc<Self>, dialled: Dialled) -> Connected {
        let Dialled { endpoint, connection, at } = dialled;
        let ends = CancellationToken::new();
        let (route, ended, moved, followed) =
            (Arc::clone(self), ends.clone(), endpoint.clone(), connection.clone());
        tokio::spawn(async move {
            let place = |socket, _| moved.rebind_abstract(socket);
            // Where there is no other way, nobody asks whether this one carries.
            let asks = route.web.is_some();
            let counts = || if asks { counts(&followed) } else { Counts::default() };
            tokio::select! {
                () = ended.cancelled() => {}
                _ = followed.closed() => {}
                never = route.keep_going(at, asks, counts, place) => match never {},
            }
        });
        Connected { endpoint, connection, route: Arc::clone(self), _follows: ends.drop_guard() }
    }

    /// Keeps what sends to the node on a way that carries: `place` gives it another socket. What `asks` is itself looked at
    /// for whether UDP brings answers.
    async fn keep_going(
        &self,
        At { way, mut gone }: At,
        asks: bool,
        counts: impl Fn() -> Counts + Send,
        mut place: impl FnMut(Arc<dyn AsyncUdpSocket>, Carrier) -> io::Result<()> + Send,
    ) -> Infallible {
        let mut chosen = self.way.subscribe();
        let mut follower = Follower::new(way, counts());
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = self.began.elapsed();
            let wanted = *chosen.borrow_and_update();
            let has_ended = gone.as_ref().is_some_and(CancellationToken::is_cancelled);
            if let Some((to, why)) = follower.look(now, wanted, has_ended, counts()) {
                if let Why::Silent(silent_for) = why {
                    info!(node = %self.node, after_ms = silent_for.as_millis(), "UDP brings nothing: trying TCP");
                }
                match self.take(to, &mut place).await {
                    Ok(taken) => {
                        debug!(node = %self.node, ?to, ?why, "another socket");
                        gone = taken;
                        follower.moved(to, counts());
                        if let Why::Silent(_) = why {
                            self.fell_back();
                        }
                    }
                    Err(error) => {
                        debug!(node = %self.node, %error, ?to, ?why, "there is no other socket");
                        follower.failed(self.began.elapsed());
                    }
                }
                continue;
            }
            let looks = follower.at().carrier == Carrier::Udp && (asks || wanted != follower.at());
            let again = follower.not_before().filter(|at| now < *at).map(|at| self.began + at);
            tokio::select! {
                // Its other half is here, so it never ends.
                _ = chosen.changed() => {}
                () = ended(gone.as_ref()), if !has_ended => {}
                _ = look.tick(), if looks => {}
                () = sleep_until(again.unwrap_or(self.began)), if again.is_some() => {}
            }
        }
    }

    /// Gives what sends to the node a socket that goes this way; what fires when its stream has ended.
    async fn take(
        &self,
        way: Way,
        place: &mut impl FnMut(Arc<dyn AsyncUdpSocket>, Carrier) -> io::Result<()>,
    ) -> Result<Option<CancellationToken>, DialError> {
        let (socket, gone) = match way.carrier {
            Carrier::Udp => (self.udp_socket()?, None),
            Carrier::Tcp => {
                let (socket, gone) = self.stream_socket().await?;
                (socket, Some(gone))
            }
        };
        place(socket, way.carrier)?;
        Ok(gone)
    }

    fn fell_back(&self) {
        let random = u64::from_ne_bytes(clock::random());
        if self.choice().fell_back(self.began.elapsed(), random) {
            warn!(node = %self.node, "over TCP from now on");
            self.publish();
        }
    }

    fn returned(&self) {
        if self.choice().returned(self.began.elapsed()) {
            info!(node = %self.node, "UDP works: over UDP from now on");
            self.publish();
        }
    }

    /// Where packets would leave from now is where they are to leave from. Without a network there is no such place.
    async fn look_at_address(&self) {
        let Ok(local) = local_address(self.node) else { return };
        if !self.choice().at_address(self.began.elapsed(), local) {
            return;
        }
        info!(node = %self.node, from = %local, "this machine has another address");
        // TCP connections from the other one are as good as dead.
        self.pool.renew().await;
        self.publish();
    }

    async fn try_udp(&self) {
        match self.over_udp().await {
            Ok(Dialled { endpoint, connection, .. }) => {
                self.returned();
                // It has shown what it should, and nothing else was ever meant.
                connection.close(CloseCode::Shutdown.into(), b"");
                let _ = timeout(PARTING_TIMEOUT, endpoint.wait_idle()).await;
            }
            Err(error) => {
                debug!(node = %self.node, %error, "UDP still brings nothing");
                self.choice().tried(self.began.elapsed(), u64::from_ne_bytes(clock::random()));
            }
        }
    }

    fn publish(&self) {
        let way = self.now();
        self.way.send_if_modified(|chosen| std::mem::replace(chosen, way) != way);
    }

    fn now(&self) -> Way {
        self.choice().way()
    }

    fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the machine's own address, and tries UDP again while TCP carries, as long as somebody has the route.
async fn look_after(route: Weak<Route>, mut way: watch::Receiver<Way>) {
    loop {
        let Some(due) = route.upgrade().map(|route| {
            let soon = Instant::now() + LOOK_AT_ADDRESS;
            let try_at = route.choice().try_at();
            try_at.map_or(soon, |at| soon.min(route.began + at))
        }) else {
            return;
        };
        tokio::select! {
            () = sleep_until(due) => {}
            changed = way.changed() => if changed.is_err() {
                return;
            },
        }
        let Some(route) = route.upgrade() else { return };
        route.look_at_address().await;
        let try_at = route.choice().try_at();
        if try_at.is_some_and(|at| at <= route.began.elapsed()) {
            route.try_udp().await;
        }
    }
}

/// What a connection has asked its peer, and heard.
fn counts(connection: &Connection) -> Counts {
    let stats = connection.stats();
    let frames = stats.frame_tx;
    Counts {
        asked: frames.ping + frames.stream + frames.datagram + frames.crypto,
        heard: stats.udp_rx.datagrams,
        pto: probe_timeout(connection),
        hears: false,
    }
}

async fn ended(gone: Option<&CancellationToken>) {
    match gone {
        Some(gone) => gone.cancelled().await,
        None => std::future::pending().await,
    }
}

/// One line for all the sockets of this process: the cap is the same for each.
fn warn_once(capped: Capped) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        warn!("{capped}");
    }
}
