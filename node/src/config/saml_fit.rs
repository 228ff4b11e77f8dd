//! What the configuration says of a service provider and what its metadata says, fitted together. The configuration goes
//! before the metadata, and metadata that does not fit it counts for nothing.

use crate::flow::{SamlBinding, SamlConsumer, SamlLogout, SamlNameId, SamlSaid, SamlSaidLogout, SamlService};
use crate::saml::{
    LogoutService, NAMEID_EMAIL, NAMEID_PERSISTENT, NAMEID_TRANSIENT, Place, Service, ServiceProvider,
    can_encrypt_to,
};

use super::saml::{check_entity_id, check_service};

/// Why metadata is not that of the application.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Misfit {
    pub(super) key: Key,
    message: String,
}

/// The key of the configuration that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Metadata,
    /// By its place in `acs`.
    Consumer(usize),
    RequireSigned,
}

impl SamlSaid {
    pub(crate) fn with(&self, document: &ServiceProvider) -> Result<SamlService, Misfit> {
        let misfit = |message: String| Misfit { key: Key::Metadata, message };
        let entity_id = check_entity_id(&document.entity_id).map_err(misfit)?;
        if let Some(own) = self.entity_id.as_ref().filter(|own| **own != entity_id) {
            return Err(misfit(format!("the metadata is of `{entity_id}`, and not of `{own}`")));
        }
        let mut offered = Vec::new();
        for (location, index) in &document.consumers {
            let location = check_service(location).map_err(misfit)?;
            offered.push(SamlConsumer { location, index: *index });
        }
        let certificates = self.certificates.clone().unwrap_or_else(|| document.signing.clone());
        let require_signed = self.require_signed.unwrap_or(document.signs_requests);
        if require_signed && certificates.is_empty() {
            let message = "it has no `certificate` that its signed requests verify with".to_owned();
            return Err(Misfit { key: Key::RequireSigned, message });
        }
        let metadata_encrypts = || document.encryption.clone().filter(can_encrypt_to);
        let name_id = || match document.name_id_format.as_deref()? {
            NAMEID_EMAIL => Some(SamlNameId::Email),
            NAMEID_PERSISTENT => Some(SamlNameId::Persistent),
            NAMEID_TRANSIENT => Some(SamlNameId::Transient),
            _ => None,
        };
        Ok(SamlService {
            name: self.name.clone(),
            entity_id,
            consumers: self.chosen(offered)?,
            certificates,
            encrypt_to: self.encrypt_to.clone().or_else(metadata_encrypts),
            require_signed,
            name_id: self.name_id.clone().or_else(name_id),
            attributes: self.attributes.clone(),
            relay_state: self.relay_state.clone(),
            logout: self.logout.with(&document.logout).map_err(misfit)?,
        })
    }

    /// Of the metadata's consumer services those that `acs` names, in its order; without `acs` all of them.
    fn chosen(&self, offered: Vec<SamlConsumer>) -> Result<Vec<SamlConsumer>, Misfit> {
        if self.consumers.is_empty() {
            return Ok(offered);
        }
        let choose = |(index, wanted): (usize, &String)| {
            offered.iter().find(|offer| offer.location == *wanted).cloned().ok_or_else(|| {
                let known: Vec<_> = offered.iter().map(|offer| offer.location.as_str()).collect();
                let known = known.join(", ");
                let message =
                    format!("`{wanted}` is no consumer service of the metadata, which has: {known}");
                Misfit { key: Key::Consumer(index), message }
            })
        };
        self.consumers.iter().enumerate().map(choose).collect()
    }
}

impl SamlSaidLogout {
    fn with(&self, offered: &LogoutService) -> Result<SamlLogout, String> {
        let none = Service::default();
        let said = self.redirect.is_some() || self.post.is_some();
        let browser = if said { &none } else { &offered.browser };
        let through_browser = |of: fn(&Place) -> &String| {
            let post = self.post.as_ref().or(browser.post.as_ref().map(of));
            let redirect = self.redirect.as_ref().or(browser.redirect.as_ref().map(of));
            let post = post.map(|place| (SamlBinding::Post, place));
            let chosen = post.or_else(|| redirect.map(|place| (SamlBinding::Redirect, place)));
            chosen.map(|(binding, place)| Ok::<_, String>((binding, check_service(place)?))).transpose()
        };
        let soap = self.soap.as_ref().or(offered.soap.as_ref());
        Ok(SamlLogout {
            answers: through_browser(|place| &place.answers)?,
            requests: through_browser(|place| &place.location)?,
            soap: soap.map(|place| check_service(place)).transpose()?,
            ca: self.ca.clone(),
            local: self.local,
        })
    }
}
