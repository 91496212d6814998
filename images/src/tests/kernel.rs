//! What only root can show: a full disk, and that nobody else gets at the files.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::*;

/// A small disk at a path, while this lives.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path, options: &str) -> Disk {
        fs::create_dir_all(path).unwrap();
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).status();
        assert!(done.unwrap().success());
        Disk(path.to_owned())
    }

    /// Bytes in use, and inodes.
    fn used(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        ((stat.f_blocks - stat.f_bfree) * stat.f_frsize, stat.f_files - stat.f_ffree)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

async fn check_full_disk(options: &str, image: &TestImage) {
    let server = Server::start().await;
    image.put(&server, "img", "v");
    let reference = format!("{}/img:v", server.registry());
    let mut node = Node::new();
    node.close();
    let disk = Disk::mount(&node.directory(), options);
    node.restart().await;
    let empty = disk.used();
    let error = node.pull(&reference).await.unwrap_err();
    assert!(pull::is_disk_full(&error), "{error:?}");
    assert!(node.images().list().is_empty());
    node.wait_for_threads().await;
    node.check_empty();
    // tmpfs counts the pages of directories, and those of quarantine and the like stay.
    assert!(
        disk.used().0 <= empty.0 + (64 << 10) && disk.used().1 == empty.1,
        "{:?} {empty:?}",
        disk.used()
    );
    // What fits still works, and so does removing it.
    let small = super::image("small");
    small.put(&server, "small", "v");
    let name = format!("{}/small:v", server.registry());
    node.pull(&name).await.unwrap();
    node.check_whole(&small);
    // Not one byte free: removing and starting again work all the same.
    let filler = node.directory().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    node.restart().await;
    assert!(node.images().remove(&name).await.unwrap());
    node.images().wait_for_space();
    fs::remove_file(filler).unwrap();
    node.restart().await;
    node.check_empty();
    node.close();
}

#[tokio::test]
async fn a_full_disk_ends_a_pull_and_gets_all_its_space_back() {
    let noise: Vec<u8> =
        (0_u32..3_000_000).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let big = |name: &str| layer(&[file(name, noise.clone())]);
    check_full_disk("size=6m", &image_of(&[big("a"), big("b"), big("c")], "")).await;
    let many: Vec<Item> = (0..3000).map(|n| file(&format!("d/{n}"), "")).collect();
    check_full_disk(
        "size=20m,nr_inodes=1000",
        &image_of(&[layer(&[file("x", "")]), layer(&many)], ""),
    )
    .await;
}

#[tokio::test]
async fn no_other_user_reaches_a_file_of_an_image() {
    let (server, node) = (Server::start().await, Node::new());
    let image = image_of(&[layer(&[file("sh", "program").mode(0o4755)])], "");
    image.put(&server, "img", "v");
    node.pull(&format!("{}/img:v", server.registry())).await.unwrap();
    let lease = node.images().layers(&image.id()).unwrap();
    let path = lease.base.join(&lease.lowers[0]).join("sh");
    // The way there is open to all; the store itself is what is closed.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(node.temp.path(), open).unwrap();
    for (program, path) in [("stat", path.as_path()), ("cat", &path), ("ls", &node.directory())] {
        let done = Command::new(program).arg(path).uid(65534).gid(65534).output().unwrap();
        assert!(!done.status.success(), "{program} {}", path.display());
    }
    assert!(Command::new(&path).uid(65534).gid(65534).status().is_err());
}

/// A volume that is still mounted in what a container has left is somebody's.
#[test]
fn nothing_that_is_mounted_in_a_tree_is_deleted_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    let volume = tree.join("a/volume");
    let disk = Disk::mount(&volume, "size=1m");
    fs::write(volume.join("data"), "kept").unwrap();
    fs::write(tree.join("a/own"), "goes").unwrap();
    let error = crate::remove_tree(&tree).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::CrossesDevices, "{error}");
    assert_eq!(fs::read_to_string(volume.join("data")).unwrap(), "kept");
    drop(disk);
    crate::remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    crate::remove_tree(&tree).unwrap();
}
