//! TLS towards origins: the system's authorities and, where configured, the origin's own; names are verified.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::flow::{Origin, OriginScheme};

/// Why TLS with an origin cannot be set up. At fault: the configuration.
#[derive(Debug, thiserror::Error)]
pub enum OriginTlsError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path} has no certificate of an authority in PEM")]
    Authority { path: PathBuf },
    #[error("`{0}` is no name that a certificate can be verified for")]
    Name(String),
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// Checks the parts of an origin's configuration that lie in files, without connecting.
pub fn check(origin: &Origin) -> Result<(), OriginTlsError> {
    client(origin, &Arc::new(RootCertStore::empty())).map(drop)
}

/// The authorities this machine trusts; what cannot be read is left out, and verification fails without it.
pub(super) fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a certificate authority of the system cannot be used");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

/// TLS for one origin, and the name to verify.
pub(super) fn client(
    origin: &Origin,
    roots: &Arc<RootCertStore>,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), OriginTlsError> {
    let roots = match &origin.ca {
        None => Arc::clone(roots),
        Some(path) => Arc::new(with_authority(roots, path)?),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(OriginTlsError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // HTTP/1.1 origins need not know ALPN, so it is only spoken where the version depends on it.
    if origin.scheme == OriginScheme::H2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let name = origin.server_name.as_deref().unwrap_or(origin.host.as_str());
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(name.to_owned()).map_err(|_| OriginTlsError::Name(name.to_owned()))?;
    Ok((Arc::new(config), name))
}

fn with_authority(roots: &RootCertStore, path: &Path) -> Result<RootCertStore, OriginTlsError> {
    let pem = std::fs::read(path).map_err(|error| OriginTlsError::Read { path: path.to_owned(), error })?;
    let bad = || OriginTlsError::Authority { path: path.to_owned() };
    let mut roots = roots.clone();
    let before = roots.len();
    for authority in CertificateDer::pem_slice_iter(&pem) {
        roots.add(authority.map_err(|_| bad())?).map_err(|_| bad())?;
    }
    if roots.len() == before { Err(bad()) } else { Ok(roots) }
}
