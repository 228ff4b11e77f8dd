//! TLS towards browsers: certificates from files, chosen by SNI, replaced while the node runs.
//!
//! TLS 1.2 and 1.3, X25519MLKEM768 preferred, no early data (a replayed request must never reach an origin).

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use zeroize::Zeroizing;

use crate::config::CertificateFiles;
use crate::flow::{Host, HostPattern};

use super::origin_tls;

/// The node's TLS: what it shows to browsers, and whom it trusts behind origins. Connections keep the configuration
/// they began with. Clones share it.
#[derive(Debug, Clone)]
pub struct Tls {
    loaded: Arc<RwLock<Arc<Loaded>>>,
    roots: Arc<RootCertStore>,
}

/// Why certificates cannot be used. At fault: the configuration, or whoever wrote the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("no certificate is configured")]
    None,
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path} has no certificate in PEM")]
    NoCertificate { path: PathBuf },
    #[error("{path} has no private key in PEM")]
    NoKey { path: PathBuf },
    #[error("{cert} and {key} cannot be used together: {error}")]
    Pair { cert: PathBuf, key: PathBuf, error: rustls::Error },
    #[error("the first certificate in {path} names no host (subjectAltName)")]
    NoName { path: PathBuf },
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// One version of the configuration.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

/// A certificate with its key, and what it covers.
#[derive(Debug)]
pub(super) struct Certificate {
    key: Arc<CertifiedKey>,
    names: Vec<HostPattern>,
}

#[derive(Debug)]
struct Certificates(Vec<Arc<Certificate>>);

impl Tls {
    /// Reads all files, of which none may be missing or bad, and the authorities of the system.
    pub fn load(files: &[CertificateFiles]) -> Result<Self, TlsError> {
        let loaded = Arc::new(RwLock::new(Arc::new(Loaded::read(files)?)));
        Ok(Self { loaded, roots: Arc::new(origin_tls::system_roots()) })
    }

    /// Reads all files again, for new connections. On an error everything stays as it was.
    pub fn reload(&self, files: &[CertificateFiles]) -> Result<(), TlsError> {
        let loaded = Arc::new(Loaded::read(files)?);
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// The authorities this machine trusts.
    pub(super) fn system_roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    pub(super) fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Loaded {
    fn read(files: &[CertificateFiles]) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certificates: Vec<_> = files
            .iter()
            .map(|files| Certificate::read(files, &provider).map(Arc::new))
            .collect::<Result<_, _>>()?;
        if certificates.is_empty() {
            return Err(TlsError::None);
        }
        let certificates = Arc::new(Certificates(certificates));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.max_early_data_size = 0;
        Ok(Self { config: Arc::new(config), certificates })
    }

    /// The certificate that a connection with this SNI was given.
    pub(super) fn certificate(&self, sni: Option<&str>) -> Option<Arc<Certificate>> {
        self.certificates.choose(sni).cloned()
    }
}

impl Certificate {
    fn read(files: &CertificateFiles, provider: &rustls::crypto::CryptoProvider) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            let error = |error| TlsError::Read { path: path.to_owned(), error };
            std::fs::read(path).map(Zeroizing::new).map_err(error)
        };
        let (cert_pem, key_pem) = (read(&files.cert)?, read(&files.key)?);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&cert_pem)
            .collect::<Result<_, _>>()
            .map_err(|_| TlsError::NoCertificate { path: files.cert.clone() })?;
        let leaf =
            chain.first().cloned().ok_or_else(|| TlsError::NoCertificate { path: files.cert.clone() })?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|_| TlsError::NoKey { path: files.key.clone() })?;
        let pair = |error| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), error };
        let key = CertifiedKey::from_der(chain, key, provider).map_err(pair)?;
        let names = names(&leaf).map_err(pair)?;
        let certificate = Self { key: Arc::new(key), names };
        if certificate.names.is_empty() {
            return Err(TlsError::NoName { path: files.cert.clone() });
        }
        Ok(certificate)
    }

    /// Whether a browser may use a connection with this certificate for `host`.
    pub(super) fn covers(&self, host: &Host) -> bool {
        if self.names.iter().any(|name| name.matches(host)) {
            return true;
        }
        let literal = host.as_str().trim_start_matches('[').trim_end_matches(']');
        let Ok(address) = literal.parse::<std::net::IpAddr>() else { return false };
        let leaf = self.key.end_entity_cert().and_then(ParsedCertificate::try_from);
        leaf.is_ok_and(|leaf| rustls::client::verify_server_name(&leaf, &ServerName::from(address)).is_ok())
    }
}

impl Certificates {
    /// An exact name before a wildcard; the first certificate where none matches or the client names nothing.
    fn choose(&self, sni: Option<&str>) -> Option<&Arc<Certificate>> {
        let named = sni.and_then(|sni| Host::parse(sni).ok()).and_then(|host| {
            let exact = HostPattern::Exact(host.clone());
            self.0
                .iter()
                .find(|certificate| certificate.names.contains(&exact))
                .or_else(|| self.0.iter().find(|certificate| certificate.covers(&host)))
        });
        named.or_else(|| self.0.first())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name()).map(|certificate| Arc::clone(&certificate.key))
    }
}

/// The DNS names of a certificate (RFC 9525 §6.3: a wildcard is a whole leftmost label).
fn names(leaf: &CertificateDer<'_>) -> Result<Vec<HostPattern>, rustls::Error> {
    let parsed = webpki::EndEntityCert::try_from(leaf)
        .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
    let pattern = |name: &str| match name.strip_prefix("*.") {
        Some(parent) => Host::parse(parent).map(HostPattern::Below),
        None => Host::parse(name).map(HostPattern::Exact),
    };
    Ok(parsed.valid_dns_names().filter_map(|name| pattern(name).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, hosts: &[&str]) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed(
            hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>(),
        )
        .unwrap();
        let files = CertificateFiles {
            cert: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        };
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    #[test]
    fn sni_picks_the_certificate_and_its_names_are_known() {
        let directory = tempfile::tempdir().unwrap();
        let files = [
            write(directory.path(), "first", &["access.example.com", "192.0.2.1"]),
            write(directory.path(), "wild", &["*.example.com"]),
            write(directory.path(), "exact", &["app.example.com", "app.example.net"]),
        ];
        let loaded = Loaded::read(&files).unwrap();
        for (sni, covered, not_covered) in [
            (Some("app.example.com"), "app.example.net", "other.example.com"),
            (Some("APP.example.com"), "app.example.com", "access.example.com"),
            (Some("other.example.com"), "another.example.com", "app.example.net"),
            (Some("unknown.example.org"), "access.example.com", "unknown.example.org"),
            (Some("a.b.example.com"), "192.0.2.1", "a.b.example.com"),
            (None, "access.example.com", "app.example.com"),
        ] {
            let certificate = loaded.certificate(sni).unwrap();
            assert!(certificate.covers(&host(covered)), "{sni:?} {covered}");
            assert!(!certificate.covers(&host(not_covered)), "{sni:?} {not_covered}");
        }
        assert_eq!(loaded.config.max_early_data_size, 0);
        let groups = &loaded.config.crypto_provider().kx_groups;
        assert_eq!(groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn a_bad_reload_says_why_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let good = write(directory.path(), "good", &["app.example.com"]);
        let other = write(directory.path(), "other", &["app.example.net"]);
        let tls = Tls::load(std::slice::from_ref(&good)).unwrap();
        let before = tls.loaded();

        let swapped = CertificateFiles { cert: good.cert.clone(), key: other.key.clone() };
        assert!(matches!(tls.reload(&[swapped]), Err(TlsError::Pair { .. })));
        assert!(matches!(tls.reload(&[]), Err(TlsError::None)));
        let gone = CertificateFiles { cert: directory.path().join("gone.pem"), key: good.key.clone() };
        assert!(tls.reload(&[gone]).unwrap_err().to_string().contains("gone.pem"));
        std::fs::write(&other.cert, "no certificate").unwrap();
        assert!(matches!(tls.reload(std::slice::from_ref(&other)), Err(TlsError::NoCertificate { .. })));
        assert!(Arc::ptr_eq(&before, &tls.loaded()));

        tls.reload(&[write(directory.path(), "other", &["app.example.net"])]).unwrap();
        assert!(tls.loaded().certificate(None).unwrap().covers(&host("app.example.net")));
    }
}
