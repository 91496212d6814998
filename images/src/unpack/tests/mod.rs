//! Layers of every kind: what they become, and that they come back as they were.

#[cfg(feature = "go-oracle")]
mod go;
#[cfg(feature = "kernel-tests")]
mod kernel;
mod random;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::testing::{Item, dir, file, hard_link, item, record, symlink, tar};

/// A work directory beside a canary.
struct Bench {
    temp: tempfile::TempDir,
    limits: Limits,
}

fn bench() -> Bench {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("work")).unwrap();
    fs::create_dir(temp.path().join("canary")).unwrap();
    fs::write(temp.path().join("canary/file"), "c").unwrap();
    Bench { temp, limits: Limits::default() }
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

impl Bench {
    fn path(&self, path: &str) -> PathBuf {
        self.temp.path().join("work/tree").join(path)
    }

    fn unpack(&self, stream: &[u8], lowers: Option<&Lowers>) -> Result<Unpacked> {
        let cancel = AtomicBool::new(false);
        let job = Job {
            what: "layer x".to_owned(),
            blob: Some((Digest::of(stream), stream.len() as u64)),
            diff_id: None,
            lowers,
            limits: &self.limits,
            cancel: &cancel,
        };
        let unpacked = unpack(stream, open(&self.temp.path().join("work")), &job)?;
        if let Some(lowers) = lowers {
            let settled = settle(open(&self.path("")), &unpacked.contents, lowers)?;
            assert_eq!(settled, Settled::Yes);
        }
        Ok(unpacked)
    }

    /// The tar made again from what is on disk.
    fn replay(&self) -> Vec<u8> {
        let work = self.temp.path().join("work");
        let kept = Some(work.join("kept")).filter(|kept| kept.exists()).map(|kept| open(&kept));
        let tree = runtime::root::Root::open(&work.join("tree")).unwrap();
        let recipe = fs::File::open(work.join("recipe")).unwrap();
        let mut bytes = Vec::new();
        Replay::open(recipe, tree, kept).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn canary_is_whole(&self) -> bool {
        let canary = self.temp.path().join("canary");
        let names = fs::read_dir(&canary).unwrap().count();
        let inside = fs::read_dir(self.temp.path()).unwrap().count();
        (names, inside, &fs::read(canary.join("file")).unwrap()[..]) == (1, 2, b"c")
            && fs::metadata(&canary).unwrap().permissions().mode() & 0o7777 == 0o755
    }
}

/// No layers below.
fn bottom() -> Lowers {
    Lowers::new(Vec::new())
}

/// Unpacks as the lowest layer, and checks that the same bytes come back.
#[track_caller]
fn unpacked(items: &[Item]) -> Bench {
    let bench = bench();
    let stream = tar(items);
    let unpacked = bench.unpack(&stream, Some(&bottom())).unwrap();
    assert_eq!(unpacked.diff_id, Digest::of(&stream));
    assert_eq!(unpacked.tar_size, stream.len() as u64);
    assert!(bench.replay() == stream, "the tar made again differs");
    assert!(bench.canary_is_whole());
    bench
}

#[track_caller]
fn check_refused(items: &[Item], problem: &str) {
    let bench = bench();
    let error = bench.unpack(&tar(items), Some(&bottom())).unwrap_err();
    let text = format!("{error}");
    assert!(text.contains(problem), "{text}");
    assert!(bench.canary_is_whole());
}

#[track_caller]
fn check_content(bench: &Bench, path: &str, expected: &[u8]) {
    assert!(fs::read(bench.path(path)).unwrap() == expected, "{path}");
}

#[track_caller]
fn check_mode(bench: &Bench, path: &str, expected: u32) {
    let mode = fs::symlink_metadata(bench.path(path)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, expected, "{path}");
}

#[test]
fn every_kind_of_entry_becomes_what_it_says() {
    let bench = unpacked(&[
        dir("./"),
        dir("./d/").mode(0o1777),
        file("./d/f", "content").mode(0o640),
        file("./d/empty", "").mode(0o4755),
        hard_link("h", "d/f"),
        symlink("s", "/canary/file"),
        item(b'6', "fifo").mode(0o622),
    ]);
    check_content(&bench, "d/f", b"content");
    check_content(&bench, "h", b"content");
    check_mode(&bench, "d", 0o1777);
    check_mode(&bench, "d/f", 0o640);
    check_mode(&bench, "d/empty", 0o4755);
    check_mode(&bench, "fifo", 0o622);
    assert_eq!(fs::read_link(bench.path("s")).unwrap(), Path::new("/canary/file"));
    assert_eq!(fs::metadata(bench.path("h")).unwrap().nlink(), 2);
    assert!(fs::symlink_metadata(bench.path("fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn times_have_nanoseconds_and_those_of_directories_are_set_last() {
    let bench = unpacked(&[
        dir("d").record("mtime", "1600000000.123456789"),
        file("d/f", "x").record("mtime", "-1.5"),
        symlink("d/s", "f").record("mtime", "5.25"),
    ]);
    let time = |path: &str| {
        let meta = fs::symlink_metadata(bench.path(path)).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    assert_eq!(time("d"), (1_600_000_000, 123_456_789));
    assert_eq!(time("d/f"), (-2, 500_000_000));
    assert_eq!(time("d/s"), (5, 250_000_000));
    assert_eq!(time(""), (1_600_000_000, 0), "an unlisted directory is as new as its layer");
}

#[test]
fn long_names_are_read_in_both_ways_of_writing_them() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    let target = "t".repeat(300);
    for gnu in [false, true] {
        let way = |item: Item| if gnu { item.gnu() } else { item };
        let bench = unpacked(&[way(file(&long, "x")), way(symlink("s", &target))]);
        check_content(&bench, &long, b"x");
        assert_eq!(fs::read_link(bench.path("s")).unwrap(), Path::new(&target));
    }
}

#[test]
fn user_attributes_are_set_and_those_of_overlayfs_are_not() {
    let bench = unpacked(&[file("f", "x")
        .record("SCHILY.xattr.user.berth", "v")
        .record("SCHILY.xattr.user.overlay.opaque", "y")
        .record("SCHILY.xattr.trusted.overlay.opaque", "y")
        .record("SCHILY.xattr.security.selinux", "label")]);
    let file = fs::File::open(bench.path("f")).unwrap();
    let mut names = vec![0_u8; 1000];
    let length = rustix::fs::flistxattr(&file, &mut names).unwrap();
    let names = String::from_utf8_lossy(&names[..length]).into_owned();
    assert!(!names.contains("overlay") && !names.contains("selinux"), "{names}");
    // A disk without user attributes (an old tmpfs) goes without.
    assert!(names.is_empty() || names == "user.berth\0", "{names}");
}

#[test]
fn unlisted_directories_are_made() {
    let bench = unpacked(&[file("a/b/c/f", "x"), dir("a/b").mode(0o700)]);
    check_content(&bench, "a/b/c/f", b"x");
    check_mode(&bench, "a", 0o755);
    check_mode(&bench, "a/b", 0o700);
}

#[test]
fn links_inside_the_layer_lead_where_they_say_and_never_out() {
    let bench = unpacked(&[
        dir("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("up", "../../.."),
        symlink("abs", "/usr"),
        symlink("new", "/not/there"),
        file("lib/a", "1"),
        file("up/b", "2"),
        file("abs/lib/c", "3"),
        file("new/d", "4"),
    ]);
    check_content(&bench, "usr/lib/a", b"1");
    check_content(&bench, "b", b"2");
    check_content(&bench, "usr/lib/c", b"3");
    check_content(&bench, "not/there/d", b"4");
}

#[test]
fn a_later_entry_replaces_an_earlier_one_and_both_come_back() {
    let bench = unpacked(&[
        file("f", "first"),
        file("f", "second"),
        hard_link("g", "f"),
        file("f", "third"),
        dir("d"),
        file("d/x", "inner"),
        file("d/y/z", "deep"),
        file("d", "now a file"),
        file("e", "file"),
        dir("e"),
        file("e/f", "below"),
        symlink("l", "d"),
        dir("l"),
        file("l/f", "own"),
    ]);
    check_content(&bench, "f", b"third");
    check_content(&bench, "g", b"second");
    check_content(&bench, "d", b"now a file");
    check_content(&bench, "e/f", b"below");
    check_content(&bench, "l/f", b"own");
}

#[test]
fn a_directory_that_is_listed_again_keeps_what_is_in_it() {
    let bench = unpacked(&[dir("d").mode(0o700), file("d/f", "x"), dir("d").mode(0o750)]);
    check_mode(&bench, "d", 0o750);
    check_content(&bench, "d/f", b"x");
}

#[test]
fn hard_links_to_links_link_the_link() {
    let bench = unpacked(&[symlink("s", "/etc/passwd"), hard_link("h", "s").mode(0o4777)]);
    assert_eq!(fs::read_link(bench.path("h")).unwrap(), Path::new("/etc/passwd"));
}

#[test]
fn the_lowest_layer_has_nothing_to_hide() {
    let bench = unpacked(&[
        dir("d"),
        file("d/.wh.x", ""),
        file("d/.wh..wh..opq", ""),
        file(".wh..wh.plnk/1.2", "note of aufs"),
        file("d/f", "x"),
    ]);
    let names: Vec<_> =
        fs::read_dir(bench.path("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["f"]);
    assert!(!bench.path(".wh..wh.plnk").exists());
}

#[test]
fn whiteouts_with_content_come_back_too() {
    unpacked(&[file(".wh.x", "a whiteout may have content"), file(".wh..wh.note", vec![7; 3000])]);
}

#[test]
fn entries_that_cannot_be_are_refused() {
    check_refused(&[symlink(".", "/canary")], "root of a layer");
    check_refused(&[file("/", "x")], "root of a layer");
    check_refused(&[hard_link("./", "x")], "root of a layer");
    check_refused(&[file("../canary/x", "x")], "has a part");
    check_refused(&[file("a/../../canary/x", "x")], "..");
    check_refused(&[hard_link("h", "/etc/passwd")], "does not exist");
    check_refused(&[hard_link("h", "../../etc/passwd")], "..");
    check_refused(&[hard_link("h", "later"), file("later", "")], "does not exist");
    check_refused(&[hard_link("h", "h")], "itself");
    check_refused(&[dir("d"), hard_link("h", "d")], "hard link to a directory");
    check_refused(&[symlink("s", "")], "lead somewhere");
    check_refused(&[item(b'3', "null")], "whiteout of overlayfs");
    check_refused(&[file("f", "x"), file("f/g", "y")], "no directory");
    check_refused(&[symlink("a", "b"), symlink("b", "a"), file("a/f", "x")], "too many links");
    check_refused(&[item(b'V', "label")], "type 'V'");
    check_refused(&[file(".wh...", "")], "hides nothing");
    check_refused(&[Item { uid: u64::from(u32::MAX), ..file("f", "") }], "uid");
    check_refused(&[Item { gid: 1 << 40, ..file("f", "") }], "gid");
    check_refused(&[file("f", "").record("uid", "-1")], "uid");
    check_refused(&[file("f", "").record("path", "a\0b")], "NUL");
}

#[test]
fn a_mode_given_to_a_link_changes_nothing_outside() {
    let bench = bench();
    let canary = bench.temp.path().join("canary");
    let items = [
        symlink("s", canary.to_str().unwrap()).mode(0o4777),
        hard_link("h", "s").mode(0o4777),
        dir("s").mode(0o700),
    ];
    bench.unpack(&tar(&items), Some(&bottom())).unwrap();
    assert!(bench.canary_is_whole());
    check_mode(&bench, "s", 0o700);
}

#[test]
fn extended_headers_that_readers_disagree_about_are_refused() {
    let two = |kind: u8, content: &[u8]| {
        let meta = |kind| Item { content: content.to_vec(), ..item(kind, "meta") };
        [meta(kind), meta(kind), file("f", "x")]
    };
    check_refused(&two(b'x', &record("path", b"g")), "two extended headers");
    check_refused(&two(b'L', b"g\0"), "two extended headers");
    check_refused(&two(b'x', &record("path", b"g"))[..1], "without an entry");
    let global = |key: &str| Item { content: record(key, b"1"), ..item(b'g', "global") };
    check_refused(&[global("size"), file("f", "x")], "global header");
    unpacked(&[global("comment"), file("f", "x")]);
    check_refused(&[file("f", "x").record("size", "4096")], "ends inside a file");
}

#[test]
fn a_size_in_the_extended_header_wins_over_the_other() {
    // The header says 0 as GNU's and Go's writers do for what does not fit.
    let mut stream = tar(&[file("f", "").record("size", "3")]);
    stream.truncate(stream.len() - 2 * 512);
    crate::testing::pad(&mut stream, b"abc");
    stream.resize(stream.len() + 1024, 0);
    let bench = bench();
    bench.unpack(&stream, Some(&bottom())).unwrap();
    check_content(&bench, "f", b"abc");
    assert!(bench.replay() == stream);
}

/// A sparse file of 1,000,000 bytes with data at 0, 5000 and 999,999, in each way of writing it.
fn sparse_items() -> Vec<Item> {
    let data = [vec![b'a'; 512], vec![b'b'; 100], vec![b'c'; 1]].concat();
    let sized = |item: Item| item.record("GNU.sparse.size", "1000000");
    let mut in_pairs = sized(file("v00", data.clone())).record("GNU.sparse.numblocks", "3");
    for (offset, length) in [(0, 512), (5000, 100), (999_999, 1)] {
        in_pairs = in_pairs
            .record("GNU.sparse.offset", offset.to_string())
            .record("GNU.sparse.numbytes", length.to_string());
    }
    let mut front = Vec::new();
    crate::testing::pad(
        &mut front,
        format!("{:0600}\n0\n512\n5000\n100\n999999\n1\n", 3).as_bytes(),
    );
    vec![
        in_pairs,
        sized(file("v01", data.clone()))
            .record("GNU.sparse.numblocks", "3")
            .record("GNU.sparse.map", "0,512,5000,100,999999,1"),
        file("GNUSparseFile.1/v10", [front, data].concat())
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.name", "v10")
            .record("GNU.sparse.realsize", "1000000"),
    ]
}

/// The same in GNU's old format, with `extents` spread over as many headers as they need.
fn old_sparse(name: &str, size: u64, extents: &[(u64, u64)], data: &[u8]) -> Vec<u8> {
    let mut header = crate::testing::header(
        &file(name, "").gnu(),
        b'S',
        name.as_bytes(),
        b"",
        data.len() as u64,
    );
    let field = |value: u64| format!("{value:011o}\0").into_bytes();
    let put = |block: &mut [u8], start: usize, extents: &[(u64, u64)]| {
        for (index, (offset, length)) in extents.iter().enumerate() {
            let at = start + index * 24;
            block[at..at + 12].copy_from_slice(&field(*offset));
            block[at + 12..at + 24].copy_from_slice(&field(*length));
        }
    };
    let first = extents.len().min(4);
    put(&mut header, 386, &extents[..first]);
    header[482] = u8::from(extents.len() > 4);
    header[483..495].copy_from_slice(&field(size));
    crate::testing::seal(&mut header);
    let mut out = header;
    let mut rest = &extents[first..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(21));
        let mut block = vec![0; 512];
        put(&mut block, 0, now);
        block[504] = u8::from(!later.is_empty());
        out.extend(block);
        rest = later;
    }
    crate::testing::pad(&mut out, data);
    out
}

#[test]
fn sparse_files_of_all_formats_have_their_holes() {
    let mut expected = vec![0; 1_000_000];
    expected[..512].fill(b'a');
    expected[5000..5100].fill(b'b');
    expected[999_999] = b'c';
    let bench = unpacked(&sparse_items());
    for name in ["v00", "v01", "v10"] {
        check_content(&bench, name, &expected);
        assert!(fs::metadata(bench.path(name)).unwrap().blocks() < 100, "{name} has no holes");
    }
}

#[test]
fn old_sparse_files_may_have_many_pieces() {
    let extents: Vec<(u64, u64)> = (0..50).map(|index| (index * 1000, 10)).collect();
    let data: Vec<u8> = (0..500).map(|index| u8::try_from(index / 10).unwrap() + 1).collect();
    let stream = [old_sparse("old", 60_000, &extents, &data), tar(&[file("after", "x")])].concat();
    let bench = bench();
    bench.unpack(&stream, Some(&bottom())).unwrap();
    let content = fs::read(bench.path("old")).unwrap();
    assert_eq!((content.len(), content[49_000], content[49_010]), (60_000, 50, 0));
    check_content(&bench, "after", b"x");
    assert!(bench.replay() == stream);
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let lying = |records: &[(&str, &str)]| {
        records.iter().fold(file("f", "12345"), |item, (key, value)| item.record(key, *value))
    };
    let map = |size, map| {
        [("GNU.sparse.size", size), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", map)]
    };
    check_refused(&[lying(&map("9", "5,5"))], "beyond the end");
    check_refused(&[lying(&map("90", "5,6"))], "differ in length");
    check_refused(&[lying(&map("90", "-5,5"))], "negative");
    check_refused(&[lying(&map("90", "0,2,1,3"))], "not as many");
    let no_file =
        map("90", "0,0").iter().fold(symlink("s", "t"), |item, (k, v)| item.record(k, *v));
    check_refused(&[no_file], "what is no file");
}

#[test]
fn every_way_to_compress_gives_the_same_layer() {
    let stream = tar(&[file("f", b"content".repeat(100_000)), dir("d")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&stream).unwrap();
    let zstd = zstd::stream::encode_all(&stream[..], 3).unwrap();
    for compressed in [gzip.finish().unwrap(), zstd, stream.clone()] {
        let bench = bench();
        let unpacked = bench.unpack(&compressed, Some(&bottom())).unwrap();
        assert_eq!(unpacked.diff_id, Digest::of(&stream));
        check_content(&bench, "f", &b"content".repeat(100_000));
        assert!(bench.replay() == stream);
    }
}

#[test]
fn padding_behind_the_end_comes_back_and_has_a_limit() {
    let padded = |length| [tar(&[file("f", "x")]), vec![0; length], b"tail".to_vec()].concat();
    let bench = bench();
    let stream = padded(100_000);
    bench.unpack(&stream, Some(&bottom())).unwrap();
    assert!(bench.replay() == stream);
    let small = Bench {
        limits: Limits { trailer_bytes: crate::limits::Bytes(1 << 20), ..Limits::default() },
        ..self::bench()
    };
    let error = small.unpack(&padded(2 << 20), Some(&bottom())).unwrap_err();
    assert!(error.to_string().contains("trailer_bytes"), "{error}");
}

#[test]
fn archives_may_end_without_zeros_as_in_go() {
    let whole = tar(&[file("f", "x")]);
    for length in [1024, 1536, 2048] {
        let bench = bench();
        bench.unpack(&whole[..length], Some(&bottom())).unwrap();
        assert!(bench.replay() == whole[..length]);
    }
}

#[test]
fn wrong_digests_and_sizes_are_refused() {
    let stream = tar(&[file("f", "x")]);
    let cancel = AtomicBool::new(false);
    let limits = Limits::default();
    let lowers = bottom();
    let right = (Digest::of(&stream), stream.len() as u64);
    let try_with = |blob, diff_id| {
        let bench = bench();
        let job = Job {
            what: "layer x".to_owned(),
            blob: Some(blob),
            diff_id: Some(diff_id),
            lowers: Some(&lowers),
            limits: &limits,
            cancel: &cancel,
        };
        unpack(&stream[..], open(&bench.temp.path().join("work")), &job)
            .map(drop)
            .map_err(|e| e.to_string())
    };
    let other = Digest::of(b"other");
    assert_eq!(try_with(right, right.0), Ok(()));
    assert!(try_with((other, right.1), right.0).unwrap_err().contains("has the digest"));
    assert!(try_with((right.0, right.1 - 1), right.0).unwrap_err().contains("is longer"));
    assert!(try_with((right.0, right.1 + 1), right.0).unwrap_err().contains("descriptor says"));
    assert!(try_with(right, other).unwrap_err().contains("diff id"));
}

#[test]
fn limits_end_a_layer_that_has_too_much() {
    use crate::limits::Bytes;
    let check = |change: &dyn Fn(&mut Limits), items: &[Item], name: &str| {
        let mut bench = bench();
        change(&mut bench.limits);
        let error = bench.unpack(&tar(items), Some(&bottom())).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    };
    let many: Vec<Item> = (0..20).map(|index| file(&format!("f{index}"), "x")).collect();
    check(&|limits| limits.tar_entries = 19, &many, "tar_entries");
    check(&|limits| limits.tar_entries = 10, &[file("a/b/c/d/e/f/g/h/i/j/k/l", "")], "tar_entries");
    check(&|limits| limits.tar_bytes = Bytes(9000), &[file("f", vec![0; 9000])], "tar_bytes");
    check(&|limits| limits.tar_bytes = Bytes(9000), &many, "tar_bytes");
    check(&|limits| limits.path_depth = 3, &[file("a/b/c/d", "")], "path_depth");
    check(
        &|limits| limits.header_records = Bytes(400),
        &[file("f", "").record("c", vec![b'x'; 400])],
        "header_records",
    );
    check(
        &|limits| limits.xattr_bytes = Bytes(100),
        &[file("f", "").record("SCHILY.xattr.user.a", vec![b'x'; 100])],
        "xattr_bytes",
    );
    check(&|limits| limits.sparse_extents = 2, &sparse_items()[1..2], "sparse_extents");
    check(&|limits| limits.header_records = Bytes(512), &sparse_items()[2..], "header_records");
}

#[test]
fn a_given_up_layer_ends_early() {
    let cancel = AtomicBool::new(true);
    let bench = bench();
    let job = Job {
        what: "layer x".to_owned(),
        blob: None,
        diff_id: None,
        lowers: None,
        limits: &bench.limits,
        cancel: &cancel,
    };
    // The stream never ends.
    let error = unpack(
        std::io::BufReader::new(std::io::repeat(b'x')),
        open(&bench.temp.path().join("work")),
        &job,
    )
    .unwrap_err();
    assert!(error.to_string().contains("given up"), "{error}");
}
