//! `[[application]]`: what is common to all kinds, and what web applications have.

use std::ops::Range;

use toml::Spanned;

use crate::flow::{Application, Aud, EncodedSlash, HostPattern, Kind, Protocol, SaasProtocol, Web};
use crate::policy::Policy;

use super::compile::{Compiler, DAY, MINUTE};
use super::suggest::unknown;
use super::values::{check_name, check_web_origin, parse_origin, parse_url};
use super::{IdentityProvider, NodeConfig, raw};

impl Compiler<'_> {
    pub(super) fn applications(
        &mut self,
        applications: Vec<raw::Application>,
        node: &NodeConfig,
        policies: &[Policy],
        providers: &[IdentityProvider],
    ) -> Vec<Application> {
        self.unique("application", applications.iter().map(|application| &application.name));
        let mut compiled: Vec<Application> = Vec::new();
        for application in applications {
            let span = application.name.span();
            let Some(application) = self.application(application, node, policies, providers) else {
                continue;
            };
            if let Some(fault) = compiled.iter().find_map(|other| clash(other, &application)) {
                self.faults.at(span, fault);
                continue;
            }
            compiled.push(application);
        }
        compiled
    }

    fn application(
        &mut self,
        mut application: raw::Application,
        node: &NodeConfig,
        policies: &[Policy],
        providers: &[IdentityProvider],
    ) -> Option<Application> {
        let name = application.name.get_ref().clone();
        let kind = match &application.kind {
            None => Type::Web,
            Some(kind) => self.parse(kind, parse_kind)?,
        };
        if application.policies.is_empty() {
            self.faults.at(
                application.name.span(),
                format!("application `{name}` has no `policies`: nobody could reach it"),
            );
        }
        for policy in &application.policies {
            if !policies.iter().any(|known| known.name == *policy.get_ref()) {
                let message = unknown("policy", policy.get_ref(), policies.iter().map(|p| p.name.as_str()));
                self.faults.at(policy.span(), message);
            }
        }
        for provider in &application.providers {
            if !providers.iter().any(|known| known.name == *provider.get_ref()) {
                let names = providers.iter().map(|p| p.name.as_str());
                self.faults.at(provider.span(), unknown("identity provider", provider.get_ref(), names));
            }
        }
        if let Some(connector) = &application.connector {
            self.parse(connector, |text| check_name("connector", text));
        }
        if kind == Type::Saas {
            self.only_of_people(&application.policies, policies);
        }
        let session = self.duration(application.session.as_ref(), "session", MINUTE, 30 * DAY);
        let policies = std::mem::take(&mut application.policies);
        let providers = std::mem::take(&mut application.providers);
        let launcher = application.launcher.unwrap_or(true);
        let kind = match kind {
            Type::Web => Kind::Web(self.web(application, node)?),
            Type::Private(protocol) => Kind::Private(self.private(application, protocol, node)?),
            Type::Saas => Kind::Saas(self.saas(application)?),
        };
        Some(Application {
            aud: Aud::derive(&node.domain, &name),
            name,
            policies: policies.into_iter().map(Spanned::into_inner).collect(),
            providers: providers.into_iter().map(Spanned::into_inner).collect(),
            session,
            launcher,
            kind,
        })
    }

    fn web(&mut self, application: raw::Application, node: &NodeConfig) -> Option<Web> {
        let (name, span) = (application.name.get_ref(), application.name.span());
        for (key, missing) in [("url", application.url.is_none()), ("origin", application.origin.is_none())] {
            if missing {
                self.faults.at(span.clone(), format!("application `{name}` has no `{key}`"));
            }
        }
        self.stray(
            "a web application: it is for `type` tcp, udp, ssh and rdp",
            [("network", span_of(application.network.as_ref()))],
        );
        self.stray(
            "a web application: it is for `type = \"ssh\"`",
            [("ssh", span_of(application.ssh.as_ref()))],
        );
        self.stray("a web application: it is for `type = \"saas\"`", sign_in_keys(&application));
        let url = application.url.as_ref().and_then(|text| self.parse(text, |t| parse_url(t, node)));
        let origin = application.origin.as_ref().and_then(|text| self.parse(text, parse_origin));
        let allowed_origins = application
            .allowed_origins
            .iter()
            .filter_map(|origin| self.parse(origin, check_web_origin))
            .collect();
        let encoded_slash = match &application.encoded_slash {
            None => EncodedSlash::Reject,
            Some(text) => self
                .parse(text, |value| match value {
                    "reject" => Ok(EncodedSlash::Reject),
                    "pass" => Ok(EncodedSlash::Pass),
                    other => Err(format!("`{other}`: use \"reject\" or \"pass\"")),
                })
                .unwrap_or_default(),
        };
        let ca = application.origin_ca.as_ref().map(|file| self.file(file));
        let (host, path) = url?;
        if encoded_slash == EncodedSlash::Pass && path.as_str() != "/" {
            self.faults.at(
                span,
                format!(
                    "application `{name}`: `encoded_slash = \"pass\"` needs one application for the whole host"
                ),
            );
        }
        let mut origin = origin?;
        origin.connector = application.connector.map(Spanned::into_inner);
        origin.ca = ca;
        origin.server_name = application.origin_server_name.map(Spanned::into_inner);
        origin.host_header = application.host_header.map(|value| match value.into_inner() {
            own if own == "origin" => origin.authority(),
            other => other,
        });
        Some(Web { host, path, origin, allowed_origins, encoded_slash })
    }

    /// Faults of keys that have no meaning for what they stand in.
    pub(super) fn stray<'k>(
        &mut self,
        of: &str,
        keys: impl IntoIterator<Item = (&'k str, Option<Range<usize>>)>,
    ) {
        for (key, span) in keys {
            if let Some(span) = span {
                self.faults.at(span, format!("`{key}` has no meaning for {of}"));
            }
        }
    }
}

/// Where a key stands, if it does.
pub(super) fn span_of<T>(value: Option<&Spanned<T>>) -> Option<Range<usize>> {
    value.map(Spanned::span)
}

/// The keys of sign-in at an application elsewhere.
pub(super) fn sign_in_keys(application: &raw::Application) -> [(&'static str, Option<Range<usize>>); 2] {
    [("oidc", span_of(application.oidc.as_ref())), ("saml", span_of(application.saml.as_ref()))]
}

/// The type of an application, as the file names it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Web,
    Private(Protocol),
    Saas,
}

fn parse_kind(text: &str) -> Result<Type, String> {
    match text {
        "web" => return Ok(Type::Web),
        "saas" => return Ok(Type::Saas),
        _ => {}
    }
    match Protocol::ALL.into_iter().find(|protocol| protocol.as_str() == text) {
        Some(protocol) => Ok(Type::Private(protocol)),
        None => Err(format!("`{text}` is no type of application: use web, tcp, udp, ssh, rdp or saas")),
    }
}

/// Why two applications cannot be told apart by what a client asks for.
fn clash(a: &Application, b: &Application) -> Option<String> {
    let names = format!("applications `{}` and `{}`", a.name, b.name);
    match (&a.kind, &b.kind) {
        (Kind::Web(one), Kind::Web(other)) => (one.host == other.host && one.path == other.path)
            .then(|| format!("{names} have the same host and path")),
        (Kind::Saas(one), Kind::Saas(other)) => match (&one.protocol, &other.protocol) {
            (SaasProtocol::Oidc(one), SaasProtocol::Oidc(other)) if one.id == other.id => {
                Some(format!("{names} have the same `client_id`"))
            }
            // Several accounts at one service share its entity ID, and each has an endpoint of its own.
            (SaasProtocol::Oidc(_) | SaasProtocol::Saml(_), _) => None,
        },
        (Kind::Saas(_), _) | (_, Kind::Saas(_)) => None,
        (Kind::Private(private), kind) | (kind, Kind::Private(private)) => {
            let host = private.host.as_ref()?;
            let same = match kind {
                Kind::Saas(_) => false,
                Kind::Web(web) => web.host == HostPattern::Exact(host.clone()),
                Kind::Private(other) => other.host.as_ref() == Some(host),
            };
            same.then(|| format!("{names} have the same host: a private application needs one of its own"))
        }
    }
}
