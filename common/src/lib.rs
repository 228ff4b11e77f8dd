//! What the XDP program and the host share: one packet parser, one decision, one set of map layouts.
//!
//! 1. [`parse`] turns the bytes of a frame into a [`PacketMeta`], or says why they are not a packet.
//! 2. [`admit()`] turns a [`PacketMeta`] and what the maps and sockets know ([`Lookup`]) into a [`Verdict`].
//! 3. [`layout`] names the maps and gives the shape of their keys and values.
//!
//! The same functions are compiled for the BPF target and for the host, so a test, a fuzzer or an
//! explanation on the host speaks of the program that drops the packets. Nothing here reads a clock, a
//! socket or the environment.
#![no_std]

mod address;
mod admit;
pub mod layout;
mod packet;
#[cfg(feature = "user")]
mod pod;
mod rate;
mod verdict;

pub use address::Address;
pub use admit::{Lookup, TcpSocket, admit, judge, tracks_reply};
pub use packet::{Ack, Family, Flow, Frame, IcmpMeta, IpMeta, PacketMeta, Quote, TcpFlags, Transport, parse};
pub use rate::{RateClass, take_token};
pub use verdict::{DropReason, PassReason, Verdict};
