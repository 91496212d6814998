//! Finding an image by any of its names: tag, digest, id, beginning of an id, docker's short forms.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::ImageId;
use crate::reference::Reference;
use crate::store::ImageRecord;

/// Shortest beginning of an id that is taken for one.
const SHORTEST: usize = 4;

/// The image that a name means. A name of an image comes before the beginning of an id, as in docker.
///
/// # Errors
/// `Invalid` for what can be neither, and for the beginning of several ids.
pub(crate) fn find(
    name: &str,
    images: &BTreeMap<ImageId, Arc<ImageRecord>>,
    tags: &BTreeMap<Reference, ImageId>,
) -> Result<Option<ImageId>> {
    let is_full = |hex: &str| hex.len() == 64;
    let hex = hex_of(name);
    if let Some(hex) = hex.filter(|hex| is_full(hex)) {
        let id: ImageId = format!("sha256:{hex}").parse()?;
        return Ok(images.contains_key(&id).then_some(id));
    }
    let reference = name.parse::<Reference>();
    if let Ok(reference) = &reference
        && let Some(id) = by_reference(reference, images, tags)
    {
        return Ok(Some(id));
    }
    match (hex.filter(|hex| hex.len() >= SHORTEST), reference) {
        (Some(hex), _) => by_prefix(hex, images, name),
        (None, Ok(_)) => Ok(None),
        (None, Err(error)) => Err(error),
    }
}

/// The digits of what may be an id, with or without its algorithm.
fn hex_of(name: &str) -> Option<&str> {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (hex.len() <= 64 && hex.bytes().all(digit)).then_some(hex)
}

fn by_reference(
    reference: &Reference,
    images: &BTreeMap<ImageId, Arc<ImageRecord>>,
    tags: &BTreeMap<Reference, ImageId>,
) -> Option<ImageId> {
    let Some(digest) = reference.digest() else {
        return tags.get(reference).copied();
    };
    let by_digest = reference.with_digest(digest);
    images.values().find(|record| record.digests.contains(&by_digest)).map(|record| record.id)
}

fn by_prefix(
    hex: &str,
    images: &BTreeMap<ImageId, Arc<ImageRecord>>,
    name: &str,
) -> Result<Option<ImageId>> {
    let mut found = images.keys().filter(|id| id.digest().hex().starts_with(hex));
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => {
            Err(Error::invalid(format!("image id {name}"), "is the beginning of several ids"))
        }
        (found, _) => Ok(found.copied()),
    }
}
