//! Keys, which come from the configuration and the store only: what a message says of its key is never read.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::flow::UnixTime;

use super::names;

/// Bytes of the longest certificate that is read.
const LONGEST_CERTIFICATE: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not an X.509 certificate: {0}")]
    Certificate(String),
    #[error("not an RSA key in PKCS#8: {0}")]
    PrivateKey(String),
    #[error("the certificate's key is neither RSA of at least 2048 bits nor ECDSA on P-256 or P-384")]
    Unsupported,
}

/// A peer's certificate: its key verifies what the peer signs, or encrypts what only the peer shall read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    /// SubjectPublicKeyInfo.
    key: Vec<u8>,
    valid_until: UnixTime,
}

impl Certificate {
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = CertificateDer::from_pem_slice(pem).map_err(|e| KeyError::Certificate(e.to_string()))?;
        Self::from_der(&der)
    }

    /// Every certificate of a PEM file, of which there must be one at least.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let all: Vec<Self> = CertificateDer::pem_slice_iter(pem)
            .map(|der| Self::from_der(&der.map_err(|e| KeyError::Certificate(e.to_string()))?))
            .collect::<Result<_, _>>()?;
        if all.is_empty() { Err(KeyError::Certificate("there is none".into())) } else { Ok(all) }
    }

    /// The text of an `X509Certificate` element: base64 with any white space.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        if text.len() > LONGEST_CERTIFICATE {
            return Err(KeyError::Certificate("too long".into()));
        }
        let text: String = text.split_ascii_whitespace().collect();
        Self::from_der(&STANDARD.decode(text).map_err(|e| KeyError::Certificate(e.to_string()))?)
    }

    fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let parsed = CertificateDer::from(der);
        let parsed = EndEntityCert::try_from(&parsed).map_err(|e| KeyError::Certificate(e.to_string()))?;
        let key = parsed.subject_public_key_info().to_vec();
        let usable = [&signature::RSA_PKCS1_2048_8192_SHA256 as &dyn VerificationAlgorithm]
            .into_iter()
            .chain([&signature::ECDSA_P256_SHA256_FIXED as _, &signature::ECDSA_P384_SHA384_FIXED as _])
            .any(|algorithm| signature::ParsedPublicKey::new(algorithm, &key).is_ok());
        if !usable {
            return Err(KeyError::Unsupported);
        }
        let (_, whole) = X509Certificate::from_der(der).map_err(|e| KeyError::Certificate(e.to_string()))?;
        let valid_until = UnixTime(whole.validity().not_after.timestamp());
        Ok(Self { der: der.to_vec(), key, valid_until })
    }

    /// When it expires, by its own word. The configuration trusts its key, so that nothing fails then: many service
    /// providers never look at it either, and some do.
    pub const fn valid_until(&self) -> UnixTime {
        self.valid_until
    }

    /// The certificate as XML carries it.
    pub fn base64(&self) -> String {
        STANDARD.encode(&self.der)
    }

    /// SubjectPublicKeyInfo in DER.
    pub fn public_key(&self) -> &[u8] {
        &self.key
    }

    /// Whether `signature` over `message` is this key's, by a signature method that is accepted at all.
    pub(super) fn verifies(&self, method: Method, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(method.algorithm(), &self.key).verify(message, signature).is_ok()
    }
}

/// The signature methods that are accepted. Neither SHA-1 nor HMAC is among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    RsaSha256,
    RsaSha384,
    RsaSha512,
    EcdsaP256,
    EcdsaP384,
}

impl Method {
    pub(super) fn parse(uri: &str) -> Option<Self> {
        match uri {
            names::RSA_SHA256 => Some(Self::RsaSha256),
            names::RSA_SHA384 => Some(Self::RsaSha384),
            names::RSA_SHA512 => Some(Self::RsaSha512),
            names::ECDSA_SHA256 => Some(Self::EcdsaP256),
            names::ECDSA_SHA384 => Some(Self::EcdsaP384),
            _ => None,
        }
    }

    fn algorithm(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::RsaSha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::RsaSha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::RsaSha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::EcdsaP256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::EcdsaP384 => &signature::ECDSA_P384_SHA384_FIXED,
        }
    }
}

/// Signs for the node. The private key, and the randomness that its library asks for, stay with whoever holds it.
pub trait Signer: Sync {
    /// Carries the public half to others.
    fn certificate(&self) -> &Certificate;

    /// RSA-SHA256 (PKCS#1 v1.5) over `message`.
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>>;
}

/// How a key is wrapped by RSA-OAEP: the hash of OAEP and of its mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oaep {
    Sha1,
    Sha256,
}

/// Opens for the node what others encrypt to its certificates.
pub trait Decrypter: Sync {
    /// The key that was wrapped.
    fn unwrap_key(&self, method: Oaep, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>>;
}
