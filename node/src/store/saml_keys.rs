//! Signing keys of the SAML identity provider.

use rusqlite::params;
use zeroize::Zeroizing;

use crate::flow::UnixTime;

use super::{Store, StoreError};

/// A key, its certificate and when it signs.
#[derive(Clone)]
pub struct SamlKey {
    /// PKCS#8 in PEM.
    pub private_pem: Zeroizing<String>,
    /// Self-signed X.509 certificate in PEM.
    pub certificate_pem: String,
    pub sign_from: UnixTime,
    pub sign_until: UnixTime,
}

impl std::fmt::Debug for SamlKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SamlKey")
            .field("sign_from", &self.sign_from)
            .field("sign_until", &self.sign_until)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Every key, the oldest first.
    pub async fn saml_keys(&self) -> Result<Vec<SamlKey>, StoreError> {
        self.run(move |connection| {
            connection
                .prepare_cached(
                    "SELECT private_pem, certificate_pem, sign_from, sign_until
                     FROM saml_key ORDER BY sign_from",
                )?
                .query_map([], |row| {
                    Ok(SamlKey {
                        private_pem: Zeroizing::new(row.get(0)?),
                        certificate_pem: row.get(1)?,
                        sign_from: UnixTime(row.get(2)?),
                        sign_until: UnixTime(row.get(3)?),
                    })
                })?
                .collect::<Result<_, _>>()
                .map_err(StoreError::from)
        })
        .await
    }

    /// Replaces the whole set of keys in one transaction.
    pub async fn replace_saml_keys(&self, keys: Vec<SamlKey>) -> Result<(), StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM saml_key", [])?;
            for key in &keys {
                transaction.execute(
                    "INSERT INTO saml_key (private_pem, certificate_pem, sign_from, sign_until)
                     VALUES (?1, ?2, ?3, ?4)",
                    params![key.private_pem.as_str(), key.certificate_pem, key.sign_from.0, key.sign_until.0],
                )?;
            }
            transaction.commit()?;
            Ok(())
        })
        .await
    }
}
