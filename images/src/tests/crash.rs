//! A daemon that is killed, at every point: what it leaves is a state from which the next one goes on.

use std::sync::atomic::Ordering;

use super::*;
use crate::store::Store;

/// What happened between the kill and the next start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// The daemon was started again.
    Restart,
    /// The power failed: what was not synced is gone.
    PowerCut,
}

/// Opens a store that fails after so many changes of its disk.
async fn open(node: &Node, changes: i64, boot: &str) -> Images {
    let config = node.config();
    let store = loop {
        let limits = node.limits.clone();
        match Store::open_in_boot(&config.directory, limits, Vec::new(), boot) {
            // A thread or task of the daemon before may still be about to end.
            Err(Error::Unavailable { .. }) => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    store.disk.fuse.store(changes, Ordering::Relaxed);
    let images = Images::with(store, config);
    images.start_collecting();
    images
}

/// Changes of the disk that were not needed.
fn left(images: &Images) -> i64 {
    images.wait_for_space();
    images.store().disk.fuse.load(Ordering::Relaxed)
}

/// Empties all files of layers and documents that no record of an image names, as a disk
/// may that was never synced. Records of images are synced, and so is all before them.
fn lose_unsynced(directory: &Path) {
    let records = fs::read_dir(directory.join("records/images")).unwrap();
    let named: Vec<String> = records
        .map(|entry| {
            String::from_utf8_lossy(&fs::read(entry.unwrap().path()).unwrap()).into_owned()
        })
        .collect();
    let is_named = |key: &str| named.iter().any(|record| record.contains(key));
    for place in ["layers", "recipes", "kept"] {
        for entry in fs::read_dir(directory.join(place)).unwrap() {
            let entry = entry.unwrap();
            let number = entry.file_name().into_string().unwrap();
            if !is_named(&format!("\"number\":{number},")) {
                empty_files(&entry.path());
            }
        }
    }
    for entry in fs::read_dir(directory.join("blobs")).unwrap() {
        let entry = entry.unwrap();
        if !is_named(&entry.file_name().into_string().unwrap()) {
            fs::write(entry.path(), "").unwrap();
        }
    }
    // Records of layers are written with the rest, so they may be torn like it.
    for entry in fs::read_dir(directory.join("records/layers")).unwrap() {
        let path = entry.unwrap().path();
        let content = fs::read(&path).unwrap();
        fs::write(&path, &content[..content.len() / 2]).unwrap();
    }
}

fn empty_files(path: &Path) {
    if !path.is_dir() {
        fs::write(path, "").unwrap();
        return;
    }
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() || entry.file_type().unwrap().is_file() {
            empty_files(&entry.path());
        }
    }
}

/// Runs `work` on a store that is killed at every point of it, one after the other, and
/// checks each time that what the next daemon lists is whole and that `work` then succeeds.
async fn at_every_point<F: std::future::Future<Output = Result<()>>>(
    then: Then,
    images_of_test: &[TestImage],
    prepare: impl AsyncFn(&Images),
    work: impl Fn(Images) -> F,
    expected: usize,
) {
    const PLENTY: i64 = 1_000_000;
    for kill_at in 0.. {
        let mut node = Node::new();
        node.close();
        let images = open(&node, PLENTY, "first").await;
        prepare(&images).await;
        images.wait_for_space();
        images.store().disk.fuse.store(kill_at, Ordering::Relaxed);
        let done = work(images.clone()).await;
        let was_killed = left(&images) <= 0;
        drop(images);
        let boot = if then == Then::PowerCut { "second" } else { "first" };
        if then == Then::PowerCut {
            lose_unsynced(&node.directory());
        }
        let images = open(&node, PLENTY, boot).await;
        node.images = Some(images.clone());
        for image in images_of_test {
            if images.status(&image.id().to_string()).unwrap().is_some() {
                node.check_whole(image);
            }
        }
        if done.is_ok() && !was_killed {
            assert!(kill_at > 5, "{kill_at} changes are too few to be all");
            return;
        }
        work(images.clone()).await.unwrap_or_else(|error| panic!("killed at {kill_at}: {error:?}"));
        assert_eq!(images.list().len(), expected, "killed at {kill_at}");
        for image in images_of_test {
            if images.status(&image.id().to_string()).unwrap().is_some() {
                node.check_whole(image);
            }
        }
        images.prune(true).await.unwrap();
        drop(images);
        node.check_empty();
    }
}

async fn check_pull(then: Then) {
    let (server, image) = (Server::start().await, image("a"));
    image.put_index(&server, "img", "v");
    let reference = format!("{}/img:v", server.registry());
    let work = |images: Images| {
        let request = request(&reference);
        async move { images.pull(request).wait().await.map(drop) }
    };
    at_every_point(then, std::slice::from_ref(&image), async |_| {}, work, 1).await;
}

#[tokio::test]
async fn a_pull_goes_on_wherever_its_daemon_was_killed() {
    check_pull(Then::Restart).await;
}

#[tokio::test]
async fn a_pull_goes_on_wherever_the_power_failed() {
    check_pull(Then::PowerCut).await;
}

async fn check_move_of_tag(then: Then) {
    let (server, old, new) = (Server::start().await, image("old"), image("new"));
    let reference = format!("{}/img:v", server.registry());
    old.put(&server, "img", "old");
    new.put(&server, "img", "v");
    let by_old = format!("{}/img:old", server.registry());
    let images_of_test = [old, new];
    let work = |images: Images| {
        let request = request(&reference);
        async move { images.pull(request).wait().await.map(drop) }
    };
    let prepare = async |images: &Images| {
        images.pull(request(&by_old)).wait().await.unwrap();
    };
    at_every_point(then, &images_of_test, prepare, work, 2).await;
}

#[tokio::test]
async fn a_second_image_never_harms_the_first() {
    check_move_of_tag(Then::PowerCut).await;
}

#[tokio::test]
async fn a_removal_is_done_or_not_done_wherever_it_was_killed() {
    let (server, image) = (Server::start().await, image("a"));
    let reference = format!("{}/img:v", server.registry());
    image.put(&server, "img", "v");
    let prepare = async |images: &Images| {
        images.pull(request(&reference)).wait().await.unwrap();
    };
    let work = |images: Images| {
        let name = reference.clone();
        async move {
            images.remove(&name).await?;
            images.wait_for_space();
            Ok(())
        }
    };
    for then in [Then::Restart, Then::PowerCut] {
        at_every_point(then, std::slice::from_ref(&image), prepare, work, 0).await;
    }
}
