//! Making and rotating service tokens.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::config::check_name;
use crate::flow::UnixTime;
use crate::identity::service::ServiceSecret;
use crate::store::ServiceToken;

use super::service::Service;

/// A service token is good for so long at the least and at the most.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3650 * 86_400);

impl Service {
    pub(super) async fn create_service_token(
        &self,
        name: &str,
        life: Duration,
        now: UnixTime,
    ) -> anyhow::Result<Value> {
        check_name("service token", name).map_err(anyhow::Error::msg)?;
        let (token, secret) = self.services.create(name, end(life, now)?, now).await?;
        Ok(shown_once(&token, &secret))
    }

    pub(super) async fn rotate_service_token(
        &self,
        name: &str,
        life: Duration,
        now: UnixTime,
    ) -> anyhow::Result<Value> {
        let rotated = self.services.rotate(name, end(life, now)?, now).await?;
        let (token, secret) = rotated.with_context(|| format!("there is no service token `{name}`"))?;
        Ok(shown_once(&token, &secret))
    }
}

fn end(life: Duration, now: UnixTime) -> anyhow::Result<UnixTime> {
    anyhow::ensure!((SHORTEST..=LONGEST).contains(&life), "a service token lives from 1 s to 3650 d");
    Ok(now.after(life))
}

/// The one answer that has the secret.
fn shown_once(token: &ServiceToken, secret: &ServiceSecret) -> Value {
    json!({
        "client_id": token.client_id,
        "client_secret": secret.expose(),
        "expires_at": token.expires_at,
    })
}
