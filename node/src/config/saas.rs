//! `[[application]]` of type `saas`: applications elsewhere that sign people in with the node.

use std::collections::BTreeMap;

use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use toml::Spanned;

use crate::flow::{
    BackchannelLogout, ClaimSource, ClientAuthentication, Made, OidcClient, Pattern, Saas, SaasProtocol,
};
use crate::policy::Policy;

use super::applications::span_of;
use super::compile::Compiler;
use super::raw;
use super::values::check_name;

/// Characters of the shortest client secret: nothing else stands between a stranger and the tokens of a stolen code.
const SHORTEST_SECRET: usize = 32;
/// Characters of the longest address of a client; it travels in cookies.
const LONGEST_URI: usize = 512;
/// Bytes of what goes between joined values.
const LONGEST_JOIN: usize = 16;
/// Keys of a client, and addresses of each kind.
const MOST: usize = 32;

/// Claims that the node itself makes.
const RESERVED: [&str; 23] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "iat",
    "nbf",
    "jti",
    "nonce",
    "auth_time",
    "acr",
    "amr",
    "azp",
    "at_hash",
    "c_hash",
    "sid",
    "events",
    "email",
    "email_verified",
    "name",
    "groups",
    "cnf",
    "type",
    "identity_nonce",
];

impl Compiler<'_> {
    pub(super) fn saas(&mut self, application: raw::Application) -> Option<Saas> {
        let (name, span) = (application.name.get_ref().clone(), application.name.span());
        self.stray(
            "an application of type `saas`: it is elsewhere, and the node only signs people in",
            [
                ("origin", span_of(application.origin.as_ref())),
                ("network", span_of(application.network.as_ref())),
                ("connector", span_of(application.connector.as_ref())),
                ("allowed_origins", span_of(application.allowed_origins.first())),
                ("encoded_slash", span_of(application.encoded_slash.as_ref())),
                ("origin_ca", span_of(application.origin_ca.as_ref())),
                ("origin_server_name", span_of(application.origin_server_name.as_ref())),
                ("host_header", span_of(application.host_header.as_ref())),
                ("ssh", span_of(application.ssh.as_ref())),
            ],
        );
        let url = application.url.as_ref().and_then(|url| self.parse(url, check_https));
        let protocol = match (application.oidc, application.saml) {
            (Some(oidc), None) => SaasProtocol::Oidc(self.oidc_client(&name, oidc)?),
            (None, Some(saml)) => SaasProtocol::Saml(self.saml_application(&name, saml)?),
            (None, None) => {
                let message = format!(
                    "application `{name}` has neither `oidc` nor `saml`: how does it sign people in?"
                );
                self.faults.at(span, message);
                return None;
            }
            (Some(_), Some(saml)) => {
                self.faults
                    .at(saml.span(), "an application signs people in by `oidc` or by `saml`, not by both");
                return None;
            }
        };
        Some(Saas { url, protocol })
    }

    /// A policy that knows nobody cannot say whom to sign in.
    pub(super) fn only_of_people(&mut self, named: &[Spanned<String>], policies: &[Policy]) {
        for name in named {
            let found = policies.iter().find(|policy| policy.name == *name.get_ref());
            if found.is_some_and(|policy| policy.action.is_of_requests()) {
                let message = format!(
                    "policy `{}` lets in without a login: an application of type `saas` has nobody to sign in then",
                    name.get_ref()
                );
                self.faults.at(name.span(), message);
            }
        }
    }

    fn oidc_client(&mut self, name: &str, oidc: Spanned<raw::Oidc>) -> Option<OidcClient> {
        let span = oidc.span();
        let oidc = oidc.into_inner();
        let id = match &oidc.client_id {
            None => name.to_owned(),
            Some(id) => self.parse(id, |text| check_name("client", text).map(|()| text.to_owned()))?,
        };
        let authentication = match (&oidc.client_secret, &oidc.jwks) {
            (Some(source), None) => {
                let secret = self.secret(source)?;
                if secret.expose().chars().count() < SHORTEST_SECRET {
                    let message = format!(
                        "the client secret is shorter than {SHORTEST_SECRET} characters: make one with \
                         `openssl rand -hex 32`"
                    );
                    self.faults.at(source.span(), message);
                }
                let digest =
                    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.expose().as_bytes());
                ClientAuthentication::Secret(digest.as_ref().try_into().ok()?)
            }
            (None, Some(jwks)) => ClientAuthentication::Keys(self.jwks(jwks)?),
            (None, None) => ClientAuthentication::None,
            (Some(_), Some(jwks)) => {
                self.faults
                    .at(jwks.span(), "a client proves itself by `client_secret` or by `jwks`, not by both");
                return None;
            }
        };
        if oidc.redirect_uris.is_empty() {
            self.faults.at(span.clone(), format!("application `{name}` has no `redirect_uris`"));
        }
        if oidc.redirect_uris.len().max(oidc.post_logout_redirect_uris.len()) > MOST {
            self.faults.at(span, format!("a client has at most {MOST} addresses to return to"));
        }
        let redirect_uris: Vec<String> =
            oidc.redirect_uris.iter().filter_map(|uri| self.parse(uri, check_return)).collect();
        let post_logout_redirect_uris =
            oidc.post_logout_redirect_uris.iter().filter_map(|uri| self.parse(uri, check_return)).collect();
        let backchannel_logout = oidc.backchannel_logout.and_then(|logout| {
            let ca = logout.ca.as_ref().map(|file| self.file(file));
            let uri = self.parse(&logout.uri, check_https)?;
            Some(BackchannelLogout { uri, ca, local: logout.local })
        });
        let mut claims = BTreeMap::new();
        for (claim, source) in oidc.claims {
            if RESERVED.contains(&claim.get_ref().as_str()) {
                self.faults
                    .at(claim.span(), format!("the node itself makes the claim `{}`", claim.get_ref()));
            } else {
                match claim_source(source) {
                    Ok(source) => drop(claims.insert(claim.into_inner(), source)),
                    Err(message) => self.faults.at(claim.span(), message),
                }
            }
        }
        Some(OidcClient {
            id,
            authentication,
            redirect_uris,
            post_logout_redirect_uris,
            backchannel_logout,
            claims,
        })
    }

    /// Public keys of a client: `{ file = "…" }`, or the set itself (RFC 7517 §5).
    fn jwks(&mut self, jwks: &Spanned<toml::Value>) -> Option<JwkSet> {
        let read = match jwks.get_ref().get("file").and_then(toml::Value::as_str) {
            Some(file) => {
                let path = self.base.join(file);
                std::fs::read_to_string(&path)
                    .map_err(|error| format!("{} cannot be read: {error}", path.display()))
                    .and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()))
            }
            None => serde_json::to_value(jwks.get_ref()).map_err(|error| error.to_string()),
        };
        read.and_then(public_keys).map_err(|message| self.faults.at(jwks.span(), message)).ok()
    }
}

fn public_keys(set: serde_json::Value) -> Result<JwkSet, String> {
    let private = |key: &serde_json::Value| key.get("d").is_some() || key.get("k").is_some();
    if set["keys"].as_array().is_some_and(|keys| keys.iter().any(private)) {
        return Err("`jwks` holds a secret key: only public keys belong there".to_owned());
    }
    let set: JwkSet =
        serde_json::from_value(set).map_err(|error| format!("`jwks` is no JSON Web Key Set: {error}"))?;
    if set.keys.is_empty() || set.keys.len() > MOST {
        return Err(format!("`jwks` needs from 1 to {MOST} keys"));
    }
    let good = |key: &jsonwebtoken::jwk::Jwk| {
        let asymmetric = !matches!(key.algorithm, AlgorithmParameters::OctetKey(_));
        asymmetric && jsonwebtoken::DecodingKey::from_jwk(key).is_ok()
    };
    if set.keys.iter().all(good) {
        Ok(set)
    } else {
        Err("`jwks` has a key that no signature can be verified with: use RSA, P-256 or Ed25519".to_owned())
    }
}

pub(super) fn claim_source(source: raw::Claim) -> Result<ClaimSource, String> {
    let name = match source {
        raw::Claim::Constant { value } => return Ok(ClaimSource::Constant(value)),
        raw::Claim::GroupsWith { groups_with } => return Ok(ClaimSource::GroupsWith(groups_with)),
        raw::Claim::Made { from, matches, replace, join } => return made(from, matches, replace, join),
        raw::Claim::Of(name) => name,
    };
    match name.as_str() {
        "email" => Ok(ClaimSource::Email),
        "email_local_part" => Ok(ClaimSource::EmailLocalPart),
        "name" => Ok(ClaimSource::Name),
        "groups" => Ok(ClaimSource::Groups),
        "identity_provider" => Ok(ClaimSource::IdentityProvider),
        "subject" => Ok(ClaimSource::Subject),
        _ => Err(format!(
            "`{name}` is no source of a claim: use email, email_local_part, name, groups, identity_provider, \
             subject, {{ value = \"…\" }}, {{ groups_with = \"…\" }} or {{ from = \"…\", … }}"
        )),
    }
}

/// Values of another source, filtered and rewritten, then joined.
fn made(
    from: String,
    matches: Option<String>,
    replace: Option<String>,
    join: Option<String>,
) -> Result<ClaimSource, String> {
    if matches.is_none() && replace.is_some() {
        return Err("`replace` says what stands in the place of what `matches`: give both".to_owned());
    }
    if matches.is_none() && join.is_none() {
        return Err(format!("{{ from = \"{from}\" }} changes nothing: add `matches` or `join`"));
    }
    if join.as_ref().is_some_and(|between| between.len() > LONGEST_JOIN) {
        return Err(format!("`join` has at most {LONGEST_JOIN} bytes"));
    }
    let pattern = matches.map(|text| Pattern::new(&text, replace)).transpose()?;
    Ok(ClaimSource::Made(Box::new(Made { from: claim_source(raw::Claim::Of(from))?, pattern, join })))
}

fn check_https(text: &str) -> Result<String, String> {
    let url = url::Url::parse(text).map_err(|error| format!("`{text}` is no URL: {error}"))?;
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    if url.scheme() == "https" && plain && text.len() <= LONGEST_URI && is_printable(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}`: write an https URL without user name and fragment"))
    }
}

/// An address that people are sent back to, as the client will name it: https, a loopback address, or the private
/// scheme of a native application (RFC 8252 §7.1).
pub(super) fn check_return(text: &str) -> Result<String, String> {
    let url = url::Url::parse(text).map_err(|error| format!("`{text}` is no URL: {error}"))?;
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    let scheme = match url.scheme() {
        "https" => true,
        "http" => loopback,
        other => other.contains('.'),
    };
    if !scheme {
        return Err(format!(
            "`{text}`: write https://…, http:// with a loopback address, or a private scheme like com.example:/…"
        ));
    }
    if text.contains('#') || !url.username().is_empty() || url.password().is_some() {
        return Err(format!("`{text}`: an address to return to has no fragment and no user name"));
    }
    if text.contains('*') {
        return Err(format!("`{text}`: addresses are compared as text, there are no wildcards"));
    }
    if text.len() > LONGEST_URI || !is_printable(text) {
        return Err(format!("`{text}`: use at most {LONGEST_URI} printable ASCII characters without spaces"));
    }
    Ok(text.to_owned())
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\\"<>^`{|}".contains(&byte))
}
