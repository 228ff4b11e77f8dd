//! Configuration: one TOML file, read strictly and whole.
//!
//! [`Config::load`] either gives a configuration in which every name resolves and every secret is read, or every
//! fault it found with file and line. Nothing is opened wider than asked because a key was misspelt.
//!
//! `raw` is the shape of the file, `compile` turns it into [`Config`] (`applications`, `private`, `saas`, `saml` and `saml_fit`, those); `values` and `units` read single values, and
//! `suggest` knows what was probably meant.

mod applications;
mod compile;
mod connector;
mod error;
mod private;
mod providers;
mod raw;
mod saas;
mod saml;
mod saml_fit;
mod saml_presets;
mod suggest;
mod units;
mod values;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::event::EventSettings;
use crate::flow::{Application, Host, SamlBinding};
use crate::gate::{AdminRule, Dataplane, GateConfig, GateMode};
use crate::identity::saml::{AttributeRules, MetadataSource};
use crate::policy::{Policy, PolicySet};

pub use compile::{DEFAULT_ADMIN_SOCKET, DEFAULT_PIN};
pub use connector::{DEFAULT_CONNECTIONS, DEFAULT_CONNECTOR_STATE, load_connector, read_token_file};
pub use error::{ConfigError, Fault};
pub(crate) use providers::{check_metadata_url, is_url};
pub(crate) use saml::check_service;
pub(crate) use saml_fit::Misfit;
pub use units::{Secret, parse_duration};
pub use values::check_name;

/// The whole configuration of a node.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: NodeConfig,
    pub gate: GateSettings,
    pub tunnel: TunnelSettings,
    pub events: EventSettings,
    pub identity_providers: Vec<IdentityProvider>,
    pub applications: Vec<Application>,
    pub policies: Vec<Policy>,
}

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The auth domain.
    pub domain: Host,
    /// TCP for browsers, UDP for tunnels, on the same ports.
    pub listen: Vec<SocketAddr>,
    /// The port browsers see.
    pub public_port: u16,
    /// Directory of the store.
    pub state: PathBuf,
    pub admin_socket: PathBuf,
    /// Where `/metrics`, `/healthz` and `/readyz` answer.
    pub metrics: SocketAddr,
    /// The user to become once everything privileged is done.
    pub user: Option<String>,
    /// Life of a global session.
    pub session: Duration,
    pub certificates: Vec<CertificateFiles>,
}

impl NodeConfig {
    /// Host and, unless it is 443, port of the auth domain, as in URLs.
    pub fn authority(&self) -> String {
        self.authority_of(&self.domain)
    }

    /// Host and, unless it is 443, public port, as in URLs.
    pub fn authority_of(&self, host: &Host) -> String {
        match self.public_port {
            443 => host.to_string(),
            port => format!("{host}:{port}"),
        }
    }
}

/// A certificate chain and its key, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// `[gate]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateSettings {
    pub dataplane: Dataplane,
    /// Unless an administrator has confirmed that the gate enforces.
    pub mode: GateMode,
    pub interfaces: Vec<String>,
    /// Prefixes and ports that are never locked out.
    pub admin: Vec<AdminRule>,
    /// Directory on a bpffs.
    pub pin: PathBuf,
    /// Start even where no gate can be put up.
    pub ungated: bool,
}

/// `[tunnel]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelSettings {
    /// The tunnel's port answers only those who knock.
    pub dark: bool,
}

impl Config {
    /// What the gate guards and opens, in the mode that is in force.
    pub fn gate_config(&self, mode: GateMode) -> GateConfig {
        let mut ports: Vec<u16> = self.node.listen.iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        GateConfig {
            dataplane: self.gate.dataplane,
            interfaces: self.gate.interfaces.clone(),
            admin: self.gate.admin.clone(),
            served_tcp: ports.clone(),
            served_udp: ports,
            pin: self.gate.pin.clone(),
            mode,
            egress: None,
        }
    }
}

/// `[[identity_provider]]`.
#[derive(Debug, Clone)]
pub struct IdentityProvider {
    pub name: String,
    /// What pages call it.
    pub label: String,
    pub kind: ProviderKind,
}

#[derive(Debug, Clone)]
pub enum ProviderKind {
    /// Users in the node's own store.
    Local,
    Oidc(OidcConfig),
    Saml(SamlConfig),
}

/// An OpenID Connect provider.
#[derive(Debug, Clone)]
pub struct OidcConfig {
    /// Issuer identifier: an https URL (or http on loopback, for tests and sidecars).
    pub issuer: String,
    pub client_id: String,
    pub client_secret: Option<Secret>,
    pub scopes: Vec<String>,
    /// Name of the claim that lists groups.
    pub groups_claim: Option<String>,
    /// Domains for which an absent `email_verified` counts as verified.
    pub email_domains: Vec<String>,
    /// PEM file of an authority to trust besides the system's.
    pub ca: Option<PathBuf>,
}

/// A SAML identity provider.
#[derive(Debug, Clone)]
pub struct SamlConfig {
    pub metadata: MetadataSource,
    /// That the metadata was read from.
    pub file: Option<PathBuf>,
    /// PEM file of an authority to trust besides the system's, where the metadata is fetched.
    pub ca: Option<PathBuf>,
    /// What the node calls itself, if not by the address of its metadata.
    pub entity_id: Option<String>,
    pub binding: Option<SamlBinding>,
    pub sign_requests: bool,
    pub allow_unsolicited: bool,
    /// What the node asks people to be called by.
    pub name_id_format: Option<&'static str>,
    pub rules: AttributeRules,
}

impl IdentityProvider {
    /// Files that it is read from, now or later.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let files = match &self.kind {
            ProviderKind::Local => [None, None],
            ProviderKind::Oidc(oidc) => [oidc.ca.as_deref(), None],
            ProviderKind::Saml(saml) => [saml.ca.as_deref(), saml.file.as_deref()],
        };
        files.into_iter().flatten()
    }
}

/// What is in force: a configuration and the policies compiled from it. Swapped whole by a reload.
#[derive(Debug)]
pub struct Active {
    pub config: Config,
    pub policies: PolicySet,
}

impl Active {
    pub fn new(config: Config) -> Self {
        let policies = PolicySet::new(config.applications.clone(), config.policies.clone());
        Self { config, policies }
    }

    /// The identity provider called `name`.
    pub fn provider(&self, name: &str) -> Option<&IdentityProvider> {
        self.config.identity_providers.iter().find(|provider| provider.name == name)
    }
}

impl Config {
    /// Reads and checks a file; the error lists every fault with its line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = error::read(path)?;
        Self::parse(&text, path)
    }

    /// Names of the providers that may vouch for any address at all while others exist: where a policy names an
    /// address, each of them can claim it.
    pub fn unbounded_providers(&self) -> Vec<&str> {
        if self.identity_providers.len() < 2 {
            return Vec::new();
        }
        let unbounded = |provider: &&IdentityProvider| matches!(&provider.kind, ProviderKind::Oidc(oidc) if oidc.email_domains.is_empty());
        self.identity_providers.iter().filter(unbounded).map(|provider| provider.name.as_str()).collect()
    }

    /// The OpenID providers. With several, each that does not name itself in its answers has a callback of its own.
    pub fn oidc_providers(&self) -> impl Iterator<Item = &IdentityProvider> {
        self.identity_providers.iter().filter(|provider| matches!(provider.kind, ProviderKind::Oidc(_)))
    }

    /// Names of the service tokens that policies ask for.
    pub fn service_tokens(&self) -> BTreeSet<&str> {
        self.policies.iter().flat_map(|policy| policy.rule.service_tokens()).collect()
    }

    /// Checks the text of a file called `path`. Relative file names in it are relative to its directory.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: raw::File = error::deserialize(text, path)?;
        compile::compile(raw, text, path)
    }
}

#[cfg(test)]
mod tests;
