//! What a client and a connector say to each other end to end: QUIC that the node carries and cannot read.
//!
//! ```text
//! client ══ portcullis-session/1 (TLS 1.3: both keys pinned) ══ connector
//!   stream    Request ─▶ ◀─ Reply, then bytes          a TCP connection: FIN is FIN, reset is reset      wire
//!   stream    Request ─▶ ◀─ Reply, then nothing        a UDP flow, which lives as long as its stream
//!   datagram  flow, payload or a part of it            in both directions                                fragment, flows
//! ```
//!
//! Client and connector know each other's key from the node: the client from `Opened`, the connector from the signed
//! grant. `transport` holds every setting of these connections, and `room` what they may make an end hold.

mod flows;
mod fragment;
mod room;
mod transport;
mod wire;

pub(crate) use flows::{Flow, Flows, Losses};
pub(crate) use room::{CLIENT, CONNECTOR, Rooms, Use};
pub(crate) use transport::{SessionCode, client_config, connector_config, endpoint, probe_timeout};
pub(crate) use wire::{Carries, MAX_PAYLOAD, Reply, Request};
