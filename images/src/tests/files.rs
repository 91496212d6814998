//! Import and export: what docker, skopeo and we ourselves write comes in, and goes out as it came.

use super::*;

/// A tar of files, as an archive of an image is.
fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    tar(&files.iter().map(|(name, content)| file(name, content.clone())).collect::<Vec<_>>())
}

fn blob(bytes: &[u8]) -> (String, Vec<u8>) {
    (format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes.to_vec())
}

/// The files of an OCI layout with these entries in its index.
fn layout(images: &[&TestImage], entries: &[serde_json::Value]) -> Vec<(String, Vec<u8>)> {
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": entries });
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    for image in images {
        files.extend([blob(&image.manifest), blob(&image.config)]);
        files.extend(image.layers.iter().map(|layer| blob(&layer.blob)));
    }
    // Last, as some writers put it: nothing may depend on the order.
    files.push(("index.json".to_owned(), serde_json::to_vec(&index).unwrap()));
    files
}

fn named(image: &TestImage, name: &str) -> serde_json::Value {
    let mut entry = descriptor(MANIFEST, &image.manifest);
    entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
    entry
}

impl Node {
    async fn import(&self, bytes: &[u8], name: Option<&str>) -> Result<Vec<ImageId>> {
        let path = self.temp.path().join("archive");
        fs::write(&path, bytes).unwrap();
        let name = name.map(|name| name.parse().unwrap());
        self.images().import(Source::Path(path), name).await
    }

    fn export(&self, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.images().export(name, &mut bytes).unwrap();
        bytes
    }
}

#[tokio::test]
async fn a_layout_comes_in_as_tar_compressed_or_directory() {
    let image = image("a");
    let files = layout(&[&image], &[named(&image, "example.io/app:v1")]);
    let plain = archive(&files);
    let zstd = zstd::stream::encode_all(&plain[..], 3).unwrap();
    for bytes in [&plain, &gzip(&plain), &zstd] {
        let node = Node::new();
        assert_eq!(node.import(bytes, None).await.unwrap(), [image.id()]);
        let found = node.images().status("example.io/app:v1").unwrap().unwrap();
        assert_eq!(found.repo_tags, ["example.io/app:v1"]);
        assert_eq!(found.repo_digests, [format!("example.io/app@{}", image.manifest_digest())]);
        node.check_whole(&image);
        assert_eq!(node.count("tmp"), 0);
    }
    let node = Node::new();
    let directory = node.temp.path().join("layout");
    for (name, content) in &files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let ids = node
        .images()
        .import(Source::Path(directory), Some("other:v2".parse().unwrap()))
        .await
        .unwrap();
    assert_eq!(ids, [image.id()]);
    assert_eq!(node.images().list()[0].repo_tags, ["docker.io/library/other:v2"]);
    node.check_whole(&image);
}

#[tokio::test]
async fn several_images_keep_their_names() {
    let (one, two) = (image("one"), image("two"));
    let mut of_docker = descriptor(MANIFEST, &two.manifest);
    of_docker["annotations"] = serde_json::json!({
        "io.containerd.image.name": "docker.io/library/two:v",
        "org.opencontainers.image.ref.name": "v",
    });
    let entries = [named(&one, "example.io/one:v"), named(&one, "example.io/one:w"), of_docker];
    let bytes = archive(&layout(&[&one, &two], &entries));
    let node = Node::new();
    let ids = node.import(&bytes, None).await.unwrap();
    assert_eq!(ids.len(), 2);
    let tags = |name: &str| node.images().status(name).unwrap().unwrap().repo_tags;
    assert_eq!(tags("example.io/one:v"), ["example.io/one:v", "example.io/one:w"]);
    assert_eq!(tags("two:v"), ["docker.io/library/two:v"]);
    let error = node.import(&bytes, Some("x")).await.unwrap_err();
    assert!(error.to_string().contains("2 images"), "{error}");
}

#[tokio::test]
async fn the_nodes_platform_is_chosen() {
    let (mine, other) = (image("mine"), image("other"));
    let entry = |image: &TestImage, architecture: &str| {
        let mut entry = descriptor(MANIFEST, &image.manifest);
        entry["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let host = oci::Platform::host().architecture;
    let entries = [entry(&other, "s390x"), entry(&mine, &host)];
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    let index = serde_json::to_vec(&index).unwrap();
    let mut behind_index = layout(&[&mine], &[descriptor(INDEX, &index)]);
    behind_index.push(blob(&index));
    for files in [layout(&[&mine], &entries), behind_index] {
        let node = Node::new();
        assert_eq!(node.import(&archive(&files), Some("x")).await.unwrap(), [mine.id()]);
        node.check_whole(&mine);
    }
    let node = Node::new();
    let error = node
        .import(&archive(&layout(&[], &[entries[0].clone(), entry(&mine, "riscv64")])), None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("there are: linux/s390x, linux/riscv64"), "{error}");
}

/// What `docker save` writes: before version 25 layers in directories, some of them links, then blobs.
fn docker_archive(image: &TestImage, is_old: bool) -> Vec<u8> {
    let mut items = Vec::new();
    let mut layers = Vec::new();
    for (index, layer) in image.layers.iter().enumerate() {
        let name = if is_old { format!("{index}abc/layer.tar") } else { blob(&layer.tar).0 };
        match is_old && index == 1 {
            true => {
                items.push(file("shared/layer.tar", layer.tar.clone()));
                items.push(testing::symlink(&name, "../shared/layer.tar"));
            }
            false => items.push(file(&name, layer.tar.clone())),
        }
        layers.push(name);
    }
    let config = if is_old { "abc.json".to_owned() } else { blob(&image.config).0 };
    items.push(file(&config, image.config.clone()));
    let manifest = serde_json::json!([
        { "Config": config, "RepoTags": ["web:v1", "example.io/web:v2"], "Layers": layers },
    ]);
    items.push(file("manifest.json", serde_json::to_vec(&manifest).unwrap()));
    tar(&items)
}

#[tokio::test]
async fn what_docker_saves_comes_in() {
    let image = image("a");
    for is_old in [true, false] {
        let node = Node::new();
        assert_eq!(node.import(&docker_archive(&image, is_old), None).await.unwrap(), [image.id()]);
        let found = node.images().status("web:v1").unwrap().unwrap();
        assert_eq!(found.repo_tags, ["docker.io/library/web:v1", "example.io/web:v2"]);
        node.check_whole(&image);
    }
}

#[tokio::test]
async fn a_root_file_system_becomes_the_same_image_each_time() {
    let bytes = tar(&[
        dir("etc"),
        file("etc/manifest.json", "[]"),
        file("manifest.json", "{\"not\": \"docker's\"}"),
        testing::Item { mtime: 1_800_000_000, ..file("etc/new", "x") },
    ]);
    let node = Node::new();
    let ids = node.import(&bytes, Some("root:v")).await.unwrap();
    assert_eq!(node.import(&gzip(&bytes), Some("root:w")).await.unwrap(), ids);
    let found = node.images().status("root:v").unwrap().unwrap();
    assert_eq!(found.created, 1_800_000_000_000_000_000);
    assert_eq!(found.repo_tags, ["docker.io/library/root:v", "docker.io/library/root:w"]);
    assert_eq!(node.read(&ids[0], "etc/new"), b"x");
    assert_eq!(node.count("layers"), 1);
    let config = node.images().config(&ids[0]).unwrap();
    assert_eq!(config.diff_ids, [Digest::of(&bytes)]);
}

#[tokio::test]
async fn an_exported_image_is_the_same_everywhere() {
    let (server, node, image) = (Server::start().await, Node::new(), image("a"));
    image.put_index(&server, "img", "v");
    let name = format!("{}/img:v", server.registry());
    node.pull(&name).await.unwrap();
    let first = node.export(&name);
    assert_eq!(node.export(&name), first, "two exports are equal");
    let other = Node::new();
    assert_eq!(other.import(&first, None).await.unwrap(), [image.id()]);
    other.check_whole(&image);
    let found = other.images().status(&name).unwrap().unwrap();
    assert_eq!(found.repo_tags, std::slice::from_ref(&name));
    // From here on not even the manifest changes: its layers are plain now.
    assert_eq!(other.export(&name), first);
    let third = Node::new();
    third.import(&first, None).await.unwrap();
    assert_eq!(third.images().status(&name).unwrap().unwrap().repo_digests, found.repo_digests);
    let chains = |node: &Node| {
        let record = node.images().store().record(&image.id()).unwrap();
        record.layers.iter().map(|layer| (layer.chain_id, layer.diff_id)).collect::<Vec<_>>()
    };
    assert_eq!(chains(&node), chains(&third));
}

#[tokio::test]
async fn an_export_by_id_carries_all_tags() {
    let node = Node::new();
    let image = image("a");
    let entries = [named(&image, "example.io/a:1"), named(&image, "example.io/b:2")];
    node.import(&archive(&layout(&[&image], &entries)), None).await.unwrap();
    let other = Node::new();
    other.import(&node.export(&image.id().to_string()), None).await.unwrap();
    assert_eq!(other.images().list()[0].repo_tags, ["example.io/a:1", "example.io/b:2"]);
    let other = Node::new();
    other.import(&node.export("example.io/b:2"), None).await.unwrap();
    assert_eq!(other.images().list()[0].repo_tags, ["example.io/b:2"]);
}

#[tokio::test]
async fn an_export_notices_what_has_changed_on_the_disk() {
    let node = Node::new();
    let image = image("a");
    node.import(&archive(&layout(&[&image], &[named(&image, "a:1")])), Some("a:1")).await.unwrap();
    let lease = node.images().layers(&image.id()).unwrap();
    let path = lease.base.join(&lease.lowers[2]).join("bin/x");
    for content in ["another program", "short", ""] {
        fs::write(&path, content).unwrap();
        let mut out = Vec::new();
        let error = node.images().export("a:1", &mut out).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    }
    let error = node.images().export("nothing", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
}

/// Archives that cannot be right leave nothing.
async fn check_bad(bytes: &[u8], problem: &str) {
    let node = Node::new();
    let error = node.import(bytes, None).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(problem), "{text}");
    node.wait_for_threads().await;
    node.images().prune(true).await.unwrap();
    node.check_empty();
}

#[tokio::test]
async fn archives_that_cannot_be_right_are_refused() {
    let image = image("a");
    let files = layout(&[&image], &[named(&image, "a:1")]);
    let without = |digest: Digest| {
        let name = format!("blobs/sha256/{}", digest.hex());
        archive(&files.iter().filter(|(other, _)| *other != name).cloned().collect::<Vec<_>>())
    };
    check_bad(&without(image.manifest_digest()), "manifest").await;
    check_bad(&without(image.id().digest()), "config").await;
    check_bad(&without(Digest::of(&image.layers[1].blob)), "layer").await;
    let changed = |digest: Digest| {
        let name = format!("blobs/sha256/{}", digest.hex());
        let mut files = files.clone();
        let found = files.iter_mut().find(|(other, _)| *other == name).unwrap();
        found.1[10] ^= 1;
        archive(&files)
    };
    check_bad(&changed(image.manifest_digest()), "digest").await;
    check_bad(&changed(image.id().digest()), "digest").await;
    check_bad(&changed(Digest::of(&image.layers[1].blob)), "layer").await;
    let whole = archive(&files);
    check_bad(&whole[..whole.len() / 2], "ends").await;
    check_bad(&gzip(&whole)[..100], "archive").await;
    check_bad(b"no tar at all", "ends too early").await;
    check_bad(&archive(&layout(&[], &[])), "names no image").await;
    let mut docker = docker_archive(&image, false);
    let at = docker.windows(6).position(|window| window == b"layers").unwrap_or(0);
    docker[at] ^= 0;
    check_bad(&docker[..docker.len() / 2 / 512 * 512], "").await;
    let node = Node::new();
    let directory = node.temp.path().join("empty");
    fs::create_dir(&directory).unwrap();
    let error = node.images().import(Source::Path(directory), None).await.unwrap_err();
    assert!(error.to_string().contains("no OCI layout"), "{error}");
}
