//! The SAML identity provider: from a permit to a signed answer.
//!
//! 1. `portal` reads a request and finds a session and a permit, or a reason for none.
//! 2. [`SamlProvider::issue`] makes the assertion of the permit's session and signs it; nothing else can, and there is no
//!    permit without a policy that allows.
//!
//! A false accept is somebody else's account at the application; a false reject is a page that says why.

mod keys;
mod subject;

use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::rand::SystemRandom;
use zeroize::Zeroizing;

use crate::flow::{Saas, SamlService, UnixTime};
use crate::policy::PermitOf;
use crate::saml::{self, Certificate, Envelope, IdentityProvider, Refusal};
use crate::store::{Store, StoreError};

pub use keys::{SamlKeyState, SamlKeySummary};
pub use subject::{Asked, Context, NotIssued};

use keys::Keys;

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
    ) -> Result<String, NotIssued> {
        let session = permit.permit().session().ok_or(NotIssued::Nobody)?;
        let context = Context::of(session)
            .meeting(asked.contexts)
            .ok_or(NotIssued::Refused(Refusal::NoAuthnContext))?;
        let random = SystemRandom::new();
        let name_id = subject::name_id(service, session, asked.name_id_format, &self.pairwise, &random)?;
        let attributes = subject::attributes(service, session, &self.pairwise);
        // The session's own identifier is half of a cookie: not for others.
        let session_index = subject::pairwise(&self.pairwise, &service.entity_id, &session.id.to_string());
        let subject = saml::Subject {
            audience: &service.entity_id,
            name_id: &name_id,
            attributes: &attributes,
            authenticated_at: session.created_at,
            session_index: &session_index,
            session_ends_at: permit.permit().token_expires_at(),
            context,
        };
        let envelope = envelope(endpoint, asked, now);
        let keys = self.keys();
        saml::success(&envelope, &subject, keys.signer(now), service.encrypt_to.as_ref(), &random)
            .ok_or(NotIssued::Internal)
    }

    /// The signed answer that tells why there is no assertion. It says nothing about anybody.
    pub fn refuse(
        &self,
        endpoint: Endpoint<'_>,
        asked: &Asked<'_>,
        refusal: Refusal,
        now: UnixTime,
    ) -> Option<String> {
        saml::failure(&envelope(endpoint, asked, now), refusal, self.keys().signer(now), &SystemRandom::new())
    }

    /// The node's metadata for one service provider (SAML metadata §2.4.3).
    pub fn metadata(&self, service: &SamlService, endpoint: Endpoint<'_>) -> String {
        let keys = self.keys();
        let certificates: Vec<Certificate> = keys.certificates().cloned().collect();
        IdentityProvider {
            entity_id: endpoint.sign_in,
            sign_in: endpoint.sign_in,
            certificates: &certificates,
            name_id_format: subject::format(service),
            wants_signed_requests: service.require_signed,
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

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn envelope<'a>(endpoint: Endpoint<'a>, asked: &Asked<'a>, now: UnixTime) -> Envelope<'a> {
    Envelope { issuer: endpoint.sign_in, destination: asked.consumer, in_response_to: asked.id, now }
}
