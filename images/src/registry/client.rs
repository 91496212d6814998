//! HTTP: requests with deadlines, redirects by the rules, connections that are shared.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, LOCATION, PROXY_AUTHORIZATION, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;

use super::connect::{Connector, Lane, Peer, hint, proxy_authorization, tls_error};
use super::failure::{Act, Failure, act_of, words};
use super::retry;
use super::tls::{self, Material};
use super::url::{Origin, Reach, follow, without_query};
use crate::digest::Digest;
use crate::limits::Limits;

/// Windows of HTTP/2. A stream holds what the lane for small things may carry in one piece,
/// and a connection all layers of an image at once: readers that wait cannot starve others.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 128 << 20;
/// A connection that nobody has used for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// The system's certificates are read again after this time, so an update needs no restart.
const ROOTS_AGE: Duration = Duration::from_secs(60);
/// Kinds of connections that are kept; each host with certificates of its own is one.
const MOST_TRANSPORTS: usize = 64;

type Transport = legacy::Client<Connector, Full<Bytes>>;

/// What tells apart connections that must not be shared.
#[derive(PartialEq, Eq, Hash, Clone)]
struct Kind {
    tls: Digest,
    reach: Reach,
    lane: Lane,
    dial_timeout: Duration,
}

/// Everything below the API of registries.
pub(crate) struct Http {
    pub(crate) limits: Limits,
    pub(crate) proxy: Arc<Matcher>,
    user_agent: HeaderValue,
    transports: Mutex<HashMap<Kind, Transport>>,
    roots: Mutex<Option<(Instant, Arc<RootCertStore>)>>,
}

/// A request before it is known which hosts it will lead to.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// For every host on the way.
    pub(crate) headers: HeaderMap,
    /// For the first host alone: credentials, and what hosts.toml has for it.
    pub(crate) private: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) tls: &'a Material,
    pub(crate) dial_timeout: Option<Duration>,
    pub(crate) lane: Lane,
    /// Where the first URL may lead: anywhere, if the image or a file names it.
    pub(crate) reach: Reach,
}

/// A final answer: neither a redirect nor a failure of the connection.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    /// The first request and where it led, without queries.
    pub(crate) request: String,
    /// Whether the answer is that of the host that was asked, and not of one it sent us to.
    pub(crate) is_own: bool,
    /// Whether the host that was asked is this machine.
    pub(crate) is_local: bool,
}

impl Http {
    pub(crate) fn new(limits: Limits, proxy: Matcher) -> Http {
        Http {
            limits,
            proxy: Arc::new(proxy),
            user_agent: HeaderValue::from_static(concat!("berth/", env!("CARGO_PKG_VERSION"))),
            transports: Mutex::default(),
            roots: Mutex::default(),
        }
    }

    /// Sends a request and follows its redirects.
    ///
    /// The private headers go to the first host only and never again once another was
    /// asked; from TLS nothing leads to plain HTTP; hosts that only an answer names may
    /// not be of the link, nor, if the registry is another machine, of this one.
    pub(crate) async fn send(&self, ask: Ask<'_>) -> Result<Answer, Failure> {
        let first = Origin::of(&ask.uri)
            .ok_or_else(|| Failure::new(Act::Bad, &without_query(&ask.uri), "is no URL"))?;
        let mut uri = ask.uri.clone();
        let mut seen = vec![uri.clone()];
        let mut is_own = true;
        let mut is_local = first.is_loopback();
        let mut request = format!("{} {}", ask.method, without_query(&uri));
        loop {
            let origin = Origin::of(&uri).expect("follow gives absolute URLs");
            is_own &= origin == first;
            let strangers = Material::for_others(ask.tls);
            let tls = if origin.host == first.host { ask.tls } else { &strangers };
            let reach = match (is_own, is_local) {
                (true, _) => ask.reach,
                (false, true) => Reach::NotLinkLocal,
                (false, false) => Reach::Remote,
            };
            let hop = self.request(&ask, &uri, is_own);
            let response = self.exchange(hop, tls, reach, &ask, &request).await?;
            if is_own {
                is_local |= peer_is_local(&response);
            }
            let Some(location) = redirect(&response).filter(|_| ask.method != Method::POST) else {
                return Ok(Answer { response, request, is_own, is_local });
            };
            let failed = |problem: &str| Failure::new(Act::Bad, &request, problem);
            let next = follow(&uri, location.as_bytes())
                .map_err(|problem| failed(&format!("{} {problem}", response.status())))?;
            let shown = without_query(&next);
            if origin.is_tls && next.scheme_str() != Some("https") {
                return Err(failed(&format!("refused to follow it from https to {shown}")));
            }
            if seen.contains(&next) {
                return Err(failed(&format!("leads in a circle back to {shown}")));
            }
            if seen.len() as u64 > self.limits.redirects {
                let limit = self.limits.show("redirects");
                return Err(Failure::new(Act::Limit(limit), &request, "the number of redirects"));
            }
            request = format!("{} {} -> {shown}", ask.method, without_query(&ask.uri));
            seen.push(next.clone());
            uri = next;
        }
    }

    /// The request of one hop.
    fn request(&self, ask: &Ask<'_>, uri: &Uri, with_private: bool) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, self.user_agent.clone());
        headers.extend(ask.headers.clone());
        if with_private {
            headers.extend(ask.private.clone());
        }
        if let Some(authorization) = proxy_authorization(&self.proxy, uri) {
            headers.insert(PROXY_AUTHORIZATION, authorization);
        }
        request
    }

    /// One request, one answer.
    async fn exchange(
        &self,
        mut hop: Request<Full<Bytes>>,
        tls: &Material,
        reach: Reach,
        ask: &Ask<'_>,
        request: &str,
    ) -> Result<Response<Incoming>, Failure> {
        let dial_timeout = ask.dial_timeout.unwrap_or(self.limits.connect_timeout);
        let kind = Kind { tls: tls.fingerprint(), reach, lane: ask.lane, dial_timeout };
        let transport = self
            .transport(kind, tls)
            .await
            .map_err(|error| Failure { act: Act::Bad, text: format!("{request}: {error}") })?;
        let mut connection = capture_connection(&mut hop);
        let header_timeout = self.limits.header_timeout;
        let deadline = async {
            // The connector has a deadline of its own; this one ends what hangs before it is asked.
            let connected = connection.wait_for_connection_metadata();
            drop(tokio::time::timeout(dial_timeout, connected).await);
            tokio::time::sleep(header_timeout).await;
        };
        let response = tokio::select! {
            response = transport.request(hop) => response,
            () = deadline => {
                let seconds = header_timeout.as_secs_f32();
                let came = format!("no answer within {seconds} s (limits.header_timeout)");
                return Err(Failure::new(Act::Later(None), request, came));
            }
        };
        let response = response.map_err(|error| self.no_answer(request, &error))?;
        // The parser has a cap for HTTP/1.1; HTTP/2 only counts bytes.
        if response.headers().len() as u64 > self.limits.header_count {
            return Err(self.too_many_headers(request));
        }
        Ok(response)
    }

    fn too_many_headers(&self, request: &str) -> Failure {
        let limit = format!(
            "{} lines and {} KiB (limits.header_count, limits.header_bytes)",
            self.limits.header_count,
            self.limits.header_bytes.0 >> 10
        );
        Failure::new(Act::Limit(limit), request, "the header of the answer")
    }

    fn no_answer(&self, request: &str, error: &legacy::Error) -> Failure {
        let source = std::error::Error::source(error);
        let hyper = source.and_then(|source| source.downcast_ref::<hyper::Error>());
        // hyper has no function to tell this one apart.
        if hyper.is_some_and(|error| error.to_string() == "message head is too large") {
            return self.too_many_headers(request);
        }
        if let Some(tls) = source.and_then(tls_error) {
            // By TLS 1.3 a host says no to our certificate after the connection is made.
            let came = format!("TLS: {tls}{}", hint(tls));
            return Failure::new(Act::Unreachable, request, came);
        }
        let act = if error.is_connect() {
            Act::Unreachable
        } else if hyper.is_some_and(hyper::Error::is_parse) {
            Act::Bad
        } else {
            Act::Later(None)
        };
        // hyper-util's own text says only which of its steps failed.
        match source {
            Some(source) => Failure::of_error(act, request, source),
            None => Failure::of_error(act, request, error),
        }
    }

    /// The shared connections of a kind, made on first use.
    async fn transport(&self, kind: Kind, material: &Material) -> crate::Result<Transport> {
        let lock = || self.transports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(transport) = lock().get(&kind) {
            return Ok(transport.clone());
        }
        let mut tls = tls::config(material, &*self.roots().await)?;
        tls.alpn_protocols = match kind.lane {
            Lane::Shared => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Lane::Own => vec![b"http/1.1".to_vec()],
        };
        let connector = Connector {
            tls: Arc::new(tls),
            proxy: Arc::clone(&self.proxy),
            reach: kind.reach,
            timeout: kind.dial_timeout,
        };
        let header_bytes = u32::try_from(self.limits.header_bytes.0).unwrap_or(u32::MAX);
        let transport = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_headers(usize::try_from(self.limits.header_count).unwrap_or(usize::MAX))
            .http1_max_buf_size(self.limits.header_bytes.as_len().max(8192))
            .http2_max_header_list_size(header_bytes)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .build(connector);
        let mut transports = lock();
        if transports.len() >= MOST_TRANSPORTS {
            // Requests in flight hold their own connections; the others are made again.
            transports.clear();
        }
        transports.insert(kind, transport.clone());
        Ok(transport)
    }

    /// The system's certificates; a change of them makes new transports.
    async fn roots(&self) -> Arc<RootCertStore> {
        let lock = || self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, roots)) = lock().as_ref()
            && read.elapsed() < ROOTS_AGE
        {
            return Arc::clone(roots);
        }
        let roots = tokio::task::spawn_blocking(tls::system_roots);
        // The closure does not panic; if it ever did, no certificate would be believed.
        let roots = Arc::new(roots.await.unwrap_or_else(|_| RootCertStore::empty()));
        *lock() = Some((Instant::now(), Arc::clone(&roots)));
        roots
    }
}

fn peer_is_local(response: &Response<Incoming>) -> bool {
    let peer = response.extensions().get::<Peer>();
    peer.and_then(|peer| peer.0).is_some_and(|address| address.to_canonical().is_loopback())
}

fn redirect(response: &Response<Incoming>) -> Option<&HeaderValue> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    response.headers().get(LOCATION).filter(|_| is_redirect)
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header as text, where it is one.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The answer, if it is a success; else the failure that it tells of.
    pub(crate) async fn success(self, limits: &Limits) -> Result<Answer, Failure> {
        if self.status().is_success() {
            return Ok(self);
        }
        Err(self.into_failure(limits, "").await)
    }

    /// The failure that the answer tells of, with the words of its body. `more` is added to the text.
    pub(crate) async fn into_failure(self, limits: &Limits, more: &str) -> Failure {
        let status = self.status();
        let after = retry::asked(self.response.headers(), SystemTime::now());
        let cap = limits.error_bytes.as_len();
        let body = read_up_to(self.response.into_body(), cap, limits.header_timeout).await;
        let text = words(status, &body);
        let act = act_of(status, after);
        let asked = match (&act, after) {
            (Act::Later(_), Some(after)) => {
                format!("; it asks for a pause of {} s", after.as_secs())
            }
            _ => String::new(),
        };
        Failure::new(act, &self.request, format!("{text}{asked}{more}"))
    }

    /// The whole body, if it is no longer than the row of the limits named `limit`.
    pub(crate) async fn document(
        self,
        cap: u64,
        limit: &str,
        limits: &Limits,
    ) -> Result<Bytes, Failure> {
        let Answer { response, request, .. } = self;
        let passed =
            || Failure::new(Act::Limit(limits.show(limit)), &request, "the body of the answer");
        if response.body().size_hint().lower() > cap {
            return Err(passed());
        }
        let mut body = response.into_body();
        let deadline = tokio::time::Instant::now() + limits.document_timeout;
        let mut bytes = Vec::new();
        loop {
            let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
                Ok(None) => return Ok(Bytes::from(bytes)),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Err(Failure::of_error(Act::Later(None), &request, &error));
                }
                Err(_) => {
                    let seconds = limits.document_timeout.as_secs_f32();
                    let came = format!(
                        "the body did not come within {seconds} s (limits.document_timeout)"
                    );
                    return Err(Failure::new(Act::Later(None), &request, came));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            if (bytes.len() + data.len()) as u64 > cap {
                return Err(passed());
            }
            bytes.extend_from_slice(&data);
        }
    }
}

/// What comes of a body until the cap, the deadline, an error or its end.
async fn read_up_to(mut body: Incoming, cap: usize, deadline: Duration) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            bytes.extend_from_slice(&data[..data.len().min(cap - bytes.len())]);
            if bytes.len() == cap {
                break;
            }
        }
    };
    // Half a message is better than none: the time-out only ends the reading.
    drop(tokio::time::timeout(deadline, read).await);
    bytes
}
