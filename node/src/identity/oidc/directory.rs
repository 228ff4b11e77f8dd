//! What a provider publishes about itself: discovery document and keys, cached.
//!
//! Requests that need either wait for one fetch together. A failure is remembered for a few seconds, so that a slow
//! provider costs each login one wait and not a queue of them. An unknown key fetches the keys again, but not more
//! often than [`KEYS_EVERY`]: a flood of random key identifiers does not become a flood of fetches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreGrantType, CoreJsonWebKey,
    CoreJsonWebKeySet, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreResponseMode,
    CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::{AdditionalProviderMetadata, DiscoveryError, IssuerUrl, ProviderMetadata};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::fetch::{FetchError, HttpClient};
use crate::identity::LoginError;

/// How long a discovery document with its keys is used before it is fetched again.
const FRESH: Duration = Duration::from_secs(3600);
/// How long an old one stays good while the provider does not answer.
const USABLE: Duration = Duration::from_secs(24 * 3600);
/// How long a failure answers for the provider.
const FAILED: Duration = Duration::from_secs(5);
/// Least time between two fetches of the keys for an unknown key.
const KEYS_EVERY: Duration = Duration::from_secs(30);

/// Members of the discovery document beyond OpenID Connect Discovery.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Additional {
    /// RFC 9207 §3.
    #[serde(default)]
    pub(super) authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for Additional {}

/// A discovery document together with the keys it points to.
pub(super) type Metadata = ProviderMetadata<
    Additional,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// The cache for one issuer.
pub(super) struct Directory {
    issuer: IssuerUrl,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    metadata: Option<(Arc<Metadata>, Instant)>,
    failure: Option<(LoginError, Instant)>,
    keys_fetched: Option<Instant>,
}

impl Directory {
    pub(super) fn new(issuer: IssuerUrl) -> Self {
        Self { issuer, state: Mutex::default() }
    }

    /// The current discovery document, fetched if there is none that is fresh.
    pub(super) async fn metadata(&self, http: &HttpClient) -> Result<Arc<Metadata>, LoginError> {
        let mut state = self.state.lock().await;
        if let Some((metadata, fetched)) = &state.metadata
            && fetched.elapsed() < FRESH
        {
            return Ok(Arc::clone(metadata));
        }
        let error = match &state.failure {
            Some((error, failed)) if failed.elapsed() < FAILED => error.clone(),
            _ => match Metadata::discover_async(self.issuer.clone(), http).await {
                Ok(metadata) => {
                    let metadata = Arc::new(metadata);
                    let now = Instant::now();
                    *state = State {
                        metadata: Some((Arc::clone(&metadata), now)),
                        failure: None,
                        keys_fetched: Some(now),
                    };
                    return Ok(metadata);
                }
                Err(error) => {
                    let error = failure("discovery", &error);
                    state.failure = Some((error.clone(), Instant::now()));
                    error
                }
            },
        };
        match &state.metadata {
            Some((metadata, fetched)) if fetched.elapsed() < USABLE => Ok(Arc::clone(metadata)),
            _ => Err(error),
        }
    }

    /// The document with keys newer than those of `seen`, which did not verify a signature; the same ones if they
    /// were fetched a moment ago.
    pub(super) async fn with_newer_keys(
        &self,
        http: &HttpClient,
        seen: &Arc<Metadata>,
    ) -> Result<Arc<Metadata>, LoginError> {
        let mut state = self.state.lock().await;
        let Some((current, fetched)) = state.metadata.clone() else { return Ok(Arc::clone(seen)) };
        let recent = state.keys_fetched.is_some_and(|fetched| fetched.elapsed() < KEYS_EVERY);
        if !Arc::ptr_eq(&current, seen) || recent {
            return Ok(current);
        }
        state.keys_fetched = Some(Instant::now());
        let keys = CoreJsonWebKeySet::fetch_async(current.jwks_uri(), http)
            .await
            .map_err(|error| failure("keys", &error))?;
        let newer = Arc::new(Metadata::clone(&current).set_jwks(keys));
        state.metadata = Some((Arc::clone(&newer), fetched));
        Ok(newer)
    }
}

/// A provider that cannot be reached is unavailable; one that answers nonsense is at fault, but to the person it is
/// unavailable all the same.
fn failure(what: &str, error: &DiscoveryError<FetchError>) -> LoginError {
    LoginError::Unavailable(match error {
        DiscoveryError::Request(error) => format!("{what}: {error}"),
        // The library's texts for these carry the answer's body.
        DiscoveryError::Response(status, ..) => format!("{what}: status {}", status.as_u16()),
        DiscoveryError::Parse(_) => format!("{what}: malformed document"),
        DiscoveryError::Validation(text) => format!("{what}: {text}"),
        _ => format!("{what}: {error}"),
    })
}
