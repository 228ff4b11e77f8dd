//! `callback` and `callback/<provider>`: an OpenID provider has sent the browser back.

use bytes::Bytes;
use http::Response;

use crate::identity::LoginError;
use crate::identity::oidc;
use crate::identity::upstream::Answer;

use super::Call;
use super::form::Parameters;

impl Call<'_> {
    /// `own` is the provider whose own callback it is; empty for the one that providers share.
    pub(super) async fn callback(&self, own: &str) -> Response<Bytes> {
        let query = Parameters::of_query(self.visit.query.as_deref());
        let state = query.one("state").unwrap_or_default();
        let Some(attempt) = self.attempt(state.split('.').next().unwrap_or_default()) else {
            return self.failed(&LoginError::State, "", None);
        };
        let provider = attempt.provider.clone();
        // Whoever has started a login can invent answers to it, and to the next one. Logins share what is kept for each, so
        // a network pays for what it takes of that.
        let charged = self
            .charge(&self.portal.asked)
            .and_then(|()| self.charge_answer(&attempt.id).inspect_err(|_| self.refund(&self.portal.asked)));
        if let Err(error) = charged {
            return self.failed(&error, &provider, None);
        }
        let callback = match own {
            "" => self.site.callback(),
            own => self.site.callback_of(own),
        };
        let answer = oidc::Answer {
            callback: &callback,
            state,
            code: query.one("code"),
            issuer: query.one("iss"),
            error: query.one("error"),
            repeated: ["state", "code", "iss", "error"]
                .iter()
                .any(|name| query.has(name) && query.one(name).is_none()),
        };
        self.conclude(&provider, Some(attempt), Answer::Oidc(answer)).await
    }
}
