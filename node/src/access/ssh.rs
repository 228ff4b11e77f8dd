//! An SSH identity for one application: an ephemeral key and a certificate of the node's for it, both in files that only
//! their user reads, below the profile.
//!
//! Commands that run at the same time share them: a certificate that is still fresh is left alone, and one that is not is
//! replaced for the same key, so that whoever has read one of the files finds the other one to fit. The key itself is made
//! anew when its last certificate has expired, and after half a day.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{Certificate, LineEnding, PrivateKey};
use zeroize::Zeroizing;

use crate::clock;
use crate::config::check_name;
use crate::flow::UnixTime;
use crate::private_file::{self, PrivateFileError};

use super::api::Api;
use super::profile::{Profile, ProfileError};
use super::tokens::AccessError;
use super::wire::CertRequest;

/// A certificate that ends sooner than this is replaced before it is used.
const AHEAD: Duration = Duration::from_secs(60);
/// A key is used for so long at the most.
const KEY_LIFE: Duration = Duration::from_secs(12 * 3600);

/// The folder below the profile.
const FOLDER: &str = "ssh";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SshCertError {
    #[error("`{0}` is no name of an application")]
    Name(String),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error("the key cannot be made: {0}")]
    Key(#[from] ssh_key::Error),
    #[error("the node's certificate is not for the key that it was asked for")]
    Foreign,
}

impl From<ProfileError> for SshCertError {
    fn from(error: ProfileError) -> Self {
        Self::Access(error.into())
    }
}

/// Where the two files of an application are: for `IdentityFile` and `CertificateFile`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshIdentity {
    pub key: PathBuf,
    pub certificate: PathBuf,
}

impl SshIdentity {
    /// The files of `application` below the profile's `directory`.
    ///
    /// # Errors
    /// When the name is none that an application can have.
    pub fn of(directory: &Path, application: &str) -> Result<Self, SshCertError> {
        check_name("application", application).map_err(|_| SshCertError::Name(application.to_owned()))?;
        let folder = directory.join(FOLDER);
        Ok(Self {
            key: folder.join(application),
            certificate: folder.join(format!("{application}-cert.pub")),
        })
    }
}

/// What of an identity can be used again.
#[derive(Debug, PartialEq, Eq)]
enum Use {
    Both,
    Key,
    Nothing,
}

impl Profile {
    /// Makes sure that there is a key for `application` with a certificate that is good for another minute at least, and
    /// says where they are.
    ///
    /// # Errors
    /// When the node does not sign, or the files cannot be read or written.
    pub async fn ssh_identity(&self, application: &str) -> Result<SshIdentity, SshCertError> {
        let identity = SshIdentity::of(self.directory(), application)?;
        let token = self.application_token(application).await?;
        // From here to the end no other process writes these files.
        let _locked = self.lock().await?;
        private_file::make_directory(&self.directory().join(FOLDER))?;
        let kept = Kept::read(&identity)?;
        let now = clock::now();
        let key = match kept.as_ref().map_or(Use::Nothing, |kept| kept.usable(now)) {
            Use::Both => return Ok(identity),
            Use::Key => kept.map(|kept| kept.key),
            Use::Nothing => None,
        };
        let (key, is_new) = match key {
            Some(key) => (key, false),
            None => (generate()?, true),
        };
        let request = CertRequest {
            public_key: key.public_key().to_openssh()?,
            jwt: token.token.clone(),
            issuer: self.url().to_owned(),
        };
        let api = Api::new(self).map_err(AccessError::Api)?;
        let answer = api.certificate(&request).await.map_err(AccessError::Api)?;
        let certificate =
            Certificate::from_openssh(answer.certificate.trim()).map_err(|_| SshCertError::Foreign)?;
        if certificate.public_key() != key.public_key().key_data() {
            return Err(SshCertError::Foreign);
        }
        if is_new {
            // A certificate of another key beside the new one would be worse than none.
            private_file::remove(&identity.certificate)?;
            private_file::replace(&identity.key, key.to_openssh(LineEnding::LF)?.as_bytes())?;
        }
        private_file::replace(&identity.certificate, format!("{}\n", certificate.to_openssh()?).as_bytes())?;
        Ok(identity)
    }
}

/// An identity as it is on disk.
struct Kept {
    key: PrivateKey,
    made_at: UnixTime,
    certificate: Certificate,
}

impl Kept {
    /// What is there, where all of it is and can be read.
    fn read(identity: &SshIdentity) -> Result<Option<Self>, SshCertError> {
        let texts = (private_file::read(&identity.key)?, private_file::read(&identity.certificate)?);
        let (Some(key), Some(certificate)) = texts else { return Ok(None) };
        let made_at = std::fs::metadata(&identity.key).and_then(|metadata| metadata.modified());
        let made_at = made_at.ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let made_at =
            made_at.and_then(|since| i64::try_from(since.as_secs()).ok()).map_or(UnixTime(0), UnixTime);
        let parsed =
            (PrivateKey::from_openssh(key.as_bytes()), Certificate::from_openssh(certificate.trim()));
        let (Ok(key), Ok(certificate)) = parsed else { return Ok(None) };
        Ok(Some(Self { key, made_at, certificate }))
    }

    fn usable(&self, now: UnixTime) -> Use {
        let ends = i64::try_from(self.certificate.valid_before()).unwrap_or(i64::MAX);
        let fits = self.certificate.public_key() == self.key.public_key().key_data();
        let young = self.made_at.after(KEY_LIFE) > now;
        match (fits && young && ends > now.0, ends > now.after(AHEAD).0) {
            (true, true) => Use::Both,
            (true, false) => Use::Key,
            (false, _) => Use::Nothing,
        }
    }
}

fn generate() -> Result<PrivateKey, SshCertError> {
    let seed = Zeroizing::new(clock::random::<32>());
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    Ok(PrivateKey::new(pair, "portcullis access")?)
}

#[cfg(test)]
mod tests {
    use ssh_key::certificate::Builder;

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn certificate(key: &PrivateKey, ends: i64) -> Certificate {
        let ends = u64::try_from(ends).unwrap();
        let mut builder = Builder::new([1; 16], key.public_key(), ends - 1000, ends).unwrap();
        builder.valid_principal("ann").unwrap();
        builder.sign(&generate().unwrap()).unwrap()
    }

    #[test]
    fn a_key_lasts_as_long_as_its_certificates_and_half_a_day() {
        let half_a_day = 12 * 3600;
        for (ends, age, usable) in [
            (61, 0, Use::Both),
            (60, 0, Use::Key),
            (1, 0, Use::Key),
            (0, 0, Use::Nothing),
            (-100, 0, Use::Nothing),
            (200, half_a_day - 1, Use::Both),
            (200, half_a_day, Use::Nothing),
        ] {
            let key = generate().unwrap();
            let certificate = certificate(&key, NOW.0 + ends);
            let made_at = NOW.before(Duration::from_secs(age));
            assert_eq!(Kept { key, made_at, certificate }.usable(NOW), usable, "{ends} {age}");
        }
        let (key, other) = (generate().unwrap(), generate().unwrap());
        let certificate = certificate(&other, NOW.0 + 200);
        assert_eq!(Kept { key, made_at: NOW, certificate }.usable(NOW), Use::Nothing, "of another key");
    }

    #[test]
    fn a_file_is_below_the_profile_whatever_the_application_is_called() {
        let directory = Path::new("/home/ann/profile");
        let identity = SshIdentity::of(directory, "prod.ssh-1").unwrap();
        assert_eq!(identity.key, Path::new("/home/ann/profile/ssh/prod.ssh-1"));
        assert_eq!(identity.certificate, Path::new("/home/ann/profile/ssh/prod.ssh-1-cert.pub"));
        for name in ["", "..", "../x", "/etc/passwd", "a/b", "a b", ".ssh", "-o", "a\nb"] {
            assert!(matches!(SshIdentity::of(directory, name), Err(SshCertError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn what_is_kept_is_read_back_and_what_is_broken_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let identity = SshIdentity::of(directory.path(), "prod").unwrap();
        private_file::make_directory(&directory.path().join(FOLDER)).unwrap();
        assert!(Kept::read(&identity).unwrap().is_none());
        let key = generate().unwrap();
        let text = key.to_openssh(LineEnding::LF).unwrap();
        private_file::replace(&identity.key, text.as_bytes()).unwrap();
        assert!(Kept::read(&identity).unwrap().is_none(), "no certificate yet");
        let now = clock::now();
        let ends = certificate(&key, now.0 + 200).to_openssh().unwrap();
        private_file::replace(&identity.certificate, ends.as_bytes()).unwrap();
        assert_eq!(Kept::read(&identity).unwrap().unwrap().usable(now), Use::Both);
        private_file::replace(&identity.key, b"-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        assert!(Kept::read(&identity).unwrap().is_none());
    }
}
