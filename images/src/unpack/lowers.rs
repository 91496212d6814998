//! What the layers below show at a path, as overlayfs would merge them.
//!
//! Kernel: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::names::LayerPath;

/// The attribute of a directory that hides all directories of that name below it.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// Committed layers that a new one will lie on, the nearest one first.
#[derive(Debug)]
pub(crate) struct Lowers {
    layers: Vec<OwnedFd>,
}

/// What is visible at a path.
#[derive(Debug)]
pub(super) enum Found {
    Missing,
    /// A directory; the descriptor is that of the nearest layer that has it.
    Directory(OwnedFd),
    /// Anything else, links too: the directory that has it and its status there.
    Other(OwnedFd, Stat),
}

impl Found {
    /// Where it leads, if it is a symbolic link of this name.
    pub(super) fn link_target(&self, name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
        match self {
            Found::Other(dir, stat)
                if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink =>
            {
                rustix::fs::readlinkat(dir, name, Vec::new())
                    .map(|target| Some(target.into_bytes()))
            }
            Found::Missing | Found::Directory(_) | Found::Other(..) => Ok(None),
        }
    }
}

impl Lowers {
    /// The trees of the layers below, the nearest one first.
    pub(crate) fn new(layers: Vec<OwnedFd>) -> Lowers {
        Lowers { layers }
    }

    /// Whether there is nothing below.
    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Looks a path up. No link on the way is followed: where one is on it, the path is missing.
    pub(super) fn find(&self, path: &LayerPath) -> rustix::io::Result<Found> {
        let mut dirs = Vec::new();
        for layer in &self.layers {
            dirs.push(rustix::io::fcntl_dupfd_cloexec(layer, 0)?);
            if is_opaque(layer.as_fd())? {
                break;
            }
        }
        let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            match step(dirs, part)? {
                Step::Directories(found) => dirs = found,
                Step::Missing => return Ok(Found::Missing),
                Step::Other(..) if parts.peek().is_some() => return Ok(Found::Missing),
                Step::Other(dir, stat) => return Ok(Found::Other(dir, stat)),
            }
        }
        Ok(dirs.into_iter().next().map_or(Found::Missing, Found::Directory))
    }
}

enum Step {
    Missing,
    Directories(Vec<OwnedFd>),
    Other(OwnedFd, Stat),
}

/// One part of a path in directories that overlayfs merges, the upper one first.
fn step(dirs: Vec<OwnedFd>, part: &[u8]) -> rustix::io::Result<Step> {
    let mut found = Vec::new();
    for dir in dirs {
        let stat = match rustix::fs::statat(&dir, part, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = rustix::fs::openat(&dir, part, flags, Mode::empty())?;
            let ends = is_opaque(child.as_fd())?;
            found.push(child);
            if ends {
                break;
            }
        } else if !found.is_empty() || is_whiteout(&stat) {
            break;
        } else {
            return Ok(Step::Other(dir, stat));
        }
    }
    Ok(if found.is_empty() { Step::Missing } else { Step::Directories(found) })
}

/// Whether this is how overlayfs writes down that a name is gone: a character device 0:0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let mut value = [0_u8; 2];
    match rustix::fs::fgetxattr(dir, OPAQUE, &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}
