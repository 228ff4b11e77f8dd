//! OpenID Connect: authorization code flow with PKCE, state and nonce.
//!
//! 1. [`OidcProvider::start`] makes the address of the provider's login page and the [`Secrets`] that the browser
//!    keeps, sealed, until it comes back.
//! 2. The provider sends the browser back with a code and the state.
//! 3. [`OidcProvider::finish`] checks state and origin of the answer, redeems the code, verifies the ID token and answers
//!    who it is about.
//!
//! One of several providers can send the browser on to another, with its own state: the code that comes back must not go to
//! the token endpoint of the first. So an answer either names its issuer, or comes to an address of its provider's own.
//!
//! OpenID Connect Core 1.0, RFC 7636 (PKCE), RFC 9207 (issuer in the response), RFC 9700 §4.4 (mix-up).

mod claims;
mod directory;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openidconnect::core::{
    CoreAuthPrompt, CoreAuthenticationFlow, CoreClient, CoreClientAuthMethod, CoreErrorResponseType,
    CoreIdToken, CoreIdTokenVerifier, CoreJwsSigningAlgorithm, CoreTokenResponse,
};
use openidconnect::{
    AccessToken, AccessTokenHash, AuthType, AuthorizationCode, ClaimsVerificationError, ClientId,
    ClientSecret, CsrfToken, EndpointMaybeSet, EndpointNotSet, EndpointSet, IssuerUrl, Nonce,
    OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope,
    SignatureVerificationError, StandardErrorResponse, TokenResponse as _,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use crate::clock;
use crate::fetch::{self, FetchError, HttpClient};
use crate::flow::UnixTime;

use self::directory::{Directory, Metadata};
use super::{Authenticated, LoginError};

pub use self::claims::ClaimRules;

/// Answers that are checked with one provider at the same time; each may wait for it.
const CONCURRENT: usize = 32;

/// Signatures that are accepted: none that the client's own secret could make.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 10] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EcdsaP521Sha512,
    CoreJwsSigningAlgorithm::EdDsa,
];

type Client = CoreClient<
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// How to reach one provider, from the configuration.
pub struct OidcSettings<'a> {
    pub name: &'a str,
    pub issuer: &'a str,
    pub client_id: &'a str,
    pub client_secret: Option<&'a str>,
    /// Besides `openid`.
    pub scopes: &'a [String],
    pub claims: ClaimRules,
    /// PEM file of roots to trust besides the system's.
    pub ca: Option<&'a Path>,
    pub callbacks: Callbacks,
}

/// Where this node takes answers, registered at the provider.
#[derive(Debug, Clone)]
pub struct Callbacks {
    /// For every provider whose answers name their issuer, and for one that is alone.
    pub shared: String,
    /// For this provider only.
    pub own: String,
    /// Whether there is no other OpenID provider.
    pub alone: bool,
}

/// One provider.
pub struct OidcProvider {
    name: String,
    issuer: String,
    client_id: ClientId,
    client_secret: Option<ClientSecret>,
    scopes: Vec<Scope>,
    claims: ClaimRules,
    callbacks: Callbacks,
    directory: Directory,
    http: HttpClient,
    turns: Semaphore,
}

/// What must come back, or is needed when it does. Kept by the browser, sealed.
#[derive(Serialize, Deserialize)]
pub struct Secrets {
    /// The callback that the provider was told.
    callback: String,
    state: String,
    nonce: String,
    verifier: String,
    /// Only a proof since then does.
    anew_since: Option<UnixTime>,
}

/// The parameters of the authorization response (RFC 6749 §4.1.2, RFC 9207 §2).
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The callback that it came to.
    pub callback: &'a str,
    pub state: &'a str,
    pub code: Option<&'a str>,
    pub issuer: Option<&'a str>,
    pub error: Option<&'a str>,
    /// One of them was there more than once, which RFC 6749 §3.1 forbids.
    pub repeated: bool,
}

impl OidcProvider {
    pub fn new(settings: OidcSettings<'_>) -> Result<Self, LoginError> {
        let broken =
            |what: &str, error: &dyn std::fmt::Display| LoginError::Internal(format!("{what}: {error}"));
        let issuer = IssuerUrl::new(settings.issuer.to_owned()).map_err(|e| broken("issuer", &e))?;
        Ok(Self {
            name: settings.name.to_owned(),
            issuer: settings.issuer.to_owned(),
            client_id: ClientId::new(settings.client_id.to_owned()),
            client_secret: settings.client_secret.map(|secret| ClientSecret::new(secret.to_owned())),
            scopes: settings.scopes.iter().filter(|s| *s != "openid").cloned().map(Scope::new).collect(),
            claims: settings.claims,
            callbacks: settings.callbacks,
            directory: Directory::new(issuer),
            http: HttpClient::new(settings.ca).map_err(|e| broken("ca", &e))?,
            turns: Semaphore::new(CONCURRENT),
        })
    }

    /// The address of the provider's login page for an attempt named `attempt`, and what must be kept meanwhile.
    /// The state that comes back is `attempt`, a dot and a secret. With `fresh`, a login that the provider remembers does
    /// not do: it is asked for another, and by `max_age` to say when that was (OpenID Connect Core §2).
    pub async fn start(
        &self,
        attempt: &str,
        fresh: bool,
        now: UnixTime,
    ) -> Result<(String, Secrets), LoginError> {
        let metadata = self.directory.metadata(&self.http).await?;
        if !fetch::is_protected(metadata.authorization_endpoint().url()) {
            return Err(LoginError::Unavailable("the authorization endpoint is not https".to_owned()));
        }
        let secret = || URL_SAFE_NO_PAD.encode(clock::random::<32>());
        let callback = match self.callbacks.alone || names_issuer(&metadata) {
            true => self.callbacks.shared.clone(),
            false => self.callbacks.own.clone(),
        };
        let secrets = Secrets {
            callback,
            state: format!("{attempt}.{}", secret()),
            nonce: secret(),
            verifier: secret(),
            anew_since: fresh.then_some(now),
        };
        let (state, nonce) = (CsrfToken::new(secrets.state.clone()), Nonce::new(secrets.nonce.clone()));
        let verifier = PkceCodeVerifier::new(secrets.verifier.clone());
        let client = self.client(&metadata, &secrets.callback)?;
        let mut request = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, move || state, move || nonce)
            .add_scopes(self.scopes.iter().cloned())
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier));
        if fresh {
            request = request.add_prompt(CoreAuthPrompt::Login).set_max_age(Duration::ZERO);
        }
        let (url, _, _) = request.url();
        Ok((url.into(), secrets))
    }

    /// Who the provider's answer is about, at `now`.
    pub async fn finish(
        &self,
        secrets: Secrets,
        answer: Answer<'_>,
        now: UnixTime,
    ) -> Result<Authenticated, LoginError> {
        let metadata = self.directory.metadata(&self.http).await?;
        self.check(&secrets, answer, &metadata)?;
        if let Some(error) = answer.error {
            return Err(LoginError::Refused(printable(error)));
        }
        let code = answer.code.ok_or_else(|| LoginError::Answer("no code".to_owned()))?;
        let busy = |_| LoginError::Unavailable("too many logins at the same time".to_owned());
        let _turn = self.turns.try_acquire().map_err(busy)?;
        let client = self.client(&metadata, &secrets.callback)?;
        let tokens = self.redeem(&client, code, secrets.verifier).await?;
        let id_token = tokens.id_token().ok_or_else(|| LoginError::Answer("no ID token".to_owned()))?;
        let id_token = self.verify(&metadata, id_token, tokens.access_token(), &secrets.nonce, now).await?;
        let userinfo = match metadata.userinfo_endpoint() {
            Some(endpoint) if self.claims.want_userinfo(&id_token) => {
                Some(self.userinfo(endpoint.as_str(), tokens.access_token()).await?)
            }
            _ => None,
        };
        self.claims
            .person(&self.name, &id_token, userinfo.as_ref())
            .map_err(|error| LoginError::Answer(error.to_owned()))?
            .anew(secrets.anew_since)
    }

    /// The state of the answer, and that it is this provider's.
    fn check(&self, secrets: &Secrets, answer: Answer<'_>, metadata: &Metadata) -> Result<(), LoginError> {
        let same = aws_lc_rs::constant_time::verify_slices_are_equal(
            secrets.state.as_bytes(),
            answer.state.as_bytes(),
        );
        if same.is_err() {
            return Err(LoginError::State);
        }
        if answer.repeated {
            return Err(LoginError::Answer("a parameter is there twice".to_owned()));
        }
        if answer.callback != secrets.callback {
            return Err(LoginError::Answer("it came to a callback that this login did not name".to_owned()));
        }
        // The metadata may have changed since the login began, and the configuration.
        let told_by_callback = self.callbacks.alone || secrets.callback == self.callbacks.own;
        match answer.issuer {
            Some(issuer) if issuer != self.issuer => {
                Err(LoginError::Answer("it comes from another issuer".to_owned()))
            }
            None if names_issuer(metadata) || !told_by_callback => {
                Err(LoginError::Answer("it does not name its issuer".to_owned()))
            }
            _ => Ok(()),
        }
    }

    async fn redeem(
        &self,
        client: &Client,
        code: &str,
        verifier: String,
    ) -> Result<CoreTokenResponse, LoginError> {
        client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(|error| LoginError::Unavailable(format!("token endpoint: {error}")))?
            .set_pkce_verifier(PkceCodeVerifier::new(verifier))
            .request_async(&self.http)
            .await
            .map_err(|error| token_failure(&error))
    }

    /// Verifies the ID token (OpenID Connect Core §3.1.3.7) and answers its claims.
    async fn verify(
        &self,
        metadata: &Arc<Metadata>,
        id_token: &CoreIdToken,
        access_token: &AccessToken,
        nonce: &str,
        now: UnixTime,
    ) -> Result<Map<String, Value>, LoginError> {
        use ClaimsVerificationError::SignatureVerification;
        let nonce = Nonce::new(nonce.to_owned());
        let mut verifier = self.verifier(metadata, now)?;
        let mut verified = id_token.claims(&verifier, &nonce);
        if matches!(&verified, Err(SignatureVerification(SignatureVerificationError::NoMatchingKey))) {
            let newer = self.directory.with_newer_keys(&self.http, metadata).await?;
            verifier = self.verifier(&newer, now)?;
            verified = id_token.claims(&verifier, &nonce);
        }
        let claims =
            verified.map_err(|error| LoginError::Answer(format!("ID token: {}", describe(&error))))?;
        if claims.authorized_party().is_some_and(|party| *party != self.client_id) {
            return Err(LoginError::Answer("ID token: issued to another client".to_owned()));
        }
        if let Some(expected) = claims.access_token_hash() {
            let unusable = |_| LoginError::Answer("ID token: unusable access token hash".to_owned());
            let algorithm = id_token.signing_alg().map_err(unusable)?;
            let key = id_token.signing_key(&verifier).map_err(unusable)?;
            let actual = AccessTokenHash::from_token(access_token, algorithm, key)
                .map_err(|_| LoginError::Answer("ID token: unusable access token hash".to_owned()))?;
            if actual != *expected {
                return Err(LoginError::Answer("ID token: made for another access token".to_owned()));
            }
        }
        payload(&id_token.to_string())
            .ok_or_else(|| LoginError::Answer("ID token: malformed payload".to_owned()))
    }

    fn verifier(
        &self,
        metadata: &Metadata,
        now: UnixTime,
    ) -> Result<CoreIdTokenVerifier<'static>, LoginError> {
        let latest_issue = now.after(UnixTime::SKEW).0;
        let expired_at = u64::try_from(now.before(UnixTime::SKEW).0).ok().map(Duration::from_secs);
        let expired_at = expired_at
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
            .ok_or_else(|| LoginError::Internal("the clock is out of range".to_owned()))?;
        Ok(CoreIdTokenVerifier::new_public_client(
            self.client_id.clone(),
            metadata.issuer().clone(),
            metadata.jwks().clone(),
        )
        .set_allowed_algs(ALGORITHMS)
        .set_time_fn(move || expired_at.into())
        .set_issue_time_verifier_fn(move |issued| {
            if issued.timestamp() <= latest_issue { Ok(()) } else { Err("issued in the future".to_owned()) }
        }))
    }

    /// The claims of the userinfo endpoint (OpenID Connect Core §5.3).
    async fn userinfo(&self, endpoint: &str, token: &AccessToken) -> Result<Map<String, Value>, LoginError> {
        let unusable = |what: &str| LoginError::Answer(format!("userinfo: {what}"));
        let bearer = http::HeaderValue::from_str(&format!("Bearer {}", token.secret()))
            .map_err(|_| unusable("the access token is no header value"))?;
        let request = http::Request::get(endpoint)
            .header(http::header::AUTHORIZATION, bearer)
            .header(http::header::ACCEPT, "application/json")
            .body(Vec::new())
            .map_err(|_| unusable("malformed address"))?;
        let answer = self
            .http
            .send(request)
            .await
            .map_err(|error| LoginError::Unavailable(format!("userinfo: {error}")))?;
        if !answer.status().is_success() {
            return Err(unusable(&format!("status {}", answer.status().as_u16())));
        }
        serde_json::from_slice(answer.body()).map_err(|_| unusable("not a JSON object"))
    }

    fn client(&self, metadata: &Metadata, callback: &str) -> Result<Client, LoginError> {
        let callback = RedirectUrl::new(callback.to_owned())
            .map_err(|error| LoginError::Internal(format!("callback: {error}")))?;
        let basic = metadata.token_endpoint_auth_methods_supported().is_none_or(|methods| {
            methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
                || !methods.contains(&CoreClientAuthMethod::ClientSecretPost)
        });
        let client = CoreClient::from_provider_metadata(
            metadata.clone(),
            self.client_id.clone(),
            self.client_secret.clone(),
        );
        Ok(client
            .set_auth_type(if basic { AuthType::BasicAuth } else { AuthType::RequestBody })
            .set_redirect_uri(callback))
    }
}

/// Whether the provider says that its answers name their issuer (RFC 9207 §3).
fn names_issuer(metadata: &Metadata) -> bool {
    metadata.additional_metadata().authorization_response_iss_parameter_supported
}

/// A provider's error code, fit for the log.
fn printable(code: &str) -> String {
    code.chars().filter(char::is_ascii_graphic).take(64).collect()
}

/// The claims of a compact JWT whose signature has been verified. Read again from the text because the library's
/// claim types accept `"true"` where only `true` means verified.
fn payload(jwt: &str) -> Option<Map<String, Value>> {
    let payload = jwt.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// The library's texts for these carry the token or its claims.
fn describe(error: &ClaimsVerificationError) -> &'static str {
    use ClaimsVerificationError as E;
    match error {
        E::Expired(_) => "expired",
        E::InvalidAudience(_) => "made for another audience",
        E::InvalidIssuer(_) => "made by another issuer",
        E::InvalidNonce(_) => "the nonce is another login's",
        E::SignatureVerification(_) => "the signature does not verify",
        _ => "malformed",
    }
}

fn token_failure(
    error: &RequestTokenError<FetchError, StandardErrorResponse<CoreErrorResponseType>>,
) -> LoginError {
    match error {
        RequestTokenError::Request(error) => LoginError::Unavailable(format!("token endpoint: {error}")),
        RequestTokenError::ServerResponse(answer) => {
            LoginError::Answer(format!("token endpoint: {}", printable(answer.error().as_ref())))
        }
        RequestTokenError::Parse(..) => LoginError::Answer("token endpoint: malformed answer".to_owned()),
        RequestTokenError::Other(_) => LoginError::Answer("token endpoint: unusable answer".to_owned()),
    }
}
