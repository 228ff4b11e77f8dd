//! Datagrams to the tunnel's port, as far as the gate reads them (RFC 9000 §17).

use portcullis_common::{BIND_DATAGRAM, ConnectionId, INITIAL_DATAGRAM};

/// A packet with a short header.
pub fn short(id: [u8; ConnectionId::SIZE], length: usize) -> Vec<u8> {
    let mut datagram = vec![0x41];
    datagram.extend(id);
    datagram.resize(length.max(datagram.len()), 0xa5);
    datagram
}

/// An Initial in a datagram of full size.
pub fn initial(destination: &[u8]) -> Vec<u8> {
    long(0, 1, destination, INITIAL_DATAGRAM)
}

/// A packet with a long header; `kind` is 0 for Initial, 1 for 0-RTT, 2 for Handshake, 3 for Retry.
pub fn long(kind: u8, version: u32, destination: &[u8], length: usize) -> Vec<u8> {
    let mut datagram = vec![0xc0 | kind << 4];
    datagram.extend(version.to_be_bytes());
    datagram.push(u8::try_from(destination.len()).unwrap());
    datagram.extend(destination);
    datagram.resize(length.max(datagram.len()), 0x5a);
    datagram
}

/// A datagram of the bind protocol.
pub fn bind(ticket: [u8; ConnectionId::SIZE]) -> Vec<u8> {
    let mut datagram = vec![0x01];
    datagram.extend(ticket);
    datagram.resize(BIND_DATAGRAM, 7);
    datagram
}
