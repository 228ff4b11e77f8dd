//! Targets and changes of the SAML fuzzer.

use std::path::Path;

use anyhow::{Context, Result};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis::flow::UnixTime;
use portcullis::saml::{
    ANSWER_LIMITS, AuthnRequest, Certificate, Decrypter, Ended, Expected, Kind, LogoutRequest,
    LogoutResponse, MESSAGE_LIMITS, METADATA_LIMITS, Oaep, Peer, Provider, ServiceProvider, accept,
    canonical, has_ended, of_form, of_query, parse,
};
use zeroize::Zeroizing;

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Xml,
    Query,
    Form,
    Answer,
    /// The same with its assertion encrypted, so that what was changed is inside.
    Sealed,
    Metadata,
    /// What service providers answer by SOAP that were asked to end a session.
    Soap,
}

/// What became of the documents of one target.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    pub tried: u64,
    pub accepted: u64,
}

impl Outcome {
    pub fn add(&mut self, accepted: bool) {
        self.tried += 1;
        self.accepted += u64::from(accepted);
    }
}

/// Documents to begin with.
pub struct Corpus {
    documents: Vec<Vec<u8>>,
    /// Answers that were signed, and what is read of each.
    answers: Vec<(Vec<u8>, String)>,
    /// Signed requests, and what is read of each.
    signed: Vec<(Vec<u8>, String)>,
    key: Certificate,
    /// Answers by SOAP, and the key of who has signed some of them.
    soap: Vec<Vec<u8>>,
    peer: Certificate,
}

/// The moment at which the answers of the corpus are good, and who they are between.
const NOW: UnixTime = UnixTime(1_795_924_800);
const EXPECTED: Expected<'_> = Expected {
    issuer: "https://idp.example",
    audience: "https://node.example/metadata",
    consumer: "https://node.example/acs",
    now: NOW,
};

/// What XML, SAML and signatures are made of.
const TOKENS: &[&str] = &[
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "<!DOCTYPE x [<!ENTITY e 'x'>]>",
    "&e;",
    "&#x41;",
    "&amp;",
    "<?x y?>",
    " ID=\"_a\"",
    " Id=\"_a\"",
    " xml:id=\"_a\"",
    " xmlns=\"\"",
    " xmlns:ds=\"urn:x\"",
    " xmlns:saml=\"urn:x\"",
    "#_a",
    "#",
    "http://www.w3.org/2000/09/xmldsig#rsa-sha1",
    "http://www.w3.org/2000/09/xmldsig#hmac-sha1",
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
    "http://www.w3.org/2001/10/xml-exc-c14n#",
    "http://www.w3.org/2001/10/xml-exc-c14n#WithComments",
    "<ds:Object>",
    "</ds:Object>",
    "<ec:InclusiveNamespaces xmlns:ec=\"http://www.w3.org/2001/10/xml-exc-c14n#\" PrefixList=\"xs #default\"/>",
    "<samlp:Extensions>",
    "</samlp:Extensions>",
    "\u{ff20}",
    "\u{0}",
    "\u{feff}",
    "\r\n",
    "'",
    "\"",
    "=",
    "/>",
];

impl Corpus {
    pub fn read(home: &Path) -> Result<Self> {
        let mut documents = Vec::new();
        for folder in ["xml", "messages", "metadata", "answers", "soap"] {
            for (_, bytes) in files(&home.join(folder))? {
                documents.push(bytes);
            }
        }
        let key = std::fs::read(home.join("answers/key.pem")).context("key.pem")?;
        let key = Certificate::from_pem(&key)?;
        let (mut answers, mut signed) = (Vec::new(), Vec::new());
        for (name, bytes) in files(&home.join("answers"))? {
            if name.starts_with("answer") {
                let read = answer(&bytes, &key).with_context(|| format!("{name} is not accepted"))?;
                answers.push((bytes.clone(), read));
            }
            // A response that is signed as a whole is a signed message too.
            if let Ok(read) = request(&bytes, &key) {
                signed.push((bytes, read));
            }
        }
        let soap: Vec<Vec<u8>> = files(&home.join("soap"))?.into_iter().map(|(_, bytes)| bytes).collect();
        let peer = Certificate::from_pem(&std::fs::read(home.join("soap/key.pem")).context("key.pem")?)?;
        let mut vouched_for = Vec::new();
        for bytes in &soap {
            vouched_for.extend(said(bytes, &peer).map_err(anyhow::Error::msg)?.vouched_for);
        }
        anyhow::ensure!(vouched_for.contains(&Ended::Now) && vouched_for.contains(&Ended::Unknown));
        let encrypted = answers.iter().filter(|(bytes, read)| {
            sealed(bytes).and_then(|bytes| answer(&bytes, &key)).is_ok_and(|found| found == *read)
        });
        anyhow::ensure!(encrypted.count() > 1, "no answer is read as the same when it is encrypted");
        anyhow::ensure!(!answers.is_empty() && !signed.is_empty() && documents.len() > 10);
        Ok(Self { documents, answers, signed, key, soap, peer })
    }

    pub fn len(&self) -> usize {
        self.documents.len()
    }

    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// A document for `target`, changed a few times.
    pub fn changed(&self, target: Target, random: &mut fastrand::Rng) -> Vec<u8> {
        let all = &self.documents;
        let mut document = match target {
            Target::Answer | Target::Sealed => self.answers[random.usize(..self.answers.len())].0.clone(),
            Target::Form if random.bool() => self.signed[random.usize(..self.signed.len())].0.clone(),
            Target::Soap => self.soap[random.usize(..self.soap.len())].clone(),
            _ => all[random.usize(..all.len())].clone(),
        };
        for _ in 0..random.usize(1..5) {
            self.change(&mut document, random);
        }
        document.truncate(256 * 1024);
        document
    }

    fn change(&self, document: &mut Vec<u8>, random: &mut fastrand::Rng) {
        let at = random.usize(..=document.len());
        match random.u8(..10) {
            0 if at < document.len() => document[at] ^= 1 << random.u8(..8),
            1 if at < document.len() => document[at] = random.u8(..),
            2 => drop(document.splice(at..at, TOKENS[random.usize(..TOKENS.len())].bytes())),
            3 => {
                let end = (at + random.usize(..64)).min(document.len());
                document.drain(at..end);
            }
            4 => {
                let end = (at + random.usize(..256)).min(document.len());
                let piece = document[at..end].to_vec();
                let to = random.usize(..=document.len());
                document.splice(to..to, piece);
            }
            // A whole element, somewhere else, twice or gone.
            5..=7 => {
                if let Some(element) = element(document, random) {
                    let piece = document[element.clone()].to_vec();
                    if random.bool() {
                        document.drain(element);
                    }
                    let places: Vec<usize> =
                        document.iter().enumerate().filter(|(_, b)| **b == b'<').map(|(at, _)| at).collect();
                    if !places.is_empty() && random.u8(..4) > 0 {
                        let to = places[random.usize(..places.len())];
                        document.splice(to..to, piece);
                    }
                }
            }
            _ => {
                let other = &self.documents[random.usize(..self.documents.len())];
                if !other.is_empty() {
                    let from = random.usize(..other.len());
                    let end = (from + random.usize(..512)).min(other.len());
                    document.splice(at..at, other[from..end].iter().copied());
                }
            }
        }
    }
}

/// From the start of some element to the end of the first that closes with its name.
fn element(document: &[u8], random: &mut fastrand::Rng) -> Option<std::ops::Range<usize>> {
    let starts: Vec<usize> = document
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair[0] == b'<' && pair[1].is_ascii_alphabetic())
        .map(|(at, _)| at)
        .collect();
    let start = *starts.get(random.usize(..starts.len().max(1)))?;
    let name: Vec<u8> = document[start + 1..].iter().copied().take_while(|b| !b" >/\n".contains(b)).collect();
    let close = [b"</", &name[..], b">"].concat();
    let end = document[start..].windows(close.len()).position(|window| window == close)?;
    Some(start..start + end + close.len())
}

impl Target {
    pub const ALL: [Self; 7] =
        [Self::Xml, Self::Query, Self::Form, Self::Answer, Self::Sealed, Self::Metadata, Self::Soap];

    /// Whether the document is accepted; an error where a promise is broken.
    pub fn read(self, document: &[u8], corpus: &Corpus) -> Result<bool, String> {
        match self {
            Self::Xml => {
                let mut accepted = false;
                for limits in [MESSAGE_LIMITS, METADATA_LIMITS] {
                    let Ok(element) = parse(document, limits) else { continue };
                    accepted = true;
                    let once = canonical(&element);
                    if once.len() <= limits.bytes {
                        let again = parse(once.as_bytes(), limits)
                            .map_err(|error| format!("what was written cannot be read ({error}): {once}"))?;
                        if canonical(&again) != once {
                            return Err("what was written is read as another".to_owned());
                        }
                    }
                }
                Ok(accepted)
            }
            Self::Query => {
                let text = String::from_utf8_lossy(document);
                let keys = std::slice::from_ref(&corpus.key);
                let query = format!("SAMLRequest={text}");
                let received = [of_query(&text, Kind::Request, keys), of_query(&query, Kind::Request, &[])];
                if matches!(&received[1], Ok(received) if received.signed) {
                    return Err("signed, without a key to tell".to_owned());
                }
                Ok(received.iter().flatten().any(|received| AuthnRequest::read(&received.message).is_ok()))
            }
            Self::Form => {
                let keys = std::slice::from_ref(&corpus.key);
                let Ok(received) = of_form(&STANDARD.encode(document), None, keys) else { return Ok(false) };
                let read = canonical(&received.message);
                if received.signed && !corpus.signed.iter().any(|(_, signed)| *signed == read) {
                    return Err(format!("a signature holds over what nobody signed: {read}"));
                }
                Ok(AuthnRequest::read(&received.message).is_ok()
                    || LogoutRequest::read(&received.message).is_ok()
                    || LogoutResponse::read(&received.message).is_ok())
            }
            Self::Answer | Self::Sealed => {
                let sealed = (self == Self::Sealed).then(|| sealed(document)).transpose();
                match sealed.and_then(|sealed| answer(sealed.as_deref().unwrap_or(document), &corpus.key)) {
                    Ok(read) if corpus.answers.iter().any(|(_, known)| *known == read) => Ok(true),
                    Ok(read) => Err(format!("accepted, and nobody said it: {read}")),
                    Err(_) => Ok(false),
                }
            }
            Self::Metadata => {
                let read = ServiceProvider::read(document);
                if read.as_ref().is_ok_and(|read| read.consumers.is_empty() || read.entity_id.is_empty()) {
                    return Err("a service provider without a name or a place".to_owned());
                }
                let provider = Provider::read(document);
                if provider.as_ref().is_ok_and(|read| read.signing.is_empty()) {
                    return Err("an identity provider without a key".to_owned());
                }
                Ok(read.is_ok() || provider.is_ok())
            }
            Self::Soap => said(document, &corpus.peer).map(|said| said.vouched_for.is_some()),
        }
    }
}

/// What a service provider is taken to have said of a session that it was asked to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// By who reads its key and nothing else.
    pub vouched_for: Option<Ended>,
    /// By who cannot tell.
    pub claimed: Option<Ended>,
}

/// The requests that were answered under the key of the corpus, and by what.
const ANSWERED: [(&str, Option<Ended>); 4] = [
    ("_asked", Some(Ended::Now)),
    ("_asked_too", Some(Ended::Unknown)),
    ("_asked_in_vain", None),
    ("_nobody_asked", None),
];

/// An error where a promise is broken.
pub fn said(document: &[u8], key: &Certificate) -> Result<Said, String> {
    let mut all = Vec::new();
    for (id, signed) in ANSWERED {
        let by = |keys, is_certain| {
            has_ended(document, id, Peer { entity_id: "https://sp.example", keys, is_certain }).ok()
        };
        let keys = std::slice::from_ref(key);
        let said = Said { vouched_for: by(keys, false), claimed: by(&[], false) };
        let over_tls = by(keys, true);
        if said.vouched_for.is_some() && said.vouched_for != signed {
            return Err(format!("nobody has signed {said:?} for {id}"));
        }
        if said.vouched_for.is_some() && (said.vouched_for != over_tls || said.vouched_for != said.claimed)
            || over_tls.is_some() && over_tls != said.claimed
        {
            return Err(format!("{id}: {said:?} and over TLS {over_tls:?}"));
        }
        all.extend(said.claimed.is_some().then_some(said));
    }
    match all[..] {
        [] => Ok(Said::default()),
        [said] => Ok(said),
        _ => Err(format!("one answer to several requests: {all:?}")),
    }
}

/// All that is read of an answer.
fn answer(document: &[u8], key: &Certificate) -> Result<String> {
    let message = parse(document, ANSWER_LIMITS)?;
    Ok(format!("{:?}", accept(message, EXPECTED, std::slice::from_ref(key), &[&Skeleton])?))
}

/// The key that assertions are sealed with here. How it is wrapped is not what is tried.
const SEAL: [u8; 32] = [7; 32];

/// Unwraps whatever it is given to that key.
struct Skeleton;

impl Decrypter for Skeleton {
    fn unwrap_key(&self, _: Oaep, _: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        Some(SEAL.to_vec().into())
    }
}

/// An answer with its assertion encrypted, or what is between the tags of one (XML Encryption §3).
fn sealed(document: &[u8]) -> Result<Vec<u8>> {
    let text = String::from_utf8_lossy(document);
    let start = text.find("<saml:Assertion").context("no assertion")?;
    let close = "</saml:Assertion>";
    let end = text.rfind(close).filter(|end| *end > start).context("no end of an assertion")? + close.len();
    let mut plain = text[start..end].as_bytes().to_vec();
    let nonce = [0; 12];
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &SEAL)?);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut plain)?;
    let cipher = STANDARD.encode([&nonce[..], &plain].concat());
    Ok(format!(
        "{}<saml:EncryptedAssertion><x:EncryptedData xmlns:x=\"http://www.w3.org/2001/04/xmlenc#\" \
         Type=\"http://www.w3.org/2001/04/xmlenc#Element\"><x:EncryptionMethod \
         Algorithm=\"http://www.w3.org/2009/xmlenc11#aes256-gcm\"/><d:KeyInfo \
         xmlns:d=\"http://www.w3.org/2000/09/xmldsig#\"><x:EncryptedKey><x:EncryptionMethod \
         Algorithm=\"http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p\"/><x:CipherData><x:CipherValue>AA==\
         </x:CipherValue></x:CipherData></x:EncryptedKey></d:KeyInfo><x:CipherData><x:CipherValue>{cipher}\
         </x:CipherValue></x:CipherData></x:EncryptedData></saml:EncryptedAssertion>{}",
        &text[..start],
        &text[end..]
    )
    .into_bytes())
}

fn request(document: &[u8], key: &Certificate) -> Result<String> {
    let received = of_form(&STANDARD.encode(document), None, std::slice::from_ref(key))?;
    anyhow::ensure!(received.signed, "it is not signed");
    Ok(canonical(&received.message))
}

fn files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        found.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
    }
    found.sort();
    Ok(found)
}

/// KiB of memory that this process holds.
pub fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
