//! Layers on disk: what one is, how it is made, and what containers mount.
//!
//! A layer is known by its chain id: the digest of all diff ids from the lowest layer up to
//! it (OCI image spec, config.md, "Layer ChainID"), for what it looks like depends on what
//! is below it. On disk it has a short number, because mount(2) takes a page of options.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::disk::{Disk, Place, Sync, Work};
use crate::error::{Doing, Result};
use crate::limits::Limits;
use crate::unpack::{self, KEPT, Lowers, RECIPE, Replay, Settled, TREE, Unpacked};

/// The name of a layer on this disk: `17` of `layers/17`.
pub(crate) type Number = u32;

/// What a layer is. Written to disk when the layer is whole, and when another blob turned out to hold it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) number: Number,
    /// The digest of this layer's tar and of all below it.
    pub(crate) chain_id: Digest,
    /// The digest of this layer's tar.
    pub(crate) diff_id: Digest,
    /// The length of the tar.
    pub(crate) tar_size: u64,
    /// What it takes on disk, in bytes.
    pub(crate) bytes: u64,
    /// What it takes on disk, in inodes.
    pub(crate) inodes: u64,
    /// Whether there are contents in `kept`.
    pub(crate) kept: bool,
    /// The boot in which it was made: in a later one it counts only if an image names it, for
    /// that is written after everything else is on the disk.
    pub(crate) boot: String,
    /// Digests of the streams that were seen to hold this tar. A manifest that names another has to prove that it holds
    /// the layer: its word would let one image show the layers of another, or take its place.
    #[serde(default)]
    pub(crate) blobs: Vec<Digest>,
}

impl Layer {
    /// Whether a stream with this digest is known to hold the layer.
    pub(crate) fn is_in(&self, blob: &Digest) -> bool {
        *blob == self.diff_id || self.blobs.contains(blob)
    }
}

/// The chain ids of a stack of diff ids, lowest first.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// A layer that is to be made.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The layer, as errors call it.
    pub(crate) what: String,
    /// Digest and size of the stream it comes in, where they are known.
    pub(crate) blob: Option<(Digest, u64)>,
    /// Digest of its tar, where it is known.
    pub(crate) diff_id: Option<Digest>,
}

/// A layer that is unpacked but has no place yet.
pub(crate) struct Fresh {
    work: Work,
    /// What it came in.
    blob: Option<Digest>,
    unpacked: Unpacked,
    /// Whether it was unpacked with the layers below known.
    knows_lowers: bool,
}

impl Fresh {
    /// The digest of what it came in.
    pub(crate) fn blob(&self) -> Option<Digest> {
        self.blob
    }

    /// The digest of its tar.
    pub(crate) fn diff_id(&self) -> Digest {
        self.unpacked.diff_id
    }

    /// The latest time in it, in seconds since 1970.
    pub(crate) fn newest(&self) -> i64 {
        self.unpacked.contents.newest
    }
}

/// The trees below a layer, given the numbers of its stack, lowest first.
pub(crate) fn lowers(disk: &Disk, below: &[Number]) -> Result<Lowers> {
    let open = |number: &Number| {
        disk.directory(Place::Layers, &number.to_string()).doing(|| {
            format!("open layer {}", disk.path(Place::Layers).join(number.to_string()).display())
        })
    };
    Ok(Lowers::new(below.iter().rev().map(open).collect::<Result<_>>()?))
}

/// Unpacks a stream into a new directory. Blocks.
///
/// # Errors
/// Those of [`unpack::unpack`]; then nothing is left.
pub(crate) fn unpack(
    disk: &Arc<Disk>,
    reader: impl BufRead + Send,
    wanted: &Wanted,
    lowers: Option<&Lowers>,
    limits: &Limits,
    cancel: &AtomicBool,
) -> Result<Fresh> {
    let work = disk.work()?;
    let dir = rustix::io::fcntl_dupfd_cloexec(work.dir(), 0).doing(|| "open a work directory")?;
    let job = unpack::Job {
        what: wanted.what.clone(),
        blob: wanted.blob,
        diff_id: wanted.diff_id,
        lowers,
        limits,
        cancel,
    };
    let unpacked = unpack::unpack(reader, dir, &job)?;
    let blob = wanted.blob.map(|(digest, _)| digest);
    Ok(Fresh { work, blob, unpacked, knows_lowers: lowers.is_some() })
}

/// Fits a layer to those below it and gives it its place. Blocks.
///
/// # Errors
/// Those of the disk; `Invalid` where the layer contradicts those below it.
pub(crate) fn commit(
    disk: &Arc<Disk>,
    mut fresh: Fresh,
    (number, chain_id): (Number, Digest),
    lowers: &Lowers,
    limits: &Limits,
    boot: &str,
) -> Result<Layer> {
    if settle(&fresh, lowers)? == Settled::UnpackAgain {
        // With the layers below known, nothing is left open.
        let blob = fresh.blob;
        fresh = Fresh { blob, ..unpack_again(disk, &fresh, lowers, limits)? };
        settle(&fresh, lowers)?;
    }
    let layer = place(disk, &fresh, number, chain_id, boot);
    if layer.is_err() {
        // Half of it may have its place; without a record it is nothing.
        discard(disk, number).ok();
    }
    layer
}

fn place(
    disk: &Disk,
    Fresh { work, unpacked, blob, .. }: &Fresh,
    number: Number,
    chain_id: Digest,
    boot: &str,
) -> Result<Layer> {
    let doing = || format!("give layer {} its place", unpacked.diff_id);
    let name = number.to_string();
    work.publish(RECIPE, Place::Recipes, &name).doing(doing)?;
    let kept = work.publish(KEPT, Place::Kept, &name).doing(doing)?;
    work.publish(TREE, Place::Layers, &name).doing(doing)?;
    let recipe = disk.file(Place::Recipes, &name).and_then(rustix::fs::fstat).doing(doing)?;
    let recipe_size = u64::try_from(recipe.st_size).unwrap_or(0);
    let layer = Layer {
        number,
        chain_id,
        diff_id: unpacked.diff_id,
        tar_size: unpacked.tar_size,
        bytes: unpacked.contents.bytes + recipe_size.next_multiple_of(4096),
        inodes: unpacked.contents.inodes + 1,
        kept,
        boot: boot.to_owned(),
        blobs: blob.iter().copied().collect(),
    };
    disk.write_record(Place::LayerRecords, &name, &layer, Sync::Later)?;
    Ok(layer)
}

fn settle(fresh: &Fresh, lowers: &Lowers) -> Result<Settled> {
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let tree = rustix::fs::openat(fresh.work.dir(), TREE, flags, rustix::fs::Mode::empty())
        .doing(|| "open the tree of a layer")?;
    match fresh.knows_lowers && fresh.unpacked.contents.implied.is_empty() {
        true => Ok(Settled::Yes),
        false => unpack::settle(tree, &fresh.unpacked.contents, lowers),
    }
}

/// A path of the layer leads through a link of a lower one: the same tar once more, with those known.
fn unpack_again(
    disk: &Arc<Disk>,
    fresh: &Fresh,
    lowers: &Lowers,
    limits: &Limits,
) -> Result<Fresh> {
    let wanted = Wanted {
        what: format!("layer {}", fresh.unpacked.diff_id),
        blob: None,
        diff_id: Some(fresh.unpacked.diff_id),
    };
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let open = |name: &str, more| {
        rustix::fs::openat(fresh.work.dir(), name, flags | more, rustix::fs::Mode::empty())
    };
    let directory = rustix::fs::OFlags::DIRECTORY;
    let doing = || format!("read {} again", wanted.what);
    let recipe = open(RECIPE, rustix::fs::OFlags::empty()).doing(doing)?;
    let tree = open(TREE, directory).doing(doing)?;
    let kept = open(KEPT, directory).ok();
    let replay = Replay::open(recipe.into(), runtime::root::Root::from_fd(tree), kept)?;
    let cancel = AtomicBool::new(false);
    unpack(disk, std::io::BufReader::new(replay), &wanted, Some(lowers), limits, &cancel)
}

/// The tar of a layer, made again.
///
/// # Errors
/// Those of the disk. What is read has to be compared with the diff id.
pub(crate) fn replay(disk: &Disk, layer: &Layer) -> Result<Replay> {
    let name = layer.number.to_string();
    let doing = || format!("read layer {}", layer.diff_id);
    let recipe = disk.file(Place::Recipes, &name).doing(doing)?;
    let tree = disk.directory(Place::Layers, &name).doing(doing)?;
    let kept = layer.kept.then(|| disk.directory(Place::Kept, &name)).transpose().doing(doing)?;
    Replay::open(recipe, runtime::root::Root::from_fd(tree), kept)
}

/// Moves all of a layer to the trash, its record first.
pub(crate) fn discard(disk: &Disk, number: Number) -> rustix::io::Result<()> {
    let name = number.to_string();
    disk.unlink(Place::LayerRecords, &name)?;
    for place in [Place::Layers, Place::Recipes, Place::Kept] {
        disk.discard(place, &name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let ids: Vec<Digest> = [b"a", b"b", b"c"].iter().map(|text| Digest::of(*text)).collect();
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], ids[0]);
        assert_eq!(chain[1], Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes()));
        assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], ids[2]).as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }
}
