//! What is protected.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::{Host, Path, Private, Reading, Saas};

/// Audience tag of an application: 64 hexadecimal digits, derived from the auth domain and the application's name,
/// so it survives restarts and needs no storage. Not a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Aud(String);

impl Aud {
    /// The audience of application `name` of the node whose auth domain is `domain`.
    pub fn derive(domain: &Host, name: &str) -> Self {
        let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for part in ["portcullis application audience", domain.as_str(), name] {
            digest.update(part.as_bytes());
            digest.update(&[0]);
        }
        Self(digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Aud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which hosts an application answers for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Exact(Host),
    /// `*.apps.example.com`: every host below, with exactly one more label, as a wildcard certificate covers it
    /// (RFC 9525 §6.3).
    Below(Host),
}

impl HostPattern {
    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Exact(exact) => exact == host,
            Self::Below(parent) => {
                host.as_str().split_once('.').is_some_and(|(_, above)| above == parent.as_str())
            }
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Below(host) => write!(f, "*.{host}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OriginScheme {
    /// HTTP/1.1 in clear text (inside the tunnel).
    Http,
    /// HTTP/1.1 over TLS, certificate verified.
    Https,
    /// HTTP/2 in clear text with prior knowledge (RFC 9113 §3.3), for gRPC.
    H2c,
    /// HTTP/2 over TLS, certificate verified.
    H2,
}

impl OriginScheme {
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::H2)
    }

    pub const fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::H2)
    }
}

/// Where an application really is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    pub scheme: OriginScheme,
    /// Host or address, as the connector resolves it.
    pub host: Host,
    pub port: u16,
    /// The connector that dials it; without one the node dials it itself.
    pub connector: Option<String>,
    /// PEM file of the authority that signed the origin's certificate, besides the system's.
    pub ca: Option<std::path::PathBuf>,
    /// Name to verify in the origin's certificate, when it is not `host`.
    pub server_name: Option<String>,
    /// `Host` header for the origin; without one it sees the application's public host.
    pub host_header: Option<String>,
}

impl Origin {
    /// `host:port`.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What happens to `%2F` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EncodedSlash {
    #[default]
    Reject,
    Pass,
}

/// What a web application is beside what every application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Web {
    pub host: HostPattern,
    /// Everything below this path belongs to the application.
    pub path: Path,
    pub origin: Origin,
    /// Foreign origins (`https://host`) that may open WebSockets.
    pub allowed_origins: Vec<String>,
    pub encoded_slash: EncodedSlash,
}

/// How an application is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// By a browser, through the edge's proxy.
    Web(Web),
    /// By `portcullis access`, in a session that ends at a connector.
    Private(Private),
    /// Elsewhere: the node only tells it who somebody is.
    Saas(Saas),
}

/// Something behind the node that policies guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    pub name: String,
    pub aud: Aud,
    /// Names of policies, in order.
    pub policies: Vec<String>,
    /// Names of the identity providers a person may use; empty means all.
    pub providers: Vec<String>,
    /// Life of an application token unless a policy says otherwise.
    pub session: Option<Duration>,
    /// Whether the launcher shows it.
    pub launcher: bool,
    pub kind: Kind,
}

impl Application {
    /// The connector that reaches it.
    pub fn connector(&self) -> Option<&str> {
        match &self.kind {
            Kind::Web(web) => web.origin.connector.as_deref(),
            Kind::Private(private) => Some(&private.connector),
            Kind::Saas(_) => None,
        }
    }

    /// Whether it answers HTTP on `host`; a private application does so only on the host of its `url`, and a SaaS
    /// application never, since it is elsewhere.
    pub fn answers_on(&self, host: &Host) -> bool {
        match &self.kind {
            Kind::Web(web) => web.host.matches(host),
            Kind::Private(private) => private.host.as_ref() == Some(host),
            Kind::Saas(_) => false,
        }
    }

    /// The one address at which it answers HTTP, host and path: a wildcard has none.
    pub fn address(&self) -> Option<(&Host, &str)> {
        match &self.kind {
            Kind::Web(Web { host: HostPattern::Exact(host), path, .. }) => Some((host, path.as_str())),
            Kind::Web(Web { host: HostPattern::Below(_), .. }) => None,
            Kind::Private(private) => private.host.as_ref().map(|host| (host, "/")),
            Kind::Saas(_) => None,
        }
    }

    /// The path on its hosts below which everything belongs to it. A private application has the whole host.
    pub fn path(&self) -> &str {
        match &self.kind {
            Kind::Web(web) => web.path.as_str(),
            Kind::Private(_) | Kind::Saas(_) => "/",
        }
    }

    /// Whether `path` belongs to it.
    pub fn holds(&self, path: &Path) -> bool {
        match &self.kind {
            Kind::Web(web) => path.is_under(&web.path),
            Kind::Private(_) => true,
            Kind::Saas(_) => false,
        }
    }

    /// Whether a path would belong to it for a server that makes `reading` of it.
    pub fn holds_loosely(&self, reading: &Reading) -> bool {
        match &self.kind {
            Kind::Web(web) => {
                web.path.readings().is_some_and(|own| own.iter().any(|own| reading.is_under(own)))
            }
            Kind::Private(_) => true,
            Kind::Saas(_) => false,
        }
    }

    /// What happens to `%2F` in a path on its hosts.
    pub const fn encoded_slash(&self) -> EncodedSlash {
        match &self.kind {
            Kind::Web(web) => web.encoded_slash,
            Kind::Private(_) | Kind::Saas(_) => EncodedSlash::Reject,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_one_label() {
        let pattern = HostPattern::Below(Host::parse("apps.example.com").unwrap());
        for (host, matched) in [
            ("a.apps.example.com", true),
            ("apps.example.com", false),
            ("a.b.apps.example.com", false),
            ("evil-apps.example.com", false),
        ] {
            assert_eq!(pattern.matches(&Host::parse(host).unwrap()), matched, "{host}");
        }
    }

    #[test]
    fn audiences_differ_by_name_and_domain() {
        let (a, b) = (Host::parse("a.example").unwrap(), Host::parse("b.example").unwrap());
        let tag = Aud::derive(&a, "wiki");
        assert_eq!(tag, Aud::derive(&a, "wiki"));
        assert_ne!(tag, Aud::derive(&b, "wiki"));
        assert_ne!(tag, Aud::derive(&a, "jira"));
        assert_eq!(tag.as_str().len(), 64);
    }
}
