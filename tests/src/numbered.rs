//! A flow of numbered datagrams, of which not one may be lost.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::meanwhile::{Pace, StopOnDrop};

/// What has become of a flow.
#[derive(Debug)]
pub struct Numbered {
    /// The numbers below this were sent.
    pub sent: u64,
    /// How long it was sent.
    pub lasted: Duration,
    /// The numbers that arrived, as they came.
    pub arrived: Vec<u64>,
    /// Datagrams that came and were none of the flow's.
    pub others: u64,
}

/// Room for all that a test sends: the kernel must lose nothing either, however late the reader comes.
const ROOM: usize = 256 << 20;
/// How long the receiver waits, once nothing more is sent, for what is under way. Only where a number is lost does it take so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks whether anything more is sent.
const TURN: Duration = Duration::from_millis(100);
/// How many are sent, before it is known.
const UNKNOWN: u64 = u64::MAX;

impl Numbered {
    /// Sends from one socket to an address, a datagram `every` so long, while `body` runs. All is to arrive at the other socket,
    /// which may be the same.
    pub fn during<T>(
        from: &UdpSocket,
        to: SocketAddr,
        at: &UdpSocket,
        every: Duration,
        body: impl FnOnce() -> T,
    ) -> Result<(Self, T)> {
        set_socket_recv_buffer_size_force(at, ROOM)?;
        at.set_read_timeout(Some(TURN))?;
        let (stop, sent, began) = (AtomicBool::new(false), AtomicU64::new(UNKNOWN), Instant::now());
        std::thread::scope(|scope| {
            let stops = StopOnDrop(&stop);
            let sending = scope.spawn(|| {
                let mut next = 0u64;
                let mut outcome = Ok(());
                while outcome.is_ok() && !stop.load(Ordering::Relaxed) {
                    outcome = from.send_to(&next.to_be_bytes(), to).map(drop).context("sending a number");
                    next += 1;
                    std::thread::sleep(every);
                }
                sent.store(next, Ordering::Relaxed);
                outcome
            });
            let receiving = scope.spawn(|| receive(at, &sent));
            let done = body();
            let lasted = began.elapsed();
            drop(stops);
            sending.join().map_err(|_| anyhow!("the sender panicked"))??;
            let (arrived, others) = receiving.join().map_err(|_| anyhow!("the receiver panicked"))?;
            Ok((Self { sent: sent.load(Ordering::Relaxed), lasted, arrived, others }, done))
        })
    }

    /// Whether it was sent all the while.
    pub fn is_steady(&self) -> bool {
        Pace { sent: self.sent, lasted: self.lasted }.is_steady()
    }

    /// Whether every number arrived, once and in order.
    pub fn is_whole(&self) -> bool {
        self.arrived.iter().copied().eq(0..self.sent)
    }
}

/// The numbers that come, until there are as many as were sent or it has waited for too long, and how much else comes.
fn receive(at: &UdpSocket, sent: &AtomicU64) -> (Vec<u64>, u64) {
    let (mut numbers, mut others) = (Vec::new(), 0);
    let mut buffer = [0; 64];
    let mut deadline = None;
    loop {
        let heard = at.recv_from(&mut buffer);
        match heard {
            Ok((length, _)) => match buffer[..length].try_into() {
                Ok(number) => numbers.push(u64::from_be_bytes(number)),
                Err(_) => others += 1,
            },
            // Nothing is under way: whether there is more to come is known.
            Err(_) => {
                let sent = sent.load(Ordering::Relaxed);
                if sent == UNKNOWN {
                    continue;
                }
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                if numbers.len() as u64 >= sent || Instant::now() >= deadline {
                    return (numbers, others);
                }
            }
        }
    }
}
