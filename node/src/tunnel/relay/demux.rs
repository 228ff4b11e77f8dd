//! The node's UDP socket, shared: binds to the machine, relay flows onward, the rest to QUIC.
//!
//! ```text
//! datagram ── exactly a Bind or Answer? ──▶ the bind queue (bounded; full = lost, as on any network)
//!          ── a tuple of the table? ──────▶ judged, sent on, never seen by QUIC
//!          ── an Initial to a ticket? ────▶ the queue of first packets, another one: it can fill up and binds still pass
//!          ── the fixed bit set? ─────────▶ QUIC
//!          ── else ───────────────────────▶ dropped
//! ```
//!
//! Binds come before flows: an end that binds again from the tuple at which it already is must reach the node and not its
//! peer. A buffer may hold many datagrams of one tuple (GRO); they are sorted one by one and relayed as few batches (GSO).

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::AsyncUdpSocket;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use tokio::sync::mpsc;

use super::super::carrier::{is_stream, tuple_of_stream};
use super::super::layered::{Layer, LayeredSocket};
use super::first::{FIRST_LEN, first_ticket};
use super::node::{Action, Onward, Removed};
use super::tuple::{Pair, SessionRef, Tuple};
use super::userspace::{Passage, Refused, Sent, Table};
use super::wire::{REQUEST_LEN, Ticket, is_request};

/// Binds and answers that wait for the machine, and first packets that do.
const BIND_QUEUE: usize = 1024;
const FIRST_QUEUE: usize = 256;

/// The fixed bit of QUIC (RFC 9000 §17.2, §17.3.1), which is never greased here.
const FIXED_BIT: u8 = 0x40;

/// A Bind or an Answer, by its size and first byte, and where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindDatagram {
    pub tuple: Tuple,
    pub bytes: [u8; REQUEST_LEN],
}

/// A first packet of a session, by where it goes, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstDatagram {
    pub tuple: Tuple,
    pub bytes: Box<[u8]>,
}

/// What waits for [`super::Binds`].
pub struct Queues {
    pub binds: mpsc::Receiver<BindDatagram>,
    pub firsts: mpsc::Receiver<FirstDatagram>,
}

/// The userspace relay of all the node's UDP sockets.
pub struct Relay {
    table: RwLock<Table>,
    sockets: RwLock<Vec<(SocketAddr, Arc<dyn AsyncUdpSocket>)>>,
    binds: mpsc::Sender<BindDatagram>,
    firsts: mpsc::Sender<FirstDatagram>,
    clock: fn() -> Duration,
    losses: [AtomicU64; 4],
}

/// Datagrams that went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses {
    /// Of a known tuple, whose session is cut or expired.
    pub refused: u64,
    /// Because the socket to leave by was full, or missing.
    pub congested: u64,
    /// Because too many binds waited.
    pub binds: u64,
    /// Because too many first packets waited, or one is of no size that is held.
    pub firsts: u64,
}

const REFUSED: usize = 0;
const CONGESTED: usize = 1;
const BINDS: usize = 2;
const FIRSTS: usize = 3;

impl Relay {
    /// A relay whose table is empty, and the queues from which one loop feeds [`super::Binds`]. `clock` is the monotonic
    /// clock by which sessions expire.
    pub fn new(clock: fn() -> Duration) -> (Arc<Self>, Queues) {
        let (binds, of_binds) = mpsc::channel(BIND_QUEUE);
        let (firsts, of_firsts) = mpsc::channel(FIRST_QUEUE);
        let relay = Self {
            table: RwLock::default(),
            sockets: RwLock::default(),
            binds,
            firsts,
            clock,
            losses: Default::default(),
        };
        (Arc::new(relay), Queues { binds: of_binds, firsts: of_firsts })
    }

    /// Sends a datagram from the tuple's local to its remote side: a challenge.
    ///
    /// # Errors
    /// When no socket has that local side, or it cannot send now. As with any datagram, success says little.
    pub fn send(&self, to: Tuple, datagram: &[u8]) -> io::Result<()> {
        self.transmit(to, datagram, datagram.len(), None)
    }

    /// Performs what the machine decided for a session that is carried here, except [`Action::Ready`], which is for a
    /// control connection. False: it could not be done; the session has to be removed.
    #[must_use]
    pub fn perform(&self, action: &Action) -> bool {
        match action {
            // A challenge that is lost is asked for again.
            Action::Send { to, datagram } => self.send(*to, datagram).is_ok() || self.lose(CONGESTED, 1),
            Action::Install(pair) => self.install(pair),
            Action::ReplaceLeg { old, pair, .. } => {
                let done = self.install(pair);
                self.table.write().unwrap_or_else(PoisonError::into_inner).remove(pair.session, *old);
                done
            }
            Action::Ready { .. } => true,
        }
    }

    /// Sends on what the client of a session in force has sent ahead, whoever relays what follows.
    pub fn send_ahead(&self, Onward { pair, datagrams }: &Onward) {
        let [from_client, _] = pair.grants();
        let judged = {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            table.open(pair.session, pair.terms);
            table.judge_first((self.clock)(), from_client)
        };
        for datagram in datagrams {
            match &judged {
                Ok(passage) => self.forward(passage, datagram, datagram.len(), None),
                Err(_) => {
                    self.lose(REFUSED, 1);
                }
            }
        }
    }

    /// Cuts a session: none of its packets passes once this has returned. What its ends had sent.
    pub fn remove(&self, removed: &Removed) -> Option<Sent> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let sent = table.close(removed.session);
        for input in &removed.inputs {
            table.remove(removed.session, *input);
        }
        sent
    }

    /// Another relay carries the session from here on: this leg's entry is of no use any more.
    pub fn forget(&self, session: SessionRef, input: Tuple) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).remove(session, input);
    }

    /// Cuts every session of a person that was granted under another epoch.
    pub fn set_epoch(&self, identity: u32, epoch: u32) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).set_epoch(identity, epoch);
    }

    /// What the session's ends have sent.
    pub fn sent(&self, session: SessionRef) -> Option<Sent> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).sent(session)
    }

    /// Lets go of all sockets: nothing is sent any more.
    pub fn release(&self) {
        self.sockets.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether packets of this tuple are a session's, or were.
    pub fn has_flow(&self, input: Tuple) -> bool {
        !matches!(self.judge(input), Err(Refused::NoFlow))
    }

    pub fn losses(&self) -> Losses {
        let [refused, congested, binds, firsts] =
            self.losses.each_ref().map(|count| count.load(Ordering::Relaxed));
        Losses { refused, congested, binds, firsts }
    }

    fn install(&self, pair: &Pair) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.open(pair.session, pair.terms);
        pair.grants().into_iter().all(|grant| table.install(grant))
    }

    fn judge(&self, input: Tuple) -> Result<Passage, Refused> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).judge((self.clock)(), input)
    }

    fn bind(&self, tuple: Tuple, datagram: &[u8]) {
        let Ok(bytes) = datagram.try_into() else { return };
        if self.binds.try_send(BindDatagram { tuple, bytes }).is_err() {
            self.lose(BINDS, 1);
        }
    }

    fn first(&self, tuple: Tuple, datagram: &[u8]) {
        let fits = FIRST_LEN.contains(&datagram.len());
        let queued = || self.firsts.try_send(FirstDatagram { tuple, bytes: datagram.into() }).is_ok();
        if !(fits && queued()) {
            self.lose(FIRSTS, 1);
        }
    }

    /// Sends datagrams on, all but the last of `stride` bytes.
    fn forward(&self, passage: &Passage, datagrams: &[u8], stride: usize, ecn: Option<EcnCodepoint>) {
        let packets = datagrams.len().div_ceil(stride) as u64;
        match self.transmit(passage.output(), datagrams, stride, ecn) {
            Ok(()) => passage.count(packets, datagrams.len() as u64),
            Err(_) => {
                self.lose(CONGESTED, packets);
            }
        }
    }

    fn transmit(
        &self,
        to: Tuple,
        datagrams: &[u8],
        stride: usize,
        ecn: Option<EcnCodepoint>,
    ) -> io::Result<()> {
        let sockets = self.sockets.read().unwrap_or_else(PoisonError::into_inner);
        // To a stream by any of them: it is no socket's own.
        let leaving = if is_stream(to.remote()) { sockets.first() } else { leaving_by(&sockets, to.local()) };
        let (bound, socket) = leaving.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let destination = match (bound, to.remote()) {
            (SocketAddr::V6(_), SocketAddr::V4(remote)) => {
                SocketAddr::new(remote.ip().to_ipv6_mapped().into(), remote.port())
            }
            (_, remote) => remote,
        };
        let batch = stride.saturating_mul(socket.max_transmit_segments().max(1)).max(1);
        for contents in datagrams.chunks(batch) {
            let segment_size = (contents.len() > stride).then_some(stride);
            let src_ip = Some(to.local().ip());
            socket.try_send(&Transmit { destination, ecn, contents, segment_size, src_ip })?;
        }
        Ok(())
    }

    fn lose(&self, what: usize, packets: u64) -> bool {
        if let Some(count) = self.losses.get(what) {
            count.fetch_add(packets, Ordering::Relaxed);
        }
        true
    }
}

/// The socket bound to `local`, or to every address of its port.
fn leaving_by(
    sockets: &[(SocketAddr, Arc<dyn AsyncUdpSocket>)],
    local: SocketAddr,
) -> Option<&(SocketAddr, Arc<dyn AsyncUdpSocket>)> {
    let exact = sockets.iter().find(|(bound, _)| *bound == local);
    exact.or_else(|| {
        let on_port = || {
            sockets.iter().filter(|(bound, _)| bound.port() == local.port() && bound.ip().is_unspecified())
        };
        // An IPv6 socket may serve IPv4 too; an IPv4 socket never serves IPv6.
        on_port()
            .find(|(bound, _)| bound.is_ipv4() == local.is_ipv4())
            .or_else(|| on_port().find(|(bound, _)| bound.is_ipv6()))
    })
}

/// Whether the node has minted this for a leg.
type IsTicket = Box<dyn Fn(Ticket) -> bool + Send + Sync>;

/// Between a socket of the node's and QUIC, which gets only what is its own.
pub struct Demux {
    relay: Arc<Relay>,
    local: SocketAddr,
    is_ticket: IsTicket,
}

impl Demux {
    /// Shares `socket` with `relay`, which may send by it from now on.
    ///
    /// # Errors
    /// When the socket does not know its own address.
    pub fn share(
        socket: Arc<dyn AsyncUdpSocket>,
        relay: Arc<Relay>,
        is_ticket: IsTicket,
    ) -> io::Result<LayeredSocket<Self>> {
        let local = socket.local_addr()?;
        relay
            .sockets
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((SocketAddr::new(local.ip().to_canonical(), local.port()), Arc::clone(&socket)));
        Ok(LayeredSocket::new(socket, Self { relay, local, is_ticket }))
    }

    /// Takes out of a buffer what is not QUIC's, and closes the gaps.
    fn sort(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let filled = meta.len.min(buffer.len());
        let stride = meta.stride.clamp(1, filled.max(1));
        let tuple = if is_stream(meta.addr) {
            tuple_of_stream(meta.addr, self.local.port())
        } else {
            let local: IpAddr = meta.dst_ip.unwrap_or_else(|| self.local.ip());
            Tuple::new(SocketAddr::new(local, self.local.port()), meta.addr)
        };
        let judged = self.relay.judge(tuple);
        let mut for_quic = 0;
        let mut onward: Range<usize> = 0..0;
        let mut start = 0;
        while start < filled {
            let datagram = start..(start + stride).min(filled);
            start = datagram.end;
            match self.owner(buffer.get(datagram.clone()).unwrap_or_default(), &judged) {
                Owner::Binds => {
                    self.relay.bind(tuple, buffer.get(datagram).unwrap_or_default());
                }
                Owner::Flow if onward.end == datagram.start => onward.end = datagram.end,
                Owner::Flow => {
                    self.flush(&judged, buffer, onward, stride, meta.ecn);
                    onward = datagram;
                }
                Owner::First => {
                    self.relay.first(tuple, buffer.get(datagram).unwrap_or_default());
                }
                Owner::Quic => {
                    let length = datagram.len();
                    if datagram.start != for_quic {
                        buffer.copy_within(datagram, for_quic);
                    }
                    for_quic += length;
                }
                Owner::Nobody => {}
                Owner::Refused => {
                    self.relay.lose(REFUSED, 1);
                }
            }
        }
        self.flush(&judged, buffer, onward, stride, meta.ecn);
        // Of no length, a buffer is passed over by the endpoint.
        meta.len = for_quic;
    }

    fn owner(&self, datagram: &[u8], judged: &Result<Passage, Refused>) -> Owner {
        if is_request(datagram) {
            return Owner::Binds;
        }
        match judged {
            Ok(_) => Owner::Flow,
            Err(Refused::NoFlow) if first_ticket(datagram).is_some_and(|ticket| (self.is_ticket)(ticket)) => {
                Owner::First
            }
            Err(Refused::NoFlow) if datagram.first().is_some_and(|first| first & FIXED_BIT != 0) => {
                Owner::Quic
            }
            Err(Refused::NoFlow) => Owner::Nobody,
            Err(Refused::Generation | Refused::Epoch | Refused::Expired | Refused::Reflection) => {
                Owner::Refused
            }
        }
    }

    fn flush(
        &self,
        judged: &Result<Passage, Refused>,
        buffer: &[u8],
        onward: Range<usize>,
        stride: usize,
        ecn: Option<EcnCodepoint>,
    ) {
        let (Ok(passage), Some(datagrams)) = (judged, buffer.get(onward)) else { return };
        if !datagrams.is_empty() {
            self.relay.forward(passage, datagrams, stride, ecn);
        }
    }
}

/// Whose a datagram is.
enum Owner {
    Binds,
    Flow,
    /// Of the machine, until its session is in force.
    First,
    Quic,
    /// Neither QUIC nor a request, and of no flow.
    Nobody,
    /// Of a flow whose session is no more.
    Refused,
}

impl Layer for Demux {
    fn received(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        self.sort(buffer, meta);
    }
}

impl fmt::Debug for Demux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Demux").field("local", &self.local).finish_non_exhaustive()
    }
}
