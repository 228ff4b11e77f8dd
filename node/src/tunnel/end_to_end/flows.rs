//! The UDP flows of one end-to-end connection: payloads out and in, whatever the path's datagrams hold.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, SendDatagramError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fragment::Reassembler;
use super::room::Room;
use super::wire::{Datagram, split};

/// Payloads that wait for one flow's task.
const QUEUE: usize = 256;

/// What a payload costs besides its bytes.
const OVERHEAD: usize = 64;

/// All flows of one connection.
#[derive(Debug)]
pub(crate) struct Flows {
    connection: Connection,
    room: Room,
    open: Mutex<BTreeMap<u32, mpsc::Sender<Held>>>,
    held: Arc<AtomicUsize>,
    packet: AtomicU16,
    lost: [AtomicU64; 4],
}

/// Payloads that came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Losses {
    /// Parts that never made a whole.
    pub(crate) partial: u64,
    /// Datagrams that were malformed or of no flow.
    pub(crate) strange: u64,
    /// The receiver was too slow.
    pub(crate) full: u64,
    /// Larger than the path can carry in parts.
    pub(crate) too_large: u64,
}

const PARTIAL: usize = 0;
const STRANGE: usize = 1;
const FULL: usize = 2;
const TOO_LARGE: usize = 3;

/// One open flow; closed when dropped.
#[derive(Debug)]
pub(crate) struct Flow {
    number: u32,
    flows: Arc<Flows>,
    incoming: mpsc::Receiver<Held>,
}

/// A payload that waits; counted until it is taken or dropped.
#[derive(Debug)]
struct Held {
    payload: Bytes,
    held: Arc<AtomicUsize>,
}

impl Held {
    /// Nothing where too much waits already. The bytes are copied: what comes from the socket holds on to all that came
    /// with it.
    fn new(payload: &Bytes, held: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let size = payload.len() + OVERHEAD;
        let fits = |now: usize| now.checked_add(size).filter(|now| *now <= most);
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Self { payload: Bytes::copy_from_slice(payload), held: Arc::clone(held) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.fetch_sub(self.payload.len() + OVERHEAD, Ordering::Relaxed);
    }
}

impl Flows {
    /// Those of a connection that was made with `room`, which is given back with the last of them.
    pub(crate) fn new(connection: Connection, room: Room) -> Arc<Self> {
        Arc::new(Self {
            connection,
            room,
            open: Mutex::default(),
            held: Arc::default(),
            packet: AtomicU16::new(0),
            lost: Default::default(),
        })
    }

    /// Takes what arrives to its flow until the connection ends.
    pub(crate) async fn run(&self) -> ConnectionError {
        let (began, mut reassembler) = (Instant::now(), Reassembler::new(self.room.partial()));
        loop {
            let bytes = match self.connection.read_datagram().await {
                Ok(bytes) => bytes,
                Err(error) => return error,
            };
            let Some(datagram) = Datagram::parse(bytes) else {
                self.lose(STRANGE);
                continue;
            };
            let complete = reassembler.take(datagram, began.elapsed());
            if let Some(lost) = self.lost.get(PARTIAL) {
                lost.store(reassembler.lost(), Ordering::Relaxed);
            }
            let Some((flow, payload)) = complete else { continue };
            let taken = self.open().get(&flow).map(|incoming| {
                Held::new(&payload, &self.held, self.room.held())
                    .is_some_and(|held| incoming.try_send(held).is_ok())
            });
            match taken {
                Some(true) => {}
                Some(false) => self.lose(FULL),
                None => self.lose(STRANGE),
            }
        }
    }

    /// A flow of this number; nothing where there is one already.
    pub(crate) fn add(self: &Arc<Self>, number: u32) -> Option<Flow> {
        let (sender, incoming) = mpsc::channel(QUEUE);
        let mut open = self.open();
        if open.contains_key(&number) {
            return None;
        }
        open.insert(number, sender);
        Some(Flow { number, flows: Arc::clone(self), incoming })
    }

    /// Bytes that wait now, of all flows.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// And how many there may be.
    #[cfg(test)]
    pub(crate) fn most_held(&self) -> usize {
        self.room.held()
    }

    pub(crate) fn losses(&self) -> Losses {
        let [partial, strange, full, too_large] =
            self.lost.each_ref().map(|count| count.load(Ordering::Relaxed));
        Losses { partial, strange, full, too_large }
    }

    fn lose(&self, what: usize) {
        if let Some(count) = self.lost.get(what) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u32, mpsc::Sender<Held>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow {
    #[cfg(test)]
    pub(crate) fn flows(&self) -> &Flows {
        &self.flows
    }

    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    /// Sends a payload, and waits for room to do so. What the path cannot carry even in parts is counted.
    pub(crate) async fn send(&self, payload: &Bytes) -> Result<(), ConnectionError> {
        let flows = &self.flows;
        let packet = flows.packet.fetch_add(1, Ordering::Relaxed);
        let Some(room) = flows.connection.max_datagram_size() else {
            flows.lose(TOO_LARGE);
            return Ok(());
        };
        let Some(datagrams) = split(self.number, packet, payload, room) else {
            flows.lose(TOO_LARGE);
            return Ok(());
        };
        for datagram in datagrams {
            match flows.connection.send_datagram_wait(datagram).await {
                Ok(()) => {}
                Err(SendDatagramError::ConnectionLost(error)) => return Err(error),
                // The path has become smaller meanwhile, or the peer takes no datagrams.
                Err(_) => {
                    flows.lose(TOO_LARGE);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The next payload from the other end; nothing once the connection has ended.
    pub(crate) async fn receive(&mut self) -> Option<Bytes> {
        let held = self.incoming.recv().await?;
        Some(held.payload.clone())
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.flows.open().remove(&self.number);
    }
}
