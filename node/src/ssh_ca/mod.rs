//! The SSH certificate authority: short-lived user certificates (OpenSSH's PROTOCOL.certkeys) for people whom policy lets
//! in.
//!
//! 1. an application token of a live session comes with the public half of an ephemeral key (`portal::cert_sign`);
//! 2. `decide` runs again, and its permit is what [`SshCa::sign`] takes;
//! 3. [`principals()`] says which UNIX users the person may be;
//! 4. the key of that one application signs, for a few minutes.
//!
//! Every application of type `ssh` has an authority of its own, so a certificate for one opens no host of another. A host
//! trusts it by `TrustedUserCAKeys`. A false accept is a login as somebody else; a false reject is a login by other means.

mod principals;
mod system_accounts;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ssh_key::certificate::{Builder, CertType};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{Algorithm, HashAlg, PrivateKey, PublicKey};

use crate::clock;
use crate::flow::{Private, RayId, Reason, Session, UnixTime};
use crate::policy::PermitOf;
use crate::store::{Store, StoreError};

pub use principals::principals;

/// A certificate is valid from so long before it is made, for hosts whose clock is late, …
const SKEW: Duration = Duration::from_secs(60);
/// … to so long after: five minutes in all.
const LIFE: Duration = Duration::from_secs(240);

/// What a session may do on the host, where the host allows it. X11 and what else there may be it may not.
const EXTENSIONS: [&str; 4] =
    ["permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"];

/// Characters of the longest public key, and of the longest name in a key id.
const LONGEST_KEY: usize = 4096;
const LONGEST_NAME: usize = 128;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SshCaError {
    #[error("the application is not of type `ssh`")]
    NotSsh,
    #[error("a certificate is for a person, and nobody is logged in")]
    Nobody,
    #[error(
        "no UNIX user of this application is open to this person: `ssh.users` and `ssh.email_user_domains` say which are"
    )]
    NoUser,
    #[error("the public key is not an Ed25519 or ECDSA key in the format of OpenSSH")]
    PublicKey,
    #[error("the session is about to end")]
    Late,
    #[error("the certificate cannot be made: {0}")]
    Format(#[from] ssh_key::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the stored key of the authority is malformed")]
    Stored,
}

impl SshCaError {
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NotSsh => Reason::NoApplication,
            Self::Nobody => Reason::NoSession,
            Self::NoUser => Reason::NoSshUser,
            Self::PublicKey => Reason::BadRequest,
            Self::Late => Reason::SessionEnded,
            Self::Format(_) | Self::Store(_) | Self::Stored => Reason::Internal,
        }
    }
}

/// A certificate and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// In the format of OpenSSH, one line.
    pub certificate: String,
    /// Who and by which request, as the host will log it.
    pub key_id: String,
    pub serial: u64,
    pub principals: Vec<String>,
    pub expires_at: UnixTime,
    /// SHA-256 of the certified key, as OpenSSH prints it.
    pub fingerprint: String,
}

/// The authorities of all applications. Clones share them.
#[derive(Clone)]
pub struct SshCa {
    store: Store,
    known: Arc<Mutex<BTreeMap<String, Arc<PrivateKey>>>>,
}

impl SshCa {
    pub fn new(store: Store) -> Self {
        Self { store, known: Arc::default() }
    }

    /// The public key of the authority of `application`, made where there is none: what goes into `TrustedUserCAKeys`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn public_key(&self, application: &str) -> Result<String, SshCaError> {
        Ok(self.key(application).await?.public_key().to_openssh()?)
    }

    /// A certificate for whom the permit was granted to, never valid beyond `until`.
    ///
    /// # Errors
    /// When the permit is not a person's or gives no UNIX user, the key is not acceptable, or the store fails.
    pub async fn sign(
        &self,
        permit: PermitOf<'_, Private>,
        public_key: &str,
        ray: RayId,
        until: UnixTime,
        now: UnixTime,
    ) -> Result<Signed, SshCaError> {
        let settings = permit.kind().ssh.as_ref().ok_or(SshCaError::NoUser)?;
        let permit = permit.permit();
        let session = permit.session().ok_or(SshCaError::Nobody)?;
        let principals = principals(settings, session.email.as_ref());
        if principals.is_empty() {
            return Err(SshCaError::NoUser);
        }
        let public_key = parse(public_key)?;
        let expires_at = now.after(LIFE).min(permit.token_expires_at()).min(until);
        if expires_at <= now {
            return Err(SshCaError::Late);
        }
        let authority = self.key(&permit.application().name).await?;
        let key_id = key_id(session, ray);
        let serial = u64::from_be_bytes(clock::random());
        let seconds = |at: UnixTime| u64::try_from(at.0).map_err(|_| SshCaError::Late);
        let nonce: [u8; 32] = clock::random();
        let mut builder = Builder::new(
            nonce,
            public_key.key_data().clone(),
            seconds(now.before(SKEW))?,
            seconds(expires_at)?,
        )?;
        builder.serial(serial)?.cert_type(CertType::User)?.key_id(&key_id)?;
        for principal in &principals {
            builder.valid_principal(principal)?;
        }
        for extension in EXTENSIONS {
            builder.extension(extension, "")?;
        }
        let certificate = builder.sign(&*authority)?.to_openssh()?;
        let fingerprint = public_key.fingerprint(HashAlg::Sha256).to_string();
        Ok(Signed { certificate, key_id, serial, principals, expires_at, fingerprint })
    }

    async fn key(&self, application: &str) -> Result<Arc<PrivateKey>, SshCaError> {
        if let Some(key) = self.lock().get(application) {
            return Ok(Arc::clone(key));
        }
        let name = format!("ssh-ca {application}");
        let seed = self.store.secret(name, || clock::random::<32>().to_vec()).await?;
        let seed: &[u8; 32] = seed.as_slice().try_into().map_err(|_| SshCaError::Stored)?;
        let pair = KeypairData::from(Ed25519Keypair::from_seed(seed));
        let key = Arc::new(PrivateKey::new(pair, format!("portcullis ssh-ca {application}"))?);
        self.lock().insert(application.to_owned(), Arc::clone(&key));
        Ok(key)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<PrivateKey>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SshCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().keys()).finish()
    }
}

fn parse(text: &str) -> Result<PublicKey, SshCaError> {
    if text.len() > LONGEST_KEY {
        return Err(SshCaError::PublicKey);
    }
    let key = PublicKey::from_openssh(text).map_err(|_| SshCaError::PublicKey)?;
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Ok(key),
        _ => Err(SshCaError::PublicKey),
    }
}

/// `ann@example.com local:ann ray 0123456789abcdef`. It ends up in the host's log: printable ASCII only.
fn key_id(session: &Session, ray: RayId) -> String {
    let plain = |text: &str| -> String {
        text.chars().take(LONGEST_NAME).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
    };
    let person = plain(&session.person.to_string());
    match &session.email {
        Some(email) => format!("{} {person} ray {ray}", plain(email.as_str())),
        None => format!("{person} ray {ray}"),
    }
}

#[cfg(test)]
mod tests;
