//! Pulls: what becomes visible, what is shared, and what is left when one fails.

use super::*;

#[tokio::test]
async fn a_pulled_image_has_all_its_names_and_layers() {
    let (server, node, image) = (Server::start().await, Node::new(), image("a"));
    let index = image.put_index(&server, "img", "v1");
    let name = format!("{}/img", server.registry());
    let pulled = node.pull(&format!("{name}:v1")).await.unwrap();
    assert_eq!((pulled.image_id, pulled.digest), (image.id(), index));
    let steps: Vec<_> = pulled.timeline.iter().map(|step| step.name).collect();
    assert_eq!(steps, ["resolve", "layers", "sync", "record"]);

    let listed = node.images().list();
    assert_eq!(listed.len(), 1);
    let found = &listed[0];
    assert_eq!(found.id, image.id());
    assert_eq!(found.repo_tags, [format!("{name}:v1")]);
    assert_eq!(found.repo_digests, [format!("{name}@{index}")]);
    assert_eq!((found.user.as_str(), found.created), ("1000:1000", 1_709_209_815_000_000_000));
    assert_eq!(found.labels["a"], "b");
    assert!(found.size > 30_000 && !found.pinned);
    let id = image.id().to_string();
    for alias in [
        &format!("{name}:v1"),
        &format!("{name}@{index}"),
        &format!("{name}:other@{index}"),
        &id,
        &id["sha256:".len()..],
        &id["sha256:".len()..][..12],
        &id[..20],
    ] {
        assert_eq!(node.images().status(alias).unwrap().as_ref(), Some(found), "{alias}");
    }
    for absent in [name.as_str(), "nginx", "0000000000", &format!("{name}@{}", Digest::of(b"x"))] {
        assert_eq!(node.images().status(absent).unwrap(), None, "{absent}");
    }
    for malformed in ["", "a b", "A/b:c", "a@sha256:12"] {
        assert!(node.images().status(malformed).is_err(), "{malformed}");
    }
    node.check_whole(&image);
    assert_eq!(node.read(&image.id(), "etc/conf"), b"a changed");
    let config = node.images().config(&image.id()).unwrap();
    assert_eq!(config.cmd, ["/bin/x"]);
    let usage = node.images().usage();
    assert!(usage.bytes >= found.size && usage.inodes > 10, "{usage:?}");
}

#[tokio::test]
async fn short_names_are_those_of_docker() {
    let node = Node::new();
    let tar = tar(&[file("f", "x")]);
    let path = node.temp.path().join("root.tar");
    fs::write(&path, tar).unwrap();
    let name = "docker.io/library/web:latest".parse().unwrap();
    let id = node.images().import(Source::Path(path), Some(name)).await.unwrap()[0];
    for alias in
        ["web", "web:latest", "library/web", "docker.io/web", "index.docker.io/library/web:latest"]
    {
        assert_eq!(node.images().status(alias).unwrap().map(|image| image.id), Some(id), "{alias}");
    }
}

#[tokio::test]
async fn by_digest_there_is_no_tag() {
    let (server, node, image) = (Server::start().await, Node::new(), image("a"));
    image.put(&server, "img", "v1");
    let name = format!("{}/img", server.registry());
    let digest = image.manifest_digest();
    for reference in [format!("{name}@{digest}"), format!("{name}:v1@{digest}")] {
        node.pull(&reference).await.unwrap();
        let listed = node.images().list();
        assert_eq!(listed[0].repo_tags, Vec::<String>::new());
        assert_eq!(listed[0].repo_digests, [format!("{name}@{digest}")]);
    }
}

#[tokio::test]
async fn the_same_content_of_two_registries_is_one_image() {
    let (first, second) = (Server::start().await, Server::start().await);
    let (node, image) = (Node::new(), image("a"));
    image.put(&first, "one", "v1");
    // The other one has compressed it anew.
    let mut other = image.clone();
    for layer in &mut other.layers {
        layer.blob = zstd::stream::encode_all(&layer.tar[..], 3).unwrap();
    }
    let other = TestImage { manifest: image_of(&other.layers, "1000:1000").manifest, ..other };
    other.put(&second, "two", "v2");
    node.pull(&format!("{}/one:v1", first.registry())).await.unwrap();
    let pulled = node.pull(&format!("{}/two:v2", second.registry())).await.unwrap();
    assert_eq!(pulled.image_id, image.id());
    // That its layers are the same had to be seen once: a manifest may say anything.
    assert!(other.layers.iter().all(|layer| fetches(&second, layer) == 1));
    node.pull(&format!("{}/two:v2", second.registry())).await.unwrap();
    assert!(other.layers.iter().all(|layer| fetches(&second, layer) == 1));
    let listed = node.images().list();
    assert_eq!(listed.len(), 1);
    let tags = [format!("{}/one:v1", first.registry()), format!("{}/two:v2", second.registry())];
    assert_eq!(listed[0].repo_tags, tags);
    let digests = [
        format!("{}/two@{}", second.registry(), other.manifest_digest()),
        format!("{}/one@{}", first.registry(), image.manifest_digest()),
    ];
    assert_eq!(listed[0].repo_digests, digests);
    assert_eq!(node.count("layers"), 3);
}

/// Whoever knows a diff id does not get the layer by that, nor can he give it another content.
#[tokio::test]
async fn a_layer_that_is_here_is_not_had_by_its_name() {
    let (server, node) = (Server::start().await, Node::new());
    let image = image("a");
    image.put(&server, "one", "v");
    node.pull(&format!("{}/one:v", server.registry())).await.unwrap();
    let mut claim = image.clone();
    claim.layers[0] = layer(&[file("other", "text")]);
    let mut manifest: serde_json::Value = serde_json::from_slice(&claim.manifest).unwrap();
    manifest["layers"][0] = serde_json::json!(descriptor(GZIP, &claim.layers[0].blob));
    claim.manifest = serde_json::to_vec(&manifest).unwrap();
    claim.put(&server, "claim", "v");
    let error = node.pull(&format!("{}/claim:v", server.registry())).await.unwrap_err();
    assert!(error.to_string().contains("diff id"), "{error}");
    assert_eq!(node.images().list().len(), 1);
}

#[tokio::test]
async fn equal_pulls_share_one_transfer_and_so_do_equal_layers() {
    let (server, node) = (Server::start().await, Node::new());
    let shared = layer(&[file("base", "b".repeat(100_000))]);
    let one = image_of(&[shared.clone(), layer(&[file("one", "1")])], "");
    let two = image_of(&[shared.clone(), layer(&[file("two", "2")])], "");
    one.put(&server, "one", "v");
    two.put(&server, "two", "v");
    let (of_one, of_two) =
        (format!("{}/one:v", server.registry()), format!("{}/two:v", server.registry()));
    let other_user =
        PullRequest { credentials: Credentials::basic("some", "body"), ..request(&of_one) };
    let other_user = node.images().pull(other_user);
    let (first, second, third, fourth) =
        tokio::join!(node.pull(&of_one), node.pull(&of_one), node.pull(&of_two), other_user.wait());
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(fourth.unwrap().image_id, one.id());
    assert_eq!(third.unwrap().image_id, two.id());
    for layer in one.layers.iter().chain(&two.layers[1..]) {
        assert_eq!(fetches(&server, layer), 1);
    }
    let manifests =
        server.log().iter().filter(|line| line.contains("GET /v2/one/manifests")).count();
    assert_eq!(manifests, 2, "one for each user");
    node.check_whole(&one);
    node.check_whole(&two);
}

#[tokio::test]
async fn progress_tells_of_every_layer() {
    let (server, node, image) = (Server::start().await, Node::new(), image("a"));
    image.put(&server, "img", "v");
    let digest = Digest::of(&image.layers[1].blob).to_string();
    server.queue(&digest, [Reply::Good(|bytes| Body::Stall(bytes, 10))]);
    let pulling = node.images().pull(request(&format!("{}/img:v", server.registry())));
    assert_eq!(pulling.progress(), Progress { stage: Stage::Resolving, layers: Vec::new() });
    let is_stuck = |progress: &Progress| {
        progress.layers.len() == 3
            && progress.layers[0].state == LayerState::Done
            && progress.layers[1].state == LayerState::Fetching
            && progress.layers[1].fetched == 10
    };
    while !is_stuck(&pulling.progress()) {
        tokio::task::yield_now().await;
    }
    let progress = pulling.progress();
    assert_eq!(progress.stage, Stage::Fetching);
    assert_eq!(progress.layers[0].fetched, image.layers[0].blob.len() as u64);
    assert_eq!(progress.layers[0].size, progress.layers[0].fetched);
    assert_eq!(progress.layers[1].digest, Digest::of(&image.layers[1].blob));
}

#[tokio::test]
async fn a_pull_is_given_up_when_the_last_one_who_waits_goes() {
    let (server, mut node, image) = (Server::start().await, Node::new(), image("a"));
    image.put(&server, "img", "v");
    let reference = format!("{}/img:v", server.registry());
    let digest = Digest::of(&image.layers[1].blob).to_string();
    server.queue(&digest, [Reply::Good(|bytes| Body::Stall(bytes, 10))]);
    let first = node.images().pull(request(&reference));
    let second = node.images().pull(request(&reference));
    let is_stuck = |progress: Progress| {
        progress.layers.len() == 3
            && progress.layers[0].state == LayerState::Done
            && progress.layers[1].fetched > 0
    };
    while !is_stuck(first.progress()) {
        tokio::task::yield_now().await;
    }
    drop(first);
    assert_eq!(second.progress().layers[1].fetched, 10);
    drop(second);
    node.wait_for_threads().await;
    assert_eq!(node.count("trash"), 0);
    assert!(node.images().list().is_empty());
    node.pull(&reference).await.unwrap();
    node.check_whole(&image);
    // The layer that was finished is not fetched again, whatever became of the others.
    assert_eq!(fetches(&server, &image.layers[0]), 1);
    node.restart().await;
    node.check_whole(&image);
}

/// An image whose second layer is wrong in some way is refused, and only sound layers stay.
async fn check_bad_layer(limits: Limits, spoil: impl FnOnce(&mut TestImage), problem: &str) {
    let (server, node, mut image) = (Server::start().await, Node::with(limits), image("a"));
    spoil(&mut image);
    image.put(&server, "img", "v");
    let reference = format!("{}/img:v", server.registry());
    let error = node.pull(&reference).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(problem), "{text}");
    assert!(node.images().list().is_empty());
    node.wait_for_threads().await;
    for directory in ["trash", "kept", "blobs", "records/images"] {
        assert_eq!(node.count(directory), 0, "{directory} after: {text}");
    }
    assert!(node.count("layers") <= 1);
    node.images().prune(true).await.unwrap();
    node.check_empty();
}

#[tokio::test]
async fn layers_that_are_not_what_they_should_be_are_refused() {
    let usual = Limits::default;
    check_bad_layer(
        usual(),
        |image| {
            // The config says something else: E-09.
            let other = image_of(
                &[image.layers[0].clone(), layer(&[file("x", "")]), image.layers[2].clone()],
                "",
            );
            image.layers[1] = other.layers[1].clone();
            let manifest: serde_json::Value = serde_json::from_slice(&other.manifest).unwrap();
            let mut mixed = manifest.clone();
            mixed["config"] = descriptor(CONFIG, &image.config);
            image.manifest = serde_json::to_vec(&mixed).unwrap();
        },
        "where the image config says",
    )
    .await;
    let spoil_blob = |change: fn(&mut Vec<u8>)| {
        move |image: &mut TestImage| {
            let diff_ids = image.config.clone();
            change(&mut image.layers[1].blob);
            let manifest = image_of(&image.layers, "1000:1000").manifest;
            let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
            manifest["config"] = descriptor(CONFIG, &diff_ids);
            image.manifest = serde_json::to_vec(&manifest).unwrap();
        }
    };
    check_bad_layer(
        usual(),
        spoil_blob(|blob| blob.truncate(blob.len() / 2)),
        "cannot be inflated",
    )
    .await;
    check_bad_layer(usual(), spoil_blob(|blob| blob.extend(b"tail")), "cannot be inflated").await;
    check_bad_layer(
        usual(),
        spoil_blob(|blob| *blob = b"\xfd7zXZ\0 and so on".to_vec()),
        "xz is not supported",
    )
    .await;
    check_bad_layer(
        usual(),
        spoil_blob(|blob| *blob = gzip(&tar(&[file("../x", "")]))),
        "part \"..\"",
    )
    .await;
    let small = Limits { tar_bytes: limits::Bytes(20_000), ..usual() };
    check_bad_layer(small, |_| {}, "limits.tar_bytes").await;
    let few = Limits { tar_entries: 3, ..usual() };
    let many = |blob: &mut Vec<u8>| {
        *blob = gzip(&tar(&(0..9).map(|n| file(&n.to_string(), "")).collect::<Vec<_>>()))
    };
    check_bad_layer(few, spoil_blob(many), "limits.tar_entries").await;
}

#[tokio::test]
async fn what_a_host_sends_wrong_is_noticed() {
    let (server, node, image) = (Server::start().await, Node::new(), image("a"));
    image.put(&server, "img", "v");
    let digest = Digest::of(&image.layers[1].blob).to_string();
    server.queue(
        &digest,
        [Reply::Changed(|_, bytes| {
            let mut changed = bytes.to_vec();
            let middle = changed.len() / 2;
            changed[middle] ^= 1;
            *bytes = changed.into();
        })],
    );
    let reference = format!("{}/img:v", server.registry());
    let error = node.pull(&reference).await.unwrap_err();
    assert!(
        matches!(&error, Error::Shared(error) if matches!(**error, Error::Invalid { .. })),
        "{error}"
    );
    node.pull(&reference).await.unwrap();
    assert_eq!(fetches(&server, &image.layers[1]), 2);
    node.check_whole(&image);
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_with_its_digest() {
    let (server, mut node) = (Server::start().await, Node::new());
    let (old, new) = (image("old"), image("new"));
    let reference = format!("{}/img:v", server.registry());
    old.put(&server, "img", "v");
    node.pull(&reference).await.unwrap();
    new.put(&server, "img", "v");
    node.pull(&reference).await.unwrap();
    let check = |node: &Node| {
        assert_eq!(node.images().status(&reference).unwrap().unwrap().id, new.id());
        let left = node.images().status(&old.id().to_string()).unwrap().unwrap();
        assert_eq!(left.repo_tags, Vec::<String>::new());
        let digest = format!("{}/img@{}", server.registry(), old.manifest_digest());
        assert_eq!(left.repo_digests, [digest]);
        node.check_whole(&old);
        node.check_whole(&new);
    };
    check(&node);
    node.restart().await;
    check(&node);
}

#[tokio::test]
async fn pulling_what_is_here_asks_for_no_layer_and_writes_nothing() {
    let (server, node, image) = (Server::start().await, Node::new(), image("a"));
    image.put(&server, "img", "v");
    let reference = format!("{}/img:v", server.registry());
    node.pull(&reference).await.unwrap();
    let before = (tree_of(&node.directory()), node.images().list());
    let pulled = node.pull(&reference).await.unwrap();
    assert_eq!(pulled.image_id, image.id());
    assert_eq!((tree_of(&node.directory()), node.images().list()), before);
    assert!(image.layers.iter().all(|layer| fetches(&server, layer) == 1));
}

#[tokio::test]
async fn an_image_may_have_no_layer_or_one_twice() {
    let (server, node) = (Server::start().await, Node::new());
    let none = image_of(&[], "");
    let twice = layer(&[file("f", "x")]);
    let twice = image_of(&[twice.clone(), twice], "");
    for (name, image) in [("none", &none), ("twice", &twice)] {
        image.put(&server, name, "v");
        node.pull(&format!("{}/{name}:v", server.registry())).await.unwrap();
        node.check_whole(image);
    }
    assert!(node.images().layers(&none.id()).unwrap().lowers.is_empty());
    assert_eq!(node.images().layers(&twice.id()).unwrap().lowers.len(), 2);
    assert!(node.images().status(&none.id().to_string()).unwrap().unwrap().size > 0);
}

#[tokio::test]
async fn what_the_registry_has_not_is_not_found() {
    let (server, node) = (Server::start().await, Node::new());
    let error = node.pull(&format!("{}/img:v", server.registry())).await.unwrap_err();
    assert!(
        matches!(&error, Error::Shared(error) if matches!(**error, Error::NotFound { .. })),
        "{error}"
    );
    node.check_empty();
}
