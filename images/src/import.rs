//! Images from files: an OCI layout, what `docker save` writes, or a root file system.
//!
//! OCI image spec, image-layout.md; docker's image spec v1.2 and v1.3, "Combined Image
//! JSON + Filesystem Changeset Format" (`manifest.json`).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use crate::archive::{Archive, Part};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::export::{CONTAINERD_NAME, REF_NAME, plain_manifest};
use crate::image::{ImageId, rfc3339};
use crate::joined::Cancel;
use crate::limits::Limits;
use crate::oci::{Descriptor, Document, ImageConfig, Index, Kind, Manifest, Platform};
use crate::pull::{Puller, Watch, is_disk_full};
use crate::reference::Reference;
use crate::snapshot::{self, Wanted};
use crate::store::{self, Hold, Ready, Store};
use crate::transfer::{Plan, Source as LayerSource, Unplaced, blocking};

/// What is imported.
#[derive(Debug)]
pub enum Source {
    /// An archive, or the directory of an OCI layout.
    Path(PathBuf),
    /// An archive that is open, and what errors call it.
    File(File, String),
}

/// One image of an archive.
struct Found {
    config: Bytes,
    /// The manifest as it came, or nothing where the archive has none.
    manifest: Option<(Bytes, Manifest)>,
    indexes: Vec<Bytes>,
    /// What a name of the image leads to.
    target: Option<Digest>,
    /// Layers, lowest first: the part, and digest and size of its bytes where they are known.
    layers: Vec<(Part, Option<(Digest, u64)>)>,
    names: Vec<Reference>,
}

/// The annotation by which docker names an image in a layout, and the rest of an entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Imports all images of a source, and gives `name` to the only one.
///
/// # Errors
/// `Invalid` and `Limit` for what cannot be right, `Io` for the disk. Images before the one that failed stay.
pub(crate) async fn import(
    puller: &Arc<Puller>,
    source: Source,
    name: Option<Reference>,
) -> Result<Vec<ImageId>> {
    let done = steps(puller, source, name).await;
    if done.as_ref().is_err_and(is_disk_full) {
        crate::gc::sweep(&puller.store, crate::gc::Unclaimed::Discard);
    }
    done
}

async fn steps(
    puller: &Arc<Puller>,
    source: Source,
    name: Option<Reference>,
) -> Result<Vec<ImageId>> {
    let store = Arc::clone(&puller.store);
    let platform = puller.platform.clone();
    let (archive, images) = blocking(move || {
        let archive = open(source, &store)?;
        let images = images(&archive, &platform, &store.limits)?;
        Ok((Arc::new(archive), images))
    })
    .await?;
    let Some(mut images) = images else {
        return Ok(vec![root_file_system(puller, archive, name).await?]);
    };
    if let Some(name) = name {
        match images.as_mut_slice() {
            [image] => image.names = vec![name],
            images => {
                let problem = format!(
                    "the archive has {} images, and one cannot be told from the others; import it without a name",
                    images.len()
                );
                return Err(Error::invalid(format!("name {name}"), problem));
            }
        }
    }
    let mut ids = Vec::new();
    for image in images {
        let id = add(puller, &archive, image).await?;
        // Two names of one image may be two entries.
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn open(source: Source, store: &Store) -> Result<Archive> {
    match source {
        Source::Path(path) => Archive::open_path(&path, &store.disk, &store.limits),
        Source::File(file, what) => Archive::open_file(file, &what, &store.disk, &store.limits),
    }
}

/// The images of an archive; nothing where it is a root file system.
fn images(archive: &Archive, platform: &Platform, limits: &Limits) -> Result<Option<Vec<Found>>> {
    if archive.has("oci-layout") && archive.has("index.json") {
        return layout(archive, platform, limits).map(Some);
    }
    if let Some(images) = docker_manifest(archive, limits)? {
        let found = images.into_iter().map(|image| docker_image(archive, image, limits));
        return found.collect::<Result<_>>().map(Some);
    }
    match archive {
        Archive::Tar { .. } => Ok(None),
        Archive::Directory(_) => Err(Error::invalid(
            "the directory",
            "is no OCI layout (oci-layout, index.json) and was not made from docker save (manifest.json); to import a root file system, make a tar of it",
        )),
    }
}

fn layout(archive: &Archive, platform: &Platform, limits: &Limits) -> Result<Vec<Found>> {
    let bytes = needed(archive, "index.json", limits)?;
    let Document::Index(index) = Document::parse(&bytes, None, "index.json", limits)? else {
        return Err(Error::invalid("index.json", "must be an index"));
    };
    // Entries of one name are one image for several platforms, unless they name none.
    let mut groups: BTreeMap<Option<String>, Vec<Descriptor>> = BTreeMap::new();
    for entry in index.manifests {
        if Kind::of(entry.media_type.as_ref()).is_some() {
            groups.entry(name_of(&entry)).or_default().push(entry);
        }
    }
    let mut found: Vec<Found> = Vec::new();
    for (name, entries) in groups {
        let names: Vec<Reference> = name.and_then(|name| name.parse().ok()).into_iter().collect();
        let is_choice = entries.len() > 1 && entries.iter().all(|entry| entry.platform.is_some());
        let chosen = match is_choice {
            true => vec![Index { manifests: entries }.choose(platform, "index.json")?.clone()],
            false => entries,
        };
        for entry in chosen {
            let image = layout_image(archive, &entry, names.clone(), platform, limits)?;
            match found.iter_mut().find(|other| other.is_same(&image)) {
                Some(other) => other.names.extend(image.names),
                None => found.push(image),
            }
        }
    }
    if found.is_empty() {
        return Err(Error::invalid("index.json", "names no image"));
    }
    Ok(found)
}

/// The name that an entry of a layout has: docker and containerd write it in full; by the
/// spec it may be a tag alone, which is no name.
fn name_of(entry: &Descriptor) -> Option<String> {
    let full = entry.annotations.get(CONTAINERD_NAME);
    let plain = entry.annotations.get(REF_NAME).filter(|name| name.contains(['/', ':']));
    full.or(plain).cloned()
}

fn layout_image(
    archive: &Archive,
    entry: &Descriptor,
    names: Vec<Reference>,
    platform: &Platform,
    limits: &Limits,
) -> Result<Found> {
    let mut indexes = Vec::new();
    let mut entry = entry.clone();
    let target = entry.digest;
    let (manifest_bytes, manifest) = loop {
        let what = format!("manifest {}", entry.digest);
        let bytes =
            blob(archive, &entry, &what, (limits.manifest_bytes.0, "manifest_bytes"), limits)?;
        match Document::parse(&bytes, Some(entry.media_type.as_ref()), &what, limits)? {
            Document::Manifest(manifest) => break (bytes, manifest),
            Document::Index(index) => {
                if indexes.len() as u64 >= limits.index_depth {
                    return Err(limits.passed(format!("{what}: indexes in indexes"), "index_depth"));
                }
                entry = index.choose(platform, &what)?.clone();
                indexes.push(bytes);
            }
        }
    };
    let what = format!("config {}", manifest.config.digest);
    let config =
        blob(archive, &manifest.config, &what, (limits.config_bytes.0, "config_bytes"), limits)?;
    let layer = |layer: &crate::oci::Layer| {
        let descriptor = &layer.descriptor;
        let part = archive.part(&blob_path(descriptor.digest));
        let part = part.ok_or_else(|| Error::NotFound {
            what: format!("layer {} in the archive", descriptor.digest),
        })?;
        Ok((part, Some((descriptor.digest, descriptor.size))))
    };
    let layers = manifest.layers.iter().map(layer).collect::<Result<_>>()?;
    let manifest = Some((manifest_bytes, manifest));
    Ok(Found { config, manifest, indexes, target: Some(target), layers, names })
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A document of a layout, checked against its descriptor.
fn blob(
    archive: &Archive,
    descriptor: &Descriptor,
    what: &str,
    (cap, row): (u64, &str),
    limits: &Limits,
) -> Result<Bytes> {
    let bytes = archive
        .read(&blob_path(descriptor.digest), cap, row, limits)?
        .ok_or_else(|| Error::NotFound { what: format!("{what} in the archive") })?;
    if bytes.len() as u64 != descriptor.size || Digest::of(&bytes) != descriptor.digest {
        return Err(Error::invalid(what, "has not the digest and size of its descriptor"));
    }
    Ok(bytes.into())
}

fn needed(archive: &Archive, name: &str, limits: &Limits) -> Result<Bytes> {
    let bytes = archive.read(name, limits.manifest_bytes.0, "manifest_bytes", limits)?;
    bytes.map(Bytes::from).ok_or_else(|| Error::NotFound { what: format!("{name} in the archive") })
}

/// What `docker save` wrote, if this is that: a root file system may have a `manifest.json` of its own.
fn docker_manifest(archive: &Archive, limits: &Limits) -> Result<Option<Vec<DockerImage>>> {
    let row = "manifest_bytes";
    let Some(bytes) = archive.read("manifest.json", limits.manifest_bytes.0, row, limits)? else {
        return Ok(None);
    };
    let images: Option<Vec<DockerImage>> = serde_json::from_slice(&bytes).ok();
    let Some(images) =
        images.filter(|images| images.iter().any(|image| archive.has(&image.config)))
    else {
        return Ok(None);
    };
    if images.len() as u64 > limits.index_entries {
        return Err(limits.passed("manifest.json", "index_entries"));
    }
    Ok(Some(images))
}

fn docker_image(archive: &Archive, image: DockerImage, limits: &Limits) -> Result<Found> {
    if image.layers.len() as u64 > limits.layers {
        return Err(limits.passed("manifest.json", "layers"));
    }
    let config = archive.read(&image.config, limits.config_bytes.0, "config_bytes", limits)?;
    let missing = |name: &str| {
        let name = crate::error::quoted(name, 100);
        Error::NotFound { what: format!("{name} in the archive, which manifest.json names,") }
    };
    let config = config.ok_or_else(|| missing(&image.config))?;
    let layer =
        |name: &String| archive.part(name).map(|part| (part, None)).ok_or_else(|| missing(name));
    let names = image.repo_tags.unwrap_or_default();
    Ok(Found {
        config: config.into(),
        manifest: None,
        indexes: Vec::new(),
        target: None,
        layers: image.layers.iter().map(layer).collect::<Result<_>>()?,
        names: names.iter().map(|name| name.parse()).collect::<Result<_>>()?,
    })
}

impl Found {
    fn is_same(&self, other: &Found) -> bool {
        self.target.is_some() && self.target == other.target
    }
}

/// Puts one image into the store.
async fn add(puller: &Arc<Puller>, archive: &Arc<Archive>, image: Found) -> Result<ImageId> {
    let limits = &puller.store.limits;
    let id = Digest::of(&image.config);
    let what = format!("image {id} of the archive");
    let config = ImageConfig::parse(&image.config, &what, limits)?;
    config.runs_on(&puller.platform, &what)?;
    if config.diff_ids.len() != image.layers.len() {
        let (layers, ids) = (image.layers.len(), config.diff_ids.len());
        let problem = format!("has {layers} layers, and its config names {ids} diff ids");
        return Err(Error::invalid(what, problem));
    }
    let chain_ids = snapshot::chain_ids(&config.diff_ids);
    let layers = image.layers.iter().zip(&config.diff_ids).zip(chain_ids);
    let plans: Vec<Plan> = layers
        .map(|(((part, blob), diff_id), chain_id)| Plan {
            wanted: Wanted {
                what: format!("{what}: layer {diff_id}"),
                blob: *blob,
                diff_id: Some(*diff_id),
            },
            chain_id,
            source: LayerSource::Archive(Arc::clone(archive), part.clone()),
        })
        .collect();
    let layers = puller.layers(&plans, &Watch::new()).await?;
    let manifest = match image.manifest {
        Some((bytes, _)) => bytes,
        None => manifest_of(&puller.store, &image.config, &layers).into(),
    };
    let target = image.target.unwrap_or_else(|| Digest::of(&manifest));
    let ready = Ready {
        config: Arc::new(config),
        config_document: document(image.config),
        manifest: document(manifest),
        indexes: image.indexes.into_iter().map(document).collect(),
        reference: None,
        target,
        layers,
    };
    tag_all(&puller.store, ready, image.names).await
}

/// Stores an image under all of its names, or under none.
async fn tag_all(store: &Arc<Store>, ready: Ready, names: Vec<Reference>) -> Result<ImageId> {
    let store = Arc::clone(store);
    blocking(move || {
        let mut ready = ready;
        let (id, _) = store.tag(&ready)?;
        for name in names {
            ready.reference = Some(name);
            store.tag(&ready)?;
        }
        Ok(id)
    })
    .await
}

fn document(bytes: Bytes) -> store::Document {
    store::Document { digest: Digest::of(&bytes), bytes }
}

/// The manifest of an image that came without one: its layers are plain tars.
fn manifest_of(store: &Store, config: &[u8], layers: &Hold) -> Vec<u8> {
    let layers = layers.numbers().iter().filter_map(|number| store.layer(*number));
    let layers: Vec<_> = layers.map(|layer| (layer.diff_id, layer.tar_size)).collect();
    plain_manifest(config, &layers, None)
}

/// Makes an image of one layer out of a tar of a root file system.
async fn root_file_system(
    puller: &Arc<Puller>,
    archive: Arc<Archive>,
    name: Option<Reference>,
) -> Result<ImageId> {
    let (store, platform) = (Arc::clone(&puller.store), puller.platform.clone());
    let ready = blocking(move || {
        let whole = archive.whole().expect("a directory is no root file system");
        let wanted = Wanted { what: "root file system".to_owned(), blob: None, diff_id: None };
        let stream = archive.open(&whole)?;
        // With no layer below, the chain id is the diff id.
        let layer = Unplaced::unpack(&store, stream, &wanted, Some(&[]), &Cancel::default())?;
        let (diff_id, newest) = (layer.fresh().diff_id(), layer.fresh().newest());
        let config = config_of(&platform, diff_id, newest);
        let hold = layer.commit(&store, diff_id, &[])?;
        let manifest = Bytes::from(manifest_of(&store, &config, &hold));
        Ok(Ready {
            config: Arc::new(ImageConfig::parse(
                &config,
                "config of the root file system",
                &store.limits,
            )?),
            config_document: document(config.into()),
            target: Digest::of(&manifest),
            manifest: document(manifest),
            indexes: Vec::new(),
            reference: None,
            layers: hold,
        })
    })
    .await?;
    tag_all(&puller.store, ready, name.into_iter().collect()).await
}

/// A config for one layer. It is as old as the newest file, so the same tar is the same image again.
fn config_of(platform: &Platform, diff_id: Digest, newest: i64) -> Vec<u8> {
    let created = rfc3339(newest);
    let config = serde_json::json!({
        "created": created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{
            "created": created,
            "created_by": "berth image import",
            "comment": "imported root file system",
        }],
    });
    serde_json::to_vec(&config).expect("plain data")
}
