//! SAML 2.0 as an identity provider speaks it: bytes, keys, the time and randomness in, values out.
//!
//! ```text
//! binding    query or form ──▶ base64, inflate ──▶ xml (strict) ──▶ signature ──▶ Received
//! request    Received ──▶ AuthnRequest
//! response   who, for whom ──▶ Assertion ──sign──▶ (encrypt) ──▶ Response ──sign──▶ text
//! metadata   a service provider's file ──▶ ServiceProvider; the node's own document
//! ```
//!
//! # Why our own, over `roxmltree` and aws-lc-rs
//!
//! Looked at: `samael` (needs xmlsec1 and OpenSSL, which are barred), `bergshamra` with `saml-rs` and `xml-sec`
//! (pure Rust, young, each by one author; they carry XPath, XSLT, HMAC, SHA-1 and PKCS#12 that would all
//! have to be switched off again, and a signature that they report as good still has to be matched with what is
//! read). The part of XML Signature that SAML needs is small: one reference, one canonicalisation, two transforms.
//! Here the tree that was verified *is* the tree that is read, so there is nothing to match. The parser is
//! `roxmltree`, widely used, without unsafe code, without recursion over the input and without document types.
//! Canonicalisation is compared with libxml2's in tests, signatures and encryption with xmlsec1's.

mod binding;
mod c14n;
mod encryption;
mod keys;
mod metadata;
mod names;
mod request;
mod response;
mod signature;
#[cfg(test)]
mod tests;
mod xml;

pub use binding::{BindingError, Kind, LONGEST_RELAY_STATE, Received, encode, of_form, of_query};
pub use c14n::canonical;
pub use encryption::can_encrypt_to;
pub use keys::{Certificate, KeyError, SigningKey};
pub use metadata::{IdentityProvider, MetadataError, ServiceProvider};
pub use names::{
    AC_MFA, AC_PASSWORD, AC_PASSWORD_TRANSPORT, AC_UNSPECIFIED, ATTRNAME_BASIC, ATTRNAME_URI, BINDING_POST,
    NAMEID_EMAIL, NAMEID_PERSISTENT, NAMEID_TRANSIENT, NAMEID_UNSPECIFIED,
};
pub use request::{AuthnRequest, Comparison, Consumer, RequestError};
pub use response::{Envelope, NameId, Refusal, Statement, Subject, failure, identifier, success};
pub use xml::{MESSAGE as MESSAGE_LIMITS, METADATA as METADATA_LIMITS, XmlError, parse};
