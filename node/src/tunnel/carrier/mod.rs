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
//! 2. A connection whose packets get no answer for as long moves to TCP as it is: QUIC migrates it (RFC 9000 §9), and no
//!    stream of it notices more than a pause.
//! 3. While something goes over TCP, UDP is tried again, at most a minute apart. When it answers, everything moves back.
//!
//! `choice` and `silence` decide and are pure; `route` performs.
//!
//! **Trust.** The TLS on the outside proves nothing and hides nothing that UDP would not show: the node's certificate may be
//! of a private authority, so the dialling side does not look at it. Whoever stands in between sees QUIC packets, as he would
//! on UDP; the node proves its pinned key in the handshake inside, and so does the end. At the node a stream is judged as
//! UDP is: by the same [`admit`](portcullis_common::admit()), with the address of the TCP connection.

pub mod capsule;
mod choice;
mod http;
mod node;
mod pump;
mod route;
mod silence;
mod socket;
#[cfg(test)]
mod tests;

pub use choice::Carrier;
pub use http::{Web, WebError};
pub(super) use node::is_stream;
pub use node::{Carried, Stream};
pub use pump::Ended;
pub use route::{Connected, DialError, Route, Routes, Settings};

use std::time::Duration;

/// A carrier that brings nothing for so long is given up.
pub const PATIENCE: Duration = Duration::from_millis(2500);

/// Datagrams that wait to be written to one stream.
const QUEUE: usize = 256;
