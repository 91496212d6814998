//! A directory as the root of every path below it: all path work in a root file
//! system, a volume or a log directory goes through here, by descriptor.
//!
//! Whoever writes such a tree may change it while we look, so a path is never
//! resolved twice and never joined to a host path: it is opened once, with the
//! kernel keeping `..`, absolute links and races inside the root (openat2(2),
//! RESOLVE_IN_ROOT), and all else happens on the descriptor.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::error::{Doing, Error, Result};

/// Symbolic links followed in one path, as the kernel's own limit (MAXSYMLINKS).
const MAX_LINKS: usize = 40;
/// openat2 answers EAGAIN when a rename elsewhere raced with `..`; then it may simply be asked again.
const MAX_RACES: usize = 256;

/// A directory that bounds every path: nothing reached through it lies outside.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
}

/// What to make where a path leads to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A directory with this mode.
    Directory(u32),
    /// An empty regular file with this mode.
    File(u32),
}

/// Who owns what is made: uid and gid.
pub type Owner = (u32, u32);

impl Root {
    /// Opens a directory of the host whose path is trusted: ours, or given by the administrator.
    ///
    /// # Errors
    /// The path does not lead to a directory.
    pub fn open(path: &Path) -> Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .doing(|| format!("open directory {}", path.display()))?;
        Ok(Root { dir })
    }

    /// Takes a directory that is open already, such as a detached mount.
    pub fn from_fd(dir: OwnedFd) -> Root {
        Root { dir }
    }

    /// The directory itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens what `path` leads to, following links inside the root only.
    ///
    /// `path` may be absolute or not: both start at the root.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        self.open_in_root(path, flags, Mode::empty())
            .doing(|| format!("open {} in the root", path.display()))
    }

    /// Opens what `path` leads to without following any link at all.
    ///
    /// # Errors
    /// Those of openat2(2): ELOOP where a part of the path is a link, EXDEV where it leaves the root.
    pub fn resolve_beneath(&self, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd> {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        open_racing(self.dir.as_fd(), path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode), how)
            .doing(|| format!("open {} without following links", path.display()))
    }

    /// Opens what `path` leads to (O_PATH), and makes it, with the directories on the way, where it is missing.
    ///
    /// Links are followed inside the root, those that lead to nothing too: what they name is made.
    /// What is made belongs to `owner`, or to root.
    ///
    /// # Errors
    /// Those of the calls; ENOTDIR where a part of the path is a file.
    pub fn resolve_or_make(
        &self,
        path: &Path,
        missing: Missing,
        owner: Option<Owner>,
    ) -> Result<OwnedFd> {
        match self.open_in_root(path, OFlags::PATH, Mode::empty()) {
            Ok(fd) => Ok(fd),
            Err(Errno::NOENT) => self
                .walk_and_make(path, missing, owner)
                .doing(|| format!("make {} in the root", path.display())),
            Err(errno) => Err(errno).doing(|| format!("open {} in the root", path.display())),
        }
    }

    /// Reads a regular file of at most `cap` bytes. A link is followed inside the root.
    ///
    /// # Errors
    /// `Invalid` where it is no regular file or larger than `cap`; never blocks on a FIFO or a device.
    pub fn read(&self, path: &Path, cap: u64) -> Result<Vec<u8>> {
        let fd = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat =
            rustix::fs::fstat(&fd).doing(|| format!("stat {} in the root", path.display()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Invalid(format!("{} is not a regular file", path.display())));
        }
        let mut content = Vec::new();
        std::fs::File::from(fd)
            .take(cap + 1)
            .read_to_end(&mut content)
            .doing(|| format!("read {} in the root", path.display()))?;
        if content.len() as u64 > cap {
            return Err(Error::Invalid(format!("{} is larger than {cap} bytes", path.display())));
        }
        Ok(content)
    }

    fn open_in_root(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        open_racing(self.dir.as_fd(), path, flags | OFlags::CLOEXEC, mode, how)
    }

    /// The slow way: one component at a time, each opened without following it, so that missing ones can be made.
    /// `..` goes back along the directories that we came through and never asks the kernel.
    fn walk_and_make(
        &self,
        path: &Path,
        missing: Missing,
        owner: Option<Owner>,
    ) -> rustix::io::Result<OwnedFd> {
        let mut way = Way::new(self, path)?;
        let mut links = 0;
        while let Some(name) = way.names.pop() {
            if name == ".." {
                way.dirs.pop();
                continue;
            }
            let last = way.names.is_empty();
            let kind = if last { missing } else { Missing::Directory(0o755) };
            let fd = open_or_make(way.here(), &name, kind, owner)?;
            let stat = rustix::fs::fstat(&fd)?;
            let file_type = FileType::from_raw_mode(stat.st_mode);
            if file_type == FileType::Symlink {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                way.follow(&rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes());
            } else if file_type == FileType::Directory {
                way.dirs.push(fd);
            } else if last {
                return Ok(fd);
            } else {
                return Err(Errno::NOTDIR);
            }
        }
        match way.dirs.pop() {
            Some(fd) => Ok(fd),
            None => rustix::io::fcntl_dupfd_cloexec(&self.dir, 0),
        }
    }
}

/// Where a walk is: the directories from the root to here, and the names still to go, last one first.
struct Way<'a> {
    root: &'a Root,
    dirs: Vec<OwnedFd>,
    names: Vec<OsString>,
}

impl<'a> Way<'a> {
    fn new(root: &'a Root, path: &Path) -> rustix::io::Result<Way<'a>> {
        let mut way = Way { root, dirs: Vec::new(), names: Vec::new() };
        way.queue(path);
        Ok(way)
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.dirs.last().map_or(self.root.as_fd(), AsFd::as_fd)
    }

    fn follow(&mut self, link: &[u8]) {
        let path = PathBuf::from(OsString::from_vec(link.to_vec()));
        if path.is_absolute() {
            self.dirs.clear();
        }
        self.queue(&path);
    }

    fn queue(&mut self, path: &Path) {
        let names: Vec<_> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_owned()),
                Component::ParentDir => Some("..".into()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
            })
            .collect();
        self.names.extend(names.into_iter().rev());
    }
}

/// Opens one name in a directory (O_PATH, not followed), made first where it is missing.
fn open_or_make(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    missing: Missing,
    owner: Option<Owner>,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    let made = match missing {
        Missing::Directory(mode) => rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)),
        Missing::File(mode) => {
            let create =
                OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            rustix::fs::openat(dir, name, create, Mode::from_raw_mode(mode)).map(drop)
        }
    };
    match made {
        // Somebody else made it in between: then it is theirs, and what it is shows next.
        Err(Errno::EXIST) => return rustix::fs::openat(dir, name, flags, Mode::empty()),
        Err(errno) => return Err(errno),
        Ok(()) => {}
    }
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    if let Some((uid, gid)) = owner {
        chown(&fd, uid, gid)?;
    }
    Ok(fd)
}

/// Changes the owner of what is open, O_PATH too.
///
/// # Errors
/// Those of fchownat(2).
pub fn chown(fd: impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let flags = rustix::fs::AtFlags::EMPTY_PATH;
    rustix::fs::chownat(fd, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)
}

fn open_racing(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    how: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    for _ in 0..MAX_RACES {
        match rustix::fs::openat2(dir, path, flags, mode, how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Whether a name is one path component that can be made in a directory as it is.
pub fn is_plain_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 255
        && bytes != b"."
        && bytes != b".."
        && !bytes.contains(&b'/')
        && !bytes.contains(&0)
}

#[cfg(test)]
mod tests;
