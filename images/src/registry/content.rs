//! Documents by digest: manifests, indexes and configs, whole and checked.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::Pull;
use super::auth::{self, Get};
use super::client::Answer;
use super::connect::Lane;
use super::failure::{Act, Failure, combine};
use super::mirrors::Host;
use super::retry;
use crate::digest::Digest;
use crate::error::{Result, quoted};

/// All that a manifest may be, and whatever else a registry has.
pub(crate) const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A document as it came, byte for byte; its digest is that of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDoc {
    /// The document.
    pub bytes: Bytes,
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// What the registry, or the descriptor, called it; empty where nobody did.
    pub media_type: String,
}

impl RawDoc {
    /// A document whose digest is yet to be made.
    pub fn new(bytes: Bytes, media_type: impl Into<String>) -> RawDoc {
        RawDoc { digest: Digest::of(&bytes), bytes, media_type: media_type.into() }
    }
}

/// A document that is wanted.
pub(crate) struct Want<'a> {
    /// For errors.
    pub(crate) what: &'a str,
    /// Below the repository: `manifests/latest`, `blobs/sha256:..`.
    pub(crate) path: String,
    /// What the bytes must hash to, where that is known.
    pub(crate) digest: Option<Digest>,
    /// How long they must be, where that is known.
    pub(crate) size: Option<u64>,
    /// The row of the limits for the length, with its value.
    pub(crate) cap: (u64, &'static str),
}

impl Want<'_> {
    /// A tag is taken from hosts whose word is good for tags; a digest checks itself.
    fn may_ask(&self, host: &Host) -> bool {
        match self.digest {
            Some(_) => host.capabilities.pull,
            None => host.capabilities.resolve,
        }
    }
}

/// What asking for the head of a document found out.
pub(crate) enum Head {
    /// The document is there, with the digest that the registry says, if it does.
    Found(Option<Digest>),
    /// The registry does not know the method.
    Unsupported,
}

impl Pull {
    /// Gets a document from the first host that has it.
    pub(crate) async fn document(&self, want: &Want<'_>) -> Result<RawDoc> {
        let mut round = 0;
        loop {
            let mut failures = Vec::new();
            for position in self.order(|host| want.may_ask(host)) {
                match self.get(position, want).await {
                    Ok(document) => return Ok(document),
                    Err(failure) => self.note(position, failure, &mut failures),
                }
            }
            round += 1;
            self.pause(want.what, &failures, round).await?;
        }
    }

    /// Asks for the head of a document.
    pub(crate) async fn head(&self, want: &Want<'_>) -> Result<Head> {
        let mut round = 0;
        loop {
            let mut failures = Vec::new();
            for position in self.order(|host| want.may_ask(host)) {
                match self.get_head(position, want).await {
                    Ok(head) => return Ok(head),
                    Err(failure) => self.note(position, failure, &mut failures),
                }
            }
            round += 1;
            self.pause(want.what, &failures, round).await?;
        }
    }

    /// Remembers a failure and goes on to the next host.
    fn note(&self, position: usize, failure: Failure, failures: &mut Vec<Failure>) {
        tracing::debug!(image = %self.reference, failure = failure.text, "a host did not serve");
        if failure.act == Act::Unreachable {
            self.hosts[position].is_down.store(true, Ordering::Relaxed);
        }
        failures.push(failure);
    }

    /// Waits before the next round if that may help; else the failures become the error.
    pub(crate) async fn pause(&self, what: &str, failures: &[Failure], round: u64) -> Result<()> {
        let limits = self.limits();
        let asked = match failures.last().map(|failure| &failure.act) {
            Some(Act::Later(asked)) => *asked,
            _ => return Err(combine(what, failures)),
        };
        if round > limits.retries || asked.is_some_and(|asked| asked > limits.retry_after) {
            return Err(combine(what, failures));
        }
        let own = retry::pause(limits.retry_pause, round);
        tokio::time::sleep(asked.map_or(own, |asked| asked.max(own))).await;
        Ok(())
    }

    async fn ask(
        &self,
        position: usize,
        want: &Want<'_>,
        method: Method,
    ) -> Result<Answer, Failure> {
        let access = self.access(position);
        let accept = if want.path.starts_with("manifests/") { MANIFEST_TYPES } else { "*/*" };
        let get = Get {
            method,
            uri: &self.url(access.host, &want.path),
            headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]),
            lane: Lane::Shared,
        };
        auth::send(&access, &get).await
    }

    async fn get(&self, position: usize, want: &Want<'_>) -> Result<RawDoc, Failure> {
        let limits = self.limits();
        let answer = self.ask(position, want, Method::GET).await?.success(limits).await?;
        let request = answer.request.clone();
        let bad = |problem: String| Failure::new(Act::Bad, &request, problem);
        if let Some(encoding) = encoding(&answer) {
            return Err(bad(encoding));
        }
        let media_type = answer.header(&CONTENT_TYPE).unwrap_or_default().to_owned();
        let said = said_digest(&answer).map_err(bad)?;
        let (cap, limit) = want.cap;
        let document = RawDoc::new(answer.document(cap, limit, limits).await?, media_type);
        if let Some(size) = want.size.filter(|size| *size != document.bytes.len() as u64) {
            return Err(bad(format!(
                "came with a size of {} bytes instead of {size}",
                document.bytes.len()
            )));
        }
        // What was asked for decides; the header alone only shows damage on the way.
        if let Some(digest) = want.digest.or(said).filter(|digest| *digest != document.digest) {
            return Err(bad(format!(
                "came with the digest {} instead of {digest}",
                document.digest
            )));
        }
        Ok(document)
    }

    async fn get_head(&self, position: usize, want: &Want<'_>) -> Result<Head, Failure> {
        let answer = self.ask(position, want, Method::HEAD).await?;
        if matches!(answer.status(), StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) {
            return Ok(Head::Unsupported);
        }
        let answer = answer.success(self.limits()).await?;
        let said = said_digest(&answer);
        said.map(Head::Found).map_err(|problem| Failure::new(Act::Bad, &answer.request, problem))
    }
}

/// The digest in the header. One of an algorithm that we do not know says nothing.
fn said_digest(answer: &Answer) -> Result<Option<Digest>, String> {
    let Some(value) = answer.response.headers().get(CONTENT_DIGEST) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    if text.starts_with("sha512:") || text.starts_with("sha384:") {
        return Ok(None);
    }
    match text.trim().parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(_) => Err(format!("came with {} for its digest", quoted(&text, 100))),
    }
}

/// An encoding that we did not ask for: the digest is over the bytes without it.
pub(crate) fn encoding(answer: &Answer) -> Option<String> {
    let encoding = answer.header(&CONTENT_ENCODING)?;
    let is_plain = encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
    (!is_plain).then(|| {
        format!("came with the encoding {}, which was not asked for", quoted(encoding, 60))
    })
}
