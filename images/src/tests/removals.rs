//! Removing: names go at once, space comes back, and containers keep what they use.

use super::*;

async fn node_with(images: &[(&str, &TestImage)]) -> (Server, Node) {
    let (server, node) = (Server::start().await, Node::new());
    for (name, image) in images {
        image.put(&server, name, "v");
        node.pull(&format!("{}/{name}:v", server.registry())).await.unwrap();
    }
    (server, node)
}

#[tokio::test]
async fn any_name_removes_all_names_and_everything_else() {
    let image = image("a");
    let id = image.id().to_string();
    for by in ["tag", "other tag", "digest", "id", "prefix"] {
        let (server, node) = node_with(&[("one", &image), ("two", &image)]).await;
        let registry = server.registry();
        let name = match by {
            "tag" => format!("{registry}/one:v"),
            "other tag" => format!("{registry}/two:v"),
            "digest" => format!("{registry}/two@{}", image.manifest_digest()),
            "id" => id.clone(),
            _ => id[7..19].to_owned(),
        };
        assert!(node.images().remove(&name).await.unwrap(), "{by}");
        assert!(node.images().list().is_empty());
        assert_eq!(node.images().status(&format!("{registry}/one:v")).unwrap(), None);
        assert!(!node.images().remove(&name).await.unwrap(), "removing again is fine");
        node.check_empty();
    }
}

#[tokio::test]
async fn five_at_once_all_succeed() {
    let image = image("a");
    let (server, node) = node_with(&[("img", &image)]).await;
    let name = format!("{}/img:v", server.registry());
    let remove = || node.images().remove(&name);
    let done = tokio::join!(remove(), remove(), remove(), remove(), remove());
    let done = [done.0, done.1, done.2, done.3, done.4];
    assert!(done.into_iter().any(|done| done.unwrap()));
    assert_eq!(node.images().status(&name).unwrap(), None);
    node.check_empty();
}

#[tokio::test]
async fn layers_that_another_image_has_stay() {
    let base = layer(&[file("base", "b")]);
    let one = image_of(&[base.clone(), layer(&[file("one", "1")])], "");
    let two = image_of(&[base, layer(&[file("two", "2")])], "");
    let (server, node) = node_with(&[("one", &one), ("two", &two)]).await;
    assert_eq!(node.count("layers"), 3);
    node.images().remove(&format!("{}/one:v", server.registry())).await.unwrap();
    assert_eq!(node.count("layers"), 2);
    node.check_whole(&two);
    node.images().remove(&format!("{}/two:v", server.registry())).await.unwrap();
    node.check_empty();
}

#[tokio::test]
async fn a_container_keeps_the_layers_of_a_removed_image() {
    let image = image("a");
    let (server, mut node) = node_with(&[("img", &image)]).await;
    let lease = node.images().layers(&image.id()).unwrap();
    let lowers = lease.lowers.clone();
    node.images().remove(&format!("{}/img:v", server.registry())).await.unwrap();
    assert!(node.images().list().is_empty());
    assert_eq!(node.count("layers"), 3);
    // The daemon is killed, so it collects nothing any more; the next one gives the container
    // its layers before anything is collected.
    node.images().store().disk.fuse.store(0, std::sync::atomic::Ordering::Relaxed);
    drop(lease);
    node.close();
    let images = node.open().await;
    let lease = images.lease_for(&image.id(), &lowers).unwrap();
    assert_eq!(lease.lowers, lowers);
    images.start_collecting();
    node.images = Some(images);
    assert_eq!(node.count("layers"), 3);
    assert_eq!(fs::read(lease.base.join(&lowers[0]).join("etc/conf")).unwrap(), b"a changed");
    drop(lease);
    node.check_empty();
    for wrong in ["99", "x", "01", "../1"] {
        assert!(node.images().lease_for(&image.id(), &[wrong.to_owned()]).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn prune_takes_what_no_container_uses() {
    let (used, tagged, untagged, pinned) =
        (image("used"), image("tagged"), image("untagged"), image("pinned"));
    let (server, node) =
        node_with(&[("used", &used), ("tagged", &tagged), ("pinned", &pinned)]).await;
    untagged.put(&server, "untagged", "v");
    let by_digest = format!("{}/untagged@{}", server.registry(), untagged.manifest_digest());
    node.pull(&by_digest).await.unwrap();
    let lease = node.images().layers(&used.id()).unwrap();
    let pin = node.images().pin(&pinned.id());
    assert!(node.images().status(&pinned.id().to_string()).unwrap().unwrap().pinned);
    let pruned = node.images().prune(false).await.unwrap();
    assert_eq!(pruned.deleted, [untagged.id()]);
    assert!(pruned.reclaimed > 30_000);
    let pruned = node.images().prune(true).await.unwrap();
    assert_eq!(pruned.deleted, [tagged.id()]);
    assert_eq!(node.images().list().len(), 2);
    drop((lease, pin));
    assert!(!node.images().status(&pinned.id().to_string()).unwrap().unwrap().pinned);
    node.images().prune(true).await.unwrap();
    node.check_empty();
}

#[tokio::test]
async fn pulls_and_removals_at_the_same_time_leave_nothing_half() {
    let image = image("a");
    let (server, node) = node_with(&[("img", &image)]).await;
    let name = format!("{}/img:v", server.registry());
    for _ in 0..20 {
        let (pulled, removed) = tokio::join!(node.pull(&name), node.images().remove(&name));
        pulled.unwrap();
        removed.unwrap();
        if node.images().status(&name).unwrap().is_some() {
            node.check_whole(&image);
        }
    }
    node.pull(&name).await.unwrap();
    node.check_whole(&image);
    node.images().remove(&name).await.unwrap();
    node.check_empty();
}

#[tokio::test]
async fn the_beginning_of_several_ids_is_an_error() {
    // Two of these share their first four digits; which ones is found out here.
    let mut seen = std::collections::HashMap::new();
    let (first, second) = (0..)
        .find_map(|n| {
            let image = image_of(&[], &n.to_string());
            let prefix = image.id().digest().hex()[..4].to_owned();
            seen.insert(prefix, image.clone()).map(|other| (other, image))
        })
        .unwrap();
    let (_server, node) = node_with(&[("one", &first), ("two", &second)]).await;
    let prefix = &first.id().digest().hex()[..4];
    let error = node.images().status(prefix).unwrap_err();
    assert!(error.to_string().contains("several ids"), "{error}");
}
