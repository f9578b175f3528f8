//! TLS to registries: the system's roots, docker's `certs.d` folders, `ca` and `keypair` of
//! `registries.toml`.
//!
//! The provider is ring, named each time; nothing depends on a process-wide default.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::hosts::OwnRegistry;

/// Says which file of certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It is not PEM, or holds nothing of the kind.
    #[error("`{path}` holds no usable {what}: {reason}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// A `.cert` without its `.key`.
    #[error("`{0}` has no key beside it (the same name with `.key`)")]
    Key(PathBuf),
    /// rustls does not take them together.
    #[error("the TLS settings for `{host}` cannot be used: {reason}")]
    Refused {
        /// For which host.
        host: String,
        /// What rustls says.
        reason: String,
    },
}

/// Certificates that belong to one host.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HostCertificates {
    authorities: Vec<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

impl HostCertificates {
    /// What the `certs.d` folders and `registries.toml` hold for `host` (with its port, if it has
    /// one), as docker names such files: `*.crt` authorities, `*.cert` and `*.key` our identity.
    pub fn find(
        host: &str,
        folders: &[PathBuf],
        own: Option<&OwnRegistry>,
    ) -> Result<Self, TlsError> {
        let mut found = Self::default();
        if let Some(own) = own {
            found.authorities.extend(own.ca.iter().cloned());
            found.identity = own.keypair.first().map(|pair| (pair.cert.clone(), pair.key.clone()));
        }
        for folder in folders {
            // Folders that only others may read are passed over, as podman does it.
            let Ok(entries) = fs_err::read_dir(folder.join(host)) else { continue };
            let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
            files.sort();
            for file in files {
                match file.extension().and_then(|e| e.to_str()) {
                    Some("crt") => found.authorities.push(file),
                    Some("cert") if found.identity.is_none() => {
                        let key = file.with_extension("key");
                        if !key.exists() {
                            return Err(TlsError::Key(file));
                        }
                        found.identity = Some((file, key));
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// Whether there is nothing of its own for the host.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The configuration for plain HTTP, where TLS is never spoken: it costs nothing to make.
pub fn without_roots() -> ClientConfig {
    builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

/// The configuration for `host`, which shows a certificate that somebody we know signed.
pub fn verified(host: &str, certificates: &HostCertificates) -> Result<ClientConfig, TlsError> {
    let mut trusted = system_certificates().to_vec();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    for path in &certificates.authorities {
        for certificate in read_certificates(path)? {
            roots.add(certificate.clone()).map_err(|e| pem(path, "certificate", &e))?;
            trusted.push(certificate);
        }
    }
    let refused = |reason: String| TlsError::Refused { host: host.to_owned(), reason };
    if roots.is_empty() {
        return Err(refused("there is no certificate authority to trust on this system".into()));
    }
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| refused(e.to_string()))?;
    let builder = builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(KnownCertificate { chains, trusted }));
    with_identity(host, certificates, builder)
}

/// The configuration for `host`, whatever certificate it shows.
pub fn unverified(host: &str, certificates: &HostCertificates) -> Result<ClientConfig, TlsError> {
    let builder = builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())));
    with_identity(host, certificates, builder)
}

fn with_identity(
    host: &str,
    certificates: &HostCertificates,
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
) -> Result<ClientConfig, TlsError> {
    let mut config = match &certificates.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = read_certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| pem(key, "key", &e))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| TlsError::Refused { host: host.to_owned(), reason: e.to_string() })?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

/// The system's roots, read once. Those that rustls cannot parse are left out later, as other
/// programs do: a system's list has odd ones, and a host signed by such a one is refused with its
/// name.
fn system_certificates() -> &'static [CertificateDer<'static>] {
    static CERTIFICATES: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    CERTIFICATES.get_or_init(|| {
        let loaded = rustls_native_certs::load_native_certs();
        for error in &loaded.errors {
            tracing::warn!(%error, "a root certificate of the system cannot be read");
        }
        loaded.certs
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| pem(path, "certificate", &e))?;
    if certificates.is_empty() {
        return Err(pem(path, "certificate", &"there is no `BEGIN CERTIFICATE` in it"));
    }
    Ok(certificates)
}

fn pem(path: &Path, what: &'static str, reason: &impl ToString) -> TlsError {
    TlsError::Pem { path: path.to_owned(), what, reason: reason.to_string() }
}

/// Takes what a known authority signed, and what is itself in the list of the trusted: a registry's
/// self-signed certificate, which `openssl req -x509` marks as an authority. webpki refuses an
/// authority as the end of a chain; docker and podman take it.
#[derive(Debug)]
struct KnownCertificate {
    chains: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl KnownCertificate {
    /// Whether `error` says no more than that the certificate is marked as an authority. webpki
    /// has no type that could be matched here without depending on it; it looks at this after the
    /// dates.
    fn is_about_authority(error: &rustls::Error) -> bool {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(error)) => {
                error.to_string().contains("CaUsedAsEndEntity")
            }
            _ => false,
        }
    }
}

impl ServerCertVerifier for KnownCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let by_chain = self.chains.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match by_chain {
            Err(error) if Self::is_about_authority(&error) && self.trusted.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Takes any certificate, but still checks that the host has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_files_of_a_host() {
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().join("a.example:5000");
        fs_err::create_dir(&host).unwrap();
        for name in ["ca.crt", "client.cert", "client.key", "README"] {
            fs_err::write(host.join(name), "").unwrap();
        }
        let folders = [folder.path().to_owned()];
        let found = HostCertificates::find("a.example:5000", &folders, None).unwrap();
        assert_eq!(found.authorities, [host.join("ca.crt")]);
        assert_eq!(found.identity, Some((host.join("client.cert"), host.join("client.key"))));
        assert!(HostCertificates::find("a.example", &folders, None).unwrap().is_empty());

        fs_err::remove_file(host.join("client.key")).unwrap();
        let error = HostCertificates::find("a.example:5000", &folders, None).unwrap_err();
        assert!(error.to_string().contains("has no key beside it"), "{error}");
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let certificates =
            HostCertificates { authorities: vec![file.path().to_owned()], identity: None };
        let error = verified("host", &certificates).unwrap_err();
        assert!(error.to_string().contains("holds no usable certificate"), "{error}");
    }
}
