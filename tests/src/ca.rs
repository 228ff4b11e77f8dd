//! A certificate authority made on the spot, for tests and the demo.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// An authority whose key lives only in memory.
pub struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its private key, both PEM. `cert` holds the leaf alone: the authority is the root.
pub struct Certificate {
    pub cert: String,
    pub key: String,
}

/// Where [`Certificate::write`] put the two files.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Ca {
    pub fn new(common_name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self { pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes the authority's certificate to `dir/ca.pem`.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join("ca.pem");
        fs::write(&path, &self.pem)?;
        Ok(path)
    }

    /// A server certificate for DNS names (wildcards too) and addresses.
    pub fn issue<S: AsRef<str>>(&self, names: &[S]) -> Result<Certificate> {
        let names: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        let mut params = CertificateParams::new(names.clone())?;
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("test", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        self.sign(params)
    }

    /// A certificate with parameters of the caller's own, for what [`Ca::issue`] does not make (expired, foreign use).
    pub fn sign(&self, params: CertificateParams) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Certificate { cert: certificate.pem(), key: key.serialize_pem() })
    }
}

impl Certificate {
    /// Writes `dir/<stem>.pem` and `dir/<stem>.key` (0600).
    pub fn write(&self, dir: &Path, stem: &str) -> Result<CertificateFiles> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let files =
            CertificateFiles { cert: dir.join(format!("{stem}.pem")), key: dir.join(format!("{stem}.key")) };
        fs::write(&files.cert, &self.cert)?;
        let mut options = fs::OpenOptions::new();
        options
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&files.key)?
            .write_all(self.key.as_bytes())?;
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::netns::run;

    #[test]
    fn openssl_accepts_what_it_issues_for_its_names_only() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("Lab CA").unwrap();
        let root = ca.write(dir.path()).unwrap();
        let files =
            ca.issue(&["a.test", "*.b.test", "192.0.2.1"]).unwrap().write(dir.path(), "leaf").unwrap();
        let verify = |host: &str, root: &Path| {
            run(Command::new("openssl")
                .args(["verify", "-purpose", "sslserver", "-verify_hostname", host, "-CAfile"])
                .arg(root)
                .arg(&files.cert))
        };
        verify("a.test", &root).unwrap();
        verify("x.b.test", &root).unwrap();
        assert!(verify("c.test", &root).is_err());
        let other = Ca::new("Other CA").unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert!(verify("a.test", &other.write(dir.path()).unwrap()).is_err());
    }
}
