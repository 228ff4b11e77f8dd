//! The access client: `portcullis access …`, the person's end of what is not a web page.
//!
//! ```text
//! login    browser or device code ──▶ tokens, what to dial ──▶ profile       api (the node's endpoints), login, loopback
//! profile  device key, refresh token, access token, node       one directory per node, private files, one lock
//! use      access token, fresh by itself ──▶ tunnel, apps, application tokens
//! ```
//!
//! The profile is all that is kept. Its refresh token is worth nothing without its device key, and neither without the
//! person's login at the node, which ends both.

mod api;
mod login;
mod loopback;
mod profile;
mod tokens;
pub(crate) mod wire;

pub use api::{ApiError, Refusal};
pub use login::{Login, LoginError, Prompt};
pub use loopback::LoopbackError;
pub use profile::{AccessToken, NodeAddress, Profile, ProfileError, logged_in, root};
pub use tokens::AccessError;
pub use wire::{AppRow, ApplicationToken, WhoAmI};
