//! Assertions that only one service provider can read (XML Encryption 1.1): AES-GCM, its key by RSA-OAEP.
//!
//! OAEP is used with SHA-1 and MGF1 with SHA-1, which service providers commonly speak: OAEP does not lean on the
//! hash's resistance to collisions. What is opened may also use SHA-256 for both. CBC and PKCS#1 v1.5 are refused: their
//! answers to wrong texts have given texts away. Whatever is wrong with an encrypted assertion, the answer is the same.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::c14n::canonical;
use super::keys::{Certificate, Decrypter, Oaep};
use super::names::{self, ASSERTION, DSIG, XENC, XENC11};
use super::signature::key_info;
use super::xml::{self, Element};

/// Wrapped keys of one assertion that are tried: each costs an RSA operation with each of the node's keys.
const MOST_KEYS: usize = 2;

/// Whether assertions can be encrypted to the key of `certificate`: it has to be RSA.
pub fn can_encrypt_to(certificate: &Certificate) -> bool {
    PublicEncryptingKey::from_der(certificate.public_key()).is_ok()
}

/// An `EncryptedAssertion` that holds `assertion` for the owner of `recipient`.
pub(super) fn encrypt(
    assertion: &Element,
    recipient: &Certificate,
    random: &dyn Fn(&mut [u8]),
) -> Option<Element> {
    let mut key = Zeroizing::new([0; 32]);
    let mut nonce = [0; 12];
    random(key.as_mut());
    random(&mut nonce);
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

/// The assertion in an `EncryptedAssertion` that is for one of `keys`.
pub(super) fn open(encrypted: &Element, keys: &[&dyn Decrypter]) -> Option<Element> {
    let data = encrypted.one(XENC, "EncryptedData")?;
    let cipher = cipher(data)?;
    let sealed = cipher_value(data)?;
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
    let inside = data.one(DSIG, "KeyInfo").into_iter().flat_map(|info| info.all(XENC, "EncryptedKey"));
    let wrapped: Vec<&Element> = inside.chain(encrypted.all(XENC, "EncryptedKey")).collect();
    if wrapped.len() > MOST_KEYS {
        return None;
    }
    for wrapped in wrapped {
        let Some((method, value)) = oaep(wrapped).zip(cipher_value(wrapped)) else { continue };
        for key in keys {
            let Some(key) = key.unwrap_key(method, &value) else { continue };
            let Ok(key) = UnboundKey::new(cipher, &key) else { continue };
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut plain = sealed.to_vec();
            let Ok(plain) = LessSafeKey::new(key).open_in_place(nonce, Aad::empty(), &mut plain) else {
                continue;
            };
            return xml::parse_inside(data, plain).filter(|element| element.is(ASSERTION, "Assertion"));
        }
    }
    None
}

fn cipher(data: &Element) -> Option<&'static Algorithm> {
    match data.one(XENC, "EncryptionMethod")?.attribute("Algorithm")? {
        names::AES128_GCM => Some(&AES_128_GCM),
        names::AES192_GCM => Some(&AES_192_GCM),
        names::AES256_GCM => Some(&AES_256_GCM),
        _ => None,
    }
}

/// How a key is wrapped. What is not said is SHA-1, by the specification.
fn oaep(wrapped: &Element) -> Option<Oaep> {
    let method = wrapped.one(XENC, "EncryptionMethod")?;
    let of = |namespace, local| {
        method
            .all(namespace, local)
            .next()
            .map_or(Some(names::SHA1), |element| element.attribute("Algorithm"))
    };
    if method.count(XENC, "OAEPparams") > 0 {
        return None;
    }
    match (method.attribute("Algorithm")?, of(DSIG, "DigestMethod")?, of(XENC11, "MGF")?) {
        (names::RSA_OAEP_MGF1P, names::SHA1, names::SHA1) => Some(Oaep::Sha1),
        (names::RSA_OAEP, names::SHA1, names::SHA1 | names::MGF1_SHA1) => Some(Oaep::Sha1),
        (names::RSA_OAEP, names::SHA256, names::MGF1_SHA256) => Some(Oaep::Sha256),
        _ => None,
    }
}

fn cipher_value(element: &Element) -> Option<Vec<u8>> {
    let content = element.one(XENC, "CipherData")?.one(XENC, "CipherValue")?.content()?;
    STANDARD.decode(content.split_ascii_whitespace().collect::<String>()).ok()
}
