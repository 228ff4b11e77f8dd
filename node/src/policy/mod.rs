//! Policies: what is allowed, decided by one pure and total function.
//!
//! [`decide()`] takes a [`PolicySet`] and [`Facts`](crate::flow::Facts) and answers with a [`Decision`]. Only an
//! allowing decision carries a [`Permit`], and only that file can make one.

mod decide;
mod route;
mod rule;
mod selector;

pub use decide::{Decision, Denial, Need, Permit, PermitKind, PermitOf, decide};
pub use route::PolicySet;
pub use rule::{Action, Policy, Rule};
pub use selector::Selector;
