//! The tar parser beside Go's archive/tar, which reads layers in nearly every other runtime (E-05).
//!
//! Whatever we take, Go must read as the same entries with the same content.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::*;
use crate::testing::{pad, seal};

/// Archives of one run: 100,000 take some minutes without optimization.
const ROUNDS: usize = 100_000;
/// Archives sent before the answers are read.
const BATCH: usize = 500;

/// A generator that gives the same row every time (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What we read, in the words of the program beside this file; nothing where we refuse.
fn ours(archive: &[u8], limits: &Limits) -> Option<String> {
    let mut entries = Entries::new(archive, "archive", limits);
    let mut list = String::new();
    while let Some(entry) = entries.next().ok()? {
        let mut data = Vec::new();
        entries
            .content(|piece| {
                data.extend_from_slice(piece);
                Ok(())
            })
            .ok()?;
        let content = if entry.kind != Kind::File {
            "none".to_owned()
        } else if entry.size > 1 << 20 {
            "long".to_owned()
        } else {
            let mut whole = data.clone();
            if let Some(extents) = &entry.extents {
                whole = vec![0; usize::try_from(entry.size).unwrap()];
                let mut from = 0;
                for extent in extents {
                    let (at, length) = (
                        usize::try_from(extent.offset).unwrap(),
                        usize::try_from(extent.length).unwrap(),
                    );
                    whole[at..at + length].copy_from_slice(&data[from..from + length]);
                    from += length;
                }
            }
            Digest::of(&whole).hex()
        };
        let kind = match entry.kind {
            Kind::File => '0',
            Kind::HardLink => '1',
            Kind::Symlink => '2',
            Kind::CharDevice => '3',
            Kind::BlockDevice => '4',
            Kind::Directory => '5',
            Kind::Fifo => '6',
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        writeln!(
            list,
            "{kind} {} {} {:o} {} {} {}.{:09} {} {}:{} {content}",
            hex(&entry.name),
            hex(&entry.link),
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime.0,
            entry.mtime.1,
            entry.size,
            entry.device.0,
            entry.device.1,
        )
        .unwrap();
    }
    entries.finish().ok()?;
    Some(list)
}

/// An archive with every format in it, then changed in a few places.
fn archive(dice: &mut Dice) -> Vec<u8> {
    let mut blocks = Vec::new();
    let old =
        old_sparse("old", 9_000, &[(0, 10), (1000, 20), (2000, 5), (3000, 5), (8999, 1)], &[7; 41]);
    for _ in 0..1 + dice.below(3) {
        let item = match dice.below(9) {
            0 => dir("d/"),
            1 => file("d/f", vec![1; dice.below(1500)]),
            2 => file(&"l".repeat(101 + dice.below(100)), "x").gnu(),
            3 => file(&"p".repeat(101 + dice.below(100)), "x"),
            4 => symlink("s", &"t".repeat(dice.below(150))),
            5 => Item { device: (1, 3), ..item(b'3', "null") },
            6 => hard_link("h", "d/f").gnu(),
            7 => dice.pick(&sparse_items()).clone(),
            _ => {
                blocks.extend_from_slice(&old);
                continue;
            }
        };
        let keys = [
            "path",
            "linkpath",
            "size",
            "uid",
            "gid",
            "mtime",
            "atime",
            "GNU.sparse.major",
            "GNU.sparse.minor",
            "GNU.sparse.name",
            "GNU.sparse.size",
            "GNU.sparse.realsize",
            "GNU.sparse.numblocks",
            "GNU.sparse.map",
            "GNU.sparse.offset",
            "GNU.sparse.numbytes",
            "SCHILY.xattr.user.a",
            "comment",
        ];
        let values = [
            "",
            "0",
            "1",
            "3",
            "512",
            "-1",
            "+7",
            "1.5",
            "-2.25",
            "a/",
            "n",
            "0,1",
            "0,0",
            "99999999999",
            "9223372036854775807",
            "9223372036854775808",
            "0x1",
            " 1",
            "1_0",
        ];
        let item = (0..dice.below(3))
            .fold(item, |item, _| item.record(dice.pick::<&str>(&keys), *dice.pick(&values)));
        crate::testing::write(&mut blocks, &item);
    }
    if dice.below(4) > 0 {
        pad(&mut blocks, &[0; 1024]);
    }
    for _ in 0..dice.below(4) {
        change(&mut blocks, dice);
    }
    blocks
}

/// Changes a field where it hurts, and puts the checksum right most of the time.
fn change(blocks: &mut Vec<u8>, dice: &mut Dice) {
    if blocks.is_empty() {
        return;
    }
    let block = dice.below(blocks.len().div_ceil(512)) * 512;
    let end = blocks.len().min(block + 512);
    let fields = [
        (0, 100),
        (100, 8),
        (108, 8),
        (116, 8),
        (124, 12),
        (136, 12),
        (156, 1),
        (157, 100),
        (257, 8),
        (329, 16),
        (345, 155),
        (386, 96),
        (482, 1),
        (483, 12),
        (504, 1),
        (508, 4),
    ];
    let (start, length) = *dice.pick(&fields);
    match dice.below(8) {
        0 => blocks.truncate(dice.below(blocks.len()) + 1),
        1 => {
            let copy = blocks[block..end].to_vec();
            blocks.splice(block..block, copy);
        }
        2 => drop(blocks.splice(block..end, [])),
        3 => blocks[block..end].fill(0),
        _ => {
            let bytes = [
                0, b' ', b'0', b'1', b'7', b'8', b'/', b'.', b'S', b'x', b'g', b'L', b'5', 0x80,
                0xff, b'\n', b'=',
            ];
            for _ in 0..=dice.below(3) {
                let at = block + start + dice.below(length);
                if at < end {
                    blocks[at] = *dice.pick(&bytes);
                }
            }
        }
    }
    if dice.below(5) > 0 && block + 512 <= blocks.len() {
        seal(&mut blocks[block..block + 512]);
    }
}

/// The answer about one archive; nothing where Go refuses.
fn list_of_go(answers: &mut impl Iterator<Item = io::Result<String>>) -> Option<String> {
    let mut list = String::new();
    for line in answers {
        match line.unwrap().as_str() {
            "end" => return Some(list),
            "error" => return None,
            entry => {
                list.push_str(entry);
                list.push('\n');
            }
        }
    }
    panic!("Go ended");
}

#[test]
fn what_we_take_go_reads_the_same_way() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("list.go"), include_str!("list.go")).unwrap();
    let built = Command::new("go")
        .args(["build", "-o", "list", "list.go"])
        .current_dir(temp.path())
        .env("GO111MODULE", "off")
        .status();
    assert!(built.expect("Go is installed").success());
    let mut go = Command::new(temp.path().join("list"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to_go = go.stdin.take().unwrap();
    let mut answers = BufReader::new(go.stdout.take().unwrap()).lines();
    let limits = Limits::default();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..ROUNDS / BATCH {
        let archives: Vec<_> = (0..BATCH).map(|_| archive(&mut dice)).collect();
        // Written by another thread, for the answers of a batch may be longer than a pipe holds.
        let lists: Vec<Option<String>> = std::thread::scope(|scope| {
            scope.spawn(|| {
                for archive in &archives {
                    to_go.write_all(&(archive.len() as u64).to_be_bytes()).unwrap();
                    to_go.write_all(archive).unwrap();
                }
                to_go.flush().unwrap();
            });
            archives.iter().map(|_| list_of_go(&mut answers)).collect()
        });
        for (archive, theirs) in archives.iter().zip(lists) {
            match ours(archive, &limits) {
                None => refused += 1,
                ours if ours == theirs => taken += 1,
                ours => {
                    let text = String::from_utf8_lossy(archive).replace('\0', "");
                    panic!("{text}\nours:\n{}\nGo's:\n{theirs:?}", ours.unwrap_or_default());
                }
            }
        }
    }
    drop(to_go);
    go.wait().unwrap();
    // A parser that refuses all would pass, and so would changes that change nothing.
    assert!(taken > ROUNDS / 10 && refused > ROUNDS / 10, "{taken} taken, {refused} refused");
    println!("{taken} taken, {refused} refused");
}
