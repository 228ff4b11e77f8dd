//! To an identity provider elsewhere and back, whatever it speaks. What must come back travels with the browser, sealed, in
//! a cookie of its own per attempt, so that several tabs do not disturb each other and strangers make the node remember
//! nothing. How each kind comes back is in `callback` (OpenID Connect) and `consumer` (SAML).

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::config::IdentityProvider;
use crate::cookie::{self, SetCookie};
use crate::flow::UnixTime;
use crate::identity::throttle::Networks;
use crate::identity::upstream::{Answer, Kept};
use crate::identity::{Authenticated, LoginError};
use crate::saml::Onward;

use super::Call;
use super::browser::set_cookies;
use super::login::ATTEMPT_LIFE;
use super::page;
use super::parked::new_name;
use super::target::{Destination, Target, hash, is_request};

/// Followed by the name of the attempt.
const COOKIE: &str = "__Host-CF_Login_";
const PURPOSE: &str = "login elsewhere";
/// Attempts that one browser may have open; beyond that it starts with a clean slate.
const MOST_ATTEMPTS: usize = 6;

/// A login that is at the provider.
#[derive(Serialize, Deserialize)]
pub(super) struct Attempt {
    /// 16 hexadecimal digits, like a ray id.
    pub(super) id: String,
    pub(super) provider: String,
    kept: Kept,
    destination: Option<Destination>,
    expires_at: UnixTime,
}

impl Call<'_> {
    /// Sends the browser to the provider.
    pub(super) async fn start_upstream(
        &self,
        provider: &IdentityProvider,
        target: Option<&Target>,
    ) -> Response<Bytes> {
        let id = new_name();
        let (onward, kept) = match self.ask_upstream(&id, provider, target).await {
            Ok(started) => started,
            Err(error) => return self.failed(&error, &provider.name, target),
        };
        let attempt = Attempt {
            id,
            provider: provider.name.clone(),
            kept,
            destination: target.map(Target::destination),
            expires_at: self.now.after(ATTEMPT_LIFE),
        };
        let sealed = match self.context.seal.seal(PURPOSE, &attempt) {
            Ok(sealed) => sealed,
            Err(error) => {
                return self.failed(&LoginError::Internal(error.to_string()), &provider.name, target);
            }
        };
        let mut response = self.onward_to(&provider.label, onward, StatusCode::FOUND);
        let open: Vec<&str> = self.open_attempts().collect();
        if open.len() >= MOST_ATTEMPTS {
            set_cookies(&mut response, open.into_iter().map(|name| SetCookie::clear(name, "/")));
        }
        let cookie = SetCookie::new(&format!("{COOKIE}{}", attempt.id), &sealed);
        set_cookies(&mut response, [cookie.until(attempt.expires_at, self.now)]);
        response
    }

    async fn ask_upstream(
        &self,
        id: &str,
        provider: &IdentityProvider,
        target: Option<&Target>,
    ) -> Result<(Onward, Kept), LoginError> {
        let upstream = self.portal.providers.upstream(&self.active, &self.site, provider)?;
        let upstream = upstream.ok_or(LoginError::State)?;
        if upstream.signs() {
            self.charge_signature()?;
        }
        let keys = self.context.saml.keys();
        let anew = target.is_some_and(|target| self.is_anew(target));
        upstream.start(id, anew, keys.signer(self.now), self.now).await
    }

    /// A message on its way; `name` is what people call who it goes to.
    pub(super) fn onward_to(&self, name: &str, onward: Onward, status: StatusCode) -> Response<Bytes> {
        match onward {
            Onward::Open(url) => page::redirect(status, &url),
            Onward::Post { to, fields } => self.auto_post(name, &to, &fields),
        }
    }

    /// The attempt called `id` that this browser has open.
    pub(super) fn attempt(&self, id: &str) -> Option<Attempt> {
        cookie::read_all(&self.visit.headers, &format!("{COOKIE}{id}"))
            .find_map(|sealed| self.context.seal.open::<Attempt>(PURPOSE, sealed))
            .filter(|attempt| attempt.id == id && attempt.expires_at > self.now)
    }

    /// Logs in whoever the answer of `provider` is about. An answer that nobody asked for belongs to no attempt.
    pub(super) async fn conclude(
        &self,
        provider: &str,
        attempt: Option<Attempt>,
        answer: Answer<'_>,
    ) -> Response<Bytes> {
        let cookie = attempt.as_ref().map(|attempt| format!("{COOKIE}{}", attempt.id));
        let destination = attempt.as_ref().and_then(|attempt| attempt.destination.as_ref());
        let target =
            destination.and_then(|found| Target::resolve(&self.active.policies, &self.site.auth, found));
        let mut response = match self.authenticate(provider, attempt, answer).await {
            Ok(person) => self.complete(person, target.as_ref(), None).await,
            Err(error) => self.failed(&error, provider, target.as_ref()),
        };
        set_cookies(&mut response, cookie.map(|cookie| SetCookie::clear(&cookie, "/")));
        response
    }

    async fn authenticate(
        &self,
        provider: &str,
        attempt: Option<Attempt>,
        answer: Answer<'_>,
    ) -> Result<Authenticated, LoginError> {
        let config = self.active.provider(provider).ok_or(LoginError::State)?;
        let upstream = self.portal.providers.upstream(&self.active, &self.site, config)?;
        let upstream = upstream.ok_or(LoginError::State)?;
        if attempt.as_ref().is_some_and(|attempt| attempt.provider != provider) {
            return Err(LoginError::State);
        }
        let (kept, once) =
            attempt.map(|attempt| (attempt.kept, (hash(&attempt.id), attempt.expires_at))).unzip();
        let was_asked = matches!(answer, Answer::Oidc(_));
        let person = upstream.finish(kept, answer, self.now).await?;
        if was_asked {
            self.refund(&self.portal.asked);
        }
        // Only now: a stranger's answer makes the store remember nothing.
        if let Some((attempt, until)) = once {
            let first = self
                .context
                .store
                .use_once(PURPOSE, &attempt, until, self.now)
                .await
                .map_err(|error| LoginError::Internal(error.to_string()))?;
            if !first {
                return Err(LoginError::State);
            }
        }
        Ok(person)
    }

    /// Takes something that may be in vain from this network's budget of `networks`.
    pub(super) fn charge(&self, networks: &Networks) -> Result<(), LoginError> {
        let known = self.context.recent.contains(self.visit.address, self.now);
        networks
            .charge(self.visit.address, known, self.portal.started.elapsed())
            .map_err(|retry_after| LoginError::Throttled { retry_after })
    }

    /// Gives it back: it was not in vain.
    pub(super) fn refund(&self, networks: &Networks) {
        let known = self.context.recent.contains(self.visit.address, self.now);
        networks.refund(self.visit.address, known);
    }

    /// Takes an answer from the budget of the login or code called `name`, which is known to be the node's own.
    pub(super) fn charge_answer(&self, name: &str) -> Result<(), LoginError> {
        self.portal
            .answers
            .charge(name, self.portal.started.elapsed())
            .map_err(|retry_after| LoginError::Throttled { retry_after })
    }

    /// Takes a signature from this network's budget: nobody has to prove anything before. Networks where somebody has
    /// lately logged in are served without.
    pub(super) fn charge_signature(&self) -> Result<(), LoginError> {
        if self.context.recent.contains(self.visit.address, self.now) {
            return Ok(());
        }
        self.charge(&self.portal.signatures)
    }

    fn open_attempts(&self) -> impl Iterator<Item = &str> {
        cookie::pairs(&self.visit.headers)
            .map(|(name, _)| name)
            .filter(|name| name.strip_prefix(COOKIE).is_some_and(is_request))
            .take(64)
    }
}
