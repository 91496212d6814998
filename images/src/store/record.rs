//! What is written about an image, and what a pull hands over to be written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Hold;
use crate::digest::Digest;
use crate::image::ImageId;
use crate::oci::{ImageConfig, Platform};
use crate::reference::Reference;
use crate::snapshot::Layer;

/// A tag and what it led to when it was pulled last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tag {
    pub(crate) reference: Reference,
    pub(crate) target: Digest,
    /// Tags that two records have after a crash belong to the higher one.
    pub(crate) stamp: u64,
}

/// A manifest, index or config that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredDocument {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// An image on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: ImageId,
    pub(crate) tags: Vec<Tag>,
    /// Names with the digests that references led to, the latest first.
    pub(crate) digests: Vec<Reference>,
    /// The manifest that was pulled last.
    pub(crate) manifest: Digest,
    /// All documents of the image, its config among them.
    pub(crate) documents: Vec<StoredDocument>,
    /// The layers, lowest first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) created: i64,
    pub(crate) user: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) platform: Platform,
}

/// A document to be stored with an image.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) digest: Digest,
    pub(crate) bytes: bytes::Bytes,
}

/// An image that is ready to be tagged: its layers are in place and held.
pub(crate) struct Ready {
    pub(crate) config: Arc<ImageConfig>,
    pub(crate) config_document: Document,
    pub(crate) manifest: Document,
    /// Indexes on the way to the manifest.
    pub(crate) indexes: Vec<Document>,
    /// The name to give it: one with a digest only is no tag.
    pub(crate) reference: Option<Reference>,
    /// What that name leads to.
    pub(crate) target: Digest,
    /// The layers, lowest first.
    pub(crate) layers: Hold,
}

impl ImageRecord {
    /// Whether another record says the same but for the stamps of its tags.
    pub(super) fn is_like(&self, other: &ImageRecord) -> bool {
        let tags = |record: &ImageRecord| {
            let tags = record.tags.iter().map(|tag| (tag.reference.clone(), tag.target));
            tags.collect::<BTreeSet<_>>()
        };
        let without_tags =
            |record: &ImageRecord| ImageRecord { tags: Vec::new(), ..record.clone() };
        tags(self) == tags(other) && without_tags(self) == without_tags(other)
    }

    /// What the image takes on disk.
    pub(super) fn size(&self) -> u64 {
        let layers: u64 = self.layers.iter().map(|layer| layer.bytes).sum();
        layers + self.documents.iter().map(|document| document.size).sum::<u64>()
    }
}
