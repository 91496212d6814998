//! Paths in hostile trees.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::OFlags;

use super::{Missing, Root};

struct Tree {
    _dir: tempfile::TempDir,
    outside: std::path::PathBuf,
    inside: std::path::PathBuf,
    root: Root,
}

fn tree() -> Tree {
    let dir = tempfile::tempdir().unwrap();
    let (outside, inside) = (dir.path().join("outside"), dir.path().join("inside"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&inside).unwrap();
    fs::write(outside.join("secret"), "s").unwrap();
    let root = Root::open(&inside).unwrap();
    Tree { outside, inside, root, _dir: dir }
}

#[track_caller]
fn check_made(tree: &Tree, path: &str, missing: Missing, expected: &str) {
    tree.root.resolve_or_make(Path::new(path), missing, None).unwrap();
    let made = tree.inside.join(expected);
    let meta = fs::symlink_metadata(&made).unwrap();
    assert_eq!(meta.is_dir(), matches!(missing, Missing::Directory(_)), "{}", made.display());
    assert_eq!(fs::read_dir(&tree.outside).unwrap().count(), 1, "something was made outside");
}

const DIR: Missing = Missing::Directory(0o750);
const FILE: Missing = Missing::File(0o640);

#[test]
fn missing_parts_are_made() {
    let tree = tree();
    check_made(&tree, "/a/b/c", DIR, "a/b/c");
    check_made(&tree, "a/b/d", FILE, "a/b/d");
    assert_eq!(
        fs::metadata(tree.inside.join("a/b/c")).unwrap().permissions().mode() & 0o777,
        0o750 & !umask()
    );
}

fn umask() -> u32 {
    let old = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(old);
    old.as_raw_mode()
}

#[test]
fn dotdot_ends_at_the_root() {
    let tree = tree();
    check_made(&tree, "../../outside/x", DIR, "outside/x");
    check_made(&tree, "/a/../../../b", DIR, "b");
}

#[test]
fn absolute_links_stay_inside() {
    let tree = tree();
    symlink(&tree.outside, tree.inside.join("link")).unwrap();
    symlink("/", tree.inside.join("slash")).unwrap();
    let below = format!("{}/x", tree.outside.display());
    check_made(&tree, "link/x", FILE, &below[1..]);
    check_made(&tree, "slash/slash/y", FILE, "y");
}

#[test]
fn links_that_lead_to_nothing_are_followed_and_made() {
    let tree = tree();
    fs::create_dir(tree.inside.join("etc")).unwrap();
    symlink("../run/resolve/stub.conf", tree.inside.join("etc/resolv.conf")).unwrap();
    check_made(&tree, "/etc/resolv.conf", FILE, "run/resolve/stub.conf");
}

#[test]
fn a_loop_of_links_is_an_error() {
    let tree = tree();
    symlink("b", tree.inside.join("a")).unwrap();
    symlink("a", tree.inside.join("b")).unwrap();
    let error = tree.root.resolve_or_make(Path::new("a/x"), DIR, None).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ELOOP));
}

#[test]
fn a_file_on_the_way_is_an_error() {
    let tree = tree();
    fs::write(tree.inside.join("f"), "").unwrap();
    let error = tree.root.resolve_or_make(Path::new("f/x"), DIR, None).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOTDIR));
}

#[test]
fn only_regular_files_of_bounded_size_are_read() {
    let tree = tree();
    symlink(tree.outside.join("secret"), tree.inside.join("link")).unwrap();
    symlink("/dev/zero", tree.inside.join("zero")).unwrap();
    fs::write(tree.inside.join("big"), vec![0; 11]).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.inside.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for path in ["link", "zero", "big", "fifo", "/", "missing"] {
        assert!(tree.root.read(Path::new(path), 10).is_err(), "{path}");
    }
    assert_eq!(tree.root.read(Path::new("big"), 11).unwrap().len(), 11);
}

#[test]
fn beneath_follows_no_link() {
    let tree = tree();
    fs::create_dir(tree.inside.join("d")).unwrap();
    symlink("d", tree.inside.join("link")).unwrap();
    let flags = OFlags::CREATE | OFlags::WRONLY;
    for path in ["link/x", "../x", "/x", "d/../../x"] {
        assert!(tree.root.resolve_beneath(Path::new(path), flags, 0o600).is_err(), "{path}");
    }
    tree.root.resolve_beneath(Path::new("d/x"), flags, 0o600).unwrap();
    assert_eq!(fs::metadata(tree.inside.join("d/x")).unwrap().size(), 0);
}
