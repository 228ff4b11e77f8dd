//! A local UDP port that leads to an application: each peer is a flow of the application's session.
//!
//! On loopback it is every user's of the machine. Whose the socket is that has the sender's port can be asked, but only once the
//! datagram is here, and by then the port may be another's: who sends, lets go of his port and leaves it to a program of the
//! person's would pass for that. A datagram carries no sender's credentials, so nothing here tells for sure.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::tunnel::client::{Client, MAX_PAYLOAD};
use crate::tunnel::size_buffers;

use super::{Carried, ForwardError, Forwards, Listed, Target, complain, open_udp};

/// Peers at once: a session carries a few more.
const MAX_PEERS: usize = 500;

/// A peer that said and heard nothing for so long is forgotten (RFC 4787 REQ-5).
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Payloads of one peer that wait for its flow.
const QUEUE: usize = 256;

/// A socket that is bound.
pub struct UdpForward {
    socket: Arc<UdpSocket>,
    address: SocketAddr,
    target: Target,
    client: Client,
    listed: Arc<Listed>,
}

struct Peer {
    payloads: mpsc::Sender<Bytes>,
    used: Instant,
}

impl Forwards {
    /// Listens on `address` for payloads to the target; within a runtime.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn listen_udp(&self, target: &Target, address: SocketAddr) -> Result<UdpForward, ForwardError> {
        let failed = |source| ForwardError::Listen { address, source };
        let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
        // A burst of a program's should fit. What the kernel caps is no fault.
        size_buffers(&socket).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let socket = Arc::new(UdpSocket::from_std(socket).map_err(failed)?);
        let address = socket.local_addr().map_err(failed)?;
        let listed = Arc::new(self.list(target, Carried::Udp, Some(address)));
        Ok(UdpForward { socket, address, target: target.clone(), client: self.client.clone(), listed })
    }
}

impl UdpForward {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until dropped.
    pub async fn run(self) {
        let mut peers: HashMap<SocketAddr, Peer> = HashMap::new();
        let mut flows = JoinSet::new();
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    // An ICMP error is news of an earlier payload.
                    let Ok((length, from)) = received else { continue };
                    let payload = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                    if peers.get(&from).is_none_or(|peer| peer.payloads.is_closed()) {
                        make_room(&mut peers);
                        let (payloads, queue) = mpsc::channel(QUEUE);
                        peers.insert(from, Peer { payloads, used: Instant::now() });
                        flows.spawn(self.flow(from, queue));
                    }
                    if let Some(peer) = peers.get_mut(&from) {
                        peer.used = Instant::now();
                        // Faster than the session: lost, as on any link.
                        let _ = peer.payloads.try_send(payload);
                    }
                }
                Some(ended) = flows.join_next() => {
                    if let Ok((from, outcome)) = ended {
                        if peers.get(&from).is_some_and(|peer| peer.payloads.is_closed()) {
                            peers.remove(&from);
                        }
                        if let Err(error) = outcome {
                            complain(&error);
                        }
                    }
                }
            }
        }
    }

    fn flow(
        &self,
        peer: SocketAddr,
        queue: mpsc::Receiver<Bytes>,
    ) -> impl Future<Output = (SocketAddr, Result<(), ForwardError>)> + Send + 'static {
        let (client, target) = (self.client.clone(), self.target.clone());
        let (socket, listed) = (Arc::clone(&self.socket), Arc::clone(&self.listed));
        async move {
            let _counted = listed.count();
            (peer, carry(&client, &target, &socket, peer, queue).await)
        }
    }
}

/// The peer that was silent longest goes.
fn make_room(peers: &mut HashMap<SocketAddr, Peer>) {
    while peers.len() >= MAX_PEERS {
        let Some(oldest) = peers.iter().min_by_key(|(_, peer)| peer.used).map(|(address, _)| *address) else {
            return;
        };
        peers.remove(&oldest);
    }
}

/// One peer's payloads, both ways.
async fn carry(
    client: &Client,
    target: &Target,
    socket: &UdpSocket,
    peer: SocketAddr,
    mut queue: mpsc::Receiver<Bytes>,
) -> Result<(), ForwardError> {
    let mut flow = open_udp(client, target).await?;
    let mut idle_at = Instant::now() + IDLE_TIMEOUT;
    loop {
        tokio::select! {
            payload = queue.recv() => {
                let Some(payload) = payload else { return Ok(()) };
                // Why the session has ended was said.
                if flow.send(&payload).await.is_err() {
                    return Ok(());
                }
            }
            payload = flow.receive() => {
                let Some(payload) = payload else { return Ok(()) };
                let _ = socket.send_to(&payload, peer).await;
            }
            () = sleep_until(idle_at) => return Ok(()),
        }
        idle_at = Instant::now() + IDLE_TIMEOUT;
    }
}
