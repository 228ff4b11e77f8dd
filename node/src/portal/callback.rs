//! To an OpenID provider and back. What must come back travels with the browser, sealed, in a cookie of its own per
//! attempt, so that several tabs do not disturb each other and strangers make the node remember nothing.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::config::{OidcConfig, ProviderKind};
use crate::cookie::{self, SetCookie};
use crate::flow::{RayId, UnixTime};
use crate::identity::oidc::{Answer, Secrets};
use crate::identity::{Authenticated, LoginError};

use super::browser::set_cookies;
use super::form::Parameters;
use super::login::ATTEMPT_LIFE;
use super::target::{Destination, Target, hash};
use super::{Call, page};

/// Followed by the name of the attempt.
const COOKIE: &str = "__Host-CF_Login_";
const PURPOSE: &str = "openid login";
/// Attempts that one browser may have open; beyond that it starts with a clean slate.
const MOST_ATTEMPTS: usize = 6;

/// A login that is at the provider.
#[derive(Serialize, Deserialize)]
struct Attempt {
    provider: String,
    secrets: Secrets,
    destination: Option<Destination>,
    expires_at: UnixTime,
}

impl Call<'_> {
    /// Sends the browser to the provider.
    pub(super) async fn start_oidc(
        &self,
        name: &str,
        config: &OidcConfig,
        target: Option<&Target>,
    ) -> Response<Bytes> {
        // 16 hexadecimal digits, like a ray id.
        let id = RayId::from_bytes(clock::random()).to_string();
        let started = match self.portal.providers.oidc(&self.active, &self.site, name, config) {
            Ok(provider) => provider.start(&id, target.is_some_and(|target| target.fresh)).await,
            Err(error) => Err(error),
        };
        let (url, secrets) = match started {
            Ok(started) => started,
            Err(error) => return self.failed(&error, name, target),
        };
        let attempt = Attempt {
            provider: name.to_owned(),
            secrets,
            destination: target.map(Target::destination),
            expires_at: self.now.after(ATTEMPT_LIFE),
        };
        let sealed = match self.context.seal.seal(PURPOSE, &attempt) {
            Ok(sealed) => sealed,
            Err(error) => return self.failed(&LoginError::Internal(error.to_string()), name, target),
        };
        let mut response = page::redirect(StatusCode::FOUND, &url);
        let open: Vec<&str> = self.open_attempts().collect();
        if open.len() >= MOST_ATTEMPTS {
            set_cookies(&mut response, open.into_iter().map(|name| SetCookie::clear(name, "/")));
        }
        let cookie = SetCookie::new(&format!("{COOKIE}{id}"), &sealed);
        set_cookies(&mut response, [cookie.until(attempt.expires_at, self.now)]);
        response
    }

    /// The provider has sent the browser back.
    pub(super) async fn callback(&self) -> Response<Bytes> {
        let query = Parameters::of_query(self.visit.query.as_deref());
        let state = query.one("state").unwrap_or_default();
        let cookie = format!("{COOKIE}{}", state.split('.').next().unwrap_or_default());
        let attempt = cookie::read_all(&self.visit.headers, &cookie)
            .find_map(|sealed| self.context.seal.open::<Attempt>(PURPOSE, sealed))
            .filter(|attempt| attempt.expires_at > self.now);
        let Some(attempt) = attempt else {
            return self.failed(&LoginError::State, "", None);
        };
        let destination = attempt.destination.as_ref();
        let target =
            destination.and_then(|found| Target::resolve(&self.active.policies, &self.site.auth, found));
        let provider = attempt.provider.clone();
        let answer = Answer {
            state,
            code: query.one("code"),
            issuer: query.one("iss"),
            error: query.one("error"),
            repeated: ["state", "code", "iss", "error"]
                .iter()
                .any(|name| query.has(name) && query.one(name).is_none()),
        };
        let mut response = match self.authenticate(attempt, answer).await {
            Ok(person) => self.complete(person, target.as_ref(), None).await,
            Err(error) => self.failed(&error, &provider, target.as_ref()),
        };
        set_cookies(&mut response, [SetCookie::clear(&cookie, "/")]);
        response
    }

    async fn authenticate(&self, attempt: Attempt, answer: Answer<'_>) -> Result<Authenticated, LoginError> {
        let config = match self.active.provider(&attempt.provider).map(|found| &found.kind) {
            Some(ProviderKind::Oidc(config)) => config,
            _ => return Err(LoginError::State),
        };
        let provider = self.portal.providers.oidc(&self.active, &self.site, &attempt.provider, config)?;
        // Whoever has started a login can invent answers to it; each would cost the provider a request.
        self.portal
            .answers
            .charge_network(self.visit.address, self.portal.started.elapsed())
            .map_err(|retry_after| LoginError::Throttled { retry_after })?;
        let person = provider.finish(attempt.secrets, answer, self.now).await?;
        self.portal.answers.refund_network(self.visit.address);
        // Only now: a stranger's answer makes the store remember nothing.
        let first = self
            .context
            .store
            .use_once(PURPOSE, &hash(answer.state), attempt.expires_at, self.now)
            .await
            .map_err(|error| LoginError::Internal(error.to_string()))?;
        if first { Ok(person) } else { Err(LoginError::State) }
    }

    fn open_attempts(&self) -> impl Iterator<Item = &str> {
        cookie::pairs(&self.visit.headers)
            .map(|(name, _)| name)
            .filter(|name| {
                name.strip_prefix(COOKIE)
                    .is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
            })
            .take(64)
    }
}
