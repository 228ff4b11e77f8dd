//! Somebody whom nobody has authorised, who sends without pause, and what of it arrives.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::meanwhile::{Pace, StopOnDrop};
use crate::netns::Netns;

/// From an address in one namespace to ports of another. All of those listen while he sends.
pub struct Stranger<'a> {
    pub netns: &'a Netns,
    pub address: IpAddr,
    pub node: &'a Netns,
    pub at: IpAddr,
    /// Each gets datagrams, and the last one openings of connections too.
    pub ports: &'a [u16],
}

/// What was sent, and what was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub datagrams: Pace,
    pub arrived: u64,
}

const PAUSE: Duration = Duration::from_micros(200);
/// A connection that is not answered is tried again after so long.
const PATIENCE: Duration = Duration::from_millis(100);

impl Stranger<'_> {
    /// Sends while `body` runs, which is told how much has arrived so far.
    pub fn sends<T>(&self, body: impl FnOnce(&AtomicU64) -> T) -> Result<(Sent, T)> {
        let listen = || -> Result<_> {
            let sockets: std::io::Result<Vec<_>> =
                self.ports.iter().map(|port| UdpSocket::bind((self.at, *port))).collect();
            let last = self.ports.last().context("no port")?;
            let listener = TcpListener::bind((self.at, *last))?;
            listener.set_nonblocking(true)?;
            Ok((sockets?, listener, SocketAddr::new(self.at, *last)))
        };
        let (heard, listener, opens) = self.node.enter(listen)??;
        let own = self.netns.enter(|| UdpSocket::bind((self.address, 0)))??;
        let (stop, sent, arrived) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let began = Instant::now();
        let goes_on = || !stop.load(Ordering::Relaxed);
        let done = std::thread::scope(|scope| {
            let _stops = StopOnDrop(&stop);
            for socket in &heard {
                let (goes_on, arrived) = (&goes_on, &arrived);
                socket.set_read_timeout(Some(PATIENCE))?;
                scope.spawn(move || {
                    while goes_on() {
                        if socket.recv_from(&mut [0; 64]).is_ok() {
                            arrived.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            scope.spawn(|| {
                while goes_on() {
                    if listener.accept().is_ok() {
                        arrived.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(PAUSE);
                }
            });
            scope.spawn(|| {
                while goes_on() {
                    for port in self.ports {
                        // An answer of the other kernel to an earlier one is this call's error.
                        if own.send_to(&[0x41; 40], (self.at, *port)).is_ok() {
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    std::thread::sleep(PAUSE);
                }
            });
            scope.spawn(|| {
                self.netns.enter(|| {
                    while goes_on() {
                        let _ = TcpStream::connect_timeout(&opens, PATIENCE);
                    }
                })
            });
            anyhow::Ok(body(&arrived))
        })?;
        let datagrams = Pace { sent: sent.into_inner(), lasted: began.elapsed() };
        Ok((Sent { datagrams, arrived: arrived.into_inner() }, done))
    }
}
