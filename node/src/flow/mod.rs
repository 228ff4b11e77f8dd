//! The stages of the daemon lane. Start reading here.
//!
//! ```text
//! bytes ──canonicalise──▶ Host, Path                    what was asked for, with exactly one reading
//!       ──identify──────▶ Session (or nobody)           who asks, by proof
//!       ──gather────────▶ Facts                         everything a rule may look at
//!       ──decide────────▶ Allow(Permit) | Login(Need) | Deny(Reason)
//!       ──proxy, mint───▶ origin, assertion             both accept nothing but a `Permit`
//! ```
//!
//! The types up to [`Facts`] live here. `Decision` and `Permit` live beside [`crate::policy::decide`], in the one
//! file that can make a `Permit`: its fields are private there, so no other code can reach an origin.
//!
//! Nothing in this module reads a clock, the environment or a socket: time and randomness are arguments.

mod application;
mod claim;
mod facts;
mod host;
mod ids;
mod path;
mod person;
mod private;
mod reading;
mod saas;
mod saml;
mod service;

pub use application::{Application, Aud, EncodedSlash, HostPattern, Kind, Origin, OriginScheme, Web};
pub use claim::{ClaimSource, Made, Pattern};
pub use facts::{Facts, Reason};
pub use host::{Host, HostError};
pub use ids::{ClientId, RayId, SessionId, UnixTime};
pub use path::{Path, PathError};
pub use person::{Email, EmailError, PersonId, Session};
pub use private::{Ports, PortsError, Private, Protocol, SshSettings, Target};
pub use reading::Reading;
pub use saas::{BackchannelLogout, ClientAuthentication, OidcClient, Saas, SaasProtocol};
pub use saml::{
    SamlApplication, SamlAttribute, SamlBinding, SamlConsumer, SamlLogout, SamlNameId, SamlProviderSource,
    SamlPublished, SamlSaid, SamlSaidLogout, SamlService, SamlSource,
};
pub use service::{Service, ServiceId, ServiceIdError};
