//! Which bodies the portal reads at all: said before one has come, so that nothing is kept of what no endpoint takes.

use http::Method;

use crate::config::{Active, ProviderKind};
use crate::flow::{Host, Kind, Path, SaasProtocol};

use super::{PREFIX, Portal, cli, sso};

/// What the body of a POST is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// A form or a few fields of JSON.
    Form,
    /// An identity provider's answer (SAML, HTTP-POST): encrypted, with a thousand groups.
    Answer,
}

impl Portal {
    /// What a POST to `path` on `host` has in its body; `None` where the answer does not depend on it.
    pub fn reads(&self, host: &Host, path: &Path) -> Option<Posted> {
        let active = self.context.active();
        let on_auth = *host == active.config.node.domain;
        if !on_auth && !active.policies.has_host(host) {
            return None;
        }
        let (endpoint, rest) = split(path)?;
        match endpoint {
            "sso" if on_auth => is_sso(&active, rest).then_some(Posted::Form),
            "saml" if on_auth => of_provider(&active, rest),
            "login" | "cli" if !on_auth => None,
            _ => methods(Some((endpoint, rest))).1.then_some(Posted::Form),
        }
    }
}

/// The first part of what is below [`PREFIX`], and the rest.
pub(super) fn split(path: &Path) -> Option<(&str, &str)> {
    path.as_str().strip_prefix(PREFIX).map(|rest| rest.split_once('/').unwrap_or((rest, "")))
}

/// Whether an endpoint takes GET (and HEAD), and POST. `sso` and `saml` say so themselves.
pub(super) fn methods(endpoint: Option<(&str, &str)>) -> (bool, bool) {
    match endpoint {
        Some(("login" | "logout", _)) => (true, true),
        Some(("cert_sign", _)) => (false, true),
        Some(("cli", endpoint)) => cli::methods(endpoint),
        _ => (true, false),
    }
}

fn of_provider(active: &Active, rest: &str) -> Option<Posted> {
    let (name, endpoint) = rest.split_once('/')?;
    active.provider(name).filter(|provider| matches!(provider.kind, ProviderKind::Saml(_)))?;
    match endpoint {
        "acs" => Some(Posted::Answer),
        "logout" => Some(Posted::Form),
        _ => None,
    }
}

/// Whether `sso/<rest>` is an endpoint of an application elsewhere that takes forms.
fn is_sso(active: &Active, rest: &str) -> bool {
    active.policies.applications().any(|application| {
        let Kind::Saas(saas) = &application.kind else { return false };
        let below = saas.endpoint();
        let below = below.strip_prefix("sso/").and_then(|own| rest.strip_prefix(own));
        match (&saas.protocol, below.map(|below| below.strip_prefix('/').ok_or(below))) {
            (SaasProtocol::Oidc(_), Some(Ok(endpoint))) => sso::methods(endpoint).contains(&Method::POST),
            (SaasProtocol::Saml(_), Some(Ok("logout") | Err(""))) => true,
            _ => false,
        }
    })
}
