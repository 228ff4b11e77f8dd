//! What carries a tunnel's datagrams: UDP, or, where a network lets none through, an HTTP/2 stream on the node's
//! TCP port.
//!
//! ```text
//!            quinn: TLS 1.3 with pinned keys, knocks, binds, flow control           as over UDP
//!                                  │ datagrams
//!                  ┌───────────────┴────────────────┐
//!                 UDP              connect-udp (RFC 9298): capsules (RFC 9297) in an extended CONNECT
//!                  │               (RFC 8441), over TLS, over TCP                   capsule, pump, http, socket
//!                  └───────────────┬────────────────┘
//!                     the node's one socket, where each stream is a peer            node
//! ```
//!
//! 1. [`Route::connect`] dials over UDP. When that has brought nothing for [`PATIENCE`], it dials over TCP too, and the
//!    first that answers counts.
//! 2. A connection whose packets get no answer moves to TCP as it is: QUIC migrates it (RFC 9000 §9), and no stream of it
//!    notices more than a pause. All others of the route follow, and so do the legs of its sessions, which bind again.
//! 3. While something goes over TCP, UDP is tried again, at most a minute apart. When it answers, everything moves back.
//! 4. When the machine's own address changes, everything takes new sockets, and UDP is tried at once.
//!
//! `choice` decides for a route and `follower` for what goes by it; both are pure. `route` alone performs, so that nothing is
//! ever moved by two at a time.
//!
//! **Trust.** The TLS on the outside proves nothing and hides nothing that UDP would not show: the node's certificate may be
//! of a private authority, so the dialling side does not look at it. Whoever stands in between sees QUIC packets, as he would
//! on UDP; the node proves its pinned key in the handshake inside, and so does the end. At the node a stream is judged as
//! UDP is: by the same [`admit`](portcullis_common::admit()), with the address of the TCP connection.

pub mod capsule;
mod choice;
mod follower;
mod http;
mod node;
mod pump;
mod route;
mod socket;
#[cfg(test)]
mod tests;

pub use choice::Carrier;
pub use http::{Web, WebError};
pub use node::{Carried, Stream};
pub(super) use node::{is_stream, tuple_of_stream};
pub use pump::Ended;
pub use route::{Connected, DialError, LegWay, Route, Routes, Settings};
#[cfg(test)]
pub(super) use socket::CarriedSocket;

use std::time::Duration;

/// UDP that brings nothing for so long is given up.
pub const PATIENCE: Duration = Duration::from_millis(2500);

/// Datagrams that wait to be written to one stream.
const QUEUE: usize = 256;
