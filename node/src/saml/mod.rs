//! SAML 2.0 as identity provider and service provider speak it: bytes, keys, the time and randomness in, values out.
//!
//! ```text
//! binding    query or form ──▶ base64, inflate ──▶ xml (strict) ──▶ signature ──▶ Received
//! request    Received ──▶ AuthnRequest
//! response   who, for whom ──▶ Assertion ──sign──▶ (encrypt) ──▶ Response ──sign──▶ text
//! logout     Received ──▶ LogoutRequest ──▶ LogoutResponse; the node's own LogoutRequest, and what answers it
//! metadata   a service provider's document ──▶ ServiceProvider; the node's own as identity provider
//! upstream   an identity provider's document ──▶ Provider; the node's own as service provider; the node's AuthnRequest
//! assertion  Response ──verify──▶ (decrypt) ──▶ the one assertion that was verified ──▶ Assertion
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

mod assertion;
mod binding;
mod c14n;
mod encryption;
mod keys;
mod logout;
mod metadata;
mod names;
mod request;
mod response;
mod signature;
#[cfg(test)]
mod tests;
mod upstream;
mod xml;

pub use assertion::{Assertion, Expected, ResponseError, SKEW, accept};
pub use binding::{
    BindingError, Kind, LONGEST_RELAY_STATE, Onward, Received, encode, of_form, of_query, redirect, send,
    unverified,
};
pub use c14n::canonical;
pub use encryption::can_encrypt_to;
pub use keys::{Certificate, Decrypter, KeyError, Oaep, Signer};
pub use logout::{
    Ended, LogoutRequest, LogoutResponse, Peer, end_session, end_session_by_soap, has_ended, logged_out,
};
pub use metadata::{IdentityProvider, LogoutService, MetadataError, ServiceProvider, Validity};
pub use names::{
    AC_MFA, AC_PASSWORD, AC_PASSWORD_TRANSPORT, AC_UNSPECIFIED, ATTRNAME_BASIC, ATTRNAME_URI, BINDING_POST,
    NAMEID_EMAIL, NAMEID_PERSISTENT, NAMEID_TRANSIENT, NAMEID_UNSPECIFIED,
};
pub use request::{AuthnRequest, Comparison, Consumer, Head, RequestError};
pub use response::{
    ANSWER_LIFE, Envelope, NameId, Refusal, Statement, Subject, failure, identifier, success,
};
pub use signature::SignatureError;
pub use upstream::{Ask, OwnServiceProvider, Place, Provider, Service, ask, request_id};
pub use xml::{
    ANSWER as ANSWER_LIMITS, MESSAGE as MESSAGE_LIMITS, METADATA as METADATA_LIMITS, XmlError, parse,
};
