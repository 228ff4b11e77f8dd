//! The keys that sign for service providers. These pin our certificate, many by hand: a key signs for three years, and
//! the next is in the metadata half a year before it signs.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::flow::UnixTime;
use crate::saml::{Certificate, Decrypter, Signer as _};
use crate::store::{SamlKey, Store};

use super::KeysError;
use super::signing_key::SigningKey;

const DAY: Duration = Duration::from_secs(86_400);
const SIGN_FOR: Duration = Duration::from_secs(3 * 365 * 86_400);
/// The next key is published this long before the present one stops signing.
const PUBLISH_AHEAD: Duration = Duration::from_secs(182 * 86_400);
/// The same where an administrator asks for the next key.
const OVERLAP: Duration = Duration::from_secs(30 * 86_400);

/// What a key does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamlKeyState {
    /// In the metadata, signs later.
    Next,
    Signing,
}

/// A key as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamlKeySummary {
    pub state: SamlKeyState,
    pub sign_from: UnixTime,
    pub sign_until: UnixTime,
    pub certificate: String,
}

/// The keys that sign now and later; what has stopped signing is of no use to anybody.
pub(crate) struct Keys {
    /// The oldest first.
    later: Vec<Loaded>,
    /// The first, which is there always.
    first: Loaded,
}

struct Loaded {
    stored: SamlKey,
    key: SigningKey,
}

impl Keys {
    pub(super) async fn load(store: &Store, now: UnixTime) -> Result<Self, KeysError> {
        let mut stored = store.saml_keys().await?;
        stored.retain(|key| key.sign_until > now);
        if !stored.is_empty() {
            return Self::parse(stored);
        }
        let keys = Self::generate(now)?;
        store.replace_saml_keys(keys.stored()).await?;
        Ok(keys)
    }

    /// One new key that signs at once, and nothing else.
    pub(super) fn generate(now: UnixTime) -> Result<Self, KeysError> {
        Ok(Self { later: Vec::new(), first: Loaded::parse(new_key(now)?)? })
    }

    /// With a further key that signs in a month, when the present one stops.
    pub(super) fn with_next(&self, now: UnixTime) -> Result<Self, KeysError> {
        let turn = now.after(OVERLAP);
        let mut all = self.stored();
        all.retain(|key| key.sign_from <= now);
        for key in &mut all {
            key.sign_until = key.sign_until.min(turn);
        }
        all.push(new_key(turn)?);
        Self::parse(all)
    }

    pub(super) fn with_next_if_due(&self, now: UnixTime) -> Result<Option<Self>, KeysError> {
        let mut all = self.stored();
        all.retain(|key| key.sign_until > now);
        let end = all.iter().map(|key| key.sign_until).max().unwrap_or(now);
        if end <= now.after(PUBLISH_AHEAD) {
            all.push(new_key(end)?);
        } else if all.len() > self.later.len() {
            return Ok(None);
        }
        Self::parse(all).map(Some)
    }

    /// The key that signs at `now`; a clock that jumped must not keep everybody out, so there is always one.
    pub(crate) fn signer(&self, now: UnixTime) -> &SigningKey {
        &self.signing(now).key
    }

    fn signing(&self, now: UnixTime) -> &Loaded {
        self.all().filter(|key| key.stored.sign_from <= now).last().unwrap_or(&self.first)
    }

    /// Each of them opens what is encrypted to the node.
    pub(crate) fn decrypters(&self) -> Vec<&dyn Decrypter> {
        self.all().map(|key| &key.key as &dyn Decrypter).collect()
    }

    pub(crate) fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.all().map(|key| key.key.certificate())
    }

    pub(super) fn stored(&self) -> Vec<SamlKey> {
        self.all().map(|key| key.stored.clone()).collect()
    }

    pub(super) fn summary(&self, now: UnixTime) -> Vec<SamlKeySummary> {
        let signing = self.signing(now);
        self.all()
            .map(|key| SamlKeySummary {
                state: if std::ptr::eq(key, signing) { SamlKeyState::Signing } else { SamlKeyState::Next },
                sign_from: key.stored.sign_from,
                sign_until: key.stored.sign_until,
                certificate: key.stored.certificate_pem.clone(),
            })
            .collect()
    }

    fn all(&self) -> impl Iterator<Item = &Loaded> {
        std::iter::once(&self.first).chain(&self.later)
    }

    fn parse(stored: Vec<SamlKey>) -> Result<Self, KeysError> {
        let mut keys = stored.into_iter().map(Loaded::parse);
        let first = keys.next().ok_or_else(|| KeysError::Key("there is none".into()))??;
        Ok(Self { later: keys.collect::<Result<_, _>>()?, first })
    }
}

impl Loaded {
    fn parse(stored: SamlKey) -> Result<Self, KeysError> {
        let key = SigningKey::from_pem(stored.private_pem.as_bytes(), stored.certificate_pem.as_bytes())
            .map_err(|error| KeysError::Key(error.to_string()))?;
        Ok(Self { stored, key })
    }
}

/// An RSA key of 2048 bits that signs from `sign_from` for three years.
fn new_key(sign_from: UnixTime) -> Result<SamlKey, KeysError> {
    let fault = |error: rcgen::Error| KeysError::Key(error.to_string());
    let pair =
        rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).map_err(fault)?;
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "Portcullis SAML");
    let at = |time: UnixTime| {
        time::OffsetDateTime::from_unix_timestamp(time.0).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    let sign_until = sign_from.after(SIGN_FOR);
    // The next key is published before it signs, and some service providers look at the dates then already.
    parameters.not_before = at(sign_from.before(PUBLISH_AHEAD + DAY));
    parameters.not_after = at(sign_until.after(DAY));
    let certificate_pem = parameters.self_signed(&pair).map_err(fault)?.pem();
    Ok(SamlKey { private_pem: Zeroizing::new(pair.serialize_pem()), certificate_pem, sign_from, sign_until })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[test]
    fn the_next_key_is_published_before_it_signs() {
        let keys = Keys::generate(NOW).unwrap();
        assert!(keys.with_next_if_due(NOW).unwrap().is_none());
        let late = NOW.after(SIGN_FOR).before(PUBLISH_AHEAD);
        let two = keys.with_next_if_due(late).unwrap().expect("it is due");
        assert_eq!(two.certificates().count(), 2);
        assert!(two.with_next_if_due(late).unwrap().is_none(), "once");
        let (old, new) = (keys.first.key.certificate(), two.later[0].key.certificate());
        assert_eq!(two.signer(late).certificate(), old);
        let turn = NOW.after(SIGN_FOR);
        assert_eq!(two.signer(turn).certificate(), new);
        let one = two.with_next_if_due(turn).unwrap().expect("the old one leaves the metadata");
        assert_eq!(one.certificates().collect::<Vec<_>>(), [new]);
    }

    #[test]
    fn an_administrator_may_begin_the_rotation() {
        let keys = Keys::generate(NOW).unwrap();
        let two = keys.with_next(NOW).unwrap();
        let states: Vec<_> = two.summary(NOW).iter().map(|key| key.state).collect();
        assert_eq!(states, [SamlKeyState::Signing, SamlKeyState::Next]);
        let states: Vec<_> = two.summary(NOW.after(OVERLAP)).iter().map(|key| key.state).collect();
        assert_eq!(states.last(), Some(&SamlKeyState::Signing));
        // Asked again: the one that has not signed yet makes room.
        assert_eq!(two.with_next(NOW).unwrap().certificates().count(), 2);
    }
}
