//! One UDP flow at the connector: a socket of its own towards the application.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use quinn::RecvStream;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::super::dial::DIAL_TIMEOUT;
use super::super::super::end_to_end::{Flow, MAX_PAYLOAD};
use super::super::super::wire::{Authority, DialFailure};

/// A flow that carried nothing for so long is over (RFC 4787 REQ-5 asks for two minutes at least).
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// A socket that hears `destination` and nobody else.
pub(super) async fn dial(destination: &Authority) -> Result<UdpSocket, DialFailure> {
    let resolving = tokio::net::lookup_host((destination.host(), destination.port()));
    let address = match timeout(DIAL_TIMEOUT, resolving).await {
        Err(_) => return Err(DialFailure::Timeout),
        Ok(Err(_)) => return Err(DialFailure::NoAddress),
        Ok(Ok(mut addresses)) => addresses.next().ok_or(DialFailure::NoAddress)?,
    };
    connect(address).await.map_err(|_| DialFailure::Unreachable)
}

async fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// Carries payloads both ways until the client ends the flow's stream, the connection ends, or nothing comes for long.
pub(super) async fn carry(mut flow: Flow, socket: &UdpSocket, stream: &mut RecvStream) {
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut nothing = [0; 1];
    let mut idle_at = Instant::now() + IDLE_TIMEOUT;
    loop {
        tokio::select! {
            payload = flow.receive() => match payload {
                // A full or refusing socket loses a datagram, as any network may.
                Some(payload) => drop(socket.send(&payload).await),
                None => return,
            },
            // An ICMP error is news of an earlier datagram, not the end of the flow.
            received = socket.recv(&mut buffer) => if let Ok(length) = received {
                let payload = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                if flow.send(&payload).await.is_err() {
                    return;
                }
            },
            _ = stream.read(&mut nothing) => return,
            () = sleep_until(idle_at) => return,
        }
        idle_at = Instant::now() + IDLE_TIMEOUT;
    }
}
