//! Bytes from strangers: XML, messages, metadata and answers by SOAP. As tests these run on the corpus beside this file, and for a moment on
//! random input; as fuzz targets (`cargo bolero test fuzz::<name> --corpus-dir tests/tests/saml/corpus/<name>`) for as
//! long as one likes.

use std::path::Path;

use portcullis::saml::{
    AuthnRequest, Certificate, Ended, Kind, MESSAGE_LIMITS, METADATA_LIMITS, ServiceProvider, canonical,
    of_form, of_query, parse,
};
use portcullis_tests::saml_fuzz::{Said, said};

/// What is read and written is read as the same.
fn read_and_write(bytes: &[u8]) {
    for limits in [MESSAGE_LIMITS, METADATA_LIMITS] {
        let Ok(element) = parse(bytes, limits) else { continue };
        let once = canonical(&element);
        // Escapes may make it longer than the limit.
        if once.len() <= limits.bytes {
            let again = parse(once.as_bytes(), limits).expect("what we write we can read");
            assert_eq!(canonical(&again), once);
        }
    }
}

/// Without a key nothing counts as signed, whatever it says.
fn receive(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let query = format!("SAMLRequest={text}");
    let all = [
        of_query(text, Kind::Request, &[]),
        of_query(&query, Kind::Request, &[]),
        of_form(text, Some(text), &[]),
        of_form(text, None, &[]),
    ];
    let mut requests = 0;
    for received in all.into_iter().flatten() {
        assert!(!received.signed);
        requests += usize::from(AuthnRequest::read(&received.message).is_ok());
    }
    requests > 0
}

fn describe(bytes: &[u8]) -> bool {
    let read = ServiceProvider::read(bytes);
    read.is_ok_and(|read| {
        assert!(!read.consumers.is_empty() && !read.entity_id.is_empty());
        true
    })
}

#[test]
fn xml() {
    for (_, bytes) in corpus("xml") {
        read_and_write(&bytes);
    }
    bolero::check!().for_each(read_and_write);
}

#[test]
fn messages() {
    for (name, bytes) in corpus("messages") {
        assert_eq!(receive(&bytes), ["redirect", "signed", "post"].contains(&name.as_str()), "{name}");
    }
    bolero::check!().for_each(|bytes: &[u8]| {
        receive(bytes);
    });
}

#[test]
fn metadata() {
    for (name, bytes) in corpus("metadata") {
        assert_eq!(describe(&bytes), name == "provider.xml", "{name}");
    }
    bolero::check!().for_each(|bytes: &[u8]| {
        describe(bytes);
    });
}

#[test]
fn soap() {
    let files = corpus("soap");
    let key = files.iter().find_map(|(name, bytes)| (name == "key.pem").then_some(bytes)).unwrap();
    let key = Certificate::from_pem(key).unwrap();
    for (name, bytes) in &files {
        let (vouched_for, claimed) = match name.as_str() {
            "ended.xml" => (Some(Ended::Now), Some(Ended::Now)),
            "unknown.xml" => (Some(Ended::Unknown), Some(Ended::Unknown)),
            // A failure that was signed, inside of a success that was not.
            "unsigned.xml" | "wrapped.xml" | "lifted.xml" => (None, Some(Ended::Now)),
            _ => (None, None),
        };
        assert_eq!(said(bytes, &key), Ok(Said { vouched_for, claimed }), "{name}");
    }
    bolero::check!().for_each(|bytes: &[u8]| {
        said(bytes, &key).unwrap();
    });
}

/// Names and contents of the files of one corpus.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/saml/corpus").join(name);
    let files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    assert!(files.len() > 3, "{}", folder.display());
    files
}
