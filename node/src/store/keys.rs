//! Signing keys of the tokens.

use rusqlite::params;
use zeroize::Zeroizing;

use crate::flow::UnixTime;

use super::{Store, StoreError};

/// A token signing key and when it may do what.
#[derive(Clone)]
pub struct SigningKey {
    pub kid: String,
    /// PKCS#8 in PEM.
    pub private_pem: Zeroizing<String>,
    /// Self-signed X.509 certificate in PEM, for verifiers that want one.
    pub certificate_pem: String,
    pub sign_from: UnixTime,
    pub sign_until: UnixTime,
    pub publish_until: UnixTime,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .field("sign_from", &self.sign_from)
            .field("sign_until", &self.sign_until)
            .field("publish_until", &self.publish_until)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Every key that is still published at `now`, oldest first; others are deleted.
    pub async fn signing_keys(&self, now: UnixTime) -> Result<Vec<SigningKey>, StoreError> {
        self.run(move |connection| {
            connection.execute("DELETE FROM signing_key WHERE publish_until <= ?1", [now.0])?;
            connection
                .prepare_cached(
                    "SELECT kid, private_pem, certificate_pem, sign_from, sign_until, publish_until
                     FROM signing_key ORDER BY sign_from, kid",
                )?
                .query_map([], |row| {
                    Ok(SigningKey {
                        kid: row.get(0)?,
                        private_pem: Zeroizing::new(row.get(1)?),
                        certificate_pem: row.get(2)?,
                        sign_from: UnixTime(row.get(3)?),
                        sign_until: UnixTime(row.get(4)?),
                        publish_until: UnixTime(row.get(5)?),
                    })
                })?
                .collect::<Result<_, _>>()
                .map_err(StoreError::from)
        })
        .await
    }

    /// Replaces the whole set of keys in one transaction.
    pub async fn replace_signing_keys(&self, keys: Vec<SigningKey>) -> Result<(), StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM signing_key", [])?;
            for key in &keys {
                transaction.execute(
                    "INSERT INTO signing_key
                     (kid, private_pem, certificate_pem, sign_from, sign_until, publish_until)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        key.kid,
                        key.private_pem.as_str(),
                        key.certificate_pem,
                        key.sign_from.0,
                        key.sign_until.0,
                        key.publish_until.0
                    ],
                )?;
            }
            transaction.commit()?;
            Ok(())
        })
        .await
    }
}
