//! From a reference to an image: index, manifest and config, for one platform.

use bytes::Bytes;

use super::content::{Head, RawDoc, Want};
use super::{Pull, Session};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci::{Descriptor, Document, ImageConfig, Kind, Manifest, Platform};

/// What the store has already, so that it is not fetched again.
pub struct Known<'a> {
    /// The bytes of a document by its digest, where the store has it.
    pub stored: &'a (dyn Fn(&Digest) -> Option<Bytes> + Send + Sync),
    /// What the tag led to when it was pulled last. If that is stored, the registry is
    /// only asked whether it still holds, by HEAD, which Docker Hub does not count.
    pub last: Option<Digest>,
}

impl Known<'static> {
    /// Nothing is known.
    pub fn nothing() -> Known<'static> {
        Known { stored: &|_| None, last: None }
    }
}

/// An image that a reference leads to.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the reference itself names, an index or a manifest: the digest of `name@digest`.
    pub digest: Digest,
    /// The indexes on the way to the manifest, outermost first; mostly one or none.
    pub indexes: Vec<RawDoc>,
    /// The manifest as it came.
    pub manifest_doc: RawDoc,
    /// The manifest as it is read.
    pub manifest: Manifest,
    /// The image config as it came; its digest is the image id.
    pub config_doc: RawDoc,
    /// The image config as it is read.
    pub config: ImageConfig,
}

impl Session {
    /// Finds the image for a platform. The registry is always asked, also when all is
    /// stored: whether this user may have the image is its to say.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an image, or a platform of it, that is not there;
    /// [`Error::Denied`], [`Error::Unavailable`], [`Error::Limit`];
    /// [`Error::Invalid`] for documents that cannot be right and images for other machines.
    pub async fn resolve(&self, platform: &Platform, known: &Known<'_>) -> Result<Resolved> {
        let what = format!("image {}", self.pull.reference);
        let mut document = top(&self.pull, &what, known).await?;
        let digest = document.digest;
        let limits = self.limits();
        let mut indexes = Vec::new();
        let (manifest_doc, manifest) = loop {
            let content_type = Some(document.media_type.as_str()).filter(|text| !text.is_empty());
            match Document::parse(&document.bytes, content_type, &what, limits)? {
                Document::Manifest(manifest) => break (document, manifest),
                Document::Index(index) => {
                    if indexes.len() as u64 >= limits.index_depth {
                        return Err(
                            limits.passed(format!("{what}: indexes in indexes"), "index_depth")
                        );
                    }
                    let entry = index.choose(platform, &what)?;
                    let next = child(&self.pull, &what, entry, known).await?;
                    indexes.push(document);
                    document = next;
                }
            }
        };
        let what = format!("{what}: config {}", manifest.config.digest);
        let config_doc = blob(&self.pull, &what, &manifest.config, known).await?;
        let config = ImageConfig::parse(&config_doc.bytes, &what, limits)?;
        let what = format!("image {}", self.pull.reference);
        manifest.matches(&config, &what)?;
        config.runs_on(platform, &what)?;
        Ok(Resolved { digest, indexes, manifest_doc, manifest, config_doc, config })
    }
}

/// A document from the store, if its bytes are still those of its digest.
fn stored(known: &Known<'_>, digest: Digest, media_type: &str) -> Option<RawDoc> {
    let document = RawDoc::new((known.stored)(&digest)?, media_type);
    (document.digest == digest).then_some(document)
}

/// What the reference names.
async fn top(pull: &Pull, what: &str, known: &Known<'_>) -> Result<RawDoc> {
    let named = match (pull.reference.digest(), pull.reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.to_owned(),
        (None, None) => {
            return Err(Error::invalid(what, "must have a tag or a digest"));
        }
    };
    let want = Want {
        what,
        path: format!("manifests/{named}"),
        digest: pull.reference.digest(),
        size: None,
        cap: (pull.limits().manifest_bytes.0, "manifest_bytes"),
    };
    let last = pull.reference.digest().or(known.last);
    if let Some(document) = last.and_then(|last| stored(known, last, "")) {
        match pull.head(&want).await? {
            Head::Found(Some(digest)) if digest == document.digest => return Ok(document),
            // By digest it is enough that the registry has it and lets us see it.
            Head::Found(None) if want.digest.is_some() => return Ok(document),
            Head::Found(_) | Head::Unsupported => {}
        }
    }
    pull.document(&want).await
}

/// The manifest, or a further index, that an index names.
async fn child(pull: &Pull, what: &str, entry: &Descriptor, known: &Known<'_>) -> Result<RawDoc> {
    if let Some(document) = stored(known, entry.digest, entry.media_type.as_ref()) {
        return Ok(document);
    }
    let cap = pull.limits().manifest_bytes.0;
    let size = Some(entry.size);
    let path = format!("manifests/{}", entry.digest);
    let want = Want { what, path, digest: Some(entry.digest), size, cap: (cap, "manifest_bytes") };
    let document = pull.document(&want).await?;
    // The index has said what this is, and no header may say otherwise.
    let named = Kind::of(entry.media_type.as_ref());
    match Kind::of(&document.media_type) {
        Some(kind) if Some(kind) != named => Err(Error::invalid(
            format!("{what}: {}", entry.digest),
            format!("came as {}, and the index calls it {}", document.media_type, entry.media_type),
        )),
        _ => Ok(RawDoc { media_type: entry.media_type.to_string(), ..document }),
    }
}

/// The config of an image.
async fn blob(pull: &Pull, what: &str, config: &Descriptor, known: &Known<'_>) -> Result<RawDoc> {
    let media_type = config.media_type.as_ref();
    if let Some(document) = stored(known, config.digest, media_type) {
        return Ok(document);
    }
    let want = Want {
        what,
        path: format!("blobs/{}", config.digest),
        digest: Some(config.digest),
        size: Some(config.size),
        cap: (pull.limits().config_bytes.0, "config_bytes"),
    };
    let document = pull.document(&want).await?;
    Ok(RawDoc { media_type: media_type.to_owned(), ..document })
}
