//! Answers of the fault server, and the ways in which they go wrong on the wire.

use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Fault;

/// An answer before a fault is put on it, or after.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers besides Content-Length.
    pub headers: Vec<(String, String)>,
    /// What is sent.
    pub body: Bytes,
    /// What Content-Length says.
    pub length: u64,
    /// Whether the body stays away, as after HEAD.
    pub head: bool,
    /// What happens while the body is sent.
    pub ending: Ending,
}

/// How the sending of a body goes.
#[derive(Clone, Debug)]
pub enum Ending {
    /// Whole, and the connection goes on.
    Good,
    /// Whole, then the connection is closed.
    Close,
    /// Reset after so many bytes.
    Reset(usize),
    /// Silence after so many bytes.
    Stall(usize),
    /// So many bytes in a second.
    Slow(usize),
    /// Closed after so many bytes.
    Truncate(usize),
    /// So many zeros instead of the body.
    Zeros(u64),
    /// Chunks of zeros without end.
    Endless,
}

impl Answer {
    /// A whole answer.
    pub fn new(status: u16, media_type: &str, body: impl Into<Bytes>) -> Answer {
        let body = body.into();
        Answer {
            status,
            headers: vec![("content-type".into(), media_type.into())],
            length: body.len() as u64,
            body,
            head: false,
            ending: Ending::Good,
        }
    }

    /// An error as the distribution spec writes it.
    pub fn error(status: u16, code: &str) -> Answer {
        let body = format!(
            "{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"from the fault server\"}}]}}"
        );
        Answer::new(status, "application/json", body.into_bytes())
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Cuts the answer to the range that was asked for.
    fn ranged(mut self, range: Option<&str>) -> Answer {
        let Some((first, last)) =
            range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
        else {
            return self;
        };
        let total = self.body.len();
        let first = first.parse::<usize>().unwrap_or(0);
        let last = last.parse::<usize>().unwrap_or(usize::MAX).min(total.saturating_sub(1));
        if self.status != 200 {
            return self;
        }
        if first >= total || last < first {
            return Answer::error(416, "RANGE_INVALID")
                .header("content-range", &format!("bytes */{total}"));
        }
        self.body = self.body.slice(first..=last);
        self.length = self.body.len() as u64;
        self.status = 206;
        self.header("content-range", &format!("bytes {first}-{last}/{total}"))
    }
}

/// Puts a fault on an answer.
pub fn with_fault(answer: Answer, fault: Option<Fault>, head: bool, range: Option<&str>) -> Answer {
    let wrong = range.map(|_| "bytes=1-");
    let ending = |answer: Answer, ending| Answer { ending, ..answer.ranged(range) };
    let answer = match fault {
        None => answer.ranged(range),
        Some(Fault::Reset(after)) => ending(answer, Ending::Reset(after)),
        Some(Fault::Stall(after)) => ending(answer, Ending::Stall(after)),
        Some(Fault::Slow(rate)) => ending(answer, Ending::Slow(rate)),
        Some(Fault::Truncate(after)) => ending(answer, Ending::Truncate(after)),
        Some(Fault::Close) => ending(answer, Ending::Close),
        Some(Fault::Endless) => Answer { ending: Ending::Endless, ..answer },
        Some(Fault::Huge(length)) => Answer { ending: Ending::Zeros(length), length, ..answer },
        Some(Fault::Extra) => {
            let answer = answer.ranged(range);
            let body: Bytes = [answer.body.as_ref(), b"!"].concat().into();
            Answer { length: body.len() as u64, body, ..answer }
        }
        Some(Fault::Corrupt(at)) => {
            let answer = answer.ranged(range);
            let mut body = answer.body.to_vec();
            if let Some(byte) = body.get_mut(at) {
                *byte ^= 1;
            }
            Answer { body: body.into(), ..answer }
        }
        Some(Fault::WrongLength(by)) => {
            let answer = answer.ranged(range);
            Answer {
                length: answer.length.saturating_add_signed(by),
                ending: Ending::Close,
                ..answer
            }
        }
        Some(Fault::Status(status, headers, body)) => {
            let plain = Answer { headers: Vec::new(), ..Answer::new(status, "", body) };
            headers.iter().fold(plain, |answer, (name, value)| answer.header(name, value))
        }
        Some(Fault::Redirect(status, target)) => {
            Answer::new(status, "text/plain", Bytes::new()).header("location", &target)
        }
        Some(Fault::IgnoreRange) => answer,
        Some(Fault::WrongRange) => answer.ranged(wrong),
        Some(Fault::ManyHeaders(count)) => (0..count)
            .fold(answer.ranged(range), |answer, n| answer.header(&format!("x-e2e-{n}"), "value")),
        Some(Fault::MediaType(media_type)) => {
            let mut answer = answer.ranged(range);
            answer.headers.retain(|(name, _)| name != "content-type");
            answer.header("content-type", &media_type)
        }
    };
    Answer { head, ..answer }
}

/// What becomes of a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The next request is read.
    GoesOn,
    /// It is closed in order.
    Closed,
    /// It is reset.
    Reset,
}

/// In this time a reader takes what has come.
const READ_TIME: Duration = Duration::from_millis(300);

/// Sends an answer. Returns how many bytes of the body went out, and what becomes of the connection.
pub async fn write_answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    answer: Answer,
) -> (usize, After) {
    let mut head = format!("HTTP/1.1 {} E2E\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if matches!(answer.ending, Ending::Endless) {
        head.push_str("transfer-encoding: chunked\r\n\r\n");
    } else {
        head.push_str(&format!("content-length: {}\r\n\r\n", answer.length));
    }
    if stream.write_all(head.as_bytes()).await.is_err() {
        return (0, After::Closed);
    }
    if answer.head {
        return (0, After::GoesOn);
    }
    let until = |at: usize| &answer.body[..at.min(answer.body.len())];
    match answer.ending {
        Ending::Good => send(stream, &answer.body, After::GoesOn).await,
        Ending::Close => send(stream, &answer.body, After::Closed).await,
        Ending::Truncate(at) => send(stream, until(at), After::Closed).await,
        Ending::Reset(at) => {
            let sent = send(stream, until(at), After::Reset).await;
            // A reset takes away what the other side has not read yet.
            tokio::time::sleep(READ_TIME).await;
            sent
        }
        Ending::Stall(at) => {
            let (sent, _) = send(stream, until(at), After::Closed).await;
            // Until the other side gives up.
            stream.read_u8().await.ok();
            (sent, After::Closed)
        }
        Ending::Slow(rate) => send_slowly(stream, &answer.body, rate).await,
        Ending::Zeros(length) => send_zeros(stream, length, false).await,
        Ending::Endless => send_zeros(stream, u64::MAX, true).await,
    }
}

async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    after: After,
) -> (usize, After) {
    let mut sent = 0;
    for part in bytes.chunks(64 << 10) {
        if stream.write_all(part).await.is_err() {
            return (sent, After::Closed);
        }
        sent += part.len();
    }
    stream.flush().await.ok();
    (sent, after)
}

async fn send_slowly(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    rate: usize,
) -> (usize, After) {
    let mut sent = 0;
    for part in bytes.chunks(rate.max(1)) {
        if stream.write_all(part).await.is_err() || stream.flush().await.is_err() {
            return (sent, After::Closed);
        }
        sent += part.len();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    (sent, After::GoesOn)
}

async fn send_zeros(
    stream: &mut (impl AsyncWrite + Unpin),
    length: u64,
    chunked: bool,
) -> (usize, After) {
    const PART: usize = 64 << 10;
    let zeros = vec![0; PART];
    let mut sent = 0usize;
    while (sent as u64) < length {
        let part = usize::try_from(length - sent as u64).unwrap_or(PART).min(PART);
        let frame = if chunked { format!("{part:x}\r\n") } else { String::new() };
        let end: &[u8] = if chunked { b"\r\n" } else { b"" };
        for bytes in [frame.as_bytes(), &zeros[..part], end] {
            if stream.write_all(bytes).await.is_err() {
                return (sent, After::Closed);
            }
        }
        sent += part;
    }
    (sent, if chunked { After::Closed } else { After::GoesOn })
}

/// Standard base64.
pub fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}
