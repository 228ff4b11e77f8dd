//! Events: what happened, once, for log and metrics alike.
//!
//! An [`Event`] is made where a decision is made and handed to [`Events::emit`], which counts it in the metrics and
//! queues it for the log. So log and metrics cannot disagree. Emitting never blocks and never fails the caller; an
//! event that cannot be kept is counted as lost.

mod file;
mod record;
mod sent;
mod sink;
mod summary;

pub use file::{log_before, open_log};
pub use record::{Action, Event};
pub use sent::Sent;
pub use sink::{EventSettings, Events, FileTarget, install_panic_hook};
