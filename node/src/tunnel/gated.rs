//! The gate on the node's own UDP socket, for when no XDP program judges packets before they get here.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::udp::RecvMeta;

use crate::gate::DatagramGate;

use super::layered::Layer;
use super::relay::wire::is_request;
use super::relay::{Relay, Tuple};

/// Hands on only datagrams which the gate passes, and those of sessions that the daemon relays: the relay judges them, as
/// a gate with entries would before all else. What is dropped gets no answer.
pub(super) struct Gated {
    gate: DatagramGate,
    local: SocketAddr,
    relay: Arc<Relay>,
}

impl Gated {
    /// `local` is the socket's own address.
    pub(super) fn new(gate: DatagramGate, local: SocketAddr, relay: Arc<Relay>) -> Self {
        Self { gate, local, relay }
    }
}

impl Layer for Gated {
    fn received(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let remote = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
        let to = meta.dst_ip.unwrap_or(self.local.ip()).to_canonical();
        let local = SocketAddr::new(to, self.local.port());
        let enforces = self.gate.enforces();
        let is_flow = self.relay.has_flow(Tuple::new(local, remote));
        let passes = |datagram: &[u8]| {
            (is_flow && !is_request(datagram))
                || self.gate.admit(remote, local, datagram).is_pass()
                || !enforces
        };
        meta.len = keep(buffer, meta.len, meta.stride, passes);
    }
}

/// Keeps those of the datagrams that pass. The kernel hands over datagrams of one sender together, each `stride`
/// bytes long but for the last; what is kept moves to the front. The length of it all is returned.
fn keep(buffer: &mut [u8], length: usize, stride: usize, mut passes: impl FnMut(&[u8]) -> bool) -> usize {
    let length = length.min(buffer.len());
    let mut kept = 0;
    let mut at = 0;
    while at < length {
        let end = at.saturating_add(stride.max(1)).min(length);
        if buffer.get(at..end).is_some_and(&mut passes) {
            buffer.copy_within(at..end, kept);
            kept += end - at;
        }
        at = end;
    }
    kept
}

impl fmt::Debug for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gated").field("local", &self.local).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_several_datagrams_is_judged() {
        for (kept, expected) in [("abc", "aabbc"), ("ac", "aac"), ("b", "bb"), ("c", "c"), ("", "")] {
            let mut buffer = *b"aabbc---";
            let length = keep(&mut buffer, 5, 2, |datagram| kept.as_bytes().contains(&datagram[0]));
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
    }
}
