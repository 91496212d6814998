//! TLS: which certificates of a host are believed, and which of ours it may see.
//!
//! There is one way to make a configuration, for registries, token services and blob
//! hosts alike: verification that is on for one is on for all (CVE-2019-10214).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// What the configuration gives for a host: the bytes of files, so that a change of a file is seen.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Material {
    /// Files of authorities trusted besides the system's.
    pub(crate) ca: Vec<(PathBuf, Vec<u8>)>,
    /// Files of client certificates with the bytes of certificate and key.
    pub(crate) client: Vec<(PathBuf, Vec<u8>, Vec<u8>)>,
    /// Whether any certificate will do.
    pub(crate) skip_verify: bool,
}

impl Material {
    /// What of it holds for another host that this one names: trust in authorities, but
    /// neither our certificate nor the leave to skip verification.
    pub(crate) fn for_others(&self) -> Material {
        Material { ca: self.ca.clone(), client: Vec::new(), skip_verify: false }
    }

    /// Tells configurations apart, keys included.
    pub(crate) fn fingerprint(&self) -> Digest {
        let mut hasher = Hasher::default();
        let client = self.client.iter().flat_map(|(_, cert, key)| [(1_u8, cert), (2, key)]);
        for (kind, bytes) in self.ca.iter().map(|(_, bytes)| (0, bytes)).chain(client) {
            hasher.update(&[kind]);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        hasher.update(&[u8::from(self.skip_verify)]);
        hasher.finish()
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ca: Vec<_> = self.ca.iter().map(|(path, _)| path).collect();
        let client: Vec<_> = self.client.iter().map(|(path, _, _)| path).collect();
        f.debug_struct("Material")
            .field("ca", &ca)
            .field("client", &client)
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

/// The authorities of the system, as `ca-certificates` installs them. Blocks.
pub(crate) fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a system certificate was not read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

/// Makes the configuration of a host. ALPN is set by the caller.
///
/// # Errors
/// [`Error::Invalid`] for a file that is no certificate or key, or a key that does not fit.
pub(crate) fn config(material: &Material, system: &RootCertStore) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = if material.skip_verify {
        Arc::new(AnyCertificate(provider.signature_verification_algorithms))
    } else {
        verifier(material, system, &provider)?
    };
    let client = client_certificates(material, &provider)?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(if client.0.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_resolver(Arc::new(client))
    })
}

fn verifier(
    material: &Material,
    system: &RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>> {
    let mut roots = system.clone();
    let mut pinned = Vec::new();
    for (path, bytes) in &material.ca {
        for certificate in certificates(path, bytes)? {
            roots.add(certificate.clone()).map_err(|error| {
                Error::invalid(
                    path.display().to_string(),
                    format!("holds a certificate that cannot be read: {error}"),
                )
            })?;
            pinned.push(certificate);
        }
    }
    if roots.is_empty() {
        return Ok(Arc::new(NoRoots(provider.signature_verification_algorithms)));
    }
    let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .expect("there are roots and no revocation lists");
    Ok(Arc::new(Verifier { webpki, pinned }))
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let invalid = |problem: String| Error::invalid(path.display().to_string(), problem);
    let certificates = CertificateDer::pem_slice_iter(bytes)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| invalid(format!("is no PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(invalid("holds no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}

fn client_certificates(
    material: &Material,
    provider: &CryptoProvider,
) -> Result<ClientCertificates> {
    let mut keys = Vec::new();
    for (path, cert, key) in &material.client {
        let invalid = |problem: String| Error::invalid(path.display().to_string(), problem);
        let chain = certificates(path, cert)?;
        // The error of the parser could quote the key.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| invalid("comes without a private key in PEM form".to_owned()))?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|_| invalid("comes with a private key of an unknown kind".to_owned()))?;
        let certified = CertifiedKey::new(chain, key);
        certified
            .keys_match()
            .map_err(|_| invalid("comes with the private key of another certificate".to_owned()))?;
        keys.push(Arc::new(certified));
    }
    Ok(ClientCertificates(keys))
}

/// The certificates that we may show; the first whose key the server can check is shown.
#[derive(Debug)]
struct ClientCertificates(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientCertificates {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|certified| certified.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The usual verification, and one thing more: a certificate that is itself listed in a
/// `ca` file is believed although it calls itself an authority.
///
/// `openssl req -x509` makes such certificates, docker's documentation tells people to
/// make them, and every client in Go takes them. Its dates and its name must still be right.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let error =
            match self.webpki.verify_server_cert(certificate, intermediates, name, ocsp, now) {
                Ok(verified) => return Ok(verified),
                Err(error) => error,
            };
        // webpki checks the dates before it comes to this complaint, which has no variant of its own.
        let calls_itself_authority = matches!(
            &error,
            rustls::Error::InvalidCertificate(CertificateError::Other(other))
                if other.0.to_string() == "CaUsedAsEndEntity"
        );
        if !calls_itself_authority || !self.pinned.iter().any(|pinned| pinned == certificate) {
            return Err(error);
        }
        rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Refuses every certificate, with the reason that helps.
#[derive(Debug)]
struct NoRoots(WebPkiSupportedAlgorithms);

/// Believes every certificate, where `skip_verify` says so for that very host.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

/// Both differ from the usual in the first method only.
macro_rules! verify {
    ($name:ident, $verdict:expr) => {
        impl ServerCertVerifier for $name {
            fn verify_server_cert(
                &self,
                _certificate: &CertificateDer<'_>,
                _intermediates: &[CertificateDer<'_>],
                _name: &ServerName<'_>,
                _ocsp: &[u8],
                _now: UnixTime,
            ) -> std::result::Result<ServerCertVerified, rustls::Error> {
                $verdict
            }

            fn verify_tls12_signature(
                &self,
                message: &[u8],
                certificate: &CertificateDer<'_>,
                signed: &DigitallySignedStruct,
            ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
                rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
            }

            fn verify_tls13_signature(
                &self,
                message: &[u8],
                certificate: &CertificateDer<'_>,
                signed: &DigitallySignedStruct,
            ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
                rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
            }

            fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
                self.0.supported_schemes()
            }
        }
    };
}

verify!(
    NoRoots,
    Err(rustls::Error::General(
        "this machine has no certificates of authorities: install ca-certificates".to_owned()
    ))
);
verify!(AnyCertificate, Ok(ServerCertVerified::assertion()));
