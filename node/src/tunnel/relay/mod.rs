//! The relay of private sessions: how two ends prove where they are, and how the node then carries what it cannot read.
//!
//! ```text
//! end          Bind ──────────▶ node       "leg L of session S is where this comes from"     end, wire
//!      ◀────── Challenge                   "I see you at A; here is a nonce"                  node, wire
//!             Answer ─────────▶            "A and nonce, under the bind key"
//!                               │ both legs answered
//!                               ▼
//!                  Install ── two grants ──▶ XDP's flow entries, or the table here            userspace
//!      ◀══ ready (control connection)      from here on end-to-end packets, rewritten and sent on
//! ```
//!
//! The client need not wait for that: its first packets may come with its Answer, and the node holds them until then.      first
//!
//! 1. The daemon registers a session and its legs with [`Binds`]: the only way in which state comes to be.
//! 2. Each end runs an [`End`], from a UDP port of its own, until the node says that both legs are in place.
//! 3. What the machine decides is an [`Action`]; the loop around it writes maps, or the [`Relay`]'s table, and tells the ends.
//! 4. [`Demux`] keeps all that apart from the node's own QUIC connections, on the same UDP port.
//!
//! `wire`, `first`, `node`, `end` and `userspace` read no clock, no socket and no randomness of their own. Time is that of the
//! monotonic clock, since its origin, as the kernel's `bpf_ktime_get_ns` counts it.

mod demux;
mod end;
mod first;
mod leg;
mod legs;
mod node;
#[cfg(test)]
mod tests;
mod tuple;
mod userspace;
pub mod wire;

pub use demux::{BindDatagram, Demux, FirstDatagram, Losses, Queues, Relay};
pub use end::{End, EndInput, EndOutput, LegState};
pub use leg::{BoundLeg, LegLayer};
pub use legs::{LegAddress, Legs};
pub use node::{Action, Binds, EarlyClaim, LegSecret, Onward, Own, RegisterError, Removed};
pub use tuple::{Early, Grant, Leg, MAX_SESSIONS, Pair, SessionRef, Terms, Tuple};
pub use userspace::{Passage, Refused, Sent, Table, Usage};
