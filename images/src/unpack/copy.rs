//! A tar whose sender nobody trusts, into a directory that is somebody's: what `berth cp` takes out of a container.
//!
//! Nothing is made or changed outside the directory, whatever the archive says: every path is opened from the
//! directory's descriptor without following any link, a file is always a new one, and one that was there is unlinked
//! first. Devices are not made, and nothing gets set-user-id or set-group-id.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use runtime::root::Root;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::entries::{Entries, Entry, Kind};
use super::metadata::timestamps;
use super::names::{clean, shown, split};
use super::pax::Time;
use crate::error::{Doing, Error, Result};
use crate::limits::Limits;

/// What is wanted of an archive.
#[derive(Debug, Default)]
pub struct Copy {
    /// The archive holds this name and what is below it, or it is refused. None: it holds the content of a directory.
    pub name: Option<Vec<u8>>,
    /// What that name becomes.
    pub rename: Option<Vec<u8>>,
    /// The name has to be a directory (true), or must not be one.
    pub directory: Option<bool>,
    /// Set owners as the archive has them.
    pub owners: bool,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Entries of the archive.
    pub entries: u64,
    /// Devices and pipes, which are not made.
    pub skipped: u64,
}

impl Copy {
    /// Unpacks an archive that errors call `what`. Blocks until it is read.
    ///
    /// # Errors
    /// `Invalid` for an archive that is malformed, leads out of the directory, or is not what was asked for; `Limit`;
    /// `Io` for the disk and the reader. What was made by then stays.
    pub fn unpack(self, reader: impl BufRead, into: OwnedFd, what: &str) -> Result<Copied> {
        // What people copy is their own: only the work that an archive makes us do is bounded.
        let limits = Limits::default();
        let mut entries = Entries::new(reader, what, &limits);
        let mut target = Target {
            root: Root::from_fd(into),
            what,
            copy: self,
            limits: &limits,
            directories: BTreeMap::new(),
            copied: Copied::default(),
        };
        while let Some(entry) = entries.next()? {
            entries.raw().clear();
            target.take(&entry, &mut entries)?;
        }
        target.settle()?;
        entries.finish()?;
        Ok(target.copied)
    }
}

struct Target<'a> {
    root: Root,
    what: &'a str,
    copy: Copy,
    limits: &'a Limits,
    /// Directories of the archive by path: mode, owner and time are set when nothing more goes into them.
    directories: BTreeMap<Vec<u8>, (u32, u32, u32, Time)>,
    copied: Copied,
}

impl Target<'_> {
    fn take<R: BufRead>(&mut self, entry: &Entry, entries: &mut Entries<'_, R>) -> Result<()> {
        self.copied.entries += 1;
        let path = self.path(&entry.name)?;
        if path.is_empty() {
            // The directory itself, which is not the archive's.
            return entries.content(|_| Ok(()));
        }
        if self.copied.entries == 1 {
            self.check_kind(entry)?;
        }
        let (dir, name) = split(&path);
        let parent = self.parent(dir)?;
        match entry.kind {
            Kind::Directory => self.make_directory(&parent, name, &path, entry)?,
            Kind::File => self.write_file(&parent, name, entry, entries)?,
            Kind::Symlink => self.make_link(&parent, name, entry)?,
            Kind::HardLink => self.make_hard_link(&parent, name, entry)?,
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.copied.skipped += 1,
        }
        Ok(())
    }

    /// Where an entry goes, or what is wrong with its name.
    fn path(&self, name: &[u8]) -> Result<Vec<u8>> {
        let path =
            clean(name, self.limits).map_err(|problem| Error::invalid(self.what, problem))?;
        let Some(wanted) = &self.copy.name else { return Ok(path) };
        let (first, rest) = match path.iter().position(|byte| *byte == b'/') {
            Some(slash) => path.split_at(slash),
            None => (&path[..], &path[..0]),
        };
        if first != wanted {
            let problem = format!("it brings {}, which was not asked for", shown(name));
            return Err(Error::invalid(self.what, problem));
        }
        Ok([self.copy.rename.as_deref().unwrap_or(first), rest].concat())
    }

    fn check_kind(&self, entry: &Entry) -> Result<()> {
        let problem = match (self.copy.directory, entry.kind == Kind::Directory) {
            (Some(true), false) => {
                "it is no directory, and the target has to be one; make it first"
            }
            (Some(false), true) => "it is a directory, and the target is there and is none",
            _ => return Ok(()),
        };
        Err(Error::invalid(self.what, problem))
    }

    /// Opens a directory below the target, and makes what is missing of it.
    fn parent(&self, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let open = |path: &[u8]| {
            let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
            self.root.resolve_beneath(Path::new(path), flags, 0)
        };
        let mut made = 0;
        loop {
            let error = match open(path) {
                Ok(parent) => return Ok(parent),
                Err(error) => error,
            };
            let next = path[made..].iter().position(|byte| *byte == b'/');
            let end = next.map_or(path.len(), |slash| made + slash);
            if error.errno() != Some(Errno::NOENT.raw_os_error()) || made >= path.len() {
                return Err(self.in_the_way(path, error));
            }
            let (above, name) = split(&path[..end]);
            let above = open(above).map_err(|error| self.in_the_way(path, error))?;
            match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => made = end + 1,
                Err(errno) => return Err(errno).doing(|| self.making(path)),
            }
        }
    }

    /// Links are never followed: neither those that the archive has brought nor those that were there.
    fn in_the_way(&self, path: &[u8], error: runtime::error::Error) -> Error {
        let link = Errno::LOOP.raw_os_error();
        match error.errno() {
            Some(errno) if errno == link || errno == Errno::NOTDIR.raw_os_error() => {
                Error::invalid(
                    self.what,
                    format!(
                        "{} leads through what is no directory: links are not followed",
                        shown(path)
                    ),
                )
            }
            errno => Error::Io {
                doing: self.making(path),
                source: std::io::Error::from_raw_os_error(
                    errno.unwrap_or(Errno::IO.raw_os_error()),
                ),
            },
        }
    }

    fn making(&self, path: &[u8]) -> String {
        format!("copy {} out of {}", shown(path), self.what)
    }

    fn make_directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<()> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .doing(|| self.making(path))?;
                if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                    let problem =
                        format!("{} is a directory, and no directory is there", shown(path));
                    return Err(Error::invalid(self.what, problem));
                }
            }
            Err(errno) => return Err(errno).doing(|| self.making(path)),
        }
        let late = (entry.mode & 0o1777, entry.uid, entry.gid, entry.mtime);
        self.directories.insert(path.to_vec(), late);
        Ok(())
    }

    /// Takes away what has the name, unless it is a directory.
    fn make_room(&self, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                let problem = format!("{} is no directory, and a directory is there", shown(name));
                Err(Error::invalid(self.what, problem))
            }
            Err(errno) => Err(errno).doing(|| self.making(name)),
        }
    }

    fn write_file<R: BufRead>(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        entries: &mut Entries<'_, R>,
    ) -> Result<()> {
        self.make_room(parent, name)?;
        let doing = || self.making(&entry.name);
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(file.doing(doing)?);
        let mut extents = entry.extents.iter().flatten();
        let mut left = if entry.extents.is_some() { 0 } else { u64::MAX };
        entries.content(|mut bytes| {
            while !bytes.is_empty() {
                if left == 0 {
                    let Some(extent) = extents.next() else { return Ok(()) };
                    file.seek(SeekFrom::Start(extent.offset)).doing(doing)?;
                    left = extent.length;
                }
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                file.write_all(&bytes[..count]).doing(doing)?;
                left -= count as u64;
                bytes = &bytes[count..];
            }
            Ok(())
        })?;
        if entry.extents.is_some() {
            file.set_len(entry.size).doing(doing)?;
        }
        self.own(&file, entry.uid, entry.gid).doing(doing)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o777)).doing(doing)?;
        rustix::fs::futimens(&file, &timestamps(entry.mtime)).doing(doing)
    }

    fn own(&self, fd: impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
        if !self.copy.owners {
            return Ok(());
        }
        rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
    }

    fn make_link(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(Error::invalid(self.what, "a symbolic link must lead somewhere"));
        }
        self.make_room(parent, name)?;
        rustix::fs::symlinkat(&entry.link[..], parent, name).doing(|| self.making(&entry.name))
    }

    /// To what lies in the target directory by then, and is a file.
    fn make_hard_link(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
        let path = self.path(&entry.link)?;
        let (dir, old) = split(&path);
        let from = self.parent(dir)?;
        let doing = || self.making(&entry.name);
        let stat = rustix::fs::statat(&from, old, AtFlags::SYMLINK_NOFOLLOW).doing(doing)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let problem = format!("{} is a hard link to what is no file", shown(&entry.name));
            return Err(Error::invalid(self.what, problem));
        }
        let here = self.path(&entry.name)?;
        if here == path {
            return Ok(());
        }
        self.make_room(parent, name)?;
        rustix::fs::linkat(&from, old, parent, name, AtFlags::empty()).doing(doing)
    }

    /// The deepest first: setting a directory's time must not be undone by what happens in it.
    fn settle(&mut self) -> Result<()> {
        for (path, (mode, uid, gid, mtime)) in std::mem::take(&mut self.directories).iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = self.root.resolve_beneath(Path::new(OsStr::from_bytes(path)), flags, 0);
            let directory = opened.map_err(|error| self.in_the_way(path, error))?;
            let doing = || self.making(path);
            self.own(&directory, *uid, *gid).doing(doing)?;
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(*mode)).doing(doing)?;
            rustix::fs::futimens(&directory, &timestamps(*mtime)).doing(doing)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
