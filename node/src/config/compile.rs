//! From the shape of the file to a configuration in which everything resolves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use crate::event::{EventSettings, FileTarget};
use crate::flow::Host;
use crate::gate::{AdminRule, Dataplane, GateMode};
use crate::policy::{Action, Policy, Rule, Selector};

use super::error::Faults;
use super::suggest::unknown;
use super::units::{parse_duration, parse_size};
use super::values::{check_name, email_domain};
use super::{
    CertificateFiles, Config, ConfigError, GateSettings, IdentityProvider, NodeConfig, Secret,
    TunnelSettings, raw,
};

const DEFAULT_STATE: &str = "/var/lib/portcullis";
/// Where the admin socket is unless the file says otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/portcullis/admin.sock";
const DEFAULT_METRICS: &str = "127.0.0.1:9464";
/// Where the gate is pinned unless the file says otherwise.
pub const DEFAULT_PIN: &str = "/sys/fs/bpf/portcullis";
pub(super) const MINUTE: u64 = 60;
pub(super) const DAY: u64 = 86_400;

pub(super) fn compile(file: raw::File, text: &str, path: &Path) -> Result<Config, ConfigError> {
    let mut compiler =
        Compiler { base: path.parent().unwrap_or(Path::new("")), faults: Faults::new(text, path) };
    let node = compiler.node(file.node);
    let gate = compiler.gate(file.gate, node.as_ref());
    let tunnel = compiler.tunnel(&file.tunnel, &gate);
    let events = compiler.events(file.events);
    let identity_providers = compiler.providers(file.identity_providers);
    let rules = compiler.rules(file.groups, &identity_providers);
    let policies = compiler.policies(file.policies, &rules, &identity_providers);
    let applications = match &node {
        Some(node) => compiler.applications(file.applications, node, &policies, &identity_providers),
        None => Vec::new(),
    };
    let config =
        node.map(|node| Config { node, gate, tunnel, events, identity_providers, applications, policies });
    compiler.faults.finish(config)
}

/// Reads a secret: the file's text without the line end.
fn read_secret_file(path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("the secret {} cannot be read: {error}", path.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(format!("the secret {} is empty", path.display()));
    }
    Ok(Secret::new(text.to_owned()))
}

/// Its methods are spread over the files of this folder by topic.
pub(super) struct Compiler<'a> {
    /// What relative file names are relative to.
    pub(super) base: &'a Path,
    pub(super) faults: Faults<'a>,
}

impl Compiler<'_> {
    fn node(&mut self, node: Spanned<raw::Node>) -> Option<NodeConfig> {
        let span = node.span();
        let node = node.into_inner();
        if let Some(tls) = &node.tls {
            let message = "`tls` is not yet supported (no ACME): name files in [[node.certificate]]";
            self.faults.at(tls.span(), message);
        }
        if node.certificates.is_empty() && node.tls.is_none() {
            self.faults.at(span, "[node] has no certificate: add [[node.certificate]] with `cert` and `key`");
        }
        let domain = self.parse(&node.domain, |text| Host::parse(text).map_err(|e| e.to_string()));
        let listen = self.listen(&node.listen);
        let certificates = node
            .certificates
            .into_iter()
            .map(|files| CertificateFiles { cert: self.file(&files.cert), key: self.file(&files.key) })
            .collect();
        let metrics = match &node.metrics {
            Some(text) => self.parse(text, |text| {
                let address: SocketAddr = text.parse().map_err(|_| format!("`{text}` is no address:port"))?;
                if address.ip().is_loopback() {
                    Ok(address)
                } else {
                    Err(format!("`{text}` is not on loopback: metrics have no login"))
                }
            }),
            None => DEFAULT_METRICS.parse().ok(),
        };
        let session = self
            .duration(node.session.as_ref(), "session", 15 * MINUTE, 30 * DAY)
            .unwrap_or(Duration::from_secs(DAY));
        Some(NodeConfig {
            public_port: node.public_port.unwrap_or(listen.first().map_or(443, SocketAddr::port)),
            domain: domain?,
            listen,
            state: node.state.map_or_else(|| DEFAULT_STATE.into(), |path| self.base.join(path)),
            admin_socket: node
                .admin_socket
                .map_or_else(|| DEFAULT_ADMIN_SOCKET.into(), |path| self.base.join(path)),
            metrics: metrics?,
            user: node.user,
            session,
            certificates,
        })
    }

    fn listen(&mut self, listen: &Spanned<raw::OneOrMany>) -> Vec<SocketAddr> {
        let texts = match listen.get_ref() {
            raw::OneOrMany::One(text) => std::slice::from_ref(text),
            raw::OneOrMany::Many(texts) => texts.as_slice(),
        };
        if texts.is_empty() {
            self.faults.at(listen.span(), "`listen` is empty");
        }
        let mut addresses = Vec::new();
        for text in texts {
            match text.parse::<SocketAddr>() {
                Ok(address) if address.port() == 0 => {
                    self.faults.at(listen.span(), format!("`{text}` has port 0"));
                }
                Ok(address) => addresses.push(address),
                Err(_) => self.faults.at(
                    listen.span(),
                    format!("`{text}` is no address:port: write \"[::]:443\" for both families"),
                ),
            }
        }
        addresses
    }

    fn gate(&mut self, gate: raw::Gate, node: Option<&NodeConfig>) -> GateSettings {
        let dataplane = match gate.dataplane {
            Some(raw::RawDataplane::Userspace) => Dataplane::Userspace,
            Some(raw::RawDataplane::Xdp) | None => Dataplane::Xdp,
        };
        let mode = match gate.mode {
            Some(raw::RawMode::Audit) => GateMode::Audit,
            Some(raw::RawMode::Enforce) | None => GateMode::Enforce,
        };
        let interfaces: Vec<String> = gate
            .interfaces
            .iter()
            .filter_map(|name| {
                self.parse(name, |text| match text {
                    "lo" => Err("the gate is never attached to `lo`".to_owned()),
                    _ if text.is_empty() || text.len() > 15 || text.contains(['/', ' ']) => {
                        Err(format!("`{text}` is no interface name"))
                    }
                    _ => Ok(text.to_owned()),
                })
            })
            .collect();
        if interfaces.is_empty() && !gate.ungated && node.is_some() {
            self.faults.whole(
                "[gate] names no interface: set `interfaces`, or `ungated = true` to run without a gate",
            );
        }
        GateSettings {
            dataplane,
            mode,
            interfaces,
            admin: gate.admin.iter().filter_map(|text| self.parse(text, str::parse::<AdminRule>)).collect(),
            pin: gate.pin.unwrap_or_else(|| DEFAULT_PIN.into()),
            ungated: gate.ungated,
        }
    }

    fn tunnel(&mut self, tunnel: &raw::Tunnel, gate: &GateSettings) -> TunnelSettings {
        let dark = tunnel.dark.as_ref().is_some_and(|dark| *dark.get_ref());
        if dark && gate.interfaces.is_empty() {
            let span = tunnel.dark.as_ref().map_or(0..0, Spanned::span);
            self.faults.at(span, "`dark` takes a gate: name `interfaces` in [gate]");
        }
        TunnelSettings { dark }
    }

    fn events(&mut self, events: raw::Events) -> EventSettings {
        let file = events.file.map(|file| match file.as_str() {
            "stdout" => FileTarget::Stdout,
            path => FileTarget::Path(self.base.join(path)),
        });
        let max_size = events.max_size.as_ref().and_then(|text| self.parse(text, parse_size));
        EventSettings {
            file,
            retention: self
                .duration(events.retention.as_ref(), "retention", 3600, 3650 * DAY)
                .unwrap_or(Duration::from_secs(90 * DAY)),
            max_size: max_size.unwrap_or(1 << 30),
        }
    }

    pub(super) fn secret(&mut self, source: &Spanned<raw::SecretSource>) -> Option<Secret> {
        let read = match source.get_ref() {
            raw::SecretSource::File(path) => read_secret_file(&self.base.join(path)),
            raw::SecretSource::Env(name) => match std::env::var(name) {
                Ok(text) if !text.is_empty() => Ok(Secret::new(text)),
                _ => Err(format!("the environment variable {name} is not set")),
            },
        };
        read.map_err(|message| self.faults.at(source.span(), message)).ok()
    }

    /// Reusable rules by name. One may use those above it, so there are no cycles.
    fn rules(&mut self, groups: Vec<raw::Group>, providers: &[IdentityProvider]) -> BTreeMap<String, Rule> {
        self.unique("group", groups.iter().map(|group| &group.name));
        let mut rules = BTreeMap::new();
        for group in groups {
            let rule = Rule {
                include: self.selectors(&group.include, &rules, providers),
                require: self.selectors(&group.require, &rules, providers),
                exclude: self.selectors(&group.exclude, &rules, providers),
            };
            rules.insert(group.name.into_inner(), rule);
        }
        rules
    }

    fn policies(
        &mut self,
        policies: Vec<raw::Policy>,
        rules: &BTreeMap<String, Rule>,
        providers: &[IdentityProvider],
    ) -> Vec<Policy> {
        self.unique("policy", policies.iter().map(|policy| &policy.name));
        let mut compiled = Vec::new();
        for policy in policies {
            let action = self.parse(&policy.action, |text| match text {
                "allow" => Ok(Action::Allow),
                "block" => Ok(Action::Block),
                "bypass" => Ok(Action::Bypass),
                "service_auth" => Ok(Action::ServiceAuth),
                other => Err(format!("`{other}` is no action: use allow, block, bypass or service_auth")),
            });
            let rule = Rule {
                include: self.selectors(&policy.include, rules, providers),
                require: self.selectors(&policy.require, rules, providers),
                exclude: self.selectors(&policy.exclude, rules, providers),
            };
            if policy.include.is_empty() {
                self.faults.at(
                    policy.name.span(),
                    format!("policy `{}` has no `include`: it would match nobody", policy.name.get_ref()),
                );
            }
            if action.is_some_and(Action::is_of_requests) && rule.needs_identity() {
                self.faults.at(
                    policy.name.span(),
                    format!(
                        "policy `{}` has action `{}`, which knows nobody: only `ip`, `everyone`, `service_token` \
                         and `any_service_token` can be used",
                        policy.name.get_ref(),
                        policy.action.get_ref()
                    ),
                );
            }
            let session = self.duration(policy.session.as_ref(), "session", MINUTE, 30 * DAY);
            if let Some(action) = action {
                compiled.push(Policy { name: policy.name.into_inner(), action, rule, session });
            }
        }
        compiled
    }

    fn selectors(
        &mut self,
        selectors: &[Spanned<raw::Selector>],
        rules: &BTreeMap<String, Rule>,
        providers: &[IdentityProvider],
    ) -> Vec<Selector> {
        selectors.iter().filter_map(|selector| self.selector(selector, rules, providers)).collect()
    }

    fn selector(
        &mut self,
        selector: &Spanned<raw::Selector>,
        rules: &BTreeMap<String, Rule>,
        providers: &[IdentityProvider],
    ) -> Option<Selector> {
        let compiled = match selector.get_ref() {
            raw::Selector::Everyone(true) => Ok(Selector::Everyone),
            raw::Selector::Everyone(false) => Err("`everyone` can only be true".to_owned()),
            raw::Selector::Email(text) => {
                text.parse().map(Selector::Email).map_err(|error| format!("`{text}`: {error}"))
            }
            raw::Selector::EmailDomain(text) => email_domain(text).map(Selector::EmailDomain),
            raw::Selector::Group(name) => Ok(Selector::Group(name.clone())),
            raw::Selector::IdentityProvider(name) => {
                if providers.iter().any(|provider| provider.name == *name) {
                    Ok(Selector::IdentityProvider(name.clone()))
                } else {
                    Err(unknown("identity provider", name, providers.iter().map(|p| p.name.as_str())))
                }
            }
            raw::Selector::Ip(text) => match text.parse::<ipnet::IpNet>() {
                Ok(net) => Ok(Selector::Ip(net.trunc())),
                Err(_) => text
                    .parse::<std::net::IpAddr>()
                    .map(|address| Selector::Ip(address.into()))
                    .map_err(|_| format!("`{text}` is no address or prefix")),
            },
            raw::Selector::RuleGroup(name) => match rules.get(name) {
                Some(rule) => Ok(Selector::RuleGroup(Box::new(rule.clone()))),
                None => Err(unknown("group", name, rules.keys().map(String::as_str))),
            },
            raw::Selector::Country(_) => Err(unsupported("country")),
            raw::Selector::Amr(_) => Err(unsupported("amr")),
            raw::Selector::SamlAttribute(_) => Err(unsupported("saml_attribute")),
            raw::Selector::OidcClaim(_) => Err(unsupported("oidc_claim")),
            raw::Selector::ExternalEvaluation(_) => Err(unsupported("external_evaluation")),
            raw::Selector::ClientCertificate(_) => Err(unsupported("client_certificate")),
            raw::Selector::CommonName(_) => Err(unsupported("common_name")),
            raw::Selector::ServiceToken(name) => {
                check_name("service token", name).map(|()| Selector::ServiceToken(name.clone()))
            }
            raw::Selector::AnyServiceToken(true) => Ok(Selector::AnyServiceToken),
            raw::Selector::AnyServiceToken(false) => Err("`any_service_token` can only be true".to_owned()),
            raw::Selector::DevicePosture(_) => Err(unsupported("device_posture")),
        };
        compiled.map_err(|message| self.faults.at(selector.span(), message)).ok()
    }

    /// Every name of a kind must be well-formed and occur once.
    pub(super) fn unique<'n>(&mut self, kind: &str, names: impl Iterator<Item = &'n Spanned<String>>) {
        let mut seen: Vec<&str> = Vec::new();
        for name in names {
            if let Err(message) = check_name(kind, name.get_ref()) {
                self.faults.at(name.span(), message);
            }
            if seen.contains(&name.get_ref().as_str()) {
                self.faults.at(name.span(), format!("{kind} `{}` is named twice", name.get_ref()));
            }
            seen.push(name.get_ref());
        }
    }

    pub(super) fn parse<T>(
        &mut self,
        text: &Spanned<String>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(text.get_ref()).map_err(|message| self.faults.at(text.span(), message)).ok()
    }

    pub(super) fn duration(
        &mut self,
        text: Option<&Spanned<String>>,
        key: &str,
        least: u64,
        most: u64,
    ) -> Option<Duration> {
        let text = text?;
        let duration = self.parse(text, parse_duration)?;
        if !(least..=most).contains(&duration.as_secs()) {
            let bounds = format!("`{key}` must be from {least} s to {} d", most / DAY);
            self.faults.at(text.span(), bounds);
            return None;
        }
        Some(duration)
    }

    /// A file that must exist, relative to the configuration's directory.
    pub(super) fn file(&mut self, path: &Spanned<PathBuf>) -> PathBuf {
        let full = self.base.join(path.get_ref());
        if let Err(error) = std::fs::File::open(&full) {
            self.fault_at(path.span(), format!("{} cannot be read: {error}", full.display()));
        }
        full
    }

    fn fault_at(&mut self, span: Range<usize>, message: String) {
        self.faults.at(span, message);
    }
}

fn unsupported(selector: &str) -> String {
    format!("selector `{selector}` is not yet supported")
}
