//! The whole store against a registry of ours, without root.

mod crash;
mod files;
#[cfg(feature = "kernel-tests")]
mod kernel;
mod pulls;
mod removals;
mod restarts;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::registry::tests::server::{Body, Reply, Server};
use crate::registry::{Credentials, ProxySettings};
use crate::testing::{Item, dir, file, tar};
use crate::*;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layer of an image that is made for a test.
#[derive(Clone)]
struct TestLayer {
    tar: Vec<u8>,
    blob: Vec<u8>,
}

/// An image that is made for a test.
#[derive(Clone)]
struct TestImage {
    layers: Vec<TestLayer>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn layer(items: &[Item]) -> TestLayer {
    let tar = tar(items);
    TestLayer { blob: gzip(&tar), tar }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
}

fn image_of(layers: &[TestLayer], user: &str) -> TestImage {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(&layer.tar)).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "os": "linux",
        "architecture": oci::Platform::host().architecture,
        "created": "2024-02-29T12:30:15Z",
        "config": { "User": user, "Labels": { "a": "b" }, "Cmd": ["/bin/x"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    }))
    .unwrap();
    let blobs: Vec<_> = layers.iter().map(|layer| descriptor(GZIP, &layer.blob)).collect();
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": blobs,
    }))
    .unwrap();
    TestImage { layers: layers.to_vec(), config, manifest }
}

/// An image of three layers; `seed` tells images apart.
fn image(seed: &str) -> TestImage {
    image_of(
        &[
            layer(&[
                dir("bin"),
                file("bin/x", format!("{seed} program")).mode(0o755),
                dir("tmp").mode(0o1777),
            ]),
            layer(&[file("etc/conf", seed.repeat(30_000)), file("tmp/note", "n")]),
            layer(&[file("etc/conf", format!("{seed} changed"))]),
        ],
        "1000:1000",
    )
}

impl TestImage {
    fn id(&self) -> ImageId {
        ImageId::of(Digest::of(&self.config))
    }

    fn manifest_digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Puts it on a server under a tag.
    fn put(&self, server: &Server, repository: &str, tag: &str) {
        for layer in &self.layers {
            server.put(&format!("{repository}/blobs/x"), GZIP, layer.blob.clone());
        }
        server.put(&format!("{repository}/blobs/x"), CONFIG, self.config.clone());
        server.put(&format!("{repository}/manifests/{tag}"), MANIFEST, self.manifest.clone());
    }

    /// Puts it on a server behind an index; returns the index's digest.
    fn put_index(&self, server: &Server, repository: &str, tag: &str) -> Digest {
        self.put(server, repository, tag);
        let mut entry = descriptor(MANIFEST, &self.manifest);
        entry["platform"] = serde_json::json!({
            "os": "linux", "architecture": oci::Platform::host().architecture,
        });
        let index =
            serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        server.put(
            &format!("{repository}/manifests/{tag}"),
            INDEX,
            serde_json::to_vec(&index).unwrap(),
        )
    }
}

/// A node with a store.
struct Node {
    temp: tempfile::TempDir,
    limits: Limits,
    images: Option<Images>,
}

impl Node {
    fn new() -> Node {
        Node::with(Limits::default())
    }

    fn with(limits: Limits) -> Node {
        let limits = Limits { retry_pause: Duration::from_millis(1), ..limits };
        let mut node = Node { temp: tempfile::tempdir().unwrap(), limits, images: None };
        let images = Images::open(node.config()).unwrap();
        images.start_collecting();
        node.images = Some(images);
        node
    }

    fn config(&self) -> Config {
        Config {
            directory: self.directory(),
            registry: registry::Config {
                hosts_dirs: Vec::new(),
                proxy: ProxySettings::default(),
                ranges: 1,
                local_ranges: 1,
                limits: self.limits.clone(),
            },
            pinned: vec!["127.0.0.1:1/pinned:latest".to_owned()],
            platform: None,
        }
    }

    fn directory(&self) -> PathBuf {
        self.temp.path().join("images")
    }

    /// Closes the store and opens it again.
    async fn restart(&mut self) {
        self.close();
        let images = self.open().await;
        images.start_collecting();
        self.images = Some(images);
    }

    /// Opens the store. Threads and tasks of one that was closed may still be about to end.
    async fn open(&self) -> Images {
        loop {
            match Images::open(self.config()) {
                Err(Error::Unavailable { .. }) => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    }

    /// Closes the store, whoever still deletes in it.
    fn close(&mut self) {
        if let Some(images) = self.images.take() {
            images.wait_for_space();
        }
    }

    fn images(&self) -> &Images {
        self.images.as_ref().unwrap()
    }

    async fn pull(&self, reference: &str) -> Result<Pulled> {
        self.images().pull(request(reference)).wait().await
    }

    /// The file of an image, as its layers show it.
    fn read(&self, id: &ImageId, path: &str) -> Vec<u8> {
        let lease = self.images().layers(id).unwrap();
        let found = lease.lowers.iter().map(|lower| lease.base.join(lower).join(path));
        fs::read(found.into_iter().find(|path| path.exists()).unwrap()).unwrap()
    }

    /// Waits until what was given up has been noticed by the threads that worked on it.
    async fn wait_for_threads(&self) {
        while fs::read_dir(self.directory().join("tmp")).unwrap().count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// How many names there are in a directory of the store.
    fn count(&self, directory: &str) -> usize {
        self.images().wait_for_space();
        fs::read_dir(self.directory().join(directory)).unwrap().count()
    }

    /// Nothing is left but what images and open work need.
    #[track_caller]
    fn check_empty(&self) {
        for directory in [
            "layers",
            "recipes",
            "kept",
            "blobs",
            "records/layers",
            "records/images",
            "tmp",
            "trash",
        ] {
            assert_eq!(self.count(directory), 0, "{directory}");
        }
        assert_eq!(self.images().usage(), Usage { bytes: 0, inodes: 0 });
    }

    /// The image is whole: every layer gives its tar again.
    #[track_caller]
    fn check_whole(&self, image: &TestImage) {
        let record = self.images().store().record(&image.id()).expect("the image is here");
        assert_eq!(record.layers.len(), image.layers.len());
        for (found, made) in record.layers.iter().zip(&image.layers) {
            let mut bytes = Vec::new();
            let mut replay = snapshot::replay(&self.images().store().disk, found).unwrap();
            std::io::Read::read_to_end(&mut replay, &mut bytes).unwrap();
            assert!(bytes == made.tar, "layer {} differs", found.number);
        }
        assert_eq!(self.images().config_document(&image.id()).unwrap(), image.config);
    }
}

fn request(reference: &str) -> PullRequest {
    PullRequest {
        reference: reference.parse().unwrap(),
        credentials: Credentials::anonymous(),
        platform: None,
    }
}

/// How often the blob of a layer was fetched.
fn fetches(server: &Server, layer: &TestLayer) -> usize {
    let digest = Digest::of(&layer.blob).to_string();
    server.log().iter().filter(|line| line.starts_with("GET") && line.contains(&digest)).count()
}

/// All names below a directory with their kinds and contents, to compare two states of a disk.
fn tree_of(path: &Path) -> Vec<String> {
    let mut list = Vec::new();
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().strip_prefix(path).unwrap().display().to_string();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
                list.push(format!("{name}/"));
            } else if entry.file_type().unwrap().is_file() {
                list.push(format!("{name} {}", Digest::of(&fs::read(entry.path()).unwrap())));
            } else {
                list.push(name);
            }
        }
    }
    list.sort();
    list
}
