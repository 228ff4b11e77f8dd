//! A token whenever one is asked for: the one that is kept while it is fresh, else another for the refresh token.
//!
//! A refresh token is good for one use, so of all tasks and processes of a person one at a time may use it: whoever has
//! waited for the lock looks first whether somebody else has refreshed meanwhile.

use std::time::Duration;

use crate::clock;
use crate::flow::UnixTime;

use super::api::{Api, ApiError, Refusal};
use super::profile::{AccessToken, Profile, ProfileError};
use super::wire::{self, AppRow, ApplicationToken, GlobalToken, TokenResponse, WhoAmI};

/// A token that ends sooner than this is refreshed before it is used.
const AHEAD: Duration = Duration::from_secs(120);

/// Why a client cannot act for its person.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("the login has ended ({why}): run `portcullis access login {url}` again")]
    Ended { url: String, why: String },
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Api(ApiError),
}

impl Profile {
    /// A token that is good for two more minutes at least, unless the login ends before.
    ///
    /// # Errors
    /// [`AccessError::Ended`] when the person has to log in again; others when the node cannot be reached or the
    /// profile cannot be read.
    pub async fn access_token(&self) -> Result<AccessToken, AccessError> {
        let now = clock::now();
        let kept = self.login()?;
        if is_fresh(&kept.access, kept.login_expires_at, now) {
            return Ok(kept.access);
        }
        let _locked = self.lock().await?;
        let kept = self.login()?;
        if is_fresh(&kept.access, kept.login_expires_at, now) {
            return Ok(kept.access);
        }
        self.refresh(&kept.refresh).await
    }

    /// Whoever is logged in, as the node knows them now.
    ///
    /// # Errors
    /// As [`Profile::access_token`].
    pub async fn whoami(&self) -> Result<WhoAmI, AccessError> {
        let token = self.access_token().await?;
        self.refused(Api::new(self).map_err(AccessError::Api)?.get(wire::WHOAMI, &token.token).await)
    }

    /// The applications that policy would open to this person from here.
    ///
    /// # Errors
    /// As [`Profile::access_token`].
    pub async fn apps(&self) -> Result<Vec<AppRow>, AccessError> {
        let token = self.access_token().await?;
        self.refused(Api::new(self).map_err(AccessError::Api)?.get(wire::APPS, &token.token).await)
    }

    /// A token for the application at `url`, for clients that send it as `Cf-Access-Token`.
    ///
    /// # Errors
    /// As [`Profile::access_token`], and when policy does not open the application.
    pub async fn application_token(&self, url: &str) -> Result<ApplicationToken, AccessError> {
        let token = self.access_token().await?;
        let api = Api::new(self).map_err(AccessError::Api)?;
        self.refused(api.post(wire::APP_TOKEN, Some(&token.token), &[("app", url)]).await)
    }

    /// A token that programs turn into one for an application by themselves, until the login ends.
    ///
    /// # Errors
    /// As [`Profile::access_token`].
    pub async fn global_token(&self) -> Result<GlobalToken, AccessError> {
        let token = self.access_token().await?;
        let api = Api::new(self).map_err(AccessError::Api)?;
        self.refused(api.post(wire::GLOBAL_TOKEN, Some(&token.token), &[]).await)
    }

    /// Ends this client's login at the node and forgets it here. The node may be out of reach: what it could not be
    /// told is returned, and the login is forgotten all the same.
    ///
    /// # Errors
    /// When the profile cannot be read or written.
    pub async fn log_out(&self) -> Result<Option<ApiError>, ProfileError> {
        let _locked = self.lock().await?;
        let kept = self.login()?;
        let told = match Api::new(self) {
            Ok(api) => {
                let form = [("token", kept.refresh.as_str()), ("client_id", wire::CLIENT_ID)];
                api.post::<serde_json::Value>(wire::REVOKE, None, &form).await.map(drop)
            }
            Err(error) => Err(error),
        };
        self.forget()?;
        Ok(told.err())
    }

    /// Exchanges the refresh token. The lock is held.
    async fn refresh(&self, refresh: &str) -> Result<AccessToken, AccessError> {
        let form =
            [("grant_type", wire::BY_REFRESH), ("client_id", wire::CLIENT_ID), ("refresh_token", refresh)];
        let since = clock::now();
        let api = Api::new(self).map_err(AccessError::Api)?;
        let answer: TokenResponse = match api.post(wire::TOKEN, None, &form).await {
            Err(ApiError::Refused(refusal)) if refusal.code == "invalid_grant" => {
                // It will never be good again.
                self.forget()?;
                return Err(self.ended(&refusal));
            }
            other => other.map_err(AccessError::Api)?,
        };
        Ok(self.keep(&answer, since, false)?)
    }

    /// A login that ended at the node since the token was made.
    fn refused<T>(&self, answer: Result<T, ApiError>) -> Result<T, AccessError> {
        answer.map_err(|error| match error {
            ApiError::Refused(refusal) if refusal.code == "invalid_token" => self.ended(&refusal),
            other => AccessError::Api(other),
        })
    }

    fn ended(&self, refusal: &Refusal) -> AccessError {
        AccessError::Ended { url: self.url().to_owned(), why: refusal.words.clone() }
    }
}

/// Whether the token can be used without another refresh. At the end of a login a refresh gains nothing.
fn is_fresh(token: &AccessToken, login_expires_at: UnixTime, now: UnixTime) -> bool {
    token.expires_at > now.after(AHEAD) || (token.expires_at > now && token.expires_at >= login_expires_at)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn a_token_is_refreshed_ahead_of_its_end_unless_the_login_ends_too() {
        let token = |expires| AccessToken { token: Zeroizing::default(), expires_at: UnixTime(expires) };
        for (expires, login, fresh) in [
            (1000, 9000, true),
            (220, 9000, false),
            (221, 9000, true),
            (150, 150, true),
            (150, 149, true),
            (100, 100, false),
            (50, 40, false),
        ] {
            assert_eq!(is_fresh(&token(expires), UnixTime(login), UnixTime(100)), fresh, "{expires} {login}");
        }
    }
}
