//! What only root can make: owners, devices, whiteouts, and layers on layers as overlayfs shows them.

use std::os::fd::AsFd;
use std::process::Command;

use rustix::fs::XattrFlags;

use super::*;

/// Layers unpacked one on the other, each with those below known from the start.
struct Stack {
    layers: Vec<Bench>,
}

impl Stack {
    fn new() -> Stack {
        Stack { layers: Vec::new() }
    }

    fn lowers(&self) -> Lowers {
        Lowers::new(self.layers.iter().rev().map(|layer| open(&layer.path(""))).collect())
    }

    /// Adds a layer as a pull does: unpacked without those below, settled, unpacked again where needed.
    #[track_caller]
    fn add(&mut self, items: &[Item]) -> &Bench {
        let lowers = self.lowers();
        let stream = tar(items);
        let first = bench();
        let unpacked = first.unpack(&stream, None).unwrap();
        let settled = settle(open(&first.path("")), &unpacked.contents, &lowers).unwrap();
        let layer = match settled {
            Settled::Yes => first,
            Settled::UnpackAgain => {
                let second = bench();
                second.unpack(&first.replay(), Some(&lowers)).unwrap();
                second
            }
        };
        assert!(layer.replay() == stream, "the tar made again differs");
        self.layers.push(layer);
        self.layers.last().unwrap()
    }

    /// Mounts all layers and looks at the result.
    fn look(&self, look: impl FnOnce(&Path)) {
        let temp = tempfile::tempdir().unwrap();
        let mounted = temp.path().join("merged");
        let empty = temp.path().join("empty");
        for dir in [&mounted, &empty] {
            fs::create_dir(dir).unwrap();
        }
        let mut lowers: Vec<_> =
            self.layers.iter().rev().map(|layer| layer.path("").display().to_string()).collect();
        lowers.push(empty.display().to_string());
        let lowers: Vec<_> = lowers.iter().map(|lower| lower.trim_end_matches('/')).collect();
        let options = format!("lowerdir={}", lowers.join(":"));
        let done = Command::new("mount")
            .args(["-t", "overlay", "-o", &options, "overlay"])
            .arg(&mounted)
            .status();
        assert!(done.unwrap().success(), "{options}");
        look(&mounted);
        assert!(Command::new("umount").arg(&mounted).status().unwrap().success());
    }
}

#[track_caller]
fn check_names(dir: &Path, expected: &[&str]) {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, expected, "{}", dir.display());
}

#[test]
fn owners_bits_and_capabilities_survive_in_the_right_order() {
    // cap_net_raw=ep, version 2, as `setcap` writes it.
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let bench = unpacked(&[
        Item { uid: 1000, gid: 2000, ..file("suid", "x") }.mode(0o6755),
        Item { uid: 1000, ..file("ping", "x") }
            .record("SCHILY.xattr.security.capability", &capability[..]),
        Item { uid: 3_000_000_000, gid: 7, ..dir("d") }.mode(0o2750),
        file("d/inside", "x"),
        Item { uid: 5, gid: 6, ..symlink("s", "x") },
        Item { uid: 5, gid: 6, device: (1, 3), ..item(b'3', "null") }.mode(0o666),
        Item { device: (7, 300), ..item(b'4', "disk") }.mode(0o4660),
    ]);
    let meta = |path: &str| {
        let meta = fs::symlink_metadata(bench.path(path)).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(meta("suid"), (1000, 2000, 0o6755));
    assert_eq!(meta("d"), (3_000_000_000, 7, 0o2750));
    assert_eq!(meta("d/inside"), (0, 0, 0o644), "a set-group-id directory passes its group on");
    assert_eq!(meta("s"), (5, 6, 0o777));
    assert_eq!(meta("null"), (5, 6, 0o666));
    assert_eq!(meta("disk"), (0, 0, 0o4660));
    let device = |path: &str| {
        let number = fs::symlink_metadata(bench.path(path)).unwrap().rdev();
        (rustix::fs::major(number), rustix::fs::minor(number))
    };
    assert_eq!((device("null"), device("disk")), ((1, 3), (7, 300)));
    let mut value = [0_u8; 64];
    let length =
        rustix::fs::getxattr(bench.path("ping"), "security.capability", &mut value).unwrap();
    assert_eq!(&value[..length], capability);
}

#[test]
fn rights_that_new_files_inherit_do_not_reach_the_layers_own() {
    // A default ACL of user::rwx,user:1000:rwx,group::r-x,mask::rwx,other::---.
    let entry = |tag: u16, rights: u16, id: u32| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let acl = [
        2_u32.to_le_bytes().to_vec(),
        entry(1, 7, u32::MAX),
        entry(2, 7, 1000),
        entry(4, 5, u32::MAX),
        entry(16, 7, u32::MAX),
        entry(32, 0, u32::MAX),
    ]
    .concat();
    let bench = unpacked(&[
        dir("d").record("SCHILY.xattr.system.posix_acl_default", acl.clone()),
        file("d/f", "x"),
    ]);
    let mut value = [0_u8; 100];
    let length =
        rustix::fs::getxattr(bench.path("d"), "system.posix_acl_default", &mut value).unwrap();
    assert_eq!(value[..length], acl);
    assert!(
        rustix::fs::getxattr(bench.path("d/f"), "system.posix_acl_access", &mut value).is_err()
    );
    check_mode(&bench, "d/f", 0o644);
}

#[test]
fn unlisted_directories_look_as_in_the_layer_below() {
    let mut stack = Stack::new();
    stack.add(&[
        Item { uid: 3, gid: 4, ..dir("tmp") }
            .mode(0o1777)
            .record("SCHILY.xattr.user.a", "b")
            .record("mtime", "77.5"),
        Item { uid: 3, gid: 4, ..dir("tmp/deep") }.mode(0o2711),
        file("tmp/deep/old", "x"),
    ]);
    stack.add(&[file("unrelated", "x")]);
    let layer = stack.add(&[file("tmp/deep/new", "x"), file("other/new", "x")]);
    check_mode(layer, "tmp", 0o1777);
    check_mode(layer, "tmp/deep", 0o2711);
    check_mode(layer, "other", 0o755);
    let meta = fs::metadata(layer.path("tmp")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec()), (3, 4, 77, 500_000_000));
    let mut value = [0_u8; 10];
    assert_eq!(rustix::fs::getxattr(layer.path("tmp"), "user.a", &mut value), Ok(1));
    stack.look(|root| check_names(&root.join("tmp/deep"), &["new", "old"]));
}

#[test]
fn the_root_looks_as_in_the_nearest_layer_that_lists_it() {
    let mut stack = Stack::new();
    stack.add(&[dir("./").mode(0o700), file("a", "")]);
    let layer = stack.add(&[file("b", "")]);
    check_mode(layer, "", 0o700);
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    let mut stack = Stack::new();
    stack.add(&[
        file("gone", "x"),
        file("stays", "x"),
        file("d/gone", "x"),
        dir("opaque"),
        file("opaque/old", "x"),
        file("both", "old"),
        file("dir/old", "x"),
    ]);
    let layer = stack.add(&[
        file(".wh.gone", ""),
        file(".wh.never-was", ""),
        file("d/.wh.gone", ""),
        dir("opaque"),
        file("opaque/new", "x"),
        file("opaque/.wh..wh..opq", ""),
        file("both", "new"),
        file(".wh.both", ""),
        file("dir/new", "x"),
        file(".wh.dir", ""),
    ]);
    let device = fs::symlink_metadata(layer.path("gone")).unwrap();
    assert!(device.file_type().is_char_device() && device.rdev() == 0);
    stack.look(|root| {
        check_names(root, &["both", "d", "dir", "opaque", "stays"]);
        check_names(&root.join("d"), &[]);
        check_names(&root.join("opaque"), &["new"]);
        check_names(&root.join("dir"), &["new"]);
        assert_eq!(fs::read(root.join("both")).unwrap(), b"new");
    });
}

#[test]
fn what_follows_a_whiteout_of_its_name_is_new() {
    let mut stack = Stack::new();
    stack.add(&[
        file("d/old", "x"),
        file("e/sub/old", "x"),
        dir("e/sub").mode(0o1777),
        file("f", "x"),
    ]);
    stack.add(&[
        file(".wh.d", ""),
        dir("d"),
        file("d/new", "x"),
        file(".wh.e", ""),
        file("e/sub/new", "x"),
        file(".wh.f", ""),
        symlink("f", "d"),
    ]);
    stack.look(|root| {
        check_names(&root.join("d"), &["new"]);
        check_names(&root.join("e/sub"), &["new"]);
        assert_eq!(fs::metadata(root.join("e/sub")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::read_link(root.join("f")).unwrap(), Path::new("d"));
    });
}

#[test]
fn what_is_deleted_below_does_not_shape_what_comes_above() {
    let mut stack = Stack::new();
    stack.add(&[dir("t").mode(0o1777), dir("o/t").mode(0o1777)]);
    stack.add(&[file(".wh.t", ""), dir("o"), file("o/.wh..wh..opq", "")]);
    let layer = stack.add(&[file("t/new", "x"), file("o/t/new", "x")]);
    check_mode(layer, "t", 0o755);
    check_mode(layer, "o/t", 0o755);
}

#[test]
fn paths_through_a_link_of_a_lower_layer_go_where_it_leads() {
    let mut stack = Stack::new();
    stack.add(&[
        dir("usr/lib").mode(0o711),
        symlink("lib", "usr/lib"),
        symlink("abs", "/usr"),
        file("usr/lib/a", "old"),
    ]);
    stack.add(&[file("unrelated", "x")]);
    let layer = stack.add(&[
        file("lib/a", "first"),
        file("usr/lib/a", "second"),
        file("abs/lib/b", "x"),
        file("lib/.wh.c", ""),
    ]);
    check_content(layer, "usr/lib/a", b"second");
    check_mode(layer, "usr/lib", 0o711);
    assert!(!layer.path("lib").exists());
    stack.look(|root| {
        assert_eq!(fs::read(root.join("lib/a")).unwrap(), b"second");
        check_names(&root.join("usr/lib"), &["a", "b"]);
    });
}

#[test]
fn hard_links_into_a_lower_layer_become_copies() {
    let mut stack = Stack::new();
    stack.add(&[
        Item { uid: 9, gid: 8, ..file("etc/f", "content") }
            .mode(0o4750)
            .record("SCHILY.xattr.user.a", "b"),
        symlink("s", "target"),
        file("covered", "x"),
    ]);
    stack.add(&[file(".wh.covered", "")]);
    let layer = stack.add(&[
        hard_link("h", "etc/f"),
        hard_link("i", "h"),
        hard_link("t", "s"),
        file("u", "own"),
    ]);
    check_content(layer, "h", b"content");
    let meta = fs::metadata(layer.path("i")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.nlink()), (9, 8, 0o4750, 2));
    let mut value = [0_u8; 10];
    assert_eq!(rustix::fs::getxattr(layer.path("h"), "user.a", &mut value), Ok(1));
    assert_eq!(fs::read_link(layer.path("t")).unwrap(), Path::new("target"));
    let lowers = stack.lowers();
    for target in ["covered", "nowhere", "etc"] {
        let error = bench().unpack(&tar(&[hard_link("h", target)]), Some(&lowers)).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
}

#[test]
fn attributes_of_overlayfs_never_come_from_a_tar() {
    let bench = unpacked(&[
        dir("d").record("SCHILY.xattr.trusted.overlay.opaque", "y"),
        dir("e").record("LIBARCHIVE.xattr.trusted.overlay.opaque", "eQ"),
        dir("f").record("SCHILY.xattr.trusted.overlay.redirect", "/etc"),
        dir("g").record("SCHILY.xattr.trusted.overlay.overlay.opaque", "y"),
    ]);
    for path in ["d", "e", "f", "g"] {
        let mut names = [0_u8; 500];
        let length = rustix::fs::listxattr(bench.path(path), &mut names).unwrap();
        assert_eq!(length, 0, "{path}");
    }
}

#[test]
fn a_copied_directory_is_not_opaque_because_its_model_is() {
    let mut stack = Stack::new();
    stack.add(&[file("d/first", "x")]);
    let lower = stack.add(&[dir("d").mode(0o711), file("d/.wh..wh..opq", "")]);
    rustix::fs::setxattr(lower.path("d"), "user.x", b"y", XattrFlags::empty()).unwrap();
    let layer = stack.add(&[file("d/third", "x")]);
    check_mode(layer, "d", 0o711);
    let dir = open(&layer.path("d"));
    let mut value = [0_u8; 4];
    assert!(rustix::fs::fgetxattr(dir.as_fd(), "trusted.overlay.opaque", &mut value).is_err());
    stack.look(|root| check_names(&root.join("d"), &["third"]));
}
