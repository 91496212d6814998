//! The documents of an image: descriptors, manifests, indexes, image configs.
//!
//! OCI image spec v1.1 and docker's schema 2, which differ in media types only. The raw
//! bytes stay the truth: digests are over them, so documents are read here, never written.

mod config;
mod platform;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use config::{History, ImageConfig};
pub use oci_spec::image::MediaType;
pub use platform::Platform;

use crate::digest::Digest;
use crate::error::{Error, Result, quoted, shown};
use crate::limits::Limits;

/// Docker's type of a manifest: "Image Manifest Version 2, Schema 2".
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's type of an index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's type of an image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker's type of a layer.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// What a document is, whichever of its two spellings was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A list of layers and a config.
    Manifest,
    /// A list of manifests, one for each platform.
    Index,
}

impl Kind {
    /// The kind that a media type names. Parameters such as `; charset=utf-8` and case do not matter.
    pub fn of(media_type: &str) -> Option<Kind> {
        let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is = |oci: MediaType, docker: &str| essence == oci.as_ref() || essence == docker;
        if is(MediaType::ImageManifest, DOCKER_MANIFEST) {
            Some(Kind::Manifest)
        } else if is(MediaType::ImageIndex, DOCKER_INDEX) {
            Some(Kind::Index)
        } else {
            None
        }
    }

    /// With its article, for a sentence.
    fn name(self) -> &'static str {
        match self {
            Kind::Manifest => "a manifest",
            Kind::Index => "an index",
        }
    }
}

/// Names content by digest and size (descriptor.md). Its `urls` and `data` are not read:
/// a layer comes from the registry that was asked, or not at all (CVE-2020-15157).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: MediaType,
    /// SHA-256 of the content.
    pub digest: Digest,
    /// Length of the content in bytes.
    pub size: u64,
    /// The platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Notes, such as the name of an image in the index of a layout.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How the tar of a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// What the type of a layer says, in OCI's and docker's spelling.
    ///
    /// Layers that may not be distributed further (OCI's `nondistributable`, docker's
    /// `foreign`) are layers like others: the registry has them, or says that it has not.
    pub fn of(media_type: &MediaType) -> Option<Compression> {
        let text = media_type.as_ref();
        let kind = if let Some(oci) = text.strip_prefix("application/vnd.oci.image.layer.") {
            oci.strip_prefix("nondistributable.").unwrap_or(oci).strip_prefix("v1.")?
        } else {
            let docker = text.strip_prefix("application/vnd.docker.image.rootfs.")?;
            docker.strip_prefix("foreign.").unwrap_or(docker).strip_prefix("diff.")?
        };
        match kind {
            "tar" => Some(Compression::None),
            "tar+gzip" | "tar.gzip" => Some(Compression::Gzip),
            "tar+zstd" | "tar.zstd" => Some(Compression::Zstd),
            _ => None,
        }
    }
}

/// A layer as the manifest has it, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The compressed bytes.
    pub descriptor: Descriptor,
    /// How to read them.
    pub compression: Compression,
}

/// The parts of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The image config; its digest is the image id.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

/// The manifests of one image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// In the order of the document, which breaks ties.
    pub manifests: Vec<Descriptor>,
}

/// What the name of an image leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

/// The fields that decide what a document is. Lists stay unread until that is known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or an index. `what` names it in errors; `content_type` is what the
    /// registry called it, where a registry did.
    ///
    /// A document that could be read as both is refused, and so is one whose own type,
    /// whose header and whose shape disagree (CVE-2021-41190): then two readers could see
    /// two images behind one digest. Docker's and OCI's spelling of a type count as one.
    ///
    /// # Errors
    /// [`Error::Limit`] for one too long or with too many parts, [`Error::Invalid`] for all else.
    pub fn parse(
        bytes: &[u8],
        content_type: Option<&str>,
        what: &str,
        limits: &Limits,
    ) -> Result<Document> {
        if bytes.len() as u64 > limits.manifest_bytes.0 {
            return Err(limits.passed(what, "manifest_bytes"));
        }
        let raw: RawDocument = parse_json(bytes, what)?;
        let schema_1 =
            |text: &str| text.starts_with("application/vnd.docker.distribution.manifest.v1+");
        if raw.fs_layers.is_some()
            || raw.schema_version == Some(1)
            || content_type.is_some_and(schema_1)
        {
            return Err(Error::invalid(
                what,
                "is in docker's schema 1, which nobody has written since 2017; push the image again with a current tool",
            ));
        }
        if raw.schema_version != Some(2) {
            return Err(Error::invalid(what, "schemaVersion must be 2"));
        }
        let kind = match (&raw.manifests, raw.layers.is_some() || raw.config.is_some()) {
            (Some(_), true) => {
                return Err(Error::invalid(
                    what,
                    "has the fields of a manifest (config, layers) and of an index (manifests); it must be one of them",
                ));
            }
            (Some(_), false) => Kind::Index,
            (None, true) => Kind::Manifest,
            (None, false) => {
                return Err(Error::invalid(
                    what,
                    "is neither a manifest (config, layers) nor an index (manifests)",
                ));
            }
        };
        agree(kind, raw.media_type.as_deref(), content_type, what)?;
        match kind {
            Kind::Index => index(raw.manifests.unwrap_or_default(), what, limits),
            Kind::Manifest => manifest(raw, what, limits),
        }
    }

    /// What the document is.
    pub fn kind(&self) -> Kind {
        match self {
            Document::Manifest(_) => Kind::Manifest,
            Document::Index(_) => Kind::Index,
        }
    }
}

/// The field `mediaType` and the header must name the kind that the shape has.
fn agree(kind: Kind, field: Option<&str>, header: Option<&str>, what: &str) -> Result<()> {
    if let Some(field) = field.filter(|field| Kind::of(field) != Some(kind)) {
        return Err(Error::invalid(
            what,
            format!("has the shape of {} and the mediaType {}", kind.name(), quoted(field, 100)),
        ));
    }
    // A registry that says "text/plain" says nothing; one that names the other kind lies.
    if let Some(header) =
        header.filter(|header| Kind::of(header).is_some_and(|named| named != kind))
    {
        return Err(Error::invalid(
            what,
            format!("has the shape of {} and came as {}", kind.name(), quoted(header, 100)),
        ));
    }
    Ok(())
}

fn index(manifests: Vec<Descriptor>, what: &str, limits: &Limits) -> Result<Document> {
    if manifests.len() as u64 > limits.index_entries {
        return Err(limits.passed(what, "index_entries"));
    }
    Ok(Document::Index(Index { manifests }))
}

fn manifest(raw: RawDocument, what: &str, limits: &Limits) -> Result<Document> {
    let config = raw
        .config
        .ok_or_else(|| Error::invalid(what, "has no config: it is no image of schema 2"))?;
    let is_config =
        config.media_type == MediaType::ImageConfig || config.media_type.as_ref() == DOCKER_CONFIG;
    if !is_config {
        let named = raw.artifact_type.as_deref().unwrap_or(config.media_type.as_ref());
        return Err(Error::invalid(
            what,
            format!("is no container image but an artifact of type {}", quoted(named, 100)),
        ));
    }
    if config.size > limits.config_bytes.0 {
        return Err(limits.passed(format!("{what}: config {}", config.digest), "config_bytes"));
    }
    let layers = raw.layers.unwrap_or_default();
    if layers.len() as u64 > limits.layers {
        return Err(limits.passed(what, "layers"));
    }
    let read = |descriptor: Descriptor| {
        let named = || format!("{what}: layer {}", descriptor.digest);
        let Some(compression) = Compression::of(&descriptor.media_type) else {
            let media_type = quoted(descriptor.media_type.as_ref(), 100);
            return Err(Error::invalid(
                named(),
                format!("has the type {media_type}; known are tar, tar+gzip and tar+zstd"),
            ));
        };
        if descriptor.size > limits.layer_bytes.0 {
            return Err(limits.passed(named(), "layer_bytes"));
        }
        Ok(Layer { descriptor, compression })
    };
    let layers = layers.into_iter().map(read).collect::<Result<_>>()?;
    Ok(Document::Manifest(Manifest { config, layers }))
}

impl Manifest {
    /// Checks what only both documents together can show: one diff id for each layer.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the numbers differ.
    pub fn matches(&self, config: &ImageConfig, what: &str) -> Result<()> {
        if self.layers.len() == config.diff_ids.len() {
            return Ok(());
        }
        Err(Error::invalid(
            what,
            format!(
                "has {} layers, and its config {} names {} diff ids; the numbers must be equal",
                self.layers.len(),
                self.config.digest,
                config.diff_ids.len()
            ),
        ))
    }

    /// Bytes of all layers, compressed.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.descriptor.size))
    }
}

impl Index {
    /// The manifest for a machine, with the order of preference of [`Platform::rank`].
    ///
    /// An index of one entry that names no platform is taken as it is: its config says what it is for.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the list of platforms that there are.
    pub fn choose(&self, host: &Platform, what: &str) -> Result<&Descriptor> {
        let usable = |entry: &&Descriptor| Kind::of(entry.media_type.as_ref()).is_some();
        let ranked = self.manifests.iter().filter(usable).filter_map(|entry| {
            entry
                .platform
                .as_ref()
                .and_then(|platform| host.rank(platform))
                .map(|rank| (rank, entry))
        });
        // min_by_key keeps the first of equals.
        if let Some((_, entry)) = ranked.min_by_key(|(rank, _)| *rank) {
            return Ok(entry);
        }
        let mut nameless =
            self.manifests.iter().filter(usable).filter(|entry| entry.platform.is_none());
        if let (Some(entry), None) = (nameless.next(), nameless.next()) {
            return Ok(entry);
        }
        let mut present: Vec<String> = self
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .map(|platform| shown(&platform.to_string(), 60))
            .collect();
        present.dedup();
        present.truncate(50);
        let present = if present.is_empty() { "none".to_owned() } else { present.join(", ") };
        Err(Error::NotFound { what: format!("{what} for {host} (there are: {present})") })
    }
}

/// JSON to a type, with an error that names the document and the field, and stays short.
fn parse_json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    let mut document = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut document)
        .map_err(|error| error.to_string())
        .and_then(|parsed| document.end().map(|()| parsed).map_err(|error| error.to_string()))
        .map_err(|problem| Error::invalid(what, shown(&problem, 200)))
}

/// Real documents write null where they mean an empty list.
fn or_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
