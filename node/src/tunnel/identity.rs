//! Who is at the other end of a tunnel: keys, not names.
//!
//! Node and connector each have one long-lived ECDSA P-256 key in a self-signed certificate; a peer is known by the
//! SHA-256 of its SubjectPublicKeyInfo (RFC 7469 §2.4 hashes the same bytes). No authority vouches for anybody:
//!
//! 1. the enrolment token tells the connector the node's hash; [`PinnedNode`] accepts that key alone;
//! 2. [`AnyKey`] lets every key through the handshake, once the peer has *proved that it holds it*
//!    (CertificateVerify, RFC 8446 §4.4.3); what a key may do is decided afterwards by its hash.
//!
//! A false accept in 1 hands the private network to a stranger who poses as the node; in 2, an application's traffic
//! to a stranger who poses as the connector. A false reject leaves applications unreachable.

use std::fmt;
use std::sync::Arc;

use quinn::rustls;
use rcgen::PublicKeyData as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// SHA-256 of a SubjectPublicKeyInfo in DER: what identifies a node or a connector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash of the key in `certificate`.
    ///
    /// # Errors
    /// When it is no X.509 version 3 certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        Ok(Self(sha256(&parsed.subject_public_key_info())))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

/// A key pair of ours with the certificate that carries it.
pub struct TunnelKey {
    pkcs8: Zeroizing<Vec<u8>>,
    certificate: CertificateDer<'static>,
    hash: KeyHash,
}

/// A stored tunnel key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel key is unusable: {0}")]
pub struct TunnelKeyError(#[from] rcgen::Error);

impl TunnelKey {
    /// A new private key in PKCS #8 (RFC 5958).
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Zeroizing<Vec<u8>>, TunnelKeyError> {
        Ok(Zeroizing::new(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?.serialize_der()))
    }

    /// Takes a private key that [`TunnelKey::generate`] made. The certificate is made anew each time: peers look at
    /// the key alone.
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, TunnelKeyError> {
        let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
        let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)?;
        let hash = KeyHash(sha256(&pair.subject_public_key_info()));
        let certificate = rcgen::CertificateParams::new(vec![SERVER_NAME.to_owned()])?.self_signed(&pair)?;
        Ok(Self { certificate: certificate.der().clone(), hash, pkcs8 })
    }

    pub const fn hash(&self) -> KeyHash {
        self.hash
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }
}

impl fmt::Debug for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelKey({})", self.hash)
    }
}

/// The name in every tunnel certificate. It is never sent nor checked: the key counts.
pub(super) const SERVER_NAME: &str = "tunnel.portcullis.invalid";

/// Accepts the node whose key has this hash, and no other.
#[derive(Debug)]
pub(super) struct PinnedNode {
    pub(super) node: KeyHash,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if intermediates.is_empty() && KeyHash::of_certificate(end_entity)? == self.node {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Accepts every key that its holder proves to hold. A client without a certificate fails the handshake.
#[derive(Debug)]
pub(super) struct AnyKey {
    pub(super) provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        KeyHash::of_certificate(end_entity)?;
        if intermediates.is_empty() {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Accepts the client whose key has this hash, and no other, once it has proved that it holds it.
#[derive(Debug)]
pub(super) struct PinnedClient {
    client: KeyHash,
    any: AnyKey,
}

impl PinnedClient {
    pub(super) const fn new(client: KeyHash, provider: Arc<CryptoProvider>) -> Self {
        Self { client, any: AnyKey { provider } }
    }
}

impl ClientCertVerifier for PinnedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.any.verify_client_cert(end_entity, intermediates, now)?;
        if KeyHash::of_certificate(end_entity)? == self.client {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.any.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.any.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any.supported_verify_schemes()
    }
}

/// QUIC has no TLS 1.2 (RFC 9001 §4.2), so nobody can ask for this.
fn no_tls12() -> Error {
    rustls::PeerIncompatible::Tls13RequiredForQuic.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_storage_and_its_hash_is_that_of_its_certificate() {
        let stored = TunnelKey::generate().unwrap();
        let (a, b) = (TunnelKey::from_pkcs8(stored.clone()).unwrap(), TunnelKey::from_pkcs8(stored).unwrap());
        assert_eq!(a.hash(), b.hash());
        assert_eq!(KeyHash::of_certificate(&a.certificate).unwrap(), a.hash());
        let other = TunnelKey::from_pkcs8(TunnelKey::generate().unwrap()).unwrap();
        assert_ne!(a.hash(), other.hash());
    }

    #[test]
    fn what_is_no_key_or_certificate_is_an_error() {
        assert!(TunnelKey::from_pkcs8(Zeroizing::new(vec![0; 40])).is_err());
        assert!(KeyHash::of_certificate(&CertificateDer::from(vec![0x30, 0x03, 0, 0, 0])).is_err());
    }

    #[test]
    fn the_private_key_has_no_debug() {
        let key = TunnelKey::from_pkcs8(TunnelKey::generate().unwrap()).unwrap();
        assert_eq!(format!("{key:?}"), format!("TunnelKey({})", key.hash()));
    }
}
