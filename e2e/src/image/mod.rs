//! Images made by hand: honest ones and hostile ones.
//!
//! An [`Image`] is what a registry would serve: manifests and blobs by digest. It can be pushed (`push.rs`), served by
//! the fault server (`fault`), or written to disk as an OCI layout.

pub mod base;
pub mod layer;
pub mod tar;

use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

pub use layer::{Compression, Layer, LayerBuilder};
pub use tar::{Entry, LongNames};

/// Media types of the two families.
pub mod media {
    /// OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker's manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker's layer.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}

/// Bytes that are named by their digest.
#[derive(Clone, Debug)]
pub struct Content {
    /// What a descriptor and the Content-Type say it is.
    pub media_type: String,
    /// `sha256:...`; of the bytes, unless a test lies.
    pub digest: String,
    /// What a descriptor says its size is.
    pub size: u64,
    /// The bytes themselves.
    pub bytes: Bytes,
}

impl Content {
    /// Content with the right digest and size.
    pub fn new(media_type: &str, bytes: impl Into<Bytes>) -> Content {
        let bytes = bytes.into();
        Content {
            media_type: media_type.into(),
            digest: digest_of(&bytes),
            size: bytes.len() as u64,
            bytes,
        }
    }

    /// JSON content.
    pub fn json(media_type: &str, value: &Value) -> Content {
        Content::new(media_type, value.to_string().into_bytes())
    }

    /// The descriptor that names it.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// `sha256:...` of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The architecture of this machine in the words of Go, which images use.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An image or an index of images, with all that it names.
#[derive(Clone, Debug)]
pub struct Image {
    /// What a tag points to.
    pub root: Content,
    /// Manifests that an index names.
    pub manifests: Vec<Content>,
    /// Configs and layers.
    pub blobs: Vec<Content>,
    /// Digest of the config: the image id.
    pub id: String,
}

impl Image {
    /// An index over images, one for each platform (`os/architecture[/variant]`).
    pub fn index(images: &[(&Image, &str)]) -> Image {
        let describe = |(image, platform): &(&Image, &str)| {
            let mut parts = platform.split('/');
            let mut descriptor = image.root.descriptor();
            descriptor["platform"] = json!({"os": parts.next(), "architecture": parts.next()});
            if let Some(variant) = parts.next() {
                descriptor["platform"]["variant"] = json!(variant);
            }
            descriptor
        };
        let docker =
            images.iter().any(|(image, _)| image.root.media_type == media::DOCKER_MANIFEST);
        let media_type = if docker { media::DOCKER_LIST } else { media::INDEX };
        let manifests: Vec<Value> = images.iter().map(describe).collect();
        let root = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        let here = format!("linux/{}", architecture());
        let ours =
            images.iter().find(|(_, platform)| platform.starts_with(&here)).or(images.first());
        Image {
            root: Content::json(media_type, &root),
            manifests: images
                .iter()
                .flat_map(|(image, _)| {
                    std::iter::once(image.root.clone()).chain(image.manifests.clone())
                })
                .collect(),
            blobs: images.iter().flat_map(|(image, _)| image.blobs.clone()).collect(),
            id: ours.map(|(image, _)| image.id.clone()).unwrap_or_default(),
        }
    }

    /// Changes the JSON that a tag points to; its digest follows.
    pub fn patch_root(mut self, patch: impl FnOnce(&mut Value)) -> Result<Image> {
        let mut value: Value = serde_json::from_slice(&self.root.bytes)?;
        patch(&mut value);
        let media_type = value["mediaType"].as_str().unwrap_or(&self.root.media_type).to_owned();
        self.root = Content::json(&media_type, &value);
        Ok(self)
    }

    /// The blob of a layer, counted from the bottom.
    pub fn layer(&self, index: usize) -> &Content {
        &self.blobs[index + 1]
    }

    /// Writes an OCI layout that knows the image by a name.
    pub fn write_layout(&self, dir: &Path, name: &str) -> Result<()> {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        for content in std::iter::once(&self.root).chain(&self.manifests).chain(&self.blobs) {
            let file =
                content.digest.strip_prefix("sha256:").context("a digest of another algorithm")?;
            std::fs::write(blobs.join(file), &content.bytes)?;
        }
        let mut descriptor = self.root.descriptor();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index =
            json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": [descriptor]});
        std::fs::write(dir.join("index.json"), index.to_string())?;
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(())
    }
}

/// An image of one platform in the making.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    layers: Vec<Layer>,
    config: Map<String, Value>,
    platform: (String, String),
    docker: bool,
    diff_ids: Option<Vec<String>>,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        ImageBuilder::new()
    }
}

impl ImageBuilder {
    /// An image for this machine without layers and with an empty `config`.
    pub fn new() -> ImageBuilder {
        ImageBuilder {
            layers: Vec::new(),
            config: Map::new(),
            platform: ("linux".into(), architecture().into()),
            docker: false,
            diff_ids: None,
        }
    }

    /// Puts a layer on top.
    pub fn layer(mut self, layer: LayerBuilder) -> Result<ImageBuilder> {
        self.layers.push(layer.build()?);
        Ok(self)
    }

    /// Puts a layer on top that is built already.
    pub fn built(mut self, layer: Layer) -> ImageBuilder {
        self.layers.push(layer);
        self
    }

    /// Sets a field of the runtime configuration: `User`, `Env`, `Entrypoint`, `Cmd`, `WorkingDir`, `Volumes`,
    /// `StopSignal`, `Labels`, or one that does not exist.
    pub fn config(mut self, field: &str, value: Value) -> ImageBuilder {
        self.config.insert(field.into(), value);
        self
    }

    /// Makes it an image for another platform.
    pub fn platform(self, os: &str, architecture: &str) -> ImageBuilder {
        ImageBuilder { platform: (os.into(), architecture.into()), ..self }
    }

    /// Uses docker's media types instead of OCI's.
    pub fn docker(self) -> ImageBuilder {
        ImageBuilder { docker: true, ..self }
    }

    /// Claims other diff ids than the layers have.
    pub fn diff_ids(self, diff_ids: Vec<String>) -> ImageBuilder {
        ImageBuilder { diff_ids: Some(diff_ids), ..self }
    }

    /// The image with its config and manifest.
    pub fn build(self) -> Image {
        let diff_ids = self
            .diff_ids
            .unwrap_or_else(|| self.layers.iter().map(|layer| layer.diff_id.clone()).collect());
        let config = json!({
            "created": "2026-01-01T00:00:00Z",
            "os": self.platform.0,
            "architecture": self.platform.1,
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (manifest_type, config_type) = if self.docker {
            (media::DOCKER_MANIFEST, media::DOCKER_CONFIG)
        } else {
            (media::MANIFEST, media::CONFIG)
        };
        let config = Content::json(config_type, &config);
        let mut blobs = vec![config.clone()];
        for mut layer in self.layers {
            if self.docker && !layer.fixed_type && layer.compression == Compression::Gzip {
                layer.blob.media_type = media::DOCKER_LAYER.into();
            }
            blobs.push(layer.blob);
        }
        let layers: Vec<Value> = blobs[1..].iter().map(Content::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type, "config": config.descriptor(), "layers": layers,
        });
        Image {
            root: Content::json(manifest_type, &manifest),
            manifests: Vec::new(),
            id: config.digest,
            blobs,
        }
    }
}
