//! Sealed text: state that the node hands to a browser and trusts when it comes back.
//!
//! AES-256-GCM with a random nonce; the purpose is authenticated, so that what was sealed for one place opens in no
//! other. Whoever seals puts an expiry inside.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Sealed text is refused beyond this many characters, before anything is decoded.
const LONGEST: usize = 8 * 1024;
const NONCE_LEN: usize = 12;

#[derive(Clone)]
pub struct Seal {
    key: Arc<RandomizedNonceKey>,
}

/// The value cannot be sealed, or the key is not 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sealing failed")]
pub struct SealError;

impl Seal {
    /// Bytes of a key.
    pub const KEY_LEN: usize = 32;

    pub fn new(key: &[u8]) -> Result<Self, SealError> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| SealError)?;
        Ok(Self { key: Arc::new(key) })
    }

    /// Seals `value` for `purpose`: base64url of nonce, ciphertext and tag.
    pub fn seal<T: Serialize>(&self, purpose: &'static str, value: &T) -> Result<String, SealError> {
        let mut sealed = serde_json::to_vec(value).map_err(|_| SealError)?;
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut sealed)
            .map_err(|_| SealError)?;
        let mut bytes = nonce.as_ref().to_vec();
        bytes.append(&mut sealed);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Opens what was sealed for the same purpose by the same key; anything else is nothing.
    pub fn open<T: DeserializeOwned>(&self, purpose: &'static str, text: &str) -> Option<T> {
        if text.len() > LONGEST {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = aws_lc_rs::aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let plain = self.key.open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut sealed).ok()?;
        serde_json::from_slice(plain).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn opens_only_for_its_purpose_and_key() {
        let seal = Seal::new(&[1; 32]).unwrap();
        let text = seal.seal("a", &("x", 7)).unwrap();
        assert_eq!(seal.open::<(String, u8)>("a", &text), Some(("x".into(), 7)));
        assert_eq!(seal.open::<(String, u8)>("b", &text), None);
        assert_eq!(Seal::new(&[2; 32]).unwrap().open::<(String, u8)>("a", &text), None);
        assert!(Seal::new(&[0; 31]).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_opens(at in 0usize..50, flip in 1u8..255) {
            let seal = Seal::new(&[1; 32]).unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode(seal.seal("a", &"some text of some length").unwrap()).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert_eq!(seal.open::<String>("a", &URL_SAFE_NO_PAD.encode(bytes)), None);
        }

        #[test]
        fn no_text_panics(text: String) {
            prop_assert_eq!(Seal::new(&[1; 32]).unwrap().open::<String>("a", &text), None);
        }
    }
}
