//! The SAML identity provider: from a permit to a signed answer.
//!
//! 1. `portal` reads a request and finds a session and a permit, or a reason for none.
//! 2. [`SamlProvider::issue`] makes the assertion of the permit's session and signs it; nothing else can, and there is no
//!    permit without a policy that allows.
//!
//! A false accept is somebody else's account at the application; a false reject is a page that says why.

mod keys;
mod signing_key;
mod subject;

use std::sync::{Arc, PoisonError, RwLock};

use zeroize::Zeroizing;

use crate::clock::fill;
use crate::config::NodeConfig;
use crate::flow::{Saas, SamlNameId, SamlService, SessionId, UnixTime};
use crate::policy::PermitOf;
use crate::saml::{self, Certificate, Envelope, IdentityProvider, NameId, Onward, Refusal, Statement};
use crate::store::{Store, StoreError};

pub(crate) use keys::Keys;
pub use keys::{SamlKeyState, SamlKeySummary};
#[cfg(test)]
pub(crate) use signing_key::SigningKey;
pub use subject::{Asked, Context, NotIssued};

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("a SAML signing key cannot be used: {0}")]
    Key(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Signs for service providers. Clones share the keys.
#[derive(Clone)]
pub struct SamlProvider {
    keys: Arc<RwLock<Arc<Keys>>>,
    /// Makes persistent identifiers, which must not be guessed from what they are made of.
    pairwise: Arc<Zeroizing<Vec<u8>>>,
    store: Store,
}

/// Addresses of the node towards one service provider.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// Takes requests, and is the node's entity ID too: every application has an identity provider of its own.
    pub sign_in: &'a str,
}

impl Endpoint<'_> {
    /// Takes logout requests.
    pub fn logout(&self) -> String {
        format!("{}/logout", self.sign_in)
    }
}

/// The address of the node towards the application called `name`.
pub(crate) fn sign_in(node: &NodeConfig, name: &str) -> String {
    format!("https://{}/cdn-cgi/access/sso/saml/{}", node.authority(), name)
}

/// An answer with an assertion, and what it calls its person.
#[derive(Debug)]
pub struct Issued {
    pub answer: String,
    pub name_id: NameId,
    pub attributes: Vec<Statement>,
}

impl SamlProvider {
    /// Reads the keys, making the first one where there is none.
    pub async fn load(store: Store, now: UnixTime) -> Result<Self, KeysError> {
        let keys = Keys::load(&store, now).await?;
        let pairwise = store.secret("saml pairwise", || crate::clock::random::<32>().to_vec()).await?;
        Ok(Self { keys: Arc::new(RwLock::new(Arc::new(keys))), pairwise: Arc::new(pairwise), store })
    }

    /// The signed answer that tells the application of a permit who its person is.
    pub fn issue(
        &self,
        permit: PermitOf<'_, Saas>,
        service: &SamlService,
        endpoint: Endpoint<'_>,
        asked: &Asked<'_>,
        now: UnixTime,
    ) -> Result<Issued, NotIssued> {
        let session = permit.permit().session().ok_or(NotIssued::Nobody)?;
        let context = Context::of(session)
            .meeting(asked.contexts)
            .ok_or(NotIssued::Refused(Refusal::NoAuthnContext))?;
        let name_id = subject::name_id(service, session, asked.name_id_format, &self.pairwise, &fill)?;
        let attributes = subject::attributes(service, session, &self.pairwise);
        let session_index = self.session_index(service, session.id);
        let subject = saml::Subject {
            audience: &service.entity_id,
            name_id: &name_id,
            attributes: &attributes,
            // Where a provider does not say, it is known no better than since when it vouches.
            authenticated_at: session.authenticated_at.unwrap_or(session.created_at),
            session_index: &session_index,
            session_ends_at: permit.permit().token_expires_at(),
            context,
        };
        let envelope = envelope(endpoint, asked, now);
        let keys = self.keys();
        saml::success(&envelope, &subject, keys.signer(now), service.encrypt_to.as_ref(), &fill)
            .ok_or(NotIssued::Internal)
            .map(|answer| Issued { answer, name_id, attributes })
    }

    /// What a service provider calls a session. The session's own identifier is half of a cookie: not for others.
    pub fn session_index(&self, service: &SamlService, session: SessionId) -> String {
        subject::pairwise(&self.pairwise, &service.entity_id, &session.to_string())
    }

    /// The signed answer that tells why there is no assertion. It says nothing about anybody.
    pub fn refuse(
        &self,
        endpoint: Endpoint<'_>,
        asked: &Asked<'_>,
        refusal: Refusal,
        now: UnixTime,
    ) -> Option<String> {
        saml::failure(&envelope(endpoint, asked, now), refusal, self.keys().signer(now), &fill)
    }

    /// The signed answer to the logout request `id`, if the service provider takes any.
    pub fn logged_out(
        &self,
        service: &SamlService,
        endpoint: Endpoint<'_>,
        id: &str,
        relay_state: Option<&str>,
        now: UnixTime,
    ) -> Option<Onward> {
        let (binding, to) = service.logout.answers.as_ref()?;
        let envelope = Envelope { issuer: endpoint.sign_in, destination: to, in_response_to: Some(id), now };
        let keys = self.keys();
        saml::send((*binding, to), saml::Kind::Response, relay_state, Some(keys.signer(now)), |key| {
            saml::logged_out(&envelope, key, &fill)
        })
    }

    /// A request that ends a session at a service provider, through the browser.
    pub(crate) fn end_session_by_browser(
        &self,
        service: &SamlService,
        endpoint: Endpoint<'_>,
        session: SessionId,
        name_id: &NameId,
        now: UnixTime,
    ) -> Option<Onward> {
        let (binding, to) = service.logout.requests.as_ref()?;
        let envelope = Envelope { issuer: endpoint.sign_in, destination: to, in_response_to: None, now };
        let index = self.session_index(service, session);
        let keys = self.keys();
        saml::send((*binding, to), saml::Kind::Request, None, Some(keys.signer(now)), |key| {
            saml::end_session(&envelope, name_id, Some(&index), key, &fill).map(|(_, text)| text)
        })
    }

    /// A request that ends a session at a service provider, and its ID.
    pub(super) fn end_session(
        &self,
        service: &SamlService,
        endpoint: Endpoint<'_>,
        to: &str,
        session: SessionId,
        name_id: &NameId,
        now: UnixTime,
    ) -> Option<(String, String)> {
        let envelope = Envelope { issuer: endpoint.sign_in, destination: to, in_response_to: None, now };
        let index = self.session_index(service, session);
        saml::end_session_by_soap(&envelope, name_id, &index, self.keys().signer(now), &fill)
    }

    /// The node's metadata for one service provider (SAML metadata §2.4.3).
    pub fn metadata(
        &self,
        name_id: Option<&SamlNameId>,
        wants_signed_requests: bool,
        endpoint: Endpoint<'_>,
    ) -> String {
        let keys = self.keys();
        let certificates: Vec<Certificate> = keys.certificates().cloned().collect();
        IdentityProvider {
            entity_id: endpoint.sign_in,
            sign_in: endpoint.sign_in,
            logout: &endpoint.logout(),
            certificates: &certificates,
            name_id_format: subject::format(name_id),
            wants_signed_requests,
        }
        .document()
    }

    pub fn key_list(&self, now: UnixTime) -> Vec<SamlKeySummary> {
        self.keys().summary(now)
    }

    /// Publishes a further key, which signs after a month; `at_once` is for a key that is compromised.
    pub async fn rotate(&self, at_once: bool, now: UnixTime) -> Result<(), KeysError> {
        let next = if at_once { Keys::generate(now)? } else { self.keys().with_next(now)? };
        self.replace(next).await
    }

    /// Publishes the next key when the present one signs for half a year more only.
    pub async fn rotate_if_due(&self, now: UnixTime) -> Result<bool, KeysError> {
        let Some(next) = self.keys().with_next_if_due(now)? else { return Ok(false) };
        self.replace(next).await?;
        Ok(true)
    }

    async fn replace(&self, next: Keys) -> Result<(), KeysError> {
        self.store.replace_saml_keys(next.stored()).await?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }

    /// The keys that sign, and that open what is encrypted to the node.
    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn envelope<'a>(endpoint: Endpoint<'a>, asked: &Asked<'a>, now: UnixTime) -> Envelope<'a> {
    Envelope { issuer: endpoint.sign_in, destination: asked.consumer, in_response_to: asked.id, now }
}
