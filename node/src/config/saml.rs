//! `saml = { … }` of an application: a service provider of the node's SAML identity provider.

use std::io::Read as _;
use std::path::PathBuf;

use toml::Spanned;

use crate::flow::{
    ClaimSource, SamlAttribute, SamlBinding, SamlConsumer, SamlLogout, SamlNameId, SamlService, SamlSource,
};
use crate::saml::{
    Certificate, LONGEST_RELAY_STATE, LogoutService, NAMEID_EMAIL, NAMEID_PERSISTENT, NAMEID_TRANSIENT,
    Place, ServiceProvider, can_encrypt_to,
};

use super::compile::Compiler;
use super::raw;
use super::saas::{check_return, claim_source};
use super::saml_presets::preset;

/// Consumer services and attributes of a service provider.
const MOST: usize = 64;
/// Characters of the longest entity ID (SAML metadata §2.2.1).
const LONGEST_ENTITY_ID: usize = 1024;

/// Bytes of the largest metadata or certificate file.
const LARGEST_FILE: u64 = 1 << 20;

impl Compiler<'_> {
    pub(super) fn saml_service(&mut self, name: &str, saml: Spanned<raw::Saml>) -> Option<SamlService> {
        let span = saml.span();
        let saml = saml.into_inner();
        let named = [&saml.metadata, &saml.certificate, &saml.encryption_certificate];
        let files = named.into_iter().flatten().map(|file| self.base.join(file.get_ref())).collect();
        let metadata = match &saml.metadata {
            None => None,
            Some(file) => {
                Some(self.read(file, |bytes| ServiceProvider::read(bytes).map_err(|e| e.to_string()))?)
            }
        };
        let preset = match &saml.preset {
            None => None,
            Some(name) => Some(self.parse(name, preset)?),
        };
        let shared = preset.as_ref().and_then(|preset| preset.entity_id);
        for (key, place) in [
            ("entity_id", saml.entity_id.as_ref().map(Spanned::span)),
            ("acs", saml.acs.first().map(Spanned::span)),
        ] {
            match (place, &metadata) {
                (Some(_), Some(_)) if key == "acs" => {}
                (None, None) if key == "entity_id" && shared.is_some() => {}
                (Some(place), Some(_)) => {
                    self.faults.at(place, format!("`{key}` is in the metadata: give one or the other"));
                }
                (None, None) => {
                    let message =
                        format!("application `{name}` has no `{key}`, nor `metadata` that names it");
                    self.faults.at(span.clone(), message);
                }
                (None, Some(_)) | (Some(_), None) => {}
            }
        }
        let entity_id = match (&saml.entity_id, &metadata) {
            (Some(id), _) => self.parse(id, check_entity_id)?,
            (None, Some(metadata)) => match check_entity_id(&metadata.entity_id) {
                Ok(id) => id,
                Err(message) => {
                    self.faults.at(span, message);
                    return None;
                }
            },
            (None, None) => shared?.to_owned(),
        };
        let consumers = match &metadata {
            Some(metadata) => {
                let place = saml.metadata.as_ref().map_or(span.clone(), Spanned::span);
                let mut consumers = Vec::new();
                for (location, index) in &metadata.consumers {
                    match check_service(location) {
                        Ok(location) => consumers.push(SamlConsumer { location, index: *index }),
                        Err(message) => self.faults.at(place.clone(), message),
                    }
                }
                self.chosen(&saml.acs, consumers)
            }
            None => saml
                .acs
                .iter()
                .enumerate()
                .filter_map(|(index, location)| {
                    let location = self.parse(location, check_service)?;
                    Some(SamlConsumer { location, index: u16::try_from(index).ok() })
                })
                .collect(),
        };
        let certificates = match &saml.certificate {
            Some(file) => self.read(file, |pem| Certificate::all_from_pem(pem).map_err(|e| e.to_string()))?,
            None => metadata.as_ref().map(|metadata| metadata.signing.clone()).unwrap_or_default(),
        };
        let encrypt_to = match &saml.encryption_certificate {
            Some(file) => Some(self.read(file, recipient)?),
            None => metadata.as_ref().and_then(|metadata| metadata.encryption.clone()).filter(can_encrypt_to),
        };
        let signs = metadata.as_ref().is_some_and(|metadata| metadata.signs_requests);
        let require_signed = saml.require_signed.unwrap_or(saml.certificate.is_some() || signs);
        if require_signed && certificates.is_empty() {
            let message =
                format!("application `{name}` has no `certificate` that its signed requests verify with");
            self.faults.at(span.clone(), message);
        }
        if consumers.len() > MOST || saml.attributes.as_ref().is_some_and(|all| all.len() > MOST) {
            self.faults.at(span, format!("at most {MOST} `acs` and `attributes`"));
            return None;
        }
        let offered = metadata.as_ref().map(|metadata| metadata.logout.clone()).unwrap_or_default();
        let logout = self.saml_logout(saml.logout, offered, span.clone());
        let (preset_name, preset_attributes) =
            preset.map(|preset| (preset.name_id, preset.attributes)).unzip();
        let name_id = match saml.name_id {
            Some(name_id) => Some(self.name_id(name_id)?),
            None => preset_name.or_else(|| match metadata?.name_id_format.as_deref()? {
                NAMEID_EMAIL => Some(SamlNameId::Email),
                NAMEID_PERSISTENT => Some(SamlNameId::Persistent),
                NAMEID_TRANSIENT => Some(SamlNameId::Transient),
                _ => None,
            }),
        };
        let attributes = match saml.attributes {
            Some(attributes) => self.attributes(attributes),
            None => preset_attributes.unwrap_or_else(default_attributes),
        };
        let relay_state = match &saml.relay_state {
            Some(state) => Some(self.parse(state, check_relay_state)?),
            None => None,
        };
        Some(SamlService {
            name: name.to_owned(),
            entity_id,
            consumers,
            certificates,
            encrypt_to,
            require_signed,
            name_id,
            attributes,
            relay_state,
            logout,
            files,
        })
    }

    /// What the configuration says of single logout, and else the metadata at `span`.
    fn saml_logout(
        &mut self,
        logout: raw::SamlLogout,
        offered: LogoutService,
        span: std::ops::Range<usize>,
    ) -> SamlLogout {
        let mut place = |said: Option<&Spanned<String>>, offered: Option<String>| match (said, offered) {
            (Some(said), _) => self.parse(said, check_service),
            (None, Some(offered)) => match check_service(&offered) {
                Ok(offered) => Some(offered),
                Err(message) => {
                    self.faults.at(span.clone(), message);
                    None
                }
            },
            (None, None) => None,
        };
        let said = logout.redirect.is_some() || logout.post.is_some();
        let offered_here = |offered: Option<Place>| offered.filter(|_| !said);
        let (of_redirect, of_post) =
            (offered_here(offered.browser.redirect), offered_here(offered.browser.post));
        let mut browser = |of: &dyn Fn(Place) -> String| {
            let post = place(logout.post.as_ref(), of_post.clone().map(of));
            let redirect = place(logout.redirect.as_ref(), of_redirect.clone().map(of));
            match (post, redirect) {
                (Some(post), _) => Some((SamlBinding::Post, post)),
                (None, Some(redirect)) => Some((SamlBinding::Redirect, redirect)),
                (None, None) => None,
            }
        };
        let answers = browser(&|place| place.answers);
        let requests = browser(&|place| place.location);
        let soap = place(logout.soap.as_ref(), offered.soap);
        let ca = logout.ca.as_ref().map(|file| self.file(file));
        SamlLogout { answers, requests, soap, ca, local: logout.local }
    }

    /// Of the metadata's consumer services those that `acs` names, in its order; without `acs` all of them.
    fn chosen(&mut self, acs: &[Spanned<String>], offered: Vec<SamlConsumer>) -> Vec<SamlConsumer> {
        if acs.is_empty() {
            return offered;
        }
        let mut chosen = Vec::new();
        for wanted in acs {
            match offered.iter().find(|offer| offer.location == *wanted.get_ref()) {
                Some(offer) => chosen.push(offer.clone()),
                None => {
                    let known: Vec<_> = offered.iter().map(|offer| offer.location.as_str()).collect();
                    let message = format!(
                        "`{}` is no consumer service of the metadata, which has: {}",
                        wanted.get_ref(),
                        known.join(", ")
                    );
                    self.faults.at(wanted.span(), message);
                }
            }
        }
        chosen
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
