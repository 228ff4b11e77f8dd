//! The access client: `portcullis access …`, the person's end of what is not a web page.
//!
//! ```text
//! login    browser or device code ──▶ tokens, what to dial ──▶ profile       api (the node's endpoints), login, loopback
//! profile  device key, refresh token, access token, node       one directory per node, private files, one lock
//! use      access token, fresh by itself ──▶ apps, application tokens, private sessions        forward, person
//! ```
//!
//! The profile is all that is kept. Its refresh token is worth nothing without its device key, and neither without the
//! person's login at the node, which ends both.

mod api;
pub mod forward;
mod login;
mod loopback;
mod person;
mod profile;
mod ssh;
mod ssh_config;
mod tokens;
pub(crate) mod wire;

pub use api::{ApiError, Refusal};
pub use login::{Login, LoginError, Prompt};
pub use loopback::LoopbackError;
pub use profile::{AccessToken, NodeAddress, Profile, ProfileError, logged_in, root};
pub use ssh::{SshCertError, SshIdentity};
pub use ssh_config::{SshConfig, SshConfigError};
pub use tokens::AccessError;
pub use wire::{AppRow, ApplicationToken, GlobalToken, WhoAmI};
