//! The way to one address of a node: dials, moves connections between carriers, tries UDP again.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quinn::{AsyncUdpSocket, ClientConfig, Connection, ConnectionError, Endpoint};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::PATIENCE;
use super::choice::{Carrier, Choice};
use super::http::{Pool, Web, WebError};
use super::silence::{Counts, Silence};
use super::socket::CarriedSocket;
use crate::clock;
use crate::tunnel::identity::SERVER_NAME;
use crate::tunnel::socket::{Capped, dial_socket};
use crate::tunnel::transport::{TransportError, connector_endpoint};
use crate::tunnel::wire::CloseCode;

/// A handshake gets so long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a connection on UDP is looked at: a silence is noticed within this and [`PATIENCE`].
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// A stream that has ended, or could not be had, is tried again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

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
    carrier: watch::Sender<Carrier>,
    began: Instant,
}

/// A connection that moves between carriers by itself as long as this is held.
pub struct Connected {
    pub endpoint: Endpoint,
    pub connection: Connection,
    /// What carries it now, or will as soon as it has moved.
    pub carrier: watch::Receiver<Carrier>,
    _follows: DropGuard,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// A connection, and what carries it now.
struct Dialled {
    endpoint: Endpoint,
    connection: Connection,
    over: Over,
}

enum Over {
    Udp,
    /// Fires when the stream has ended.
    Tcp(CancellationToken),
}

impl Over {
    const fn carrier(&self) -> Carrier {
        match self {
            Self::Udp => Carrier::Udp,
            Self::Tcp(_) => Carrier::Tcp,
        }
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
            carrier: watch::Sender::default(),
            began: Instant::now(),
        });
        if route.web.is_some() {
            tokio::spawn(try_again(Arc::downgrade(&route), route.carrier.subscribe()));
        }
        route
    }

    /// Dials, over UDP and then over TCP too, or over TCP where that carried last.
    ///
    /// # Errors
    /// What came of UDP, unless nothing came of it; then what came of TCP.
    pub async fn connect(self: &Arc<Self>) -> Result<Connected, DialError> {
        if self.now() == Carrier::Tcp {
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
        self.handshake(self.udp_socket()?, Over::Udp).await
    }

    async fn over_tcp(&self) -> Result<Dialled, DialError> {
        let socket = self.stream().await?;
        let gone = socket.gone();
        self.handshake(Arc::new(socket), Over::Tcp(gone)).await
    }

    async fn handshake(&self, socket: Arc<dyn AsyncUdpSocket>, over: Over) -> Result<Dialled, DialError> {
        let endpoint = connector_endpoint(socket)?;
        let connecting = endpoint.connect_with((self.settings)(), self.node, SERVER_NAME)?;
        match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(connected) => Ok(Dialled { endpoint, connection: connected?, over }),
            Err(_) => Err(DialError::Timeout),
        }
    }

    fn udp_socket(&self) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let (socket, capped) = dial_socket(self.node)?;
        if let Some(capped) = capped {
            warn_once(capped);
        }
        Ok(socket)
    }

    async fn stream(&self) -> Result<CarriedSocket, WebError> {
        let web = self.web.as_ref().ok_or(WebError::NotOffered)?;
        self.pool.socket(self.node, web).await
    }

    fn follow(self: &Arc<Self>, dialled: Dialled) -> Connected {
        let ends = CancellationToken::new();
        let (endpoint, connection) = (dialled.endpoint.clone(), dialled.connection.clone());
        let (route, ended) = (Arc::clone(self), ends.clone());
        if self.web.is_some() {
            tokio::spawn(async move {
                let _ = ended.run_until_cancelled(route.keep_going(dialled)).await;
            });
        }
        let carrier = self.carrier.subscribe();
        Connected { endpoint, connection, carrier, _follows: ends.drop_guard() }
    }

    /// Keeps a connection on a carrier that carries, until it ends.
    async fn keep_going(&self, dialled: Dialled) {
        let Dialled { endpoint, connection, mut over } = dialled;
        let mut carrier = self.carrier.subscribe();
        let mut silence = Silence::default();
        silence.restart(counts(&connection));
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wanted = *carrier.borrow_and_update();
            if wanted != over.carrier() {
                match self.take(wanted, &endpoint).await {
                    Ok(taken) => over = taken,
                    Err(error) => debug!(node = %self.node, %error, "a connection stays where it is"),
                }
                silence.restart(counts(&connection));
            }
            let gone = match &over {
                Over::Udp => None,
                Over::Tcp(gone) => Some(gone.clone()),
            };
            tokio::select! {
                _ = connection.closed() => return,
                _ = carrier.changed() => {}
                _ = look.tick(), if gone.is_none() => {
                    let now = self.began.elapsed();
                    if silence.look(now, counts(&connection)) {
                        info!(node = %self.node, after_ms = PATIENCE.as_millis(), "UDP brings nothing: trying TCP");
                        match self.take(Carrier::Tcp, &endpoint).await {
                            Ok(taken) => {
                                over = taken;
                                self.fell_back();
                            }
                            Err(error) => debug!(node = %self.node, %error, "nor does TCP"),
                        }
                        silence.restart(counts(&connection));
                    }
                }
                () = ended(gone.as_ref()), if gone.is_some() => {
                    match self.take(Carrier::Tcp, &endpoint).await {
                        Ok(taken) => over = taken,
                        Err(error) => {
                            debug!(node = %self.node, %error, "the stream has ended, and there is no other");
                            sleep(AGAIN_AFTER).await;
                        }
                    }
                }
            }
        }
    }

    /// Moves an endpoint and its connection to another socket.
    async fn take(&self, carrier: Carrier, endpoint: &Endpoint) -> Result<Over, DialError> {
        let (socket, over): (Arc<dyn AsyncUdpSocket>, _) = match carrier {
            Carrier::Udp => (self.udp_socket()?, Over::Udp),
            Carrier::Tcp => {
                let socket = self.stream().await?;
                let gone = socket.gone();
                (Arc::new(socket), Over::Tcp(gone))
            }
        };
        endpoint.rebind_abstract(socket)?;
        Ok(over)
    }

    fn fell_back(&self) {
        if self.choice().fell_back(self.began.elapsed()) {
            warn!(node = %self.node, "over TCP from now on");
            self.carrier.send_replace(Carrier::Tcp);
        }
    }

    fn returned(&self) {
        if self.choice().returned(self.began.elapsed()) {
            info!(node = %self.node, "UDP works: over UDP from now on");
            self.carrier.send_replace(Carrier::Udp);
        }
    }

    fn now(&self) -> Carrier {
        self.choice().carrier()
    }

    fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries UDP again while TCP carries, as long as somebody has the route.
async fn try_again(route: Weak<Route>, mut carrier: watch::Receiver<Carrier>) {
    loop {
        if carrier.wait_for(|carrier| *carrier == Carrier::Tcp).await.is_err() {
            return;
        }
        let Some(wait) =
            route.upgrade().map(|route| route.choice().next_try(u64::from_ne_bytes(clock::random())))
        else {
            return;
        };
        sleep(wait).await;
        let Some(route) = route.upgrade() else { return };
        if route.now() == Carrier::Udp {
            continue;
        }
        match route.over_udp().await {
            Ok(Dialled { endpoint, connection, .. }) => {
                route.returned();
                // It has shown what it should, and nothing else was ever meant.
                connection.close(CloseCode::Shutdown.into(), b"");
                let _ = timeout(PARTING_TIMEOUT, endpoint.wait_idle()).await;
            }
            Err(error) => debug!(node = %route.node, %error, "UDP still brings nothing"),
        }
    }
}

/// What a connection has asked its peer, and heard.
fn counts(connection: &Connection) -> Counts {
    let stats = connection.stats();
    let asked = stats.frame_tx;
    Counts { asked: asked.ping + asked.stream + asked.datagram + asked.crypto, heard: stats.udp_rx.datagrams }
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
