//! Finding the directory that an entry goes into, inside the layer and nowhere else.
//!
//! Every directory is reached from the layer's own descriptor by openat2 without following
//! a link (E-02), and the few that were used last stay open. Links on the way, and
//! directories that the tar never lists, take the slow way: part by part, with the layers
//! below looked at where this layer has nothing.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::lowers::is_whiteout;
use super::names::{LayerPath, join, shown};
use super::tree::Tree;
use crate::error::{Doing, Error, Result};

/// Directories kept open; tars are written directory by directory, so a few serve nearly all entries.
const OPEN: usize = 16;
/// Links followed on one path, as the kernel's own limit.
const MAX_LINKS: usize = 40;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open directory of the layer and where it really is: no part of the path is a link.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    pub(super) path: LayerPath,
}

impl Dir {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directories used last, by the path they were asked for, most recent first.
#[derive(Debug, Default)]
pub(super) struct Recent {
    dirs: Vec<(LayerPath, Rc<Dir>)>,
}

impl Recent {
    fn find(&mut self, path: &[u8]) -> Option<Rc<Dir>> {
        let index = self.dirs.iter().position(|(asked, _)| asked == path)?;
        self.dirs[..=index].rotate_right(1);
        Some(Rc::clone(&self.dirs[0].1))
    }

    pub(super) fn add(&mut self, path: LayerPath, dir: Rc<Dir>) {
        self.dirs.truncate(OPEN - 1);
        self.dirs.insert(0, (path, dir));
    }

    /// Forgets all: a directory or link was replaced, so a path may lead elsewhere now.
    pub(super) fn clear(&mut self) {
        self.dirs.clear();
    }
}

impl Tree<'_> {
    /// Opens the directory at a path, made with those above it where the tar has not listed them.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Rc<Dir>> {
        if let Some(dir) = self.recent.find(path) {
            return Ok(dir);
        }
        let dir = match self.open_plain(path) {
            Ok(fd) => Rc::new(Dir { fd, path: path.to_vec() }),
            Err(error) => match error.errno().map(Errno::from_raw_os_error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.walk(path)?,
                _ => {
                    return Err(std::io::Error::other(error))
                        .doing(|| format!("open {}", shown(path)));
                }
            },
        };
        self.recent.add(path.to_vec(), Rc::clone(&dir));
        Ok(dir)
    }

    /// Opens a directory that was just made or found under a plain name.
    pub(super) fn child(&mut self, dir: &Dir, name: &[u8]) -> Result<Rc<Dir>> {
        let path = join(&dir.path, name);
        let fd = rustix::fs::openat(dir.fd(), name, DIRECTORY, Mode::empty())
            .doing(|| format!("open {}", shown(&path)))?;
        let child = Rc::new(Dir { fd, path: path.clone() });
        self.recent.add(path, Rc::clone(&child));
        Ok(child)
    }

    fn open_plain(&self, path: &[u8]) -> runtime::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        self.root.resolve_beneath(Path::new(OsStr::from_bytes(path)), DIRECTORY, 0)
    }

    /// The slow way to a directory: links are followed inside the root, what is missing is made.
    fn walk(&mut self, path: &[u8]) -> Result<Rc<Dir>> {
        let mut here = LayerPath::new();
        let mut names = Vec::new();
        queue(&mut names, path);
        let mut links = 0;
        while let Some(name) = names.pop() {
            if name == b".." {
                let end = here.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                here.truncate(end);
                continue;
            }
            let dir = self.directory(&here)?;
            match self.step(&dir, &name).doing(|| format!("look up {}", shown(path)))? {
                Step::Into => here = join(&here, &name),
                Step::Follow(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(self.bad(path, "leads through too many links"));
                    }
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    queue(&mut names, &target);
                }
                Step::NoDirectory => {
                    return Err(self.bad(path, &format!("{} is no directory", shown(&name))));
                }
                Step::Make { hidden } => {
                    self.make_implied(&dir, &name, hidden)?;
                    here = join(&here, &name);
                }
            }
        }
        self.directory(&here)
    }

    fn step(&self, dir: &Dir, name: &[u8]) -> rustix::io::Result<Step> {
        match rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) => Ok(Step::Make { hidden: true }),
            Ok(stat) => {
                let kind = FileType::from_raw_mode(stat.st_mode);
                if kind == FileType::Symlink {
                    let target = rustix::fs::readlinkat(dir.fd(), name, Vec::new())?;
                    return Ok(Step::Follow(target.into_bytes()));
                }
                Ok(if kind == FileType::Directory { Step::Into } else { Step::NoDirectory })
            }
            Err(Errno::NOENT) => {
                let target = self.below(&join(&dir.path, name))?.link_target(name)?;
                Ok(target.map_or(Step::Make { hidden: false }, Step::Follow))
            }
            Err(errno) => Err(errno),
        }
    }

    fn make_implied(&mut self, dir: &Dir, name: &[u8], hidden: bool) -> Result<()> {
        let path = join(&dir.path, name);
        let doing = || format!("make directory {}", shown(&path));
        if hidden {
            rustix::fs::unlinkat(dir.fd(), name, AtFlags::empty()).doing(doing)?;
        }
        rustix::fs::mkdirat(dir.fd(), name, Mode::RWXU).doing(doing)?;
        let child = self.child(dir, name)?;
        self.count_directory()?;
        self.set_default_access(&child).doing(doing)?;
        if hidden {
            // A new directory in place of what is deleted owes nothing to the layers below.
            return self.make_opaque(&child);
        }
        self.found.implied.insert(path);
        Ok(())
    }

    /// An error about an entry of this tar.
    pub(super) fn bad(&self, path: &[u8], problem: &str) -> Error {
        Error::invalid(format!("{}, entry {}", self.what, shown(path)), problem)
    }
}

enum Step {
    Into,
    Follow(Vec<u8>),
    NoDirectory,
    Make { hidden: bool },
}

/// Puts the parts of a path in front of those that are still to go, the next one last.
fn queue(names: &mut Vec<Vec<u8>>, path: &[u8]) {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    names.extend(parts.map(<[u8]>::to_vec).rev());
}
