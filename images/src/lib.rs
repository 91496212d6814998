//! Images: pull, import, list, remove, export.
//!
//! ```text
//! Images                  the whole API; clones share one store
//!   pull.rs               resolve, fetch and unpack, tag; equal pulls are one
//!   import.rs export.rs   files: OCI layouts, docker's archives, root file systems   archive.rs
//!   registry/             the only HTTP                              oci/   documents
//!   transfer.rs           a layer on its way, shared by all who want it   joined.rs
//!   snapshot.rs           a layer in its place       unpack/   stream -> tree + recipe, and back
//!   store.rs lookup.rs    what there is, in memory and in records
//!   gc.rs removal.rs      space comes back           disk.rs   directories and records
//! ```
//!
//! Invariants:
//! - An image is listed only when everything that it names is on the disk.
//! - The id of an image is the digest of its config; a layer is known by its chain id.
//!   Nothing else identifies content.
//! - Paths of a layer are resolved by descriptor inside its own directory, always.
//! - Lists and status calls touch neither disk nor network.
//! - What is read from outside has a cap in [`limits`], and what is waited for has an end.

mod archive;
pub mod digest;
mod disk;
pub mod error;
mod export;
mod gc;
mod image;
mod import;
mod joined;
pub mod limits;
mod lookup;
pub mod oci;
mod pull;
pub mod reference;
pub mod registry;
mod removal;
mod snapshot;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transfer;
mod unpack;

use std::path::PathBuf;
use std::sync::Arc;

pub use digest::Digest;
pub use error::{Error, Result};
pub use image::{Image, ImageId};
pub use import::Source;
pub use limits::Limits;
pub use oci::ImageConfig;
pub use pull::{LayerProgress, Progress, PullRequest, Pulled, Pulling, Stage, Step};
pub use reference::Reference;
pub use removal::remove_tree;
pub use transfer::LayerState;
pub use unpack::{Copied, Copy};

use crate::disk::Place;
use crate::oci::Platform;
use crate::pull::Puller;
use crate::store::{Hold, Store};
use crate::transfer::blocking;

/// How the store and the client are opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of the store, such as `/var/lib/berth/images`.
    pub directory: PathBuf,
    /// The registry client.
    pub registry: registry::Config,
    /// Tags and `name@digest` names, in full, of images that are always pinned.
    pub pinned: Vec<String>,
    /// What images are chosen for; nothing means this machine.
    pub platform: Option<Platform>,
}

/// All images of a node. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    puller: Arc<Puller>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("directory", &self.store().disk.path(Place::Layers)).finish()
    }
}

/// What the store takes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, in blocks of 4 KiB.
    pub bytes: u64,
    /// Files, directories and all else.
    pub inodes: u64,
}

/// The layers of an image for a container to mount. They stay while this lives, even if the image is removed.
#[derive(Debug)]
pub struct Lease {
    /// The directory that the names are in: `<root>/images/layers`.
    pub base: PathBuf,
    /// Names of the layers, top first, such as `17`: the lower directories of an overlay
    /// mount. None for an image without layers.
    pub lowers: Vec<String>,
    _hold: Hold,
}

/// Keeps an image marked as pinned while it lives.
#[derive(Debug)]
pub struct Pin {
    store: Arc<Store>,
    image: ImageId,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.store.unpin(self.image);
    }
}

/// What [`Images::prune`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Images that are gone.
    pub deleted: Vec<ImageId>,
    /// Bytes that come back, in the background.
    pub reclaimed: u64,
}

impl Images {
    /// Opens the store, and sweeps what an earlier daemon left half done. Blocks.
    ///
    /// Nothing is collected before [`Images::start_collecting`].
    ///
    /// # Errors
    /// `Unavailable` when another daemon has the store open; those of the disk. Damaged
    /// records are no error: they are set aside, and the log says so.
    pub fn open(config: Config) -> Result<Images> {
        let limits = config.registry.limits.clone();
        let store = Store::open(&config.directory, limits, config.pinned.clone())?;
        Ok(Images::with(store, config))
    }

    fn with(store: Arc<Store>, config: Config) -> Images {
        gc::empty_trash(&store);
        let platform = config.platform.unwrap_or_else(Platform::host);
        let client = registry::Client::new(config.registry);
        Images { puller: Arc::new(Puller::new(store, client, platform)) }
    }

    /// Says that all containers have taken their layers again: from now on, what nothing names goes.
    pub fn start_collecting(&self) {
        self.store().state().recovered = true;
        gc::sweep(self.store(), gc::Unclaimed::Keep);
    }

    fn store(&self) -> &Arc<Store> {
        &self.puller.store
    }

    /// The registry client, to explain how a pull would go.
    pub fn client(&self) -> &registry::Client {
        &self.puller.client
    }

    /// Begins a pull, or joins an equal one that runs. It goes on while somebody has the
    /// answer. Must be called on a tokio runtime.
    pub fn pull(&self, request: PullRequest) -> Pulling {
        self.puller.pull(request)
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Image> {
        self.store().list()
    }

    /// The image of a name: a tag, `name@digest`, docker's short forms, an id with or
    /// without `sha256:`, or the beginning of one, four digits at least.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what can be no name, and for the beginning of several ids.
    pub fn status(&self, name: &str) -> Result<Option<Image>> {
        self.store().find(name)
    }

    /// Removes the image of a name with all its other names; false where there is none.
    /// Containers keep their layers. The space comes back in the background.
    ///
    /// # Errors
    /// As [`Images::status`]; [`Error::Io`] when the disk refuses.
    pub async fn remove(&self, name: &str) -> Result<bool> {
        let Some(image) = self.status(name)? else { return Ok(false) };
        let store = Arc::clone(self.store());
        blocking(move || gc::remove(&store, &image.id)).await
    }

    /// Takes one tag away; the image stays, with its other names. False where there is no such tag.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses.
    pub async fn untag(&self, tag: &Reference) -> Result<bool> {
        let (store, tag) = (Arc::clone(self.store()), tag.clone());
        blocking(move || store.untag(&tag)).await
    }

    /// Removes images that no container uses and nothing has pinned: those without a tag, or all.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses.
    pub async fn prune(&self, all: bool) -> Result<Pruned> {
        let store = Arc::clone(self.store());
        let (deleted, reclaimed) = blocking(move || gc::prune(&store, all)).await?;
        Ok(Pruned { deleted, reclaimed })
    }

    /// What all images take on disk, from memory.
    pub fn usage(&self) -> Usage {
        let (bytes, inodes) = self.store().usage();
        Usage { bytes, inodes }
    }

    /// The config of an image, as its document has it.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that is not here; [`Error::Invalid`] when the document is damaged.
    pub fn config(&self, id: &ImageId) -> Result<ImageConfig> {
        let bytes = self.config_document(id)?;
        ImageConfig::parse(&bytes, &format!("config of image {id}"), &self.store().limits)
    }

    /// The bytes of the config of an image.
    ///
    /// # Errors
    /// As [`Images::config`].
    pub fn config_document(&self, id: &ImageId) -> Result<Vec<u8>> {
        let what = format!("image {id}");
        if self.store().record(id).is_none() {
            return Err(Error::NotFound { what });
        }
        let damaged =
            || Error::invalid(what, "its config is damaged on the disk; pull the image again");
        self.store().document(&id.digest()).ok_or_else(damaged)
    }

    /// Takes the layers of an image for a container.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that is not here.
    pub fn layers(&self, id: &ImageId) -> Result<Lease> {
        self.store().hold_image(id).map(|hold| self.lease(hold))
    }

    /// Takes layers again, by the names of an earlier [`Lease`], after a restart of the
    /// daemon: the image itself may be gone by then.
    ///
    /// # Errors
    /// [`Error::NotFound`] where a layer is not here, [`Error::Invalid`] for what is no name of one.
    pub fn lease_for(&self, id: &ImageId, lowers: &[String]) -> Result<Lease> {
        let number = |name: &String| {
            let number = name.parse().ok().filter(|number: &u32| number.to_string() == *name);
            number.ok_or_else(|| {
                let what = format!("layer {}", error::quoted(name, 40));
                Error::invalid(what, "must be a number, as a lease has it")
            })
        };
        let numbers: Vec<u32> = lowers.iter().rev().map(number).collect::<Result<_>>()?;
        self.store().hold(&numbers, Some(*id)).map(|hold| self.lease(hold))
    }

    fn lease(&self, hold: Hold) -> Lease {
        Lease {
            base: self.store().disk.path(Place::Layers),
            lowers: hold.numbers().iter().rev().map(u32::to_string).collect(),
            _hold: hold,
        }
    }

    /// Marks an image as pinned, so that kubelet does not collect it.
    pub fn pin(&self, id: &ImageId) -> Pin {
        self.store().pin(*id);
        Pin { store: Arc::clone(self.store()), image: *id }
    }

    /// Imports all images of an OCI layout or a `docker save` archive, or makes one of the
    /// tar of a root file system. `name` is for the only image there is; without it the
    /// names in the archive count. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Limit`], [`Error::NotFound`] for archives that cannot be right, [`Error::Io`] for the disk.
    pub async fn import(&self, source: Source, name: Option<Reference>) -> Result<Vec<ImageId>> {
        import::import(&self.puller, source, name).await
    }

    /// Writes an image as an OCI archive that docker loads too. Blocks.
    ///
    /// By a tag it carries that tag, else all that the image has. Layers are plain tars
    /// under their diff ids; the config, and so the id, is the one that came.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Io`] of `out` or the disk; [`Error::Invalid`] where a layer is damaged on the disk.
    pub fn export(&self, name: &str, out: &mut dyn std::io::Write) -> Result<()> {
        let missing = || Error::NotFound { what: format!("image {}", error::quoted(name, 300)) };
        let image = self.status(name)?.ok_or_else(missing)?;
        // Its layers stay until the last byte, whoever removes the image.
        let _hold = self.store().hold_image(&image.id)?;
        let record = self.store().record(&image.id).ok_or_else(missing)?;
        let full = name.parse::<Reference>().map(|reference| reference.to_string());
        let names = match full {
            Ok(full) if image.repo_tags.contains(&full) => vec![full],
            _ => image.repo_tags,
        };
        export::export(self.store(), &record, &names, out)
    }

    /// Waits until the space of everything that was removed has come back. Blocks, and may take a while.
    pub fn wait_for_space(&self) {
        self.store().sweeper.wait();
    }
}
