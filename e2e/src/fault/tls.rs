//! The fault server behind TLS, with an authority of the test's own.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::answer::After;
use super::{FaultServer, Recorded};
use crate::netns::NetNs;

/// A certificate authority that nobody trusts by itself.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Which certificate a server shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Good for 127.0.0.1 and localhost.
    Good,
    /// For another name.
    OtherName,
    /// Good until the day before yesterday's year.
    Expired,
}

impl Authority {
    /// A new authority.
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "e2e authority");
        Ok(Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// Writes its certificate as PEM, for a `ca` setting.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(std::fs::write(path, self.issuer.pem())?)
    }

    fn server(&self, certificate: Certificate, protocols: &[&str]) -> Result<TlsAcceptor> {
        let (leaf, key) = self.issue(certificate)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn issue(&self, certificate: Certificate) -> Result<(rcgen::Certificate, KeyPair)> {
        let names = match certificate {
            Certificate::Good | Certificate::Expired => {
                vec!["127.0.0.1".to_owned(), "localhost".to_owned()]
            }
            Certificate::OtherName => vec!["registry.invalid".to_owned()],
        };
        let mut params = CertificateParams::new(names)?;
        if certificate == Certificate::Expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }

    /// Writes a good certificate and its key as PEM, for a server that is no part of the harness.
    pub fn write_server(&self, certificate: &Path, key: &Path) -> Result<()> {
        let (leaf, pair) = self.issue(Certificate::Good)?;
        std::fs::write(certificate, leaf.pem())?;
        Ok(std::fs::write(key, pair.serialize_pem())?)
    }

    /// A client that trusts this authority alone.
    pub fn client(&self) -> Result<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

impl FaultServer {
    /// Serves HTTP/1.1 over TLS on a free loopback port of a namespace.
    pub fn start_tls(
        netns: &NetNs,
        authority: &Authority,
        certificate: Certificate,
    ) -> Result<FaultServer> {
        let (server, listener) = FaultServer::bind(netns)?;
        let acceptor = authority.server(certificate, &["http/1.1"])?;
        let accept = server.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (server, acceptor) = (accept.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(connection).await else { return };
                    if server.connection(&mut stream).await == After::Reset {
                        stream.get_ref().0.set_zero_linger().ok();
                    }
                });
            }
        });
        Ok(server)
    }

    /// Serves HTTP/2 over TLS; each connection says GOAWAY after so many requests. Faults that lie about bytes on the
    /// wire have no meaning here.
    pub fn start_h2(
        netns: &NetNs,
        authority: &Authority,
        goaway_after: usize,
    ) -> Result<FaultServer> {
        let (server, listener) = FaultServer::bind(netns)?;
        let acceptor = authority.server(Certificate::Good, &["h2"])?;
        let accept = server.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (server, acceptor) = (accept.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(connection).await else { return };
                    server.h2_connection(TokioIo::new(stream), goaway_after).await;
                });
            }
        });
        Ok(server)
    }

    async fn h2_connection<S>(&self, stream: TokioIo<S>, goaway_after: usize)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    {
        let served = Arc::new(tokio::sync::Semaphore::new(0));
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let reply = self.h2_answer(&request);
            served.add_permits(1);
            async move { Ok::<_, Infallible>(reply) }
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let connection = builder.serve_connection(stream, service);
        let mut connection = std::pin::pin!(connection);
        let enough = u32::try_from(goaway_after).unwrap_or(u32::MAX);
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = served.acquire_many(enough) => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await.ok();
    }

    fn h2_answer(&self, request: &hyper::Request<Incoming>) -> hyper::Response<Full<Bytes>> {
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let recorded = Recorded {
            method: request.method().to_string(),
            path: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
            headers: request.headers().iter().map(header).collect(),
            sent: 0,
        };
        let (_, answer) = self.answer(recorded);
        let mut reply = hyper::Response::builder().status(answer.status);
        for (name, value) in &answer.headers {
            reply = reply.header(name, value);
        }
        let body = if answer.head { Bytes::new() } else { answer.body };
        reply.body(Full::new(body)).unwrap_or_default()
    }
}
