//! A flow of numbered datagrams, of which not one may be lost.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
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
/// How long the receiver waits, once nothing more is sent, for what is under way.
const SILENCE: Duration = Duration::from_millis(500);

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
        at.set_read_timeout(Some(SILENCE))?;
        let (stop, began) = (AtomicBool::new(false), Instant::now());
        std::thread::scope(|scope| {
            let stops = StopOnDrop(&stop);
            let sending = scope.spawn(|| -> Result<u64> {
                let mut next = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    from.send_to(&next.to_be_bytes(), to).context("sending a number")?;
                    next += 1;
                    std::thread::sleep(every);
                }
                Ok(next)
            });
            let receiving = scope.spawn(|| receive(at, &stop));
            let done = body();
            let lasted = began.elapsed();
            drop(stops);
            let sent = sending.join().map_err(|_| anyhow!("the sender panicked"))??;
            let (arrived, others) = receiving.join().map_err(|_| anyhow!("the receiver panicked"))?;
            Ok((Self { sent, lasted, arrived, others }, done))
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

/// The numbers that come until nothing more is sent, and how much else does.
fn receive(at: &UdpSocket, stop: &AtomicBool) -> (Vec<u64>, u64) {
    let (mut numbers, mut others) = (Vec::new(), 0);
    let mut buffer = [0; 64];
    loop {
        let over = stop.load(Ordering::Relaxed);
        match at.recv_from(&mut buffer) {
            Ok((length, _)) => match buffer[..length].try_into() {
                Ok(number) => numbers.push(u64::from_be_bytes(number)),
                Err(_) => others += 1,
            },
            Err(_) if over => return (numbers, others),
            Err(_) => {}
        }
    }
}
