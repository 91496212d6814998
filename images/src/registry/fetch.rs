//! The transfer of one blob: parts side by side, each resumed where it broke.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Pull;
use super::auth::{self, Get};
use super::blob::Part;
use super::client::Answer;
use super::connect::Lane;
use super::content::encoding;
use super::failure::{Act, Failure, combine};
use crate::digest::Digest;
use crate::error::{Error, Result, quoted};

/// Small frames are put together to pieces of at least this length, for each piece wakes a thread.
const PIECE: usize = 64 << 10;
/// Pieces that wait for a reader who is just taking the part.
const PIECES: usize = 16;
/// Blobs up to this length share a connection; it is the window of a stream there.
const SHARED: u64 = 1 << 20;

/// A blob to fetch.
pub(crate) struct Job {
    pub(crate) pull: Arc<Pull>,
    pub(crate) what: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) received: Arc<AtomicU64>,
    /// Hosts that sent some of the bytes.
    pub(crate) served: Arc<Mutex<BTreeSet<usize>>>,
}

/// Fetches the blob into parts, in order. Ends when all is sent or nobody reads any more.
pub(crate) async fn run(job: Arc<Job>, parts: mpsc::Sender<Part>) {
    if job.size == 0 {
        return;
    }
    let length = job.pull.limits().part_bytes.0;
    let mut tasks = JoinSet::new();
    let is_large = job.pull.ranges() > 1 && job.size >= 2 * length;
    let first = if is_large { 0..length } else { 0..job.size };
    let (sender, pieces) = mpsc::channel(PIECES);
    if parts.send(Part { pieces, _permit: None }).await.is_err() {
        return;
    }
    let (probe, takes_ranges) = oneshot::channel();
    tasks.spawn(transfer(Arc::clone(&job), first, sender, Some(probe)));
    // The first part finds out whether the host knows ranges; if not, it is the whole blob.
    let end = takes_ranges.await.unwrap_or(job.size);
    let mut start = end;
    while start < job.size {
        // Whether the part may be held in memory whole while its predecessors are read.
        let permit = Arc::clone(&job.pull.shared.read_ahead).try_acquire_owned().ok();
        let room = if permit.is_some() {
            job.pull.limits().part_bytes.as_len() / PIECE + 2
        } else {
            // Memory is short: one part after the other then, never waiting for other blobs.
            while tasks.join_next().await.is_some() {}
            PIECES
        };
        let (sender, pieces) = mpsc::channel(room);
        if parts.send(Part { pieces, _permit: permit }).await.is_err() {
            return;
        }
        let part = start..(start + length).min(job.size);
        start = part.end;
        tasks.spawn(transfer(Arc::clone(&job), part, sender, None));
    }
    while tasks.join_next().await.is_some() {}
}

/// Tells the first part's end to [`run`], once.
type Probe = Option<oneshot::Sender<u64>>;

/// One part under way.
struct Transfer {
    job: Arc<Job>,
    /// What is still to come.
    left: Range<u64>,
    pieces: mpsc::Sender<Result<Bytes>>,
    gathered: BytesMut,
    probe: Probe,
}

/// Why an attempt came to an end before the part did.
enum Stop {
    /// Nobody reads any more.
    Closed,
    /// This host failed.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

/// Fetches a part to its end, or sends the error.
async fn transfer(
    job: Arc<Job>,
    part: Range<u64>,
    pieces: mpsc::Sender<Result<Bytes>>,
    probe: Probe,
) {
    let mut transfer = Transfer { job, left: part, pieces, gathered: BytesMut::new(), probe };
    if let Err(error) = transfer.run().await {
        // A reader that is gone needs no error.
        drop(transfer.pieces.send(Err(error)).await);
    }
}

impl Transfer {
    /// Asks one host after the other until all bytes are there.
    ///
    /// A host that failed is asked again after the others, and after a pause that grows;
    /// progress makes the pause short again. Only what time may heal is tried again.
    async fn run(&mut self) -> Result<()> {
        let job = Arc::clone(&self.job);
        let pull = &job.pull;
        let mut strikes = vec![0_u32; pull.hosts.len()];
        let mut failed_rounds = 0;
        let mut at = self.left.start;
        loop {
            let mut order = pull.order(|host| host.capabilities.pull);
            order.retain(|position| pull.trusts(job.digest, *position));
            if order.is_empty() && pull.hosts.iter().any(|state| state.host.capabilities.pull) {
                let problem = "every host sent other bytes than its digest says";
                return Err(Error::invalid(job.what.clone(), problem));
            }
            order.sort_by_key(|position| strikes[*position]);
            let mut failures = Vec::new();
            for position in order {
                match self.attempt(position).await {
                    Ok(()) | Err(Stop::Closed) => return Ok(()),
                    Err(Stop::Failed(failure)) => {
                        tracing::debug!(layer = %job.digest, failure = failure.text, "a transfer broke");
                        strikes[position] += 1;
                        if failure.act == Act::Unreachable {
                            pull.hosts[position].is_down.store(true, Ordering::Relaxed);
                        }
                        failures.push(failure);
                    }
                }
                if self.left.is_empty() {
                    break;
                }
            }
            if self.left.is_empty() {
                // The host sent all that was wanted and went on: another will not do better.
                return Err(combine(&job.what, &failures));
            }
            if self.left.start - at >= pull.limits().progress_bytes.0 {
                failed_rounds = 0;
                at = self.left.start;
            }
            failed_rounds += 1;
            // A registry that restarts cannot be reached for a while: what has begun is worth waiting for.
            if let Some(Failure { act, .. }) = failures.last_mut()
                && *act == Act::Unreachable
            {
                *act = Act::Later(None);
            }
            pull.pause(&job.what, &failures, failed_rounds).await?;
        }
    }

    /// Asks one host for what is left, and passes it on as it comes.
    async fn attempt(&mut self, position: usize) -> Result<(), Stop> {
        let mut answer = self.ask(position, true).await?;
        let is_other_range = answer.status() == StatusCode::PARTIAL_CONTENT
            && sent(&answer, &self.left, self.job.size).is_err();
        // Some hosts refuse a range that they could simply ignore, or send another.
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE || is_other_range {
            answer = self.ask(position, false).await?;
        }
        let limits = self.job.pull.limits();
        let answer = answer.success(limits).await?;
        let bad = |problem: String| Failure::new(Act::Bad, &answer.request, problem);
        if let Some(problem) = encoding(&answer) {
            return Err(bad(problem).into());
        }
        let sent = sent(&answer, &self.left, self.job.size).map_err(bad)?;
        if let Some(probe) = self.probe.take() {
            if sent.end == self.job.size {
                self.left.end = self.job.size;
            }
            // The receiver waits for just this, unless nobody reads any more.
            if probe.send(self.left.end).is_err() {
                return Err(Stop::Closed);
            }
        }
        self.job.served.lock().unwrap_or_else(PoisonError::into_inner).insert(position);
        let request = answer.request.clone();
        let mut result = self.copy(answer.response.into_body(), sent, &request).await;
        // What came before a break need not come again.
        if self.flush().await.is_err() {
            result = Err(Stop::Closed);
        }
        result
    }

    async fn ask(&self, position: usize, with_range: bool) -> Result<Answer, Failure> {
        let access = self.job.pull.access(position);
        let mut headers = HeaderMap::new();
        if with_range && self.left != (0..self.job.size) {
            let range = format!("bytes={}-{}", self.left.start, self.left.end - 1);
            headers
                .insert(RANGE, HeaderValue::from_str(&range).expect("digits are fit for a header"));
        }
        let path = format!("blobs/{}", self.job.digest);
        let get = Get {
            method: Method::GET,
            uri: &self.job.pull.url(access.host, &path),
            headers,
            lane: if self.job.size <= SHARED { Lane::Shared } else { Lane::Own },
        };
        auth::send(&access, &get).await
    }

    /// Copies a body. `sent` are the bytes of the blob that it holds; what we have is skipped.
    async fn copy(
        &mut self,
        mut body: Incoming,
        sent: Range<u64>,
        request: &str,
    ) -> Result<(), Stop> {
        let limits = self.job.pull.limits().clone();
        let mut at = sent.start;
        let mut fresh = 0;
        let mut deadline = Instant::now() + limits.progress_timeout;
        loop {
            let frame = match timeout_at(deadline, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                // All is here: how the answer ends does not matter any more.
                _ if at == sent.end => break,
                Ok(Some(Err(error))) => {
                    return Err(Failure::of_error(Act::Later(None), request, &error).into());
                }
                Ok(None) => {
                    let came = format!(
                        "ended after {} of {} bytes",
                        at - sent.start,
                        sent.end - sent.start
                    );
                    return Err(Failure::new(Act::Later(None), request, came).into());
                }
                Err(_) => {
                    let seconds = limits.progress_timeout.as_secs_f32();
                    let came = format!(
                        "stalled: {fresh} bytes in {seconds} s (limits.progress_timeout, limits.progress_bytes)"
                    );
                    return Err(Failure::new(Act::Later(None), request, came).into());
                }
            };
            let Ok(mut data) = frame.into_data() else { continue };
            if data.len() as u64 > sent.end - at {
                let problem =
                    format!("sends more than the {} bytes of its descriptor", self.job.size);
                return Err(Failure::new(Act::Bad, request, problem).into());
            }
            fresh += data.len() as u64;
            if fresh >= limits.progress_bytes.0 {
                fresh = 0;
                deadline = Instant::now() + limits.progress_timeout;
            }
            let skip = self.left.start.saturating_sub(at).min(data.len() as u64);
            at += data.len() as u64;
            let _skipped = data.split_to(usize::try_from(skip).unwrap_or(usize::MAX));
            let most = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX);
            data.truncate(most);
            if self.push(data).await? {
                // The time that a reader took is not the host's.
                deadline = Instant::now() + limits.progress_timeout;
            }
            if self.left.is_empty() && sent.end > self.left.end {
                // A host that ignores ranges sends the rest of the blob, which others fetch.
                return Ok(());
            }
        }
        match self.left.is_empty() {
            true => Ok(()),
            // A host may send less than the range; the rest is asked for again.
            false => {
                Err(Failure::new(Act::Later(None), request, "sent a part of the range").into())
            }
        }
    }

    /// Passes data on. Tells whether it had to wait for the reader.
    async fn push(&mut self, data: Bytes) -> Result<bool, Stop> {
        self.left.start += data.len() as u64;
        self.job.received.fetch_add(data.len() as u64, Ordering::Relaxed);
        if self.gathered.is_empty() && data.len() >= PIECE {
            return self.send(data).await;
        }
        self.gathered.extend_from_slice(&data);
        if self.gathered.len() < PIECE {
            return Ok(false);
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<bool, Stop> {
        match self.gathered.is_empty() {
            true => Ok(false),
            false => {
                let piece = std::mem::take(&mut self.gathered).freeze();
                self.send(piece).await
            }
        }
    }

    async fn send(&self, piece: Bytes) -> Result<bool, Stop> {
        match self.pieces.try_send(Ok(piece)) {
            Ok(()) => Ok(false),
            Err(mpsc::error::TrySendError::Full(piece)) => {
                self.pieces.send(piece).await.map(|()| true).map_err(|_| Stop::Closed)
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Stop::Closed),
        }
    }
}

/// Which bytes of the blob an answer holds: all of them, or a range that begins where we stopped.
fn sent(answer: &Answer, wanted: &Range<u64>, size: u64) -> Result<Range<u64>, String> {
    let sent = match answer.status() {
        StatusCode::OK => 0..size,
        StatusCode::PARTIAL_CONTENT => {
            let text = answer.header(&CONTENT_RANGE).unwrap_or_default();
            let range = content_range(text, size).filter(|range| {
                range.start == wanted.start && range.end <= wanted.end && !range.is_empty()
            });
            range.ok_or_else(|| {
                let wanted = format!("{}-{}/{size}", wanted.start, wanted.end - 1);
                format!(
                    "asked for the bytes {wanted} and came with Content-Range {}",
                    quoted(text, 100)
                )
            })?
        }
        status => return Err(format!("came with {status}")),
    };
    let length = answer.header(&CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
    match length.filter(|length| *length != sent.end - sent.start) {
        Some(length) => {
            Err(format!("came with a size of {length} bytes instead of {}", sent.end - sent.start))
        }
        None => Ok(sent),
    }
}

/// `bytes FIRST-LAST/SIZE` (RFC 9110, 14.4); the size must be ours or unknown.
fn content_range(text: &str, size: u64) -> Option<Range<u64>> {
    let rest = text.trim().strip_prefix("bytes ")?;
    let (range, total) = rest.split_once('/')?;
    if total != "*" && total.parse::<u64>() != Ok(size) {
        return None;
    }
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < size).then(|| first..last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<Range<u64>>) {
        assert_eq!(content_range(text, 100), expected);
    }

    #[test]
    fn a_content_range_is_read_strictly() {
        check("bytes 10-99/100", Some(10..100));
        check("bytes 0-0/100", Some(0..1));
        check("bytes 10-19/*", Some(10..20));
        for text in [
            "",
            "bytes 10-99/101",
            "bytes 10-100/100",
            "bytes 20-10/100",
            "bytes */100",
            "10-99/100",
            "bytes 10-99",
            "bytes -5-9/100",
            "bytes 1-18446744073709551616/100",
        ] {
            check(text, None);
        }
    }
}
