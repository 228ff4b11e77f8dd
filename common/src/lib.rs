//! What the XDP program and the host share: one packet parser, one decision, one set of map layouts.
//!
//! 1. [`parse`] turns the bytes of a frame into a [`PacketMeta`], or says why they are not a packet.
//! 2. [`admit()`] turns a [`PacketMeta`] and what the maps and sockets know ([`Lookup`]) into a [`Verdict`].
//! 3. [`process`] is both, and the rewrite of a relayed packet: all that the XDP program does.
//! 4. [`layout`] names the maps and gives the shape of their keys and values.
//!
//! The same functions are compiled for the BPF target and for the host, so a test, a fuzzer or an
//! explanation on the host speaks of the program that drops the packets. Nothing here reads a clock, a
//! socket or the environment.
#![no_std]
#![expect(clippy::cast_possible_truncation, reason = "fields are cut out of words by casts")]

mod address;
mod admit;
mod cid;
mod datagram;
mod frame;
mod knock;
pub mod layout;
mod packet;
#[cfg(feature = "user")]
mod pod;
mod rate;
mod relay;
mod siphash;
mod tunnel;
mod verdict;

pub use address::Address;
pub use admit::{Admission, Lookup, Outcome, TcpSocket, admit, process, tracks_reply};
pub use cid::ConnectionId;
pub use datagram::{BIND_DATAGRAM, INITIAL_DATAGRAM};
pub use frame::{Bytes, Frame, FrameMut, Place};
pub use knock::{DeviceKeys, KNOCK_EPOCH_NS, Knock, KnockKeys};
pub use packet::{Ack, Family, Flow, IcmpMeta, IpMeta, PacketMeta, Quote, Span, TcpFlags, Transport, parse};
pub use rate::{RateClass, take_token};
pub use siphash::SipKey;
pub use verdict::{DropReason, PassReason, RelayReason, Verdict};
