//! `saml = { … }` of an application: a service provider of the node's SAML identity provider.

use std::io::Read as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use toml::Spanned;

use crate::flow::{
    ClaimSource, SamlApplication, SamlAttribute, SamlNameId, SamlProviderSource, SamlPublished, SamlSaid,
    SamlSaidLogout, SamlSource,
};
use crate::saml::{
    Certificate, LONGEST_RELAY_STATE, LogoutService, ServiceProvider, Validity, can_encrypt_to,
};

use super::compile::Compiler;
use super::providers::{check_metadata_url, is_url};
use super::raw;
use super::saas::{check_return, claim_source};
use super::saml_fit::Key;
use super::saml_presets::preset;

/// Consumer services and attributes of a service provider.
const MOST: usize = 64;
/// Characters of the longest entity ID (SAML metadata §2.2.1).
const LONGEST_ENTITY_ID: usize = 1024;

/// Bytes of the largest metadata or certificate file.
const LARGEST_FILE: u64 = 1 << 20;

/// Where a service provider's metadata is.
enum Metadata {
    None,
    File(PathBuf, Box<ServiceProvider>),
    Url(String),
}

impl Compiler<'_> {
    pub(super) fn saml_application(
        &mut self,
        name: &str,
        saml: Spanned<raw::Saml>,
    ) -> Option<SamlApplication> {
        let span = saml.span();
        let saml = saml.into_inner();
        let source = match &saml.metadata {
            None => Metadata::None,
            Some(place) if is_url(place.get_ref()) => Metadata::Url(self.parse(place, check_metadata_url)?),
            Some(file) => {
                let file = Spanned::new(file.span(), PathBuf::from(file.get_ref()));
                let read =
                    self.read(&file, |bytes| ServiceProvider::read(bytes).map_err(|e| e.to_string()))?;
                Metadata::File(self.base.join(file.get_ref()), Box::new(read))
            }
        };
        let ca = saml.ca.as_ref().map(|file| self.file(file));
        if let (Some(ca), false) = (&saml.ca, matches!(source, Metadata::Url(_))) {
            self.faults.at(ca.span(), "`ca` is for `metadata` at an address; `logout` has its own");
        }
        let named = [&saml.certificate, &saml.encryption_certificate];
        let named = named.into_iter().flatten().map(|file| self.base.join(file.get_ref()));
        let mut files: Vec<PathBuf> = named.chain(ca.clone()).collect();
        let place = saml.metadata.as_ref().map_or(span.clone(), Spanned::span);
        let chosen: Vec<_> = saml.acs.iter().map(Spanned::span).collect();
        let (said, consumers) = self.saml_said(name, saml, &source, span.clone())?;
        let document = match source {
            Metadata::Url(url) => {
                let published = SamlPublished { url, ca, said };
                let provider = SamlProviderSource::Published(Arc::new(published));
                return Some(SamlApplication { name: name.to_owned(), provider, files });
            }
            Metadata::File(path, document) => {
                files.push(path);
                *document
            }
            Metadata::None => ServiceProvider {
                entity_id: said.entity_id.clone()?,
                consumers: (0..).zip(consumers).map(|(index, location)| (location, Some(index))).collect(),
                signing: Vec::new(),
                encryption: None,
                signs_requests: false,
                name_id_format: None,
                logout: LogoutService::default(),
                validity: Validity::default(),
            },
        };
        match said.with(&document) {
            Ok(service) => {
                let provider = SamlProviderSource::Configured(Arc::new(service));
                Some(SamlApplication { name: name.to_owned(), provider, files })
            }
            Err(misfit) => {
                let span = match misfit.key {
                    Key::Metadata => place,
                    Key::Consumer(index) => chosen.get(index).cloned().unwrap_or(place),
                    Key::RequireSigned => span,
                };
                self.faults.at(span, format!("application `{name}`: {misfit}"));
                None
            }
        }
    }

    /// What the configuration says by itself; and where there is no metadata, the consumer services.
    fn saml_said(
        &mut self,
        name: &str,
        saml: raw::Saml,
        source: &Metadata,
        span: Range<usize>,
    ) -> Option<(SamlSaid, Vec<String>)> {
        let preset = match &saml.preset {
            None => None,
            Some(name) => Some(self.parse(name, preset)?),
        };
        let shared = preset.as_ref().and_then(|preset| preset.entity_id);
        let without_metadata = matches!(source, Metadata::None);
        if let (Some(id), Metadata::File(..)) = (&saml.entity_id, source) {
            self.faults.at(id.span(), "`entity_id` is in the metadata: give one or the other");
        }
        for (key, is_missing) in
            [("entity_id", saml.entity_id.is_none() && shared.is_none()), ("acs", saml.acs.is_empty())]
        {
            if without_metadata && is_missing {
                let message = format!("application `{name}` has no `{key}`, nor `metadata` that names it");
                self.faults.at(span.clone(), message);
            }
        }
        let entity_id = match (&saml.entity_id, source) {
            (Some(id), _) => Some(self.parse(id, check_entity_id)?),
            (None, Metadata::None) => shared.map(str::to_owned),
            (None, Metadata::Url(_) | Metadata::File(..)) => None,
        };
        let consumers: Vec<String> = match source {
            // They are compared with those of the metadata, which names them all if one is none.
            Metadata::File(..) => saml.acs.iter().map(|location| location.get_ref().clone()).collect(),
            Metadata::None | Metadata::Url(_) => {
                saml.acs.iter().filter_map(|location| self.parse(location, check_service)).collect()
            }
        };
        let (consumers, own) =
            if without_metadata { (Vec::new(), consumers) } else { (consumers, Vec::new()) };
        let certificates = match &saml.certificate {
            Some(file) => {
                Some(self.read(file, |pem| Certificate::all_from_pem(pem).map_err(|e| e.to_string()))?)
            }
            None => None,
        };
        let encrypt_to = match &saml.encryption_certificate {
            Some(file) => Some(self.read(file, recipient)?),
            None => None,
        };
        if saml.acs.len() > MOST || saml.attributes.as_ref().is_some_and(|all| all.len() > MOST) {
            self.faults.at(span, format!("at most {MOST} `acs` and `attributes`"));
            return None;
        }
        let logout = self.saml_logout(&saml.logout);
        let (preset_name, preset_attributes) =
            preset.map(|preset| (preset.name_id, preset.attributes)).unzip();
        let name_id = match saml.name_id {
            Some(name_id) => Some(self.name_id(name_id)?),
            None => preset_name,
        };
        let attributes = match saml.attributes {
            Some(attributes) => self.attributes(attributes),
            None => preset_attributes.unwrap_or_else(default_attributes),
        };
        let relay_state = match &saml.relay_state {
            Some(state) => Some(self.parse(state, check_relay_state)?),
            None => None,
        };
        let said = SamlSaid {
            name: name.to_owned(),
            entity_id,
            consumers,
            require_signed: saml.require_signed.or_else(|| certificates.as_ref().map(|_| true)),
            certificates,
            encrypt_to,
            name_id,
            attributes,
            relay_state,
            logout,
        };
        Some((said, own))
    }

    fn saml_logout(&mut self, logout: &raw::SamlLogout) -> SamlSaidLogout {
        let mut place = |said: &Option<Spanned<String>>| self.parse(said.as_ref()?, check_service);
        SamlSaidLogout {
            redirect: place(&logout.redirect),
            post: place(&logout.post),
            soap: place(&logout.soap),
            ca: logout.ca.as_ref().map(|file| self.file(file)),
            local: logout.local,
        }
    }

    fn name_id(&mut self, name_id: Spanned<raw::Claim>) -> Option<SamlNameId> {
        let span = name_id.span();
        let source = match name_id.into_inner() {
            raw::Claim::Of(name) if name == "email" => return Some(SamlNameId::Email),
            raw::Claim::Of(name) if name == "persistent" => return Some(SamlNameId::Persistent),
            raw::Claim::Of(name) if name == "transient" => return Some(SamlNameId::Transient),
            source => claim_source(source),
        };
        match source {
            Ok(source) if !source.is_personal() => {
                self.faults.at(span, format!("`name_id` cannot be {source:?}: it has to tell people apart"));
                None
            }
            Ok(source) => Some(SamlNameId::Of(source)),
            Err(message) => {
                self.faults.at(span, format!("{message}, email, persistent or transient"));
                None
            }
        }
    }

    fn attributes(
        &mut self,
        attributes: std::collections::BTreeMap<Spanned<String>, raw::Claim>,
    ) -> Vec<SamlAttribute> {
        let mut found = Vec::new();
        for (name, source) in attributes {
            let source = match source {
                raw::Claim::Of(source) if source == "id" => Ok(SamlSource::Id),
                source => claim_source(source).map(SamlSource::Of),
            };
            match source {
                Ok(source) => found.push(SamlAttribute { name: name.into_inner(), source }),
                Err(message) => self.faults.at(name.span(), message),
            }
        }
        found
    }

    pub(super) fn read<T>(
        &mut self,
        file: &Spanned<PathBuf>,
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Option<T> {
        let path = self.base.join(file.get_ref());
        let mut bytes = Vec::new();
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))
            .and_then(|length| match u64::try_from(length) {
                Ok(..=LARGEST_FILE) => Ok(bytes),
                _ => Err(format!("{} is larger than 1 MiB", path.display())),
            });
        let parsed = read.and_then(|bytes| parse(&bytes).map_err(|e| format!("{}: {e}", path.display())));
        parsed.map_err(|message| self.faults.at(file.span(), message)).ok()
    }
}

/// What everybody gets who asks for nothing else.
fn default_attributes() -> Vec<SamlAttribute> {
    [
        ("id", SamlSource::Id),
        ("name", SamlSource::Of(ClaimSource::Name)),
        ("email", SamlSource::Of(ClaimSource::Email)),
        ("groups", SamlSource::Of(ClaimSource::Groups)),
    ]
    .map(|(name, source)| SamlAttribute { name: name.to_owned(), source })
    .into()
}

fn recipient(pem: &[u8]) -> Result<Certificate, String> {
    let certificate = Certificate::from_pem(pem).map_err(|error| error.to_string())?;
    if can_encrypt_to(&certificate) {
        Ok(certificate)
    } else {
        Err("assertions are encrypted to RSA keys only".to_owned())
    }
}

/// An address of a service that browsers or messages are sent to.
pub(crate) fn check_service(text: &str) -> Result<String, String> {
    let text = check_return(text)?;
    if text.starts_with("https://") || text.starts_with("http://") {
        Ok(text)
    } else {
        Err(format!(
            "`{text}`: a service of the application is at https://…, or http:// with a loopback address"
        ))
    }
}

pub(super) fn check_entity_id(text: &str) -> Result<String, String> {
    if (1..=LONGEST_ENTITY_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}`: an entity ID has at most {LONGEST_ENTITY_ID} printable ASCII characters"))
    }
}

fn check_relay_state(text: &str) -> Result<String, String> {
    if text.len() <= LONGEST_RELAY_STATE && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(format!("`relay_state` has at most {LONGEST_RELAY_STATE} bytes without control characters"))
    }
}
