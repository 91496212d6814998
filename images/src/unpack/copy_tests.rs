//! Archives of people who mean well, and of others.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink as link};
use std::path::PathBuf;

use super::*;
use crate::testing::{Item, dir, file, hard_link, item, symlink, tar};

/// A directory to copy into, beside what nobody may touch.
struct Bench {
    temp: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("target")).unwrap();
        fs::create_dir(temp.path().join("outside")).unwrap();
        fs::write(temp.path().join("outside/file"), "untouched").unwrap();
        Bench { temp }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.temp.path().join("target").join(path)
    }

    fn copy(&self, copy: Copy, items: &[Item]) -> Result<Copied> {
        let into = fs::File::open(self.path("")).unwrap().into();
        copy.unpack(&tar(items)[..], into, "the answer of tar")
    }

    #[track_caller]
    fn outside_is_whole(&self) {
        let outside = self.temp.path().join("outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"untouched");
        assert_eq!(fs::metadata(outside.join("file")).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(self.temp.path()).unwrap().count(), 2);
    }
}

fn named(name: &str) -> Copy {
    Copy { name: Some(name.into()), ..Copy::default() }
}

#[test]
fn a_tree_arrives_under_its_name_or_another() {
    let items = [
        dir("./src").mode(0o1750),
        file("./src/a", "text").mode(0o4755),
        hard_link("./src/b", "./src/a"),
        symlink("./src/c", "/etc/passwd"),
        item(b'6', "./src/pipe"),
    ];
    let bench = Bench::new();
    let copied = bench.copy(named("src"), &items).unwrap();
    assert_eq!(copied, Copied { entries: 5, skipped: 1 });
    let renamed = Copy { rename: Some(b"dst".to_vec()), ..named("src") };
    bench.copy(renamed, &items).unwrap();
    for name in ["src", "dst"] {
        assert_eq!(fs::read(bench.path(name).join("b")).unwrap(), b"text");
        let mode = |path: &str| fs::metadata(bench.path(name).join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("a"), mode("")), (0o755, 0o1750), "no set-user-id");
        assert_eq!(fs::metadata(bench.path(name).join("a")).unwrap().nlink(), 2);
        assert_eq!(
            fs::read_link(bench.path(name).join("c")).unwrap(),
            PathBuf::from("/etc/passwd")
        );
        assert!(!bench.path(name).join("pipe").exists());
    }
    bench.copy(Copy::default(), &[dir("./"), file("./x", "content")]).unwrap();
    assert_eq!(fs::read(bench.path("x")).unwrap(), b"content");
}

#[test]
fn what_is_there_is_replaced_and_never_written_through() {
    let bench = Bench::new();
    let outside = bench.temp.path().join("outside/file");
    link(&outside, bench.path("a")).unwrap();
    bench.copy(named("a"), &[file("a", "new")]).unwrap();
    assert_eq!(fs::read(bench.path("a")).unwrap(), b"new");
    fs::write(bench.path("ro"), "old").unwrap();
    fs::set_permissions(bench.path("ro"), fs::Permissions::from_mode(0o444)).unwrap();
    bench.copy(named("ro"), &[file("ro", "new")]).unwrap();
    assert_eq!(fs::read(bench.path("ro")).unwrap(), b"new");
    bench.outside_is_whole();
}

#[track_caller]
fn refused(items: &[Item], word: &str) {
    let bench = Bench::new();
    link(bench.temp.path().join("outside"), bench.path("link")).unwrap();
    fs::create_dir(bench.path("directory")).unwrap();
    fs::write(bench.path("plain"), "").unwrap();
    let error = bench.copy(Copy::default(), items).unwrap_err();
    let text = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(text.contains(word), "{text}");
    bench.outside_is_whole();
}

#[test]
fn nothing_leads_out() {
    refused(&[file("../outside/file", "x")], "\"..\"");
    refused(&[file("a/../../outside/file", "x")], "\"..\"");
    refused(&[file("link/file", "x")], "links are not followed");
    refused(&[dir("link"), file("link/file", "x")], "no directory is there");
    refused(&[symlink("out", "../outside"), file("out/file", "x")], "links are not followed");
    refused(&[symlink("out", "../outside"), dir("out/new")], "links are not followed");
    refused(&[symlink("out", "/"), dir("out")], "no directory is there");
    refused(&[hard_link("h", "../outside/file"), file("h", "x")], "\"..\"");
    refused(&[hard_link("h", "link/file"), file("h", "x")], "links are not followed");
    refused(&[symlink("s", "../outside/file"), hard_link("h", "s"), file("h", "x")], "no file");
    refused(&[file("directory", "x")], "a directory is there");
    refused(&[file("plain/file", "x")], "links are not followed");
}

#[test]
fn absolute_names_stay_inside_and_devices_are_not_made() {
    let bench = Bench::new();
    let device = item(b'3', "null");
    bench.copy(Copy::default(), &[file("/outside/file", "x"), device]).unwrap();
    assert_eq!(fs::read(bench.path("outside/file")).unwrap(), b"x");
    assert!(!bench.path("null").exists());
    bench.outside_is_whole();
}

#[test]
fn only_what_was_asked_for_is_taken() {
    let bench = Bench::new();
    for items in [&[file("other", "x")][..], &[file("a", "x"), file(".bashrc", "x")]] {
        let error = bench.copy(named("a"), items).unwrap_err();
        assert!(error.to_string().contains("not asked for"), "{error}");
    }
    let directory = Copy { directory: Some(true), ..named("a") };
    let error = bench.copy(directory, &[file("a", "x")]).unwrap_err();
    assert!(error.to_string().contains("no directory"), "{error}");
    let file_only = Copy { directory: Some(false), ..named("a") };
    assert!(bench.copy(file_only, &[dir("a")]).is_err());
    assert!(!bench.path("other").exists() && !bench.path(".bashrc").exists());
}
