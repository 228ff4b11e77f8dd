//! Messages that broke others: wrapped signatures, doubled parts, weak algorithms, bombs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use miniz_oxide::deflate::compress_to_vec;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::binding::{BindingError, Received};
use super::super::signature::SignatureError;
use super::super::xml::XmlError;
use super::*;

pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A message as a query carries it.
pub(super) fn deflated(text: &str) -> String {
    encoded(&STANDARD.encode(compress_to_vec(text.as_bytes(), 6)))
}

fn posted(text: &str, keys: &[Certificate]) -> Result<Received, BindingError> {
    binding::of_form(&STANDARD.encode(text), None, keys)
}

/// The part of `text` from the start of `<name` to the end of `</name>`.
fn part<'a>(text: &'a str, name: &str) -> &'a str {
    let start = text.find(&format!("<{name}")).unwrap();
    let close = format!("</{name}>");
    let end = text[start..].find(&close).unwrap() + start + close.len();
    &text[start..end]
}

/// `text` with the first `from` replaced, which must be there.
fn swap(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from} is not in {text}");
    text.replacen(from, to, 1)
}

#[test]
fn wrapped_and_doubled_signatures_are_refused() {
    let pem = Pem::rsa();
    let keys = [pem.certificate()];
    let good = signed(request(), &pem);
    assert!(posted(&good, &keys).unwrap().signed);
    let signature = part(&good, "ds:Signature").to_owned();
    let bare = swap(&good, &signature, "");
    // What an attacker wants to be read.
    let evil = swap(&swap(&bare, "_r1", "_evil"), "https://sp.example.org/acs", "https://evil.example/acs");
    let inside = |outer: &str, inner: &str| {
        swap(outer, "</samlp:AuthnRequest>", &format!("{inner}</samlp:AuthnRequest>"))
    };
    let extensions = |inner: &str| format!("<samlp:Extensions>{inner}</samlp:Extensions>");
    let object = |inner: &str| {
        swap(&signature, "</ds:Signature>", &format!("<ds:Object>{inner}</ds:Object></ds:Signature>"))
    };
    let issuer = part(&evil, "saml:Issuer").to_owned();
    let with_signature = |outer: &str, signature: &str| swap(outer, &issuer, &format!("{issuer}{signature}"));
    let refused = |error| Err(BindingError::Signature(error));
    let misplaced = || refused(SignatureError::Misplaced);
    for (what, text, error) in [
        (
            "1: original beside the signature in a new root",
            with_signature(&evil, &format!("{signature}{bare}")),
            refused(SignatureError::Reference),
        ),
        (
            "2: original before the signature",
            with_signature(&evil, &format!("{bare}{signature}")),
            refused(SignatureError::Reference),
        ),
        ("3: signed original inside the forged one", inside(&evil, &good), misplaced()),
        (
            "4: forged one around the signed one, in extensions",
            inside(&evil, &extensions(&good)),
            misplaced(),
        ),
        (
            "5: signature in the forged one, original at the end",
            inside(&with_signature(&evil, &signature), &bare),
            refused(SignatureError::Reference),
        ),
        (
            "6: original in the signature's Object",
            with_signature(&evil, &object(&bare)),
            refused(SignatureError::Shape),
        ),
        (
            "7: original in extensions",
            inside(&with_signature(&evil, &signature), &extensions(&bare)),
            refused(SignatureError::Reference),
        ),
        (
            "8: the signed one's Object holds the original, same ID",
            with_signature(&swap(&evil, "_evil", "_r1"), &object(&bare)),
            Err(BindingError::Xml(XmlError::DuplicateId)),
        ),
        (
            "9: same ID on both",
            inside(&with_signature(&swap(&evil, "_evil", "_r1"), &signature), &extensions(&bare)),
            Err(BindingError::Xml(XmlError::DuplicateId)),
        ),
        (
            "IDs that differ in their attribute",
            inside(&good, "<a Id='_r1'/>"),
            Err(BindingError::Xml(XmlError::DuplicateId)),
        ),
        (
            "forged content under the signature",
            swap(&good, "https://sp.example.org/acs", "https://evil.example/acs"),
            refused(SignatureError::Digest),
        ),
        ("two signatures", swap(&good, &signature, &format!("{signature}{signature}")), misplaced()),
        (
            "two SignedInfo",
            swap(&good, "</ds:SignedInfo>", &format!("</ds:SignedInfo>{}", part(&good, "ds:SignedInfo"))),
            refused(SignatureError::Shape),
        ),
        (
            "two values",
            swap(&good, part(&good, "ds:SignatureValue"), &part(&good, "ds:SignatureValue").repeat(2)),
            refused(SignatureError::Shape),
        ),
        (
            "two references",
            swap(&good, part(&good, "ds:Reference"), &part(&good, "ds:Reference").repeat(2)),
            refused(SignatureError::Shape),
        ),
        ("no reference", swap(&good, part(&good, "ds:Reference"), ""), refused(SignatureError::Shape)),
        ("the whole document", swap(&good, "URI=\"#_r1\"", "URI=\"\""), refused(SignatureError::Reference)),
        (
            "an XPointer",
            swap(&good, "URI=\"#_r1\"", "URI=\"#xpointer(id('_r1'))\""),
            refused(SignatureError::Reference),
        ),
        (
            "a file",
            swap(&good, "URI=\"#_r1\"", "URI=\"file:///etc/passwd\""),
            refused(SignatureError::Reference),
        ),
        (
            "two digests",
            swap(&good, part(&good, "ds:DigestValue"), &part(&good, "ds:DigestValue").repeat(2)),
            refused(SignatureError::Shape),
        ),
        (
            "an element in the digest",
            swap(&good, "<ds:DigestValue>", "<ds:DigestValue><x/>"),
            refused(SignatureError::Shape),
        ),
        (
            "a comment in the digest",
            swap(&good, "<ds:DigestValue>", "<ds:DigestValue><!--x-->"),
            Err(BindingError::Xml(XmlError::Comment)),
        ),
        (
            "a comment in the issuer",
            swap(&good, "https://sp.example.org<", "https://sp.example.org<!-- -->.evil<"),
            Err(BindingError::Xml(XmlError::Comment)),
        ),
        (
            "a processing instruction",
            swap(&good, "</saml:Issuer>", "<?x y?></saml:Issuer>"),
            Err(BindingError::Xml(XmlError::ProcessingInstruction)),
        ),
        ("a document type", format!("<!DOCTYPE x>{good}"), Err(BindingError::Xml(XmlError::DocumentType))),
        (
            "an entity",
            format!("<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>{good}"),
            Err(BindingError::Xml(XmlError::DocumentType)),
        ),
        (
            "a transform more",
            swap(
                &good,
                "<ds:Transforms>",
                "<ds:Transforms><ds:Transform Algorithm=\"http://www.w3.org/TR/1999/REC-xslt-19991116\"></ds:Transform>",
            ),
            refused(SignatureError::Algorithm),
        ),
        (
            "a transform with parameters",
            swap(&good, "exc-c14n#\"></ds:Transform>", "exc-c14n#\"><x/></ds:Transform>"),
            refused(SignatureError::Shape),
        ),
        (
            "XPath",
            swap(&good, names::ENVELOPED, "http://www.w3.org/TR/1999/REC-xpath-19991116"),
            refused(SignatureError::Algorithm),
        ),
        (
            "inclusive canonicalisation",
            swap(&good, names::EXCLUSIVE_C14N, "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"),
            refused(SignatureError::Algorithm),
        ),
        (
            "RSA with SHA-1",
            swap(&good, names::RSA_SHA256, "http://www.w3.org/2000/09/xmldsig#rsa-sha1"),
            refused(SignatureError::Algorithm),
        ),
        (
            "HMAC",
            swap(&good, names::RSA_SHA256, "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256"),
            refused(SignatureError::Algorithm),
        ),
        ("a digest by SHA-1", swap(&good, names::SHA256, names::SHA1), refused(SignatureError::Algorithm)),
        (
            "another accepted method",
            swap(&good, names::RSA_SHA256, names::ECDSA_SHA256),
            refused(SignatureError::Key),
        ),
        ("no ID", swap(&good, " ID=\"_r1\"", ""), refused(SignatureError::Reference)),
        (
            "signed by another key that is enclosed",
            signed(request(), &Pem::rsa()),
            refused(SignatureError::Key),
        ),
    ] {
        assert_eq!(posted(&text, &keys), error, "{what}\n{text}");
    }
}

/// HMAC keyed with what everybody knows of an RSA key: the certificate or the public key.
#[test]
fn the_public_key_is_no_secret_to_sign_with() {
    use aws_lc_rs::hmac;
    let pem = Pem::rsa();
    let hmac_sha256 = "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256";
    let mut message = sign(request(), &pem.key()).unwrap();
    let text = canonical(&message).replace(names::RSA_SHA256, hmac_sha256);
    message = xml::parse(text.as_bytes(), MESSAGE).unwrap();
    let info = message.one(names::DSIG, "Signature").unwrap().one(names::DSIG, "SignedInfo").unwrap();
    for secret in [pem.certificate().public_key(), pem.certificate.as_bytes()] {
        let value = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), canonical(info).as_bytes());
        let forged = swap(
            &text,
            part(&text, "ds:SignatureValue"),
            &format!("<ds:SignatureValue>{}</ds:SignatureValue>", STANDARD.encode(value)),
        );
        assert_eq!(
            posted(&forged, &[pem.certificate()]),
            Err(BindingError::Signature(SignatureError::Algorithm))
        );
    }
}

#[test]
fn queries_with_two_readings_are_refused() {
    let pem = Pem::rsa();
    let keys = [pem.certificate()];
    let message = deflated(&canonical(&request()));
    let octets = format!("SAMLRequest={message}&SigAlg={}", encoded(names::RSA_SHA256));
    let signature = encoded(&STANDARD.encode(pem.key().sign(octets.as_bytes()).unwrap()));
    let good = format!("{octets}&Signature={signature}");
    assert!(binding::of_query(&good, Kind::Request, &keys).unwrap().signed);
    let inner = deflated(&signed(request(), &pem));
    for (what, query, error) in [
        ("nothing", String::new(), BindingError::Parameters),
        ("an answer for a request", good.replace("SAMLRequest", "SAMLResponse"), BindingError::Parameters),
        ("two messages", format!("{good}&SAMLRequest={message}"), BindingError::Parameters),
        ("two states", format!("{good}&RelayState=a&RelayState=b"), BindingError::Parameters),
        ("two signatures", format!("{good}&Signature={signature}"), BindingError::Parameters),
        ("a state that was not signed", format!("{good}&RelayState=a"), SignatureError::Key.into()),
        ("a signature without a method", good.replace("SigAlg", "sigalg"), SignatureError::Shape.into()),
        ("a method without a signature", octets, SignatureError::Shape.into()),
        ("SHA-1", good.replace("rsa%2Dsha256", "rsa%2Dsha1"), SignatureError::Algorithm.into()),
        ("no base64", "SAMLRequest=%25".to_owned(), BindingError::Base64),
        ("no text", "SAMLRequest=%ff".to_owned(), BindingError::Parameters),
        (
            "not deflated",
            format!("SAMLRequest={}", encoded(&STANDARD.encode("<a/>"))),
            BindingError::Deflate(MESSAGE.bytes),
        ),
        ("a signature inside", format!("SAMLRequest={inner}"), SignatureError::Misplaced.into()),
        (
            "a long state",
            format!("SAMLRequest={message}&RelayState={}", "a".repeat(1025)),
            BindingError::RelayState,
        ),
    ] {
        assert_eq!(binding::of_query(&query, Kind::Request, &keys), Err(error), "{what}");
    }
}

/// Whatever a message would inflate to, only 64 KiB of it come to be.
#[test]
fn bombs_are_refused() {
    let bomb = compress_to_vec(&vec![b' '; 1 << 20], 9);
    assert!(bomb.len() < 8 * 1024);
    let query = format!("SAMLRequest={}", encoded(&STANDARD.encode(&bomb)));
    assert_eq!(binding::of_query(&query, Kind::Request, &[]), Err(BindingError::Deflate(MESSAGE.bytes)));
    let nested = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
    let attributes: String = (0..65).map(|n| format!(" a{n}='1'")).collect();
    for (text, error) in [
        (nested(32), None),
        (nested(33), Some(XmlError::TooDeep(32))),
        (format!("<a>{}</a>", "<b/>".repeat(5000)), Some(XmlError::Malformed("nodes limit reached".into()))),
        (format!("<a{attributes}/>"), Some(XmlError::TooManyAttributes)),
        (format!("<a>{}</a>", "x".repeat(MESSAGE.bytes)), Some(XmlError::TooLarge(MESSAGE.bytes))),
        (
            "<a b='1' b='2'/>".to_owned(),
            Some(XmlError::Malformed("attribute 'b' at 1:10 is already defined".into())),
        ),
    ] {
        assert_eq!(xml::parse(text.as_bytes(), MESSAGE).err(), error, "{}", &text[..text.len().min(80)]);
    }
    for text in
        ["", "<a>", "<a/><b/>", "<a>&nbsp;</a>", "<a>&#0;</a>", "<x:a/>", "<a b=c/>", "a", "<a>\u{1}</a>"]
    {
        assert!(xml::parse(text.as_bytes(), MESSAGE).is_err(), "{text:?}");
    }
    assert_eq!(xml::parse(b"<a>\xff</a>", MESSAGE), Err(XmlError::NotUtf8));
}

/// A parser compares each attribute of an element with the others, and each element with all the declarations around it:
/// what a few kilobytes of a stranger's request can make of that took minutes.
#[test]
fn what_would_take_long_to_read_is_refused_first() {
    let many = |count: usize, one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<String>();
    let attributes = format!("<a{}/>", many(1200, &|at| format!(" a{at}=\"\"")));
    let namespaces = format!("<a{}/>", many(200, &|at| format!(" xmlns:a{at}=\"b\"")));
    // The same in pieces, behind what could hide them from a reader that looks for tags.
    let around =
        format!("<a{}>{}</a>", many(80, &|at| format!(" xmlns:a{at}=\"b\"")), "<a xmlns=\"b\"/>".repeat(80));
    // Every element has a copy of its namespace's name.
    let long = |bytes: usize| format!("<p:a xmlns:p=\"{}\"/>", "x".repeat(bytes));
    let hidden = format!("<a><![CDATA[<' \"]]>{}</a>", &attributes);
    for (text, error) in [
        (&attributes, XmlError::TooManyAttributes),
        (&hidden, XmlError::TooManyAttributes),
        (&namespaces, XmlError::TooManyNamespaces),
        (&around, XmlError::TooManyNamespaces),
        (&long(513), XmlError::LongNamespace),
    ] {
        assert_eq!(xml::parse(text.as_bytes(), MESSAGE), Err(error), "{}", &text[..40]);
    }
    assert!(xml::parse(long(512).as_bytes(), MESSAGE).is_ok());
    let usual = format!("<a{}/>", many(64, &|at| format!(" xmlns:a{at}=\"b\"")));
    assert!(xml::parse(usual.as_bytes(), MESSAGE).is_ok());
}
