//! Layers: tar entries, a compression, and what is said about them.

use std::io::Write;

use anyhow::Result;
use bytes::Bytes;
use flate2::write::GzEncoder;

use super::tar::{BLOCK, Entry};
use super::{Content, digest_of};

/// How the blob of a layer is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// `tar`
    None,
    /// `tar+gzip`, what registries hold most of the time.
    #[default]
    Gzip,
    /// `tar+zstd`
    Zstd,
}

/// A layer in the making: entries in the order in which they are added.
#[derive(Clone, Debug, Default)]
pub struct LayerBuilder {
    tar: Vec<u8>,
    compression: Compression,
    media_type: Option<String>,
    tail: Vec<u8>,
    unfinished: bool,
}

/// A layer as a registry serves it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The blob.
    pub blob: Content,
    /// Digest of the plain tar, `sha256:...`.
    pub diff_id: String,
    /// How the blob is packed.
    pub compression: Compression,
    /// Whether the media type was given by the test and must stay.
    pub fixed_type: bool,
}

impl LayerBuilder {
    /// A layer without entries.
    pub fn new() -> LayerBuilder {
        LayerBuilder::default()
    }

    /// Adds any entry.
    pub fn entry(mut self, entry: Entry) -> LayerBuilder {
        entry.write(&mut self.tar);
        self
    }

    /// Adds entries.
    pub fn entries(self, entries: impl IntoIterator<Item = Entry>) -> LayerBuilder {
        entries.into_iter().fold(self, LayerBuilder::entry)
    }

    /// Adds a directory, mode 0755.
    pub fn dir(self, path: &str) -> LayerBuilder {
        self.entry(Entry::dir(path))
    }

    /// Adds a file, mode 0644.
    pub fn file(self, path: &str, data: impl Into<Vec<u8>>) -> LayerBuilder {
        self.entry(Entry::file(path, data))
    }

    /// Adds a file that can be run, mode 0755.
    pub fn program(self, path: &str, data: impl Into<Vec<u8>>) -> LayerBuilder {
        self.entry(Entry::file(path, data).mode(0o755))
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> LayerBuilder {
        self.entry(Entry::symlink(path, target))
    }

    /// Removes a path of lower layers.
    pub fn whiteout(self, path: &str) -> LayerBuilder {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let slash = if dir.is_empty() { "" } else { "/" };
        self.entry(Entry::file(format!("{dir}{slash}.wh.{name}"), ""))
    }

    /// Hides all that lower layers have in a directory.
    pub fn opaque(self, dir: &str) -> LayerBuilder {
        self.entry(Entry::file(format!("{dir}/.wh..wh..opq"), ""))
    }

    /// Adds bytes that need not be an entry at all.
    pub fn raw(mut self, bytes: &[u8]) -> LayerBuilder {
        self.tar.extend_from_slice(bytes);
        self
    }

    /// Chooses the packing.
    pub fn compression(self, compression: Compression) -> LayerBuilder {
        LayerBuilder { compression, ..self }
    }

    /// Claims a media type, whatever the bytes are.
    pub fn media_type(self, media_type: &str) -> LayerBuilder {
        LayerBuilder { media_type: Some(media_type.into()), ..self }
    }

    /// Bytes behind the end of the archive, inside the compression.
    pub fn tail(self, tail: Vec<u8>) -> LayerBuilder {
        LayerBuilder { tail, ..self }
    }

    /// Leaves out the two zero blocks that end an archive.
    pub fn unfinished(self) -> LayerBuilder {
        LayerBuilder { unfinished: true, ..self }
    }

    /// The plain tar.
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = self.tar.clone();
        if !self.unfinished {
            tar.resize(tar.len() + 2 * BLOCK, 0);
        }
        tar.extend_from_slice(&self.tail);
        tar
    }

    /// Packs the layer.
    pub fn build(self) -> Result<Layer> {
        let tar = self.tar();
        let blob = compress(&tar, self.compression)?;
        let media_type = match self.compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        let fixed_type = self.media_type.is_some();
        let media_type = self.media_type.unwrap_or_else(|| media_type.into());
        Ok(Layer {
            blob: Content::new(&media_type, blob),
            diff_id: digest_of(&tar),
            compression: self.compression,
            fixed_type,
        })
    }
}

/// Packs bytes as a layer is packed.
pub fn compress(bytes: &[u8], compression: Compression) -> Result<Bytes> {
    Ok(match compression {
        Compression::None => Bytes::copy_from_slice(bytes),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes)?;
            encoder.finish()?.into()
        }
        Compression::Zstd => zstd::encode_all(bytes, 1)?.into(),
    })
}
