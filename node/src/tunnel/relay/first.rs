//! The first packets of an end-to-end connection: those that a client sends before it knows that its leg is in force.
//!
//! They are QUIC Initials (RFC 9000 §17.2.2), and the connection ID to which they go, the client's choice, is the session's
//! ticket. So a packet filter that lets binds through lets these through, too; the node knows whose they are; and no
//! connection of its own has such an ID. Pure: no clock, no socket.

use super::wire::{TICKET_LEN, Ticket};

/// Bytes of a datagram with an Initial (RFC 9000 §14.1), and the longest of them that is held.
pub(super) const FIRST_LEN: std::ops::RangeInclusive<usize> = 1200..=1500;

/// Long header, fixed bit, type Initial; below them are reserved bits and a length, both masked.
const INITIAL: u8 = 0b1100_0000;
const FORM_AND_TYPE: u8 = 0b1111_0000;

/// QUIC version 1 (RFC 9000 §15).
const VERSION: [u8; 4] = [0, 0, 0, 1];

/// Where a datagram goes that begins with an Initial to an ID as long as a ticket. Whether it is one is for the node to say.
pub(super) fn first_ticket(datagram: &[u8]) -> Option<Ticket> {
    let (&[first], rest) = datagram.split_first_chunk::<1>()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (&[length], rest) = rest.split_first_chunk::<1>()?;
    let ticket = rest.first_chunk::<TICKET_LEN>()?;
    let is_initial = first & FORM_AND_TYPE == INITIAL && *version == VERSION;
    (is_initial && usize::from(length) == TICKET_LEN).then_some(*ticket)
}
