//! Files that images come in: a directory, or a tar, compressed or not, whose parts are read where they lie.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::root::Root;
use rustix::fs::OFlags;

use crate::disk::{Disk, Place};
use crate::error::{Doing, Error, Result};
use crate::limits::Limits;
use crate::registry::from_io;
use crate::unpack::{Entries, Inflate, Kind, clean_name};

/// How much is read from a file at once.
const READ: usize = 256 << 10;
/// Links that lead to a part: docker's old archives have one for each layer they have twice.
const MAX_LINKS: usize = 8;

/// An open archive.
pub(crate) enum Archive {
    /// A tar without its compression.
    Tar { file: Arc<File>, parts: HashMap<Vec<u8>, Entry> },
    /// A directory.
    Directory(Root),
}

/// What a tar has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    File(Range),
    Link(Vec<u8>),
}

/// Where the content of a file lies in the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Range(Range),
    Path(PathBuf),
}

impl Archive {
    /// Opens a directory or a tar. A compressed one is inflated into a file without a name first.
    ///
    /// # Errors
    /// Those of the disk; `Invalid` and `Limit` for a tar that cannot be right.
    pub(crate) fn open_path(path: &Path, disk: &Disk, limits: &Limits) -> Result<Archive> {
        let doing = || format!("open {}", path.display());
        if std::fs::metadata(path).doing(doing)?.is_dir() {
            let root = Root::open(path).map_err(io::Error::other).doing(doing)?;
            return Ok(Archive::Directory(root));
        }
        let file = File::open(path).doing(doing)?;
        Archive::open_file(file, &path.display().to_string(), disk, limits)
    }

    /// Opens a tar.
    ///
    /// # Errors
    /// As [`Archive::open_path`].
    pub(crate) fn open_file(
        file: File,
        what: &str,
        disk: &Disk,
        limits: &Limits,
    ) -> Result<Archive> {
        let what = format!("archive {what}");
        let file = Arc::new(file);
        let whole = Range { start: 0, length: u64::MAX };
        let reader =
            BufReader::with_capacity(READ, RangeReader { file: Arc::clone(&file), range: whole });
        let stream = Inflate::new(reader, limits)
            .map_err(|error| from_io(error, || format!("read {what}")))?;
        if stream.is_plain() {
            let parts = index(BufReader::with_capacity(READ, stream), &what, limits)?;
            return Ok(Archive::Tar { file, parts });
        }
        let doing = || format!("inflate {what} into {}", disk.path(Place::Work).display());
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let spool = rustix::fs::openat(disk.place(Place::Work), ".", flags, mode).doing(doing)?;
        let spool = Arc::new(File::from(spool));
        let tee = Tee { reader: stream, spool: &spool };
        let parts = index(BufReader::with_capacity(READ, tee), &what, limits)?;
        Ok(Archive::Tar { file: spool, parts })
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.part(name).is_some()
    }

    /// A file of the archive.
    pub(crate) fn part(&self, name: &str) -> Option<Part> {
        match self {
            Archive::Directory(root) => {
                let path = Path::new(name);
                root.resolve(path, OFlags::PATH).ok().map(|_| Part::Path(path.to_owned()))
            }
            Archive::Tar { parts, .. } => {
                let mut name = normal(name.as_bytes())?;
                for _ in 0..MAX_LINKS {
                    match parts.get(&name)? {
                        Entry::File(range) => return Some(Part::Range(*range)),
                        Entry::Link(target) => {
                            let dir = name.iter().rposition(|byte| *byte == b'/');
                            let dir = dir.map_or(&b""[..], |slash| &name[..slash]);
                            name = normal(&[dir, b"/", target].concat())?;
                        }
                    }
                }
                None
            }
        }
    }

    /// All of a tar as one part.
    pub(crate) fn whole(&self) -> Option<Part> {
        match self {
            Archive::Tar { .. } => Some(Part::Range(Range { start: 0, length: u64::MAX })),
            Archive::Directory(_) => None,
        }
    }

    /// Opens a part for reading.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn open(&self, part: &Part) -> Result<Box<dyn BufRead + Send>> {
        match (self, part) {
            (Archive::Tar { file, .. }, Part::Range(range)) => {
                let reader = RangeReader { file: Arc::clone(file), range: *range };
                Ok(Box::new(BufReader::with_capacity(READ, reader)))
            }
            (Archive::Directory(root), Part::Path(path)) => {
                // A FIFO or device would make the reader wait for ever.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                let doing = || format!("open {}", path.display());
                let file = root.resolve(path, flags).map_err(io::Error::other).doing(doing)?;
                let file = File::from(file);
                if !file.metadata().doing(doing)?.is_file() {
                    return Err(Error::invalid(path.display().to_string(), "must be a file"));
                }
                Ok(Box::new(BufReader::with_capacity(READ, file)))
            }
            _ => Err(Error::invalid("archive", "a part of another one was asked for")),
        }
    }

    /// Reads a file of at most `cap` bytes; nothing where there is none.
    ///
    /// # Errors
    /// Those of the disk; `Limit` for a longer one, which names the row of the limits.
    pub(crate) fn read(
        &self,
        name: &str,
        cap: u64,
        row: &str,
        limits: &Limits,
    ) -> Result<Option<Vec<u8>>> {
        let Some(part) = self.part(name) else { return Ok(None) };
        let mut content = Vec::new();
        self.open(&part)?
            .take(cap + 1)
            .read_to_end(&mut content)
            .doing(|| format!("read {name}"))?;
        if content.len() as u64 > cap {
            return Err(limits.passed(name, row));
        }
        Ok(Some(content))
    }
}

/// Finds the files of a tar.
fn index(reader: impl BufRead, what: &str, limits: &Limits) -> Result<HashMap<Vec<u8>, Entry>> {
    let mut parts = HashMap::new();
    let mut entries = Entries::new(reader, what, limits);
    while let Some(entry) = entries.next()? {
        let start = entries.position();
        // The rest of what a root file system has is of no use here.
        if let Ok(name) = clean_name(&entry.name, limits) {
            match entry.kind {
                Kind::File if entry.extents.is_none() => {
                    parts.insert(name, Entry::File(Range { start, length: entry.size }));
                }
                Kind::Symlink => drop(parts.insert(name, Entry::Link(entry.link))),
                Kind::HardLink => {
                    drop(parts.insert(name, Entry::Link([b"/", &entry.link[..]].concat())))
                }
                Kind::File
                | Kind::Directory
                | Kind::CharDevice
                | Kind::BlockDevice
                | Kind::Fifo => {
                    parts.remove(&name);
                }
            }
        }
        entries.content(|_| Ok(()))?;
        entries.raw().clear();
    }
    entries.finish()?;
    Ok(parts)
}

/// A path in an archive without `.` and `..`, which links use; an absolute part begins anew.
fn normal(path: &[u8]) -> Option<Vec<u8>> {
    let from = path.windows(2).rposition(|pair| pair == b"//").map_or(0, |at| at + 1);
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path[from..].split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// Reads a part of a file that others read too.
struct RangeReader {
    file: Arc<File>,
    range: Range,
}

impl Read for RangeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.range.length).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.range.start)?;
        self.range.start += count as u64;
        self.range.length -= count as u64;
        Ok(count)
    }
}

/// Keeps a copy of what is read.
struct Tee<'a, R> {
    reader: R,
    spool: &'a File,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.spool.write_all(&buffer[..count])?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Option<&str>) {
        let found = normal(path.as_bytes());
        assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{path}");
    }

    #[test]
    fn links_lead_inside_the_archive() {
        check("a/./b", Some("a/b"));
        check("a/../b", Some("b"));
        check("a/b/../../c", Some("c"));
        check("a//b", Some("b"));
        check("/a", Some("a"));
        check("a/../../b", None);
    }
}
