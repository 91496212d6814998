//! One connection: name lookup, proxy, TLS, within one deadline.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::Service;

use super::failure::chain;
use super::url::{Origin, Reach};

/// Proxies, as the environment of a service names them.
///
/// `http://` proxies serve both kinds of URL: absolute requests for plain HTTP, CONNECT
/// for TLS. Proxies that themselves speak TLS or SOCKS are refused with a message. This
/// machine is never asked through a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySettings {
    /// Proxy for `http://` URLs: `http://[user:password@]host:port`. Empty means none.
    pub http: String,
    /// Proxy for `https://` URLs.
    pub https: String,
    /// Hosts that are asked directly: names with all below them, addresses, networks, `*`; with commas.
    pub no_proxy: String,
}

impl ProxySettings {
    /// What `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, in capitals or not.
    pub fn from_env() -> ProxySettings {
        let get = |name: &str| {
            let lower = name.to_ascii_lowercase();
            let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            value(name).or_else(|| value(&lower))
        };
        let all = get("ALL_PROXY").unwrap_or_default();
        ProxySettings {
            http: get("HTTP_PROXY").unwrap_or_else(|| all.clone()),
            https: get("HTTPS_PROXY").unwrap_or(all),
            no_proxy: get("NO_PROXY").unwrap_or_default(),
        }
    }

    pub(crate) fn matcher(&self) -> Matcher {
        Matcher::builder()
            .http(self.http.as_str())
            .https(self.https.as_str())
            .no(self.no_proxy.as_str())
            .build()
    }
}

/// The proxy for a URL, if there is one.
pub(crate) fn proxy_for(matcher: &Matcher, uri: &Uri) -> Option<Intercept> {
    let is_loopback = Origin::of(uri).is_some_and(|origin| origin.is_loopback());
    if is_loopback { None } else { matcher.intercept(uri) }
}

/// Which connections a request may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Many small requests on one connection, by HTTP/2 where the host has it.
    Shared,
    /// A connection of its own by HTTP/1.1: large blobs side by side then have a TCP
    /// window and a TLS thread each, and none holds up another.
    Own,
}

/// Makes connections of one kind.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) proxy: Arc<Matcher>,
    pub(crate) reach: Reach,
    pub(crate) timeout: Duration,
}

/// The address at the other end; nothing where that is a proxy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) Option<IpAddr>);

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct ConnectError(String);

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ConnectError {}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Stream>, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(connector.timeout, connect(&connector, &uri)).await {
                Ok(result) => result.map(TokioIo::new),
                Err(_) => {
                    let seconds = connector.timeout.as_secs_f32();
                    Err(ConnectError(format!("no connection within {seconds} s")))
                }
            }
        })
    }
}

async fn connect(connector: &Connector, uri: &Uri) -> Result<Stream, ConnectError> {
    let origin =
        Origin::of(uri).ok_or_else(|| ConnectError("the URL is not http or https".to_owned()))?;
    if let Some(reason) = origin.address().and_then(|address| connector.reach.refuses(address)) {
        return Err(ConnectError(format!("refused to ask {}: it is {reason}", origin.host)));
    }
    let proxy = proxy_for(&connector.proxy, uri);
    let open = || open(connector, proxy.as_ref(), &origin, uri);
    let tcp = open().await?;
    let peer = match &proxy {
        None => tcp.peer_addr().ok().map(|address| address.ip()),
        Some(_) => None,
    };
    if !origin.is_tls {
        return Ok(Stream { io: Box::new(tcp), is_h2: false, is_proxied: proxy.is_some(), peer });
    }
    match handshake(Arc::clone(&connector.tls), &origin, tcp, peer).await {
        Err(error) if wants_h2(&error) => {
            // The host has no HTTP/1.1, which the lane for large blobs prefers.
            let mut tls = (*connector.tls).clone();
            tls.alpn_protocols = vec![b"h2".to_vec()];
            let tcp = open().await?;
            handshake(Arc::new(tls), &origin, tcp, peer).await.map_err(|error| failed(&error))
        }
        result => result.map_err(|error| failed(&error)),
    }
}

/// A TCP connection to the host: straight, or by its proxy.
async fn open(
    connector: &Connector,
    proxy: Option<&Intercept>,
    origin: &Origin,
    uri: &Uri,
) -> Result<TcpStream, ConnectError> {
    match proxy {
        None => dial(uri, connector.reach, connector.timeout).await,
        Some(proxy) => through(proxy, origin, uri, connector.timeout).await,
    }
}

/// Dials TCP. A name with several addresses has a share of the time for each.
fn dialer(reach: Reach, timeout: Duration) -> HttpConnector<Resolver> {
    let mut tcp = HttpConnector::new_with_resolver(Resolver(reach));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    // Less than the whole, so that its own error comes before that of the deadline.
    tcp.set_connect_timeout(Some(timeout / 4 * 3));
    tcp
}

async fn dial(uri: &Uri, reach: Reach, timeout: Duration) -> Result<TcpStream, ConnectError> {
    let mut tcp = dialer(reach, timeout);
    let stream = tcp.call(uri.clone()).await.map_err(|error| ConnectError(chain(&error)))?;
    Ok(stream.into_inner())
}

/// Connects to a proxy, and for TLS through it to the host.
async fn through(
    proxy: &Intercept,
    origin: &Origin,
    uri: &Uri,
    timeout: Duration,
) -> Result<TcpStream, ConnectError> {
    let failed = |text: String| {
        ConnectError(format!(
            "proxy {}: {text}",
            proxy.uri().authority().map_or("", |a| a.as_str())
        ))
    };
    if proxy.uri().scheme_str() != Some("http") {
        return Err(failed("only proxies by http:// are known".to_owned()));
    }
    if !origin.is_tls {
        return dial(proxy.uri(), Reach::Any, timeout).await.map_err(|error| failed(error.0));
    }
    let mut tunnel = Tunnel::new(proxy.uri().clone(), dialer(Reach::Any, timeout));
    if let Some(auth) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(auth.clone());
    }
    let stream = tunnel.call(uri.clone()).await.map_err(|error| failed(chain(&error)))?;
    Ok(stream.into_inner())
}

/// What a proxy wants to see with each plain request.
pub(crate) fn proxy_authorization(matcher: &Matcher, uri: &Uri) -> Option<HeaderValue> {
    let is_plain = Origin::of(uri).is_some_and(|origin| !origin.is_tls);
    if !is_plain {
        return None;
    }
    proxy_for(matcher, uri)?.basic_auth().cloned()
}

async fn handshake(
    tls: Arc<ClientConfig>,
    origin: &Origin,
    tcp: TcpStream,
    peer: Option<IpAddr>,
) -> io::Result<Stream> {
    let name = ServerName::try_from(origin.host.clone()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await?;
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Stream { io: Box::new(stream), is_h2, is_proxied: false, peer })
}

/// The complaint of TLS in a chain of errors.
pub(crate) fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An io::Error shows the source of what it wraps as its own, and not the thing itself.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

fn wants_h2(error: &io::Error) -> bool {
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol))
    )
}

fn failed(error: &io::Error) -> ConnectError {
    ConnectError(match tls_error(error) {
        Some(tls) => format!("TLS: {tls}{}", hint(tls)),
        None => format!("TLS: {}", chain(error)),
    })
}

/// What to do about the usual complaints of TLS.
pub(crate) fn hint(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError::{Expired, ExpiredContext, UnknownIssuer};
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    if matches!(error, InvalidCertificate(UnknownIssuer)) {
        ": put the certificate of its authority into a ca file of its hosts.toml"
    } else if matches!(error, InvalidCertificate(Expired | ExpiredContext { .. })) {
        ": renew it, or look at this machine's clock"
    } else if matches!(error, AlertReceived(AlertDescription::CertificateRequired)) {
        ": it wants a certificate of ours, which is client in its hosts.toml"
    } else if matches!(error, InvalidMessage(_)) {
        ": it does not speak TLS; if that is right, say so with server = \"http://...\" in its hosts.toml"
    } else {
        ""
    }
}

/// Looks names up and leaves out addresses that are off limits: a name in an answer of a
/// registry must not lead where its address would not be allowed.
#[derive(Clone)]
struct Resolver(Reach);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let reach = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut allowed = Vec::new();
            let mut refused = None;
            for address in found {
                match reach.refuses(address.ip()) {
                    None => allowed.push(address),
                    Some(reason) => {
                        refused =
                            Some(format!("refused to ask {name}: {} is {reason}", address.ip()));
                    }
                }
            }
            match (allowed.is_empty(), refused) {
                (true, Some(refused)) => Err(io::Error::other(refused)),
                _ => Ok(allowed.into_iter()),
            }
        })
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection with what the HTTP layer must know about it.
pub(crate) struct Stream {
    io: Box<dyn Io>,
    is_h2: bool,
    is_proxied: bool,
    peer: Option<IpAddr>,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.is_proxied).extra(Peer(self.peer));
        if self.is_h2 { connected.negotiated_h2() } else { connected }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(settings: &ProxySettings, uri: &str, expected: Option<&str>) {
        let proxy = proxy_for(&settings.matcher(), &uri.parse().unwrap());
        assert_eq!(proxy.map(|proxy| proxy.uri().to_string()).as_deref(), expected);
    }

    #[test]
    fn proxies_are_chosen_as_operators_expect() {
        let settings = ProxySettings {
            http: "http://p:1".to_owned(),
            https: "user:hunter2@s:2".to_owned(),
            no_proxy: "corp.io, 10.0.0.0/8,.dot.io".to_owned(),
        };
        check(&settings, "http://r.io/", Some("http://p:1/"));
        check(&settings, "https://r.io/", Some("http://s:2/"));
        for direct in
            ["https://corp.io/", "https://r.corp.io/", "http://10.2.3.4/", "https://x.dot.io/"]
        {
            check(&settings, direct, None);
        }
        check(&settings, "https://notcorp.io/", Some("http://s:2/"));
        for loopback in ["http://localhost:5000/", "http://127.0.0.1/", "https://[::1]/"] {
            check(&settings, loopback, None);
        }
        check(&ProxySettings::default(), "https://r.io/", None);
    }
}
