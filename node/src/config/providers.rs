//! `[[identity_provider]]`: each kind takes its own keys, and no other.

use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;

use crate::flow::SamlBinding;
use crate::identity::saml::{AttributeRules, MetadataSource};
use crate::saml::{NAMEID_EMAIL, NAMEID_PERSISTENT, NAMEID_TRANSIENT, NAMEID_UNSPECIFIED, Provider};

use super::compile::Compiler;
use super::saml::check_entity_id;
use super::values::{check_issuer, email_domain};
use super::{IdentityProvider, OidcConfig, ProviderKind, SamlConfig, raw};

/// Keys of the configuration that some kinds have.
const OIDC: [&str; 5] = ["issuer", "client_id", "client_secret", "scopes", "groups_claim"];
const SAML: [&str; 10] = [
    "metadata",
    "entity_id",
    "binding",
    "sign_requests",
    "allow_unsolicited",
    "name_id",
    "subject_attribute",
    "email_attribute",
    "name_attribute",
    "groups_attribute",
];
const ELSEWHERE: [&str; 2] = ["email_domains", "ca"];

impl Compiler<'_> {
    pub(super) fn providers(&mut self, providers: Vec<raw::IdentityProvider>) -> Vec<IdentityProvider> {
        self.unique("identity provider", providers.iter().map(|provider| &provider.name));
        self.bounded(&providers);
        let mut compiled = Vec::new();
        for provider in providers {
            let name = provider.name.get_ref().clone();
            let kind = match provider.kind.get_ref().as_str() {
                "local" => {
                    self.only(&provider, "local", &[]);
                    Some(ProviderKind::Local)
                }
                "oidc" => {
                    self.only(&provider, "oidc", &[&OIDC[..], &ELSEWHERE].concat());
                    self.oidc(&provider).map(ProviderKind::Oidc)
                }
                "saml" => {
                    self.only(&provider, "saml", &[&SAML[..], &ELSEWHERE].concat());
                    self.saml_provider(&provider).map(ProviderKind::Saml)
                }
                other => {
                    let message = match other {
                        "github" | "otp" | "ldap" => format!("type `{other}` is not yet supported"),
                        _ => format!(
                            "`{other}` is no type of identity provider: use `local`, `oidc` or `saml`"
                        ),
                    };
                    self.faults.at(provider.kind.span(), message);
                    None
                }
            };
            let label = provider.label.unwrap_or_else(|| match name.as_str() {
                "local" => "Password".to_owned(),
                _ => name.clone(),
            });
            compiled.extend(kind.map(|kind| IdentityProvider { name, label, kind }));
        }
        if compiled.iter().filter(|provider| matches!(provider.kind, ProviderKind::Local)).count() > 1 {
            self.faults.whole("more than one identity provider has `type = \"local\"`");
        }
        compiled
    }

    /// Where several upstream providers vouch for addresses, each says for which: one without a bound could name
    /// itself any person of the others. A SAML provider without any vouches for no address at all.
    fn bounded(&mut self, providers: &[raw::IdentityProvider]) {
        let upstream = providers.iter().filter(|provider| provider.kind.get_ref() != "local");
        if upstream.clone().count() < 2 {
            return;
        }
        let unbounded = upstream
            .filter(|provider| provider.email_domains.is_empty() && provider.kind.get_ref() != "saml");
        for provider in unbounded {
            let name = provider.name.get_ref();
            self.faults.at(
                provider.name.span(),
                format!("identity provider `{name}` needs `email_domains`: beside another it could vouch for anybody's address"),
            );
        }
    }

    /// Refuses what has no meaning for a kind: it would be thought to have some.
    fn only(&mut self, provider: &raw::IdentityProvider, kind: &str, keys: &[&str]) {
        fn at<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
            value.as_ref().map(Spanned::span)
        }
        let p = provider;
        let given = [
            ("issuer", at(&p.issuer)),
            ("client_id", at(&p.client_id)),
            ("client_secret", at(&p.client_secret)),
            ("scopes", at(&p.scopes)),
            ("groups_claim", at(&p.groups_claim)),
            ("email_domains", p.email_domains.first().map(Spanned::span)),
            ("ca", at(&p.ca)),
            ("metadata", at(&p.metadata)),
            ("entity_id", at(&p.entity_id)),
            ("binding", at(&p.binding)),
            ("sign_requests", at(&p.sign_requests)),
            ("allow_unsolicited", at(&p.allow_unsolicited)),
            ("name_id", at(&p.name_id)),
            ("subject_attribute", at(&p.subject_attribute)),
            ("email_attribute", at(&p.email_attribute)),
            ("name_attribute", at(&p.name_attribute)),
            ("groups_attribute", at(&p.groups_attribute)),
        ];
        for (key, span) in given {
            if let Some(span) = span.filter(|_| !keys.contains(&key)) {
                self.faults.at(span, format!("`{key}` has no meaning for a provider of type `{kind}`"));
            }
        }
    }

    fn oidc(&mut self, provider: &raw::IdentityProvider) -> Option<OidcConfig> {
        let span = provider.name.span();
        let name = provider.name.get_ref();
        if provider.issuer.is_none() {
            self.faults.at(span.clone(), format!("identity provider `{name}` has no `issuer`"));
        }
        if provider.client_id.is_none() {
            self.faults.at(span, format!("identity provider `{name}` has no `client_id`"));
        }
        let issuer = provider.issuer.as_ref().and_then(|text| self.parse(text, check_issuer));
        let client_secret = provider.client_secret.as_ref().and_then(|source| self.secret(source));
        let email_domains = self.email_domains(provider);
        let ca = provider.ca.as_ref().map(|file| self.file(file));
        Some(OidcConfig {
            issuer: issuer?,
            client_id: provider.client_id.as_ref()?.get_ref().clone(),
            client_secret,
            scopes: match &provider.scopes {
                Some(scopes) => scopes.get_ref().clone(),
                None => ["openid", "email", "profile"].map(str::to_owned).to_vec(),
            },
            groups_claim: provider.groups_claim.as_ref().map(|name| name.get_ref().clone()),
            email_domains,
            ca,
        })
    }

    fn email_domains(&mut self, provider: &raw::IdentityProvider) -> Vec<String> {
        provider.email_domains.iter().filter_map(|domain| self.parse(domain, email_domain)).collect()
    }

    fn saml_provider(&mut self, provider: &raw::IdentityProvider) -> Option<SamlConfig> {
        let text = |value: &Option<Spanned<String>>| value.as_ref().map(|value| value.get_ref().clone());
        let flag = |value: &Option<Spanned<bool>>| value.as_ref().map(|value| *value.get_ref());
        let rules = AttributeRules {
            subject: text(&provider.subject_attribute),
            email: text(&provider.email_attribute),
            name: text(&provider.name_attribute),
            groups: text(&provider.groups_attribute),
            email_domains: self.email_domains(provider),
        };
        let ca = provider.ca.as_ref().map(|file| self.file(file));
        let entity_id = match &provider.entity_id {
            Some(id) => Some(self.parse(id, check_entity_id)?),
            None => None,
        };
        let binding = match &provider.binding {
            Some(binding) => Some(self.parse(binding, |text| match text {
                "redirect" => Ok(SamlBinding::Redirect),
                "post" => Ok(SamlBinding::Post),
                other => Err(format!("`{other}` is no binding: use redirect or post")),
            })?),
            None => None,
        };
        let name_id_format = match &provider.name_id {
            Some(format) => Some(self.parse(format, |text| match text {
                "email" => Ok(NAMEID_EMAIL),
                "persistent" => Ok(NAMEID_PERSISTENT),
                "transient" => Ok(NAMEID_TRANSIENT),
                "unspecified" => Ok(NAMEID_UNSPECIFIED),
                other => {
                    Err(format!("`{other}` is no NameID: use email, persistent, transient or unspecified"))
                }
            })?),
            None => None,
        };
        if name_id_format == Some(NAMEID_TRANSIENT) && rules.subject.is_none() {
            let span = provider.name_id.as_ref().map_or(provider.name.span(), Spanned::span);
            self.faults.at(span, "a transient NameID tells nobody apart: it needs `subject_attribute`");
        }
        let Some(metadata) = &provider.metadata else {
            let message = format!("identity provider `{}` has no `metadata`", provider.name.get_ref());
            self.faults.at(provider.name.span(), message);
            return None;
        };
        let (metadata, file) = self.provider_metadata(metadata)?;
        Some(SamlConfig {
            metadata,
            file,
            ca,
            entity_id,
            binding,
            sign_requests: flag(&provider.sign_requests).unwrap_or(true),
            allow_unsolicited: flag(&provider.allow_unsolicited).unwrap_or(false),
            name_id_format,
            rules,
        })
    }

    fn provider_metadata(
        &mut self,
        metadata: &Spanned<String>,
    ) -> Option<(MetadataSource, Option<std::path::PathBuf>)> {
        if is_url(metadata.get_ref()) {
            return Some((MetadataSource::Url(self.parse(metadata, check_metadata_url)?), None));
        }
        let file = Spanned::new(metadata.span(), metadata.get_ref().into());
        let read = self.read(&file, |bytes| {
            let provider = Provider::read(bytes).map_err(|error| error.to_string())?;
            for address in provider.sign_in.addresses().chain(provider.logout.addresses()) {
                super::saml::check_service(address)?;
            }
            Ok(provider)
        })?;
        Some((MetadataSource::File(Arc::new(read)), Some(self.base.join(file.get_ref()))))
    }
}

/// Whether `metadata` is an address, and no file.
pub(crate) fn is_url(text: &str) -> bool {
    text.contains("://")
}

pub(crate) fn check_metadata_url(text: &str) -> Result<String, String> {
    match url::Url::parse(text) {
        Ok(url) if crate::fetch::is_protected(&url) && url.fragment().is_none() => Ok(text.to_owned()),
        _ => Err(format!("`{text}`: metadata is a file, or at https://…")),
    }
}
