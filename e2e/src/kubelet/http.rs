//! Requests to a kubelet's port, which speaks TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::netns::NetNs;
use crate::scaled;

/// A client of one address in a namespace, a connection for each request.
#[derive(Debug)]
pub struct Client {
    /// Where the server listens.
    pub netns: NetNs,
    /// At which address.
    pub address: SocketAddr,
    /// Whom to trust.
    pub tls: Arc<rustls::ClientConfig>,
}

impl Client {
    /// Asks, and returns the head of the answer at once.
    pub async fn ask(&self, method: Method, path: &str) -> Result<http::Response<Incoming>> {
        let stream = self.netns.connect(self.address, scaled(Duration::from_secs(10)))??;
        stream.set_nonblocking(true)?;
        let name = ServerName::try_from(self.address.ip().to_string())?;
        let stream = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, tokio::net::TcpStream::from_std(stream)?)
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, self.address.to_string())
            .body(Empty::<Bytes>::new())?;
        Ok(sender.send_request(request).await?)
    }

    /// Asks, and returns code and body.
    pub async fn answer(&self, method: Method, path: &str) -> Result<(StatusCode, String)> {
        let whole = async {
            let reply = self.ask(method, path).await?;
            let status = reply.status();
            let body = reply.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        let limit = scaled(Duration::from_secs(30));
        tokio::time::timeout(limit, whole).await.with_context(|| format!("no answer: {path}"))?
    }

    /// The body of an answer that must be a good one.
    pub async fn get(&self, path: &str) -> Result<String> {
        let (status, body) = self.answer(Method::GET, path).await?;
        if status != StatusCode::OK {
            bail!("{path}: {status}: {body}");
        }
        Ok(body)
    }
}
