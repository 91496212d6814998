//! The head of a connection: one request, which becomes something else, or is refused and the connection closed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method, Response, StatusCode, Version, request};
use http_body_util::Full;
use hyper::body::Bytes;
use sha1::{Digest as _, Sha1};

use super::remote_command::Form;
use super::websocket::{PROTOCOLS, Protocol, TUNNEL_PROTOCOL};
use super::{Wanted, port_forward};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Protocol versions of exec and attach over SPDY. The fifth is for WebSockets only.
const SPDY_VERSIONS: &[(&str, SpdyVersion)] = &[
    ("v4.channel.k8s.io", SpdyVersion { resize: true, form: Form::Json }),
    ("v3.channel.k8s.io", SpdyVersion { resize: true, form: Form::Text }),
    ("v2.channel.k8s.io", SpdyVersion { resize: false, form: Form::Text }),
    ("channel.k8s.io", SpdyVersion { resize: false, form: Form::Text }),
];

/// What differs between the versions of exec and attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpdyVersion {
    /// With a terminal, the client opens a stream for its sizes.
    pub(super) resize: bool,
    pub(super) form: Form,
}

/// What a connection becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// Exec or attach over SPDY.
    Spdy(SpdyVersion),
    /// Port-forward over SPDY.
    SpdyPortForward,
    /// Channels in a WebSocket.
    WebSocket(Protocol),
    /// SPDY in a WebSocket.
    Tunnel,
}

/// An answer that is no upgrade.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    text: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Refusal {
        Refusal { status, text: text.into(), headers: Vec::new() }
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Refusal {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// Nothing is behind this path, or not any more.
    pub(super) fn not_found() -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "no such URL; each is good once and for a minute")
    }

    /// Too much at once.
    pub(super) fn busy() -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many streaming connections are open")
    }

    /// The answer, after which the connection is closed.
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.text + "\n")));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        response
    }
}

/// The kind and the token of a path. The token is used up by whoever shows it, so this comes first.
pub(super) fn path_of(parts: &request::Parts) -> Result<(&str, &str), Refusal> {
    let rest = parts.uri.path().strip_prefix('/').ok_or_else(Refusal::not_found)?;
    let (kind, token) = rest.split_once('/').ok_or_else(Refusal::not_found)?;
    if !matches!(parts.method, Method::GET | Method::POST) {
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST");
        return Err(refusal.with(ALLOW, "GET, POST"));
    }
    Ok((kind, token))
}

/// What a request becomes, and the answer that says so.
pub(super) fn upgrade_of(
    parts: &request::Parts,
    wanted: &Wanted,
) -> Result<(Upgrade, Response<Full<Bytes>>), Refusal> {
    let headers = &parts.headers;
    let bad = |text: &str| Refusal::new(StatusCode::BAD_REQUEST, text);
    if parts.version != Version::HTTP_11 {
        return Err(bad("only HTTP/1.1 can be upgraded"));
    }
    // Whoever stands between must not see another end of this request than we do.
    let empty = headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0");
    if !empty || headers.contains_key(TRANSFER_ENCODING) {
        return Err(bad("a request for an upgrade has no body"));
    }
    if !words(headers, &CONNECTION).iter().any(|word| word.eq_ignore_ascii_case("upgrade")) {
        return Err(bad("this is served upgraded only: Connection: Upgrade is missing"));
    }
    match words(headers, &UPGRADE).as_slice() {
        [to] if to.eq_ignore_ascii_case("SPDY/3.1") => spdy(headers, wanted),
        [to] if to.eq_ignore_ascii_case("websocket") => websocket(parts, wanted),
        _ => Err(bad("upgrade to SPDY/3.1 or to websocket")),
    }
}

fn spdy(headers: &HeaderMap, wanted: &Wanted) -> Result<(Upgrade, Response<Full<Bytes>>), Refusal> {
    let offered = words(headers, &STREAM_PROTOCOL);
    if offered.is_empty() {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "X-Stream-Protocol-Version is missing: which protocol does the client speak?",
        ));
    }
    // The client's order counts.
    let chosen = offered.iter().find_map(|offer| match wanted {
        Wanted::RemoteCommand(_) => {
            let (name, version) = SPDY_VERSIONS.iter().find(|(name, _)| name == offer)?;
            Some((*name, Upgrade::Spdy(*version)))
        }
        Wanted::PortForward(_) => (*offer == port_forward::PROTOCOL)
            .then_some((port_forward::PROTOCOL, Upgrade::SpdyPortForward)),
    });
    let Some((name, upgrade)) = chosen else {
        let refusal = Refusal::new(
            StatusCode::FORBIDDEN,
            format!("none of the client's protocols is served: {}", offered.join(", ")),
        );
        let ours: Vec<&'static str> = match wanted {
            Wanted::RemoteCommand(_) => SPDY_VERSIONS.iter().map(|(name, _)| *name).collect(),
            Wanted::PortForward(_) => vec![port_forward::PROTOCOL],
        };
        return Err(ours
            .into_iter()
            .fold(refusal, |refusal, name| refusal.with(ACCEPTED_PROTOCOLS, name)));
    };
    let mut response = switching("SPDY/3.1");
    response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok((upgrade, response))
}

fn websocket(
    parts: &request::Parts,
    wanted: &Wanted,
) -> Result<(Upgrade, Response<Full<Bytes>>), Refusal> {
    let headers = &parts.headers;
    let bad = |text: &str| Refusal::new(StatusCode::BAD_REQUEST, text);
    if parts.method != Method::GET {
        return Err(bad("a WebSocket begins with GET"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(
            bad("only version 13 of WebSockets is served").with(SEC_WEBSOCKET_VERSION, "13")
        );
    }
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let key = match (keys.next(), keys.next()) {
        (Some(key), None) if STANDARD.decode(key).is_ok_and(|key| key.len() == 16) => key,
        _ => return Err(bad("Sec-WebSocket-Key is not 16 bytes in base64")),
    };
    let offered = words(headers, &SEC_WEBSOCKET_PROTOCOL);
    let (name, upgrade) = choose(&offered, wanted).ok_or_else(|| {
        Refusal::new(
            StatusCode::FORBIDDEN,
            format!("none of the client's protocols is served: {}", offered.join(", ")),
        )
    })?;
    let mut response = switching("websocket");
    let accept = accept_of(key.as_bytes());
    let accept = HeaderValue::try_from(accept).map_err(|_| bad("a key of odd bytes"))?;
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !name.is_empty() {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((upgrade, response))
}

/// The first of the client's protocols that is served.
fn choose(offered: &[&str], wanted: &Wanted) -> Option<(&'static str, Upgrade)> {
    let channels = |offer: &str| {
        let (name, protocol) = PROTOCOLS.iter().find(|(name, _)| *name == offer)?;
        Some((*name, *protocol))
    };
    let none = [""];
    let offered = if offered.is_empty() { &none } else { offered };
    offered.iter().find_map(|offer| match wanted {
        Wanted::RemoteCommand(_) => {
            channels(offer).map(|(name, protocol)| (name, Upgrade::WebSocket(protocol)))
        }
        Wanted::PortForward(_) if *offer == TUNNEL_PROTOCOL => {
            Some((TUNNEL_PROTOCOL, Upgrade::Tunnel))
        }
        // Without a tunnel nobody could say which ports are meant.
        Wanted::PortForward(request) if request.ports.is_empty() => None,
        Wanted::PortForward(_) => channels(offer)
            .filter(|(_, protocol)| !protocol.v5)
            .map(|(name, protocol)| (name, Upgrade::WebSocket(protocol))),
    })
}

fn switching(to: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    response
}

/// The words of all headers of a name, which commas separate.
fn words<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect()
}

/// What proves that a WebSocket is meant (RFC 6455, 4.2.2).
fn accept_of(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
