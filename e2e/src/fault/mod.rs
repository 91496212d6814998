//! A registry of ours that does wrong what a real one never does, on demand, and remembers what it was asked.
//!
//! A [`FaultServer`] serves images from memory. Rules, tried in the order in which they were added, pick requests and
//! put a [`Fault`] on the answer. It speaks HTTP/1.1 byte by byte, so that a fault can be anywhere in an answer; with
//! [`tls`] it speaks TLS, and there HTTP/2 where a test wants to see a GOAWAY.

pub mod answer;
pub mod tls;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::case::lock;
use crate::image::{Content, Image};
use crate::netns::NetNs;
use answer::{After, Answer, write_answer};

/// What goes wrong with an answer. Offsets count the bytes of the body that is sent.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is reset after so many bytes.
    Reset(usize),
    /// Nothing comes any more after so many bytes; the connection stays open.
    Stall(usize),
    /// So many bytes come in a second.
    Slow(usize),
    /// The connection ends in order after so many bytes, although more were announced.
    Truncate(usize),
    /// One more byte than there should be, and the length says so.
    Extra,
    /// The byte at this offset is another one.
    Corrupt(usize),
    /// The announced length is off by so much.
    WrongLength(i64),
    /// Another answer: status, headers, body.
    Status(u16, Vec<(String, String)>, Vec<u8>),
    /// A redirection: status and target.
    Redirect(u16, String),
    /// The answer is whole, then the connection is closed without a word.
    Close,
    /// A range is asked for, everything is sent.
    IgnoreRange,
    /// A range is asked for, another one is sent, and the headers admit it.
    WrongRange,
    /// So many bytes of zeros, announced.
    Huge(u64),
    /// Chunks of zeros without end.
    Endless,
    /// So many headers.
    ManyHeaders(usize),
    /// Another media type in the Content-Type header.
    MediaType(String),
}

/// Which requests a fault is put on.
#[derive(Clone, Debug)]
pub struct Rule {
    path: String,
    methods: &'static [&'static str],
    skip: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// A fault on every GET whose path contains a text.
    pub fn on(path: &str, fault: Fault) -> Rule {
        Rule { path: path.into(), methods: &["GET"], skip: 0, times: usize::MAX, fault }
    }

    /// Only on the first so many of these requests.
    pub fn times(self, times: usize) -> Rule {
        Rule { times, ..self }
    }

    /// Lets so many of these requests pass first.
    pub fn after(self, skip: usize) -> Rule {
        Rule { skip, ..self }
    }

    /// On HEAD requests too.
    pub fn and_head(self) -> Rule {
        Rule { methods: &["GET", "HEAD"], ..self }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// How many bytes of the body were sent in answer.
    pub sent: usize,
}

impl Recorded {
    /// The value of a header, if it came.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Who may ask.
#[derive(Clone, Debug)]
pub enum Access {
    /// Basic authentication.
    Basic {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
    /// Tokens from a realm.
    Bearer {
        /// URL of the token service.
        realm: String,
        /// Tokens that are good; a token is good for `uses` requests.
        uses: usize,
    },
}

#[derive(Debug, Default)]
struct State {
    manifests: HashMap<String, Content>,
    blobs: HashMap<String, Content>,
    rules: Vec<(Rule, usize)>,
    requests: Vec<Recorded>,
    access: Option<Access>,
    /// Tokens that were given out, and how many requests each is still good for.
    tokens: HashMap<String, usize>,
}

/// The server. It ends with the runtime of its test.
#[derive(Clone, Debug)]
pub struct FaultServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl FaultServer {
    /// Serves plain HTTP on a free loopback port of a namespace.
    pub fn start(netns: &NetNs) -> Result<FaultServer> {
        let (server, listener) = FaultServer::bind(netns)?;
        let accept = server.clone();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let server = accept.clone();
                tokio::spawn(async move {
                    if server.connection(&mut connection).await == After::Reset {
                        // Closed like this, the kernel sends a reset.
                        connection.set_zero_linger().ok();
                    }
                });
            }
        });
        Ok(server)
    }

    fn bind(netns: &NetNs) -> Result<(FaultServer, tokio::net::TcpListener)> {
        let listener = netns.listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let server = FaultServer { address: listener.local_addr()?, state: Arc::default() };
        Ok((server, tokio::net::TcpListener::from_std(listener)?))
    }

    /// `127.0.0.1:port`, as references have it.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Serves an image under `repository:tag` and returns its reference.
    pub fn serve(&self, name: &str, image: &Image) -> String {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let mut state = lock(&self.state);
        for manifest in std::iter::once(&image.root).chain(&image.manifests) {
            state
                .manifests
                .insert(format!("{repository}/manifests/{}", manifest.digest), manifest.clone());
        }
        state.manifests.insert(format!("{repository}/manifests/{tag}"), image.root.clone());
        for blob in &image.blobs {
            state.blobs.insert(blob.digest.clone(), blob.clone());
        }
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Adds a rule.
    pub fn rule(&self, rule: Rule) {
        lock(&self.state).rules.push((rule, 0));
    }

    /// Forgets all rules and requests.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        state.rules.clear();
        state.requests.clear();
    }

    /// Lets in only who proves it.
    pub fn require(&self, access: Access) {
        lock(&self.state).access = Some(access);
    }

    /// Makes a token good that was not given out here.
    pub fn grant(&self, token: &str) {
        lock(&self.state).tokens.insert(token.to_owned(), usize::MAX);
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.state).requests.clone()
    }

    /// The requests so far whose path contains a text.
    pub fn requests_for(&self, path: &str) -> Vec<Recorded> {
        self.requests().into_iter().filter(|request| request.path.contains(path)).collect()
    }

    /// One connection: request after request until one side ends it.
    async fn connection(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> After {
        let mut rest = Vec::new();
        while let Ok(Some(request)) = read_request(stream, &mut rest).await {
            let (index, answer) = self.answer(request);
            let (sent, after) = write_answer(stream, answer).await;
            if let Some(request) = lock(&self.state).requests.get_mut(index) {
                request.sent = sent;
            }
            if after != After::GoesOn {
                return after;
            }
        }
        After::Closed
    }

    /// The answer to a request with the fault that it gets, and the request's place in the record.
    fn answer(&self, request: Recorded) -> (usize, Answer) {
        let mut state = lock(&self.state);
        let path = request.path.split('?').next().unwrap_or_default().to_owned();
        let answer = state.respond(&path, &request);
        let fault = state.rules.iter_mut().find_map(|(rule, seen)| {
            let hit = request.path.contains(&rule.path)
                && rule.methods.contains(&request.method.as_str());
            *seen += usize::from(hit);
            (hit && *seen > rule.skip && *seen - rule.skip <= rule.times)
                .then(|| rule.fault.clone())
        });
        let head = request.method == "HEAD";
        let range = request.header("range").map(str::to_owned);
        state.requests.push(request);
        (state.requests.len() - 1, answer::with_fault(answer, fault, head, range.as_deref()))
    }
}

impl State {
    fn respond(&mut self, path: &str, request: &Recorded) -> Answer {
        if path == "/token" {
            return self.token(request);
        }
        if let Some(refusal) = self.refusal(request) {
            return refusal;
        }
        let Some(name) = path.strip_prefix("/v2/") else {
            return Answer::error(404, "NAME_UNKNOWN");
        };
        if name.is_empty() {
            return Answer::new(200, "application/json", b"{}".as_slice());
        }
        let content = match name.rsplit_once("/blobs/") {
            Some((_, digest)) => self.blobs.get(digest),
            None => self.manifests.get(name),
        };
        match content {
            Some(content) => {
                let answer = Answer::new(200, &content.media_type, content.bytes.clone());
                answer
                    .header("docker-content-digest", &content.digest)
                    .header("accept-ranges", "bytes")
            }
            None => Answer::error(404, "MANIFEST_UNKNOWN"),
        }
    }

    /// What to say to somebody who has not proved to be allowed.
    fn refusal(&mut self, request: &Recorded) -> Option<Answer> {
        let given = request.header("authorization").unwrap_or_default();
        match self.access.clone()? {
            Access::Basic { user, password } => {
                let expected = format!("Basic {}", answer::base64(&format!("{user}:{password}")));
                let challenge = "Basic realm=\"e2e\"";
                (given != expected).then(|| {
                    Answer::error(401, "UNAUTHORIZED").header("www-authenticate", challenge)
                })
            }
            Access::Bearer { realm, .. } => {
                let good =
                    given.strip_prefix("Bearer ").and_then(|token| self.tokens.get_mut(token));
                if let Some(left) = good.filter(|left| **left > 0) {
                    *left -= 1;
                    return None;
                }
                let challenge = format!(
                    "Bearer realm=\"{realm}\",service=\"e2e\",scope=\"repository:e2e/x:pull\""
                );
                Some(Answer::error(401, "UNAUTHORIZED").header("www-authenticate", &challenge))
            }
        }
    }

    /// The token service: a new token for anybody who asks.
    fn token(&mut self, _request: &Recorded) -> Answer {
        let uses = match self.access {
            Some(Access::Bearer { uses, .. }) => uses,
            Some(Access::Basic { .. }) | None => usize::MAX,
        };
        let token = format!("token-{}", self.tokens.len() + 1);
        self.tokens.insert(token.clone(), uses);
        let body =
            format!("{{\"token\":\"{token}\",\"access_token\":\"{token}\",\"expires_in\":300}}");
        Answer::new(200, "application/json", body.into_bytes())
    }
}

/// How long a head of a request may be.
const HEAD_LIMIT: usize = 64 << 10;

/// Reads the head of a request and its body, which is thrown away.
async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    rest: &mut Vec<u8>,
) -> Result<Option<Recorded>> {
    let end = loop {
        if let Some(at) = rest.windows(4).position(|part| part == b"\r\n\r\n") {
            break at + 4;
        }
        let mut buffer = [0; 4096];
        let read =
            tokio::time::timeout(Duration::from_secs(120), stream.read(&mut buffer)).await??;
        if read == 0 || rest.len() > HEAD_LIMIT {
            return Ok(None);
        }
        rest.extend_from_slice(&buffer[..read]);
    };
    let head = String::from_utf8_lossy(&rest[..end]).into_owned();
    rest.drain(..end);
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let method = words.next().unwrap_or_default();
    let request = Recorded { method, path: words.next().unwrap_or_default(), headers, sent: 0 };
    let mut body = request
        .header("content-length")
        .and_then(|length| length.parse::<usize>().ok())
        .unwrap_or(0);
    while body > 0 {
        let take = body.min(rest.len());
        rest.drain(..take);
        body -= take;
        if body > 0 {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Ok(None);
            }
            rest.extend_from_slice(&buffer[..read]);
        }
    }
    Ok(Some(request))
}
