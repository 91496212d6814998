//! A registry on loopback that serves images and does wrong what it is told to.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::Digest;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// How a body is sent.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// As it should be.
    Whole(Bytes),
    /// In chunks, without a length.
    Chunked(Bytes),
    /// With its length, but the connection ends after so many bytes.
    Cut(Bytes, usize),
    /// With its length, but nothing comes after so many bytes.
    Stall(Bytes, usize),
    /// With its length, one byte after the other with a pause between them.
    Drip(Bytes, Duration),
    /// With this length in the header.
    Lie(Bytes, u64),
    /// Chunks without end.
    Endless,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Body,
    },
    /// These bytes instead of an answer, then the end.
    Raw(Vec<u8>),
    /// The connection ends without an answer.
    Hangup,
    /// No answer ever.
    Silence,
    /// What a good registry answers, with a body sent in another way.
    Good(fn(Bytes) -> Body),
    /// What a good registry answers, with a change.
    Changed(fn(&mut Vec<(String, String)>, &mut Bytes)),
    /// What a registry answers that does not know ranges.
    WithoutRange,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Reply {
        Reply::Answer { status, headers: Vec::new(), body: Body::Whole(Bytes::new()) }
    }

    pub(crate) fn json(status: u16, text: &str) -> Reply {
        let body = Body::Whole(Bytes::copy_from_slice(text.as_bytes()));
        Reply::Answer { status, headers: Vec::new(), body }
    }

    pub(crate) fn redirect(status: u16, location: &str) -> Reply {
        Reply::status(status).with("Location", location)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Reply {
        if let Reply::Answer { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

/// What the registry wants to see.
#[derive(Debug, Clone)]
pub(crate) enum Auth {
    /// `Authorization: Basic` with this value.
    Basic(String),
    /// A bearer token that `/token` of the same or another server has given out.
    Bearer { realm: String },
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    /// By `name/manifests/tag`, `name/blobs/digest`: type and bytes.
    content: HashMap<String, (String, Bytes)>,
    /// Answers for requests whose path contains a text, used up one by one.
    queued: Vec<(String, VecDeque<Reply>)>,
    auth: Option<Auth>,
    /// Tokens that are good.
    tokens: Vec<String>,
    given: usize,
    /// Credentials that `/token` takes; all, if empty.
    token_wants: Vec<String>,
}

/// The server. It ends with the last clone of it.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    is_tls: bool,
    state: Arc<Mutex<State>>,
    _tasks: Arc<JoinSet<()>>,
}

impl Server {
    pub(crate) async fn start() -> Server {
        Server::listen(None).await
    }

    pub(crate) async fn start_tls(config: rustls::ServerConfig) -> Server {
        Server::listen(Some(config)).await
    }

    async fn listen(tls: Option<rustls::ServerConfig>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let is_tls = tls.is_some();
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, acceptor, Arc::clone(&state)));
        Server { address, is_tls, state, _tasks: Arc::new(tasks) }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn registry(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self) -> String {
        let (scheme, host) =
            if self.is_tls { ("https", "localhost") } else { ("http", "127.0.0.1") };
        format!("{scheme}://{host}:{}", self.address.port())
    }

    pub(crate) fn put(&self, path: &str, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let entry = (media_type.to_owned(), bytes);
        let mut state = self.state.lock().unwrap();
        let (name, kind) = path.split_once('/').unwrap_or((path, "blobs"));
        let kind = kind.split('/').next().unwrap_or_default();
        state.content.insert(format!("{name}/{kind}/{digest}"), entry.clone());
        state.content.insert(path.to_owned(), entry);
        digest
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.lock().unwrap().content.remove(path);
    }

    /// Answers the next request whose path contains a text.
    pub(crate) fn queue(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let mut state = self.state.lock().unwrap();
        state.queued.push((path.to_owned(), replies.into_iter().collect()));
    }

    pub(crate) fn want(&self, auth: Auth) {
        self.state.lock().unwrap().auth = Some(auth);
    }

    /// What `Authorization` or form body the token service must see.
    pub(crate) fn token_wants(&self, text: &str) {
        self.state.lock().unwrap().token_wants.push(text.to_owned());
    }

    pub(crate) fn allow_token(&self, token: &str) {
        self.state.lock().unwrap().tokens.push(token.to_owned());
    }

    /// From now on no token is good that was given out before.
    pub(crate) fn expire_tokens(&self) {
        self.state.lock().unwrap().tokens.clear();
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// Requests, one a line: method, path and, where there is one, the range.
    pub(crate) fn log(&self) -> Vec<String> {
        let line = |seen: &Seen| {
            let range = seen.header("range").map_or(String::new(), |range| format!(" {range}"));
            format!("{} {}{range}", seen.method, seen.path)
        };
        self.seen().iter().map(line).collect()
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        connections.spawn(async move {
            // A client that hangs up is part of the tests.
            drop(connection(stream, tls, state).await);
        });
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    state: Arc<Mutex<State>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return serve(stream, state).await };
    let stream = tls.accept(stream).await?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        return serve_h2(stream, state).await;
    }
    serve(stream, state).await
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    state: Arc<Mutex<State>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(seen) = read_request(&mut stream, &mut buffer).await? {
        if seen.method.is_empty() {
            stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await?;
            break;
        }
        let head_only = seen.method == "HEAD";
        let reply = answer(&state, seen);
        if !send(&mut stream, reply, head_only).await? {
            break;
        }
    }
    stream.shutdown().await
}

async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<Seen>> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
        if !buffer[0].is_ascii_uppercase() {
            // A handshake of TLS, say.
            return Ok(Some(Seen {
                method: String::new(),
                path: String::new(),
                headers: Vec::new(),
                body: String::new(),
            }));
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let (method, path) = (word(), word());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut seen = Seen { method, path, headers, body: String::new() };
    let length: usize = seen.header("content-length").map_or(0, |text| text.parse().unwrap());
    while buffer.len() < length {
        stream.read_buf(buffer).await?;
    }
    seen.body = String::from_utf8(buffer.drain(..length).collect()).unwrap();
    Ok(Some(seen))
}

/// Chooses the answer: a queued one first, then what a good registry says.
fn answer(state: &Mutex<State>, seen: Seen) -> Reply {
    let mut state = state.lock().unwrap();
    state.seen.push(seen.clone());
    let position = state
        .queued
        .iter()
        .position(|(path, replies)| seen.path.contains(path.as_str()) && !replies.is_empty());
    let Some(position) = position else { return good(&mut state, &seen) };
    let reply = state.queued[position].1[0].clone();
    let reply = match reply {
        Reply::WithoutRange => {
            let mut seen = seen;
            seen.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("range"));
            good(&mut state, &seen)
        }
        Reply::Good(_) | Reply::Changed(_) => match (good(&mut state, &seen), reply) {
            // What is to be changed has not been reached yet, for want of a token.
            (refusal @ Reply::Answer { status: 401, .. }, _) => return refusal,
            (Reply::Answer { status, headers, body: Body::Whole(bytes) }, Reply::Good(change)) => {
                Reply::Answer { status, headers, body: change(bytes) }
            }
            (
                Reply::Answer { status, mut headers, body: Body::Whole(mut bytes) },
                Reply::Changed(change),
            ) => {
                change(&mut headers, &mut bytes);
                Reply::Answer { status, headers, body: Body::Whole(bytes) }
            }
            (other, _) => other,
        },
        reply @ (Reply::Answer { .. } | Reply::Raw(_) | Reply::Hangup | Reply::Silence) => reply,
    };
    state.queued[position].1.pop_front();
    reply
}

fn good(state: &mut State, seen: &Seen) -> Reply {
    if seen.path.starts_with("/token") {
        return token(state, seen);
    }
    let authorization = seen.header("authorization").unwrap_or_default();
    match &state.auth {
        Some(Auth::Basic(value)) if authorization != value => {
            return Reply::json(
                401,
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
            )
            .with("WWW-Authenticate", "Basic realm=\"test\"");
        }
        Some(Auth::Bearer { realm })
            if !state.tokens.iter().any(|token| authorization == format!("Bearer {token}")) =>
        {
            let scope = seen.path.split('/').nth(2).unwrap_or_default();
            let challenge = format!(
                "Bearer realm=\"{realm}\",service=\"test registry\",scope=\"repository:{scope}:pull\""
            );
            return Reply::status(401).with("Www-Authenticate", &challenge);
        }
        _ => {}
    }
    let path = seen.path.split('?').next().unwrap_or_default();
    // A proxy is asked for whole URLs.
    let path = path.strip_prefix("http://r.test").unwrap_or(path);
    let key = path.strip_prefix("/v2/").unwrap_or(path);
    let Some((media_type, bytes)) = state.content.get(key).cloned() else {
        return Reply::json(
            404,
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
        );
    };
    let mut headers = vec![("Content-Type".to_owned(), media_type)];
    if key.contains("/manifests/") {
        headers.push(("Docker-Content-Digest".to_owned(), Digest::of(&bytes).to_string()));
    }
    match seen.range() {
        Some((first, last)) if key.contains("/blobs/") => {
            let last = last.min(bytes.len() - 1);
            let range = format!("bytes {first}-{last}/{}", bytes.len());
            headers.push(("Content-Range".to_owned(), range));
            let body = Body::Whole(bytes.slice(first..=last));
            Reply::Answer { status: 206, headers, body }
        }
        _ => Reply::Answer { status: 200, headers, body: Body::Whole(bytes) },
    }
}

fn token(state: &mut State, seen: &Seen) -> Reply {
    let shown = format!("{} {}", seen.header("authorization").unwrap_or_default(), seen.body);
    if !state.token_wants.iter().all(|text| shown.contains(text.as_str())) {
        return Reply::json(401, r#"{"details":"incorrect username or password"}"#);
    }
    state.given += 1;
    let token = format!("token-{}", state.given);
    state.tokens.push(token.clone());
    Reply::json(200, &format!(r#"{{"token":"{token}","expires_in":300}}"#))
}

/// Sends an answer; tells whether the connection may go on.
async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    reply: Reply,
    head_only: bool,
) -> std::io::Result<bool> {
    let (status, headers, body) = match reply {
        Reply::Answer { status, headers, body } => (status, headers, body),
        Reply::Raw(bytes) => {
            stream.write_all(&bytes).await?;
            return Ok(false);
        }
        Reply::Silence => std::future::pending().await,
        Reply::Hangup | Reply::Good(_) | Reply::Changed(_) | Reply::WithoutRange => {
            return Ok(false);
        }
    };
    let length = match &body {
        Body::Chunked(_) | Body::Endless => None,
        Body::Lie(_, length) => Some(*length),
        Body::Whole(bytes) | Body::Cut(bytes, _) | Body::Stall(bytes, _) | Body::Drip(bytes, _) => {
            Some(bytes.len() as u64)
        }
    };
    let mut head = format!("HTTP/1.1 {status} X\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match length {
        Some(length) => head.push_str(&format!("Content-Length: {length}\r\n\r\n")),
        None => head.push_str("Transfer-Encoding: chunked\r\n\r\n"),
    }
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    if head_only {
        return Ok(true);
    }
    send_body(stream, body).await
}

async fn send_body(stream: &mut (impl AsyncWrite + Unpin), body: Body) -> std::io::Result<bool> {
    match body {
        Body::Whole(bytes) => {
            stream.write_all(&bytes).await?;
            stream.flush().await?;
            Ok(true)
        }
        Body::Lie(bytes, _) => {
            stream.write_all(&bytes).await?;
            Ok(false)
        }
        Body::Cut(bytes, after) => {
            stream.write_all(&bytes[..after]).await?;
            Ok(false)
        }
        Body::Stall(bytes, after) => {
            stream.write_all(&bytes[..after]).await?;
            stream.flush().await?;
            std::future::pending().await
        }
        Body::Drip(bytes, pause) => {
            for byte in bytes {
                stream.write_all(&[byte]).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
            Ok(true)
        }
        Body::Chunked(bytes) => {
            for chunk in bytes.chunks(1000) {
                stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
                stream.write_all(chunk).await?;
                stream.write_all(b"\r\n").await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
            stream.flush().await?;
            Ok(true)
        }
        Body::Endless => {
            let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
            loop {
                stream.write_all(&chunk).await?;
            }
        }
    }
}

/// The same answers by HTTP/2. A queued [`Reply::Hangup`] says GOAWAY and ends the connection.
async fn serve_h2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    state: Arc<Mutex<State>>,
) -> std::io::Result<()> {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let goaway = Arc::new(tokio::sync::Notify::new());
    let notify = Arc::clone(&goaway);
    let service =
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let headers = request.headers().iter();
            let seen = Seen {
                method: request.method().to_string(),
                path: request.uri().path_and_query().unwrap().to_string(),
                headers: headers
                    .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                    .collect(),
                body: String::new(),
            };
            let reply = answer(&state, seen);
            let notify = Arc::clone(&notify);
            async move {
                let Reply::Answer { status, headers, body } = reply else {
                    notify.notify_one();
                    return std::future::pending().await;
                };
                let Body::Whole(bytes) = body else { panic!("{body:?} is not for HTTP/2") };
                let mut response = http::Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                response.body(http_body_util::Full::new(bytes))
            }
        });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = &mut connection => result.map_err(std::io::Error::other),
        () = goaway.notified() => {
            connection.as_mut().graceful_shutdown();
            // The GOAWAY frame goes out with the next turn; the request that asked for it is never answered.
            let _turn = tokio::time::timeout(Duration::from_millis(20), connection).await;
            Ok(())
        }
    }
}
