//! Starting with what an earlier daemon left, damaged records included (R6).

use super::*;

async fn node_with(image: &TestImage) -> (Server, Node, String) {
    let (server, node) = (Server::start().await, Node::new());
    image.put_index(&server, "img", "v");
    let reference = format!("{}/img:v", server.registry());
    node.pull(&reference).await.unwrap();
    (server, node, reference)
}

#[tokio::test]
async fn everything_is_as_it_was() {
    let image = image("a");
    let (_server, mut node, _) = node_with(&image).await;
    let before = (node.images().list(), node.images().usage(), tree_of(&node.directory()));
    node.restart().await;
    assert_eq!((node.images().list(), node.images().usage(), tree_of(&node.directory())), before);
    node.check_whole(&image);
}

/// Damages each file of a directory in every way; the store starts, and a pull makes all whole.
async fn check_damage(directory: &str, fetched_again: usize) {
    let image = image("a");
    let damages: [fn(&mut Vec<u8>); 4] = [
        |content| content.truncate(0),
        |content| content.truncate(content.len() / 2),
        |content| {
            let middle = content.len() / 2;
            content[middle] ^= 1;
        },
        |content| content.resize(content.len() + 4096, 0),
    ];
    for damage in damages {
        let (server, mut node, reference) = node_with(&image).await;
        node.close();
        for entry in fs::read_dir(node.directory().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            let mut content = fs::read(&path).unwrap();
            damage(&mut content);
            fs::write(&path, content).unwrap();
        }
        node.restart().await;
        if node.images().status(&reference).unwrap().is_some() {
            node.check_whole(&image);
        }
        node.pull(&reference).await.unwrap();
        node.check_whole(&image);
        for layer in &image.layers {
            assert_eq!(fetches(&server, layer), 1 + fetched_again, "{directory}");
        }
        node.restart().await;
        node.check_whole(&image);
    }
}

#[tokio::test]
async fn a_damaged_record_of_a_layer_is_made_again_from_that_of_its_image() {
    check_damage("records/layers", 0).await;
}

#[tokio::test]
async fn a_damaged_record_of_an_image_costs_no_layer() {
    check_damage("records/images", 0).await;
}

#[tokio::test]
async fn damaged_documents_are_fetched_again() {
    check_damage("blobs", 0).await;
}

#[tokio::test]
async fn a_layer_that_is_gone_is_fetched_again_and_no_other() {
    let image = image("a");
    let (server, mut node, reference) = node_with(&image).await;
    let lowers = node.images().layers(&image.id()).unwrap().lowers;
    node.close();
    fs::remove_dir_all(node.directory().join("layers").join(&lowers[1])).unwrap();
    node.restart().await;
    assert_eq!(node.images().status(&reference).unwrap(), None);
    node.pull(&reference).await.unwrap();
    node.check_whole(&image);
    let fetched: Vec<_> = image.layers.iter().map(|layer| fetches(&server, layer)).collect();
    // The layer above lies on the one that is gone, but is what it was.
    assert_eq!(fetched, [1, 2, 1]);
}

#[tokio::test]
async fn what_nobody_names_is_swept() {
    let image = image("a");
    let (_server, mut node, _) = node_with(&image).await;
    let clean = {
        node.restart().await;
        tree_of(&node.directory())
    };
    node.close();
    let top = node.directory();
    fs::create_dir_all(top.join("layers/77/etc")).unwrap();
    fs::create_dir_all(top.join("kept/78")).unwrap();
    fs::create_dir_all(top.join("tmp/0/tree/a")).unwrap();
    fs::create_dir_all(top.join("trash/0/a")).unwrap();
    fs::write(top.join("recipes/77"), "x").unwrap();
    fs::write(top.join("tmp/1"), "half a record").unwrap();
    fs::write(top.join("blobs").join("0".repeat(64)), "x").unwrap();
    fs::write(top.join("blobs/strange"), "x").unwrap();
    node.restart().await;
    node.images().wait_for_space();
    assert_eq!(tree_of(&node.directory()), clean);
    node.check_whole(&image);
}

#[tokio::test]
async fn nothing_is_collected_before_containers_have_their_layers() {
    let image = image("a");
    let (_server, mut node, reference) = node_with(&image).await;
    let lease = node.images().layers(&image.id()).unwrap();
    let (base, lowers) = (lease.base.clone(), lease.lowers.clone());
    node.images().remove(&reference).await.unwrap();
    std::mem::forget(lease);
    node.images = None;
    // The store of the killed daemon is still open here, so a copy takes its place.
    let copy = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(node.temp.path().join("images"))
        .arg(copy.path())
        .status();
    assert!(copied.unwrap().success());
    let images =
        Images::open(Config { directory: copy.path().join("images"), ..node.config() }).unwrap();
    images.prune(true).await.unwrap();
    images.wait_for_space();
    assert_eq!(images.lease_for(&image.id(), &lowers).unwrap().lowers, lowers);
    images.start_collecting();
    images.prune(true).await.unwrap();
    images.wait_for_space();
    assert!(images.lease_for(&image.id(), &lowers).is_err());
    assert!(base.ends_with("images/layers"));
}
