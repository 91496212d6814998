//! An image as one file: an OCI layout in a tar, which `docker load` takes too.
//!
//! The layers are the plain tars, made again from trees and recipes, so their digests are
//! the diff ids, and the config, which is the image id, is the one that came. The
//! compressed bytes that a registry had are gone, so the manifest is a new one, unless
//! the image came with plain layers: then it is the very manifest, and exports of equal
//! images are equal to the byte.

use std::io::{self, Read, Write};

use serde_json::json;

use crate::digest::{Digest, HashingReader};
use crate::error::{Doing, Error, Result};
use crate::oci::{Document, MediaType};
use crate::registry::from_io;
use crate::snapshot::{self, Layer};
use crate::store::{ImageRecord, Store};

/// The annotation in which an index names a tag (OCI image spec, annotations.md).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation in which containerd and docker write a full name.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// How much of a layer is copied at once.
const COPY: usize = 256 << 10;

/// Writes an image to `out`, under these names. Blocks.
///
/// # Errors
/// Those of `out` and of the disk; `Invalid` where a layer is not what it was. What is
/// written then is no whole archive: its end is missing.
pub(crate) fn export(
    store: &Store,
    record: &ImageRecord,
    names: &[String],
    out: &mut dyn Write,
) -> Result<()> {
    let missing = |what: &str| Error::NotFound { what: format!("{what} of image {}", record.id) };
    let config = store.document(&record.id.digest()).ok_or_else(|| missing("the config"))?;
    let stored = store.document(&record.manifest).ok_or_else(|| missing("the manifest"))?;
    let (manifest, media_type) = manifest_for(store, record, &config, stored)?;
    let doing = || format!("export image {}", record.id);
    let index = index(&manifest, media_type.as_ref(), names);
    let mut tar = Tar { out };
    tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).doing(doing)?;
    tar.file("index.json", &index).doing(doing)?;
    tar.file("manifest.json", &docker_manifest(record, names)).doing(doing)?;
    let mut written = Vec::new();
    for document in [&manifest, &config] {
        let digest = Digest::of(document);
        written.push(digest);
        tar.file(&path(digest), document).doing(doing)?;
    }
    for layer in &record.layers {
        // An image may have one layer twice.
        if !written.contains(&layer.diff_id) {
            written.push(layer.diff_id);
            copy_layer(store, layer, &mut tar)?;
        }
    }
    tar.end().doing(doing)
}

/// The manifest to export: the one that came, if it names plain layers, else a new one that does.
fn manifest_for(
    store: &Store,
    record: &ImageRecord,
    config: &[u8],
    stored: Vec<u8>,
) -> Result<(Vec<u8>, MediaType)> {
    let what = format!("manifest {}", record.manifest);
    let fields: serde_json::Value = serde_json::from_slice(&stored).unwrap_or_default();
    if let Document::Manifest(manifest) = Document::parse(&stored, None, &what, &store.limits)? {
        let names = manifest.layers.iter().map(|layer| layer.descriptor.digest);
        if names.eq(record.layers.iter().map(|layer| layer.diff_id)) {
            let media_type = fields.get("mediaType").and_then(serde_json::Value::as_str);
            let media_type = media_type.map_or(MediaType::ImageManifest, MediaType::from);
            return Ok((stored, media_type));
        }
    }
    let layers: Vec<_> =
        record.layers.iter().map(|layer| (layer.diff_id, layer.tar_size)).collect();
    let annotations = fields.get("annotations").cloned();
    Ok((plain_manifest(config, &layers, annotations), MediaType::ImageManifest))
}

/// A manifest for a config and plain layers, lowest first. The same input gives the same bytes.
pub(crate) fn plain_manifest(
    config: &[u8],
    layers: &[(Digest, u64)],
    annotations: Option<serde_json::Value>,
) -> Vec<u8> {
    let descriptor = |media_type: MediaType, digest: Digest, size: u64| json!({ "mediaType": media_type.as_ref(), "digest": digest, "size": size });
    let layers: Vec<_> = layers
        .iter()
        .map(|(diff_id, size)| descriptor(MediaType::ImageLayer, *diff_id, *size))
        .collect();
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageManifest.as_ref(),
        "config": descriptor(MediaType::ImageConfig, Digest::of(config), config.len() as u64),
        "layers": layers,
    });
    if let Some(annotations) = annotations.filter(serde_json::Value::is_object) {
        manifest["annotations"] = annotations;
    }
    serde_json::to_vec(&manifest).expect("plain data")
}

/// The index of the layout: one entry for each name.
fn index(manifest: &[u8], media_type: &str, names: &[String]) -> Vec<u8> {
    let (digest, size) = (Digest::of(manifest), manifest.len() as u64);
    let entry = |annotations: serde_json::Value| {
        let mut entry = json!({ "mediaType": media_type, "digest": digest, "size": size });
        if annotations.is_object() {
            entry["annotations"] = annotations;
        }
        entry
    };
    let mut entries: Vec<_> = names
        .iter()
        .map(|name| {
            let tag = name.rsplit_once(':').map_or(name.as_str(), |(_, tag)| tag);
            entry(json!({ CONTAINERD_NAME: name, REF_NAME: tag }))
        })
        .collect();
    if entries.is_empty() {
        entries.push(entry(serde_json::Value::Null));
    }
    let media_type = MediaType::ImageIndex;
    let index =
        json!({ "schemaVersion": 2, "mediaType": media_type.as_ref(), "manifests": entries });
    serde_json::to_vec(&index).expect("plain data")
}

/// What older docker reads instead of the index.
fn docker_manifest(record: &ImageRecord, names: &[String]) -> Vec<u8> {
    let layers: Vec<_> = record.layers.iter().map(|layer| path(layer.diff_id)).collect();
    let image =
        json!([{ "Config": path(record.id.digest()), "RepoTags": names, "Layers": layers }]);
    serde_json::to_vec(&image).expect("plain data")
}

fn path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Makes the tar of a layer again, and checks that it is the same.
fn copy_layer(store: &Store, layer: &Layer, tar: &mut Tar<'_>) -> Result<()> {
    let doing = || format!("export layer {}", layer.diff_id);
    let mut content = HashingReader::new(snapshot::replay(&store.disk, layer)?);
    tar.header(&path(layer.diff_id), layer.tar_size).doing(doing)?;
    let mut buffer = vec![0; COPY];
    loop {
        let count = content.read(&mut buffer).map_err(|error| from_io(error, doing))?;
        if count == 0 {
            break;
        }
        // More than the header says would be read as something else by whoever gets it.
        if content.hasher.size() > layer.tar_size {
            return Err(Error::invalid(doing(), "its tree or recipe has changed on the disk"));
        }
        tar.out.write_all(&buffer[..count]).doing(doing)?;
    }
    let HashingReader { hasher, .. } = content;
    if hasher.size() != layer.tar_size || hasher.finish() != layer.diff_id {
        let problem =
            "its files or recipe have changed on the disk; remove the image and pull it again";
        return Err(Error::invalid(doing(), problem));
    }
    tar.pad(layer.tar_size).doing(doing)
}

/// A tar of plain files that belong to root and have no time.
struct Tar<'a> {
    out: &'a mut dyn Write,
}

impl Tar<'_> {
    fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.header(name, content.len() as u64)?;
        self.out.write_all(content)?;
        self.pad(content.len() as u64)
    }

    fn header(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.out.write_all(&crate::unpack::file_header(name, size))
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = size.next_multiple_of(512) - size;
        self.out.write_all(&vec![0; usize::try_from(padding).expect("less than a block")])
    }

    fn end(self) -> io::Result<()> {
        self.out.write_all(&[0; 1024])?;
        self.out.flush()
    }
}
