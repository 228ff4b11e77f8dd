//! Assertions that only one service provider can read (XML Encryption 1.1): AES-256-GCM, its key by RSA-OAEP.
//!
//! OAEP is used with SHA-1 and MGF1 with SHA-1, which service providers commonly speak: OAEP does not lean on the
//! hash's resistance to collisions.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand::SecureRandom;
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::c14n::canonical;
use super::keys::Certificate;
use super::names::{self, ASSERTION, DSIG, XENC};
use super::signature::key_info;
use super::xml::Element;

/// Whether assertions can be encrypted to the key of `certificate`: it has to be RSA.
pub fn can_encrypt_to(certificate: &Certificate) -> bool {
    PublicEncryptingKey::from_der(certificate.public_key()).is_ok()
}

/// An `EncryptedAssertion` that holds `assertion` for the owner of `recipient`.
pub(super) fn encrypt(
    assertion: &Element,
    recipient: &Certificate,
    random: &dyn SecureRandom,
) -> Option<Element> {
    let mut key = Zeroizing::new([0; 32]);
    let mut nonce = [0; 12];
    random.fill(key.as_mut()).ok()?;
    random.fill(&mut nonce).ok()?;
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).ok()?);
    let mut sealed = canonical(assertion).into_bytes();
    cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed).ok()?;
    let mut data = nonce.to_vec();
    data.append(&mut sealed);
    let public = PublicEncryptingKey::from_der(recipient.public_key()).ok()?;
    let public = OaepPublicEncryptingKey::new(public).ok()?;
    let mut wrapped = vec![0; public.ciphertext_size()];
    let wrapped = public.encrypt(&OAEP_SHA1_MGF1SHA1, key.as_ref(), &mut wrapped, None).ok()?;

    let encrypted_key = Element::new(XENC, "EncryptedKey")
        .child(
            method(names::RSA_OAEP_MGF1P)
                .child(Element::new(DSIG, "DigestMethod").with("Algorithm", names::SHA1)),
        )
        .child(key_info(recipient))
        .child(cipher_data(wrapped));
    let encrypted = Element::new(XENC, "EncryptedData")
        .with("Type", names::ENCRYPTED_ELEMENT)
        .child(method(names::AES256_GCM))
        .child(Element::new(DSIG, "KeyInfo").child(encrypted_key))
        .child(cipher_data(&data));
    Some(Element::new(ASSERTION, "EncryptedAssertion").child(encrypted))
}

fn method(uri: &str) -> Element {
    Element::new(XENC, "EncryptionMethod").with("Algorithm", uri)
}

fn cipher_data(bytes: &[u8]) -> Element {
    Element::new(XENC, "CipherData").child(Element::new(XENC, "CipherValue").text(STANDARD.encode(bytes)))
}
