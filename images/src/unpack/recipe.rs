//! The recipe of a layer: everything of its tar but the content of its files, compressed.
//!
//! A tree forgets how its tar was written: order, headers, padding, what was overwritten
//! later. Recipe and tree together give the same bytes again, so a layer is on disk once
//! and can still be exported under the digest it came with.
//!
//! Format: a zstd stream with checksum; in it a version byte, then segments. A segment is a
//! tag and numbers (LEB128): `0` raw: length, bytes; `1` whole file: path, size; `2` sparse
//! file: path, number of extents, for each the distance from the last one's end and the
//! length; `3` end. A path is a length and bytes. Files are numbered in order from zero:
//! the content of a file that was overwritten later in the same tar is in the directory of
//! kept files under its number.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use runtime::root::Root;
use rustix::fs::{FileType, Mode, OFlags};

use super::sparse::Extent;
use crate::error::{Doing, Error, Result};

const VERSION: u8 = 1;
const RAW: u8 = 0;
const WHOLE: u8 = 1;
const SPARSE: u8 = 2;
const END: u8 = 3;

/// Nearly all of a recipe is zeros and repeated names; more effort gains little.
const LEVEL: i32 = 1;

/// Longest path and largest number of extents that a sound recipe can have; see `limits.rs`.
const MAX_PATH: u64 = 4096;
const MAX_EXTENTS: u64 = 1 << 18;

/// Writes a recipe while a layer is unpacked.
pub(super) struct Writer {
    out: zstd::stream::write::Encoder<'static, File>,
    files: u32,
}

impl Writer {
    /// Begins a recipe in a file.
    pub(super) fn new(file: File) -> io::Result<Writer> {
        let mut out = zstd::stream::write::Encoder::new(file, LEVEL)?;
        out.include_checksum(true)?;
        out.write_all(&[VERSION])?;
        Ok(Writer { out, files: 0 })
    }

    /// Adds bytes that are no content of a file.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.out.write_all(&[RAW])?;
        self.number(bytes.len() as u64)?;
        self.out.write_all(bytes)
    }

    /// Adds the content of a file of the tree, all of it or the extents that have data; returns the file's number.
    pub(super) fn content(
        &mut self,
        path: &[u8],
        size: u64,
        extents: Option<&[Extent]>,
    ) -> io::Result<u32> {
        self.out.write_all(&[if extents.is_some() { SPARSE } else { WHOLE }])?;
        self.number(path.len() as u64)?;
        self.out.write_all(path)?;
        match extents {
            None => self.number(size)?,
            Some(extents) => {
                self.number(extents.len() as u64)?;
                let mut end = 0;
                for extent in extents {
                    self.number(extent.offset - end)?;
                    self.number(extent.length)?;
                    end = extent.offset + extent.length;
                }
            }
        }
        let number = self.files;
        self.files += 1;
        Ok(number)
    }

    /// Ends the recipe.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[END])?;
        self.out.finish().map(drop)
    }

    fn number(&mut self, mut value: u64) -> io::Result<()> {
        let mut bytes = [0; 10];
        let mut length = 0;
        loop {
            bytes[length] = value.to_le_bytes()[0] & 0x7f | if value > 0x7f { 0x80 } else { 0 };
            length += 1;
            value >>= 7;
            if value == 0 {
                return self.out.write_all(&bytes[..length]);
            }
        }
    }
}

/// The tar of a layer, made again from its recipe and its tree.
pub(crate) struct Replay {
    recipe: BufReader<zstd::stream::read::Decoder<'static, BufReader<File>>>,
    tree: Root,
    kept: Option<OwnedFd>,
    files: u32,
    now: Now,
}

enum Now {
    Between,
    Raw(u64),
    Content { file: File, next: std::vec::IntoIter<Extent>, extent: Extent },
    End,
}

impl Replay {
    /// Opens a recipe; `kept` is the directory of overwritten contents where there is one.
    ///
    /// # Errors
    /// Those of reading; `Invalid` for a recipe that this version does not know.
    pub(crate) fn open(recipe: File, tree: Root, kept: Option<OwnedFd>) -> Result<Replay> {
        let doing = || "read the recipe of a layer";
        let decoder = zstd::stream::read::Decoder::new(recipe).doing(doing)?;
        let mut recipe = BufReader::with_capacity(64 << 10, decoder);
        let mut version = [0];
        recipe.read_exact(&mut version).doing(doing)?;
        if version != [VERSION] {
            return Err(Error::invalid("recipe of a layer", format!("has version {}", version[0])));
        }
        Ok(Replay { recipe, tree, kept, files: 0, now: Now::Between })
    }

    fn advance(&mut self) -> io::Result<Now> {
        let mut tag = [0];
        self.recipe.read_exact(&mut tag)?;
        match tag {
            [RAW] => Ok(Now::Raw(self.number()?)),
            [WHOLE] => {
                let path = self.path()?;
                let length = self.number()?;
                self.start(&path, vec![Extent { offset: 0, length }])
            }
            [SPARSE] => {
                let path = self.path()?;
                let extents = self.extents()?;
                self.start(&path, extents)
            }
            [END] => Ok(Now::End),
            _ => Err(damaged("has an unknown segment")),
        }
    }

    fn start(&mut self, path: &[u8], extents: Vec<Extent>) -> io::Result<Now> {
        let number = self.files;
        self.files = number.checked_add(1).ok_or_else(|| damaged("has too many files"))?;
        let file = self.open_content(number, path)?;
        Ok(Now::Content {
            file,
            next: extents.into_iter(),
            extent: Extent { offset: 0, length: 0 },
        })
    }

    fn open_content(&self, number: u32, path: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let kept = self
            .kept
            .as_ref()
            .map(|kept| rustix::fs::openat(kept.as_fd(), number.to_string(), flags, Mode::empty()));
        let fd = match kept {
            Some(Ok(fd)) => fd,
            Some(Err(errno)) if errno != rustix::io::Errno::NOENT => return Err(errno.into()),
            _ => {
                let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
                self.tree.resolve_beneath(path, flags, 0).map_err(io::Error::other)?
            }
        };
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(damaged("names what is no file"));
        }
        Ok(File::from(fd))
    }

    fn path(&mut self) -> io::Result<Vec<u8>> {
        let length = self.number()?;
        if length > MAX_PATH {
            return Err(damaged("has a path that is too long"));
        }
        let mut path = vec![0; usize::try_from(length).expect("at most MAX_PATH")];
        self.recipe.read_exact(&mut path)?;
        Ok(path)
    }

    fn extents(&mut self) -> io::Result<Vec<Extent>> {
        let count = self.number()?;
        if count > MAX_EXTENTS {
            return Err(damaged("has a sparse map that is too long"));
        }
        let mut end: u64 = 0;
        let mut extents = Vec::new();
        for _ in 0..count {
            let (distance, length) = (self.number()?, self.number()?);
            let offset =
                end.checked_add(distance).ok_or_else(|| damaged("has a bad sparse map"))?;
            end = offset.checked_add(length).ok_or_else(|| damaged("has a bad sparse map"))?;
            extents.push(Extent { offset, length });
        }
        Ok(extents)
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.recipe.read_exact(&mut byte)?;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged("has a number that is too large"))
    }
}

impl Read for Replay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.now {
                Now::End => return Ok(0),
                Now::Raw(left) if *left > 0 => {
                    let available = self.recipe.fill_buf()?;
                    let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                    let count = available.len().min(wanted);
                    if count == 0 {
                        return Err(damaged("ends too early"));
                    }
                    buffer[..count].copy_from_slice(&available[..count]);
                    self.recipe.consume(count);
                    *left -= count as u64;
                    return Ok(count);
                }
                Now::Content { file, extent, .. } if extent.length > 0 => {
                    let wanted =
                        usize::try_from(extent.length).unwrap_or(usize::MAX).min(buffer.len());
                    let count = file.read_at(&mut buffer[..wanted], extent.offset)?;
                    if count == 0 {
                        return Err(damaged("names a file that has become shorter"));
                    }
                    extent.offset += count as u64;
                    extent.length -= count as u64;
                    return Ok(count);
                }
                Now::Content { next, extent, .. } => match next.next() {
                    Some(following) => *extent = following,
                    None => self.now = Now::Between,
                },
                Now::Between | Now::Raw(_) => self.now = self.advance()?,
            }
        }
    }
}

fn damaged(how: &str) -> io::Error {
    io::Error::other(Error::invalid("recipe of a layer", how))
}
