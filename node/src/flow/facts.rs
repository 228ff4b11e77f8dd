//! What a decision may look at, and why it may refuse.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Application, Service, Session};

/// Everything `decide` knows about one request. Gathered before, never fetched during a decision.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub application: &'a Application,
    /// The proven session of the person who asks, or nobody.
    pub session: Option<&'a Arc<Session>>,
    /// The service whose credential the request has proven.
    pub service: Option<&'a Arc<Service>>,
    /// Source address; an IPv4-mapped IPv6 address has been turned into the IPv4 one.
    pub address: IpAddr,
}

/// Why something was refused. The names are public: they are metric labels, event fields and page texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The application has no policy, or none that could ever allow.
    NoPolicy,
    /// No policy matched: empty means deny.
    NoMatch,
    /// A `block` policy matched.
    Blocked,
    /// The person's identity provider is not among the application's.
    ProviderNotAllowed,
    /// Nobody is logged in (answered with the login page or 401).
    NoSession,
    /// The session is over: expired, revoked or logged out; or the service token has expired.
    SessionEnded,
    /// No application answers for this host and path.
    NoApplication,
    /// The request has two readings or breaks the protocol.
    BadRequest,
    /// The host of the request is not covered by the certificate of the connection.
    Misdirected,
    /// A WebSocket came from a page of another origin.
    ForeignOrigin,
    /// The token is malformed, expired, wrongly signed or for somebody else.
    BadToken,
    /// The token came without the cookie that binds it to this browser.
    BadBinding,
    /// Wrong user name or password, or wrong service token.
    BadCredentials,
    /// Too many attempts from this network or for this account, or too many requests of one login or person at a time.
    Throttled,
    /// The identity provider answered something that does not verify.
    ProviderAnswer,
    /// The person had to prove anew who they are, and the identity provider did not say that they did.
    NotAnew,
    /// The identity provider could not be reached.
    ProviderUnavailable,
    /// What the application publishes about itself could not be fetched.
    MetadataUnavailable,
    /// The login was started by another browser, is too old or was already used.
    BadState,
    /// The person did not let the device in.
    Declined,
    /// The connector of the application is not connected.
    ConnectorGone,
    /// The application did not answer.
    OriginDown,
    /// An enrolment token is unknown, expired or used.
    BadEnrolment,
    /// The connector's key is unknown or revoked.
    UnknownConnector,
    /// Policy lets the person in, but no UNIX user of the application is open to them.
    NoSshUser,
    /// A fault of the node's own.
    Internal,
}

impl Reason {
    /// The public name, as in events and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::NoMatch => "no_match",
            Self::Blocked => "blocked",
            Self::ProviderNotAllowed => "provider_not_allowed",
            Self::NoSession => "no_session",
            Self::SessionEnded => "session_ended",
            Self::NoApplication => "no_application",
            Self::BadRequest => "bad_request",
            Self::Misdirected => "misdirected",
            Self::ForeignOrigin => "foreign_origin",
            Self::BadToken => "bad_token",
            Self::BadBinding => "bad_binding",
            Self::BadCredentials => "bad_credentials",
            Self::Throttled => "throttled",
            Self::ProviderAnswer => "provider_answer",
            Self::NotAnew => "not_anew",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::MetadataUnavailable => "metadata_unavailable",
            Self::BadState => "bad_state",
            Self::Declined => "declined",
            Self::ConnectorGone => "connector_gone",
            Self::OriginDown => "origin_down",
            Self::BadEnrolment => "bad_enrolment",
            Self::UnknownConnector => "unknown_connector",
            Self::NoSshUser => "no_ssh_user",
            Self::Internal => "internal",
        }
    }
}
