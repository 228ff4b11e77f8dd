//! The shape of the file, key by key. Unknown keys are refused. `Spanned` keeps the place for error messages.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) node: Spanned<Node>,
    #[serde(default)]
    pub(super) gate: Gate,
    #[serde(default)]
    pub(super) tunnel: Tunnel,
    #[serde(default)]
    pub(super) events: Events,
    #[serde(default, rename = "identity_provider")]
    pub(super) identity_providers: Vec<IdentityProvider>,
    #[serde(default, rename = "group")]
    pub(super) groups: Vec<Group>,
    #[serde(default, rename = "policy")]
    pub(super) policies: Vec<Policy>,
    #[serde(default, rename = "application")]
    pub(super) applications: Vec<Application>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) domain: Spanned<String>,
    pub(super) listen: Spanned<OneOrMany>,
    pub(super) public_port: Option<u16>,
    pub(super) state: Option<PathBuf>,
    pub(super) admin_socket: Option<PathBuf>,
    pub(super) metrics: Option<Spanned<String>>,
    pub(super) user: Option<String>,
    pub(super) session: Option<Spanned<String>>,
    #[serde(default, rename = "certificate")]
    pub(super) certificates: Vec<Certificate>,
    pub(super) tls: Option<Spanned<toml::Value>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Certificate {
    pub(super) cert: Spanned<PathBuf>,
    pub(super) key: Spanned<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Gate {
    pub(super) dataplane: Option<RawDataplane>,
    pub(super) mode: Option<RawMode>,
    #[serde(default)]
    pub(super) interfaces: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) admin: Vec<Spanned<String>>,
    pub(super) pin: Option<PathBuf>,
    #[serde(default)]
    pub(super) ungated: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Tunnel {
    pub(super) dark: Option<Spanned<bool>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawMode {
    Enforce,
    Audit,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawDataplane {
    Xdp,
    Userspace,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Events {
    pub(super) file: Option<String>,
    pub(super) retention: Option<Spanned<String>>,
    pub(super) max_size: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IdentityProvider {
    pub(super) name: Spanned<String>,
    #[serde(rename = "type")]
    pub(super) kind: Spanned<String>,
    pub(super) label: Option<String>,
    pub(super) issuer: Option<Spanned<String>>,
    pub(super) client_id: Option<Spanned<String>>,
    pub(super) client_secret: Option<Spanned<SecretSource>>,
    pub(super) scopes: Option<Spanned<Vec<String>>>,
    pub(super) groups_claim: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) email_domains: Vec<Spanned<String>>,
    pub(super) ca: Option<Spanned<PathBuf>>,
    pub(super) metadata: Option<Spanned<String>>,
    pub(super) entity_id: Option<Spanned<String>>,
    pub(super) binding: Option<Spanned<String>>,
    pub(super) sign_requests: Option<Spanned<bool>>,
    pub(super) allow_unsolicited: Option<Spanned<bool>>,
    pub(super) name_id: Option<Spanned<String>>,
    pub(super) subject_attribute: Option<Spanned<String>>,
    pub(super) email_attribute: Option<Spanned<String>>,
    pub(super) name_attribute: Option<Spanned<String>>,
    pub(super) groups_attribute: Option<Spanned<String>>,
}

/// Where a secret is: never in the file itself.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum SecretSource {
    File(PathBuf),
    Env(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub(super) name: Spanned<String>,
    #[serde(default)]
    pub(super) include: Vec<Spanned<Selector>>,
    #[serde(default)]
    pub(super) require: Vec<Spanned<Selector>>,
    #[serde(default)]
    pub(super) exclude: Vec<Spanned<Selector>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) name: Spanned<String>,
    pub(super) action: Spanned<String>,
    #[serde(default)]
    pub(super) include: Vec<Spanned<Selector>>,
    #[serde(default)]
    pub(super) require: Vec<Spanned<Selector>>,
    #[serde(default)]
    pub(super) exclude: Vec<Spanned<Selector>>,
    pub(super) session: Option<Spanned<String>>,
}

/// A selector has one key. Those of the contract that are not built yet are named, so that they are refused with
/// that reason.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "the values of selectors that are refused are never looked at")]
pub(super) enum Selector {
    Everyone(bool),
    Email(String),
    EmailDomain(String),
    Group(String),
    IdentityProvider(String),
    Ip(String),
    RuleGroup(String),
    Country(toml::Value),
    Amr(toml::Value),
    SamlAttribute(toml::Value),
    OidcClaim(toml::Value),
    ExternalEvaluation(toml::Value),
    ClientCertificate(toml::Value),
    CommonName(toml::Value),
    ServiceToken(String),
    AnyServiceToken(bool),
    DevicePosture(toml::Value),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Application {
    pub(super) name: Spanned<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<Spanned<String>>,
    pub(super) url: Option<Spanned<String>>,
    pub(super) origin: Option<Spanned<String>>,
    pub(super) network: Option<Spanned<Network>>,
    pub(super) connector: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) policies: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) providers: Vec<Spanned<String>>,
    pub(super) session: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) allowed_origins: Vec<Spanned<String>>,
    pub(super) encoded_slash: Option<Spanned<String>>,
    pub(super) origin_ca: Option<Spanned<PathBuf>>,
    pub(super) origin_server_name: Option<Spanned<String>>,
    pub(super) host_header: Option<Spanned<String>>,
    pub(super) ssh: Option<Spanned<Ssh>>,
    pub(super) oidc: Option<Spanned<Oidc>>,
    pub(super) saml: Option<Spanned<Saml>>,
    pub(super) launcher: Option<bool>,
}

/// Addresses and ports that clients may name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    pub(super) prefix: Spanned<String>,
    pub(super) ports: Vec<Spanned<Port>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Port {
    One(i64),
    /// `8000-8100`.
    Range(String),
}

/// Who people may be on the host of an application of type `ssh`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ssh {
    #[serde(default)]
    pub(super) users: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) email_user_domains: Vec<Spanned<String>>,
}

/// What an application of type `saas` is as a client of the node's OpenID provider.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Oidc {
    pub(super) client_id: Option<Spanned<String>>,
    pub(super) client_secret: Option<Spanned<SecretSource>>,
    pub(super) jwks: Option<Spanned<toml::Value>>,
    #[serde(default)]
    pub(super) redirect_uris: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) post_logout_redirect_uris: Vec<Spanned<String>>,
    pub(super) backchannel_logout: Option<Backchannel>,
    #[serde(default)]
    pub(super) claims: BTreeMap<Spanned<String>, Claim>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backchannel {
    pub(super) uri: Spanned<String>,
    pub(super) ca: Option<Spanned<PathBuf>>,
    #[serde(default)]
    pub(super) local: bool,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(super) enum Claim {
    Of(String),
    Constant { value: String },
    GroupsWith { groups_with: String },
    Made { from: String, matches: Option<String>, replace: Option<String>, join: Option<String> },
}

/// What an application of type `saas` is as a service provider of the node's SAML identity provider.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saml {
    pub(super) preset: Option<Spanned<String>>,
    /// A file or an address.
    pub(super) metadata: Option<Spanned<String>>,
    pub(super) ca: Option<Spanned<PathBuf>>,
    pub(super) entity_id: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) acs: Vec<Spanned<String>>,
    pub(super) certificate: Option<Spanned<PathBuf>>,
    pub(super) encryption_certificate: Option<Spanned<PathBuf>>,
    pub(super) require_signed: Option<bool>,
    pub(super) name_id: Option<Spanned<Claim>>,
    pub(super) attributes: Option<BTreeMap<Spanned<String>, Claim>>,
    pub(super) relay_state: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) logout: SamlLogout,
}

/// Where a service provider takes messages of single logout; what its metadata says is the default.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SamlLogout {
    pub(super) redirect: Option<Spanned<String>>,
    pub(super) post: Option<Spanned<String>>,
    pub(super) soap: Option<Spanned<String>>,
    pub(super) ca: Option<Spanned<PathBuf>>,
    #[serde(default)]
    pub(super) local: bool,
}
