//! The node's own key, as files and the store have it.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{
    KeyPair, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;

use zeroize::Zeroizing;

use crate::saml::{Certificate, Decrypter, KeyError, Oaep, Signer};

/// An RSA key and the certificate that carries its public half to others.
pub(crate) struct SigningKey {
    pair: KeyPair,
    /// The same, for what others encrypt to the certificate.
    opener: OaepPrivateDecryptingKey,
    certificate: Certificate,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").finish_non_exhaustive()
    }
}

impl SigningKey {
    /// From a PKCS#8 key and its certificate, both PEM.
    pub(crate) fn from_pem(private: &[u8], certificate: &[u8]) -> Result<Self, KeyError> {
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(private).map_err(|e| KeyError::PrivateKey(e.to_string()))?;
        let pair =
            KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|e| KeyError::PrivateKey(e.to_string()))?;
        let opener = PrivateDecryptingKey::from_pkcs8(der.secret_pkcs8_der())
            .map_err(|e| KeyError::PrivateKey(e.to_string()))?;
        let opener = OaepPrivateDecryptingKey::new(opener)
            .map_err(|_| KeyError::PrivateKey("it does not decrypt".into()))?;
        Ok(Self { pair, opener, certificate: Certificate::from_pem(certificate)? })
    }
}

impl Signer for SigningKey {
    fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).ok()?;
        Some(signature)
    }
}

impl Decrypter for SigningKey {
    fn unwrap_key(&self, method: Oaep, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let method = match method {
            Oaep::Sha1 => &OAEP_SHA1_MGF1SHA1,
            Oaep::Sha256 => &OAEP_SHA256_MGF1SHA256,
        };
        let mut key = Zeroizing::new(vec![0; self.opener.min_output_size()]);
        let length = self.opener.decrypt(method, wrapped, &mut key, None).ok()?.len();
        key.truncate(length);
        Some(key)
    }
}
