//! What others make of our XML, and we of theirs: xmlsec1 and libxml2's xmllint.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::signature::SignatureError;
use super::*;

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// What a program printed, if it was content.
fn run(program: &str, args: &[&str], file: &Path) -> Result<String, String> {
    let output =
        Command::new(program).args(args).arg(file).output().unwrap_or_else(|error| {
            panic!("{program} does not run ({error}): `cargo xtask setup` installs it")
        });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

const ID_ATTRIBUTES: [&str; 6] = [
    "--id-attr:ID",
    "urn:oasis:names:tc:SAML:2.0:protocol:Response",
    "--id-attr:ID",
    "urn:oasis:names:tc:SAML:2.0:assertion:Assertion",
    "--id-attr:ID",
    "urn:oasis:names:tc:SAML:2.0:protocol:AuthnRequest",
];

#[test]
fn xmlsec1_verifies_both_of_our_signatures() {
    let (files, pem) = (Files::new(), Pem::rsa());
    let certificate = files.write("cert.pem", &pem.certificate);
    let text = answer(&pem, None);
    let verified = |text: &str, owner: &str| {
        let xpath = format!("//*[local-name()='{owner}']/*[local-name()='Signature']");
        let mut args = vec!["--verify", "--pubkey-cert-pem", certificate.to_str().unwrap()];
        args.extend(ID_ATTRIBUTES);
        args.extend(["--node-xpath", &xpath]);
        run("xmlsec1", &args, &files.write("response.xml", text))
    };
    for owner in ["Response", "Assertion"] {
        verified(&text, owner).unwrap();
    }
    let forged = text.replacen("ünï", "root", 1);
    assert!(
        forged != text && verified(&forged, "Assertion").is_err() && verified(&forged, "Response").is_err()
    );
}

#[test]
fn xmlsec1_opens_what_we_encrypt_and_the_signature_inside_holds() {
    let (files, pem, recipient) = (Files::new(), Pem::rsa(), Pem::rsa());
    let private = files.write("key.pem", &recipient.private);
    let text = answer(&pem, Some(&recipient.certificate()));
    assert!(!text.contains("NameID") && text.contains("EncryptedAssertion"));
    let message = verify(xml::parse(text.as_bytes(), MESSAGE).unwrap(), &[pem.certificate()]).unwrap();
    assert_eq!(message.count(ASSERTION, "EncryptedAssertion"), 1);
    let args = ["--decrypt", "--privkey-pem", private.to_str().unwrap()];
    let opened = run("xmlsec1", &args, &files.write("response.xml", &text)).unwrap();
    let opened = xml::parse(opened.as_bytes(), MESSAGE).unwrap();
    let assertion = opened.one(ASSERTION, "EncryptedAssertion").unwrap().one(ASSERTION, "Assertion").unwrap();
    let assertion = verify(assertion.clone(), &[pem.certificate()]).unwrap();
    assert_eq!(assertion.one(ASSERTION, "Subject").unwrap().count(ASSERTION, "NameID"), 1);
    let stranger = files.write("other.pem", &Pem::rsa().private);
    let args = ["--decrypt", "--privkey-pem", stranger.to_str().unwrap()];
    assert!(run("xmlsec1", &args, &files.write("response.xml", &text)).is_err());
}

#[test]
fn we_verify_what_xmlsec1_signs() {
    let files = Files::new();
    for (pem, method, digest) in [
        (Pem::rsa(), names::RSA_SHA256, names::SHA256),
        (Pem::rsa(), names::RSA_SHA384, names::SHA384),
        (Pem::rsa(), names::RSA_SHA512, names::SHA512),
        (Pem::p256(), names::ECDSA_SHA256, names::SHA256),
        (Pem::p384(), names::ECDSA_SHA384, names::SHA512),
        (Pem::rsa(), "http://www.w3.org/2000/09/xmldsig#rsa-sha1", names::SHA1),
    ] {
        let template = format!(
            "<p:AuthnRequest xmlns:p='urn:oasis:names:tc:SAML:2.0:protocol'  xmlns:unused='urn:x' Version='2.0'\n \
             ID='_x' IssueInstant='2026-11-29T04:00:00Z'><Issuer\n xmlns='urn:oasis:names:tc:SAML:2.0:assertion'>sp &gt; \
             &#x41;</Issuer><Signature xmlns='http://www.w3.org/2000/09/xmldsig#'><SignedInfo><CanonicalizationMethod \
             Algorithm='{0}'/><SignatureMethod Algorithm='{method}'/><Reference URI='#_x'><Transforms><Transform \
             Algorithm='{1}'/><Transform Algorithm='{0}'/></Transforms><DigestMethod Algorithm='{digest}'/>\
             <DigestValue/></Reference></SignedInfo><SignatureValue/></Signature><p:NameIDPolicy AllowCreate='1'/>\
             </p:AuthnRequest>",
            names::EXCLUSIVE_C14N,
            names::ENVELOPED,
        );
        let private = files.write("key.pem", &pem.private);
        let mut args = vec!["--sign", "--privkey-pem", private.to_str().unwrap()];
        args.extend(ID_ATTRIBUTES);
        let text = run("xmlsec1", &args, &files.write("request.xml", &template)).unwrap();
        let message = xml::parse(text.as_bytes(), MESSAGE).unwrap();
        let read = verify(message, &[pem.certificate()]);
        if digest == names::SHA1 {
            assert_eq!(read, Err(SignatureError::Algorithm));
            continue;
        }
        let read = AuthnRequest::read(&read.unwrap()).unwrap();
        assert_eq!(read.head.issuer, "sp > A", "{method}");
        let forged = text.replacen("AllowCreate=\"1\"", "AllowCreate=\"0\"", 1);
        assert_ne!(forged, text);
        let forged = xml::parse(forged.as_bytes(), MESSAGE).unwrap();
        assert_eq!(verify(forged, &[pem.certificate()]), Err(SignatureError::Digest));
    }
}

/// Documents with prefixes bound anew, default namespaces taken back, attributes out of order, entities and CDATA.
struct Writer {
    state: u64,
    out: String,
}

impl Writer {
    fn pick(&mut self, below: u64) -> u64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % below
    }

    fn element(&mut self, depth: u64, outer: &[&'static str]) {
        const PREFIXES: [&str; 4] = ["", "p", "q", "z"];
        const TEXTS: [&str; 8] =
            ["a", " ", "\n", "&amp;", "&lt;&gt;", "<![CDATA[<&>]]>", "&#13;&#10;&#9;", "ü\r\n\"'"];
        const VALUES: [&str; 6] = ["", "x", "&lt;&quot;'&gt;", "&#10;&#9;&#13;", "a\n\tb  c ", "é"];
        let mut bound = outer.to_vec();
        let mut declarations = Vec::new();
        for prefix in PREFIXES {
            if self.pick(3) == 0 {
                let uri = ["urn:a", "urn:b", "urn:c"][usize::try_from(self.pick(3)).unwrap()];
                // Only the default namespace can be taken back.
                let uri = if prefix.is_empty() && self.pick(3) == 0 { "" } else { uri };
                declarations.push(if prefix.is_empty() {
                    format!("xmlns='{uri}'")
                } else {
                    format!("xmlns:{prefix}=\"{uri}\"")
                });
                if !bound.contains(&prefix) {
                    bound.push(prefix);
                }
            }
        }
        let of_names: Vec<_> = bound.iter().chain([&""]).copied().collect();
        let prefix = of_names[usize::try_from(self.pick(of_names.len() as u64)).unwrap()];
        let name = if prefix.is_empty() { "e".to_owned() } else { format!("{prefix}:e") };
        let mut parts = declarations;
        for local in ["b", "a", "c"] {
            if self.pick(2) == 0 {
                let value = VALUES[usize::try_from(self.pick(6)).unwrap()];
                parts.push(format!("{local}=\"{value}\""));
            }
        }
        if let Some(prefix) = bound.iter().find(|prefix| !prefix.is_empty())
            && self.pick(2) == 0
        {
            parts.push(format!("{prefix}:a='1'"));
        }
        if self.pick(4) == 0 {
            parts.push("xml:lang='en'".into());
        }
        if self.pick(2) == 0 {
            parts.reverse();
        }
        write!(self.out, "<{name} {}>", parts.join("\n ")).unwrap();
        for _ in 0..self.pick(4) {
            if depth > 0 && self.pick(3) > 0 {
                self.element(depth - 1, &bound);
            } else {
                let text = TEXTS[usize::try_from(self.pick(8)).unwrap()];
                self.out.push_str(text);
            }
        }
        write!(self.out, "</{name}>").unwrap();
    }
}

#[test]
fn canonical_form_is_that_of_libxml2() {
    let files = Files::new();
    for seed in 0..300 {
        let mut writer = Writer { state: seed * 7919, out: String::new() };
        writer.element(5, &[]);
        let theirs = run("xmllint", &["--exc-c14n"], &files.write("document.xml", &writer.out)).unwrap();
        let ours = canonical(&xml::parse(writer.out.as_bytes(), MESSAGE).unwrap());
        assert_eq!(ours, theirs.trim_end_matches('\n'), "seed {seed}: {}", writer.out);
    }
}
